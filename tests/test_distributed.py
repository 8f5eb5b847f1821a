"""Several processes are one run: the same batches, losses and files as one process, with gloo and with torchrun."""
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import ROOT, Started
from nanoloss import distributed
from nanoloss.checkpoint import load_checkpoint
from nanoloss.metrics_log import read_metrics

FLAGS = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32', '--batch_size=2', '--dropout=0.2',
         '--gradient_accumulation_steps=4', '--learning_rate=1e-2', '--warmup_iters=5', '--decay_lr=False',
         '--loss=squentropy', '--max_iters=30', '--eval_interval=10', '--eval_iters=5', '--log_interval=1',
         '--sample_tokens=0', '--context_warmup=0.25', '--lr_decay_iters=30']
ENDLESS = ['--max_iters=1000000', '--eval_interval=1000000']


@pytest.fixture
def start():
    """Starts a script as n processes with torchrun's variables, but without torchrun; a list of Started."""
    started = []

    def start_ranks(n, *command, cwds=(), **env):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        env = dict(WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), TORCHELASTIC_RUN_ID='x') | env
        ranks = [Started(*command, cwd=cwds[i] if cwds else ROOT, RANK=str(i), LOCAL_RANK=str(i), **env)
                 for i in range(n)]
        started.extend(ranks)
        return ranks

    yield start_ranks
    for process in started:
        process.kill()


@pytest.fixture
def train(start, tiny_data, tmp_path):
    """Trains with n processes in tmp_path/folder until they end; their statuses and outputs: three lists."""
    def run(n, folder, *flags, **env):
        ranks = start(n, 'train.py', *FLAGS, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/{folder}', *flags, **env)
        return [list(results) for results in zip(*(rank.finish() for rank in ranks), strict=True)]
    return run


@pytest.fixture
def torchrun(tmp_path):
    """Starts a script with torchrun, its output in tmp_path/out and tmp_path/err; a Popen."""
    started = []

    def start_torchrun(n, *command, options=()):
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}', *options,
                   *command]
        with open(tmp_path / 'out', 'w') as out, open(tmp_path / 'err', 'w') as err:
            started.append(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True,
                                            env={**os.environ, 'OMP_NUM_THREADS': '1'}))
        return started[-1]

    yield start_torchrun
    for process in started:
        process.kill()
        process.wait()
    for pid in workers(tmp_path).values():
        os.kill(pid, signal.SIGKILL)


def losses(folder):
    return {entry['iter']: entry['loss'] for entry in read_metrics(folder / 'metrics.jsonl') if 'loss' in entry}


def nats(folder):
    return {entry['iter']: entry['val_nats'] for entry in read_metrics(folder / 'metrics.jsonl') if 'val_nats' in entry}


def wait_for_iteration(folder, n, seconds=60):
    deadline = time.monotonic() + seconds
    while max(losses(folder), default=0) < n:
        assert time.monotonic() < deadline, f'iteration {n} was not reached'
        time.sleep(0.01)


def workers(folder):
    """{rank: process id} of the processes that torchrun has started with --out_dir below the folder."""
    pids = {}
    for name in filter(str.isdecimal, os.listdir('/proc')):
        try:
            words = open(f'/proc/{name}/cmdline').read().split('\0')
            variables = dict(pair.partition('=')[::2] for pair in open(f'/proc/{name}/environ').read().split('\0'))
        except OSError:
            continue
        if 'RANK' in variables and any(word.startswith(f'--out_dir={folder}/') for word in words):
            pids[int(variables['RANK'])] = int(name)
    return pids


def test_same_run_with_more_processes(train, tmp_path):
    """1, 2 and 4 processes have the same training and validation losses, with dropout; only rank 0 prints."""
    for n in (1, 2, 4):
        statuses, out, err = train(n, f'run{n}')
        assert statuses == [0] * n and err == [''] * n and out[1:] == [''] * (n - 1)
    expected = losses(tmp_path / 'run1')
    assert list(expected) == list(range(1, 31)) and expected[30] < expected[1] - 0.3
    for n in (2, 4):
        assert losses(tmp_path / f'run{n}') == pytest.approx(expected, rel=1e-5)
        assert nats(tmp_path / f'run{n}') == pytest.approx(nats(tmp_path / 'run1'), rel=1e-5)
        assert sorted(os.listdir(tmp_path / f'run{n}')) == ['best.pt', 'ckpt.pt', 'lock', 'metrics.jsonl']


