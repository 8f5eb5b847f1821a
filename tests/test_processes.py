"""Several processes are one run: the same batches, losses and files as one process, with real torchrun on gloo."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

import checkpoint
import processes
from conftest import ROOT, Started
from test_train import TINY, read

SHARED = [*TINY, '--gradient_accumulation_steps=4', '--batch_size=2', '--max_iters=50', '--eval_interval=10',
          '--log_interval=1', '--eval_iters=5', '--loss=squentropy']


@pytest.fixture
def ranks(tiny_data, tmp_path):
    """Runs a script as n processes with torchrun's variables but without its start-up; their (status, out, err)s."""
    def start(n, *command, **env):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        meet = dict(WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), TORCHELASTIC_RUN_ID='x', **env)
        started = [Started(*command, RANK=str(i), LOCAL_RANK=str(i), **meet) for i in range(n)]
        return [process.finish() for process in started]

    def train(n, folder, *flags, **env):
        return start(n, 'train.py', *SHARED, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/{folder}', *flags, **env)
    start.train = train
    return start


@pytest.fixture
def torchrun(tiny_data, tmp_path):
    """Starts train.py by torchrun itself into tmp_path/run, output in tmp_path/out and err; a Popen."""
    started = []

    def start(n, *flags, options=(), script=None):
        train = ['train.py', *SHARED, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run', *flags]
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}', *options,
                   *(script or train)]
        with open(tmp_path / 'out', 'w') as out, open(tmp_path / 'err', 'w') as err:
            started.append(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True,
                                            env={**os.environ, 'OMP_NUM_THREADS': '1'}))
        return started[-1]
    yield start
    for process in started:
        process.kill()
        process.wait()
    for pid in workers(tmp_path / 'run').values():
        os.kill(pid, signal.SIGKILL)


def losses_of(folder):
    return {m['iter']: m['loss'] for m in read(folder / 'metrics.jsonl') if 'loss' in m}


def nats_of(folder):
    return {m['iter']: m['val_nats'] for m in read(folder / 'metrics.jsonl') if 'val_nats' in m}


def wait_for_iteration(folder, n, seconds=60):
    end = time.monotonic() + seconds
    while not ((folder / 'metrics.jsonl').exists() and max(losses_of(folder), default=0) >= n):
        assert time.monotonic() < end, 'it never came'
        time.sleep(0.01)


def workers(folder):
    """Process ids of the workers of a run, by their rank."""
    found = {}
    for name in filter(str.isdecimal, os.listdir('/proc')):
        try:
            words = open(f'/proc/{name}/cmdline').read().split('\0')
            variables = dict(pair.partition('=')[::2] for pair in open(f'/proc/{name}/environ').read().split('\0'))
        except OSError:
            continue
        if f'--out_dir={folder}' in words and 'RANK' in variables:
            found[int(variables['RANK'])] = int(name)
    return found


@pytest.mark.parametrize('dropout', [0.0, 0.2])
def test_same_run_with_more_processes(ranks, tmp_path, dropout):
    """1, 2 and 4 processes give the same 50 losses and validation figures, dropout off and on."""
    for n in (1, 2, 4):
        for status, _, err in ranks.train(n, f'run{n}', f'--dropout={dropout}'):
            assert status == 0 and err == '', err
    expected = losses_of(tmp_path / 'run1')
    assert list(expected) == list(range(1, 51)) and expected[50] < expected[1] - 0.3
    for n in (2, 4):
        assert losses_of(tmp_path / f'run{n}') == pytest.approx(expected, rel=1e-5)
        assert nats_of(tmp_path / f'run{n}') == pytest.approx(nats_of(tmp_path / 'run1'), rel=1e-5)


def test_evaluation_does_not_depend_on_the_number(ranks, tmp_path):
    """The same weights have the same validation figure, to the last digit printed, however many share the work."""
    assert ranks.train(1, 'run', '--max_iters=10')[0][0] == 0
    figures = set()
    for n in (1, 2, 3, 4):
        done = ranks.train(n, 'other', f'--init_from={tmp_path}/run/best.pt', '--eval_only=True', '--batch_size=12')
        assert [status for status, _, _ in done] == [0] * n, done
        figures |= {line for line in done[0][1].splitlines() if line.startswith('iter')}
        assert all(out == '' for _, out, _ in done[1:])
    assert len(figures) == 1 and not (tmp_path / 'other').exists()


