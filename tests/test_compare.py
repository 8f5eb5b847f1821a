"""compare.py: its statistics against other ways to compute them, and a study as a user runs it."""
import json

import numpy as np
import pytest
from conftest import ROOT, run
from scipy import stats

import compared
import metrics


def test_paired_t():
    """Mean, interval and p are scipy's; the detectable difference is found four times in five (simulated)."""
    generator = np.random.default_rng(0)
    for n in (2, 3, 8):
        a, b = generator.normal(size=(2, n))
        said, theirs = metrics.paired_t(a - b), stats.ttest_rel(a, b)
        low, high = theirs.confidence_interval(0.95)
        assert said['p'] == pytest.approx(theirs.pvalue) and said['interval'] == pytest.approx([low, high])
        assert said['upper99'] == pytest.approx(theirs.confidence_interval(0.98).high)
    d = generator.normal(size=5)
    d = (d - d.mean()) / d.std(ddof=1)  # standard deviation 1
    delta = metrics.paired_t(d)['detectable']
    found = stats.ttest_1samp(generator.normal(delta, 1, size=(40_000, 5)), 0, axis=1).pvalue < 0.05
    assert abs(found.mean() - 0.8) < 0.01
    assert metrics.paired_t([0.3])['p'] is None and metrics.paired_t([0.3, 0.3])['interval'] is None


def test_crossed_bootstrap():
    """Its interval is that of a plain loop that draws seeds and stories again, stretched about the mean."""
    generator = np.random.default_rng(1)
    sizes = generator.integers(5, 50, 40)
    sums = (generator.normal(0.02, 0.05, (4, 1)) + generator.normal(0, 0.3, (1, 40))) * sizes
    low, high = metrics.crossed_bootstrap(sums, sizes, 4000, 1)
    means = []
    for _ in range(4000):
        stories, seeds = generator.integers(40, size=40), generator.integers(4, size=4)
        means.append(np.mean([sums[seed, stories].sum() / sizes[stories].sum() for seed in seeds]))
    mean = sums.sum() / sizes.sum() / 4
    stretch = stats.t.ppf(0.975, 3) / 1.96 * (4 / 3)**0.5
    assert [low, high] == pytest.approx(mean + stretch * (np.quantile(means, [0.025, 0.975]) - mean), abs=0.01)


@pytest.mark.parametrize('runs', [2, 3, 8])
def test_crossed_bootstrap_covers(runs):
    """95 % intervals hold the true mean in no fewer of 400 made-up studies than chance allows, also of few seeds."""
    generator = np.random.default_rng(runs)
    sizes, held = np.full(50, 10), 0
    for i in range(400):
        of = generator.normal(0, 0.05, (runs, 1)) + generator.normal(0, 0.1, 50) + generator.normal(0, 0.1, (runs, 50))
        low, high = metrics.crossed_bootstrap((0.02 + of) * sizes, sizes, 400, i)
        held += low <= 0.02 <= high
    assert held >= 0.92 * 400


def test_random_batches():
    """Of many units, the interval is the normal one of a mean of so many draws."""
    means = np.random.default_rng(2).normal(3, 0.5, 5000)
    half = 1.96 * means.std() / np.sqrt(40)
    found = metrics.random_batches(means, 40, 20_000, 1)
    assert found == pytest.approx([means.mean() - half, means.mean() + half], abs=0.005)


def test_differences():
    """Each is the first arm's figure taken from the other's, seed by seed; the fitted ones take the first arm's fitted
    reading; a seed that one of the two lacks is left out."""
    generator, sizes = np.random.default_rng(3), np.array([3, 5, 8])

    def one():
        sums = {name: generator.random((3, 3)) * sizes for name in ('nats', 'top1', 'brier')}
        readings = {name: {**{key: of[i].sum() / 16 for key, of in sums.items()}, 'ece_mass': generator.random()}
                    for i, name in enumerate(compared.READINGS)}
        return {'readings': readings}, {**sums, 'tokens': sizes}
    done = {'a': {1: one(), 2: one(), 3: one()}, 'b': {1: one(), 3: one(), 4: one()}}
    said = compared.differences(done, 'link', 499)['b']
    assert said['seeds'] == 2
    for key, measure, of_base in (('nats', 'nats', 'link'), ('ece_mass', 'ece_mass', 'link'),
                                  ('brier_fitted', 'brier', 'fitted'), ('ece_mass_fitted', 'ece_mass', 'fitted')):
        d = [done['b'][seed][0]['readings']['link'][measure] - done['a'][seed][0]['readings'][of_base][measure]
             for seed in (1, 3)]
        assert said[key]['mean'] == pytest.approx(np.mean(d)) and said[key]['p'] == pytest.approx(
            stats.ttest_1samp(d, 0).pvalue)
    low, high = said['nats']['crossed']
    assert low < said['nats']['mean'] < high and 'crossed' not in said['ece_mass']


SMALL = ['--n_layer=1', '--n_embd=16', '--n_head=2', '--block_size=32', '--eval_iters=1', '--batch_size=2',
         '--evaluations=2', '--budget=iters:4', '--bootstrap=99', '--num_samples=1', '--each=']


