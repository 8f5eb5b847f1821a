"""Runs of train.py as subprocesses. A stand-in takes its place here: it prints its flags and writes a few metrics."""
import threading

import pytest
from conftest import cold

from nanoloss import launcher

STAND_IN = '''
import json, sys, time
from pathlib import Path
flags = dict(flag[2:].split('=', 1) for flag in sys.argv[1:])
print(' '.join(sys.argv[1:]) or 'no flags', flush=True)
folder = Path(flags.get('out_dir', '.'))
folder.mkdir(parents=True, exist_ok=True)
with open(folder / 'metrics.jsonl', 'w') as f:
    for i in (0, 20):
        f.write(json.dumps({'iter': i, 'loss': 1.0, 'seconds': 1 + i / 40}) + '\\n')
if flags.get('loss') == 'sleep':
    time.sleep(60)
print(flush=True)
sys.exit(int(flags.get('seed', 0)))
'''
DEFAULTS = {'loss': 'mse', 'seed': 0, 'out_dir': '', 'sample_tokens': 0, 'learning_rate': 0.1, 'max_iters': 100,
            'eval_iters': 10, 'eval_windows': 0, 'log_interval': 10, 'eval_interval': 10, 'context_warmup': 0.0,
            'wandb_log': False}


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the stand-in writes to the current folder if there is no --out_dir
    (tmp_path / 'train.py').write_text(STAND_IN)
    monkeypatch.setattr(launcher, 'TRAIN', tmp_path / 'train.py')
    monkeypatch.setattr(launcher, 'ROOT', tmp_path)
    monkeypatch.setattr(launcher, 'train_settings', lambda: (DEFAULTS, [], []))
    monkeypatch.setattr(launcher, 'STOPPING', threading.Event())


def test_import_reads_nothing():
    """On import, neither torch is imported nor train.py read."""
    code = 'import sys; from nanoloss import launcher; sys.exit("torch" in sys.modules or ' \
           'launcher.train_settings.cache_info().currsize)'
    assert cold('-c', code)[0] == 0



def test_training_gets_what_differs_from_the_defaults(tmp_path):
    """Only changed settings become flags, overrides win, the exit status is returned and the output is logged."""
    settings = {**DEFAULTS, 'learning_rate': 0.25, 'seed': 5}
    status, last = launcher.run_training(settings, tmp_path / 'a', seed=3, out_dir=str(tmp_path))
    assert status == 3 and set(last.split()) == {'--learning_rate=0.25', '--seed=3', f'--out_dir={tmp_path}'}
    assert launcher.run_training(DEFAULTS, tmp_path / 'a') == (0, 'no flags')
    assert (tmp_path / 'a/log.txt').read_text().split('\n') == [last, '', 'no flags', '', '']


def test_a_line_can_end_a_run(tmp_path):
    """on_line sees each line; the run is killed when it returns False."""
    lines = []
    status, _ = launcher.run_training({**DEFAULTS, 'loss': 'sleep', 'out_dir': str(tmp_path)}, tmp_path,
                                      on_line=lambda line: lines.append(line))
    assert status < 0 and len(lines) == 1 and '--loss=sleep' in lines[0] and not launcher.RUNNING


def test_stop_all(tmp_path, capsys):
    """stop_all ends the runs at work and those that start later; a measurement that is stopped prints nothing."""
    settings, results = {**DEFAULTS, 'loss': 'sleep', 'out_dir': str(tmp_path)}, []
    started = threading.Event()
    thread = threading.Thread(target=lambda: results.append(
        launcher.run_training(settings, tmp_path, on_line=lambda line: started.set() or True)))
    thread.start()
    assert started.wait(30)
    launcher.stop_all()
    thread.join(30)
    results.append(launcher.run_training(settings, tmp_path))
    assert [status < 0 for status, _ in results] == [True, True]
    with pytest.raises(SystemExit) as stopped:
        launcher.measure_speed(settings, tmp_path)
    assert stopped.value.code == 130 and capsys.readouterr().err == ''


def test_script(tmp_path):
    """A script's output, errors and exit status are returned; threads become OMP_NUM_THREADS."""
    (tmp_path / 'some.py').write_text('import os, sys; print(os.environ["OMP_NUM_THREADS"], *sys.argv[1:])\n'
                                      'sys.exit("wrong")')
    assert launcher.run_script('some.py', ['--a=1'], threads=3) == ('3 --a=1\n', 'wrong\n', 1)


def test_text_between_processes_is_utf8(tmp_path, monkeypatch):
    """Flags and output keep every character, whatever encoding the terminal has."""
    monkeypatch.setenv('PYTHONIOENCODING', 'cp1252')
    (tmp_path / 'some.py').write_text('import sys; print(sys.argv[1]); sys.exit(sys.argv[1])')
    text = '--start=Größe, データ, 🎉'
    assert launcher.run_script('some.py', [text]) == (f'{text}\n', f'{text}\n', 1)
    lines = []
    _, last = launcher.run_training({**DEFAULTS, 'out_dir': 'データ'}, tmp_path, on_line=lambda s: lines.append(s) or True)
    assert last == '--out_dir=データ' == lines[0].strip()
    assert (tmp_path / 'log.txt').read_text(encoding='utf-8') == ''.join(lines)


def test_speed(tmp_path):
    """The speed comes from the metrics and is 0 if the run diverges; an error exits; no folder remains, also of a
    measurement that was killed."""
    (tmp_path / 'probe0').mkdir()
    (tmp_path / 'probe0/ckpt.pt').write_text('state')
    assert launcher.measure_speed({**DEFAULTS, 'wandb_log': True}, tmp_path) == 40
    assert launcher.measure_speed({**DEFAULTS, 'seed': launcher.DIVERGED}, tmp_path) == 0
    arms = {'a': DEFAULTS, 'b': {**DEFAULTS, 'seed': launcher.DIVERGED}}
    assert launcher.measure_speeds(arms, tmp_path, jobs=2) == {'a': 40, 'b': 40}
    assert not list(tmp_path.glob('probe*'))
    with pytest.raises(SystemExit):
        launcher.measure_speed({**DEFAULTS, 'seed': 1}, tmp_path)
