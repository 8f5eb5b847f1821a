"""train.py and sample.py as a user runs them, on a data set of 300 stories and a model of a few thousand weights."""
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import checkpoint
import losses
from conftest import ROOT, run

TINY = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32', '--batch_size=4', '--learning_rate=1e-2',
        '--eval_interval=20', '--eval_iters=2', '--max_iters=40', '--warmup_iters=5', '--sample_tokens=0']


@pytest.fixture
def train(tiny_data, tmp_path):
    """Runs train.py on the tiny data into tmp_path/run; returns (status, stdout, stderr)."""
    def start(*flags, **env):
        return run('train.py', *TINY, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run', *flags, **env)
    return start


def read(path):
    return [json.loads(line) for line in open(path)]


@pytest.mark.parametrize('loss', ['cross_entropy', 'mse', 'squentropy', 'cross_entropy_plus_mse'])
def test_training_learns(train, tmp_path, tiny_data, loss):
    """Each loss learns: after 300 iterations its nats are below those of the best model without context."""
    status, out, err = train(f'--loss={loss}', '--max_iters=300', '--eval_interval=150', '--n_embd=32',
                             '--batch_size=16', '--learning_rate=2e-2', '--eval_iters=5')
    assert status == 0 and err == '', err
    text = torch.frombuffer(bytearray((tiny_data / 'train.bin').read_bytes()), dtype=torch.uint8)
    p = torch.bincount(text).double() / len(text)
    unigram = -(p[p > 0] * p[p > 0].log()).sum().item()
    evaluations = [m for m in read(tmp_path / 'run/metrics.jsonl') if 'val_nats' in m]
    assert [m['iter'] for m in evaluations] == [0, 150, 300]
    first, last = evaluations[0], evaluations[-1]
    assert last['val_nats'] < unigram - 0.1 and last['val_loss'] < first['val_loss']
    assert math.isclose(last['val_perplexity'], math.exp(last['val_nats']))
    assert f"nats {last['val_nats']:.4f}" in out and 'python sample.py --out_dir=' in out and 'synthetic stories' in out


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_resumed_run_is_the_uninterrupted_one(train, tmp_path, optimizer):
    """With dropout and accumulation, 40 iterations, and 20 then resumed to 40, end in the same bits."""
    flags = ['--dropout=0.1', '--gradient_accumulation_steps=2', '--lr_decay_iters=40', '--loss=squentropy',
             f'--optimizer={optimizer}']
    assert train(*flags)[0] == 0
    os.rename(tmp_path / 'run', tmp_path / 'whole')
    assert train(*flags, '--max_iters=20')[0] == 0
    # evaluating and sampling more often draws no number that training needs
    status, out, err = train(*flags, '--init_from=resume', '--eval_interval=7', '--sample_tokens=5')
    assert status == 0 and 'changed since' in out, err
    a, b = (checkpoint.load(tmp_path / name / 'ckpt.pt') for name in ('whole', 'run'))
    assert a['iter_num'] == b['iter_num'] == 40
    for name in a['model']:
        assert torch.equal(a['model'][name], b['model'][name]), name
    for i, state in a['optimizer']['state'].items():
        for key in state:
            assert torch.equal(torch.as_tensor(state[key]), torch.as_tensor(b['optimizer']['state'][i][key]))
    iterations = [m['iter'] for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m]
    assert iterations == sorted(set(iterations))


@pytest.mark.parametrize('schedule', [['--loss=squentropy', '--squentropy_schedule=linear', '--squentropy_end=0.7'],
                                      ['--loss=mse', '--mse_end=0.7']])
def test_a_schedule_goes_on_where_it_was(train, tmp_path, schedule):
    """A run that goes back to its checkpoint of iteration 20 ends in the same bits, and as cross-entropy."""
    assert train(*schedule, '--keep_checkpoints=3')[0] == 0
    whole = checkpoint.load(tmp_path / 'run/ckpt.pt')
    before = {m['iter']: m['loss'] for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m}
    os.replace(tmp_path / 'run/ckpt-20.pt', tmp_path / 'run/ckpt.pt')
    status, _, err = train(*schedule, '--init_from=resume')
    assert status == 0, err
    again = checkpoint.load(tmp_path / 'run/ckpt.pt')
    assert all(torch.equal(x, again['model'][name]) for name, x in whole['model'].items())
    assert {m['iter']: m['loss'] for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m} == before
    assert [*checkpoint.restore(again)[2]] == pytest.approx([*losses.cross_entropy(256)])


def test_resume_refuses_another_run(train):
    """A resumed run may not change its loss, model or data; it says what differs."""
    assert train('--max_iters=2')[0] == 0
    status, _, err = train('--max_iters=4', '--init_from=resume', '--loss=mse', '--n_layer=2',
                          '--optimizer=muon')
    assert status == 1 and 'n_layer 1 -> 2' in err and 'loss cross_entropy -> mse' in err and \
        'optimizer adamw -> muon' in err and 'Traceback' not in err


def test_running_again_moves_the_earlier_run_aside(train, tmp_path):
    """A second run from scratch keeps the first one's files, elsewhere, and says where."""
    assert train('--max_iters=2')[0] == 0
    before = (tmp_path / 'run/ckpt.pt').read_bytes()
    status, out, _ = train('--max_iters=2', '--seed=2')
    assert status == 0 and 'run.1' in out
    assert (tmp_path / 'run.1/ckpt.pt').read_bytes() == before != (tmp_path / 'run/ckpt.pt').read_bytes()


def test_eval_only_writes_nothing(train, tmp_path):
    """--eval_only repeats the validation figure of a checkpoint, trains nothing and writes nothing."""
    _, out, _ = train('--max_iters=20')
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    status, again, _ = train('--init_from=resume', '--eval_only=True', '--max_iters=20')
    figure = [line.split('nats ')[1].split()[0] for line in out.splitlines() if line.startswith('iter 20: val')]
    assert status == 0 and f'nats {figure[0]}' in again
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}


