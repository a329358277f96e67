"""The code on the pages of the documentation, run from top to bottom."""

import re
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from sklearn.datasets import load_digits

DOCS = Path(__file__).parents[1] / "docs"

# Whether a teacher is good, or few rows are enough for a promise, does not matter here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning"),
    pytest.mark.filterwarnings("ignore::skbdistil.exceptions.NothingCertifiedWarning"),
]

# What pages take for granted: a table, a teacher, students, and rows held out.
GIVEN = """
from functools import partial

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from skbdistil import BDistilClassifier
from skbdistil.datasets import make_ellipsoid
from skbdistil.students import MLP

X, y = make_ellipsoid(900, random_state=0)
X_train, X_held_out, X_test = np.split(X, 3)
y_train, y_held_out, y_test = np.split(y, 3)
teacher = RandomForestClassifier(10, random_state=0).fit(X_train, y_train)
student = partial(MLP, hidden=(8,))
clf = BDistilClassifier(
    FrozenEstimator(teacher), student=student, n_estimators=3, random_state=0
)
clf.fit(X_train, y_train)
"""

# The same for one page each. Those that are not named here or above need nothing.
OF_PAGE = {
    "cascades": """
from skbdistil.persistence import load, save

clf_a, clf_b, clf_c = clf, clf, clf
paths = ["a.skb", "b.skb"]
for path in paths:
    save(clf, path)
X_any = X_test
large = FrozenEstimator(teacher)
""",
    "early_time": """
import torch
from skbdistil.teachers import TorchTeacher

X = X_held_out = X_new = np.random.default_rng(0).random((90, 100, 2), np.float32)
y = np.arange(90) % 2
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(200, 2))
teacher = TorchTeacher(network, classes=[0, 1])


class sensor:
    read = staticmethod(lambda: X[:1, :50])
""",
    "early_exit": """
X_search, y_search = X_calibration, y_calibration = X_held_out, y_held_out
out_of_time = lambda: True
""",
    "images": "",
    "intervals": """
from sklearn.linear_model import LinearRegression
from skbdistil import BDistilRegressor

y, y_train, y_test = (10 * rows[:, 0] for rows in (X, X_train, X_test))
reg = BDistilRegressor(
    LinearRegression(), student=student, n_estimators=3, random_state=0
)
X_new = X_thresholds = X_cal = X_test
y_cal = y_test
""",
    "large_data": """
import torch
from torch.utils.data import TensorDataset

images = TensorDataset(torch.randn(60, 1, 8, 8), torch.arange(60) % 2)
test_images = augmented_images = mixed_images = images
module = resnet = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
collate = None
""",
    "long_fits": """
from sklearn.base import clone

teacher = clone(teacher)
""",
    "one_call": "",
    "online": """
stream = np.array_split(X_test, 3)
""",
    "output_schedule": """
from sklearn.linear_model import Ridge

Y = X @ np.random.default_rng(0).normal(size=(X.shape[1], 9))
teacher = FrozenEstimator(Ridge().fit(X, Y))
groups = [[8], [0, 1, 2, 3], [4, 5, 6, 7]]
Distort = lambda level: None
""",
    "scoring": """
from skbdistil.model_selection import StagedSearchCV

grid = {"student": [student]}
""",
    "searches": """
clf.set_params(n_estimators=4)
""",
    "students": "",
    "tables": """
import pandas as pd

frame = pd.DataFrame(X).assign(city=pd.Categorical(np.where(y, "Rome", "Oslo")))
frame.columns = frame.columns.astype(str)
frame.loc[:20, "0"] = np.nan
Y = np.c_[y, 1 - y, X[:, 0] > 0].astype(int)
""",
    "teachers": """
X, y = X[:3], np.array(["spam", "ham", "ham"])
""",
    "text": """
import torch
from skbdistil.students import EmbeddingNet
from skbdistil.teachers import TorchTeacher


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.EmbeddingBag(50, 2)

    def forward(self, input_ids, attention_mask):
        weights = attention_mask.float()
        return {"logits": (self.table.weight[input_ids] * weights[..., None]).sum(1)}


class Tokenized(torch.utils.data.Dataset):
    def __len__(self):
        return len(ids)

    def __getitem__(self, index):
        row = torch.from_numpy(ids[index])
        return {"input_ids": row, "attention_mask": row != 0, "label": int(y[index])}


ids = np.random.default_rng(0).integers(50, size=(60, 7))
y = np.arange(60) % 2
encoder = Encoder()
tokenized = Tokenized()
teacher = TorchTeacher(
    encoder,
    transform=lambda ids: {"input_ids": ids, "attention_mask": ids != 0},
    key="logits",
)
student = partial(EmbeddingNet, num_embeddings=50, embedding_dim=2)
""",
    "theory": "",
}
ALONE = ["cost", "deployment", "getting_started", "index"]


