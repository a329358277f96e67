"""The benchmark of accuracy against cost: what it runs, keeps and reports."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy_cost import __main__ as runner
from benchmarks.accuracy_cost import data, networks, report, results
from benchmarks.accuracy_cost.experiments import DATA_SETS, METHODS, fingerprint
from benchmarks.accuracy_cost.methods import Task
from benchmarks.accuracy_cost.teachers import Response, respond
from skbdistil import BDistilClassifier, DistillationObjective

# With few rows and epochs, boosting may stop early.
pytestmark = pytest.mark.filterwarnings(
    "ignore::skbdistil.exceptions.WeakLearnerNotFoundWarning"
)

DIGITS = replace(
    DATA_SETS[0],
    teacher=replace(DATA_SETS[0].teacher, max_epochs=2),
    n_estimators=4,
    max_epochs=10,
    learning_rate=0.02,
    n_train=300,
)
NAMES = [method.name for method in METHODS]


def method_named(name):
    return METHODS[NAMES.index(name)]


@pytest.fixture(scope="module")
def task():
    """A small task on digits, with the labels as the teacher."""
    split = data.digits(None, None)
    split = data.Split(*(rows[:300] for rows in split[:4]))
    logits = [4 * networks.one_hot(y) - 0.4 for y in (split.y_train, split.y_test)]
    return Task(DIGITS, split, Response(*logits, 1000, 100), 10, 0, "cpu")


def record(dataset, method, seed, accuracies, n_stages=None):
    """Lines of an experiment with made-up accuracies."""
    shared = {
        "dataset": dataset.name,
        "method": method.name,
        "seed": seed,
        "n_stages": n_stages or len(accuracies),
        "fingerprint": fingerprint(dataset, method),
        "fit_seconds": 1.0,
        "epochs": method.epochs and round(dataset.max_epochs * method.epochs),
        "latency": 1e-6,
    }
    return [
        shared | {"stage": stage, "accuracy": accuracy, "macs": 100 * stage}
        for stage, accuracy in enumerate(accuracies, start=1)
    ]


# The table


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)
    names = [dataset.name for dataset in DATA_SETS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_every_method_has_a_data_set(method):
    assert any(method.fits(dataset) for dataset in DATA_SETS)


def test_stored_results_are_of_the_settings_of_the_table():
    # A new parameter of the estimator that changes no result has to be named in the
    # table, or all of them would be measured again.
    stored = results.read(Path(runner.HERE, "results", "full.jsonl"))
    assert stored
    tabled = {(d.name, m.name): fingerprint(d, m) for d in DATA_SETS for m in METHODS}
    stale = {key[:2] for key in stored if tabled.get(key[:2]) != key[3]}
    assert not stale


def test_fingerprint_is_of_settings_only():
    method = method_named("no_boosting")
    before = fingerprint(DIGITS, method)
    assert fingerprint(replace(DIGITS, label="other"), method) == before
    assert fingerprint(DIGITS, replace(method, quick=True, label="other")) == before
    different = {
        fingerprint(replace(DIGITS, learning_rate=0.1), method),
        fingerprint(replace(DIGITS, load=data.cube), method),
        fingerprint(replace(DIGITS, teacher=DATA_SETS[1].teacher), method),
        fingerprint(DIGITS, replace(method, settings={"eta": 1})),
        fingerprint(DIGITS, replace(method, epochs=2)),
        before,
    }
    assert len(different) == 6


@pytest.mark.parametrize("cls", [BDistilClassifier, DistillationObjective])
def test_fingerprint_sees_defaults_of_the_package(cls, monkeypatch):
    method = method_named("bdistil")
    before = fingerprint(DIGITS, method)
    monkeypatch.setattr(cls, "get_params", lambda self, deep=True: {"other": 1})
    assert fingerprint(DIGITS, method) != before


def test_fingerprints_are_those_of_another_process():
    code = (
        "from benchmarks.accuracy_cost.experiments import *;"
        "print([fingerprint(d, m) for d in DATA_SETS for m in METHODS])"
    )
    ours = [fingerprint(d, m) for d in DATA_SETS for m in METHODS]
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=runner.HERE.parents[1],
    )
    assert found.stdout.strip() == str(ours)


# Data


def test_images_are_decoded_once(tmp_path):
    pixels = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    images = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")  # what is lossless can be compared
        images.append(buffer.getvalue())
    encoded = {}
    for part in ("train", "test"):
        encoded[f"jpeg_{part}"] = np.frombuffer(b"".join(images), np.uint8)
        encoded[f"offsets_{part}"] = np.cumsum([0, *map(len, images)])
        encoded[f"y_{part}"] = np.array([0, 1], np.uint8)
    np.savez(tmp_path / "cifar10_jpeg.npz", **encoded)
    split = data.cifar10(tmp_path, tmp_path)
    np.testing.assert_array_equal(split.X_test, pixels.transpose(0, 3, 1, 2))
    # From then on it is the decoded file that is read.
    np.save(tmp_path / "cifar10_train.npy", np.zeros(3))
    assert data.cifar10(tmp_path, tmp_path).X_train.tolist() == [0, 0, 0]


def test_people_of_the_test_rows_are_not_in_training(tmp_path):
    center, scale = np.float32([1, -2]), np.float32([0.5, 3])
    values = np.random.default_rng(0).normal(center, scale, size=(16, 5, 2))
    unscaled = np.arcsinh((values - center) / scale)
    largest = np.abs(unscaled).max(axis=(0, 1))
    stored = np.round(unscaled / largest * 127).astype(np.int8)
    halves = {}
    for part, rows in (("train", slice(0, 8)), ("test", slice(8, 16))):
        halves[f"X_{part}"] = stored[rows]
        halves[f"y_{part}"] = np.arange(16, dtype=np.uint8)[rows]
        halves[f"subject_{part}"] = np.arange(1, 9, dtype=np.uint8)
    np.savez(
        tmp_path / "dsa19.npz",
        center=center,
        scale=scale,
        asinh_max=np.float32(largest),
        **halves,
    )
    split = data.dsa19(tmp_path, tmp_path)
    assert split.y_test.tolist() == [6, 7, 14, 15]
    error = np.abs(split.X_test - values[split.y_test])
    # Half a step of the quantisation, where the hyperbolic sine is steepest.
    assert (error <= largest / 254 * np.cosh(largest) * scale * 1.01).all()


# Methods


@pytest.mark.parametrize("target", [1, 30, 100, 101, 149, 151, 1000])
def test_nearest_width(target):
    def macs_of(width):
        return width * (width + 10)

    found = networks.nearest_width(target, macs_of)
    distances = [abs(macs_of(width) - target) for width in range(1, 100)]
    assert abs(macs_of(found) - target) == min(distances)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not name.startswith("torchensemble")]
)
def test_methods_return_stages(name, task):
    method = method_named(name)
    if "convolutional" in method.needs:
        images = [rows.reshape(-1, 1, 8, 8) for rows in task.split[:4:2]]
        (deep,) = (d for d in DATA_SETS if d.name == "fashion_mnist_conv")
        task = replace(
            task,
            data=replace(deep, batch_size=32, learning_rate=0.02),
            split=task.split._replace(X_train=images[0], X_test=images[1]),
        )
    stages = method.run(task, **method.settings)
    assert all(stage.labels.shape == (300,) for stage in stages)
    if stages[0].predict is not None:
        for stage in stages:
            predicted = stage.predict(task.split.X_test)
            np.testing.assert_array_equal(predicted, stage.labels)
    if stages[0].macs is not None:
        assert (np.diff([stage.macs for stage in stages]) > 0).all()


def test_joint_training_has_the_cost_of_boosting(task):
    boosted, joint = (
        [(stage.macs, stage.parameters) for stage in stages]
        for stages in (
            method_named("bdistil").run(task, edge_tol=np.inf),
            method_named("multi_exit").run(task),
        )
    )
    assert joint == boosted
    assert [macs for macs, _ in joint] == task.spent().tolist()


@pytest.mark.parametrize("name", ["no_resched", "plain"])
def test_single_networks_cost_what_the_ensemble_has_spent(name, task):
    for stage, spent in zip(method_named(name).run(task), task.spent(), strict=True):
        # A unit more or less: its 64 inputs and 10 outputs.
        assert abs(stage.macs - spent) <= (64 + 10) / 2


@pytest.mark.parametrize(
    ("name", "share"), [("connection_none", None), ("quarter", 0.25)]
)
def test_students_are_as_wide_as_their_cost_allows(name, share, task):
    method = method_named(name)
    stages = method.run(task, edge_tol=np.inf, **method.settings)
    assert len(stages) == DIGITS.n_estimators
    connection = method.settings.get("connection", "auto")

    def total(width):
        factory = DIGITS.student(width)
        return task.macs(factory, DIGITS.n_estimators, connection)[-1]

    wanted = share * task.teacher.macs if share else task.spent()[-1]
    others = [abs(total(width) - wanted) for width in range(1, 40)]
    assert abs(stages[-1].macs - wanted) == min(others)


@pytest.mark.parametrize("n_train", [None, 100])
def test_validation_rows_are_training_rows_that_no_student_sees(task, n_train):
    split, teacher = runner.seen_rows(task.split, task.teacher, n_train, True)
    assert len(split.y_test) == 60
    assert len(split.y_train) == (n_train or 240)
    for part in ("train", "test"):
        X, y = getattr(split, f"X_{part}"), getattr(split, f"y_{part}")
        # The teacher of this task knows the labels.
        np.testing.assert_array_equal(getattr(teacher, part).argmax(axis=1), y)
        seen = {row.tobytes() for row in task.split.X_train}
        assert all(row.tobytes() in seen for row in X)
    trained = {row.tobytes() for row in split.X_train}
    assert not any(row.tobytes() in trained for row in split.X_test)


def test_independent_students_start_where_the_first_one_does(task):
    boosted, independent = (
        method_named(name).run(task) for name in ("bdistil", "resched_barrier")
    )
    np.testing.assert_array_equal(boosted[0].labels, independent[0].labels)
    assert len(independent) == DIGITS.n_estimators
    spent = np.diff([stage.macs for stage in independent], prepend=0)
    wanted = np.diff(task.spent(), prepend=0)
    assert (np.abs(spent - wanted) <= (64 + 10) / 2).all()


def test_teacher_is_remembered(tmp_path, task):
    def ask():
        return respond(
            DIGITS.teacher, task.split, folder=None, cache=tmp_path, device="cpu"
        )

    first = ask()
    (path,) = tmp_path.iterdir()
    np.savez(path, train=first.train + 1, test=first.test)
    again = ask()
    np.testing.assert_array_equal(again.train, first.train + 1)
    assert again.macs is None
    # Logits of 10 classes, centred like those that the package works with.
    assert first.test.shape == (300, 10)
    np.testing.assert_allclose(first.test.sum(axis=1), 0, atol=1e-4)
    assert first.macs == 64 * 128 + 128 * 128 + 128 * 10


# Results


def test_results_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    bdistil = method_named("bdistil")
    for seed in range(2):
        results.append(path, record(DIGITS, bdistil, seed, [0.5, 0.6 + seed]))
    found = results.read(path)
    assert [key[2] for key in found] == [0, 1]
    assert [r["accuracy"] for r in list(found.values())[1]] == [0.5, 1.6]


def test_killed_run_leaves_no_half_experiment(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    bdistil = method_named("bdistil")
    results.append(path, record(DIGITS, bdistil, 0, [0.5, 0.6]))
    finished = path.stat().st_size
    results.append(path, record(DIGITS, bdistil, 1, [0.7, 0.8]))
    whole = path.read_bytes()
    for size in range(finished, len(whole)):
        path.write_bytes(whole[:size])
        # What ends with a whole line lacks a stage; only the last newline is no loss.
        assert len(results.read(path)) == 1 + (size == len(whole) - 1)
    capsys.readouterr()
    path.write_bytes(whole[:-5])
    results.append(path, record(DIGITS, bdistil, 1, [0.9, 1.0]))
    assert len(results.read(path)) == 2
    assert "line 4: not JSON, left out" in capsys.readouterr().out


def test_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.npz"
    path.write_text("old")

    def fail():
        with results.replacing(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


# The command


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command on few rows of digits; the records that it leaves."""
    monkeypatch.setattr(runner, "DATA_SETS", [DIGITS])
    monkeypatch.setattr(report, "DATA_SETS", [DIGITS])
    path = tmp_path / "results.jsonl"

    def run(*arguments):
        runner.main(
            [*arguments, "--results", str(path), "--cache", str(tmp_path / "cache")]
        )
        return [json.loads(line) for line in path.read_text().splitlines()]

    return run


