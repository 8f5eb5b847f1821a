"""Statistics of an evaluation, in numpy and scipy: calibration, and what chance could have done.

A unit is what was drawn from the world and would be drawn again: a story, not a token, since the
tokens of a story rise and fall together.
"""
import math

import numpy as np

import rng

CHUNK = 2**22  # random numbers held at a time


def calibration(confidence, correct, bins=15, mass=False):
    """Groups of predictions by confidence: (counts, mean confidence, share correct), empty groups left out.

    confidence, correct: (N,). Groups are the intervals (i/bins, (i+1)/bins], or with mass=True those
    between the quantiles, as many predictions each; level ones, to six digits, stay together.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if mass:
        level = confidence.round(6)  # otherwise the last digit would choose which of them go together
        group = np.searchsorted(np.quantile(level, np.arange(1, bins) / bins), level)
    else:
        group = np.searchsorted(np.arange(1, bins) / bins, confidence)
    counts = np.bincount(group, minlength=bins)
    sums = [np.bincount(group, x, bins)[counts > 0] for x in (confidence, correct)]
    counts = counts[counts > 0]
    return counts, sums[0] / counts, sums[1] / counts


def ece(confidence, correct, bins=15, mass=False):
    """Expected calibration error of the top prediction (Naeini et al. 2015): the mean over predictions
    of |share correct - mean confidence| of their group; mass as in calibration."""
    counts, mean_confidence, accuracy = calibration(confidence, correct, bins, mass)
    return float(counts @ abs(accuracy - mean_confidence) / counts.sum())


def bootstrap(sums, sizes, resamples, seed, level=0.95):
    """Percentile intervals (k, 2) of the ratios (sum of sums) / (sum of sizes) over units drawn again.

    sums (units, k), sizes (units,). All k ratios see the same draws.
    """
    units = len(sizes)
    generator = rng.generator(rng.RESAMPLE, seed, 0)
    both = np.column_stack([sums, sizes]).astype(np.float64)
    ratios = []
    for n in _chunks(resamples, units):
        drawn = generator.integers(units, size=(n, units)) + units * np.arange(n)[:, None]
        totals = np.bincount(drawn.ravel(), minlength=n * units).reshape(n, units) @ both
        ratios.append(totals[:, :-1] / totals[:, -1:])
    tail = (1 - level) / 2
    return np.quantile(np.concatenate(ratios), [tail, 1 - tail], axis=0).T


def sign_flip(differences, resamples, seed):
    """Two-sided p-values (k,) of paired differences (units, k): how often their sum would be as far
    from zero if each unit's sign were a coin's; p = (b + 1) / (B + 1), the observed signs counted in
    (Phipson & Smyth 2010)."""
    differences = np.asarray(differences, np.float64)
    generator = rng.generator(rng.RESAMPLE, seed, 1)
    # a flip that changes nothing ties with what was seen, but for rounding
    seen = abs(differences.sum(0)) - 1e-12 * abs(differences).sum(0)
    as_far = np.zeros(differences.shape[1], np.int64)
    for n in _chunks(resamples, len(differences)):
        signs = 2.0 * generator.integers(2, size=(n, len(differences)), dtype=np.int8) - 1
        as_far += (abs(signs @ differences) >= seen).sum(0)
    return (as_far + 1) / (resamples + 1)


def crossed_bootstrap(sums, sizes, resamples, seed, level=0.95):
    """Interval (2,) of the mean over runs of (sum of a run's sums) / (sum of sizes), where runs and units are both
    drawn again, all runs seeing the same units (Owen 2007, the pigeonhole bootstrap). Percentiles, stretched about
    the mean as Student's t is to the normal, since of two or three runs the percentiles alone cover 60 to 80 %.

    sums (runs, units) of two runs or more, sizes (units,).
    """
    from scipy import stats  # late: half a second
    generator = rng.generator(rng.RESAMPLE, seed, 2)
    runs, units = sums.shape
    means = []
    for n in _chunks(resamples, units):
        drawn = generator.integers(units, size=(n, units)) + units * np.arange(n)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n * units).reshape(n, units)
        ratios = (times @ sums.T) / (times @ sizes)[:, None]
        means.append(np.take_along_axis(ratios, generator.integers(runs, size=(n, runs)), 1).mean(1))
    tail = (1 - level) / 2
    stretch = stats.t.ppf(1 - tail, runs - 1) / stats.norm.ppf(1 - tail) * math.sqrt(runs / (runs - 1))
    mean = sums.sum() / sizes.sum() / runs
    return mean + stretch * (np.quantile(np.concatenate(means), [tail, 1 - tail]) - mean)


def random_batches(means, drawn, readings, seed, level=0.95):
    """Percentile interval (2,) of the mean of `drawn` units picked at random out of means (units,)."""
    generator = rng.generator(rng.RESAMPLE, seed, 3)
    found = [means[generator.integers(len(means), size=(n, drawn))].mean(1) for n in _chunks(readings, drawn)]
    return np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])


def paired_t(differences, level=0.95, power=0.8):
    """Student's t over pairs: {'mean', 'interval', 'p' (two-sided), 'detectable', 'upper99'}; None where one pair
    cannot say. upper99: the mean is below it, by a one-sided test at 1 %.

    differences (n,). detectable: the smallest true difference that n pairs as noisy as these would find at
    p < 1 - level with this power.
    """
    from scipy import optimize, stats
    d = np.asarray(differences, np.float64)
    n, mean = len(d), float(d.mean())
    error = float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if not error:  # one pair, or all alike
        return {'mean': mean, 'interval': None, 'p': None, 'detectable': None, 'upper99': None}
    critical = stats.t.ppf((1 + level) / 2, n - 1)

    # the noncentral t, as a mean over quantiles of the spread that n pairs would show (scipy's own gives NaN at n = 2)
    spread = np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, n - 1) / (n - 1))

    def missed(delta):
        return (stats.norm.cdf(delta - critical * spread) + stats.norm.cdf(-delta - critical * spread)).mean() - power
    return {'mean': mean, 'interval': [mean - critical * error, mean + critical * error],
            'upper99': mean + float(stats.t.ppf(0.99, n - 1)) * error,
            'p': float(2 * stats.t.sf(abs(mean) / error, n - 1)),
            'detectable': float(optimize.brentq(missed, 0, 10 * critical)) * error}


def _chunks(resamples, units):
    rows = max(1, CHUNK // units)
    return [min(rows, resamples - i) for i in range(0, resamples, rows)]
