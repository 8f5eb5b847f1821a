"""train.py as a user runs it, on 300 stories and a model of a few thousand parameters."""
import json
import math
import os
import re
import shutil

import pytest
import torch
import torch.nn.functional as F

import losses
from configurator import configure, read_settings
from conftest import ROOT, check_refused, cold, run
from model import GPT, GPTConfig
from nanoloss import baseline, dataloader, link, rng
from nanoloss.checkpoint import load_checkpoint, restore_model, save_checkpoint
from nanoloss.matmul import HAS_ONEDNN

TINY = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32', '--batch_size=4', '--learning_rate=1e-2',
        '--eval_interval=20', '--eval_iters=2', '--max_iters=40', '--warmup_iters=5', '--sample_tokens=0']


@pytest.fixture
def train(tiny_data, tmp_path):
    """A function that runs train.py on the tiny data into tmp_path/run and returns (status, stdout, stderr)."""
    def start(*flags, **env):
        return run('train.py', *TINY, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run', *flags, **env)
    return start


def read(path):
    return [json.loads(line) for line in open(path)]


# training --------------------------------------------------------------------
@pytest.mark.parametrize('loss', ['cross_entropy', 'mse', 'squentropy', 'cross_entropy_plus_mse'])
def test_training_learns(train, tmp_path, tiny_data, loss):
    """After 300 iterations each loss predicts better than the best model without context, the unigram model. The
    reported figures are those of the plain loss and of the link in float64."""
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
    assert f"{last['val_nats']:.4f}" in out and 'python sample.py --out_dir=' in out and 'synthetic' in out
    model, _, loss_fn = restore_model(load_checkpoint(tmp_path / 'run/ckpt.pt'))
    tokens = dataloader.open_bin(tiny_data, 'val', dataloader.read_meta(tiny_data))
    x, y = dataloader.load_windows(tokens, dataloader.val_windows(len(tokens), 32, 80), 32)
    with torch.no_grad():
        logits, y = model.double().logits(model(x)).flatten(0, 1), y.flatten()
    p = 0.9 * link.link(loss_fn, logits) + 0.1 * logits.softmax(-1)
    assert last['val_nats'] == pytest.approx(-p.gather(1, y[:, None]).log().mean().item(), rel=1e-4)
    scale = 256 if loss == 'mse' else 1  # mse is reported as a mean over the classes
    assert last['val_loss'] == pytest.approx(baseline.loss(loss, logits, y).item() / scale, rel=1e-4)
    step = next(m for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m)
    assert step['iter'] == 1 and step['loss'] == pytest.approx(first['val_loss'], rel=0.05)


@pytest.mark.parametrize('dtype, dropout, schedule, tolerance', [
    ('float32', 0.0, 'linear', 3e-5), ('float16', 0.0, 'cosine', 1e-2), ('float32', 0.3, 'cosine', 1e-3)])
def test_iterations_match_a_float64_loop(train, tmp_path, tiny_data, dtype, dropout, schedule, tolerance):
    """Three iterations of two micro-batches give the weights of a plain float64 loop with torch's AdamW, also when
    gradients are scaled for float16; the first two read sequences of half the length. With dropout, the loop is in
    float32, since the masks depend on the type; each micro-batch has its own."""
    flags = ['--max_iters=3', '--gradient_accumulation_steps=2', '--grad_clip=0.5', '--weight_decay=0.3',
             '--lr_decay_iters=4', '--min_lr=1e-3', '--warmup_iters=1', '--device=cpu', f'--dtype={dtype}',
             f'--dropout={dropout}', '--context_warmup=0.4', '--train_tokens=500', f'--lr_schedule={schedule}']
    assert train(*flags)[0] == 0
    torch.manual_seed(rng.torch_seed(rng.INIT, 1337))
    model = GPT(GPTConfig(block_size=32, vocab_size=256, n_layer=1, n_head=2, n_embd=16, bias=False, dropout=dropout))
    model = model if dropout else model.double()
    initial = {name: p.clone() for name, p in model.state_dict().items()}
    groups = [{'params': [p for p in model.parameters() if p.dim() == 2], 'weight_decay': 0.3},
              {'params': [p for p in model.parameters() if p.dim() == 1], 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    tokens = dataloader.open_bin(tiny_data, 'train', dataloader.read_meta(tiny_data))[:500]
    third = 1e-3 + 9e-3 * {'cosine': 0.75, 'linear': 2 / 3}[schedule]
    for iter_num, lr in enumerate([5e-3, 1e-2, third]):  # warmup; the maximum; a third of the decay
        for micro_step in range(2):
            starts = dataloader.train_windows(len(tokens), 32, 1337, 8 * iter_num + 4 * micro_step, 4)
            length = 16 if iter_num < 0.4 * 4 else 32
            x, y = (a.reshape(-1, length) for a in dataloader.load_windows(tokens, starts, 32))
            torch.manual_seed(rng.torch_seed(rng.DROPOUT, 1337, iter_num, micro_step))
            F.cross_entropy(model.logits(model(x)).flatten(0, 1), y.flatten()).div(2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group['lr'] = lr
        optimizer.step()
        optimizer.zero_grad()
    saved = load_checkpoint(tmp_path / 'run/ckpt.pt')['model']
    for name, p in model.state_dict().items():
        assert (saved[name].to(p) - p).norm() < tolerance * (p - initial[name]).norm(), name


def test_random_windows(train, tiny_data, tmp_path):
    """With --random_windows=True the first loss is that of the windows that train_windows() draws at random."""
    assert train('--random_windows=True', '--max_iters=1')[0] == 0
    torch.manual_seed(rng.torch_seed(rng.INIT, 1337))
    model = GPT(GPTConfig(block_size=32, vocab_size=256, n_layer=1, n_head=2, n_embd=16, bias=False)).double()
    tokens = dataloader.open_bin(tiny_data, 'train', dataloader.read_meta(tiny_data))
    starts = dataloader.train_windows(len(tokens), 32, 1337, 0, 4, at_random=True)
    x, y = dataloader.load_windows(tokens, starts, 32)
    expected = F.cross_entropy(model.logits(model(x)).flatten(0, 1), y.flatten()).item()
    assert next(m['loss'] for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m) == pytest.approx(expected)


@pytest.mark.slow
def test_compiled_run(tiny_data, tmp_path):
    """A compiled run has the losses of one that is not, also with a schedule and an incomplete last batch of
    evaluation, and compiles each function for one shape only."""
    flags = ['--loss=squentropy', '--squentropy_schedule=linear', '--max_iters=6', '--log_interval=1',
             '--eval_interval=3', '--eval_windows=7', '--gradient_accumulation_steps=2', '--device=cpu']
    results = []
    for compile in ('True', 'False'):
        status, _, err = cold('train.py', *TINY, *flags, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/{compile}',
                              f'--compile={compile}', TORCH_LOGS='recompiles')
        assert status == 0, err
        if compile == 'True':
            recompiled = re.findall(r'Recompiling function (\w+)', err)
            assert recompiled == ['forward'], err  # for evaluation and for training
        results.append([m.get('loss', m.get('val_nats')) for m in read(tmp_path / compile / 'metrics.jsonl')])
    assert len(results[0]) > 8 and results[0] == pytest.approx(results[1], rel=1e-5)


def test_muon_learning_rate(train, tmp_path):
    """--muon_learning_rate sets the rate of the blocks' matrices only, also when a resumed run changes it."""
    flags = ['--optimizer=muon', '--decay_lr=False', '--warmup_iters=0', '--muon_beta2=0.9']
    for more in (['--max_iters=2', '--muon_learning_rate=0.05'],
                 ['--max_iters=4', '--muon_learning_rate=0.03', '--init_from=resume']):
        assert train(*flags, *more)[0] == 0
        groups = load_checkpoint(tmp_path / 'run/ckpt.pt')['optimizer']['param_groups']
        assert [group['lr'] for group in groups] == pytest.approx([0.01, 0.01, float(more[1].split('=')[1])])
        assert groups[2]['beta2'] == 0.9


def test_final_iteration_is_evaluated(train, tmp_path):
    """The last iteration is evaluated and saved; best_val_loss never rises, and best.pt holds it."""
    status, out, _ = train('--max_iters=50', '--learning_rate=0.3', '--warmup_iters=0', '--eval_interval=10')
    evaluations = [m for m in read(tmp_path / 'run/metrics.jsonl') if 'val_nats' in m]
    assert status == 0 and evaluations[-1]['iter'] == 50 == load_checkpoint(tmp_path / 'run/ckpt.pt')['iter_num']
    best = [m['best_val_loss'] for m in evaluations]
    assert best == sorted(best, reverse=True) and best[-1] == min(m['val_nats'] for m in evaluations)
    lowest = min(evaluations, key=lambda m: m['val_nats'])
    assert load_checkpoint(tmp_path / 'run/best.pt')['iter_num'] == lowest['iter'] < 50


def test_patience(train, tmp_path):
    """Training stops after `patience` evaluations that improve by less than min_delta."""
    status, out, _ = train('--max_iters=200', '--eval_interval=10', '--patience=2', '--min_delta=100')
    assert status == 0
    assert [m['iter'] for m in read(tmp_path / 'run/metrics.jsonl') if 'val_nats' in m] == [0, 10, 20]


def test_eval_windows(train):
    """--eval_windows evaluates that many windows for every batch size; by default, eval_iters batches are evaluated."""
    def evaluate(*flags):
        status, out, err = train('--eval_only=True', *flags)
        assert status == 0, err
        return float(re.search('perplexity ([0-9.]+)', out)[1])
    default = evaluate('--batch_size=5', '--eval_iters=2')
    ten = [evaluate(f'--batch_size={n}', '--eval_iters=3', '--eval_windows=10') for n in (1, 4, 16)]
    assert ten == pytest.approx([default] * 3, abs=0.002) and abs(evaluate('--eval_windows=9') - default) > 0.02


SLOW_EVALUATION = '''
import runpy, sys
from types import SimpleNamespace
sys.path[0] = '.'
from nanoloss import link, train_state
now, score_batch = [0.0], link.score_batch

def slow_score_batch(*arguments):
    now[0] += 1
    return score_batch(*arguments)

link.score_batch = slow_score_batch
train_state.time = SimpleNamespace(perf_counter=lambda: now[0])
runpy.run_path('train.py', run_name='__main__')
'''


def test_evaluations_are_not_training_time(tiny_data, tmp_path):
    """If time passes in evaluations only, `seconds` in metrics.jsonl is always 0."""
    (tmp_path / 'slow.py').write_text(SLOW_EVALUATION)
    status, _, err = run(tmp_path / 'slow.py', *TINY, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run',
                         '--max_iters=3', '--eval_interval=1')
    assert status == 0, err
    entries = read(tmp_path / 'run/metrics.jsonl')
    assert len(entries) > 5 and {entry['seconds'] for entry in entries} == {0.0}


def test_eval_only_writes_nothing(train, tmp_path):
    """--eval_only repeats the validation loss of a checkpoint, and trains and writes nothing."""
    _, out, _ = train('--max_iters=20')
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    status, repeated, _ = train('--init_from=resume', '--eval_only=True', '--max_iters=20')
    line, = (line for line in out.splitlines() if line.startswith('iter 20: val'))
    assert status == 0 and line.split(', best')[0] in repeated
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}


def test_custom_loss(tiny_data, tmp_path):
    """The README's custom loss, appended to losses.py, trains and can be sampled from."""
    code = (ROOT / 'README.md').read_text().split('```python\n# losses.py')[1].split('```')[0]
    name = re.search(r"CUSTOM_LOSSES\['(\w+)'\]", code)[1]
    for path in ROOT.glob('*.py'):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / 'nanoloss', tmp_path / 'nanoloss', ignore=shutil.ignore_patterns('__pycache__'))
    with open(tmp_path / 'losses.py', 'a') as f:
        f.write('\n\n#' + code)
    status, out, err = run('train.py', *TINY, f'--dataset={tiny_data}', f'--loss={name}', cwd=tmp_path)
    assert status == 0 and name in out, err
    status, out, err = run('sample.py', '--max_new_tokens=5', cwd=tmp_path)
    assert status == 0 and name in err


def test_wandb_offline(train, tmp_path):
    """--wandb_log=True works offline, and a resumed run keeps its id, which may have a dot (SageMaker's have)."""
    pytest.importorskip('wandb')
    env = dict(WANDB_MODE='offline', WANDB_SILENT='true')
    status, _, err = train('--wandb_log=True', '--max_iters=2', WANDB_RUN_ID='exp.v1', **env)
    assert status == 0, err
    assert load_checkpoint(tmp_path / 'run/ckpt.pt')['train_state']['wandb_run_id'] == 'exp.v1'
    assert train('--wandb_log=True', '--max_iters=4', '--init_from=resume', **env)[0] == 0
    runs = [path.name for path in (tmp_path / 'run/wandb').glob('offline-run-*')]
    assert runs and all(name.endswith('-exp.v1') for name in runs)


@pytest.mark.slow
def test_without_wandb(train, tmp_path, tiny_data):
    """If wandb is not installed, --wandb_log=True is one line and an earlier run stays in place."""
    assert train('--max_iters=1')[0] == 0
    earlier = (tmp_path / 'run/ckpt.pt').read_bytes()
    (tmp_path / 'absent').mkdir()
    (tmp_path / 'absent/wandb.py').write_text('raise ModuleNotFoundError("No module named wandb", name="wandb")')
    status, _, err = cold('train.py', *TINY, f'--dataset={tiny_data}', f'--out_dir={tmp_path}/run', '--wandb_log=True',
                          PYTHONPATH=tmp_path / 'absent')
    assert status == 1 and err.count('\n') == 1 and 'pip install wandb' in err, err
    assert (tmp_path / 'run/ckpt.pt').read_bytes() == earlier and not (tmp_path / 'run.1').exists()


# starting from a checkpoint --------------------------------------------------
@pytest.mark.parametrize('optimizer', [['--optimizer=adamw'], ['--optimizer=muon', '--muon_beta2=0.9']])
def test_resume_matches_an_uninterrupted_run(train, tmp_path, optimizer):
    """With dropout, accumulation and context warmup, 40 iterations, and 20 resumed to 40, end in the same bits."""
    flags = ['--dropout=0.1', '--gradient_accumulation_steps=2', '--lr_decay_iters=40', '--loss=squentropy',
             '--context_warmup=0.6', *optimizer]
    assert train(*flags)[0] == 0
    os.rename(tmp_path / 'run', tmp_path / 'whole')
    assert train(*flags, '--max_iters=20')[0] == 0
    # evaluating and sampling more often draws no random number that training uses
    status, out, err = train(*flags, '--init_from=resume', '--eval_interval=7', '--sample_tokens=5')
    assert status == 0 and 'eval_interval 20 -> 7' in out, err
    a, b = (load_checkpoint(tmp_path / name / 'ckpt.pt') for name in ('whole', 'run'))
    assert a['iter_num'] == b['iter_num'] == 40
    for name in a['model']:
        assert torch.equal(a['model'][name], b['model'][name]), name
    for i, moments in a['optimizer']['state'].items():
        for key in moments:
            assert torch.equal(torch.as_tensor(moments[key]), torch.as_tensor(b['optimizer']['state'][i][key]))
    iterations = [m['iter'] for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m]
    assert iterations == sorted(set(iterations))


CROSS_ENTROPY = losses.cross_entropy(256)


@pytest.mark.parametrize('schedule, at_20, at_end', [
    (['--loss=squentropy', '--squentropy_schedule=linear', '--squentropy_end=0.7'],
     losses.squentropy(256, 1 - 0.475 / 0.7), CROSS_ENTROPY),  # the iteration before was at 19/40 of training
    (['--loss=squentropy', '--squentropy_start=0.3', '--squentropy_schedule=rise', '--squentropy_end=0.7'],
     losses.squentropy(256, 0.175 / 0.4), losses.squentropy(256)),
    (['--loss=mse', '--mse_end=0.7'], losses.mse(256), CROSS_ENTROPY),
    (['--context_warmup=0.5'], CROSS_ENTROPY, CROSS_ENTROPY)])
def test_schedule_resumes(train, tmp_path, schedule, at_20, at_end):
    """A run resumed from iteration 20 ends in the same bits; its loss at 20 and at the end is that of the schedule."""
    assert train(*schedule, '--keep_checkpoints=3')[0] == 0
    whole = load_checkpoint(tmp_path / 'run/ckpt.pt')
    before = {m['iter']: m['loss'] for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m}
    assert [*restore_model(load_checkpoint(tmp_path / 'run/ckpt-20.pt'))[2]] == pytest.approx([*at_20])
    os.replace(tmp_path / 'run/ckpt-20.pt', tmp_path / 'run/ckpt.pt')
    status, _, err = train(*schedule, '--init_from=resume')
    assert status == 0, err
    resumed = load_checkpoint(tmp_path / 'run/ckpt.pt')
    assert all(torch.equal(x, resumed['model'][name]) for name, x in whole['model'].items())
    assert {m['iter']: m['loss'] for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m} == before
    assert [*restore_model(resumed)[2]] == pytest.approx([*at_end])


def test_squentropy_start(train, tmp_path):
    """Before squentropy_start a run has the losses of cross-entropy, afterwards it has not."""
    logs = []
    for flags in ['--loss=cross_entropy'], ['--loss=squentropy', '--squentropy_start=0.5']:
        assert train(*flags, '--log_interval=1')[0] == 0
        logs.append({m['iter']: m['loss'] for m in read(tmp_path / 'run/metrics.jsonl') if 'loss' in m})
        shutil.rmtree(tmp_path / 'run')
    assert [i for i in logs[0] if logs[0][i] == logs[1][i]] == list(range(1, 21))  # of 40; 21 has progress 20/40


def test_init_from_auto(train, tmp_path):
    """--init_from=auto trains from scratch in a new folder, and then resumes with the same command."""
    flags = ['--init_from=auto', '--lr_decay_iters=40']
    assert train(*flags, '--max_iters=20')[0] == 0
    status, out, err = train(*flags)
    assert status == 0 and '\niter 21: ' not in out.split('\niter 30: ')[0] and '\niter 10: ' not in out, err
    os.rename(tmp_path / 'run', tmp_path / 'auto')
    assert train('--lr_decay_iters=40')[0] == 0
    a, b = (load_checkpoint(tmp_path / name / 'ckpt.pt')['model'] for name in ('auto', 'run'))
    assert all(torch.equal(a[name], b[name]) for name in a) and not (tmp_path / 'run.1').exists()


def test_init_from_a_file(train, tmp_path):
    """From a checkpoint file come weights and shape, but not the iteration, the loss or the optimizer. A shape in a
    config file yields to that of the weights, and one on the command line is refused."""
    assert train('--max_iters=20')[0] == 0
    (tmp_path / 'shape.py').write_text('bias = True')
    flags = [f'--init_from={tmp_path}/run/best.pt', f'--out_dir={tmp_path}/other', '--loss=mse', '--max_iters=1']
    status, _, err = train(*flags, '--n_layer=3')
    assert status == 1 and err.count('\n') == 1 and 'n_layer' in err and not (tmp_path / 'other').exists(), err
    status, out, err = train(*flags, tmp_path / 'shape.py')
    assert status == 0 and 'bias=False' in out and '\niter 1: ' in out, err
    saved = load_checkpoint(tmp_path / 'other/ckpt.pt')
    assert saved['loss']['name'] == 'mse' and saved['config']['bias'] is saved['model_args']['bias'] is False



def test_resume_takes_new_optimizer_settings(train, tmp_path):
    """Weight decay and betas may change on resume, and reach the optimizer. best.pt cannot be resumed."""
    assert train('--max_iters=2')[0] == 0
    status, out, err = train('--max_iters=4', '--init_from=resume', '--weight_decay=0.7', '--beta2=0.5')
    assert status == 0 and 'weight_decay 0.1 -> 0.7' in out, err
    groups = load_checkpoint(tmp_path / 'run/ckpt.pt')['optimizer']['param_groups']
    assert [(group['weight_decay'], group['betas'][1]) for group in groups] == [(0.7, 0.5), (0.0, 0.5)]
    shutil.copy(tmp_path / 'run/best.pt', tmp_path / 'run/ckpt.pt')
    status, _, err = train('--init_from=resume')
    assert status == 1 and 'optimizer' in err and err.count('\n') == 1


@pytest.mark.skipif(not HAS_ONEDNN, reason='PyTorch has no oneDNN for this processor')
def test_matmul_is_kept(train, tmp_path):
    """A resumed run and an evaluation use the library that the run recorded on this processor; on another processor the
    resumed run chooses again and names both."""
    flags, path = ['--n_embd=64', '--batch_size=16', '--block_size=64', '--max_iters=2'], tmp_path / 'run/ckpt.pt'
    assert train(*flags, '--matmul=onednn')[0] == 0

    def evaluate(library, recorded):
        checkpoint = load_checkpoint(path)
        checkpoint['environment']['matmul'] = recorded
        save_checkpoint(checkpoint, path)
        status, out, err = run('evaluate.py', f'--checkpoint={path}', '--json=True', '--bootstrap=9',
                               f'--matmul={library}')
        assert status == 0, err
        return json.loads(out)['matmul']
    assert evaluate('torch', 'onednn') == evaluate('auto', 'torch') == 'torch'
    assert evaluate('onednn', 'torch') == evaluate('auto', 'onednn') == 'onednn'
    flags = TINY + ['--max_iters=3', '--init_from=resume']  # products too small for oneDNN, so auto would be torch
    assert train('--max_iters=2', '--matmul=onednn')[0] == 0
    status, out, err = train(*flags)
    assert status == 0 and 'onednn ->' not in out, err
    checkpoint = load_checkpoint(path)
    assert checkpoint['environment']['matmul'] == 'onednn' and checkpoint['config']['matmul'] == 'auto'
    checkpoint['environment']['processor'] = 'another'
    save_checkpoint(checkpoint, path)
    status, out, err = train(*flags)
    assert status == 0 and 'processor another ->' in out and 'matmul onednn -> torch' in out, err



# settings --------------------------------------------------------------------
def test_help_needs_no_torch(tmp_path):
    """--help and mistakes in settings never import torch."""
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    status, out, err = cold('train.py', '--help', PYTHONPATH=tmp_path)
    assert status == 0 and '--learning_rate=' in out, err
    status, _, err = cold('train.py', '--n_layer=x', PYTHONPATH=tmp_path)
    assert status == 2 and '--n_layer' in err and 'torch was' not in err


def test_configs_share_all_other_settings():
    """The three small configs differ in the loss and in what tune.py searches for it only."""
    defaults, rules, applies = read_settings(ROOT / 'train.py')
    searched = {'loss', 'learning_rate', 'weight_decay', 'grad_clip', 'squentropy_weight', 'mse_true_weight',
                'mse_target'}
    found = []
    for name in ('cross_entropy', 'mse', 'squentropy'):
        settings = configure({**defaults, '__file__': str(ROOT / 'train.py')}, rules, applies,
                             [str(ROOT / f'config/train_tinystories_{name}.py')])
        assert settings['loss'] == name
        found.append({key: value for key, value in settings.items() if key not in searched})
    assert found[0] == found[1] == found[2]


def test_constants_of_another_loss(train, tmp_path):
    """Constants of another loss are ignored in a config file, and refused as a flag."""
    config = tmp_path / 'mine.py'
    config.write_text('loss = "squentropy"\nsquentropy_weight = 0.3\n')
    status, _, err = train(str(config), '--loss=mse', '--max_iters=1')
    assert status == 0, err
    assert load_checkpoint(tmp_path / 'run/ckpt.pt')['config']['squentropy_weight'] == 1.0
    status, _, err = train('--loss=mse', '--squentropy_weight=0.3')
    assert status == 2 and '--squentropy_weight=0.3' in err and err.count('\n') == 1


# bad input -------------------------------------------------------------------
@pytest.fixture(scope='module')
def workspace(tiny_data, tmp_path_factory):
    """A folder with data/, the run of a tiny model in run/ and a text file. No test changes it."""
    folder = tmp_path_factory.mktemp('workspace')
    shutil.copytree(tiny_data, folder / 'data')
    (folder / 'stories.txt').write_text('<|endoftext|>'.join(f'Story {i}.' for i in range(200)))
    status, _, err = run(ROOT / 'train.py', *TINY, '--dataset=data', '--max_iters=2', '--out_dir=run', cwd=folder)
    assert status == 0, err
    return folder


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a CUDA GPU')


@pytest.mark.parametrize('flags,names', [
    ('--learning_rte=1', ["'learning_rte'", '--learning_rate']),
    ('--n_layer=1.5', ['--n_layer=1.5', '--n_layer=4']),
    ('--n_layer', ['--n_layer']),
    ('--n_head=3', ['n_embd % n_head']),
    ('no.py', ['no.py']),
    ('--loss=hinge', ['hinge', 'cross_entropy']),
    ('--loss=hinge --dataset=nowhere', ['hinge']),
    ('--dataset=nowhere', ['--dataset=nowhere']),
    ('--dataset=tinystories/nosuch', ['tinystories/nosuch', 'prepare.py --tokenizer=nosuch']),
    ('--block_size=1000000000000', ['block_size=1000000000000']),
    ('--n_embd=1000000000', ['--batch_size']),
    ('--device=cpu:x', ['--device=cpu:x', '--device=auto']),
    pytest.param('--device=cuda', ['--device=cuda', '--device=auto'], marks=NO_CUDA),
    ('--out_dir=', ['out_dir']),
    ('--out_dir=stories.txt/x', ['--out_dir=stories.txt/x']),
    ('--init_from=', ["''"]),
    ('--init_from=stories.txt', ['stories.txt']),
    ('--init_from=resume', ['new/ckpt.pt']),
    ('--init_from=run/best.pt --block_size=64', ['--block_size=64', 'run/best.pt']),
    ('--init_from=resume --out_dir=run --loss=mse --n_layer=2 --optimizer=muon',
     ['loss cross_entropy -> mse', 'n_layer 1 -> 2', 'optimizer adamw -> muon']),
    ('--muon_learning_rate=4e-3', ['--muon_learning_rate=4e-3', "'muon'"]),
    ('--squentropy_schedule=linear', ['--squentropy_schedule=linear', "'squentropy'"]),
])
def test_bad_input(workspace, flags, names):
    """Bad input exits before the first step with one line that names it, and writes nothing."""
    check_refused('train.py', [*TINY, '--dataset=data', '--out_dir=new', *flags.split()], *names, cwd=workspace)


def test_every_rule(workspace):
    """Every rule of train.py refuses a value out of range, and all mistakes are reported at once."""
    flags = ('--eval_interval=0 --eval_iters=0 --eval_windows=-1 --log_interval=-1 --keep_checkpoints=-1 '
             '--sample_tokens=-1 --out_dir= --batch_size=0 --gradient_accumulation_steps=0 --block_size=0 '
             '--context_warmup=2 --seed=4294967296 --n_layer=0 --vocab_size=-1 --n_head=-2 --n_embd=-1 --dropout=1 '
             '--activation=relu --optimizer=sgd --learning_rate=0 --train_tokens=-1 --max_iters=-1 --weight_decay=-1 '
             '--beta1=1 --beta2=1.5 --grad_clip=-1 --warmup_iters=-1 --lr_schedule=step --lr_decay_iters=-1 '
             '--min_lr=1 --patience=-1 --min_delta=-1 --dtype=float64 --compile=yes --device=tpu')
    groups = [flags.split(), ['--block_size=33', '--context_warmup=0.5'], ['--matmul=mkl'],
              ['--loss=squentropy', '--squentropy_weight=-1', '--squentropy_schedule=sqrt'],
              ['--loss=squentropy', '--squentropy_start=1'], ['--loss=squentropy', '--squentropy_end=0.5'],
              ['--loss=mse', '--mse_true_weight=0', '--mse_target=0', '--mse_end=1'],
              ['--label_smoothing=-1', '--z_loss=-1'],
              ['--optimizer=muon', '--muon_learning_rate=-1', '--muon_beta2=1']]
    _, rules, applies = read_settings(ROOT / 'train.py')
    texts = [rule if isinstance(rule, str) else rule[0] for rule in rules]
    refused = set()
    for group in groups:
        status, _, err = run(ROOT / 'train.py', *group, cwd=workspace)
        assert status == 2
        refused |= {text for text in texts if text in err}
    assert refused == set(texts)