def test_evaluate_shares_its_work(ranks, torchrun, tmp_path):
    """evaluate.py's result is the same to the last bit with 1 to 3 processes and under torchrun; one prints it."""
    assert ranks.train(1, 'run', '--max_iters=20')[0][0] == 0
    flags = ['evaluate.py', f'--out_dir={tmp_path}/run', '--json=True', '--bootstrap=99']
    results = set()
    for n in (1, 2, 3):
        done = ranks(n, *flags)
        assert [status for status, _, _ in done] == [0] * n and all(out == '' for _, out, _ in done[1:]), done
        results.add(done[0][1])
    assert torchrun(2, script=flags).wait(100) == 0, (tmp_path / 'err').read_text()  # other hashes in each process
    assert results == {(tmp_path / 'out').read_text()} and '"nats"' in results.pop()


def test_resume_with_another_number(ranks, tmp_path):
    """Begun by one process, gone on with by two, then by one: the same run, and the change is said."""
    assert ranks.train(1, 'whole', '--lr_decay_iters=50')[0][0] == 0
    for n, until in ((1, 15), (2, 30), (1, 50)):
        resume = [] if until == 15 else ['--init_from=resume']
        done = ranks.train(n, 'run', '--lr_decay_iters=50', f'--max_iters={until}', *resume)
        assert [status for status, _, _ in done] == [0] * n, done
        assert until == 15 or f'processes {3 - n} -> {n} (so not the same bits)' in done[0][1]
    assert losses_of(tmp_path / 'run') == pytest.approx(losses_of(tmp_path / 'whole'), rel=1e-5)


def test_share():
    """All shares together are the batch asked for; whole micro-batches go first; what does not divide is refused."""
    before = processes.world
    try:
        for world, batch, steps, own in ((1, 8, 3, (8, 3)), (2, 8, 1, (4, 1)), (2, 8, 4, (8, 2)), (4, 8, 2, (4, 1)),
                                         (6, 9, 4, (3, 2))):
            processes.world = world
            assert processes.share(batch, steps) == own and own[0] * own[1] * world == batch * steps
        processes.world = 3
        with pytest.raises(ValueError, match='3 processes cannot share batches of --batch_size=8 x .*steps=4'):
            processes.share(8, 4)
    finally:
        processes.world = before


def test_what_does_not_divide_is_one_line(ranks, tmp_path):
    """A batch that three processes cannot share, and a wrong setting, end all with a line; nothing is written."""
    for status, _, err in ranks.train(3, 'run'):
        assert status == 1 and err.count('\n') == 1 and '3 processes cannot share batches of --batch_size=2' in err
    done = ranks.train(2, 'run', '--n_head=3')
    assert [status for status, _, _ in done] == [2, 2] and sum(err.count('\n') for _, _, err in done) == 1
    assert not (tmp_path / 'run').exists()


def test_torchrun(torchrun, ranks, tmp_path):
    """Two real processes of torchrun train as one does; only the first writes and speaks."""
    assert torchrun(2).wait(100) == 0, (tmp_path / 'err').read_text()
    assert ranks.train(1, 'one')[0][0] == 0
    assert losses_of(tmp_path / 'run') == pytest.approx(losses_of(tmp_path / 'one'), rel=1e-5)
    out = (tmp_path / 'out').read_text()
    assert out.count('done: best') == 1 and '2 processes' in out
    assert sorted(os.listdir(tmp_path / 'run')) == ['best.pt', 'ckpt.pt', 'launch', 'lock', 'metrics.jsonl']
    assert checkpoint.load(tmp_path / 'run/ckpt.pt')['machine']['processes'] == 2


def test_elastic(torchrun, ranks, tmp_path):
    """Killed workers come back by --max-restarts, the run ends as it would have, and an earlier one stays aside."""
    assert ranks.train(1, 'run', '--max_iters=3')[0][0] == 0  # an earlier run, which must not be taken for this one
    process = torchrun(2, '--max_iters=400', '--lr_decay_iters=400', options=['--max-restarts=3'])
    for victim, iteration in ((1, 25), (0, 60)):
        wait_for_iteration(tmp_path / 'run', iteration)
        os.kill(workers(tmp_path / 'run')[victim], signal.SIGKILL)
    assert process.wait(100) == 0, (tmp_path / 'err').read_text()
    assert ranks.train(1, 'one', '--max_iters=400', '--lr_decay_iters=400')[0][0] == 0
    assert list(losses_of(tmp_path / 'run')) == list(range(1, 401))
    assert losses_of(tmp_path / 'run') == pytest.approx(losses_of(tmp_path / 'one'), rel=1e-3)
    assert (tmp_path / 'out').read_text().count('held an earlier run') == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ['one', 'run', 'run.1']


