"""dev/race.py as a user runs it."""
import json

import pytest
from conftest import cold, run


@pytest.mark.slow
def test_race(tiny_data, tmp_path):
    """Both curves start at the same loss and fall, and train.py uses about the time that it was given."""
    status, out, err = cold('dev/race.py', f'--dataset={tiny_data}', f'--out_dir={tmp_path}', '--max_iters=500',
                            '--speedup=1', '--batch_size=2', '--evaluations=2', '--own_batch_size=4',
                            '--eval_windows=16', '--flags=--optimizer=muon', timeout=600)
    assert status == 0, err
    curves = json.loads((tmp_path / 'race.json').read_text())
    baseline, train = curves['baseline'], curves['train.py']
    assert abs(baseline[0][2] - train[0][2]) < 1e-4
    assert all(curve[-1][2] < curve[0][2] - 1 for curve in (baseline, train))
    assert 0.6 < train[-1][0] / baseline[-1][0] < 1.6  # other processes may use the cores
    assert (tmp_path / 'race.png').stat().st_size > 10_000


def test_help():
    """--help lists the settings."""
    status, out, err = run('dev/race.py', '--help')
    assert status == 0 and '--own_batch_size=' in out and err == ''


@pytest.mark.parametrize('flag', ['--dataset=nowhere', '--eval_windows=3', '--flags="'])
def test_errors(flag, tiny_data, tmp_path):
    """An error gives one line that names the flag."""
    status, _, err = run('dev/race.py', f'--dataset={tiny_data}', f'--out_dir={tmp_path}', flag)
    assert status in (1, 2) and err.startswith('error: ') and err.count('\n') == 1
    assert flag.split('=')[0].lstrip('-') in err