def test_a_small_study(tiny_data, tmp_path):
    """Another loss joins a study, whose table stays of all that was scored, whatever is named later; the arrays beside
    a run's score say the same as its score."""
    flags = [*SMALL, f'--dataset={tiny_data}', '--name=s', '--seeds=1', '--num_samples=0']
    place = tmp_path / 'results/s'
    for arms, more in ((['cross_entropy'], []), (['cross_entropy', 'squentropy'], []), (['cross_entropy'], ['--jobs=2'])):
        status, _, err = run(ROOT / 'compare.py', *flags, *more, f'--losses={",".join(arms)}', cwd=tmp_path)
        assert status == 0, err
    assert list(json.loads((place / 'results.json').read_text())['runs']) == ['cross_entropy', 'squentropy']
    assert '| squentropy | 1 |' in (place / 'table.md').read_text()
    arrays, said = np.load(place / 'runs/squentropy-1/val.npz'), json.loads((place / 'runs/squentropy-1/val.json').read_text())
    assert arrays['tokens'].sum() == said['tokens']
    for i, name in enumerate(compared.READINGS):
        of = said['readings'][name]
        for key in ('nats', 'top1', 'brier'):
            assert arrays[key][i].sum() / said['tokens'] == pytest.approx(of[key], rel=1e-5)
        count, confidence, correct = arrays['calibration'][i].T
        assert np.dot(count, np.abs(confidence - correct)) / said['tokens'] == pytest.approx(of['ece_mass'], rel=1e-5)
        assert arrays['frequency'][:, 2 + i].sum() == pytest.approx(arrays['nats'][i].sum(), rel=1e-5)
    assert arrays['frequency'][:, 1].sum() == said['tokens']
    for more, says in ((['--losses=squentropy'], 'the first of --losses cross_entropy -> squentropy'),
                       (['--losses=cross_entropy:squentropy_weight=0.1'], 'cross_entropy has no squentropy_weight')):
        status, _, err = run(ROOT / 'compare.py', *flags, *more, cwd=tmp_path)
        assert status in (1, 2) and says in err and err.count('\n') == 1, (more, err)


@pytest.mark.slow
def test_a_study(tiny_data, tmp_path):
    """Runs are paired and kept: more seeds go on with the study, figures and table are of all, results.json says
    what evaluate.py says; another study in its place is refused."""
    flags = [*SMALL, f'--dataset={tiny_data}', '--losses=cross_entropy,squentropy:squentropy_weight=0.1', '--name=s']
    status, out, err = run(ROOT / 'compare.py', *flags, '--seeds=1', cwd=tmp_path)
    assert status == 0, err
    place = tmp_path / 'results/s'
    times = {path: path.stat().st_mtime_ns for path in place.glob('runs/*/ckpt.pt')}
    assert len(times) == 2
    status, out, err = run(ROOT / 'compare.py', *flags, '--seeds=2', '--jobs=2', cwd=tmp_path)
    assert status == 0, err
    assert all(path.stat().st_mtime_ns == was for path, was in times.items()) and len(list(place.glob('runs/*'))) == 4
    said = json.loads((place / 'results.json').read_text())
    runs_of = said['runs']
    for seed in '12':
        first = [json.loads(line) for arm in ('cross_entropy', 'squentropy_squentropy_weight_0.1') for line in
                 (place / f'runs/{arm}-{seed}/metrics.jsonl').read_text().splitlines()[:1]]
        assert first[0]['iter'] == first[1]['iter'] == 0
        assert first[0]['val_nats'] != first[1]['val_nats']  # the same weights, read by two links
    d = [runs_of['squentropy:squentropy_weight=0.1'][seed]['readings']['link']['nats'] -
         runs_of['cross_entropy'][seed]['readings']['link']['nats'] for seed in '12']
    found = said['differences']['squentropy:squentropy_weight=0.1']['nats']
    assert found['mean'] == pytest.approx(np.mean(d)) and found['p'] == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert all((place / f'{name}.png').stat().st_size > 5_000 for name in ('differences', 'curves', 'calibration', 'frequency'))
    table, stories = (place / 'table.md').read_text(), (place / 'stories.md').read_text()
    assert 'SYNTHETIC' in table and f'{np.mean(d):+.4f}' in table and stories.count('One day') == 2
    for more, says in ((['--budget=iters:5'], 'max_iters 4 -> 5'), (['--losses=mse:mse_target'], 'loss:key'),
                       (['--losses=mse,nothing'], "no loss 'nothing'"), (['--reading=softmax'], 'reading link -> softmax'),
                       (['--losses=mse,mse:dataset=x'], 'several dataset'), (['--losses=mse:seed=3'], 'sets seed'),
                       (['--losses=cross_entropy_plus_square', '--each=no_{loss}.py'], '--each='),
                       (['--budget=hours:3'], '--budget=hours:3'),
                       (['--seed=3'], 'compare.py sets seed'), (['--losses=mse, mse'], 'twice'),
                       (['--nlayer=2'], 'did you mean --n_layer')):
        status, _, err = run(ROOT / 'compare.py', *flags, *more, cwd=tmp_path)
        assert status in (1, 2) and says in err and err.count('\n') == 1, (more, err)