def test_init_from_a_file(train, tmp_path):
    """From a checkpoint file come the weights and the shape, not the iteration, the loss or the optimizer."""
    assert train('--max_iters=20')[0] == 0
    status, out, err = train(f'--init_from={tmp_path}/run/best.pt', f'--out_dir={tmp_path}/other', '--n_layer=3',
                             '--loss=mse', '--max_iters=1')
    assert status == 0 and 'model: 1 layers' in out and '\niter 1: ' in out, err
    assert checkpoint.load(tmp_path / 'other/ckpt.pt')['loss']['name'] == 'mse'


def test_last_iteration_is_evaluated_and_best_only_improves(train, tmp_path):
    """An end between two evaluations is evaluated and saved; best_val_loss never rises, best.pt holds it."""
    status, out, _ = train('--max_iters=50', '--learning_rate=0.3', '--warmup_iters=0', '--eval_interval=10')
    evaluations = [m for m in read(tmp_path / 'run/metrics.jsonl') if 'val_nats' in m]
    assert status == 0 and evaluations[-1]['iter'] == 50 == checkpoint.load(tmp_path / 'run/ckpt.pt')['iter_num']
    best = [m['best_val_loss'] for m in evaluations]
    assert best == sorted(best, reverse=True) and best[-1] == min(m['val_nats'] for m in evaluations)
    assert checkpoint.load(tmp_path / 'run/best.pt')['best_val_loss'] == best[-1]


def test_patience_stops_early(train, tmp_path):
    """Training ends after `patience` evaluations that gained less than min_delta."""
    status, out, _ = train('--max_iters=200', '--eval_interval=10', '--patience=2', '--min_delta=100')
    assert status == 0 and 'stopping early' in out
    assert [m['iter'] for m in read(tmp_path / 'run/metrics.jsonl') if 'val_nats' in m] == [0, 10, 20]


def test_not_finite(train, tmp_path):
    """A loss that is not finite ends the run with one line and status 1; the last checkpoint loads."""
    flags = ['--learning_rate=1e30', '--warmup_iters=0', '--loss=mse', '--grad_clip=0', '--log_interval=1']
    status, _, err = train(*flags)
    assert status == 3 and len(err.splitlines()) == 1 and 'last good checkpoint' in err, err
    weights = checkpoint.load(tmp_path / 'run/ckpt.pt')['model']
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_loss_of_ones_own(tiny_data, tmp_path):
    """The README's loss of five lines, appended to losses.py, trains and is sampled from."""
    readme = (ROOT / 'README.md').read_text()
    code = readme.split('```python\n# losses.py')[1].split('```')[0]
    for name in ROOT.glob('*.py'):
        (tmp_path / name.name).write_text(name.read_text())
    (tmp_path / 'losses.py').write_text((ROOT / 'losses.py').read_text() + '\n\n#' + code)
    status, out, err = run('train.py', *TINY, f'--dataset={tiny_data}', '--loss=focal', cwd=tmp_path)
    assert status == 0 and 'loss: focal' in out, err
    status, out, err = run('sample.py', '--max_new_tokens=5', cwd=tmp_path)
    assert status == 0 and 'focal' in err


