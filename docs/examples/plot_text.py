"""
======================================
Text, and students that average words
======================================

A transformer encoder reads the words of a text in their order, with a mask for those
that only fill up short rows. Its students look up a vector for every word and average
them. What they cost is the table of these vectors: how long should a vector be?
"""

# %%
# Token ids
# ---------
# The task is to tell which module a passage of 24 words of a docstring is from. A row
# holds the numbers of its words: 0 fills it up, 1 is any word that is not in the table.

import importlib
import inspect
import re
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit
from torch import nn

from skbdistil import BDistilClassifier
from skbdistil.students import EmbeddingNet
from skbdistil.teachers import TorchTeacher

MODULES = [
    "numpy",
    "scipy.optimize",
    "scipy.signal",
    "scipy.stats",
    "matplotlib.pyplot",
]
N_STEPS, N_WORDS, N_ROWS = 24, 2000, 500

rng = np.random.default_rng(0)
texts, labels, functions = [], [], []
for label, name in enumerate(MODULES):
    found = {}
    for function, member in inspect.getmembers(importlib.import_module(name), callable):
        words = re.findall("[a-z]+", (inspect.getdoc(member) or "").lower())
        for start in range(0, len(words) - 8, N_STEPS):
            passage = tuple(words[start : start + N_STEPS])
            found.setdefault(passage, f"{name}.{function}")
    passages = list(found.items())
    for position in rng.permutation(len(passages))[:N_ROWS]:
        passage, function = passages[position]
        texts.append(passage)
        functions.append(function)
        labels.append(label)
labels = np.array(labels)

# Passages of one function are on one side.
split = GroupShuffleSplit(n_splits=1, test_size=0.4, random_state=0)
train, test = next(split.split(texts, labels, functions))

words, counts = np.unique([w for row in train for w in texts[row]], return_counts=True)
frequent = words[np.argsort(-counts, kind="stable")][: N_WORDS - 2]
table = {word: number for number, word in enumerate(frequent, start=2)}
ids = np.zeros((len(texts), N_STEPS), dtype=np.int64)
for row, text in zip(ids, texts, strict=True):
    row[: len(text)] = [table.get(word, 1) for word in text]


# %%
# A teacher
# ---------
# It is called as ``module(input_ids=..., attention_mask=...)`` and gives a dict. While
# it is trained, three words in ten are hidden, or it would learn the rows by heart.


class Encoder(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.words = nn.Embedding(N_WORDS, width, padding_idx=0)
        self.places = nn.Parameter(torch.zeros(N_STEPS, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 96, 0.2, batch_first=True)
        self.head = nn.Linear(width, len(MODULES))

    def forward(self, input_ids, attention_mask):
        found = self.words(input_ids) + self.places
        found = self.layer(found, src_key_padding_mask=~attention_mask)
        mask = attention_mask[..., None]
        return {"logits": self.head((found * mask).sum(1) / mask.sum(1))}


torch.manual_seed(0)
module = Encoder()
optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
X_train, y_train = torch.from_numpy(ids[train]), torch.from_numpy(labels[train])
for _ in range(15):
    for batch in torch.randperm(len(X_train)).split(64):
        X = X_train[batch]
        hidden = torch.rand(X.shape) < 0.3
        logits = module(torch.where(hidden, X.clamp(max=1), X), X > 0)["logits"]
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, y_train[batch]).backward()
        optimizer.step()


def arguments(ids):
    return {"input_ids": ids, "attention_mask": ids > 0}


teacher = TorchTeacher(module, transform=arguments, key="logits")

# %%
# Students of several widths
# --------------------------
# Ids are not to be scaled. Stages are compared by the bytes of their weights: a lookup
# multiplies nothing.

_, axes = plt.subplots(layout="constrained")
for width in (1, 2, 8):
    student = partial(
        EmbeddingNet, num_embeddings=N_WORDS, embedding_dim=width, hidden=(8,)
    )
    clf = BDistilClassifier(
        teacher, student=student, input_scaling=None, n_estimators=4, random_state=0
    ).fit(ids[train], labels[train])
    kilobytes = np.cumsum(clf.stage_costs_.weight_bytes) / 1000
    scores = list(clf.staged_score(ids[test], labels[test]))
    axes.plot(kilobytes, scores, marker="o", label=f"students with vectors of {width}")

accuracy = np.mean(teacher.predict(ids[test]) == labels[test])
kilobytes = teacher.costs(ids[test]).weight_bytes / 1000
axes.plot(kilobytes, accuracy, "k*", markersize=12, label="teacher")
axes.set(xscale="log", xlabel="weights in kB", ylabel="test accuracy")
axes.legend()
plt.show()

# %%
# Two students with vectors of 2 numbers do what the teacher does. Where the order of
# words matters, students of this kind cannot follow it. Datasets whose items are dicts
# need no ``transform``; see :doc:`/text`.
