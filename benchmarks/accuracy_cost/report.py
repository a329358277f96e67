"""Figure and tables of the documentation, from files of results.

Results of settings that are no longer those of the table are left out. Means are over
seeds, with their standard errors; differences are between runs of the same seed.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.accuracy_cost import methods, results
from benchmarks.accuracy_cost.experiments import DATA_SETS, METHODS, distil, fingerprint

HERE = Path(__file__).parent
BY_NAME = {method.name: method for method in METHODS}

# Lines of the figure; more of them could not be told apart.
SHOWN = [
    "bdistil",
    "together",
    "no_resched",
    "resched",
]
# The curve of the first page: a table, and what is a line of its own in it.
FIRST_PAGE = "letter_hgb"
FIRST_PAGE_SHOWN = ["bdistil", "no_resched", "resched"]
FIRST_PAGE_LEVELS = [("teacher", "--"), ("hist_gradient_boosting", ":")]
# Against what had as many epochs, or as much training in all.
PAIRS = [
    ("bdistil", "no_resched"),
    ("together", "no_resched"),
    ("bdistil", "multi_exit"),
    ("refine_final", "multi_exit"),
    ("bdistil", "resched"),
    ("bdistil", "resched_barrier"),
    ("bdistil", "plain"),
    ("bdistil_long", "no_resched_long"),
    ("together_long", "no_resched_long"),
]
N_FIRST = 4  # stages that all data sets have
NOTHING = (np.nan, np.nan)


class Measured:
    """Results of the current settings.

    Parameters
    ----------
    paths : list of pathlib.Path
        Files of results; of an experiment that is in several, the last one counts.

    Attributes
    ----------
    datasets : list of DataSet
        Those that B-DISTIL was run on.
    n_seeds : int
        Number of seeds, of which some methods may lack one.
    n_outdated : int
        Number of experiments that were run with other settings.
    """

    def __init__(self, paths):
        found = {}
        for path in paths:
            found |= results.read(path)
        self._seeds = {}
        for dataset in DATA_SETS:
            for method in METHODS:
                current = (dataset.name, method.name, fingerprint(dataset, method))
                seeds = {
                    seed: records
                    for (*names, seed, settings), records in sorted(found.items())
                    if (*names, settings) == current
                }
                if seeds:
                    self._seeds[dataset.name, method.name] = seeds
        self.n_seeds = max(map(len, self._seeds.values()), default=0)
        self.n_outdated = len(found) - sum(map(len, self._seeds.values()))
        self.datasets = [data for data in DATA_SETS if self.has(data, "bdistil")]

    def has(self, dataset, name):
        """Whether a method was run on a data set."""
        return (dataset.name, name) in self._seeds

    def by_seed(self, dataset, name, key="accuracy"):
        """Values of shape (n_stages,) by seed; NaN where there are none.

        Where boosting stopped early, the last stage is what there is of later ones.
        """
        seeds = self._seeds[dataset.name, name]
        n_stages = max(len(records) for records in seeds.values())
        if is_aligned(BY_NAME[name]):
            n_stages = dataset.n_estimators
        return {
            seed: np.array(
                [record[key] for record in records]
                + [records[-1][key]] * (n_stages - len(records)),
                dtype=float,
            )
            for seed, records in seeds.items()
        }

    def label(self, dataset, name):
        """Label of a method, with what its numbers are to be read with."""
        seeds = self._seeds[dataset.name, name]
        notes = []
        if name != "teacher" and len(seeds) < self.n_seeds:
            notes.append(f"{len(seeds)} seed(s)")
        lengths = [len(records) for records in seeds.values()]
        if is_aligned(BY_NAME[name]) and min(lengths) < dataset.n_estimators:
            notes.append(f"{min(lengths)} to {max(lengths)} students found")
        return BY_NAME[name].label + f" ({', '.join(notes)})" * bool(notes)

    def mean(self, dataset, name, key="accuracy"):
        """Mean and standard error by stage."""
        return mean_and_error(list(self.by_seed(dataset, name, key).values()))

    def difference(self, dataset, first, second, reduce=np.asarray):
        """Mean and standard error of a difference in accuracy, in points.

        `reduce` is applied to the accuracies by stage of either method.
        """
        if not (self.has(dataset, first) and self.has(dataset, second)):
            return None
        first, second = (self.by_seed(dataset, name) for name in (first, second))
        seeds = sorted(first.keys() & second.keys())
        if not seeds:
            return None
        return mean_and_error(
            [100 * (reduce(first[seed]) - reduce(second[seed])) for seed in seeds]
        )


def is_aligned(method):
    """Whether the stages of a method are to be compared with those of `bdistil`."""
    return method.epochs is not None and "teacher_share" not in method.settings


def mean_and_error(values):
    """Mean over the first axis and its standard error, NaN for a single value."""
    values = np.asarray(values)
    if len(values) == 1:
        return values[0], np.full_like(values[0], np.nan)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def average(differences):
    """Average over data sets, whose errors are independent."""
    means, errors = np.transpose(differences)
    return means.mean(), np.sqrt(np.square(errors).sum()) / len(errors)


def cell(mean, error=np.nan, form=".1f"):
    """A number and its standard error; nothing for NaN."""
    if np.isnan(mean):
        return ""
    return f"{mean:{form}}" + ("" if np.isnan(error) else f" ± {error:.{form[-2]}f}")


def table(title, header, rows):
    """Lines of a table in reStructuredText."""
    lines = [f".. csv-table:: {title}", "   :header: " + _row(header), ""]
    return [*lines, *(f"   {_row(row)}" for row in rows), ""]


def _row(cells):
    return ", ".join(f'"{text}"' for text in cells)


def accuracy_tables(measured):
    """Accuracy by stage, one table for each data set."""
    for dataset in measured.datasets:
        n_stages = dataset.n_estimators
        spent = measured.mean(dataset, "bdistil", "macs")[0][-1]
        rows = []
        for method in METHODS:
            if method.ablation or not measured.has(dataset, method.name):
                continue
            means, errors = measured.mean(dataset, method.name)
            cells = [cell(100 * m, 100 * e) for m, e in zip(means, errors, strict=True)]
            if not is_aligned(method):  # its last stage is what there is to compare
                cells = [""] * (n_stages - 1) + cells[-1:]
            seconds, _ = measured.mean(dataset, method.name, "fit_seconds")
            latency, _ = measured.mean(dataset, method.name, "latency")
            trained = "" if method.name == "teacher" else cell(seconds[0], form=".0f")
            costs, _ = measured.mean(dataset, method.name, "macs")
            cost = cell(costs[-1] / spent, form=".2f")
            label = measured.label(dataset, method.name)
            training = cell(
                training_cost(measured, dataset, method)
                / training_cost(measured, dataset, BY_NAME["bdistil"])
            )
            latency = cell(1e6 * latency[-1])
            rows.append([label, *cells, cost, latency, training, trained])
        costs, unit = relative_costs(measured, dataset, "bdistil")
        rows.append([unit, *(f"{cost:.3g}" for cost in costs), "", "", "", ""])
        header = ["Stage", *range(1, n_stages + 1), "Cost", "µs a row", "Training"]
        header.append("Fit / s")
        yield from table(f"{dataset.label}: test accuracy in %", header, rows)


def training_cost(measured, dataset, method):
    """Multiply-accumulates of one forward pass per row, times the epochs with it.

    Students of frozen rounds are trained with what the earlier ones computed at hand.
    NaN where nothing is multiplied and accumulated, or nothing is trained by epochs.
    """
    costs, _ = measured.mean(dataset, method.name, "macs")
    (epochs, *_), _ = measured.mean(dataset, method.name, "epochs")
    if method.run in (methods.single_students, methods.single_networks):
        return epochs * costs.sum()
    if method.run is not distil:
        return epochs * costs[-1]
    refine = method.settings.get("refine")
    together = epochs * method.settings.get("refine_factor", 1)
    if refine == "only" and "refine_factor" not in method.settings:
        together = np.ceil(epochs * (dataset.n_estimators + 1) / 2)
    return {
        None: epochs * costs[-1],
        "final": (epochs + together) * costs[-1],
        "rounds": epochs * costs[-1] + together * costs.sum(),
        "only": together * costs[-1],
    }[refine]


def relative_costs(measured, dataset, name):
    """Cumulative multiply-accumulates, as a share of the teacher's where it has any."""
    costs, _ = measured.mean(dataset, name, "macs")
    if measured.has(dataset, "teacher"):
        (spent,), _ = measured.mean(dataset, "teacher", "macs")
        if not np.isnan(spent):
            return costs / spent, "Cost / teacher's"
    return costs, "Multiply-accumulates"


