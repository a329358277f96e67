"""A made table with the shape of covertype, which has to be downloaded and is not here.

It is not covertype: accuracies on one say nothing about the other.
"""

import numpy as np

# Shares of the classes of covertype.
SHARES = np.array([0.365, 0.488, 0.062, 0.005, 0.016, 0.030, 0.034])
N_AREAS = 4
N_SOILS = 40
N_RULES = 24


def make_covertype_like(n_samples=40_000, noise=0.25, random_state=0):
    """Ten numbers and 44 indicators of two categories, and seven unequal classes.

    The numbers are correlated as heights, slopes, distances and shades are. Soils
    depend on the area and the height. The score of a class is a quadratic function of
    the height, different in each area, an effect of the soil, and a sum of rules: each
    adds a number where two thresholds are passed in an area or a group of soils. The
    class is the one of the largest score after Gumbel noise; constants are set so that
    classes have the shares of covertype.

    Parameters
    ----------
    n_samples : int, default=40_000
    noise : float, default=0.25
        Scale of the Gumbel noise.
    random_state : int, default=0

    Returns
    -------
    X : ndarray of shape (n_samples, 54), float32
    y : ndarray of shape (n_samples,), int
    best : float
        Share of the rows whose class has the largest score before the noise, above
        which no model can be expected to come.
    """
    rng = np.random.RandomState(random_state)
    area = rng.choice(N_AREAS, n_samples, p=[0.45, 0.05, 0.44, 0.06])
    height = 2960 + 80 * (area - 1.5) + 260 * rng.randn(n_samples)
    aspect = rng.uniform(0, 360, n_samples)
    slope = rng.gamma(4, 3.5, n_samples)
    water = rng.gamma(1.6, 170, n_samples)
    above_water = 0.2 * water * rng.randn(n_samples)
    road = rng.gamma(2, 1100, n_samples) * (height / 2960)
    fire = rng.gamma(2.2, 900, n_samples)
    # Shades of a slope at three times of the day.
    light = np.sin(np.radians(slope))[:, np.newaxis] * np.cos(
        np.radians(aspect[:, np.newaxis] - [90, 180, 270])
    )
    shades = np.clip(220 + 150 * light + 4 * rng.randn(n_samples, 3), 0, 254)
    numbers = np.column_stack(
        [height, aspect, slope, water, above_water, road, shades, fire]
    )
    place = rng.uniform(0, 1, N_SOILS)  # where on the mountain a soil is found
    likes = rng.randn(N_AREAS, N_SOILS)
    z = (numbers - numbers.mean(axis=0)) / numbers.std(axis=0)
    closeness = -8 * (1 / (1 + np.exp(-z[:, :1])) - place) ** 2 + likes[area]
    soil = (closeness + rng.gumbel(size=closeness.shape)).argmax(axis=1)

    n_classes = len(SHARES)
    peaks = 1.2 * rng.randn(N_AREAS, n_classes)
    scores = (
        -((z[:, :1] - peaks[area]) ** 2) + 0.7 * rng.randn(N_SOILS, n_classes)[soil]
    )
    for label in range(n_classes):
        for _ in range(N_RULES):
            columns = rng.choice(numbers.shape[1], 2, replace=False)
            signs = rng.choice([-1, 1], 2)
            passed = (signs * (z[:, columns] - 0.7 * rng.randn(2)) > 0).all(axis=1)
            if rng.rand() < 0.5:
                passed &= area == rng.randint(N_AREAS)
            else:
                passed &= (soil + rng.randint(N_SOILS)) % N_SOILS < N_SOILS // 3
            scores[passed, label] += rng.randn()
    noisy = scores + noise * rng.gumbel(size=scores.shape)
    constants = np.zeros(n_classes)
    for _ in range(200):
        found = np.bincount((noisy + constants).argmax(axis=1), minlength=n_classes)
        constants += 0.3 * np.log(SHARES / np.maximum(found / n_samples, 1e-4))
    y = (noisy + constants).argmax(axis=1)
    X = np.hstack([numbers, np.eye(N_AREAS)[area], np.eye(N_SOILS)[soil]])
    best = np.mean((scores + constants).argmax(axis=1) == y)
    return X.astype(np.float32), y, float(best)
