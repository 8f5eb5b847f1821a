"""Speed and memory: ours against the plain way to do the same (plain.py), in turns in one run.

    python bench.py all
    python bench.py heads|train|sample|prepare|start [--only=mse] [--json=True]
"""
import sys

from configurator import configure, fail

TASKS = ['heads', 'train', 'sample', 'prepare', 'start']

# -----------------------------------------------------------------------------
rounds = 5              # turns that each of a pair has; medians over them
seconds = 2.0           # a turn lasts at least so long
threads = 0             # of a process; 0 = all cores
only = ''               # only the rows that have this in their name
device = 'auto'         # auto | cpu | cuda
dtype = 'auto'          # auto | float32 | bfloat16
compile = False         # torch.compile both of a pair
json = False            # True: one JSON object on stdout in place of the table
# -----------------------------------------------------------------------------
task = sys.argv[1] if len(sys.argv) > 1 and not sys.argv[1].startswith('-') else ''
settings = configure(globals(), argv=sys.argv[1 + bool(task):], rules=[
    'rounds >= 1', 'seconds > 0', 'threads >= 0', "device in ('auto', 'cpu', 'cuda')",
    "dtype in ('auto', 'float32', 'bfloat16')",
])
if task not in [*TASKS, 'all']:
    fail(f"python bench.py {task or '(nothing)'}: what is to be measured? One of {', '.join(TASKS)}, all", status=2)

import multiprocessing
import os
import re
import statistics
import subprocess
import tempfile
import time
from json import dumps
from pathlib import Path

import interrupts

interrupts.quiet('choose fewer rows with --only')

import torch

import bins
import losses
import machine
import optimizers
import plain
import sampling
from model import GPT, GPTConfig

HERE = Path(__file__).resolve().parent
SMALL = dict(n_layer=4, n_head=4, n_embd=128, block_size=256, batch_size=16)
MIDDLE = dict(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=8)
LARGE = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=16)  # on a GPU only
GPT2, BPE = 50257, 4096
# dense bf16 (V100 and T4: fp16) TFLOP/s, from NVIDIA's data sheets
PEAKS = {'H200': 989, 'H100 PCIe': 756, 'H100': 989, 'A100': 312, 'L40S': 362, 'L40': 181, 'A10G': 70, 'A10': 125,
         'RTX 4090': 165, 'RTX 3090': 71, 'V100': 125, 'T4': 65}


# -----------------------------------------------------------------------------
# the cases: each returns a function that does some work, and how much that is, in tokens

def new_model(C, device, n_layer, n_head, n_embd, block_size, **_):
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size, vocab_size=C,
                         bias=False)).to(device)


