"""How much sooner: the validation nats of two ways to train the small model, against seconds of training.

    python race.py --dataset=tinystories/bpe --out_dir=out/race

The plain way (plain.py: all logits at once, AdamW) trains for --max_iters iterations and takes the time T.
train.py then has T / --faster: as many iterations as fit, by the speed of a trial. Both run on the CPU in
float32, see the same windows of the data in the same order, and the same windows of val.bin; evaluations
are outside the clock. Writes race.png and race.json.
"""
from configurator import configure, fail

# -----------------------------------------------------------------------------
out_dir = 'out/race'        # what is written
dataset = 'tinystories/bpe' # a name under data/, or a folder with bins
max_iters = 2000            # of the plain way
learning_rate = 4e-3        # of the plain way: AdamW, cosine to a tenth
faster = 3.0                # train.py has so many times less time
vocab_size = 0              # of bins without a tokenizer, as in train.py
flags = ''                  # more settings for train.py, separated by spaces
batch_size = 8              # windows in an iteration of the plain way
own_batch_size = 8          # and of train.py
seed = 1337                 # of initialisation and data order, of both
evaluations = 20            # of each
eval_windows = 320          # windows of val.bin in an evaluation
# -----------------------------------------------------------------------------
configure(globals(), rules=["out_dir != '' and '{' not in out_dir", 'max_iters >= 100', 'learning_rate > 0',
                            'faster > 0', 'batch_size >= 1', 'own_batch_size >= 1', 'eval_windows >= 1',
                            ('eval_windows % own_batch_size == 0', 'choose a multiple of own_batch_size'),
                            '0 <= seed < 2**32', '2 <= evaluations <= max_iters'])
import json
import math
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import interrupts

interrupts.quiet('choose a smaller --batch_size')

import matplotlib
import torch

matplotlib.use('Agg')
import matplotlib.pyplot as plt

import bins
import losses
import machine
import optimizers
import plain
import rng
import runlog
from model import GPT, GPTConfig

SHAPE = dict(n_layer=4, n_head=4, n_embd=128, block_size=256, bias=False)
HERE = Path(__file__).resolve().parent

try:
    more_flags = shlex.split(flags)
except ValueError as e:
    fail(f'--flags={flags}: {e}')
try:
    folder = bins.find(dataset)
    meta = bins.read_meta(folder, vocab_size)
    train_data, val_data = (bins.open_bin(folder, split, meta, SHAPE['block_size']) for split in ('train', 'val'))
    Path(out_dir).mkdir(parents=True, exist_ok=True)
except (FileExistsError, NotADirectoryError, PermissionError):
    fail(f'--out_dir={out_dir} cannot be used; choose another')
except (OSError, ValueError) as e:
    fail(e)
C = meta['vocab_size'] if meta else 50257


def read(tokens, starts):
    """Inputs and targets (B, block_size)."""
    return map(torch.from_numpy, bins.read_windows(tokens, starts, SHAPE['block_size']))


@torch.no_grad()
def nats(model):
    """The mean nats a token over the windows of val.bin."""
    starts = bins.val_windows(len(val_data), SHAPE['block_size'], eval_windows)
    total = 0.0
    for i in range(0, len(starts), 8):
        x, y = read(val_data, starts[i:i + 8])
        total += losses.score(losses.cross_entropy(C), model(x), model.lm_head.weight, y, C)[1].double().sum().item()
    return total / (len(starts) * SHAPE['block_size'])


