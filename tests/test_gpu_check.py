"""dev/gpu_check.py in its smallest form, on any device."""
import json

from conftest import cold


def test_smoke(tmp_path):
    """Every step but the tests succeeds, each loss is trained, stopped and evaluated, one is resumed, and the result
    is JSON."""
    status, out, err = cold('dev/gpu_check.py', '--smoke=True', '--tests=False', '--seconds=0.1',
                            f'--out_dir={tmp_path}/check', timeout=400)
    assert status == 0, out + err
    result = json.loads((tmp_path / 'check/result.json').read_text())
    assert all(step['ok'] for step in result['steps'].values()) and len(result['steps']) == 8
    assert all(row['ours'] > 0 and row['other'] > 0 for row in result['bench']) and result['bench']
    for loss, more in (('cross_entropy', 20), ('squentropy', 0)):
        run = result['training'][loss]
        assert 0 < run['iterations'] == run['last_iteration'] - more and run['evaluation']['nats'] > 0