def test_command_measures_what_is_missing(command, capsys):
    names = ["teacher", "bdistil", "resched"]
    first = command("--quick", "--seeds", "1", "--methods", *names)
    assert len(capsys.readouterr().out.splitlines()) == 3
    by_name = {record["method"]: record for record in first}
    assert list(by_name) == names
    assert len(first) == sum(record["n_stages"] for record in by_name.values())
    assert by_name["teacher"]["agreement"] == 1
    assert by_name["teacher"]["macs"] == 64 * 128 + 128 * 128 + 128 * 10
    assert by_name["bdistil"]["epochs"] == DIGITS.max_epochs
    assert set(by_name["bdistil"]["versions"]) >= {"torch", "skbdistil"}
    assert command("--quick", "--seeds", "1", "--methods", *names) == first
    assert not capsys.readouterr().out
    # The teacher has no second seed.
    more = command("--quick", "--seeds", "2", "--methods", *names)
    assert more[: len(first)] == first
    assert {r["method"] for r in more[len(first) :]} == {"bdistil", "resched"}


def test_command_goes_on_after_a_failure(command, monkeypatch, capsys):
    def fail(task):
        raise ValueError("on purpose")

    def lack(task):
        raise ImportError("No module named 'peer'")

    stubs = [
        replace(method_named("bdistil"), name="fails", run=fail),
        replace(method_named("bdistil"), name="lacks", run=lack),
        method_named("teacher"),
    ]
    monkeypatch.setattr(runner, "METHODS", stubs)
    with pytest.raises(SystemExit, match=r"1 experiment\(s\) failed"):
        command("--full", "--seeds", "1")
    lines = capsys.readouterr().out.splitlines()
    assert "failed: on purpose" in lines[0]
    assert "left out: No module named 'peer'" in lines[1]
    assert lines[2].split()[:2] == ["digits", "teacher"]


