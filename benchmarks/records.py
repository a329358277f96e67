"""What the benchmarks with a file of results share: command line, records, tables."""

import argparse
import csv
import json
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

RESULTS = Path(__file__).parent / "results"


def command(description, results):
    """Parser of a command line with a data folder, a file of results and seeds.

    Parameters
    ----------
    description : str
    results : str
        Name of the file, in ``benchmarks/results`` where nothing else is said.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=os.environ.get("SKBDISTIL_DATA"))
    parser.add_argument("--results", type=Path, default=RESULTS / results)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    return parser


def command_of_tables(description, results):
    """Parser of a command line that writes tables into a folder, and needs no data.

    Parameters
    ----------
    description : str
    results : str
        Name of the file, in ``benchmarks/results`` where nothing else is said.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=RESULTS / results)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--tables", type=Path, default=Path("docs"))
    return parser


@contextmanager
def quietly(n_threads=1):
    """Run without warnings, in some threads of torch and of what NumPy uses."""
    with warnings.catch_warnings(), threadpool_limits(n_threads):
        warnings.simplefilter("ignore")
        torch.set_num_threads(n_threads)
        yield


def read(path):
    """Records of the file; none if there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def standard_error(values):
    return np.std(values, axis=0, ddof=1) / np.sqrt(len(values))


def with_error(values, digits, factor=1, sign=""):
    """Mean of values and its standard error, where there are several."""
    values = factor * np.asarray(values)
    text = f"{np.mean(values):{sign}.{digits}f}"
    return f"{text} ± {standard_error(values):.{digits}f}" if len(values) > 1 else text


def table(title, header, rows):
    """Print a table of the documentation."""
    print(f".. csv-table:: {title}")
    print("   :header: " + ", ".join(f'"{name}"' for name in header))
    print()
    for row in rows:
        print("   " + ", ".join(f'"{cell}"' for cell in row))
    print()


def write_table(path, header, rows):
    """Write a table of the documentation as CSV."""
    with path.open("w", newline="", encoding="utf-8") as text:
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
