"""tune.py: fair trials, several processes on one search, kills and failures.

train.py is replaced by a stand-in with the same settings, whose validation loss is a function of them.
Only one slow test trains a model.
"""
import json
import math
import os
import shutil
import signal
import sqlite3
import time

import numpy as np
import optuna
import pytest
from conftest import ROOT, Started, cold, run, settings_of

from nanoloss.search_report import final_nats, finished_trials

STAND_IN = '''
import json, time
from pathlib import Path
folder = Path(out_dir)
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / 'starts.txt', 'a') as f:
    f.write(folder.name + ' ' + init_from + '\\n')
(folder / 'matmul').write_text(matmul)
metrics = folder / 'metrics.jsonl'
first = json.loads(metrics.read_text().splitlines()[-1])['iter'] + 1 if init_from == 'resume' else 0
with open(metrics, 'a') as f:
    for it in range(first, max_iters + 1):
        time.sleep(PAUSE)
        if learning_rate > 0.02 and it > max_iters // 2:
            raise SystemExit(3)
        if weight_decay > 0.5:
            raise SystemExit('error: disk full')
        line = {'iter': it, 'seconds': it * 0.01, 'tokens': it * batch_size * block_size * gradient_accumulation_steps}
        evaluate = it % eval_interval == 0 or it == max_iters
        if evaluate:
            line['val_nats'] = 3 + abs(learning_rate - 0.01) * 100 + dropout + (1 - it / max_iters)
            line['eval_windows'] = eval_windows or eval_iters * batch_size
        else:
            line['loss'] = 1.0
        f.write(json.dumps(line) + '\\n')
        f.flush()
        (folder / 'ckpt.pt').write_text('state')
        if evaluate:
            print(f'iter {it}: val loss 1', flush=True)
'''


def stand_in(folder, pause=0.0):
    """Write the stand-in: the settings of train.py, their checks, and PAUSE seconds per iteration."""
    (folder / 'train.py').write_text(settings_of('train.py') + STAND_IN.replace('PAUSE', str(pause)))


@pytest.fixture
def repo(tmp_path):
    """A copy of the repository with the stand-in for train.py, a data set of GPT-2 tokens and a search space."""
    for path in ROOT.glob('*.py'):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / 'nanoloss', tmp_path / 'nanoloss', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'config', tmp_path / 'config')
    (tmp_path / 'tokens').mkdir()
    for split in ('train', 'val'):
        np.arange(1000, dtype='<u2').tofile(tmp_path / f'tokens/{split}.bin')
    (tmp_path / 'space.py').write_text('learning_rate = (0.001, 0.019)\ndropout = [0.0, 0.1]\n')
    stand_in(tmp_path)
    return tmp_path


FLAGS = ['--dataset=tokens', '--space=space.py', '--study=s', '--iters=8', '--matmul=torch']


def tune(repo, *flags):
    return run(repo / 'tune.py', *FLAGS, *flags, cwd=repo)


def start(repo, *flags):
    return Started(repo / 'tune.py', *FLAGS, *flags, cwd=repo)


def wait_for(path, process):
    while not path.exists():
        assert not process.ended(), process.finish()
        time.sleep(0.01)


def trials(repo):
    return finished_trials(optuna.load_study(storage=f'sqlite:///{repo}/s/study.db', study_name='s'))


def starts(repo):
    """'<folder> <init_from>' of each run of train.py."""
    return (repo / 's/trials/starts.txt').read_text().split('\n')[:-1]


def test_search(repo):
    """A search starts from the settings, prunes from half of the run on, keeps the best checkpoint, reports, and can
    be extended without repeating a trial."""
    status, _, err = tune(repo, '--trials=6')
    assert status == 0 and err == '', err
    done = trials(repo)
    assert [t.number for t in done] == [*range(6)]
    assert done[0].params == {'learning_rate': 0.004, 'dropout': 0.0}  # defaults of train.py
    for t in done:
        assert set(t.intermediate_values) <= {2, 3}  # of the evaluations 0 to 4
        if t.state.name == 'COMPLETE':
            assert t.value == pytest.approx(3 + abs(t.params['learning_rate'] - 0.01) * 100 + t.params['dropout'])
    assert {t.state.name for t in done} == {'COMPLETE', 'PRUNED'}
    best = min(done, key=final_nats)
    config = {}
    exec((repo / 's/best.py').read_text(), config)
    assert config['learning_rate'] == best.params['learning_rate'] and config['dataset'] == 'tokens'
    assert 'max_iters' not in config and 'out_dir' not in config
    assert (repo / 's/table.md').exists() and (repo / 's/search.png').exists()
    assert [path.parent.name for path in (repo / 's/trials').glob('*/ckpt.pt')] == [f'{best.number:04}']

    status, _, err = tune(repo, '--trials=7')
    assert status == 0, err
    assert [t.params for t in trials(repo)[:6]] == [t.params for t in done] and len(starts(repo)) == 7


