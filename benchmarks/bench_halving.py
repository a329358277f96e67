"""Search by successive halving against the search that plays all rounds.

    python -m benchmarks.bench_halving [--seeds 3] [--factor 3 4] [--n-estimators 6]

Twenty candidates on digits, with other test rows for each seed. All searches see the
same splits and seeds, so that differences are paired. The unit of time is a full fit,
one candidate over all splits: a twentieth of the full search. Rounds are counted as
well, in the same unit. The fit of the best candidate on all rows is not timed.
"""

import argparse
import time
from functools import partial

import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier

from skbdistil import BDistilClassifier, DistillationObjective
from skbdistil.model_selection import HalvingStagedSearchCV, StagedSearchCV
from skbdistil.students import MLP

GRID = {
    "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    "objective__gamma": [0.3, 1.0],
    "connection": [None, "dense"],
}
N_CANDIDATES = 20


def timed(search, X, y):
    began = time.perf_counter()
    search.fit(X, y)
    return time.perf_counter() - began


def rounds_played(search, n_rounds):
    """Rounds of a search by halving, in full fits."""
    before = [0, *search.n_resources_[:-1]]
    played = np.subtract(search.n_resources_, before)
    return float(np.dot(search.n_candidates_, played)) / n_rounds


def accuracy(clf, search, X, y, X_test, y_test):
    """On the test rows, of the candidate and stage that a search has found."""
    return clf.set_params(**search.best_params_).fit(X, y).score(X_test, y_test)


def one_seed(seed, args):
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.3, stratify=y, random_state=seed
    )
    teacher = MLPClassifier((128,), max_iter=300, random_state=seed).fit(X, y)

    def new_clf():
        return BDistilClassifier(
            FrozenEstimator(teacher),
            student=partial(MLP, hidden=(16,)),
            n_estimators=args.n_estimators,
            objective=DistillationObjective(),
            max_epochs=args.max_epochs,
            edge_tol=np.inf,
            random_state=seed,
        )

    options = {
        "refit": False,
        "cv": StratifiedKFold(args.splits),
        "scoring": "accuracy",
    }
    full = StagedSearchCV(new_clf(), GRID, **options)
    unit = timed(full, X, y) / N_CANDIDATES
    rows = [X, y, X_test, y_test]
    score = accuracy(new_clf(), full, *rows)
    print(
        f"seed {seed}: full search, a fit of {unit:.2f} s per candidate, validation "
        f"{full.best_score_:.4f}, test {score:.4f}",
        flush=True,
    )
    found = {}
    for factor in args.factor:
        search = HalvingStagedSearchCV(new_clf(), GRID, factor=factor, **options)
        n_fits = timed(search, X, y) / unit
        difference = accuracy(new_clf(), search, *rows) - score
        n_counted = rounds_played(search, args.n_estimators)
        lost = search.best_score_ - full.best_score_
        found[factor] = n_fits, n_counted, lost, difference
        print(
            f"  factor {factor:g}: candidates {search.n_candidates_}, rounds "
            f"{search.n_resources_}: {n_fits:.2f} full fits by the clock, "
            f"{n_counted:.2f} by rounds; validation {lost:+.4f}, test "
            f"{difference:+.4f}",
            flush=True,
        )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factor", type=float, nargs="+", default=[3, 4])
    parser.add_argument("--n-estimators", type=int, default=6)
    parser.add_argument("--max-epochs", type=int, default=10)
    parser.add_argument("--splits", type=int, default=2)
    args = parser.parse_args()
    found = [one_seed(seed, args) for seed in range(args.seeds)]
    for factor in args.factor:
        values = np.array([seed[factor] for seed in found])
        means = values.mean(axis=0)
        spread = values[:, 3].std(ddof=1) if len(values) > 1 else np.nan
        print(
            f"factor {factor:g}: {means[0]:.2f} full fits by the clock, {means[1]:.2f} "
            f"by rounds; validation {means[2]:+.4f}, test {means[3]:+.4f} "
            f"(standard deviation {spread:.4f}) over {len(values)} seed(s)"
        )


if __name__ == "__main__":
    main()
