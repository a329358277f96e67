"""The pages that a newcomer follows, run from top to bottom."""

import re
import textwrap
from pathlib import Path

import matplotlib
import pytest

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.filterwarnings(
    "ignore::skbdistil.exceptions.DoubtfulTeacherWarning"
)


def code_blocks(page):
    """Python blocks of a page, in their order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(
        r"^( *)\.\. code-block:: python\n\n((?:\1 +.*\n|\n)+)", text, flags=re.MULTILINE
    )
    return [textwrap.dedent(block) for _, block in found]


def run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    matplotlib.use("agg")
    names = {}
    blocks = code_blocks(page)
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number + 1}", "exec"), names)
    return names


def test_landing_page_keeps_its_promise(tmp_path, monkeypatch):
    names = run("index.rst", tmp_path, monkeypatch)
    scores = list(names["clf"].staged_score(names["X_test"], names["y_test"]))
    assert scores == pytest.approx([0.83, 0.95, 0.98, 0.99], abs=0.02)
    assert names["fast"].stage_costs_.cumulative_macs[-1] == 228


def test_getting_started_ends_with_a_folder_that_predicts(tmp_path, monkeypatch):
    names = run("getting_started.rst", tmp_path, monkeypatch)
    session, early, X = names["session"], names["early"], names["X_test"]
    assert (tmp_path / "ellipsoid" / "manifest.json").exists()
    assert (session.predict(X) == early.predict(X)).all()
    assert early.exit_stages(X).mean() < len(names["clf"])


@pytest.mark.parametrize("page", ["index.rst", "getting_started.rst", "guide.rst"])
def test_links_lead_to_pages(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    names = re.findall(r":doc:`(\w+)`|^   (\w+)$", text, flags=re.MULTILINE)
    assert names
    for name in (first or second for first, second in names):
        assert (DOCS / f"{name}.rst").exists(), name