def head(way, name, device, autocast, C=GPT2, N=4096, d=128):
    """Loss and gradients of a head alone: hidden states (N, d)."""
    torch.manual_seed(0)
    hidden = torch.randn(N, d, device=device, requires_grad=True)
    weight = (0.02 * torch.randn(-(-C // 64) * 64, d, device=device)).requires_grad_()
    targets = torch.randint(C, (N,), device=device)
    criterion = losses.make_loss(name, C)

    def work():
        with autocast:
            if way == 'ours':
                value = losses.mean_loss(criterion, hidden, weight, targets, C)
            else:
                value = plain.loss(name, hidden @ weight.T, targets)
        value.backward()
        hidden.grad = weight.grad = None
    return work, N


def iteration(way, name, device, autocast, C=GPT2, compiled=False, optimizer='adamw', **shape):
    """A whole iteration of training on random tokens: forward, backward, clipping, optimizer."""
    raw_model = new_model(C, device, **shape)
    x, y = torch.randint(C, (2, shape['batch_size'], shape['block_size']), device=device)
    if way == 'plain':
        step = plain.trainer(raw_model, name, compiled=compiled)

        def work():
            with autocast:
                step(x, y)
        return work, x.numel()
    model = torch.compile(raw_model) if compiled else raw_model
    criterion = losses.make_loss(name, C)
    optimizer = optimizers.make(raw_model, optimizer, 1e-3, 1e-3, 0.1, (0.9, 0.99))

    def work():
        with autocast:
            value = losses.mean_loss(criterion, model(x), raw_model.lm_head.weight, y, C)
        value.backward()
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return work, x.numel()


def story(way, device, autocast, C=BPE, stories=1, tokens=250, **shape):
    """Sampling at temperature 0.8 from the 200 likeliest: `stories` prompts of one token, side by side."""
    model = new_model(C, device, **shape).eval()
    idx = torch.full((stories, 1), C - 1, device=device)
    criterion = losses.make_loss('cross_entropy', C)

    def work():
        with autocast:
            if way == 'plain':
                plain.generate(model, idx, tokens)
            else:
                uniforms = torch.rand(stories, tokens).numpy()
                for ids in model.generate(idx, tokens, sampling.chooser(criterion, uniforms, 0.8, top_k=200)):
                    ids.tolist()  # as sample.py, which prints them
    return work, stories * tokens


# name of the row, (case, settings) of ours and of what it is compared with, target for the ratio of their speeds
def rows():
    def pair(name, case, ours, other, target, **shape):
        return name, (case, {**ours, **shape}), (case, {**other, **shape}), target
    ours, other = dict(way='ours'), dict(way='plain')

    def loss(way, name):
        return {**way, 'name': name}
    return {'heads': [
        pair(f'head, {name}: ours / plain', 'head', loss(ours, name), loss(other, name), None)
        for name in ('cross_entropy', 'squentropy', 'mse')
    ], 'train': [
        pair('cross_entropy: ours / plain', 'iteration', loss(ours, 'cross_entropy'), loss(other, 'cross_entropy'), 2.2,
             **SMALL),
        pair('squentropy / cross_entropy, both ours', 'iteration', loss(ours, 'squentropy'),
             loss(ours, 'cross_entropy'), 0.95, **SMALL),
        pair("squentropy: ours / the original study's", 'iteration', loss(ours, 'squentropy'),
             loss(other, 'cross_entropy_plus_mse'), 7, **SMALL),
        pair('mse: ours / plain cross_entropy', 'iteration', loss(ours, 'mse'), loss(other, 'cross_entropy'), 10,
             **SMALL),
        pair('mse: ours / plain one-hot mse', 'iteration', loss(ours, 'mse'), loss(other, 'mse'), 16, **SMALL),
        pair('cross_entropy, 4,096 ids: ours / plain', 'iteration', loss(ours, 'cross_entropy'),
             loss(other, 'cross_entropy'), 1.4, C=BPE, **SMALL),
        pair('cross_entropy, 6 x 384: ours / plain', 'iteration', loss(ours, 'cross_entropy'),
             loss(other, 'cross_entropy'), 1.1, **MIDDLE),
        pair('4,096 ids: muon / adamw, both ours', 'iteration', {**loss(ours, 'cross_entropy'), 'optimizer': 'muon'},
             loss(ours, 'cross_entropy'), None, C=BPE, **SMALL),
    ] + [
        pair('124 M, cross_entropy: ours / plain', 'iteration', loss(ours, 'cross_entropy'),
             loss(other, 'cross_entropy'), 1.15, **LARGE),
        pair('124 M, squentropy / cross_entropy', 'iteration', loss(ours, 'squentropy'), loss(ours, 'cross_entropy'),
             0.97, **LARGE),
        pair('124 M, mse / cross_entropy', 'iteration', loss(ours, 'mse'), loss(ours, 'cross_entropy'), 1, **LARGE),
    ] * machine.choose(device)[0].startswith('cuda'), 'sample': [
        pair('1 story, 4,096 ids: ours / plain', 'story', ours, other, 15, **SMALL),
        pair('10 stories, 4,096 ids: ours / plain', 'story', ours, other, 50, stories=10, **SMALL),
        pair('1 story, 30 M: ours / plain', 'story', ours, other, 8, C=GPT2, **{**MIDDLE, 'block_size': 512}),
    ]}


def flops(shape, C=GPT2, name='cross_entropy'):
    """Of the model, a token of training: 6 for each weight used, and attention's products."""
    layers, d = shape['n_layer'], shape['n_embd']
    return 6 * (12 * layers * d * d + (C * d if name != 'mse' else 0)) + 12 * layers * d * shape['block_size']


# -----------------------------------------------------------------------------
# measuring: each of a pair in a process of its own, at work in turns

def worker(pipe, case, how, settings):
    """Does turns of a case when told; at the end says its peak of memory in bytes."""
    if settings['threads']:
        torch.set_num_threads(settings['threads'])
    device, _, autocast, _ = machine.choose(settings['device'], settings['dtype'])
    if how['way'] == 'ours' and case != 'story':  # sample.py does without
        machine.prepare(device)
    on_gpu = device.startswith('cuda')
    if case == 'iteration':
        how = {**how, 'compiled': settings['compile']}
    work, tokens = globals()[case](device=device, autocast=autocast, **how)
    work()  # the first one allocates, and compiles
    pipe.send(tokens)
    while (least := pipe.recv()) is not None:
        done, started = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - started < least:
            work()
            done += 1
            if on_gpu:
                torch.cuda.synchronize()
        pipe.send(done * tokens / (time.perf_counter() - started))
    if on_gpu:
        pipe.send(torch.cuda.max_memory_allocated())
    else:
        import resource
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))


def measure(name, a, b, target):
    """A row: tokens a second and peak memory of two cases, in turns A B A B; medians and the ratio."""
    context = multiprocessing.get_context('spawn')
    pipes, workers = [], []
    for case, how in (a, b):
        mine, its = context.Pipe()
        workers.append(context.Process(target=worker, args=(its, case, how, settings), daemon=True))
        workers[-1].start()
        its.close()
        mine.recv()  # it is ready; the next one starts only now, so that they do not disturb each other
        pipes.append(mine)
    rates = [[], []]
    for _ in range(rounds):
        for pipe, mine in zip(pipes, rates, strict=True):
            pipe.send(seconds)
            mine.append(pipe.recv())
    memory = []
    for pipe, process in zip(pipes, workers, strict=True):
        pipe.send(None)
        memory.append(pipe.recv())
        process.join()
    ours, other = map(statistics.median, rates)
    ratio = statistics.median(x / y for x, y in zip(*rates, strict=True))
    row = {'name': name, 'ours': ours, 'other': other, 'ratio': ratio, 'target': target, 'unit': 'tokens/s',
           'ours_bytes': memory[0], 'other_bytes': memory[1], 'all': rates}
    if a[0] == 'iteration':
        row['flops'] = ours * flops(a[1], a[1].get('C', GPT2), a[1]['name'])
    return row


def matmul():
    """Operations a second of a product of two matrices (2048, 2048) in the type that is used."""
    name, kind, autocast, _ = machine.choose(device, dtype)
    a = torch.randn(2048, 2048, device=name)
    times = []
    for _ in range(12):
        started = time.perf_counter()
        with autocast:
            a @ a
        if name.startswith('cuda'):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * 2048**3 / statistics.median(times[2:])


def run(*command, until=None):
    """Seconds that a command of the project takes, until it says something or ends; its output."""
    started, said = time.perf_counter(), ''
    with subprocess.Popen([sys.executable, *map(str, command)], cwd=HERE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, **({'OMP_NUM_THREADS': str(threads)} if threads else {})}) as process:
        for line in process.stdout:
            said += line
            if until and re.match(until, line):
                break
        if not until:
            process.wait()
        taken = time.perf_counter() - started
        process.kill()
    if until and not re.search(until, said, re.M):
        fail(f'{" ".join(map(str, command))} did not come to {until!r}')
    return taken, said


