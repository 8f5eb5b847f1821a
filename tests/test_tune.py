"""tune.py: what may be searched, and a search that is fair, shared, killed and gone on with.

Most of the searches here train nothing: their train.py is a stand-in with the true one's settings, whose nats
are a function of them. One search trains for true.
"""
import json
import math
import os
import shutil
import signal
import time

import optuna
import pytest
import yaml
from conftest import ROOT, Started, cold, run

import searched
import spaces
from configurator import broken, fit, settings_of

DEFAULTS, RULES = settings_of(ROOT / 'train.py')
STAND_IN = '''
import json, os, time
from pathlib import Path
folder = Path(out_dir)
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / 'starts.txt', 'a') as f:
    f.write(folder.name + ' ' + init_from + '\\n')
nats = 3 + abs(learning_rate - 0.01) * 100 + dropout
metrics = folder / 'metrics.jsonl'
begin = json.loads(metrics.read_text().splitlines()[-1])['iter'] + 1 if init_from == 'resume' else 0
with open(metrics, 'a') as f:
    for it in range(begin, max_iters + 1):
        time.sleep(PAUSE)
        line = {'iter': it, 'seconds': it * 0.01, 'tokens': it * batch_size * block_size * gradient_accumulation_steps}
        if learning_rate > 0.02 and it > max_iters // 2:
            fail('diverged', status=3)
        if weight_decay > 0.5:
            fail('disk full')
        if it % eval_interval == 0 or it == max_iters:
            line['val_nats'] = nats + (1 - it / max(max_iters, 1))
            line['eval_windows'] = eval_iters * batch_size
        else:
            line['loss'] = 1.0
        f.write(json.dumps(line) + '\\n')
        f.flush()
        (folder / 'ckpt.pt').write_text('state')
        if 'val_nats' in line:
            print(f'iter {it}: val loss 1, nats {nats}', flush=True)
'''
SPACE = "learning_rate = (0.001, 0.019)\ndropout = [0.0, 0.1]\n"


@pytest.fixture
def place(tiny_data, tmp_path):
    """A copy of the scripts with the stand-in for train.py, and data."""
    for path in ROOT.glob('*.py'):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / 'config', tmp_path / 'config')
    shutil.copytree(tiny_data, tmp_path / 'bytes')
    (tmp_path / 'space.py').write_text(SPACE)
    stand_in(tmp_path)
    return tmp_path


def stand_in(place, pause=0.0):
    head = (ROOT / 'train.py').read_text().partition('# setup (torch')[0]
    (place / 'train.py').write_text(head + STAND_IN.replace('PAUSE', str(pause)))


FLAGS = ['--dataset=bytes', '--space=space.py', '--study=s', '--iters=8']


def tune(place, *flags):
    return run(place / 'tune.py', *FLAGS, *flags, cwd=place)


def begin(place, *flags):
    return Started(place / 'tune.py', *FLAGS, *flags, cwd=place)


def trials(place):
    study = optuna.load_study(storage=f'sqlite:///{place}/s/study.db', study_name='s')
    return study, searched.finished(study)


def starts(place):
    return (place / 's/trials/starts.txt').read_text().split('\n')[:-1]


def test_a_search(place):
    """It finds the best of its trials, prunes only at half of the schedule, and says all of it in three files;
    with the same seed it draws the same, and more --trials go on with it."""
    status, out, err = tune(place, '--trials=8')
    assert status == 0 and err == '', err
    _, done = trials(place)
    assert len(done) == 8 and [t.number for t in done] == list(range(8))
    assert done[0].params == {'learning_rate': 0.004, 'dropout': 0.0}  # train.py's own settings
    for t in done:
        assert set(t.intermediate_values) <= {2, 3}  # of the evaluations 0 to 4
        if t.state.name == 'COMPLETE':
            assert t.value == pytest.approx(3 + abs(t.params['learning_rate'] - 0.01) * 100 + t.params['dropout'])
    assert {t.state.name for t in done} == {'COMPLETE', 'PRUNED'}
    best = min(done, key=searched.nats)
    found = {}
    exec((place / 's/best.py').read_text(), found)
    assert found['learning_rate'] == best.params['learning_rate'] and found['dataset'] == 'bytes'
    assert 'max_iters' not in found and 'out_dir' not in found
    table = (place / 's/table.md').read_text()
    assert f'| {best.number} | {best.value:.4f} |' in table and 'pruned at' in table and '| 1 | 2 | 4 | 8 |' in table
    assert (place / 's/search.png').stat().st_size > 10_000
    kept = [path.parent.name for path in (place / 's/trials').glob('*/ckpt.pt')]
    assert kept == [f'{best.number:04}']  # the weights of the others are gone
    seen = {t.number: t.params for t in done}

    status, out, err = tune(place, '--trials=10')
    assert status == 0 and '9 of 10' in out and '1 of 10' not in out, (out, err)
    assert {t.number: t.params for t in trials(place)[1][:8]} == seen and len(starts(place)) == 10
    status, again, err = tune(place, '--trials=10', '--show=True')
    assert status == 0 and 'best: trial' in again and len(starts(place)) == 10
    os.rename(place / 's', place / 'first')
    assert tune(place, '--trials=8')[0] == 0
    assert {t.number: t.params for t in trials(place)[1]} == seen


