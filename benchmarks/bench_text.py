"""Text: a transformer encoder as the teacher of students that average embeddings.

Run as ``python -m benchmarks.bench_text``, and with ``--report`` to print the tables of
what is in the file of results; what is in it is not run again.

A row is 32 words of a docstring, or fewer at its end. Its label is the package whose
source it is from: numpy, scipy, scikit-learn, pandas, matplotlib, torch or polars, in
the versions of ``constraints.txt``. Words that name a package are left out, and so are
docstrings of tests and rows of fewer than 8 words. There are 2000 of each package. They
are split by file: 60 % of the files to train on, 15 % to choose by (validation) and
25 % to test on. Words are numbered by their frequency in the training rows, up to 3998
of them; 0 is the padding, 1 any other word.
"""

import ast
import importlib.util
import re
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from benchmarks.accuracy_cost.results import append
from benchmarks.records import command, quietly, read, table, with_error
from skbdistil import BDistilClassifier
from skbdistil.datasets import Columns
from skbdistil.ensemble import Lateral
from skbdistil.students import EmbeddingNet
from skbdistil.teachers import TorchTeacher, scores_from_labels

PACKAGES = ["numpy", "scipy", "sklearn", "pandas", "matplotlib", "torch", "polars"]
NAMES = {*PACKAGES, "scikit", "learn", "pytorch", "np", "sp", "pd", "plt", "pl", "mpl"}
N_STEPS, MIN_WORDS, N_WORDS, N_ROWS = 32, 8, 4000, 2000
PADDING, UNKNOWN = 0, 1
N_STAGES = 4