def plain_way():
    """[(seconds, tokens, nats)] of the plain way."""
    torch.manual_seed(rng.torch_seed(rng.INIT, seed))
    model = GPT(GPTConfig(vocab_size=C, **SHAPE))
    iteration = plain.trainer(model, 'cross_entropy', learning_rate)
    marks = {round(i * max_iters / evaluations) for i in range(evaluations + 1)}
    seconds, curve = 0.0, []
    for it in range(max_iters + 1):
        if it in marks:
            curve.append((seconds, it * batch_size * SHAPE['block_size'], nats(model)))
            print(f'plain way: iteration {it} of {max_iters}, {seconds:.0f} s, {curve[-1][2]:.4f} nats', flush=True)
        if it == max_iters:
            return curve
        started = time.perf_counter()
        starts = bins.train_windows(len(train_data), SHAPE['block_size'], seed, it * batch_size, batch_size)
        lr = optimizers.learning_rate(it, learning_rate, learning_rate / 10, 100, max_iters)
        iteration(*read(train_data, starts), lr).item()
        seconds += time.perf_counter() - started


def train(iterations, folder, every):
    """The metrics of a run of train.py."""
    command = [sys.executable, str(HERE / 'train.py'), *more_flags, f'--dataset={dataset}', f'--out_dir={folder}',
               f'--vocab_size={vocab_size}',
               f'--seed={seed}', *(f'--{key}={value}' for key, value in SHAPE.items()), f'--max_iters={iterations}',
               f'--batch_size={own_batch_size}', f'--eval_iters={eval_windows // own_batch_size}', '--sample_tokens=0',
               f'--eval_interval={every}', '--log_interval=10', '--eval_only=False', '--init_from=scratch',
               '--device=cpu', '--dtype=float32']
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    finally:  # an interrupt here ends the run too
        process.terminate()
        process.wait()
    if status:
        fail(f'train.py ended with status {status}: {shlex.join(command)}')
    return list(runlog.entries(Path(folder) / 'metrics.jsonl'))


for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: sys.exit(128 + number))
trial = [line for line in train(100, f'{out_dir}/trial', 100) if 'loss' in line]
a_second = (trial[-1]['iter'] - trial[1]['iter']) / (trial[-1]['seconds'] - trial[1]['seconds'])
curves = {'the plain way': plain_way()}
T = curves['the plain way'][-1][0]
if not math.isfinite(curves['the plain way'][-1][2]):
    fail(f'the plain way diverged; lower --learning_rate={learning_rate}')
iterations = int(T / faster * a_second)
print(f'the plain way took {T:.0f} s; train.py makes {a_second:.2f} iterations a second: {iterations}', flush=True)
if iterations < 100:
    fail(f'{iterations} iterations in {T / faster:.0f} s are too few; give a larger --max_iters')
lines = train(iterations, f'{out_dir}/train', -(-iterations // evaluations))
curves['train.py'] = [(line['seconds'], line['tokens'], line['val_nats']) for line in lines if 'val_nats' in line]

figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
for (name, curve), style in zip(curves.items(), ('--', '-'), strict=True):
    seconds, _, values = zip(*curve, strict=True)
    axes.plot(seconds, values, style, label=f'{name}: {values[-1]:.3f} nats in {seconds[-1]:.0f} s')
plain_end, our_end = curves['the plain way'][-1][2], curves['train.py'][-1]
axes.axhline(plain_end, color='grey', lw=0.7)
axes.axvline(T / faster, color='grey', lw=0.7, ls=':')
axes.set(xlabel='seconds of training', ylabel='validation nats a token', ylim=(min(plain_end, our_end[2]) - 0.15, 5.5),
         title=f'{meta["source"] if meta else folder}: seed {seed}, {torch.get_num_threads()} threads')
axes.legend()
figure.savefig(f'{out_dir}/race.png', dpi=110)
Path(f'{out_dir}/race.json').write_text(json.dumps({
    'flags': flags, 'processor': machine.processor('cpu'),
    'learning_rate': learning_rate, 'threads': torch.get_num_threads(), 'torch': torch.__version__,
    'date': time.strftime('%Y-%m-%d'), 'columns': ['seconds', 'tokens', 'nats'], **curves}, indent=1))
print(f'plain way {plain_end:.4f} nats in {T:.0f} s; train.py {our_end[2]:.4f} in {our_end[0]:.0f} s, '
      f'{T / our_end[0]:.2f} times less; {out_dir}/race.png')
