"""Plot the validation loss of train.py and of the plain PyTorch baseline against seconds of training.

    python dev/race.py --dataset=tinystories/bpe --out_dir=out/race

The baseline (nanoloss/baseline.py: all logits at once, AdamW) trains the small model for --max_iters iterations, which
takes T seconds. train.py then gets T / --speedup seconds: as many iterations as fit, given its speed in a trial run.
Both run on the CPU in float32, and read the same windows in the same order, both for training and for evaluation.
Evaluations do not count as training time. Writes race.png and race.json.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configurator import configure, fail

out_dir = 'out/race'        # output folder
dataset = 'tinystories/bpe' # name under data/, or a folder with token bins
max_iters = 2000            # of the baseline
learning_rate = 4e-3        # of the baseline: AdamW, cosine decay to a tenth
speedup = 3.0               # train.py gets this many times less time
vocab_size = 0              # of bins without a tokenizer, as in train.py
flags = ''                  # further flags for train.py, separated by spaces
batch_size = 8              # windows per iteration of the baseline
own_batch_size = 8          # windows per iteration of train.py
seed = 1337                 # random seed of initialization and data order, for both
evaluations = 20            # per curve
eval_windows = 320          # windows of val.bin per evaluation
configure(globals(), rules=["out_dir != '' and '{' not in out_dir", 'max_iters >= 100', 'learning_rate > 0',
                            'speedup > 0', 'batch_size >= 1', 'own_batch_size >= 1', 'eval_windows >= 1',
                            ('eval_windows % own_batch_size == 0', 'choose a multiple of own_batch_size'),
                            '0 <= seed < 2**32', '2 <= evaluations <= max_iters'])
import json
import math
import shlex
import signal
import subprocess
import time

from nanoloss import signals

signals.install_excepthook('lower --batch_size')

import torch

from losses import cross_entropy
from model import GPT, GPTConfig
from nanoloss import baseline, dataloader, plotting, rng
from nanoloss.device import processor_name
from nanoloss.link import score_batch
from nanoloss.metrics_log import read_metrics
from nanoloss.optim import learning_rate_at
from nanoloss.paths import ROOT

SHAPE = dict(n_layer=4, n_head=4, n_embd=128, block_size=256, bias=False)

try:
    train_flags = shlex.split(flags)
except ValueError as e:
    fail(f'--flags={flags} could not be parsed: {e}')
try:
    folder = dataloader.find_dataset(dataset)
    meta = dataloader.read_meta(folder, vocab_size)
    train_data, val_data = (dataloader.open_bin(folder, split, meta, SHAPE['block_size']) for split in ('train', 'val'))
except (OSError, ValueError) as e:
    fail(e)
try:
    Path(out_dir).mkdir(parents=True, exist_ok=True)
except OSError as e:
    fail(f'--out_dir={out_dir} is not a writable folder ({e.strerror}); choose another')
C = dataloader.vocab_size_of(meta)


def read_batch(tokens, starts):
    """Return inputs and targets, both (B, block_size)."""
    return dataloader.load_windows(tokens, starts, SHAPE['block_size'])


@torch.no_grad()
def evaluate(model):
    """Return the mean nats per token over the windows of val.bin."""
    starts = dataloader.val_windows(len(val_data), SHAPE['block_size'], eval_windows)
    total = 0.0
    for i in range(0, len(starts), 8):
        x, y = read_batch(val_data, starts[i:i + 8])
        _, nll = score_batch(cross_entropy(C), model(x), model.lm_head.weight, y, C)
        total += nll.double().sum().item()
    return total / (len(starts) * SHAPE['block_size'])


def train_baseline():
    """Train the baseline; return its curve [(seconds, tokens, nats)]."""
    torch.manual_seed(rng.torch_seed(rng.INIT, seed))
    model = GPT(GPTConfig(vocab_size=C, **SHAPE))
    train_step = baseline.trainer(model, 'cross_entropy', learning_rate)
    eval_iters = {round(i * max_iters / evaluations) for i in range(evaluations + 1)}
    seconds, curve = 0.0, []
    for iter_num in range(max_iters + 1):
        if iter_num in eval_iters:
            curve.append((seconds, iter_num * batch_size * SHAPE['block_size'], evaluate(model)))
            print(f'baseline: iteration {iter_num} of {max_iters}, {seconds:.0f} s, {curve[-1][2]:.4f} nats',
                  flush=True)
        if iter_num == max_iters:
            return curve
        start = time.perf_counter()
        starts = dataloader.train_windows(len(train_data), SHAPE['block_size'], seed, iter_num * batch_size, batch_size)
        lr = learning_rate_at(iter_num, learning_rate, learning_rate / 10, 100, max_iters)
        train_step(*read_batch(train_data, starts), lr).item()
        seconds += time.perf_counter() - start


def run_train(iterations, run_dir, eval_interval):
    """Run train.py and return the lines of its metrics.jsonl."""
    command = [sys.executable, str(ROOT / 'train.py'), *train_flags, f'--dataset={dataset}', f'--out_dir={run_dir}',
               f'--vocab_size={vocab_size}', f'--seed={seed}', *(f'--{key}={value}' for key, value in SHAPE.items()),
               f'--max_iters={iterations}', f'--batch_size={own_batch_size}', '--sample_tokens=0',
               f'--eval_iters={eval_windows // own_batch_size}', f'--eval_interval={eval_interval}',
               '--log_interval=10', '--eval_only=False', '--init_from=scratch', '--device=cpu', '--dtype=float32']
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    finally:  # an interrupt of this script ends train.py too
        process.terminate()
        process.wait()
    if status:
        fail(f'train.py exited with status {status}: {shlex.join(command)}')
    return list(read_metrics(Path(run_dir) / 'metrics.jsonl'))


def draw(path, curves, title):
    """Plot both curves, with lines at the final loss of the baseline and at the time that train.py gets."""
    figure, axes = plotting.plt.subplots(figsize=(plotting.WIDTH, 4.3))
    finals = [curve[-1][2] for curve in curves.values()]
    for i, (name, curve) in enumerate(curves.items()):
        seconds, _, nats = zip(*curve, strict=True)
        axes.plot(seconds, nats, **plotting.style(i), label=f'{name}: {nats[-1]:.3f} nats in {seconds[-1]:.0f} s')
    baseline_seconds, _, baseline_nats = curves['baseline'][-1]
    axes.axhline(baseline_nats, color=plotting.GRAY, linewidth=1, linestyle=':', label='final loss of the baseline')
    axes.axvline(baseline_seconds / speedup, color=plotting.GRAY, linewidth=1, linestyle='--',
                 label=f'1/{speedup:g} of the time of the baseline')
    axes.set(xlabel='seconds of training', ylabel='validation nats per token', ylim=(min(finals) - 0.15, 5.5),
             title=title)
    axes.legend()
    plotting.save(figure, path)


for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: sys.exit(128 + number))
trial = [line for line in run_train(100, f'{out_dir}/trial', 100) if 'loss' in line]
iters_per_second = (trial[-1]['iter'] - trial[1]['iter']) / (trial[-1]['seconds'] - trial[1]['seconds'])
curves = {'baseline': train_baseline()}
baseline_seconds, _, baseline_nats = curves['baseline'][-1]
if not math.isfinite(baseline_nats):
    fail(f'the baseline diverged; lower --learning_rate={learning_rate}')
iterations = int(baseline_seconds / speedup * iters_per_second)
print(f'the baseline took {baseline_seconds:.0f} s; train.py gets {iterations} iterations at {iters_per_second:.2f} '
      'per second', flush=True)
if iterations < 100:
    fail(f'{iterations} iterations in {baseline_seconds / speedup:.0f} s are too few; raise --max_iters')
metrics = run_train(iterations, f'{out_dir}/train', -(-iterations // evaluations))
curves['train.py'] = [(line['seconds'], line['tokens'], line['val_nats']) for line in metrics if 'val_nats' in line]
train_seconds, _, train_nats = curves['train.py'][-1]

source = meta['source'] if meta else folder
draw(f'{out_dir}/race.png', curves, f'{source}: seed {seed}, {torch.get_num_threads()} threads')
Path(f'{out_dir}/race.json').write_text(json.dumps({
    'flags': flags, 'processor': processor_name('cpu'),
    'learning_rate': learning_rate, 'threads': torch.get_num_threads(), 'torch': torch.__version__,
    'date': time.strftime('%Y-%m-%d'), 'columns': ['seconds', 'tokens', 'nats'], **curves}, indent=1))
print(f'baseline: {baseline_nats:.4f} nats in {baseline_seconds:.0f} s; train.py: {train_nats:.4f} nats in '
      f'{train_seconds:.0f} s, {baseline_seconds / train_seconds:.2f} times faster; wrote {out_dir}/race.png')