def test_interrupt_saves(tiny_data, tmp_path):
    """The first Ctrl-C finishes the iteration, saves, says how to go on, and exits with status 130."""
    command = [sys.executable, 'train.py', *TINY, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run',
               '--max_iters=100000', '--eval_interval=100000', '--log_interval=1']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith('iter 5:'):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and '--init_from=resume' in out and 'Traceback' not in err
    assert checkpoint.load(tmp_path / 'run/ckpt.pt')['iter_num'] >= 5


def test_sample(train, tmp_path):
    """sample.py tells the same stories for a seed, others for another, begins as asked, and streams them apart."""
    assert train('--max_iters=20')[0] == 0
    def sample(*flags):
        status, out, err = run('sample.py', f'--out_dir={tmp_path}/run', '--max_new_tokens=50', *flags)
        assert status == 0, err
        return out
    a, b, c = sample('--start=Once'), sample('--start=Once'), sample('--start=Once', '--seed=2')
    assert a == b != c and a.count('-' * 79) == 3 and a.startswith('Once')
    stories = a.split('-' * 79)
    assert sample('--start=Once', '--num_samples=1').split('-' * 79)[0] == stories[0]
    assert sample('--temperature=0', '--num_samples=1') == sample('--temperature=0', '--num_samples=1', '--seed=9')
    (tmp_path / 'prompt.txt').write_text('The little ')
    assert sample(f'--start=FILE:{tmp_path}/prompt.txt').startswith('The little ')


def test_wandb_offline(train, tmp_path):
    """--wandb_log=True works offline, and a resumed run keeps its id."""
    pytest.importorskip('wandb')
    env = dict(WANDB_MODE='offline', WANDB_SILENT='true')
    status, _, err = train('--wandb_log=True', '--max_iters=2', **env)
    assert status == 0, err
    id = checkpoint.load(tmp_path / 'run/ckpt.pt')['progress']['wandb_run_id']
    assert train('--wandb_log=True', '--max_iters=4', '--init_from=resume', **env)[0] == 0
    runs = [path.name for path in (tmp_path / 'run/wandb').glob('offline-run-*')]
    assert id and runs and all(name.endswith(id) for name in runs)


@pytest.mark.parametrize('flags,says', [
    (['--dataset=tinystories/nosuch'], 'python data/tinystories/prepare.py --tokenizer=nosuch'),
    (['--loss=hinge'], 'choose from cross_entropy'),
    (['--init_from=resume', '--out_dir=nowhere'], 'no checkpoint nowhere/ckpt.pt'),
    (['--init_from=README.md'], 'README.md is no checkpoint'),
    (['--device=cuda:77'], '--device=auto'),
    (['--block_size=1000000'], 'more than block_size=1000000'),
    (['--out_dir=README.md/x'], 'cannot be used: Not a directory; choose another'),
    (['--n_head=3', '--dropout=1.5', '--lr=3'], 'n_embd % n_head'),
])
def test_bad_input(train, flags, says):
    """What cannot be right ends before the first step: a line that names it, no traceback."""
    status, _, err = train(*flags)
    assert status in (1, 2) and says in err and 'Traceback' not in err
    assert all(line.startswith('error: ') for line in err.splitlines())


@pytest.mark.parametrize('flags,says', [
    (['--out_dir=nowhere'], 'no checkpoint nowhere/ckpt.pt'), (['--temperature=-1'], 'temperature'),
    (['--start=FILE:nowhere.txt'], 'nowhere.txt'),
])
def test_bad_input_to_sample(train, tmp_path, flags, says):
    """sample.py answers what cannot be right with one line."""
    assert train('--max_iters=0')[0] == 0
    status, _, err = run('sample.py', f'--out_dir={tmp_path}/run', *flags)
    assert status in (1, 2) and says in err and err.count('\n') == 1


def test_help_answers_before_torch(tmp_path):
    """--help of both scripts lists settings with their comments and never imports torch."""
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    for script, setting in (('train.py', '--learning_rate='), ('sample.py', '--top_k=')):
        status, out, _ = run(script, '--help', PYTHONPATH=str(tmp_path))
        assert status == 0 and setting in out and 'torch was' not in out


