"""dev/gpu_check.py in its smallest form, on any device."""
import json

from conftest import cold


def test_smoke(tmp_path):
    """Every step succeeds, each loss is trained, stopped, resumed and evaluated, and the result is one JSON file."""
    status, out, err = cold('dev/gpu_check.py', '--smoke=True', '--seconds=0.1', f'--out_dir={tmp_path}/check',
                            timeout=400)
    assert status == 0, out + err
    result = json.loads((tmp_path / 'check/result.json').read_text())
    assert all(step['ok'] for step in result['steps'].values()) and len(result['steps']) >= 8
    assert all(row['ours'] > 0 and row['other'] > 0 for row in result['bench']) and len(result['bench']) == 2
    for loss in ('cross_entropy', 'squentropy'):
        run = result['training'][loss]
        assert 0 < run['iterations'] < run['resumed_to'] and run['evaluation']['nats'] > 0
