"""The guarantee of early exit through `fit` of real estimators, in a few draws."""

import csv
from pathlib import Path

import pytest

from benchmarks import check_guarantee
from benchmarks.check_guarantee import (
    CONTROLS,
    SETTINGS,
    Result,
    allowed,
    check,
    run,
)

DOCUMENTED = Path(__file__).parents[1] / "docs" / "guarantee.csv"
N_DRAWS = 40


@pytest.mark.parametrize(
    "name",
    [
        "agreement, 60 rows",
        "accuracy, thresholds per stage, temperature",
        "agreement, trained inside",
    ],
)
def test_promise_is_kept_end_to_end(name):
    setting = SETTINGS[name]
    result = check(setting, N_DRAWS)
    assert result.violations <= allowed(setting.delta, N_DRAWS)
    # It is not kept by doing nothing, nor by students that are never wrong.
    assert result.certified > 0.9
    assert result.cost < 0.9
    assert 0 < result.risk
    assert result.first > setting.max_drop


def test_check_sees_thresholds_that_promise_nothing():
    setting = CONTROLS["control: no delta"]
    # Half of the draws are above what they have themselves.
    assert check(setting, N_DRAWS).violations > allowed(0.1, N_DRAWS)


def test_table_of_the_documentation_has_every_setting_and_no_broken_promise():
    with DOCUMENTED.open(newline="", encoding="utf-8") as lines:
        table = {line["setting"]: line for line in csv.DictReader(lines)}
    assert list(table) == [*SETTINGS, *CONTROLS]
    for name, setting in SETTINGS.items():
        line = table[name]
        assert int(line["rows"]) == setting.n_rows
        assert float(line["max_drop"]) == setting.max_drop
        assert float(line["delta"]) == setting.delta
        assert float(line["violations"]) <= allowed(setting.delta, 200) / 200
        assert float(line["certified"]) > 0.5
        assert float(line["mean risk"]) > 0
    for name in CONTROLS:
        assert float(table[name]["violations"]) > allowed(0.1, 200) / 200


def test_run_appends_the_settings_that_the_file_lacks(tmp_path, monkeypatch):
    ran = []

    def checked(setting, n_draws):
        ran.append(setting)
        return Result(0.1, 1.0, 0.5, 0.02, n_draws // 2)

    monkeypatch.setattr(check_guarantee, "check", checked)
    file = tmp_path / "guarantee.csv"
    run(["agreement, 60 rows"], 10, file)
    assert ran == [SETTINGS["agreement, 60 rows"]]
    before = file.read_text(encoding="utf-8")
    run([], 10, file)
    assert ran[1:] == [
        setting
        for name, setting in {**SETTINGS, **CONTROLS}.items()
        if name != "agreement, 60 rows"
    ]
    text = file.read_text(encoding="utf-8")
    assert text.startswith(before)
    lines = list(csv.DictReader(text.splitlines()))
    assert {line["setting"] for line in lines} == {*SETTINGS, *CONTROLS}
    assert all(line["violations"] == "0.500" for line in lines)
    # What is complete is not run again.
    run([], 10, file)
    assert file.read_text(encoding="utf-8") == text
