"""The output directory of a run: one process at a time, nothing overwritten, no partial files."""
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from nanoloss import run_dir
from nanoloss.run_dir import RunDir


@dataclass
class State:
    """The fields of TrainState that RunDir reads."""
    iter_num: int
    last_eval: int = -1
    train_seconds: float = 0.5


def write_checkpoint(path, mtime=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'a checkpoint')
    os.utime(path, (mtime, mtime))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_newest_run(tmp_path, monkeypatch):
    """The run whose checkpoint was written last; best.pt comes before ckpt.pt, and a path before both."""
    for i, name in enumerate(('a/ckpt.pt', 'b/c/ckpt.pt', 'd/best.pt')):
        write_checkpoint(tmp_path / 'out' / name, mtime=i % 2)
    monkeypatch.chdir(tmp_path)
    assert run_dir.newest_run() == run_dir.Path('out/b/c')
    assert run_dir.find_checkpoint('', '') == 'out/b/c/ckpt.pt'
    write_checkpoint(tmp_path / 'out/b/c/best.pt')
    assert run_dir.find_checkpoint('', '') == 'out/b/c/best.pt'
    assert run_dir.find_checkpoint('', 'out/a') == 'out/a/ckpt.pt'
    assert run_dir.find_checkpoint('x.pt', 'out/a') == 'x.pt'
    shutil.rmtree('out')
    with pytest.raises(FileNotFoundError, match='train.py'):
        run_dir.find_checkpoint('', '')


def test_move_aside(tmp_path):
    """Moving a run aside moves its files to a new directory, and no other files."""
    names = ['best.pt', 'ckpt-2.pt', 'ckpt.pt', 'metrics.jsonl']
    for name in (*names, 'mine.txt', 'ckpt-x.pt'):
        write_checkpoint(tmp_path / 'run' / name)
    (tmp_path / 'run.1').mkdir()
    assert run_dir.move_aside(f'{tmp_path}/run/') == tmp_path / 'run.2'
    assert files(tmp_path / 'run.2') == names and files(tmp_path / 'run') == ['ckpt-x.pt', 'mine.txt']
    assert run_dir.move_aside(tmp_path / 'run') is None


def test_prune_checkpoints(tmp_path):
    """The last N up to an iteration stay, and so do those of later iterations."""
    for n in (2, 4, 8, 16, 100):
        write_checkpoint(tmp_path / f'ckpt-{n}.pt')
    run_dir.prune_checkpoints(tmp_path, 16, 2)
    assert [*run_dir.numbered_checkpoints(tmp_path)] == [8, 16, 100]


def test_save(tmp_path):
    """Checkpoints and metrics appear under their names; the last N are kept; partial files of a killed run go."""
    (tmp_path / 'ckpt.pt.partial').write_bytes(b'half')
    (tmp_path / 'metrics.jsonl').write_text('{"iter": 1, "loss": 2}\n{"iter": 9, "loss": 2}\n{"it')
    run = RunDir(tmp_path)
    run.start_metrics(True, State(1), 100)
    for n in (2, 4, 6):
        run.log(State(n), loss=1.5)
        run.save('ckpt.pt', {'iter_num': n}, keep=2)
    run.save('best.pt', {'iter_num': 4})
    run.finish(failed=False)
    assert files(tmp_path) == ['best.pt', 'ckpt-4.pt', 'ckpt-6.pt', 'ckpt.pt', 'lock', 'metrics.jsonl']
    saved = {name: torch.load(tmp_path / name)['iter_num'] for name in ('ckpt.pt', 'ckpt-4.pt', 'best.pt')}
    assert saved == {'ckpt.pt': 6, 'ckpt-4.pt': 4, 'best.pt': 4}
    entries = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert entries == [{'iter': 1, 'loss': 2},
                       *({'iter': n, 'tokens': 100 * n, 'seconds': 0.5, 'loss': 1.5} for n in (2, 4, 6))]
    with pytest.raises(ValueError):
        run.log(State(7), loss=float('nan'))


def test_new_run_in_a_used_directory(tmp_path, capsys):
    """A new run moves the earlier one aside before it writes anything, and names its new directory."""
    write_checkpoint(tmp_path / 'run/ckpt.pt')
    run = RunDir(tmp_path / 'run')
    run.start_metrics(False, State(0), 100)
    assert f'--out_dir={tmp_path}/run.1' in capsys.readouterr().out
    assert files(tmp_path) == ['run.1/ckpt.pt', 'run/lock', 'run/metrics.jsonl']


def test_one_process_per_directory(tmp_path):
    """A second process is refused while the first one has the lock; the lock of a dead process does not matter."""
    code = ('import filelock, sys\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\n'
            'print("locked", flush=True)\ninput()')
    command = [sys.executable, '-c', code, str(tmp_path / 'lock')]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b'locked\n'
        with pytest.raises(OSError, match='--out_dir'):
            RunDir(tmp_path)
        other.kill()
    RunDir(tmp_path)