def replace_matmul(repo, code):
    """Append code to the copy of nanoloss/matmul.py."""
    with open(repo / 'nanoloss/matmul.py', 'a') as f:
        f.write(code)


@pytest.mark.slow
def test_trials_share_a_library(repo):
    """All trials get the library that the study recorded when it started, not auto. A record of auto does not count."""
    replace_matmul(repo, 'HAS_ONEDNN = True\n')  # the stand-in computes nothing
    for number, library in enumerate((None, 'torch', 'onednn', 'auto')):
        if library:
            optuna.load_study(storage=f'sqlite:///{repo}/s/study.db', study_name='s').set_user_attr('matmul', library)
        status, _, err = tune(repo, f'--trials={number + 1}', '--matmul=auto')
        assert status == 0, err
        used = (repo / f's/trials/{number:04}/matmul').read_text()
        assert used == library or library in (None, 'auto') and used in ('torch', 'onednn')
        study = optuna.load_study(storage=f'sqlite:///{repo}/s/study.db', study_name='s')
        assert study.user_attrs['matmul'] == used


def test_machines_end_with_one_library(repo):
    """If another machine stores its choice while this one is choosing, the other choice is used."""
    replace_matmul(repo, f'''
def faster_library(config, rows):
    import optuna
    study = optuna.load_study(storage='sqlite:///{repo}/s/study.db', study_name='s')
    study.set_user_attr('matmul', 'torch')
    return 'onednn'
''')
    status, _, err = tune(repo, '--trials=1', '--matmul=auto')
    assert status == 0 and (repo / 's/trials/0000/matmul').read_text() == 'torch', err


def test_library_is_missing(repo):
    """A machine without the library of the study ends in one line before it starts a trial."""
    replace_matmul(repo, '''
HAS_ONEDNN = False
def faster_library(config, rows):
    return 'torch'
''')
    assert tune(repo, '--trials=1', '--matmul=auto')[0] == 0
    optuna.load_study(storage=f'sqlite:///{repo}/s/study.db', study_name='s').set_user_attr('matmul', 'onednn')
    status, _, err = tune(repo, '--trials=2', '--matmul=auto')
    assert status == 1 and '--matmul' in err and err.count('\n') == 1 and len(starts(repo)) == 1


@pytest.mark.slow
def test_reproducible(repo):
    """The same sampler seed draws the same values, also in a search that is continued."""
    assert tune(repo, '--trials=6')[0] == 0
    whole = [t.params for t in trials(repo)]
    os.rename(repo / 's', repo / 'whole')
    assert tune(repo, '--trials=6', '--sampler=random')[0] == 0
    assert [t.params for t in trials(repo)][1:] != whole[1:]
    os.rename(repo / 's', repo / 'random')
    process = start(repo, '--trials=6')
    wait_for(repo / 's/trials/0003', process)
    process.send(signal.SIGKILL)
    process.finish()
    assert tune(repo, '--trials=6')[0] == 0
    assert [t.params for t in trials(repo)][:4] == whole[:4]


