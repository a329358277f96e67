"""Accuracy of the running ensemble against its cost, beside what else could be run.

The protocol of the main figure of the paper, on real data. ``python -m
benchmarks.accuracy_cost --full`` measures, and ``python -m
benchmarks.accuracy_cost.report`` makes the figures and tables of the documentation.
What is run is one table, :mod:`~benchmarks.accuracy_cost.experiments`.
"""