def docstrings(package):
    """Passages of docstrings, each a tuple of words, with the number of their file."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    found = {}
    for number, path in enumerate(sorted(folder.rglob("*.py"))):
        if {"tests", "testing", "_testing"} & set(path.parts[len(folder.parts) :]):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            words = re.findall("[a-z]+", (ast.get_docstring(node) or "").lower())
            words = [word for word in words if word not in NAMES]
            for start in range(0, len(words) - MIN_WORDS + 1, N_STEPS):
                found.setdefault(tuple(words[start : start + N_STEPS]), number)
    return found


@cache
def passages():
    return {package: docstrings(package) for package in PACKAGES}


def rows(seed):
    """Token ids and labels of the training, validation and test rows."""
    rng = np.random.default_rng(seed)
    parts = [[], [], []]
    for label, found in enumerate(passages().values()):
        texts = list(found)
        chosen = rng.permutation(len(texts))[:N_ROWS]
        files = rng.permutation(1 + max(found.values())) / max(found.values())
        for position in chosen:
            text = texts[position]
            part = np.searchsorted([0.6, 0.75], files[found[text]], side="right")
            parts[part].append((text, label))
    words, counts = np.unique(
        [word for text, _ in parts[0] for word in text], return_counts=True
    )
    known = words[np.lexsort((words, -counts))][: N_WORDS - 2]
    numbers = {word: number for number, word in enumerate(known, start=2)}
    arrays = []
    for part in parts:
        ids = np.full((len(part), N_STEPS), PADDING)
        for row, (text, _) in zip(ids, part, strict=True):
            row[: len(text)] = [numbers.get(word, UNKNOWN) for word in text]
        arrays.append((ids, np.array([label for _, label in part])))
    return arrays


class Encoder(nn.Module):
    """Transformer encoder, called as those of the transformers library are."""

    def __init__(self, n_classes, width=64):
        super().__init__()
        self.words = nn.Embedding(N_WORDS, width, padding_idx=PADDING)
        self.places = nn.Parameter(torch.zeros(N_STEPS, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.2, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, n_classes)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.bool()
        found = self.encoder(
            self.words(input_ids) + self.places, src_key_padding_mask=~mask
        )
        found = (found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.head(found)}


def trained_teacher(parts, seed, max_epochs=6):
    """Encoder of the epoch that is best on the validation rows."""
    (ids, y), (ids_valid, y_valid), _ = [map(torch.from_numpy, part) for part in parts]
    torch.manual_seed(seed)
    module = Encoder(len(PACKAGES))
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=max_epochs * (len(ids) // 64)
    )
    best = -1
    for _ in range(max_epochs):
        module.train()
        for batch in torch.randperm(len(ids))[: len(ids) // 64 * 64].view(-1, 64):
            logits = module(ids[batch], ids[batch] != PADDING)["logits"]
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, y[batch]).backward()
            optimizer.step()
            schedule.step()
        module.eval()
        with torch.no_grad():
            logits = module(ids_valid, ids_valid != PADDING)["logits"]
        accuracy = float((logits.argmax(1) == y_valid).float().mean())
        if accuracy > best:
            best = accuracy
            weights = {k: v.clone() for k, v in module.state_dict().items()}
    module.load_state_dict(weights)
    return TorchTeacher(module.eval(), key="logits", classes=range(len(PACKAGES)))


class Items(Dataset):
    """Items as those of Hugging Face are."""

    def __init__(self, ids, y):
        self.ids, self.y = ids, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        ids = self.ids[index]
        return {
            "input_ids": ids,
            "attention_mask": ids != PADDING,
            "label": self.y[index],
        }


def columns(part):
    return Columns(Items(*part), students="input_ids", label="label")


def student(embedding_dim, *hidden):
    return partial(
        EmbeddingNet,
        num_embeddings=N_WORDS,
        embedding_dim=embedding_dim,
        hidden=hidden,
        padding_idx=PADDING,
    )


ENSEMBLES = {
    "4 students": (student(2, 8), "auto"),
    "4 students, one table": (student(8, 8, 8), Lateral(shared_blocks=1)),
}
# About as many parameters as so many students.
SINGLES = {stage: student(2 * stage, 8 * stage) for stage in range(1, N_STAGES + 1)}


def experiment(seed):
    """Records of one seed."""
    parts = rows(seed)
    train, valid, test = parts
    teacher = trained_teacher(parts, seed)

    def record(method, accuracies, macs, parameters):
        return {
            "seed": seed,
            "method": method,
            "n_rows": [len(y) for _, y in parts],
            "valid_accuracy": [float(a[0]) for a in accuracies],
            "accuracy": [float(a[1]) for a in accuracies],
            "macs": [int(n) for n in macs],
            "parameters": [int(n) for n in parameters],
        }

    found = [np.mean(teacher.predict(columns(part)) == part[1]) for part in parts]
    costs = teacher.costs(columns(test))
    yield record("teacher", [found[1:]], [costs.macs], [costs.parameters])
    scores = teacher.decision_function(columns(train))

    def fitted(method, teacher_scores, **parameters):
        clf = BDistilClassifier(
            "precomputed", input_scaling=None, random_state=seed, **parameters
        )
        # As an array: the same students as of the dataset, sooner.
        clf.fit(train[0], train[1], teacher_scores=teacher_scores)
        accuracies = zip(clf.staged_score(*valid), clf.staged_score(*test), strict=True)
        costs = clf.stage_costs_
        return record(
            method,
            list(accuracies),
            costs.cumulative_macs,
            np.cumsum(costs.parameters),
        )

    for name, (backbone, connection) in ENSEMBLES.items():
        yield fitted(
            name, scores, student=backbone, connection=connection, n_estimators=N_STAGES
        )
    labels = scores_from_labels(train[1])
    for stage, backbone in SINGLES.items():
        for name, learnt in {"distilled": scores, "labels": labels}.items():
            method = f"single network of {2 * stage}, {name}"
            yield fitted(method, learnt, student=backbone, n_estimators=1)


def run(path, n_seeds):
    done = {record["seed"] for record in read(path)}
    for seed in range(n_seeds):
        if seed not in done:
            append(path, list(experiment(seed)))
            print("seed", seed, flush=True)


def report(records):
    """Print the table of the documentation."""
    lines = []
    for method in dict.fromkeys(record["method"] for record in records):
        found = [record for record in records if record["method"] == method]
        for stage in range(len(found[0]["accuracy"])):
            accuracies = [record["accuracy"][stage] for record in found]
            lines.append(
                [
                    method if stage == 0 else "",
                    str(stage + 1),
                    f"{found[0]['macs'][stage]:,}",
                    f"{found[0]['parameters'][stage]:,}",
                    with_error(accuracies, 1, 100),
                ]
            )
    table(
        "Test rows: accuracy in %",
        ["model", "stage", "multiply-accumulates", "parameters", "accuracy"],
        lines,
    )


if __name__ == "__main__":
    parser = command(__doc__, "text.jsonl")
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    else:
        with quietly():
            run(args.results, args.seeds)
