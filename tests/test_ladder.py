"""The report of a ladder, dev/ladder.py."""
import json

import numpy as np
import pytest
from configurator import read_settings, run_config
from conftest import ROOT, run
from scipy import stats

from dev import pool_studies
from nanoloss.study_plan import STUDIES

ARMS = ('stock', 'tuned', 'muon', 'smoothing')


@pytest.fixture
def study(tmp_path):
    """A results.json with random figures of four arms and six seeds: (path, nats of each arm)."""
    generator = np.random.default_rng(0)
    runs = {arm: {str(seed): {'readouts': {'link': {key: generator.random() for key in pool_studies.MEASURES}}}
                  for seed in range(1, 7)} for arm in ARMS}
    del runs['tuned']['1']  # arms are paired by seed, not by position
    path = tmp_path / 'results.json'
    path.write_text(json.dumps({'plan': {'declared': {'readout': 'link'}}, 'runs': runs}))
    return path, {arm: {seed: r['readouts']['link']['nats'] for seed, r in runs[arm].items()} for arm in ARMS}


def test_steps_match_scipy(study, tmp_path):
    """Rungs are compared with the rung before, other arms with the last rung, as scipy's paired t-test does."""
    path, nats = study
    status, out, err = run(ROOT / 'dev/ladder.py', path, path, '--titles=first,second', '--rungs=stock,tuned,muon',
                           '--beside=smoothing', '--labels=one,two,three,four', f'--figure={tmp_path}/figure.png')
    assert status == 0 and (tmp_path / 'figure.png').stat().st_size > 5_000, err
    first, second = out.split('\nsecond\n\n')
    assert first.strip() == f'first\n\n{second}'.strip()
    rows = dict(zip(ARMS, second.splitlines()[2:], strict=True))
    for arm, base in (('tuned', 'stock'), ('muon', 'tuned'), ('smoothing', 'muon')):
        pairs = np.array([(nats[base][seed], nats[arm][seed]) for seed in nats[arm] if seed in nats[base]])
        test = stats.ttest_rel(*pairs.T)
        low, high = test.confidence_interval(0.95)
        gain = -np.diff(pairs).mean()
        assert f'| {len(pairs)} | {gain:+.4f} [{low:+.4f}, {high:+.4f}] | {test.pvalue:.2g} |' in rows[arm]
    for name, (arm, row) in zip(('one', 'two', 'three', 'four'), rows.items(), strict=True):
        values = np.array([*nats[arm].values()])
        assert row.startswith(f'| {name} | {values.mean():.4f} ({values.std(ddof=1):.4f}) |')


@pytest.mark.parametrize('flags', [['--rungs=stock,none'], ['--rungs=stock,tuned', '--labels=one'],
                                   ['--rungs=stock,tuned', '--titles=a,b']])
def test_mistakes(study, flags):
    """Unknown arms and a wrong number of labels or titles are refused in one line."""
    status, out, err = run(ROOT / 'dev/ladder.py', study[0], *flags)
    assert status == 2 and err.count('\n') == 1 and not out


@pytest.mark.parametrize('config, arm', [('ladder_nanogpt', 'stock'), ('ladder_best', 'schedule')])
def test_config_files(config, arm):
    """The config files of the ladder have the settings of their arms in the published study."""
    defaults, _, _ = read_settings(ROOT / 'train.py')
    namespace, _ = run_config(str(ROOT / f'config/{config}.py'), defaults)
    settings = json.loads((STUDIES / 'ladder.json').read_text())['plan']['settings'][arm]
    for key, value in settings.items():
        assert key in ('matmul', 'out_dir') or namespace[key] == value, key
