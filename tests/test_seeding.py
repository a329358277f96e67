"""Seeded blocks: the same numbers, and no trace in the global generators."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from skbdistil._seeding import seeded

CPU = torch.device("cpu")


def draw():
    """A number from each of the three global generators."""
    return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002


def state():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().tolist(),
        numpy_state[1].tolist(),
        numpy_state[2:],
        random.getstate(),
    )


def test_same_seed_gives_the_same_numbers():
    with seeded(5, CPU):
        first = draw()
    draw()
    with seeded(5, CPU):
        again = draw()
    with seeded(6, CPU):
        other = draw()
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_range_of_seeds(seed):
    with seeded(seed, CPU):
        draw()


def test_generators_are_restored():
    before = state()
    with seeded(5, CPU):
        draw()
    assert state() == before


def test_generators_are_restored_after_an_error():
    before = state()
    with pytest.raises(RuntimeError, match="stop"), seeded(5, CPU):  # noqa: PT012
        draw()
        raise RuntimeError("stop")
    assert state() == before


def test_block_in_a_block_does_not_move_the_outer_one():
    with seeded(5, CPU):
        expected = [draw(), draw()]
    with seeded(5, CPU):
        found = [draw()]
        with seeded(6, CPU):
            draw()
        found.append(draw())
    assert found == expected


def test_threads_leave_no_trace():
    def numbers(seed):
        with seeded(seed, CPU):
            return [draw() for _ in range(200)]

    before, interval = state(), sys.getswitchinterval()
    # So that threads change places in the middle of a block.
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(numbers, range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert state() == before


def test_blocks_that_overlap_leave_no_trace():
    before = state()
    first, second = seeded(1, CPU), seeded(2, CPU)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    draw()
    second.__exit__(None, None, None)
    assert state() == before


def test_block_that_waits_for_a_block_of_another_thread_goes_on():
    def number():
        with seeded(2, CPU):
            return draw()

    with seeded(1, CPU), ThreadPoolExecutor(1) as pool:
        assert pool.submit(number).result(timeout=60)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_generator_of_a_gpu_is_seeded_and_restored(device):
    device = torch.device(device)
    before = torch.cuda.get_rng_state()
    with seeded(5, device):
        first = torch.rand(3, device=device)
    with seeded(5, device):
        again = torch.rand(3, device=device)
    assert torch.equal(first, again)
    assert torch.equal(torch.cuda.get_rng_state(), before)
