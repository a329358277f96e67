"""Labels and scales that several displays need."""

import re

import numpy as np

from skbdistil.stages import UNITS

# An axis that spans more decades than this is logarithmic.
_LINEAR_DECADES = 1.5


def label_of_cost(cost):
    """Label of the axis of costs for a unit or a column; None for a callable."""
    if callable(cost):
        return None
    return UNITS.get(cost, readable(cost))


def readable(name):
    """Words from the name of a column, a scorer or a function."""
    name = re.sub("^(mean_test_|param_)", "", name)
    name = re.sub("_+", " ", name).strip()
    return name[:1].upper() + name[1:]


def choose_scale(ax, axis, interval):
    """Logarithmic scale where the data of all curves on the axis span decades."""
    low, high = interval
    if low <= 0 or high / low <= 10**_LINEAR_DECADES:
        return
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    ax.set(**{f"{axis.axis_name}scale": "log"})
    if high / low < 1e3:
        # Powers of ten alone would leave one or two ticks with a number.
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(
            LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf))
        )
    axis.set_minor_formatter(NullFormatter())
