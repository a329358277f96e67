"""The fit of the estimators. Read it from the top down:

``_plan`` decides what is left open by the parameters, ``_loop`` plays the rounds,
``_search`` finds the weak learner of a round, ``_training`` trains it on the batches
that ``_rows`` serves, and ``_game`` keeps the weights, the edges and the certificate
over the sums of ``_residuals``.
"""
