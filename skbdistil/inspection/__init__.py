"""Plots of a fitted estimator: accuracy against cost, convergence, and early exit.

matplotlib is imported when something is plotted.
"""

from skbdistil.inspection._accuracy_cost import AccuracyCostDisplay
from skbdistil.inspection._convergence import ConvergenceDisplay
from skbdistil.inspection._early_exit import EarlyExitDisplay

__all__ = ["AccuracyCostDisplay", "ConvergenceDisplay", "EarlyExitDisplay"]
