"""Statistics against scikit-learn, scipy, plain loops, exhaustive enumeration and simulation."""

import numpy as np
import pytest
from scipy import stats

from nanoloss import statistics

CHUNKS = pytest.mark.parametrize('max_random', [statistics.MAX_RANDOM, 1000])  # one chunk, and many


def sklearn_ece(confidence, correct, strategy, bins=15):
    """ECE from the reliability curve of scikit-learn and the sizes of its bins."""
    from sklearn.calibration import calibration_curve
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=bins, strategy=strategy)
    edges = np.linspace(0, 1, bins + 1)
    edges = edges if strategy == 'uniform' else np.quantile(confidence, edges)
    counts = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=bins)
    return (counts[counts > 0] / len(confidence)) @ abs(accuracy - mean_confidence)


@pytest.mark.parametrize('strategy', ['uniform', 'quantile'])
def test_ece_is_scikit_learns(strategy):
    """ECE in bins of equal width and of equal mass equals scikit-learn's."""
    generator = np.random.default_rng(0)
    confidence = generator.beta(2, 5, 3000)
    correct = generator.random(3000) < confidence + 0.2 * np.sin(40 * confidence)
    assert statistics.ece(confidence, correct, mass=strategy == 'quantile') == \
        pytest.approx(sklearn_ece(confidence, correct, strategy), abs=1e-12)


def test_ece_of_ties_and_bounds():
    """Ties up to rounding share a group, and a confidence of 1 has a group."""
    confidence = 0.5 + 1e-9 * np.random.default_rng(0).standard_normal(100)
    assert statistics.ece(confidence, np.arange(100) % 2, mass=True) == pytest.approx(0, abs=1e-8)
    assert statistics.ece(np.ones(9), np.ones(9)) == 0


