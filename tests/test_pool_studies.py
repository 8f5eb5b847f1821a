"""Studies pooled by dev/pool_studies.py."""
import json

import numpy as np
import pytest
from conftest import ROOT, run
from scipy import stats

from dev import pool_studies


def write_study(path, seeds, declared='link'):
    """Write a results.json with random figures of two arms and return the differences in nats, one per seed."""
    generator = np.random.default_rng(seeds[0])
    runs = {arm: {str(seed): {'readouts': {readout: {key: generator.random() for key in pool_studies.MEASURES}
                                           for readout in (declared, 'calibrated')}}
                  for seed in seeds} for arm in ('cross_entropy', 'mse')}
    path.write_text(json.dumps({'plan': {'declared': {'readout': declared}}, 'runs': runs}))
    return [runs['mse'][str(seed)]['readouts'][declared]['nats'] -
            runs['cross_entropy'][str(seed)]['readouts'][declared]['nats'] for seed in seeds]


def test_pooled_figures(tmp_path):
    """Pooled differences match scipy's paired t-test, the mean of means its two-sample t-test."""
    names = [str(tmp_path / name) for name in ('a.json', 'b.json')]
    a, b = write_study(tmp_path / 'a.json', [1, 2, 3]), write_study(tmp_path / 'b.json', [4, 5, 6, 7, 8])
    runs, readout = pool_studies.read_studies(names)
    differences = pool_studies.differences_by_run(runs, 'mse', 'cross_entropy', 'nats', readout, readout)
    assert readout == 'link' and list(differences.values()) == a + b
    mean, interval, p = pool_studies.mean_of_means(pool_studies.group_by_study(differences))
    reference = stats.ttest_ind(a, -np.array(b))  # mean(a) + mean(b) over the pooled error is the same t
    assert mean == pytest.approx((np.mean(a) + np.mean(b)) / 2) and p == pytest.approx(reference.pvalue)
    assert interval == pytest.approx([x / 2 for x in reference.confidence_interval(0.95)])
    status, out, err = run(ROOT / 'dev/pool_studies.py', *names, f'--figure={tmp_path}/figure.png',
                           '--labels=CE, the other')
    assert status == 0 and (tmp_path / 'figure.png').stat().st_size > 5_000, err
    pooled = stats.ttest_1samp(a + b, 0)
    low, high = pooled.confidence_interval(0.95)
    assert 'the other minus CE' in out and 'cross_entropy' not in out
    assert f'{np.mean(a + b):+.4f} [{low:+.4f}, {high:+.4f}] p = {pooled.pvalue:.2g}' in out
    for measure, arm_readout in (('nats per token, baseline calibrated', 'link'),
                                 ('nats per token, both calibrated', 'calibrated')):
        d = [runs['mse'][key][arm_readout]['nats'] - runs['cross_entropy'][key]['calibrated']['nats']
             for key in differences]
        line = next(line for line in out.splitlines() if line.startswith(measure))
        assert f'{np.mean(d):+.4f}' in line and f'p = {stats.ttest_1samp(d, 0).pvalue:.2g}' in line


def test_studies_that_cannot_be_pooled(tmp_path):
    """Unknown studies, shared seeds and different declared readouts are refused."""
    for name, seeds, declared in (('a', [1, 2], 'link'), ('b', [2, 3], 'link'), ('c', [4], 'softmax')):
        write_study(tmp_path / f'{name}.json', seeds, declared)
    for names, expected in ((['a', 'none'], 2), (['a', 'b'], 1), (['a', 'c'], 1)):
        with pytest.raises(SystemExit) as refused:
            pool_studies.read_studies([f'{tmp_path}/{name}.json' for name in names])
        assert refused.value.code == expected


def test_one_loss(tmp_path):
    """A study of one loss has means, but no figure of differences."""
    write_study(tmp_path / 'a.json', [1, 2])
    results = json.loads((tmp_path / 'a.json').read_text())
    results['runs']['mse'] = {}  # all diverged
    (tmp_path / 'a.json').write_text(json.dumps(results))
    status, out, err = run(ROOT / 'dev/pool_studies.py', tmp_path / 'a.json')
    assert status == 0 and 'cross_entropy' in out and 'nan' not in out and not err
    status, out, err = run(ROOT / 'dev/pool_studies.py', tmp_path / 'a.json', f'--figure={tmp_path}/figure.png')
    assert status == 2 and '--figure' in err and err.count('\n') == 1 and not out


def test_labels(tmp_path):
    """There must be one label per loss, all different."""
    write_study(tmp_path / 'a.json', [1, 2])
    for labels in ('CE', 'CE,MSE,other', 'CE,CE', 'CE,'):
        status, out, err = run(ROOT / 'dev/pool_studies.py', tmp_path / 'a.json', f'--labels={labels}')
        assert status == 2 and '--labels' in err and err.count('\n') == 1 and not out


def test_figure_of_one_pair(tmp_path):
    """One pair has no interval, but a figure."""
    write_study(tmp_path / 'a.json', [1])
    status, _, err = run(ROOT / 'dev/pool_studies.py', tmp_path / 'a.json', f'--figure={tmp_path}/figure.png')
    assert status == 0 and (tmp_path / 'figure.png').stat().st_size > 5_000, err
