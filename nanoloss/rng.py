"""Random numbers: every stream is a function of (use, seed, iteration, micro-batch).

An iteration can therefore be repeated, resumed or split over processes, and evaluating
or sampling more often does not change the weights.
"""
import numpy as np

# One tag per use, so that no two uses share a stream. Tags start at 1 and the key always has
# four words, because SeedSequence([s]) and SeedSequence([s, 0]) are the same stream.
INIT, DATA, DROPOUT, SAMPLE, RESAMPLE = 1, 2, 3, 4, 5

# The streams of RESAMPLE, passed in place of the iteration.
BOOTSTRAP, SIGN_FLIP, RANDOM_BATCHES, CALIBRATION_SUBSET = 0, 1, 3, 4


def seed_sequence(use, seed, iteration=0, micro_batch=0):
    """Return the numpy SeedSequence of a stream."""
    return np.random.SeedSequence([use, seed, iteration, micro_batch])


def generator(use, seed, iteration=0, micro_batch=0):
    """Return a numpy Generator of this stream."""
    return np.random.default_rng(seed_sequence(use, seed, iteration, micro_batch))


def torch_seed(use, seed, iteration=0, micro_batch=0):
    """Return a 64-bit seed for torch.manual_seed, drawn from this stream."""
    return int(seed_sequence(use, seed, iteration, micro_batch).generate_state(1, np.uint64)[0])