def start_rows():
    """Seconds of train.py --help, and to the first iteration of the small model, and the share of data loading."""
    helps = [run('train.py', '--help')[0] for _ in range(rounds)]
    out = [{'name': 'train.py --help', 'ours': statistics.median(helps), 'unit': 's', 'target': 0.5}]
    with tempfile.TemporaryDirectory() as folder:
        data = f'{folder}/data'
        run('data/tinystories/prepare.py', '--source=synthetic', '--max_stories=3000', '--vocab_size=4096',
            f'--out_dir={data}')
        firsts = [run('train.py', f'--dataset={data}', f'--out_dir={folder}/run{i}', until='iter 1:')[0]
                  for i in range(rounds)]
        out.append({'name': 'train.py, to its first iteration', 'ours': statistics.median(firsts), 'unit': 's',
                    'target': 4})
        tokens = bins.open_bin(data, 'train', bins.read_meta(data))
        times = []
        for i in range(200):
            started = time.perf_counter()
            bins.read_windows(bins.unchanged(tokens), bins.train_windows(len(tokens), 256, 1, 16 * i, 16), 256)
            times.append(time.perf_counter() - started)
        out.append({'name': 'data loading, an iteration of 16 windows', 'ours': 1000 * statistics.median(times),
                    'unit': 'ms', 'target': None})
    return out