@pytest.mark.parametrize('number', [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed(place, number):
    """A killed search goes on: no finished trial is run again, the one at work goes on from its checkpoint."""
    stand_in(place, pause=0.15)
    process = begin(place, '--trials=4', '--prune=False')
    while not (place / 's/trials/0002/ckpt.pt').exists():
        assert not process.ended(), process.finish()
        time.sleep(0.01)
    process.send(number)
    status, out, err = process.finish()
    assert status == 128 + number and err == '' and ('goes on with this search' in out) == (number == signal.SIGTERM)
    before = {t.number: t.value for t in trials(place)[1]}
    status, out, err = tune(place, '--trials=4', '--prune=False')
    assert status == 0, err
    _, done = trials(place)
    assert len(done) == 4 and all(t.value == before[t.number] for t in done if t.number in before)
    assert starts(place) == ['0000 scratch', '0001 scratch', '0002 scratch', '0002 resume', '0004 scratch']


def test_two_at_once(place):
    """Processes share a search: together they finish just so many trials, each once."""
    stand_in(place, pause=0.02)
    both = [begin(place, '--trials=7', '--prune=False') for _ in range(2)]
    for process in both:
        status, _, err = process.finish()
        assert status == 0 and err == '', err
    assert len(trials(place)[1]) == 7 and sorted(starts(place)) == [f'{n:04} scratch' for n in range(7)]


def test_diverged(place):
    """A trial that diverges is a result, a uniform guess's; one that fails ends the search; where none of them
    has finished there is nothing to show."""
    (place / 'space.py').write_text('learning_rate = [0.004, 0.03]')
    status, out, err = tune(place, '--sampler=grid')
    assert status == 0 and '2 of 2: trial 1: diverged' in out, err
    _, done = trials(place)
    assert [t.value for t in done] == pytest.approx([3.6, math.log(256)])
    (place / 'space.py').write_text('learning_rate = [0.03, 0.04]')
    status, out, err = tune(place, '--sampler=grid', '--study=t')
    assert status == 1 and err == 'error: --study=t: no trial has finished, 2 diverged or were pruned; go on with ' \
        'it, or search lower learning rates\n'
    status, out, err = tune(place, '--study=u', '--weight_decay=0.6')
    assert status == 1 and err.count('\n') == 1 and 'trial 0: train.py ended with status 1 (error: disk full)' in err, err


def test_failed(place):
    """A trial that failed runs again at the next start, so that each point of a grid is finished once."""
    (place / 'space.py').write_text('learning_rate = [0.004, 0.007]\nweight_decay = [0.1, 0.6]')
    status, _, err = tune(place, '--sampler=grid')
    assert status == 1 and 'disk full' in err, err
    text = (place / 'train.py').read_text()
    (place / 'train.py').write_text(text.replace('if weight_decay > 0.5:', 'if False:'))
    status, _, err = tune(place, '--sampler=grid')
    assert status == 0, err
    points = [tuple(t.params.values()) for t in trials(place)[1]]
    assert sorted(points) == [(0.004, 0.1), (0.004, 0.6), (0.007, 0.1), (0.007, 0.6)]


def test_same_tokens(place):
    """Trials with other batch sizes get the same tokens, and are measured on as many windows."""
    (place / 'space.py').write_text('batch_size = [2, 4, 8]\nn_layer = [1, 2]')
    status, out, err = tune(place, '--sampler=grid')
    assert status == 0, err
    study, done = trials(place)
    assert {t.user_attrs['iters'] * t.params['batch_size'] for t in done} == {8 * 8} and len(done) == 6
    for t in done:
        last = json.loads((place / 's' / t.user_attrs['place'] / 'metrics.jsonl').read_text().splitlines()[-1])
        assert last['eval_windows'] == 160 and last['tokens'] == 64 * 256


@pytest.mark.slow
def test_seconds(place):
    """With --budget_seconds a trial gets the iterations that its speed allows, and runs alone."""
    stand_in(place, pause=0.01)  # and 0.01 s an iteration is what it claims to take
    flags = ['--iters=0', '--trials=2', '--budget_seconds=0.5']
    process = begin(place, *flags)
    while not (place / 's/trials/0000').exists():
        assert not process.ended(), process.finish()
        time.sleep(0.02)
    status, _, err = tune(place, *flags)
    assert status == 1 and 'another tune.py is at work there' in err and err.count('\n') == 1, err
    status, _, err = process.finish()
    assert status == 0, err
    assert [t.user_attrs['iters'] for t in trials(place)[1]] == [50, 50]


def test_another_search(place):
    """A study of other settings, space, budget or data is refused and stays as it was."""
    assert tune(place, '--trials=1')[0] == 0
    before = (place / 's/study.db').read_bytes()
    for flags, says in ((['--loss=mse'], 'loss None -> mse'), (['--iters=9'], 'iterations 8 -> 9'),
                        (['--sampler_seed=2'], 'sampler_seed 1 -> 2'),
                        (['--space=config/space_default.py'], 'weight_decay None -> 0.01 to 1 (log)')):
        status, _, err = tune(place, '--trials=1', *flags)
        assert status == 1 and says in err and 'give another --study' in err and err.count('\n') == 1, err
    (place / 's/trials/0000/ckpt.pt').unlink()
    assert (place / 's/study.db').read_bytes() == before
    for flags, says in ((['--out_dir=x'], 'tune.py sets out_dir itself'), (['--study=none', '--show=True'], 'no study'),
                        (['--storage=nosuch://x'], 'cannot be opened'), (['--dataset=nowhere'], 'no train.bin'),
                        (['--space=nowhere.py'], 'config/space_default.py'), (['--study=bytes/train.bin'], 'another'),
                        (['--sampler=grid'], 'learning_rate is a range'), (['--study=..'], 'no name for a folder'),
                        (['--storage=typo.log', '--show=True'], 'there is no study'),
                        (['--init_from=resume'], 'goes on without it')):
        status, _, err = tune(place, *flags)
        assert status in (1, 2) and says in err and err.count('\n') == 1, err
    assert not (place / 'typo.log').exists()
    (place / 's/study.db').write_text('no database at all, but a text that somebody put here')
    status, _, err = tune(place, '--trials=1')
    assert status == 1 and 'study.db cannot be opened' in err and err.count('\n') == 1, err


def test_journal(place):
    """A search in a journal file, as several machines with one file system would share it."""
    status, _, err = tune(place, '--trials=2', '--storage=journal.log')
    assert status == 0 and (place / 'journal.log').exists() and not (place / 's/study.db').exists(), err
    status, out, err = tune(place, '--trials=2', '--storage=journal.log', '--show=True')
    assert status == 0 and 'best: trial' in out, err


@pytest.mark.slow
def test_for_true(tiny_data, tmp_path):
    """A search that trains: its nats are those of the trial's metrics, and best.py trains."""
    (tmp_path / 'space.py').write_text('learning_rate = (1e-3, 1e-2)\nwarmup_iters = [0, 2]')
    shape = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32', f'--dataset={tiny_data}', '--eval_iters=1']
    status, out, err = cold(ROOT / 'tune.py', ROOT / 'config/train_tinystories_squentropy.py', *shape, '--trials=2',
                            '--iters=8', f'--space={tmp_path}/space.py', cwd=tmp_path, OMP_NUM_THREADS='1')
    assert status == 0, err
    folder = tmp_path / 'studies/squentropy_muon'
    study = optuna.load_study(storage=f'sqlite:///{folder}/study.db', study_name='squentropy_muon')
    for t in searched.finished(study):
        entries = [json.loads(line) for line in (folder / t.user_attrs['place'] / 'metrics.jsonl').read_text().splitlines()]
        nats = {entry['iter']: entry['val_nats'] for entry in entries if 'val_nats' in entry}
        assert t.value == nats[8 if t.state.name == 'COMPLETE' else 2 * t.last_step]
    status, out, err = cold(ROOT / 'train.py', folder / 'best.py', '--max_iters=2', '--sample_tokens=0', cwd=tmp_path)
    assert status == 0 and 'done: best validation' in out, err


SPACES = [
    ('', 'holds nothing to search'),
    ('_x = 1\nfor i in range(3): pass', 'holds nothing to search'),
    ('learning_rat = (1e-4, 1e-1)', 'train.py has no setting learning_rat'),
    ('learning_rate = 5e-4', 'what is fixed is a flag'),
    ('learning_rate = (1e-1, 1e-4)', 'with low < high'),
    ('learning_rate = (0.0, 1e-1, "log")', 'low > 0'),
    ('learning_rate = (1e-4, 1e-1, "lin")', "or (low, high, 'log')"),
    ('learning_rate = (1e-4,)', 'a range is'),
    ('learning_rate = (1e-4, float("inf"))', 'a range is'),
    ('n_layer = (1, 2.5)', 'of type int'),
    ('loss = ("mse", "squentropy")', 'of type str'),
    ('loss = []', 'give different choices'),
    ('dropout = [0.1, 0.1]', 'give different choices'),
    ('dropout = [0.1, "no"]', 'give different choices of type float'),
    ('dropout = (0.0, 1.5)', '0 <= dropout < 1 does not hold: dropout=1.5'),
    ('muon_learning_rate = (1e-4, 1e-1)', '--optimizer=muon'),
    ('block_size = [128, 256]', 'cannot be searched'),
    ('seed = (1, 9)', 'cannot be searched'),
    ('out_dir = ["a", "b"]', 'cannot be searched'),
    ('learning_rate = (', 'SyntaxError'),
    ('learning_rate = nothing', 'NameError'),
]


@pytest.mark.parametrize('text,says', SPACES)
def test_bad_space(tmp_path, text, says):
    """A space that cannot be searched: one line for each mistake, with the file's name."""
    (tmp_path / 'space.py').write_text(text)
    with pytest.raises(ValueError, match='--space=') as caught:
        spaces.read(str(tmp_path / 'space.py'), dict(DEFAULTS), DEFAULTS, RULES)
    assert says in caught.value.args[0] and '\n' not in caught.value.args[0]


def test_default_space():
    """Every loss is searched in the same ranges, and besides in its own constants."""
    of = {loss: spaces.read('config/space_default.py', {**DEFAULTS, 'loss': loss, 'max_iters': 400}, DEFAULTS, RULES)
          for loss in ('cross_entropy', 'squentropy', 'mse')}
    shared = ['learning_rate', 'dropout', 'warmup_iters', 'weight_decay', 'grad_clip']
    assert list(of['cross_entropy']) == shared
    assert list(of['squentropy']) == [*shared, 'squentropy_weight']  # in this order, so the first draws are alike
    assert list(of['mse']) == [*shared, 'mse_true_weight', 'mse_target']
    assert all(of[loss][name] == of['cross_entropy'][name] for loss in of for name in shared)
    assert spaces.text(of['mse']['warmup_iters']) == '4 to 100'
    points = spaces.grid(spaces.read('config/space_original_study.py', dict(DEFAULTS), DEFAULTS, RULES))
    assert len(points) == 27 and len({tuple(point.values()) for point in points}) == 27


def test_wandb_sweep():
    """The sweep's parameters and flags are settings of train.py, and its ranges are the default space's."""
    sweep = yaml.safe_load((ROOT / 'config/wandb_sweep.yaml').read_text())
    flags = dict(part.removeprefix('--').split('=') for part in sweep['command'] if part.startswith('--'))
    space = spaces.read('config/space_default.py', {**DEFAULTS, 'loss': 'squentropy', 'max_iters': int(flags['max_iters'])},
                        DEFAULTS, RULES)
    assert set(flags) <= set(DEFAULTS) and set(sweep['parameters']) == set(space)
    for name, what in sweep['parameters'].items():
        ends = what.get('values') or (what['min'], what['max'])
        assert tuple(ends) == tuple(spaces.ends(space[name]))
        for end in ends:
            assert fit(end, type(DEFAULTS[name])) is not None
            assert not broken(RULES, {**DEFAULTS, 'loss': 'squentropy', name: end})