def test_configs_differ_in_what_was_searched_only():
    """The three small configs give the same settings but for the loss and what tune.py searches for it."""
    from configurator import configure
    settings = {}
    for name in ('cross_entropy', 'mse', 'squentropy'):
        script = ROOT / 'train.py'
        values = {'__file__': str(script)}
        exec(script.read_text().split('config = configure(')[0], values)
        settings[name] = configure(values, argv=[str(ROOT / f'config/train_tinystories_{name}.py')])
        assert settings[name].pop('loss') == name
        for searched in ('learning_rate', 'weight_decay', 'grad_clip', 'squentropy_weight', 'mse_true_weight', 'mse_target'):
            settings[name].pop(searched)
    assert settings['cross_entropy'] == settings['mse'] == settings['squentropy']


def test_iterations_are_adamws(train, tmp_path, tiny_data):
    """Three iterations of two micro-batches end in the weights of a plain float64 loop with torch's AdamW."""
    import torch.nn.functional as F

    import bins
    import rng
    from model import GPT, GPTConfig
    flags = ['--max_iters=3', '--gradient_accumulation_steps=2', '--grad_clip=0.5', '--weight_decay=0.3',
             '--lr_decay_iters=4', '--min_lr=1e-3', '--warmup_iters=1']
    assert train(*flags)[0] == 0
    torch.manual_seed(rng.torch_seed(rng.INIT, 1337))
    model = GPT(GPTConfig(block_size=32, vocab_size=256, n_layer=1, n_head=2, n_embd=16, bias=False)).double()
    groups = [{'params': [p for p in model.parameters() if p.dim() == 2], 'weight_decay': 0.3},
              {'params': [p for p in model.parameters() if p.dim() == 1], 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    tokens = bins.open_bin(tiny_data, 'train', bins.read_meta(tiny_data))
    for it, lr in enumerate([5e-3, 1e-2, 1e-3 + 9e-3 * 0.75]):  # half way up; the top; a third of the cosine
        starts = bins.train_windows(len(tokens), 32, 1337, 8 * it, 8)  # both micro-batches at once
        x, y = map(torch.from_numpy, bins.read_windows(tokens, starts, 32))
        F.cross_entropy(model.logits(model(x)).flatten(0, 1), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group['lr'] = lr
        optimizer.step()
        optimizer.zero_grad()
    saved = checkpoint.load(tmp_path / 'run/ckpt.pt')['model']
    for name, p in model.state_dict().items():
        torch.testing.assert_close(saved[name].double(), p, rtol=1e-3, atol=2e-5)


def test_muons_own_learning_rate(train, tmp_path):
    """--muon_learning_rate is the rate of the blocks' matrices alone, also when a resumed run changes it."""
    flags = ['--optimizer=muon', '--decay_lr=False', '--warmup_iters=0']
    for more in (['--max_iters=2', '--muon_learning_rate=0.05'],
                 ['--max_iters=4', '--muon_learning_rate=0.03', '--init_from=resume']):
        assert train(*flags, *more)[0] == 0
        groups = checkpoint.load(tmp_path / 'run/ckpt.pt')['optimizer']['param_groups']
        assert [group['lr'] for group in groups] == pytest.approx([0.01, 0.01, float(more[1].split('=')[1])])


def test_evaluations_are_not_training_time(train, tmp_path):
    """The seconds of metrics.jsonl leave out evaluations, here nearly all of the time."""
    started = time.perf_counter()
    assert train('--max_iters=3', '--eval_interval=1', '--eval_iters=400')[0] == 0
    seconds = [m['seconds'] for m in read(tmp_path / 'run/metrics.jsonl')]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < 0.4 * (time.perf_counter() - started)


def test_resume_takes_new_optimizer_settings(train, tmp_path):
    """What a resumed run may change takes effect: the optimizer has the new weight decay and betas."""
    assert train('--max_iters=2')[0] == 0
    status, out, err = train('--max_iters=4', '--init_from=resume', '--weight_decay=0.7', '--beta2=0.5')
    assert status == 0 and 'weight_decay 0.1 -> 0.7' in out, err
    groups = checkpoint.load(tmp_path / 'run/ckpt.pt')['optimizer']['param_groups']
    assert [(g['weight_decay'], g['betas'][1]) for g in groups] == [(0.7, 0.5), (0.0, 0.5)]
    (tmp_path / 'run/ckpt.pt').write_bytes((tmp_path / 'run/best.pt').read_bytes())
    status, _, err = train('--init_from=resume')
    assert status == 1 and "can't be resumed, it has no optimizer" in err and err.count('\n') == 1
