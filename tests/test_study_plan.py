"""plan.json, which lets a study grow and refuses changes."""
import copy
import json

import pytest

from nanoloss import launcher
from nanoloss.study_plan import STUDIES, check_plan, known_studies, merge_plan, read_json, read_study

PLAN = {'declared': {'readout': 'link', 'margin': 0.005}, 'matmul': 'torch', 'seeds': [3, 4], 'data': {'train': 'f1'},
        'settings': {'base': {'loss': 'mse', 'max_iters': 10}, 'other': {'loss': 'cross_entropy', 'max_iters': 10}}}


def changed(*keys, value):
    """A copy of PLAN with another value at a path of keys."""
    plan = copy.deepcopy(PLAN)
    part = plan
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return plan


def test_a_study_grows(tmp_path):
    """Seeds, arms and splits of the data are added to those stored; the file has what is returned."""
    path = tmp_path / 'plan.json'
    assert merge_plan(path, PLAN) == PLAN == read_json(path)
    more = {**PLAN, 'seeds': [4, 1], 'data': {'train': 'f1', 'test': 'f2'},
            'settings': {'base': PLAN['settings']['base'], 'third': {'loss': 'squentropy'}}}
    merged = merge_plan(path, more)
    assert merged == {**PLAN, 'seeds': [1, 3, 4], 'data': {'train': 'f1', 'test': 'f2'},
                      'settings': {**PLAN['settings'], 'third': {'loss': 'squentropy'}}} == read_json(path)


@pytest.mark.parametrize('keys, value, name', [
    (('declared', 'readout'), 'softmax', 'readout'), (('data', 'train'), 'f2', 'train.bin'),
    (('settings', 'other', 'max_iters'), 20, 'other: max_iters'),
    (('settings', 'base', 'dropout'), 0.1, 'base: dropout'),
    (('settings',), {'other': PLAN['settings']['other']}, 'other')])
def test_another_study_is_refused(tmp_path, capsys, keys, value, name):
    """Another readout, data, setting or baseline is refused in one line, and the stored plan stays."""
    path = tmp_path / 'plan.json'
    merge_plan(path, PLAN)
    with pytest.raises(SystemExit) as refusal:
        merge_plan(path, changed(*keys, value=value))
    error = capsys.readouterr().err
    assert refusal.value.code == 1 and name in error and error.count('\n') == 1 and read_json(path) == PLAN


def test_a_setting_that_is_not_stored_has_its_default(tmp_path):
    """Plans of code that lacked a setting are continued with its default."""
    path, default = tmp_path / 'plan.json', launcher.train_settings()[0]['dropout']
    merge_plan(path, PLAN)
    merge_plan(path, changed('settings', 'base', 'dropout', value=default))
    assert json.loads(path.read_text())['settings']['base']['dropout'] == default


def test_damaged_json(tmp_path, capsys):
    """A damaged file is named in one line; a missing one is empty."""
    path = tmp_path / 'plan.json'
    assert read_json(path) == {}
    path.write_text('{')
    with pytest.raises(SystemExit):
        read_json(path)
    error = capsys.readouterr().err
    assert str(path) in error and error.count('\n') == 1


def test_check_writes_nothing(tmp_path):
    """check_plan returns the stored plan, may ignore a setting of all arms, and writes nothing."""
    path, other = tmp_path / 'plan.json', changed('settings', 'other', 'max_iters', value=20)
    assert check_plan(path, PLAN) == {} and not path.exists()
    merge_plan(path, PLAN)
    assert check_plan(path, other, {'max_iters'}) == PLAN == read_json(path)
    with pytest.raises(SystemExit):
        check_plan(path, other)


def test_arms_without_runs(tmp_path):
    """A loss whose runs all diverged is not part of the study that is read."""
    runs = {'a': {'1': {'readouts': {'link': {}}}}, 'b': {}}
    (tmp_path / 'results.json').write_text(json.dumps({'plan': PLAN, 'runs': runs}))
    assert read_study(f'{tmp_path}/results.json') == ('link', {'a': {'1': {'link': {}}}})


def test_kept_studies():
    """Every study in docs/studies with a declared readout can be read, by name and by path, and has that readout."""
    assert len(known_studies()) > 5
    for name in known_studies():
        readout, runs = read_study(name)
        assert (readout, runs) == read_study(f'{STUDIES}/{name}.json')
        assert all(readout in readouts for arm_runs in runs.values() for readouts in arm_runs.values())


@pytest.mark.parametrize('content', [None, '{', '{"runs": {}}'])
def test_a_file_that_is_no_study_is_refused(tmp_path, capsys, content):
    """A missing file, invalid JSON and JSON of something else get one line."""
    path = tmp_path / 'results.json'
    if content:
        path.write_text(content)
    with pytest.raises(SystemExit):
        read_study(str(path))
    assert str(path) in capsys.readouterr().err
