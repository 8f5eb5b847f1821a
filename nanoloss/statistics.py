"""Statistics of an evaluation in numpy and scipy: calibration, confidence intervals and significance tests.

The resampling unit is the story, not the token, because the tokens of a story are correlated.
"""
import itertools
import math

import numpy as np

from nanoloss import rng

MAX_RANDOM = 2**22  # random numbers held in memory at a time


def calibration(confidence, correct, counts=None, bins=15, mass=False):
    """Group predictions by confidence.

    Args:
        confidence, correct: (N,).
        counts: (N,), how many predictions each entry stands for: correct is then their accuracy; None = one.
        bins: number of groups.
        mass: if False, the groups are the intervals (i/bins, (i+1)/bins]. If True, they are the intervals between
            quantiles, with equally many predictions each; ties (to six digits) share a group.

    Returns:
        (counts, mean confidence, accuracy), an array each, without the empty groups.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    counts = np.ones(len(confidence)) if counts is None else np.asarray(counts, np.float64)
    if mass:
        rounded = confidence.round(6)  # otherwise rounding errors would decide the groups of ties
        group = np.searchsorted(_quantiles(rounded, counts, np.arange(1, bins) / bins), rounded)
    else:
        group = np.searchsorted(np.arange(1, bins) / bins, confidence)
    total, *sums = (np.bincount(group, x, bins) for x in (counts, counts * confidence, counts * correct))
    used = total > 0
    return total[used].astype(np.int64), sums[0][used] / total[used], sums[1][used] / total[used]


def _quantiles(x, counts, q):
    """numpy.quantile(numpy.repeat(x, counts), q)"""
    order = np.argsort(x)
    last = np.cumsum(counts[order])  # number of predictions up to each entry
    rank = q * (last[-1] - 1)
    low, high = (x[order][np.searchsorted(last, r, side='right')] for r in (np.floor(rank), np.ceil(rank)))
    return low + (high - low) * (rank - np.floor(rank))


def ece(confidence, correct, counts=None, bins=15, mass=False):
    """Return the expected calibration error of the top-1 prediction (Naeini et al. 2015): the mean over predictions
    of |accuracy - mean confidence| of their group. Arguments as for :func:`calibration`."""
    counts, mean_confidence, accuracy = calibration(confidence, correct, counts, bins, mass)
    return float(counts @ abs(accuracy - mean_confidence) / counts.sum())


def bootstrap(sums, sizes, resamples, seed, level=0.95):
    """Return percentile bootstrap intervals (k, 2) of the k ratios (sum of sums) / (sum of sizes).

    Units are resampled; all k ratios use the same resamples.

    Args:
        sums: (units, k).
        sizes: (units,).
    """
    units = len(sizes)
    generator = rng.generator(rng.RESAMPLE, seed, rng.BOOTSTRAP)
    columns = np.column_stack([sums, sizes]).astype(np.float64)
    ratios = []
    for n in _chunk_sizes(resamples, units):
        totals = _resample_counts(generator, n, units) @ columns
        ratios.append(totals[:, :-1] / totals[:, -1:])
    tail = (1 - level) / 2
    return np.quantile(np.concatenate(ratios), [tail, 1 - tail], axis=0).T


def sign_flip(differences, resamples, seed):
    """Return two-sided p-values (k,) of the sign-flip test for paired differences (units, k).

    p is the probability that random signs of the units move the sum at least as far from zero as the observed sum.
    All signs are enumerated if there are no more than `resamples` of them. Otherwise p is estimated as
    (b + 1) / (B + 1), which counts the observed signs (Phipson & Smyth 2010).
    """
    differences = np.asarray(differences, np.float64)
    units = len(differences)
    # the tolerance lets a flip of all signs tie with the observed sum despite rounding
    observed = abs(differences.sum(0)) - 1e-12 * abs(differences).sum(0)
    if 2**units <= resamples:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=units)))
        return (abs(signs @ differences) >= observed).mean(0)
    generator = rng.generator(rng.RESAMPLE, seed, rng.SIGN_FLIP)
    as_extreme = np.zeros(differences.shape[1], np.int64)
    for n in _chunk_sizes(resamples, units):
        signs = 2.0 * generator.integers(2, size=(n, units), dtype=np.int8) - 1
        as_extreme += (abs(signs @ differences) >= observed).sum(0)
    return (as_extreme + 1) / (resamples + 1)


def crossed_interval(sums, sizes, level=0.95):
    """Return an interval (2,) of the mean over runs of (sum of the sums of a run) / (sum of sizes).

    Both runs and units are samples, and all runs share the same units. The half-width is sqrt(t_r^2 v_r + t_u^2 v_u),
    with the variances of the mean over runs and over units and Student's t for each (Banerjee 1960), which covers at
    least `level` however few runs there are. What runs and units vary in together counts in both variances.

    Args:
        sums: (runs, units), at least two of each.
        sizes: (units,).
    """
    from scipy import stats  # imported late: it takes half a second
    runs, units = sums.shape
    ratios = sums.sum(1) / sizes.sum()
    mean = ratios.mean()
    residuals = (sums.mean(0) - mean * sizes) / sizes.sum()  # the linearized ratio; their sum is zero
    variances = ratios.var(ddof=1) / runs, units / (units - 1) * (residuals**2).sum()
    t = stats.t.ppf((1 + level) / 2, [runs - 1, units - 1])
    half_width = math.sqrt(t**2 @ variances)
    return np.array([mean - half_width, mean + half_width])


def random_batches(means, batch_units, resamples, seed, level=0.95):
    """Return a percentile interval (2,) of the mean of `batch_units` units drawn at random from means (units,)."""
    generator = rng.generator(rng.RESAMPLE, seed, rng.RANDOM_BATCHES)
    batch_means = [means[generator.integers(len(means), size=(n, batch_units))].mean(1)
                   for n in _chunk_sizes(resamples, batch_units)]
    return np.quantile(np.concatenate(batch_means), [(1 - level) / 2, (1 + level) / 2])


def paired_t(differences, level=0.95, power=0.8):
    """Student's t test of the mean of paired differences (n,).

    Returns:
        A dict with 'mean', 'interval', 'p' (two-sided), 'detectable' (the minimum detectable difference: the true
        mean that n pairs with the same noise detect at p < 1 - level with this power) and 'upper99' (one-sided 99 %
        upper bound on the mean). All but 'mean' are None for one pair or for equal differences.
    """
    from scipy import optimize, stats
    d = np.asarray(differences, np.float64)
    n, mean = len(d), float(d.mean())
    standard_error = float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if not standard_error:
        return {'mean': mean, 'interval': None, 'p': None, 'detectable': None, 'upper99': None}
    critical = stats.t.ppf((1 + level) / 2, n - 1)

    # the noncentral t distribution, as a mean over quantiles of the sample standard deviation (scipy's own gives NaN
    # at n = 2)
    spread = np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, n - 1) / (n - 1))

    def excess_power(delta):
        return (stats.norm.cdf(delta - critical * spread) + stats.norm.cdf(-delta - critical * spread)).mean() - power
    return {'mean': mean, 'interval': [mean - critical * standard_error, mean + critical * standard_error],
            'upper99': mean + float(stats.t.ppf(0.99, n - 1)) * standard_error,
            'p': float(2 * stats.t.sf(abs(mean) / standard_error, n - 1)),
            'detectable': float(optimize.brentq(excess_power, 0, 10 * critical)) * standard_error}


def _resample_counts(generator, n, units):
    """Draw n resamples of the units with replacement; return how often each contains each unit, (n, units)."""
    drawn = generator.integers(units, size=(n, units)) + units * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * units).reshape(n, units)


def _chunk_sizes(resamples, units):
    """Split the resamples into chunks of at most MAX_RANDOM random numbers."""
    rows = max(1, MAX_RANDOM // units)
    return [min(rows, resamples - i) for i in range(0, resamples, rows)]


def perplexity(nats):
    """exp(nats per token), bounded so that it does not overflow a float."""
    return math.exp(min(nats, 700))