def test_muon_is_shared(train, tmp_path):
    """Two processes, each of which orthogonalizes half of the matrices, have the losses of one."""
    for n in (1, 2):
        statuses, _, err = train(n, f'run{n}', '--optimizer=muon', '--muon_beta2=0.95', '--max_iters=12')
        assert statuses == [0] * n, err
    assert losses(tmp_path / 'run2') == pytest.approx(losses(tmp_path / 'run1'), rel=1e-3)  # Muon rounds to bfloat16


def test_resume_with_another_number(train, tmp_path):
    """1 process, resumed with 2, resumed with 1, is the run of one process."""
    assert train(1, 'whole')[0] == [0]
    for n, max_iters in ((1, 10), (2, 20), (1, 30)):
        statuses, _, err = train(n, 'run', f'--max_iters={max_iters}', '--init_from=auto')
        assert statuses == [0] * n, err
        assert load_checkpoint(tmp_path / 'run/ckpt.pt')['environment']['world_size'] == n
    assert losses(tmp_path / 'run') == pytest.approx(losses(tmp_path / 'whole'), rel=1e-5)


def test_evaluation_is_shared(train, start, tmp_path):
    """The printed validation loss and the bits of evaluate.py's result are the same for any number of processes."""
    assert train(1, 'run', '--max_iters=10')[0] == [0]
    lines = set()
    for n in (1, 3):
        statuses, out, err = train(n, 'none', f'--init_from={tmp_path}/run/best.pt', '--eval_only=True',
                                   '--batch_size=12')
        assert statuses == [0] * n, err
        lines |= {line for line in out[0].splitlines() if line.startswith('iter')}
    assert len(lines) == 1 and not (tmp_path / 'none').exists()
    results = set()
    for n in (1, 2):
        done = [rank.finish() for rank in start(n, 'evaluate.py', f'--out_dir={tmp_path}/run', '--json=True',
                                                '--bootstrap=99')]
        assert [status for status, _, _ in done] == [0] * n and all(out == '' for _, out, _ in done[1:]), done
        results.add(done[0][1])
    assert len(results) == 1 and '"nats"' in results.pop()


def test_torchrun_restart(torchrun, train, tiny_data, tmp_path):
    """With --init_from=auto a run survives a killed worker, SIGTERM to torchrun and a new start without any loss."""
    folder = tmp_path / 'run'
    process = torchrun(2, 'train.py', *FLAGS, f'--dataset={tiny_data}', f'--out_dir={folder}', '--init_from=auto',
                       *ENDLESS, '--eval_interval=50', options=['--max-restarts=1'])
    wait_for_iteration(folder, 70)
    os.kill(workers(tmp_path)[0], signal.SIGKILL)
    time.sleep(1)
    wait_for_iteration(folder, max(losses(folder)) + 10, seconds=100)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert workers(tmp_path) == {}
    saved = load_checkpoint(folder / 'ckpt.pt')['iter_num']
    assert saved > 70 and max(losses(folder)) == saved
    statuses, _, err = train(1, 'run', '--init_from=auto', '--eval_interval=50', f'--max_iters={saved + 5}')
    assert statuses == [0], err
    assert train(1, 'whole', '--eval_interval=50', f'--max_iters={saved + 5}')[0] == [0]
    assert losses(folder) == pytest.approx(losses(tmp_path / 'whole'), rel=1e-3)
    assert list(losses(folder)) == list(range(1, saved + 6))


def test_split_batch(monkeypatch):
    """The shares of all ranks are the global batch; whole micro-batches are split first; a remainder is refused."""
    for world_size, batch_size, steps in itertools.product(range(1, 7), (1, 6, 8, 9), (1, 3, 4, 12)):
        monkeypatch.setattr(distributed, 'world_size', world_size)
        if batch_size * steps % world_size:
            with pytest.raises(ValueError, match='--batch_size.*--gradient_accumulation_steps'):
                distributed.split_batch(batch_size, steps)
            continue
        own_batch_size, own_steps = distributed.split_batch(batch_size, steps)
        assert own_batch_size * own_steps * world_size == batch_size * steps
        assert own_batch_size == batch_size or steps % world_size