@pytest.mark.parametrize('number', [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed(repo, number):
    """After a kill, finished trials are kept and the interrupted one resumes from its checkpoint."""
    stand_in(repo, pause=0.1)
    process = start(repo, '--trials=3', '--prune=False')
    wait_for(repo / 's/trials/0001/ckpt.pt', process)
    process.send(number)
    status, _, err = process.finish()
    assert status == 128 + number and err == ''
    [first] = trials(repo)
    status, _, err = tune(repo, '--trials=3', '--prune=False')
    assert status == 0, err
    done = trials(repo)
    assert len(done) == 3 and done[0].value == first.value
    assert starts(repo) == ['0000 scratch', '0001 scratch', '0001 resume', '0003 scratch']


def test_two_processes(repo):
    """Two processes share a search: together they finish the requested number of trials, each one once."""
    stand_in(repo, pause=0.01)
    processes = [start(repo, '--trials=5', '--prune=False') for _ in range(2)]
    for process in processes:
        status, _, err = process.finish()
        assert status == 0 and err == '', err
    assert len(trials(repo)) == 5 and sorted(starts(repo)) == [f'{n:04} scratch' for n in range(5)]


def test_diverged(repo):
    """A trial that diverges is a result with the value of a uniform guess."""
    (repo / 'space.py').write_text('learning_rate = [0.004, 0.03]')
    status, _, err = tune(repo, '--sampler=grid')
    assert status == 0, err
    assert [t.value for t in trials(repo)] == pytest.approx([3.6, math.log(50257)])


def test_failed(repo):
    """A failed trial ends the search and runs again in the next one, so that each grid point finishes once."""
    (repo / 'space.py').write_text('weight_decay = [0.1, 0.6]\nbatch_size = [6, 8]')
    status, _, err = tune(repo, '--sampler=grid')
    assert status == 1 and 'log.txt' in err and err.count('\n') == 1
    (repo / 'train.py').write_text((repo / 'train.py').read_text().replace('if weight_decay > 0.5:', 'if False:'))
    status, _, err = tune(repo, '--sampler=grid')
    assert status == 0, err
    done = trials(repo)
    assert sorted(tuple(t.params.values()) for t in done) == [(0.1, 6), (0.1, 8), (0.6, 6), (0.6, 8)]
    for t in done:  # with another batch size, as many tokens (66 windows of training are nearest to 64) and windows
        folder = repo / 's/trials' / t.user_attrs.get('folder', f'{t.number:04}')
        last = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])
        trained = t.user_attrs['iters'] * t.params['batch_size']
        assert trained == {6: 66, 8: 64}[t.params['batch_size']]
        assert last['eval_windows'] == 160 and last['tokens'] == trained * 256


@pytest.mark.slow
def test_budget_seconds(repo):
    """With --budget_seconds the iterations of a trial follow from its speed, and a second process is refused."""
    stand_in(repo, pause=0.01)  # the stand-in reports 0.01 s per iteration
    flags = ['--iters=0', '--trials=2', '--budget_seconds=0.5']
    process = start(repo, *flags)
    wait_for(repo / 's/trials/0000', process)
    status, _, err = tune(repo, *flags)
    assert status == 1 and '--budget_seconds' in err and err.count('\n') == 1
    status, _, err = process.finish()
    assert status == 0, err
    assert [t.user_attrs['iters'] for t in trials(repo)] == [50, 50]


def test_different_search(repo):
    """A study of other settings, space, budget or sampler is refused and stays unchanged."""
    assert tune(repo, '--trials=1')[0] == 0
    before = (repo / 's/study.db').read_bytes()
    for flag, name in (('--loss=mse', 'loss'), ('--iters=9', 'iterations'), ('--sampler_seed=2', 'sampler_seed'),
                       ('--space=config/space_default.py', 'weight_decay')):
        status, _, err = tune(repo, '--trials=1', flag)
        assert status == 1 and name in err and '--study' in err and err.count('\n') == 1, err
    assert (repo / 's/study.db').read_bytes() == before
    (repo / 's/study.db').write_text('not a database, but long enough to be read as one')
    status, _, err = tune(repo, '--trials=1')
    assert status == 1 and 'study.db' in err and err.count('\n') == 1, err


@pytest.mark.parametrize('flags,name', [
    (['--out_dir=x'], '--out_dir'),
    (['--study=none', '--show=True'], '--study=none'),
    (['--storage=typo.log', '--show=True'], '--study=s'),
    (['--storage=nosuch://x'], '--storage'),
    (['--dataset=nowhere'], '--dataset'),
    (['--study=tokens/train.bin'], '--study'),
    (['--storage=tokens/train.bin/journal.log'], '--storage'),
    (['--storage=sqlite://x:y/z'], '--storage'),
    (['--storage=nowhere/journal.log'], '--storage'),
    (['--storage=sqlite:///nowhere/study.db'], '--storage'),
    (['--study=..'], 'study'),
    (['--init_from=resume'], 'init_from'),
    (['eval.py'], 'eval_only'),
])
def test_bad_flags(repo, flags, name):
    """A mistake gives one line with the name of the flag, and no journal file is created."""
    (repo / 'eval.py').write_text('eval_only = True')  # a config file, as nanoGPT has them
    status, _, err = tune(repo, *flags)
    assert status in (1, 2) and name in err and err.count('\n') == 1, err
    assert not (repo / 'typo.log').exists() and not (repo / 'nowhere').exists()