@pytest.mark.parametrize('name', ['file', 'file/x', 'x' * 300, '/dev/null', '/proc/x', '/proc'])
def test_unusable_directories(tmp_path, name):
    """A directory that cannot be created or written is one OSError that names the flag."""
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='--out_dir') as e:
        RunDir(tmp_path / name)
    assert '\n' not in str(e.value) and files(tmp_path) == ['file']


@pytest.mark.parametrize('change', ['delete the lock', 'delete the directory', 'move the directory', 'take over'])
def test_ownership(tmp_path, change):
    """A run whose directory or lock is gone, or belongs to another run, writes nothing more there."""
    folder = tmp_path / 'run'
    run = RunDir(folder)
    run.start_metrics(False, State(0), 100)
    run.check_ownership()
    if change == 'delete the lock':
        (folder / 'lock').unlink()
    elif change == 'delete the directory':
        shutil.rmtree(folder)
    else:
        folder.rename(tmp_path / 'elsewhere')
    other = RunDir(folder) if change == 'take over' else None
    before = files(tmp_path)
    for write in (lambda: run.log(State(1)), lambda: run.save('ckpt.pt', {'iter_num': 1})):
        with pytest.raises(OSError, match='run'):
            write()
    assert files(tmp_path) == before
    if other:
        other.check_ownership()


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_disk_full(tmp_path):
    """A full disk is one OSError that names the file, and the checkpoint of before stays."""
    run = RunDir(tmp_path)
    run.start_metrics(False, State(0), 100)
    run.save('ckpt.pt', {'iter_num': 1})
    before = (tmp_path / 'ckpt.pt').read_bytes()
    (tmp_path / 'ckpt.pt.partial').symlink_to('/dev/full')
    with pytest.raises(OSError, match=str(tmp_path)) as e:
        run.save('ckpt.pt', {'iter_num': 2})
    assert '\n' not in str(e.value) and (tmp_path / 'ckpt.pt').read_bytes() == before
    run.metrics.close()
    run.metrics = open('/dev/full', 'w')
    with pytest.raises(OSError, match='metrics.jsonl'):
        run.log(State(3))


@pytest.mark.parametrize('failed', [False, True])
def test_wandb_learns_whether_the_run_failed(tmp_path, monkeypatch, failed):
    """finish() passes the exit code to W&B, and log() passes the same values as metrics.jsonl has."""
    calls = []
    wandb = SimpleNamespace(init=lambda **kwargs: SimpleNamespace(id='abc', define_metric=lambda *a, **k: None),
                            log=calls.append, finish=lambda exit_code: calls.append(exit_code))
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    directory = RunDir(tmp_path / 'run')
    assert directory.start_wandb('project', '', '', {}) == 'abc'
    directory.start_metrics(False, State(0), 10)
    directory.log(State(3), loss=1.5)
    directory.finish(failed)
    assert calls == [json.loads((tmp_path / 'run/metrics.jsonl').read_text()), int(failed)]


WANDB_IDS = ['exp.v1', 'a b', '..', 'größe', 'a%b', 'A_b-9', 'x' * 128, '../../x', 'a/b', 'a:b', 'a;b', 'a,b', 'a#b',
             'a?b', "a'b", ' a', 'a ', ' ']


@pytest.mark.parametrize('run_id', WANDB_IDS)
def test_wandb_ids(run_id):
    """is_wandb_id() accepts exactly the ids that W&B's own settings accept."""
    wandb = pytest.importorskip('wandb')
    try:
        wandb.Settings(run_id=run_id)
        accepted = True
    except wandb.errors.UsageError:
        accepted = False
    assert run_dir.is_wandb_id(run_id) is accepted


@pytest.mark.parametrize('run_id,used', [
    ('exp.v1', 'exp.v1'), ('', None), ('../../x', None), ('..\\..\\x', None), ('a\nb', None), ('a\x1b[2J', None),
    ('\ud800', None), ('ä' * 100, None), ('x' * 200, None)])
def test_invalid_wandb_id(tmp_path, monkeypatch, capsys, run_id, used):
    """An id that W&B refuses, or that cannot be part of a folder name, is dropped with a note: W&B starts a new run."""
    ids = []

    def init(id, **kwargs):
        ids.append(id)
        return SimpleNamespace(id=id or 'new', define_metric=lambda *a, **k: None)
    monkeypatch.setitem(sys.modules, 'wandb', SimpleNamespace(init=init))
    assert RunDir(tmp_path).start_wandb('project', '', run_id, {}) == (used or 'new') and ids == [used]
    output = capsys.readouterr().out
    assert output.count('\n') == (1 if run_id and not used else 0) and '\x1b' not in output