def goal_tables(measured):
    """What B-DISTIL gains over its rivals, and when it is near the teacher."""
    for name, rival in PAIRS:
        rows, columns = [], []
        for dataset in measured.datasets:
            found = measured.difference(dataset, name, rival)
            if found is not None:
                pairs = list(zip(*found, strict=True))
                columns.append([*pairs[:N_FIRST], pairs[-1]])
                rows.append([dataset.label, *(cell(*p, "+.2f") for p in columns[-1])])
        if rows:
            over_all = (average(stage) for stage in zip(*columns, strict=True))
            rows.append(["Average", *(cell(*pair, "+.2f") for pair in over_all)])
            title = f"{BY_NAME[name].label} minus {BY_NAME[rival].label.lower()}"
            header = ["Points at stage", *range(1, N_FIRST + 1), "last"]
            yield from table(title, header, rows)
    for name in ("bdistil", "together", "quarter"):
        rows = list(_near_teacher(measured, name))
        header = ["Data set", "Teacher", "Last stage", "First stage within a point"]
        header.append("Its cost / teacher's")
        if rows:
            yield from table(f"{BY_NAME[name].label} and the teacher", header, rows)


def _near_teacher(measured, name):
    for dataset in measured.datasets:
        if not (measured.has(dataset, "teacher") and measured.has(dataset, name)):
            continue
        (taught,), _ = measured.mean(dataset, "teacher")
        means, _ = measured.mean(dataset, name)
        costs, unit = relative_costs(measured, dataset, name)
        near = np.flatnonzero(means >= taught - 0.01)
        cells = ["none", ""]
        if len(near):
            share = f"{100 * costs[near[0]]:.2g} %" if "teacher" in unit else ""
            cells = [near[0] + 1, share]
        yield [dataset.label, cell(100 * taught), cell(100 * means[-1]), *cells]


