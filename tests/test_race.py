"""race.py as a user runs it."""
import json

import pytest

from conftest import cold


@pytest.mark.slow
def test_a_race(tiny_data, tmp_path):
    """Both ways begin with the same nats, learn, and train.py takes about the time that it has."""
    status, out, err = cold('race.py', f'--dataset={tiny_data}', f'--out_dir={tmp_path}', '--max_iters=300', '--faster=1',
                            '--batch_size=2', '--evaluations=2', '--own_batch_size=4',
                            '--eval_windows=16', '--flags=--optimizer=muon', timeout=600)
    assert status == 0, err
    raced = json.loads((tmp_path / 'race.json').read_text())
    plain, ours = raced['the plain way'], raced['train.py']
    assert abs(plain[0][2] - ours[0][2]) < 1e-4
    assert all(curve[-1][2] < curve[0][2] - 1 for curve in (plain, ours))
    assert 0.6 < ours[-1][0] / plain[-1][0] < 1.6  # the machine may be busy
    assert (tmp_path / 'race.png').stat().st_size > 10_000
