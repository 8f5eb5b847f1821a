"""train.py under signals, kills and faults: resumed runs end in the same bits, and a good checkpoint stays."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, Started, run
from nanoloss.checkpoint import load_checkpoint, restore_model
from test_train import TINY, read

STEADY = [*TINY, '--dropout=0.1', '--gradient_accumulation_steps=2', '--eval_interval=4', '--log_interval=2']


@pytest.fixture
def begin(tiny_data, tmp_path):
    """A function that starts train.py on the tiny data into tmp_path/run and returns a Started."""
    started = []

    def start(*flags, folder='run', **how):
        started.append(Started('train.py', *STEADY, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/{folder}', *flags,
                               **how))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'timed out'
        time.sleep(0.002)


def reached(process, iteration):
    """Return a condition: the process has logged this iteration, or ended."""
    return lambda: f'\niter {iteration}: loss' in process.output() or process.ended()


def changed(folder):
    """Return a condition: a file in the folder was created, deleted or renamed since this call."""
    now = folder.stat().st_mtime_ns
    return lambda: folder.stat().st_mtime_ns != now


def check_same_run(a, b):
    """The last checkpoints in two folders have the same bits, and their metrics the same figures."""
    a, b = Path(a), Path(b)
    x, y = (load_checkpoint(folder / 'ckpt.pt') for folder in (a, b))
    for x_part, y_part in ((x['model'], y['model']), *zip(x['optimizer']['state'].values(),
                                                         y['optimizer']['state'].values(), strict=True)):
        assert list(x_part) == list(y_part) and all(torch.equal(x_part[key], y_part[key]) for key in x_part)
    for key in ('iter_num', 'best_val_loss', 'scaler', 'data'):
        assert x[key] == y[key]
    for train_state in (x['train_state'], y['train_state']):
        del train_state['train_seconds']
    assert x['train_state'] == y['train_state']
    best = (load_checkpoint(folder / 'best.pt')['model'] for folder in (a, b))
    assert all(torch.equal(*pair) for pair in zip(*(weights.values() for weights in best), strict=True))
    figures = [[{key: value for key, value in line.items() if key not in ('tokens_per_second', 'seconds')}
                for line in read(folder / 'metrics.jsonl')] for folder in (a, b)]
    assert figures[0] == figures[1]
    steps = [(line['iter'], 'loss' in line) for line in figures[0]]
    assert len(set(steps)) == len(steps)


@pytest.mark.parametrize('loss, threads', [('cross_entropy', 1), ('squentropy', 2)])
def test_resume_is_exact(begin, tmp_path, loss, threads):
    """A run that is killed, stopped and resumed, with dropout and accumulation, has the bits of one that is not."""
    flags = [f'--loss={loss}', '--lr_decay_iters=30', '--batch_size=8', '--n_embd=32', '--matmul=torch']
    env = {'OMP_NUM_THREADS': str(threads)}
    assert begin(*flags, '--max_iters=30', folder='whole', **env).finish()[0] == 0
    assert begin(*flags, '--max_iters=6', **env).finish()[0] == 0
    resume = [*flags, '--init_from=resume', '--max_iters=30']
    for number, iteration in ((signal.SIGKILL, 10), (signal.SIGTERM, 14), (signal.SIGKILL, 20)):
        process = begin(*resume, **env)
        wait_for(reached(process, iteration))
        process.send(number)
        assert process.finish()[0] in (0, 128 + number)
    status, _, err = begin(*resume, '--sample_tokens=3', **env).finish()
    assert status == 0, err
    for folder in ('whole', 'run'):  # iteration 6, the last of the first start, was evaluated there only
        path = tmp_path / folder / 'metrics.jsonl'
        path.write_text(''.join(json.dumps(line) + '\n' for line in read(path) if line['iter'] != 6))
    check_same_run(tmp_path / 'whole', tmp_path / 'run')


def test_scaler_and_patience_resume(begin, tmp_path):
    """The state of the gradient scaler and the count of evaluations without improvement survive a stop."""
    flags = ['--dtype=float16', '--device=cpu', '--patience=25', '--min_delta=100', '--max_iters=1000']
    assert begin(*flags, folder='whole').finish()[0] == 0
    process = begin(*flags)
    wait_for(reached(process, 10))
    process.send(signal.SIGTERM)
    assert process.finish()[0] == 143
    status, out, err = begin(*flags, '--init_from=resume').finish()
    assert status == 0, err
    check_same_run(tmp_path / 'whole', tmp_path / 'run')
    saved = load_checkpoint(tmp_path / 'run/ckpt.pt')
    assert saved['iter_num'] == 100 == saved['scaler']['_growth_tracker']


def test_resume_reports_changes(begin, tmp_path):
    """A resumed run may change its learning rate and number of threads, and prints both."""
    assert begin('--max_iters=2').finish()[0] == 0
    flags = ['--max_iters=4', '--init_from=resume', '--learning_rate=0.02']
    status, out, err = begin(*flags, OMP_NUM_THREADS='2').finish()
    assert status == 0 and 'learning_rate 0.01 -> 0.02' in out, err
    assert 'threads 1 -> 2' in out and 'max_iters 2 -> 4' in out


def survive(begin, tmp_path, kills, seed):
    """Kill and resume a run `kills` times, every second time during a save. Return how many kills hit a save."""
    rng = random.Random(seed)
    folder, hit = tmp_path / 'run', 0
    flags = ['--max_iters=400', '--loss=squentropy', '--keep_checkpoints=2', '--n_embd=64', '--matmul=torch']
    assert begin(*flags, folder='whole').finish()[0] == 0
    process = begin(*flags)
    for n in range(kills):
        before = load_checkpoint(folder / 'ckpt.pt')['iter_num'] if (folder / 'ckpt.pt').exists() else -1
        wait_for((folder / 'metrics.jsonl').exists)
        if n % 2:
            time.sleep(rng.uniform(0, 0.3))
            wait_for(changed(folder))
            time.sleep(rng.uniform(0, 0.003))
        else:
            time.sleep(rng.uniform(0, 0.6))
        process.send(signal.SIGKILL)
        status, _, err = process.finish()
        assert status == 137 and err == '', (status, err)
        names = {path.name for path in folder.iterdir()}
        partial = {name for name in names if name.endswith('.partial')}
        numbered = {name for name in names - partial if name.startswith('ckpt-')}
        assert names - partial - numbered <= {'ckpt.pt', 'best.pt', 'metrics.jsonl', 'lock'}
        assert len(partial) <= 1 and len(numbered) <= 3  # the newest may be written before the oldest goes
        hit += bool(partial)
        for name in names - partial - {'metrics.jsonl', 'lock'}:
            assert restore_model(load_checkpoint(folder / name))
        if 'ckpt.pt' in names:
            assert load_checkpoint(folder / 'ckpt.pt')['iter_num'] >= before
        process = begin(*flags, *['--init_from=resume'] * ('ckpt.pt' in names))
    status, _, err = process.finish()
    assert status == 0, err
    assert sorted(os.listdir(folder)) == ['best.pt', 'ckpt-396.pt', 'ckpt-400.pt', 'ckpt.pt', 'lock', 'metrics.jsonl']
    check_same_run(tmp_path / 'whole', folder)
    return hit


KILL = '''
import os, runpy, signal, sys
import torch
sys.path[0] = '.'
name, number = sys.argv.pop(1), int(sys.argv.pop(1))
module = torch if name == 'save' else os
calls, function = [], getattr(module, name)

def call_or_die(*arguments):
    calls.append(arguments)
    if len(calls) == number:
        if name == 'save':
            arguments[1].write(b'a part')
            arguments[1].flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments)

setattr(module, name, call_or_die)
runpy.run_path('train.py', run_name='__main__')
'''


def test_kills_during_a_save(begin, tiny_data, tmp_path):
    """A run that is killed while it writes, flushes or renames a checkpoint leaves only complete ones, never an older
    one, and ends in the bits of an uninterrupted run."""
    (tmp_path / 'kill.py').write_text(KILL)
    folder, last = tmp_path / 'run', -1
    flags = ['--max_iters=6', '--eval_interval=2', '--keep_checkpoints=2', '--log_interval=1', '--matmul=torch']
    assert begin(*flags, folder='whole').finish()[0] == 0
    for name in ('save', 'fsync', 'replace'):
        for number in range(1, 5):
            status, _, err = run(tmp_path / 'kill.py', name, number, *STEADY, f'--dataset={tiny_data}',
                                 f'--out_dir={folder}', *flags, '--init_from=auto')
            assert status in (0, 137), err
            found = {path.name: load_checkpoint(path)['iter_num'] for path in folder.glob('*.pt')}
            assert found.get('ckpt.pt', -1) >= last
            last = found.get('ckpt.pt', -1)
    assert last > 0 and begin(*flags, '--init_from=auto').finish()[0] == 0
    assert sorted(os.listdir(folder)) == ['best.pt', 'ckpt-4.pt', 'ckpt-6.pt', 'ckpt.pt', 'lock', 'metrics.jsonl']
    check_same_run(tmp_path / 'whole', folder)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(1, 11))
def test_a_hundred_kills(begin, tmp_path, seed):
    """After each of ten kills at random times, five of them during a save, a checkpoint loads; the final bits are the
    same."""
    print('kills during a save:', survive(begin, tmp_path, 10, seed))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_stop(begin, tmp_path, number):
    """SIGINT, SIGTERM and SIGHUP finish the iteration, save, print how to resume, and exit with 128 + number."""
    process = begin('--max_iters=100000', '--eval_interval=100000')
    wait_for(reached(process, 6))
    process.send(number)
    status, out, err = process.finish()
    assert status == 128 + number and '--init_from=resume' in out and err == ''
    last = load_checkpoint(tmp_path / 'run/ckpt.pt')['iter_num']
    assert last >= 6 and f'iteration {last}' in out


def test_second_interrupt_exits_at_once(begin, tmp_path):
    """A second Ctrl-C exits without finishing the iteration; the saved checkpoint stays."""
    process = begin('--max_iters=100000', '--eval_interval=100000', '--gradient_accumulation_steps=10000000')
    wait_for((tmp_path / 'run/ckpt.pt').exists)
    time.sleep(0.3)
    process.send(signal.SIGINT)
    time.sleep(0.3)
    assert not process.ended()
    process.send(signal.SIGINT)
    status, out, err = process.finish(timeout=20)
    assert status == 130 and 'Traceback' not in err
    assert load_checkpoint(tmp_path / 'run/ckpt.pt')['iter_num'] == 0


def test_sigusr1_saves(begin, tmp_path):
    """SIGUSR1 saves a checkpoint and changes nothing else."""
    flags = ['--max_iters=60', '--eval_interval=60']
    assert begin(*flags, folder='whole').finish()[0] == 0
    process = begin(*flags)
    wait_for(reached(process, 4))
    process.send(signal.SIGUSR1)
    wait_for(lambda: 'SIGUSR1' in process.output())
    assert 4 <= load_checkpoint(tmp_path / 'run/ckpt.pt')['iter_num'] < 60
    status, out, _ = process.finish()
    assert status == 0 and out.count('SIGUSR1') == 1
    check_same_run(tmp_path / 'whole', tmp_path / 'run')


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
@pytest.mark.parametrize('number,status', [(signal.SIGUSR1, 0), (signal.SIGINT, -signal.SIGINT)])
def test_signal_while_torch_is_imported(tiny_data, tmp_path, number, status):
    """A signal during the import of torch does what it does before training: SIGUSR1 nothing, SIGINT a quiet exit."""
    command = [sys.executable, 'train.py', *STEADY, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run',
               '--max_iters=2']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}) as process:
        wait_for(lambda: 'libtorch' in Path(f'/proc/{process.pid}/maps').read_text())
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status and 'Traceback' not in err


def test_closed_pipe(tiny_data, tmp_path):
    """A run whose stdout is closed by the reader (| head) saves and stops without a traceback."""
    command = [sys.executable, 'train.py', *STEADY, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run',
               '--max_iters=100000', '--eval_interval=100000']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}) as process:
        for line in process.stdout:
            if line.startswith('iter 2:'):
                break
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ''
    assert load_checkpoint(tmp_path / 'run/ckpt.pt')['iter_num'] >= 2


def check_fault(process, name, folder):
    """The run exits with status 1 and one line with the file's name; the checkpoint is unchanged, no partial file is
    left."""
    before = (folder / 'ckpt.pt').read_bytes()
    status, _, err = process.finish()
    errors = [line for line in err.splitlines() if not line.startswith('note: ')]  # stdout may be full, too
    assert status == 1 and len(errors) == 1 and name in errors[0], err
    assert (folder / 'ckpt.pt').read_bytes() == before and not list(folder.glob('*.partial'))


def test_disk_full_while_saving(begin, tmp_path):
    """If a checkpoint does not fit on the disk, the previous one stays."""
    assert begin('--max_iters=4').finish()[0] == 0
    size = (tmp_path / 'run/ckpt.pt').stat().st_size
    for limit in (size - 1, size // 2, 5000):
        check_fault(begin('--init_from=resume', limits={'RLIMIT_FSIZE': limit}), 'run',
                    tmp_path / 'run')


def test_disk_full_while_logging(begin, tmp_path):
    """If metrics.jsonl does not fit, the run ends, and a resumed one has each line once."""
    assert begin('--max_iters=4').finish()[0] == 0
    size = (tmp_path / 'run/metrics.jsonl').stat().st_size
    check_fault(begin('--init_from=resume', '--eval_interval=100', limits={'RLIMIT_FSIZE': size + 150}),
                'metrics.jsonl', tmp_path / 'run')
    assert begin('--init_from=resume').finish()[0] == 0
    assert [m['iter'] for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m] == [1, *range(2, 41, 2)]


def test_full_file_system(begin, tmp_path):
    """If a file system of 600 KB fills up, the run ends with one line, the checkpoint stays, and the run resumes once
    there is space."""
    small = tmp_path / 'run'
    small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', small], capture_output=True).returncode:
        pytest.skip('a small file system can only be mounted by root')
    try:
        assert begin('--max_iters=4').finish()[0] == 0
        free = shutil.disk_usage(small).free
        (small / 'others').write_bytes(b'x' * (free - 8192))
        check_fault(begin('--init_from=resume'), 'run', small)
        (small / 'others').unlink()
        status, _, err = begin('--init_from=resume').finish()
        assert status == 0, err
    finally:
        subprocess.run(['umount', small], check=True)


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('change', ['deleted', 'written over', 'replaced'])
def test_changed_data(begin, tiny_data, tmp_path, split, change):
    """A bin that is deleted or changed during a run ends it at the next evaluation, with one line that names it."""
    data = shutil.copytree(tiny_data, tmp_path / 'data')
    process = begin(f'--dataset={data}', '--max_iters=1000000', '--eval_interval=50')
    wait_for(reached(process, 4))
    path = data / f'{split}.bin'
    if change == 'deleted':
        path.unlink()
    elif change == 'written over':
        with open(path, 'r+b') as file:  # without truncating it, after which reading mapped memory ends the process
            file.write(path.read_bytes()[::-1])
    else:
        shutil.copy(path, tmp_path / 'new')
        os.replace(tmp_path / 'new', path)
    status, _, err = process.finish()
    assert status == 1 and f'{split}.bin' in err and err.count('\n') == 1, err
    assert load_checkpoint(tmp_path / 'run/ckpt.pt')


def test_out_of_memory(begin, tmp_path):
    """Out of memory is one line that names a flag to lower; the checkpoint stays."""
    assert begin('--max_iters=4').finish()[0] == 0
    before = (tmp_path / 'run/ckpt.pt').read_bytes()
    for flags in (['--batch_size=200000', '--n_embd=512', '--eval_iters=1'], ['--n_embd=50000']):
        status, _, err = begin(*flags, folder='huge', limits={'RLIMIT_AS': 6 * 2**30}).finish()
        assert status == 1 and '--batch_size' in err and err.count('\n') == 1, err
    assert (tmp_path / 'run/ckpt.pt').read_bytes() == before


def test_one_process_per_folder(begin, tmp_path):
    """A second run in a folder is refused while the first one runs; a killed run leaves no lock behind, and a run from
    scratch keeps the files of the one before in another folder."""
    first = begin('--max_iters=1000000', '--eval_interval=1000000')
    wait_for(reached(first, 2))
    for flags in ([], ['--init_from=resume']):
        status, _, err = begin('--max_iters=4', *flags).finish()
        assert status == 1 and err.count('\n') == 1 and '--out_dir' in err, err
    assert not first.ended() and sorted(os.listdir(tmp_path)) == ['run']
    assert begin('--init_from=resume', '--eval_only=True').finish()[0] == 0  # read-only
    first.send(signal.SIGKILL)
    assert first.finish()[0] == 137
    assert begin('--init_from=resume', '--max_iters=4').finish()[0] == 0
    before = (tmp_path / 'run/ckpt.pt').read_bytes()
    status, out, _ = begin('--max_iters=2').finish()  # moves the first run aside
    assert status == 0 and 'run.1' in out and sorted(os.listdir(tmp_path)) == ['run', 'run.1']
    assert (tmp_path / 'run.1/ckpt.pt').read_bytes() == before


def test_keep_checkpoints(begin, tmp_path):
    """The last N checkpoints stay; a copy of the folder goes back to one of them and ends in the same bits."""
    folder, earlier = tmp_path / 'run', tmp_path / 'earlier'
    flags = ['--max_iters=16', '--keep_checkpoints=3', '--lr_decay_iters=20']

    def kept(folder):
        return sorted(int(path.stem[5:]) for path in folder.glob('ckpt-*.pt'))
    assert begin(*flags).finish()[0] == 0
    assert kept(folder) == [8, 12, 16] and load_checkpoint(folder / 'ckpt-8.pt')['iter_num'] == 8
    shutil.copytree(folder, earlier)
    shutil.copy(earlier / 'ckpt-8.pt', earlier / 'ckpt.pt')
    assert load_checkpoint(earlier / 'ckpt-16.pt')['iter_num'] == 16  # a copy, not a link
    status, _, err = begin(*flags, '--init_from=resume', folder='earlier').finish()
    assert status == 0 and kept(earlier) == [8, 12, 16], err
    check_same_run(folder, earlier)
    status, out, _ = begin('--max_iters=2').finish()  # a new run moves all of them aside
    assert status == 0 and kept(folder) == [] and len(kept(tmp_path / 'run.1')) == 3


@pytest.mark.parametrize('how', ['lock deleted', 'folder moved', 'folder deleted'])
def test_folder_taken_away(begin, tmp_path, how):
    """A run whose folder or lock is gone ends, and does not write into the folder of the run that replaced it."""
    folder = tmp_path / 'run'
    first = begin('--max_iters=1000000', '--eval_interval=1000000', '--log_interval=1000000')
    metrics = folder / 'metrics.jsonl'  # after iteration 1 the run does not touch its folder until it stops
    wait_for(lambda: metrics.exists() and '"iter": 1,' in metrics.read_text())
    if how == 'lock deleted':
        (folder / 'lock').unlink()
    elif how == 'folder moved':
        folder.rename(tmp_path / 'elsewhere')
    else:
        shutil.rmtree(folder)
    second = begin('--max_iters=1000000', '--eval_interval=1000000', '--seed=7')
    wait_for(reached(second, 2))
    first.send(signal.SIGTERM)
    status, _, err = first.finish()
    second.send(signal.SIGTERM)
    assert second.finish()[0] == 143
    assert status == 1 and f'{folder}' in err and err.count('\n') == 1, err
    assert load_checkpoint(folder / 'ckpt.pt')['config']['seed'] == 7


def test_resume_a_run_from_weights(begin, tmp_path):
    """A run that began from a checkpoint of another shape resumes, though its flags do not name the shape."""
    assert begin('--max_iters=2', '--bias=True', folder='other').finish()[0] == 0
    status, _, err = begin(f'--init_from={tmp_path}/other/best.pt', '--max_iters=4').finish()
    assert status == 0, err
    status, out, err = begin('--init_from=resume', '--max_iters=6').finish()
    assert status == 0 and 'bias=True' in out, err
    assert load_checkpoint(tmp_path / 'run/ckpt.pt')['config']['bias'] is True


def test_overflow_is_not_saved(begin, tmp_path):
    """Optimizer moments that overflow end the run, though the weights are finite; the saved state is finite."""
    status, _, err = begin('--loss=mse', '--mse_true_weight=1e22', '--grad_clip=0').finish()
    assert status == 3 and err.count('\n') == 1, err
    saved = load_checkpoint(tmp_path / 'run/ckpt.pt')
    assert all(x.isfinite().all() for moments in saved['optimizer']['state'].values() for x in moments.values())


def test_unwritable_stdout(tiny_data, tmp_path):
    """A run whose stdout or stderr is closed or full trains to the end."""
    for i, redirection in enumerate(('>&-', '>/dev/full', '2>&- >/dev/null')):
        command = ' '.join([sys.executable, 'train.py', *STEADY, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/{i}',
                            '--max_iters=4', redirection])
        done = subprocess.run(['bash', '-c', command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
        assert load_checkpoint(tmp_path / f'{i}/ckpt.pt')['iter_num'] == 4


@pytest.mark.cuda
@pytest.mark.parametrize('flags', ['--dtype=bfloat16 --compile=True', '--dtype=float16 --compile=False',
                                   '--dtype=float32 --compile=False --optimizer=muon'])
def test_resume_on_cuda(flags, begin, tmp_path):
    """On a GPU a resumed run has the batches and the schedule of an uninterrupted one; losses agree up to rounding."""
    flags = ['--device=cuda', '--lr_decay_iters=30', '--loss=squentropy', *flags.split()]
    for folder, *more in (('whole', '--max_iters=30'), ('run', '--max_iters=10'),
                          ('run', '--max_iters=30', '--init_from=resume')):
        status, _, err = begin(*flags, *more, folder=folder).finish()
        assert status == 0, err
    a, b = ([(m['lr'], m['loss']) for m in read(tmp_path / folder / 'metrics.jsonl') if 'loss' in m and m['iter'] > 10]
            for folder in ('whole', 'run'))
    assert [lr for lr, _ in a] == [lr for lr, _ in b]
    assert [loss for _, loss in a] == pytest.approx([loss for _, loss in b], rel=2e-2)


@pytest.mark.cuda
def test_cuda_trains_like_the_cpu(begin, tmp_path):
    """In float32 a GPU and a CPU end a short run of each optimizer at the same loss, up to rounding."""
    for optimizer in ('adamw', 'muon'):
        for device in ('cpu', 'cuda'):
            flags = [f'--device={device}', '--dtype=float32', '--compile=False', f'--optimizer={optimizer}',
                     '--dropout=0']
            status, _, err = begin(*flags, '--max_iters=20', folder=f'{optimizer}-{device}').finish()
            assert status == 0, err
        cpu, cuda = ([m['loss'] for m in read(tmp_path / f'{optimizer}-{device}/metrics.jsonl') if 'loss' in m]
                     for device in ('cpu', 'cuda'))
        assert cpu == pytest.approx(cuda, rel=1e-2)