@pytest.mark.parametrize('mass', [False, True])
def test_ece_of_counted_predictions(mass):
    """Predictions that are counted by confidence have the same groups as the predictions one by one."""
    generator = np.random.default_rng(0)
    confidence = generator.choice(np.linspace(0.01, 0.99, 99), 5000)
    correct = generator.random(5000) < confidence ** 2
    values, index, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    accuracy = np.bincount(index, correct) / counts
    for found, expected in zip(statistics.calibration(values, accuracy, counts, mass=mass),
                               statistics.calibration(confidence, correct, mass=mass), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_edges_of_calibration_groups():
    """A group of equal width includes its upper edge, not its lower one."""
    counts, confidence, _ = statistics.calibration([0.25, 0.5, 0.75, 1.0], [0, 1, 0, 1], bins=4)
    assert counts.tolist() == [1, 1, 1, 1] and confidence.tolist() == [0.25, 0.5, 0.75, 1.0]


@CHUNKS
def test_bootstrap_matches_a_loop(max_random, monkeypatch):
    """The interval of a ratio equals a plain loop over resamples."""
    monkeypatch.setattr(statistics, 'MAX_RANDOM', max_random)
    generator = np.random.default_rng(1)
    sizes = generator.integers(50, 300, 60)
    sums = sizes * (3 + 0.3 * generator.standard_normal(60))
    ratios = []
    for _ in range(4000):
        drawn = generator.integers(60, size=60)
        ratios.append(sums[drawn].sum() / sizes[drawn].sum())
    np.testing.assert_allclose(statistics.bootstrap(sums[:, None], sizes, 4000, seed=3)[0],
                               np.quantile(ratios, [0.025, 0.975]), atol=0.01)


def test_bootstrap_draws_every_unit():
    """If one of ten units holds the whole sum, resamples hold it as often as a binomial variable, whichever it is."""
    for unit in range(10):
        low, high = statistics.bootstrap(10 * np.eye(10)[:, unit:unit + 1], np.ones(10), 5000, seed=1)[0]
        assert (low, high) == (0, stats.binom.ppf(0.975, 10, 0.1))


def test_bootstrap_covers():
    """95 % intervals contain the true mean in 175 to 199 of 200 simulations."""
    generator, covered = np.random.default_rng(1), 0
    for seed in range(200):
        sizes = generator.integers(50, 300, 60)
        sums = sizes * (3 + 0.3 * generator.standard_normal(60))
        low, high = statistics.bootstrap(sums[:, None], sizes, 300, seed)[0]
        covered += low < 3 < high
    assert 175 <= covered <= 199


@CHUNKS
def test_sign_flip_matches_enumeration(max_random, monkeypatch):
    """p is the fraction of all 2^n sign patterns that are as extreme, exactly if they are few enough to enumerate."""
    monkeypatch.setattr(statistics, 'MAX_RANDOM', max_random)
    d = np.array([[0.9, -0.2, 0.4, 0.5, -0.1, 0.3, 0.7, -0.6, 0.2, 0.8], [1.0] * 10, [0.0] * 10]).T
    exact = stats.permutation_test((d,), lambda x, axis: x.sum(axis), permutation_type='samples',
                                   n_resamples=np.inf).pvalue
    np.testing.assert_allclose(statistics.sign_flip(d, 2**10, seed=0), exact)
    random = [statistics.sign_flip(d, 2**10 - 1, seed) for seed in range(40)]
    np.testing.assert_allclose(np.mean(random, 0), exact, atol=0.01)
    # of four differences of the same sign, 2 of 16 patterns are as extreme, whatever the rounding of the sums
    for d in np.random.default_rng(0).random((100, 4, 1)):
        assert statistics.sign_flip(d, 16, seed=0) == 2 / 16
    assert statistics.sign_flip(np.ones((50, 1)), 99, seed=0) == 1 / 100  # a random p is never 0


def test_paired_t_is_scipys():
    """Mean, interval, p and upper bound are scipy's; None for one pair or for equal differences."""
    generator = np.random.default_rng(0)
    for n in (2, 3, 8):
        a, b = generator.normal(size=(2, n))
        result, expected = statistics.paired_t(a - b), stats.ttest_rel(a, b)
        assert result['mean'] == pytest.approx((a - b).mean()) and result['p'] == pytest.approx(expected.pvalue)
        assert result['interval'] == pytest.approx(list(expected.confidence_interval(0.95)))
        assert result['upper99'] == pytest.approx(expected.confidence_interval(0.98).high)
    assert statistics.paired_t([0.3])['p'] is None and statistics.paired_t([0.3, 0.3])['interval'] is None


def test_detectable_difference_has_its_power():
    """A true mean equal to the detectable difference is found in 80 % of simulations."""
    generator = np.random.default_rng(0)
    d = generator.normal(size=5)
    delta = statistics.paired_t((d - d.mean()) / d.std(ddof=1))['detectable']
    p = stats.ttest_1samp(generator.normal(delta, 1, size=(40_000, 5)), 0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_crossed_interval_of_one_source_of_noise():
    """If only runs differ, the interval is that of a t-test over runs; if only units do, of one over units."""
    generator = np.random.default_rng(1)
    sizes = np.full(40, 7)
    for shape, axis in (((4, 1), 1), ((1, 40), 0)):
        sums = generator.normal(0.02, 0.3, shape) * np.ones((4, 40)) * sizes
        expected = stats.ttest_1samp((sums / sizes).mean(axis), 0).confidence_interval()
        np.testing.assert_allclose(statistics.crossed_interval(sums, sizes), expected)


def test_crossed_interval_of_units_of_different_size():
    """If all runs are equal, the interval agrees with the bootstrap of the ratio over units."""
    generator = np.random.default_rng(1)
    sizes = generator.integers(5, 300, 500)
    sums = (3 + 0.3 * generator.standard_normal(500)) * sizes
    expected = statistics.bootstrap(sums[:, None], sizes, 5000, seed=1)[0]
    np.testing.assert_allclose(statistics.crossed_interval(np.stack([sums] * 3), sizes), expected, atol=0.004)


@pytest.mark.parametrize('runs', [2, 3, 12])
@pytest.mark.parametrize('over_runs, over_units, over_both', [(0.05, 0.1, 0.1), (0, 0.1, 0), (0, 0, 0.3)])
def test_crossed_interval_covers(runs, over_runs, over_units, over_both):
    """95 % intervals contain the true mean in at least 92 % of 400 simulations, whatever the noise comes from."""
    generator = np.random.default_rng(runs)
    sizes, covered = generator.integers(50, 350, 200), 0
    for _ in range(400):
        noise = generator.normal(0, over_runs, (runs, 1)) + generator.normal(0, over_units, 200)
        noise = noise + generator.normal(0, over_both, (runs, 200))
        low, high = statistics.crossed_interval((0.02 + noise) * sizes, sizes)
        covered += low <= 0.02 <= high
    assert covered >= 0.92 * 400


@CHUNKS
def test_random_batches_is_normal(max_random, monkeypatch):
    """For many units, the interval is the normal one for a mean of that many draws."""
    monkeypatch.setattr(statistics, 'MAX_RANDOM', max_random)
    means = np.random.default_rng(2).normal(3, 0.5, 5000)
    half_width = 1.96 * means.std() / np.sqrt(40)
    np.testing.assert_allclose(statistics.random_batches(means, 40, 20_000, 1),
                               [means.mean() - half_width, means.mean() + half_width], atol=0.005)
    np.testing.assert_allclose(statistics.random_batches(means, 1, 20_000, 1), np.quantile(means, [0.025, 0.975]),
                               atol=0.05)  # of single units