def code_blocks(page):
    """Python blocks of a page, in their order, that are not marked as ``not-run``."""
    found = re.findall(
        r"^( *)\.\. code-block:: python\n\n((?:\1 +.*\n|\n)+)", page, flags=re.MULTILINE
    )
    return [textwrap.dedent(block) for _, block in found]


def read(page):
    return (DOCS / f"{page}.rst").read_text(encoding="utf-8")


def run(page, folder, monkeypatch, given=""):
    """Run the blocks of a page in one namespace, and return it."""
    monkeypatch.chdir(folder)
    matplotlib.use("agg")
    names = {"__name__": page}
    exec(given, names)
    for number, block in enumerate(code_blocks(read(page)), start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


def test_landing_page_keeps_its_promise(tmp_path, monkeypatch):
    names = run("index", tmp_path, monkeypatch)
    scores = list(names["clf"].staged_score(names["X_test"], names["y_test"]))
    assert scores == pytest.approx([0.83, 0.95, 0.98, 0.99], abs=0.02)
    assert names["fast"].stage_costs_.cumulative_macs[-1] == 228


def test_getting_started_ends_with_a_folder_that_predicts(tmp_path, monkeypatch):
    names = run("getting_started", tmp_path, monkeypatch)
    session, early, X = names["session"], names["early"], names["X_test"]
    assert (tmp_path / "ellipsoid" / "manifest.json").exists()
    assert (session.predict(X) == early.predict(X)).all()
    assert early.exit_stages(X).mean() < len(names["clf"])


@pytest.fixture
def quick(monkeypatch):
    """Few steps where epochs are "auto", any student, and few rows of digits."""
    monkeypatch.setattr("skbdistil._boosting._plan._MIN_STEPS", 1)
    monkeypatch.setattr("skbdistil._boosting._plan.auto_edge_tol", lambda _: np.inf)

    def few_digits(return_X_y):
        X, y = load_digits(return_X_y=return_X_y)
        return X[:1100], y[:1100]

    monkeypatch.setattr("sklearn.datasets.load_digits", few_digits)
    # Workers would take longer to start than the fits take.
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("page", sorted(OF_PAGE))
def test_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    run(page, tmp_path, monkeypatch, GIVEN + OF_PAGE[page])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("page", ["cost", "deployment"])
def test_blocks_of_a_page_that_brings_its_data_run(page, tmp_path, monkeypatch):
    run(page, tmp_path, monkeypatch)


def test_all_blocks_of_python_are_run_or_say_that_they_are_not():
    for path in DOCS.glob("*.rst"):
        text = path.read_text(encoding="utf-8")
        n_blocks = len(re.findall(r"^ *\.\. code-block:: python$", text, flags=re.M))
        n_marked = len(re.findall(r":: python\n +:class: not-run\n\n", text))
        assert len(code_blocks(text)) == n_blocks - n_marked, path.name
        assert not code_blocks(text) or path.stem in {*OF_PAGE, *ALONE}, path.name
        # A block without a language would be left out.
        assert not re.search(r"^(?! *\.\.).*[^:]::$", text, flags=re.M), path.name


@pytest.mark.parametrize("page", ["index", "getting_started", "guide"])
def test_links_lead_to_pages(page):
    names = re.findall(r":doc:`(\w+)`|^   (\w+)$", read(page), flags=re.MULTILINE)
    assert names
    for name in (first or second for first, second in names):
        assert (DOCS / f"{name}.rst").exists(), name
