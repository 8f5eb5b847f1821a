"""compare.py: its statistics against other ways to compute them, and a study as a user runs it."""
import json

import numpy as np
import pytest
from conftest import ROOT, run
from scipy import stats

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
    """Its interval is that of a plain loop that draws seeds and stories again."""
    generator = np.random.default_rng(1)
    sizes = generator.integers(5, 50, 40)
    sums = (generator.normal(0.02, 0.05, (4, 1)) + generator.normal(0, 0.3, (1, 40))) * sizes
    low, high = metrics.crossed_bootstrap(sums, sizes, 4000, 1)
    means = []
    for _ in range(4000):
        stories, seeds = generator.integers(40, size=40), generator.integers(4, size=4)
        means.append(np.mean([sums[seed, stories].sum() / sizes[stories].sum() for seed in seeds]))
    assert [low, high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)


def test_random_batches():
    """Of many units, the interval is the normal one of a mean of so many draws."""
    means = np.random.default_rng(2).normal(3, 0.5, 5000)
    half = 1.96 * means.std() / np.sqrt(40)
    found = metrics.random_batches(means, 40, 20_000, 1)
    assert found == pytest.approx([means.mean() - half, means.mean() + half], abs=0.005)


SMALL = ['--n_layer=1', '--n_embd=16', '--n_head=2', '--block_size=32', '--eval_iters=1', '--batch_size=2',
         '--evaluations=2', '--budget=iters:4', '--bootstrap=99', '--num_samples=1', '--each=']


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
