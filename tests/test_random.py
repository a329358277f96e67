"""Seeds: independent and reproducible."""

import itertools

import numpy as np
import pytest
import torch

from skbdistil._boosting._random import derive_seed, draw_seeds


def test_first_seeds_do_not_depend_on_how_many_are_drawn():
    few = draw_seeds(np.random.RandomState(3), 4)
    many = draw_seeds(np.random.RandomState(3), 9)
    np.testing.assert_array_equal(few, many[:4])
    assert len(set(many)) == 9


def test_derived_seeds_differ_for_neighbouring_keys():
    keys = list(itertools.product(range(6), range(6), range(6)))
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)


def test_derived_seeds_differ_for_keys_that_continue_one_another():
    assert len({derive_seed(5), derive_seed(5, 0), derive_seed(5, 0, 0)}) == 3


@pytest.mark.parametrize("keys", [(0,), (2**31 - 1, 7, 0), (0, 0, 0)])
def test_derived_seeds_are_accepted_by_torch_and_numpy(keys):
    seed = derive_seed(*keys)
    assert isinstance(seed, int)
    torch.Generator().manual_seed(seed)
    np.random.RandomState(seed)
