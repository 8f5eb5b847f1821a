"""Every stream of random numbers is a function of (use, seed, iteration, micro-batch)."""
import itertools

import numpy as np

from nanoloss import rng


def test_streams_are_numpys():
    """The key has four words, the tag first: the same numbers as numpy's generator of that key."""
    expected = np.random.SeedSequence([rng.DROPOUT, 1337, 5, 2])
    assert rng.torch_seed(rng.DROPOUT, 1337, 5, 2) == int(expected.generate_state(1, np.uint64)[0])
    assert rng.generator(rng.DATA, 7).random() == np.random.default_rng([rng.DATA, 7, 0, 0]).random()


def test_streams_differ():
    """No two keys share a seed, in particular not seed 1, iteration 0 and seed 0, iteration 1."""
    uses = rng.INIT, rng.DATA, rng.DROPOUT, rng.SAMPLE, rng.RESAMPLE
    keys = list(itertools.product(uses, range(4), range(4), range(4)))
    seeds = {rng.torch_seed(*key) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 2**64 for seed in seeds)