def prepare_rows():
    """Tokens a second of prepare.py's encoding against a loop over the stories with the same tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(HERE / 'data/tinystories'))
        from synthetic import stories
        import itertools
        import numpy as np
        from tokenizer import Tokenizer
        texts = list(itertools.islice(stories(), 20000)) * 3
        Path(f'{folder}/a.txt').write_text('<|endoftext|>'.join(texts))
        ours, other = [], []
        for _ in range(rounds):
            _, said = run('data/tinystories/prepare.py', f'--input={folder}/a.txt', f'--out_dir={folder}/data',
                          '--overwrite=True')
            ours.append(float(re.search(r'([\d,]+) tokens/s', said)[1].replace(',', '')))
            tokenizer = Tokenizer.load(f'{folder}/data')
            started = time.perf_counter()
            ids = [tokenizer._encoding.encode(text, disallowed_special=()) + [tokenizer.eot] for text in texts]
            array = np.array([i for story in ids for i in story], np.uint16)
            other.append(len(array) / (time.perf_counter() - started))
    return [{'name': 'prepare.py / one loop over the stories', 'ours': statistics.median(ours),
             'other': statistics.median(other), 'unit': 'tokens/s', 'target': None,
             'ratio': statistics.median(x / y for x, y in zip(ours, other, strict=True))}]


def show(row, peak):
    def number(x):
        return f'{x:,.0f}' if x >= 100 else f'{x:.3g}'
    memory = f"{row['ours_bytes'] / 2**30:.2f} / {row['other_bytes'] / 2**30:.2f}" if 'ours_bytes' in row else ''
    cells = [number(row['ours']), number(row['other']) if 'other' in row else '', row['unit'],
             f"{row['ratio']:.2f}" if 'ratio' in row else '', f"{row['target']:g}" if row['target'] else '', memory,
             f"{row['flops'] / peak:.0%}" if 'flops' in row else '']
    return f"{row['name']:44}" + ''.join(f'{cell:>{width}}' for cell, width in
                                         zip(cells, (10, 10, 10, 8, 8, 14, 8), strict=True))


if __name__ == '__main__':
    if threads:
        torch.set_num_threads(threads)
    name, kind, _, _ = machine.choose(device, dtype)
    gpu = torch.cuda.get_device_name() if name.startswith('cuda') else ''
    about = f"{machine.processor(name)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {kind}, " + \
        time.strftime('%Y-%m-%d')
    torchs = matmul()
    rate = matmul() if machine.prepare(name) != 'torch' else torchs
    peak = next((1e12 * x for key, x in PEAKS.items() if key in gpu), rate)
    if not json:
        print(f'{about}\na product of two 2048 x 2048 matrices: {rate / 1e9:,.0f} GFLOP/s, as torch '
              f'makes it {torchs / 1e9:,.0f}; share: model FLOPs of the first '
              f"(of the data sheet's peak on a known GPU)\n")
        print(f"{'':44}{'ours':>10}{'other':>10}{'':>10}{'ratio':>8}{'target':>8}{'GiB, peak':>14}{'share':>8}")
    table = []
    for kind in TASKS if task == 'all' else [task]:
        made = {'start': start_rows, 'prepare': prepare_rows}.get(kind)
        for row in made() if made else (measure(*row) for row in rows()[kind] if only in row[0]):
            table.append(row)
            if not json:
                print(show(row, peak), flush=True)
    if json:
        print(dumps({'machine': about, 'matmul': rate, 'matmul_by_torch': torchs, 'rows': table}, indent=1))