def test_data_set_without_its_file_is_named(command, monkeypatch, capsys, tmp_path):
    (letter,) = (dataset for dataset in DATA_SETS if dataset.name == "letter_hgb")
    monkeypatch.setattr(runner, "DATA_SETS", [letter, DIGITS])
    found = command(
        "--full", "--seeds", "1", "--methods", "teacher", "--data", str(tmp_path)
    )
    assert [record["dataset"] for record in found] == ["digits"]
    assert "letter_hgb: letter.npz not found, left out" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--datasets", "--methods"])
def test_unknown_names_are_refused(command, option):
    with pytest.raises(SystemExit, match=r"Unknown: \['nothing'\]. There are \["):
        command("--full", option, "nothing")


# The report


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Results of two seeds with accuracies that are known."""
    monkeypatch.setattr(report, "DATA_SETS", [DIGITS])
    path = tmp_path / "results.jsonl"
    for seed, offset in enumerate((0.0, 0.02)):
        for name, accuracies in {
            "bdistil": [0.5, 0.6, 0.7],  # boosting stopped early
            "resched": [0.4, 0.5, 0.6, 0.7],
        }.items():
            method = method_named(name)
            accuracies = [accuracy + offset for accuracy in accuracies]
            results.append(path, record(DIGITS, method, seed, accuracies))
    results.append(path, record(DIGITS, method_named("teacher"), 0, [0.705]))
    return report.Measured([path])


def test_differences_are_paired_by_seed(measured):
    mean, error = measured.difference(DIGITS, "bdistil", "resched")
    np.testing.assert_allclose(mean, [10, 10, 10, 0], atol=1e-10)
    # The seeds differ, and by the same in both methods.
    np.testing.assert_allclose(error, 0, atol=1e-10)
    assert measured.mean(DIGITS, "bdistil")[1].min() > 0.005
    assert measured.difference(DIGITS, "bdistil", "plain") is None


def test_runs_without_a_common_seed_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DATA_SETS", [DIGITS])
    path = tmp_path / "results.jsonl"
    for seed, name in enumerate(["bdistil", "resched"]):
        results.append(path, record(DIGITS, method_named(name), seed, [0.5] * 4))
    measured = report.Measured([path])
    assert measured.difference(DIGITS, "bdistil", "resched") is None
    assert list(report.goal_tables(measured)) == []


def test_labels_tell_what_is_missing(measured):
    found = measured.label(DIGITS, "bdistil")
    assert found == "B-DISTIL (3 to 3 students found)"
    assert measured.label(DIGITS, "resched") == method_named("resched").label
    del measured._seeds["digits", "resched"][1]
    assert measured.label(DIGITS, "resched").endswith("(1 seed(s))")


def test_average_over_data_sets():
    mean, error = report.average([(1.0, 0.3), (3.0, 0.4)])
    assert mean == 2
    assert error == pytest.approx(0.25)


def test_single_seed_has_no_error():
    mean, error = report.mean_and_error([[1.0, 2.0]])
    assert mean.tolist() == [1, 2]
    assert np.isnan(error).all()
    assert report.cell(1.234, np.nan, "+.2f") == "+1.23"
    assert report.cell(1.234, 0.5) == "1.2 ± 0.5"
    assert report.cell(np.nan, np.nan) == ""


def test_outdated_results_are_left_out(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.jsonl"
    results.append(path, record(DIGITS, method_named("bdistil"), 0, [0.5]))
    changed = replace(DIGITS, learning_rate=0.1)
    monkeypatch.setattr(report, "DATA_SETS", [changed])
    with pytest.raises(SystemExit):
        report.main(["--results", str(path), "--output", str(tmp_path)])
    captured = capsys.readouterr()
    assert "1 experiment(s) of other settings left out" in captured.out
    assert "no results of B-DISTIL with the current settings" in captured.err


def test_report_is_written(measured, tmp_path):
    report.write(measured, tmp_path)
    assert (tmp_path / "_static" / "accuracy_cost.png").stat().st_size > 1000
    text = (tmp_path / "benchmarks_tables.inc").read_text(encoding="utf-8")
    for table in text.split(".. csv-table:: ")[1:]:
        lines = [line.strip() for line in table.splitlines()[1:]]
        header, *rows = [
            row
            for row in csv.reader(
                (line.removeprefix(":header: ") for line in lines if '"' in line),
                skipinitialspace=True,
            )
        ]
        assert rows
        assert {len(row) for row in rows} == {len(header)}
    # Of 70.5 %, 71 % is within a point: the mean of the third stage.
    assert '"Digits", "70.5", "71.0", "3", ' in text
    assert '"Digits", "+10.00 ± 0.00"' in text


# What training costs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Stages cost 100, 200, ..., 600; epochs are those of the data set times the
        # factor of the method.
        ("bdistil", 600),
        ("no_resched", 100 + 200 + 300 + 400 + 500 + 600),
        ("no_resched_long", 3 * 2100),
        ("multi_exit", 600),
        ("together", 3.5 * 600),
        ("refine_final", 600),
        ("refine_rounds", 0.5 * 600 + 0.5 * 2100),
    ],
)
def test_training_cost_counts_what_is_run(name, expected, tmp_path):
    (dataset,) = (data for data in DATA_SETS if data.name == "digits")
    path = tmp_path / "results.jsonl"
    results.append(path, record(dataset, method_named(name), 0, [0.5] * 6))
    measured = report.Measured([path])
    found = report.training_cost(measured, dataset, method_named(name))
    assert found == dataset.max_epochs * expected
