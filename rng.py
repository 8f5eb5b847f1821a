"""Every random number of a run is a function of (use, seed, iteration, micro-batch).

So an iteration can be repeated, resumed or split over processes, and evaluating
or sampling more often changes no weight.
"""
import numpy as np

# One tag for each use, so that no two uses share a stream. At least 1, and always
# four words: SeedSequence([s]) and SeedSequence([s, 0]) are the same stream.
INIT, DATA, DROPOUT, SAMPLE, RESAMPLE = 1, 2, 3, 4, 5


def sequence(use, seed, iteration=0, micro_batch=0):
    return np.random.SeedSequence([use, seed, iteration, micro_batch])


def generator(use, seed, iteration=0, micro_batch=0):
    """A numpy Generator on the stream of (use, seed, iteration, micro_batch)."""
    return np.random.default_rng(sequence(use, seed, iteration, micro_batch))


def torch_seed(use, seed, iteration=0, micro_batch=0):
    """A 64-bit integer for torch.manual_seed, drawn from the same stream."""
    return int(sequence(use, seed, iteration, micro_batch).generate_state(1, np.uint64)[0])