def test_sigterm_to_torchrun_saves(torchrun, tmp_path):
    """SIGTERM to torchrun: the iteration ends in all processes, the first saves and says so, none is left."""
    process = torchrun(2, '--max_iters=100000', '--eval_interval=100000')
    wait_for_iteration(tmp_path / 'run', 5)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert 'stopped and saved at iteration' in (tmp_path / 'out').read_text()
    assert checkpoint.load(tmp_path / 'run/ckpt.pt')['iter_num'] >= 5
    assert workers(tmp_path / 'run') == {}
    assert 'error' not in (tmp_path / 'err').read_text().partition('Traceback')[0].lower()


def test_restart_before_the_first_checkpoint(torchrun, tmp_path):
    """Killed before it has saved, a run begins again in its own folder: nothing of its own is moved aside."""
    process = torchrun(2, '--eval_iters=4000', options=['--max-restarts=1'])
    end = time.monotonic() + 60
    while not (tmp_path / 'run/launch').exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not (tmp_path / 'run/ckpt.pt').exists()
    os.kill(workers(tmp_path / 'run')[1], signal.SIGKILL)
    assert process.wait(100) == 0, (tmp_path / 'err').read_text()
    assert list(losses_of(tmp_path / 'run')) == list(range(1, 51)) and not (tmp_path / 'run.1').exists()


def test_foreign_variables(tiny_data, tmp_path):
    """RANK and WORLD_SIZE of MPI or SLURM, without torchrun, change nothing."""
    status, out, err = Started('train.py', *SHARED, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run',
                               '--max_iters=2', RANK='1', WORLD_SIZE='2').finish()
    assert status == 0 and 'done: best' in out, err
    assert Started('train.py', '--bogus=3', RANK='1').finish()[2].startswith("error: --bogus=3: unknown setting")


def test_stop_is_agreed(ranks, tiny_data, tmp_path):
    """A signal to one process stops all after the same iteration; SIGUSR1 to one makes the first save."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    meet = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), TORCHELASTIC_RUN_ID='test')
    both = [Started('train.py', *SHARED, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run', '--max_iters=1000000',
                    '--eval_interval=1000000', RANK=str(i), LOCAL_RANK=str(i), **meet) for i in range(2)]
    wait_for_iteration(tmp_path / 'run', 5)
    both[1].send(signal.SIGUSR1)
    wait_for_iteration(tmp_path / 'run', max(losses_of(tmp_path / 'run')) + 20)
    assert checkpoint.load(tmp_path / 'run/ckpt.pt')['iter_num'] > 0 and 'as SIGUSR1 asked' in both[0].output()
    both[1].send(signal.SIGTERM)
    done = [process.finish() for process in both]
    assert [status for status, _, _ in done] == [143, 143] and [err for _, _, err in done] == ['', '']
    last = checkpoint.load(tmp_path / 'run/ckpt.pt')['iter_num']
    assert f'stopped and saved at iteration {last};' in done[0][1] and done[1][1] == ''


def test_a_failing_process_is_the_one_that_speaks(tiny_data, tmp_path):
    """Where one process fails, its own error stands there, and the others end at once, not after a time-out."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    data = [shutil.copytree(tiny_data, tmp_path / f'data{i}') for i in range(2)]
    meet = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), TORCHELASTIC_RUN_ID='test')
    both = [Started('train.py', *SHARED, f'--dataset={data[i]}', f'--out_dir={tmp_path}/run', '--max_iters=1000000',
                    '--eval_interval=1000000', RANK=str(i), LOCAL_RANK=str(i), **meet) for i in range(2)]
    wait_for_iteration(tmp_path / 'run', 5)
    (data[1] / 'train.bin').unlink()
    done = [process.finish(timeout=30) for process in both]
    assert [status for status, _, _ in done] == [1, 1]
    assert 'process 1:' in done[1][2] and 'data1/train.bin was changed or deleted' in done[1][2]
    assert done[0][2].startswith('error: another process has ended, for its own reason (')
    assert done[0][2].count('\n') == 1
    assert checkpoint.load(tmp_path / 'run/ckpt.pt')['iter_num'] == 0


def test_not_finite_is_agreed(ranks, tmp_path):
    """A loss that is not finite ends all processes with status 3 and one line in all."""
    done = ranks.train(2, 'run', '--learning_rate=1e30', '--warmup_iters=0', '--loss=mse', '--grad_clip=0')
    assert [status for status, _, _ in done] == [3, 3]
    assert sum(err.count('\n') for _, _, err in done) == 1 and 'last good checkpoint' in done[0][2]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_torchrun_on_cuda(torchrun, ranks, tmp_path):
    """One NCCL process under torchrun gives the losses of a process without it."""
    assert torchrun(1, '--device=cuda').wait(200) == 0, (tmp_path / 'err').read_text()
    assert ranks.train(1, 'one', '--device=cuda')[0][0] == 0
    assert losses_of(tmp_path / 'run') == pytest.approx(losses_of(tmp_path / 'one'), rel=2e-2)