def test_mistakes_end_all_processes(train, tmp_path):
    """A batch that three processes cannot split, and a wrong setting, end all with one line; nothing is written."""
    statuses, _, err = train(3, 'run', '--gradient_accumulation_steps=1')
    assert statuses == [1] * 3 and all(text.count('\n') == 1 and '--batch_size' in text for text in err)
    statuses, _, err = train(2, 'run', '--n_head=3')
    assert statuses == [2] * 2 and 'n_head' in ''.join(err) and not (tmp_path / 'run').exists()


def test_variables_of_other_launchers(tiny_data, tmp_path):
    """RANK and WORLD_SIZE of MPI or SLURM, without torchrun, change nothing."""
    process = Started('train.py', *FLAGS, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run', '--max_iters=1',
                      RANK='1', WORLD_SIZE='2')
    status, out, err = process.finish()
    assert status == 0 and out and list(losses(tmp_path / 'run')) == [1], err


def test_stop_is_agreed(start, tiny_data, tmp_path):
    """A signal to one process stops all after the same iteration; SIGUSR1 to one makes rank 0 save."""
    folder = tmp_path / 'run'
    ranks = start(2, 'train.py', *FLAGS, *ENDLESS, f'--dataset={tiny_data}', f'--out_dir={folder}')
    wait_for_iteration(folder, 5)
    ranks[1].send(signal.SIGUSR1)
    wait_for_iteration(folder, max(losses(folder)) + 20)
    assert load_checkpoint(folder / 'ckpt.pt')['iter_num'] > 0
    ranks[1].send(signal.SIGTERM)
    done = [rank.finish() for rank in ranks]
    assert [status for status, _, _ in done] == [143, 143] and [err for _, _, err in done] == ['', '']
    assert load_checkpoint(folder / 'ckpt.pt')['iter_num'] == max(losses(folder))


def test_a_failing_process_ends_all(start, tiny_data, tmp_path):
    """If one process fails, it prints its own error, and the others end with one line instead of a time-out."""
    folders = [shutil.copytree(tiny_data, tmp_path / name / 'data') for name in ('0', '1')]
    flags = [ROOT / 'train.py', *FLAGS, *ENDLESS, '--eval_interval=20', '--dataset=data', f'--out_dir={tmp_path}/run']
    ranks = start(2, *flags, cwds=[folder.parent for folder in folders])
    wait_for_iteration(tmp_path / 'run', 5)
    (folders[1] / 'train.bin').unlink()
    done = [rank.finish(timeout=30) for rank in ranks]
    assert [status for status, _, _ in done] == [1, 1] and 'train.bin' in done[1][2]
    assert all(err.startswith('error: ') and err.count('\n') == 1 for _, _, err in done)


def test_divergence_is_agreed(train, tmp_path):
    """A loss that is not finite ends all processes with status 3 and one line in all."""
    statuses, _, err = train(2, 'run', '--learning_rate=1e30', '--warmup_iters=0', '--loss=mse', '--grad_clip=0')
    assert statuses == [3, 3] and ''.join(err).count('\n') == 1 and '--learning_rate' in err[0]
    assert all(p.isfinite().all() for p in load_checkpoint(tmp_path / 'run/ckpt.pt')['model'].values())


@pytest.mark.cuda
def test_torchrun_on_cuda(torchrun, train, tiny_data, tmp_path):
    """One NCCL process under torchrun has the losses of a process without torchrun."""
    process = torchrun(1, 'train.py', *FLAGS, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run', '--device=cuda')
    assert process.wait(200) == 0, (tmp_path / 'err').read_text()
    assert train(1, 'one', '--device=cuda')[0] == [0]
    assert losses(tmp_path / 'run') == pytest.approx(losses(tmp_path / 'one'), rel=2e-2)