def ablation_tables(measured):
    """What a change of the settings does to all stages and to the last one."""
    datasets = measured.datasets
    changed = [method for method in METHODS if method.ablation]
    for part, reduce in (
        ("mean over the stages", np.mean),
        ("last stage", lambda stages: stages[-1]),
    ):
        rows = []
        for method in changed:
            found = [
                measured.difference(dataset, method.name, "bdistil", reduce)
                for dataset in datasets
            ]
            known = [pair for pair in found if pair is not None]
            if known:
                cells = [cell(*(pair or NOTHING), "+.2f") for pair in found]
                over_all = average(known) if len(known) == len(found) else NOTHING
                rows.append([method.label, *cells, cell(*over_all, "+.2f")])
        header = ["", *(dataset.label for dataset in datasets), "Average"]
        if rows:
            title = f"Changes of B-DISTIL, {part}: difference in points"
            yield from table(title, header, rows)


def draw_lines(panel, measured, dataset, names):
    """Lines of some methods; returns what the cost is relative to."""
    for position, name in enumerate(names):
        if measured.has(dataset, name):
            costs, unit = relative_costs(measured, dataset, name)
            means, errors = measured.mean(dataset, name)
            panel.errorbar(
                costs,
                means,
                None if np.isnan(errors).any() else errors,
                marker="os^vDx"[position],
                color=f"C{position}",
                markersize=4,
                label=BY_NAME[name].label,
            )
    return unit


def draw_first_page(measured, path):
    """Accuracy against cost on one table, as the first page shows it."""
    from matplotlib.figure import Figure

    (dataset,) = (data for data in measured.datasets if data.name == FIRST_PAGE)
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    panel = figure.subplots()
    draw_lines(panel, measured, dataset, FIRST_PAGE_SHOWN)
    for name, style in FIRST_PAGE_LEVELS:
        mean, _ = measured.mean(dataset, name)
        panel.axhline(
            mean[-1], color="gray", linestyle=style, label=BY_NAME[name].label
        )
    panel.set(
        title="26 letters, 16 features",
        xlabel="Multiply-accumulates a row",
        ylabel="Test accuracy",
    )
    panel.legend()
    figure.savefig(path, dpi=120)


def draw(measured, path):
    """Accuracy against cost, one panel for each data set."""
    from matplotlib.figure import Figure

    n_columns = min(4, len(measured.datasets))
    n_rows = -(-len(measured.datasets) // n_columns)
    figure = Figure(figsize=(4 * n_columns, 3.2 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel, dataset in zip(panels, measured.datasets, strict=False):
        unit = draw_lines(panel, measured, dataset, SHOWN)
        if measured.has(dataset, "teacher"):
            (accuracy,), _ = measured.mean(dataset, "teacher")
            panel.axhline(accuracy, color="gray", linestyle="--", label="Teacher")
        panel.set(title=dataset.label, xlabel=unit, ylabel="Accuracy")
        panel.locator_params(axis="x", nbins=5)
    for panel in panels[len(measured.datasets) :]:
        panel.set_axis_off()
    lines = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write(measured, output):
    """Write the figure and the tables below the folder of the documentation."""
    draw(measured, output / "_static" / "accuracy_cost.png")
    if any(dataset.name == FIRST_PAGE for dataset in measured.datasets):
        draw_first_page(measured, output / "_static" / "first_page.png")
    lines = [".. Written by benchmarks.accuracy_cost.report.", ""]
    for name, tables in (
        ("goals", goal_tables),
        ("accuracy", accuracy_tables),
        ("ablation", ablation_tables),
    ):
        # Marks for the options of the directive "include".
        lines += [f".. begin {name}", "", *tables(measured), f".. end {name}", ""]
    text = "\n".join(lines)
    (output / "benchmarks_tables.inc").write_text(text, encoding="utf-8")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy_cost.report",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[HERE / "results" / "full.jsonl"],
        help="files of results",
    )
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder")
    options = parser.parse_args(arguments)
    measured = Measured(options.results)
    if measured.n_outdated:
        print(f"{measured.n_outdated} experiment(s) of other settings left out")
    if not measured.datasets:
        parser.error("there are no results of B-DISTIL with the current settings")
    write(measured, options.output)


if __name__ == "__main__":
    main()
