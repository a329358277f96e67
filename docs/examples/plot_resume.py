"""
=======================
A fit that dies goes on
=======================

A machine that may be taken away at any time is cheap. It is also of use, if what it has
done by then is not lost. With ``checkpoint``, a fit writes its students to a file after
each round. Here a process is killed in the middle of a fit, as a scheduler would kill
it, and another one goes on.
"""

# %%
# The program
# -----------
# It fits six students to digits. To go on after it was killed, it is run again,
# unchanged. ``random_state`` has to be an int, so that the same numbers are drawn.

import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skbdistil.persistence import load

PROGRAM = """
import sys
from functools import partial

from sklearn.datasets import load_digits
from sklearn.svm import SVC

from skbdistil import BDistilClassifier
from skbdistil.persistence import save
from skbdistil.students import MLP

X, y = load_digits(return_X_y=True)


def fit(**params):
    clf = BDistilClassifier(
        SVC(C=3),
        student=partial(MLP, hidden=(16,)),
        n_estimators=6,
        max_epochs=8,
        random_state=0,
        **params,
    )
    return clf.fit(X, y)


if __name__ == "__main__":
    checkpoint, path = sys.argv[1:]
    print("the fit begins")
    save(fit(checkpoint=checkpoint, verbose=1), path)
"""

# %%
# Killed, and run again
# ---------------------
# The signal comes during the fourth round. It can neither be caught nor ignored. The
# second process plays the game again with the students that it finds, and trains the
# others.

folder = tempfile.TemporaryDirectory()
program, saved = Path(folder.name, "program.py"), Path(folder.name, "digits.skb")
program.write_text(PROGRAM)


def run(*, kill_after=None):
    """Seconds to the end of each round, and to that of the process."""
    ends = []
    command = [sys.executable, "-u", program, Path(folder.name, "rounds"), saved]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="")
            now = time.perf_counter()
            if line.startswith("the fit begins"):
                began = now
            elif ": min edge" in line:
                ends.append(now - began)
            if kill_after is not None and len(ends) == kill_after:
                # The file is written after the line.
                time.sleep(0.05)
                process.kill()
                break
    print(f"exit status {process.returncode}\n")
    return ends, time.perf_counter() - began


killed, killed_at = run(kill_after=3)
resumed, _ = run()

# %%
# The same bits
# -------------
# A fit in this process, which nobody kills and which writes nothing, gives the same
# scores as the one that took two processes.

clf = load(saved)
X, fit = map(runpy.run_path(str(program)).get, ("X", "fit"))
print(np.array_equal(clf.decision_function(X), fit().decision_function(X)))

# %%
# What was lost
# -------------
# The time between the last finished round and the signal, and the flat line after it,
# in which the second process fits the teacher again and replays the game. An expensive
# teacher is better asked once, with
# :func:`~skbdistil.precomputed.precompute_scores`.

fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
n_found = len(clf) - len(resumed)
ax.step([0, *killed], range(len(killed) + 1), "o-", where="post", label="killed")
ax.axvline(killed_at, color="C0", ls=":")
ax.text(killed_at, 0, " killed", color="C0")
ax.step(
    killed_at + np.array([0, *resumed]),
    range(n_found, len(clf) + 1),
    "o-",
    where="post",
    label="run again",
)
ax.set(
    title="Two processes make one fit",
    xlabel="Seconds of both fits",
    ylabel="Students that are finished",
)
ax.legend()
plt.show()

folder.cleanup()