def test_journal(repo):
    """A journal file can hold the study instead of study.db; --show reports it without running a trial. An incomplete
    last line, left by a kill, does no harm; a file that is not a journal stays as it is."""
    (repo / 's').mkdir()
    (repo / 's/folder_id').write_text('ffffffff')  # it is added to the seed
    flags = ['--storage=journal.log', f'--sampler_seed={2**20 - 1}', '--prune=False']
    status, _, err = tune(repo, *flags, '--trials=1')
    assert status == 0 and (repo / 'journal.log').exists() and not (repo / 's/study.db').exists(), err
    os.remove(repo / 's/table.md')
    status, _, err = tune(repo, *flags, '--show=True')
    assert status == 0 and (repo / 's/table.md').exists() and starts(repo) == ['0000 scratch'], err

    complete = (repo / 'journal.log').read_bytes()
    (repo / 'journal.log').write_bytes(complete + complete.splitlines()[-1][:20])
    status, _, err = tune(repo, *flags, '--trials=2')
    assert status == 0, err
    backend = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(repo / 'journal.log')))
    assert len(finished_trials(optuna.load_study(storage=backend, study_name='s'))) == 2
    assert (repo / 'journal.log').read_bytes().startswith(complete)
    (repo / 'notes').write_text('not a journal\nits last line')
    status, _, err = tune(repo, '--storage=notes')
    assert status == 1 and 'notes' in err and err.count('\n') == 1
    assert (repo / 'notes').read_text() == 'not a journal\nits last line'


def test_any_folder_name(repo):
    """The database lies in the folder of the study, whatever its name."""
    name = 'a?b#c%20d {e}=f&g'
    status, _, err = tune(repo, '--trials=1', f'--study={name}')
    assert status == 0 and (repo / name / 'study.db').exists(), err
    os.remove(repo / name / 'table.md')
    status, _, err = tune(repo, '--show=True', f'--study={name}')
    assert status == 0 and (repo / name / 'table.md').exists(), err


def test_machines_start_at_once(repo, tmp_path_factory):
    """Machines, each with its own folder, start on the same new storage: each point of the grid is run once."""
    (repo / 'space.py').write_text('learning_rate = [0.001, 0.004, 0.007]')
    flags = [f'--storage=sqlite:///{repo}/shared.db', f'--dataset={repo}/tokens', f'--space={repo}/space.py',
             '--sampler=grid']
    processes = [Started(repo / 'tune.py', *FLAGS, *flags, cwd=tmp_path_factory.mktemp('machine')) for _ in range(3)]
    for process in processes:
        status, _, err = process.finish()
        assert status == 0 and err == '', err
    done = finished_trials(optuna.load_study(storage=f'sqlite:///{repo}/shared.db', study_name='s'))
    assert sorted(t.params['learning_rate'] for t in done) == [0.001, 0.004, 0.007]


def test_tables_are_created_by_another_machine(repo):
    """If the tables cannot be created, because another machine is creating them, the search tries again."""
    with sqlite3.connect(repo / 'shared.db') as database:
        database.execute('CREATE TABLE other (x)')
        database.execute('CREATE INDEX trial_values ON other (x)')  # no table can be called so
    process = start(repo, f'--storage=sqlite:///{repo}/shared.db', '--trials=1')
    while not database.execute('SELECT * FROM sqlite_master WHERE name = "trials"').fetchone():
        assert not process.ended(), process.finish()
        time.sleep(0.01)
    time.sleep(0.2)  # trial_values comes after trials
    database.execute('DROP INDEX trial_values')
    status, _, err = process.finish()
    assert status == 0 and err == '', err


@pytest.mark.slow
def test_training(tiny_data, tmp_path):
    """With the real train.py, the value of a trial is the val_nats of its metrics, and best.py trains."""
    (tmp_path / 'space.py').write_text('learning_rate = (1e-3, 1e-2)\nwarmup_iters = [0, 2]')
    shape = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32', f'--dataset={tiny_data}', '--eval_iters=1']
    status, _, err = cold(ROOT / 'tune.py', ROOT / 'config/train_tinystories_squentropy.py', *shape, '--trials=2',
                          '--iters=8', f'--space={tmp_path}/space.py', cwd=tmp_path, OMP_NUM_THREADS='1')
    assert status == 0, err
    folder = tmp_path / 'studies/squentropy_muon'
    study = optuna.load_study(storage=f'sqlite:///{folder}/study.db', study_name='squentropy_muon')
    for t in finished_trials(study):
        lines = (folder / f'trials/{t.number:04}/metrics.jsonl').read_text().splitlines()
        nats = {entry['iter']: entry['val_nats'] for entry in map(json.loads, lines) if 'val_nats' in entry}
        assert t.value == nats[8 if t.state.name == 'COMPLETE' else 2 * t.last_step]
    status, _, err = cold(ROOT / 'train.py', folder / 'best.py', '--max_iters=2', '--out_dir=out', cwd=tmp_path)
    assert status == 0 and (tmp_path / 'out/best.pt').exists(), err
