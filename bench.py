"""Measure speed and memory of this code against a plain PyTorch baseline (nanoloss/baseline.py), and against others.

    python bench.py all
    python bench.py heads|train|sample|evaluate|prepare|start [--only=mse] [--json=True]
"""
import sys

from configurator import configure, fail

TASKS = ('heads', 'train', 'sample', 'evaluate', 'prepare', 'start')

rounds = 5              # the two cases of a row run alternately this many times; results are medians
seconds = 2.0           # minimum duration of a round
threads = 0             # threads per process; 0 = all cores
only = ''               # measure only the rows whose name contains this text
device = 'auto'         # auto | cpu | cuda
dtype = 'auto'          # auto | float32 | bfloat16
matmul = 'auto'         # on a CPU, library for float32 matmul of our cases: auto (the faster one) | torch | onednn
compile = 'auto'        # auto (on CUDA) | True | False: use torch.compile for both cases of a row
json = False            # print one JSON object instead of the table
task = sys.argv[1] if len(sys.argv) > 1 and not sys.argv[1].startswith('-') else ''
configure(globals(), argv=sys.argv[2:] if task else sys.argv[1:], rules=[
    'rounds >= 1', 'seconds > 0', 'threads >= 0', "device in ('auto', 'cpu', 'cuda')",
    "dtype in ('auto', 'float32', 'bfloat16')", "compile in ('auto', 'True', 'False')",
    "matmul in ('auto', 'torch', 'onednn')",
])
if task not in (*TASKS, 'all'):
    fail(f"bench.py needs a task, found {task or 'none'}: choose from {', '.join(TASKS)}, all", status=2)

import importlib.util
import itertools
import multiprocessing
import os
import re
import subprocess
import tempfile
import time
import timeit
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from nanoloss import signals

signals.install_excepthook('measure fewer rows with --only')

import numpy as np
import torch
import torch.nn.functional as F

from losses import make_loss, mean_loss
from model import GPT, GPTConfig
from nanoloss import baseline, calibration, convert, dataloader, engine, link, scoring
from nanoloss.device import choose_compile, choose_device, prepare_cpu, processor_name
from nanoloss.matmul import HAS_ONEDNN, mm
from nanoloss.optim import make_optimizer
from nanoloss.paths import DATA, ROOT
from nanoloss.tokenizer import Tokenizer

SMALL = dict(n_layer=4, n_head=4, n_embd=128, block_size=256)
MEDIUM = dict(n_layer=6, n_head=6, n_embd=384, block_size=256)
# on a GPU only, the shapes of the config files
GPU_30M = dict(n_layer=6, n_head=6, n_embd=384, block_size=512)
GPU_124M = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024)
GPT2, BPE = 50257, 4096  # vocabulary sizes
# dense bfloat16 TFLOP/s (float16 on V100 and T4), from NVIDIA's data sheets
PEAK_TFLOPS = {'H200': 989, 'H100 PCIe': 756, 'H100': 989, 'A100': 312, 'L40S': 362, 'L40': 181, 'A10G': 70,
               'A10': 125, 'RTX 4090': 165, 'RTX 3090': 71, 'V100': 125, 'T4': 65}

if threads:
    torch.set_num_threads(threads)
try:
    device, dtype, autocast, _ = choose_device(device, dtype)
    compile, _ = choose_compile(compile, device)
    matmul = 'torch' if compile else matmul
except ValueError as e:
    fail(e)
on_gpu = device.startswith('cuda')


# Cases. Each returns a function to measure, the tokens that one call processes, and the FLOPs per token (0 = unknown).

def new_model(C, shape):
    torch.manual_seed(0)
    return GPT(GPTConfig(**shape, vocab_size=C, bias=False)).to(device)


def head(loss, use_baseline=False, C=GPT2, N=4096, d=128):
    """Loss and gradients of the output layer alone, for hidden states (N, d)."""
    model = new_model(C, dict(n_layer=0, n_head=1, n_embd=d, block_size=1))
    hidden, weight = torch.randn(N, d, device=device, requires_grad=True), model.lm_head.weight
    targets = torch.randint(C, (N,), device=device)
    criterion = make_loss(loss, C)
    if not use_baseline:
        prepare_cpu(device, model, N, matmul)

    def work():
        with autocast:
            if use_baseline:
                objective = baseline.loss(loss, hidden @ weight.T, targets)
            else:
                objective = mean_loss(criterion, hidden, weight, targets, C, compile)
        objective.backward()
        hidden.grad = weight.grad = None
    return work, N, 0


def iteration(loss, shape, batch_size=16, C=GPT2, optimizer='adamw', use_baseline=False,
              compile_baseline=compile):
    """A training iteration on random tokens: forward, backward, gradient clipping, optimizer."""
    raw_model = new_model(C, shape)
    x, y = torch.randint(C, (2, batch_size, shape['block_size']), device=device)
    layers, d = shape['n_layer'], shape['n_embd']
    weights = 12 * layers * d * d + (C * d if loss != 'mse' else 0)  # mse needs no logits
    flops = 6 * weights + 12 * layers * d * shape['block_size']
    if use_baseline:
        train_step = baseline.trainer(raw_model, loss, compiled=compile_baseline)

        def work():
            with autocast:
                train_step(x, y)
        return work, x.numel(), flops
    prepare_cpu(device, raw_model, x.numel(), matmul)
    model = torch.compile(raw_model, dynamic=False) if compile else raw_model
    criterion = make_loss(loss, C)
    optimizer = make_optimizer(raw_model, optimizer, 1e-3, 1e-3, 0.1, (0.9, 0.99))

    def work():
        with autocast:
            objective = mean_loss(criterion, model(x), raw_model.lm_head.weight, y, C, compile)
        objective.backward()
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return work, x.numel(), flops


def generation(shape, stories=1, C=BPE, use_baseline=False, use_transformers=False, tokens=250):
    """Generate a batch of stories from prompts of one token, with temperature 0.8 and top_k 200."""
    model = new_model(C, shape).eval()
    idx = torch.full((stories, 1), C - 1, device=device)
    criterion = make_loss('cross_entropy', C)
    if use_transformers:
        model = convert.to_hugging_face_model(model, Tokenizer('ids', size=C))
        options = dict(do_sample=True, attention_mask=torch.ones_like(idx), pad_token_id=0)

    def work():
        with autocast:
            if use_transformers:
                model.generate(idx, max_new_tokens=tokens, temperature=0.8, top_k=200, **options)
            elif use_baseline:
                model.generate(idx, tokens, temperature=0.8, top_k=200)
            else:
                sampler = engine.make_sampler(criterion, torch.rand(stories, tokens).numpy(), 0.8, top_k=200)
                for ids in engine.generate(model, idx, tokens, sampler):
                    ids.tolist()  # as in sample.py, which prints each token
    return work, stories * tokens, 0


def pairs(task):
    """Return the rows of heads, train or sample: (name, our case, the other case, target for the ratio of speeds)."""
    def versus_baseline(name, case, target=None):
        return f'{name}: ours / baseline', case, partial(case, use_baseline=True), target

    if task == 'heads':
        return [versus_baseline(f'head, {loss}', partial(head, loss))
                for loss in ('cross_entropy', 'squentropy', 'mse')]
    if task == 'sample':
        one, ten, large = (partial(generation, SMALL), partial(generation, SMALL, stories=10),
                           partial(generation, MEDIUM | {'block_size': 512}, C=GPT2))
        return [versus_baseline('1 story, 4,096 ids', one, 15), versus_baseline('10 stories, 4,096 ids', ten, 50),
                versus_baseline('1 story, 30 M', large, 8),
                *((f'ours / transformers, {name}', case, partial(case, use_transformers=True), None)
                  for name, case in (('1 x 4,096 ids', one), ('10 x 4,096 ids', ten), ('1 x 50,257 ids', large)))]
    small, small_baseline = partial(iteration, shape=SMALL), partial(iteration, shape=SMALL, use_baseline=True)
    rows = [
        versus_baseline('cross_entropy', partial(small, 'cross_entropy'), 2.2),
        ('squentropy / cross_entropy, both ours', partial(small, 'squentropy'), partial(small, 'cross_entropy'), 0.95),
        ("squentropy: ours / the original study's", partial(small, 'squentropy'),
         partial(small_baseline, 'cross_entropy_plus_mse'), 7),
        ('mse: ours / baseline cross_entropy', partial(small, 'mse'), partial(small_baseline, 'cross_entropy'), 10),
        ('mse: ours / baseline one-hot mse', partial(small, 'mse'), partial(small_baseline, 'mse'), 16),
        versus_baseline('cross_entropy, 4,096 ids', partial(small, 'cross_entropy', C=BPE), 1.4),
        versus_baseline('cross_entropy, 6 x 384', partial(iteration, 'cross_entropy', MEDIUM, batch_size=8), 1.1),
        ('4,096 ids: muon / adamw, both ours', partial(small, 'cross_entropy', C=BPE, optimizer='muon'),
         partial(small, 'cross_entropy', C=BPE), None),
    ]
    if hasattr(F, 'linear_cross_entropy'):
        rows += [('cross_entropy: ours / torch linear_cross_entropy', partial(small, 'cross_entropy'),
                  partial(small_baseline, 'linear_cross_entropy'), None)]
    if not on_gpu:  # on a GPU, all cases are compiled
        for name, case, target in (('50,257 ids', partial(small, 'cross_entropy'), 1.5),
                                   ('4,096 ids', partial(small, 'cross_entropy', C=BPE), 1.4),
                                   ('6 x 384', partial(iteration, 'cross_entropy', MEDIUM, batch_size=8), 1.2)):
            compiled = partial(case, use_baseline=True, compile_baseline=True)
            rows.append((f'ours / compiled baseline, {name}', case, compiled, target))
    else:
        large = partial(iteration, shape=GPU_124M)
        rows += [
            versus_baseline('124 M, cross_entropy', partial(large, 'cross_entropy'), 1.15),
            ('124 M, squentropy / cross_entropy', partial(large, 'squentropy'), partial(large, 'cross_entropy'), 0.97),
            ('124 M, mse / cross_entropy', partial(large, 'mse'), partial(large, 'cross_entropy'), 1),
            ('124 M, muon / adamw', partial(large, 'cross_entropy', optimizer='muon'), partial(large, 'cross_entropy'),
             None),
            versus_baseline('30 M, cross_entropy', partial(iteration, 'cross_entropy', GPU_30M, batch_size=64)),
        ]
        if hasattr(F, 'linear_cross_entropy'):
            rows += [('124 M, cross_entropy: ours / linear_cross_entropy', partial(large, 'cross_entropy'),
                      partial(large, 'linear_cross_entropy', use_baseline=True), None)]
    return rows


def missing(case):
    """Return a note if this machine lacks what a case needs, or ''."""
    if case.keywords.get('use_transformers') and not importlib.util.find_spec('transformers'):
        return 'not measured (transformers is not installed)'
    try:
        choose_compile(str(case.keywords.get('compile_baseline', False)), device)
        return ''
    except ValueError as e:
        return f'not measured ({e})'


# Measurement

class Case:
    """A case that is ready to run."""

    def __init__(self, make):
        before = torch.cuda.memory_allocated() if on_gpu else 0
        self.work, self.tokens, self.flops = make()
        self.work()  # warm-up: allocation and compilation
        self.bytes_kept = torch.cuda.memory_allocated() - before if on_gpu else 0

    def run_round(self):
        """Run for at least `seconds`; return tokens/s, FLOP/s and the peak memory in bytes."""
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            bytes_of_others = torch.cuda.memory_allocated() - self.bytes_kept
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < seconds:
            self.work()
            calls += 1
            if on_gpu and calls % 10 == 0:  # a training loop does not wait for the GPU in every iteration
                torch.cuda.synchronize()
        if on_gpu:
            torch.cuda.synchronize()
        rate = calls * self.tokens / (time.perf_counter() - start)
        if on_gpu:
            return rate, rate * self.flops, torch.cuda.max_memory_allocated() - bytes_of_others
        import resource  # not on Windows
        memory_unit = 1 if sys.platform == 'darwin' else 1024
        return rate, rate * self.flops, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * memory_unit


# On a CPU each case has a process of its own, which spawn starts by importing this file.

def start_case(make):
    global own_case
    own_case = Case(make)


def run_round():
    return own_case.run_round()


def measure_pair(name, ours, other, target):
    """Run two cases alternately; return a row with medians of tokens/s and of the ratio of speeds, and peak memory."""
    with ExitStack() as stack:
        if on_gpu:  # in one process, because starting takes longer than measuring
            torch.compiler.reset()  # otherwise shapes of earlier rows would be compiled as symbols
            measure_round = [Case(ours).run_round, Case(other).run_round]
        else:
            context, measure_round = multiprocessing.get_context('spawn'), []
            for make in (ours, other):
                pool = stack.enter_context(ProcessPoolExecutor(1, context, start_case, (make,)))
                pool.submit(bool).result()  # wait for the warm-up, so that it does not disturb the other process
                measure_round.append(lambda pool=pool: pool.submit(run_round).result())
        results = [[measure() for measure in measure_round] for _ in range(rounds)]
    rates, model_flops, memory = np.array(results).transpose(2, 1, 0)  # each (2, rounds)
    row = {'name': name, 'ours': median(rates[0]), 'other': median(rates[1]), 'ratio': median(rates[0] / rates[1]),
           'target': target, 'unit': 'tokens/s', 'ours_bytes': memory[0].max(), 'other_bytes': memory[1].max(),
           'all': rates.tolist()}
    return row | {'flops': median(model_flops[0])} if model_flops[0].any() else row


# Evaluation, compared with a forward pass that computes all logits, in processor time: the ratio is to be low.

def sampled_split(loss, C, copies):
    """Return a model of 3 layers of width 96, its weights scaled so that its probabilities are neither equal nor 0 and
    1, and a Split of copies of 16,384 tokens that are sampled from it."""
    model = new_model(C, dict(n_layer=3, n_head=3, n_embd=96, block_size=256)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5 if loss == 'mse' else 8)
    sampler = engine.make_sampler(make_loss(loss, C), np.random.default_rng(0).random((64, 255), 'float32'))
    start = torch.randint(C, (64, 1), device=device)
    text = torch.cat([start, *(ids[:, None] for ids in engine.generate(model, start, 255, sampler))], 1)
    tokens = np.tile(text.cpu().numpy().ravel().astype(np.uint16), copies)
    return model, scoring.Split(model, tokens, None, 16, None)


def evaluation_rows():
    """Yield the processor time per token of an evaluation in all readouts, fit included, and of one in train.py.

    The fit is on 2/5 of the tokens for the small vocabulary, as on the 77,453 tokens of val.bin for 199,262 of test.bin
    (docs/results.md), and on all tokens for the large one.
    """
    for (C, copies), loss in itertools.product(((BPE, 4), (GPT2, 1)), ('cross_entropy', 'squentropy', 'mse')):
        names = [f'{script} / forward pass: {loss}, {C:,} ids' for script in ('evaluate.py', 'train.py')]
        if not any(only in name for name in names):
            continue
        criterion, (model, split) = make_loss(loss, C), sampled_split(loss, C, copies)
        prepare_cpu(device, model, 16 * 256, matmul)
        times, share = [], 0.4 if C == BPE else 1.0

        def evaluate():
            split.states.cache = None
            states = split.states.subset(int(share * split.states.n_tokens))
            fitted = calibration.fit_calibration(criterion, states, lambda i: split.unit(i) % 2)
            totals = scoring.Totals(split)
            for batch in scoring.score_tokens(criterion, split.states, lambda i: (
                    fitted.inverse_temperature[1 - split.unit(i) % 2], fitted.mix[1 - split.unit(i) % 2])):
                totals.add(*batch)

        def evaluate_in_training():
            split.states.cache = None
            for batch in split.states.run(keep=False):
                link.score_batch(criterion, batch.hidden, model.lm_head.weight, batch.targets, C)

        def forward_pass():
            split.states.cache = None
            for batch in split.states.run(keep=False):
                for hidden in batch.hidden.split(1024):
                    model.logits(hidden)
        for _ in range(rounds):
            times.append([processor_seconds(work) for work in (evaluate, evaluate_in_training, forward_pass)])
        times = 1e6 * np.array(times) / split.states.n_tokens
        targets = (3 if C == BPE else 6 if loss == 'cross_entropy' else 10, 2 if loss == 'cross_entropy' else 4)
        for i, (name, target) in enumerate(zip(names, targets, strict=True)):
            if only in name:
                yield {'name': name, 'ours': median(times[:, i]), 'other': median(times[:, 2]), 'unit': 'us/token',
                       'ratio': median(times[:, i] / times[:, 2]), 'target': target}


@torch.no_grad()
def processor_seconds(work):
    """Return the seconds of processor time of all threads, or the seconds on a GPU."""
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def matmul_flops(product):
    """Return the FLOP/s of a product of two (2048, 2048) matrices in the dtype that training uses."""
    a = torch.randn(2048, 2048, device=device)

    def work():
        with autocast:
            product(a, a)
        if on_gpu:
            torch.cuda.synchronize()
    return 2 * 2048**3 / median(timeit.repeat(work, number=1, repeat=12)[2:])


def run_script(*command, until=None):
    """Run a script until it exits or prints a line that matches `until`; return the seconds it took and its output."""
    command = [sys.executable, *map(str, command)]
    env = os.environ | {'PYTHONIOENCODING': 'utf-8'} | ({'OMP_NUM_THREADS': str(threads)} if threads else {})
    start, output = time.perf_counter(), ''
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding='utf-8', env=env) as process:
        for line in process.stdout:
            output += line
            if until and re.match(until, line):
                duration = time.perf_counter() - start
                process.kill()
                return duration, output
        status = process.wait()
    if status or until:
        fail(f'{" ".join(command)} exited with status {status}' + (f' before it printed {until!r}' if until else ''))
    return time.perf_counter() - start, output


def start_rows():
    """Yield the seconds until train.py prints --help and its first iteration, and the time of data loading."""
    help_seconds = [run_script('train.py', '--help')[0] for _ in range(rounds)]
    yield {'name': 'train.py --help', 'ours': median(help_seconds), 'unit': 's', 'target': 0.5}
    with tempfile.TemporaryDirectory() as folder:
        data = f'{folder}/data'
        run_script('data/synthetic/prepare.py', '--stories=3000', '--vocab_size=4096', f'--out_dir={data}')
        first_seconds = [run_script('train.py', f'--dataset={data}', f'--out_dir={folder}/run{i}', until='iter 1:')[0]
                         for i in range(rounds)]
        yield {'name': 'train.py, to its first iteration', 'ours': median(first_seconds), 'unit': 's', 'target': 4}
        tokens = dataloader.open_bin(data, 'train', dataloader.read_meta(data))
        first_window = itertools.count(step=16)

        def load():
            starts = dataloader.train_windows(len(tokens), 256, seed=1, start=next(first_window), count=16)
            dataloader.load_windows(tokens, starts, 256)
        times = timeit.repeat(load, number=1, repeat=200)
        yield {'name': 'data loading, an iteration of 16 windows', 'ours': 1000 * median(times), 'unit': 'ms',
               'target': None}


def prepare_rows():
    """Yield the tokens/s of prepare.py and of a loop over the stories with the same tokenizer."""
    sys.path.insert(0, str(DATA / 'synthetic'))
    from grammar import generate_stories
    stories = list(itertools.islice(generate_stories(), 20000)) * 3
    ours, other = [], []
    with tempfile.TemporaryDirectory() as folder:
        Path(f'{folder}/stories.txt').write_text('<|endoftext|>'.join(stories), encoding='utf-8')
        for _ in range(rounds):
            _, output = run_script('data/tinystories/prepare.py', f'--input={folder}/stories.txt',
                                   f'--out_dir={folder}/data', '--overwrite=True')
            ours.append(float(re.search(r'([\d,]+) tokens/s', output)[1].replace(',', '')))
            tokenizer = Tokenizer.for_dataset(f'{folder}/data', dataloader.read_meta(f'{folder}/data'))
            start = time.perf_counter()
            ids = np.array([i for story in stories for i in [*tokenizer.encode(story), tokenizer.eot]], np.uint16)
            other.append(len(ids) / (time.perf_counter() - start))
    yield {'name': 'prepare.py / one loop over the stories', 'ours': median(ours), 'other': median(other),
           'ratio': median(a / b for a, b in zip(ours, other, strict=True)), 'unit': 'tokens/s', 'target': None}


def measure(task):
    """Yield the rows of a task."""
    if task == 'start':
        yield from start_rows()
    elif task == 'evaluate':
        yield from evaluation_rows()
    elif task == 'prepare':
        yield from prepare_rows()
    else:
        for pair in pairs(task):
            if only in pair[0]:
                note = missing(pair[2])
                yield {'name': pair[0], 'note': note} if note else measure_pair(*pair)


def table_line(name, *cells):
    widths = (10, 10, 10, 8, 8, 14, 8)
    return f'{name:44}' + ''.join(f'{cell:>{width}}' for cell, width in zip(cells, widths, strict=True))


def format_row(row, peak):
    def number(x):
        return f'{x:,.0f}' if x >= 100 else f'{x:.3g}'
    if 'note' in row:
        return f"{row['name']:44}  {row['note']}"
    memory = f"{row['ours_bytes'] / 2**30:.2f} / {row['other_bytes'] / 2**30:.2f}" if 'ours_bytes' in row else ''
    return table_line(row['name'], number(row['ours']), number(row['other']) if 'other' in row else '', row['unit'],
                      f"{row['ratio']:.2f}" if 'ratio' in row else '', f"{row['target']:g}" if row['target'] else '',
                      memory, f"{row['flops'] / peak:.0%}" if 'flops' in row else '')


def print_json(values):
    import json  # here, because `json` is a setting of this script
    print(json.dumps(values, indent=1))


if __name__ == '__main__':
    environment = f'{processor_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {dtype}, ' \
                  + time.strftime('%Y-%m-%d')
    torch_rate = matmul_flops(torch.mm)
    rate = max(torch_rate, matmul_flops(mm)) if HAS_ONEDNN and not on_gpu else torch_rate
    peak = next((1e12 * tflops for gpu, tflops in PEAK_TFLOPS.items() if on_gpu and gpu in environment), rate)
    if not json:
        print(f'{environment}\nmatmul of two 2048 x 2048 matrices: {rate / 1e9:,.0f} GFLOP/s, '
              f'{torch_rate / 1e9:,.0f} with the default library\n'
              'MFU: FLOP/s of our model relative to this matmul, or to the peak on the data sheet of a known GPU\n')
        print(table_line('', 'ours', 'other', '', 'ratio', 'target', 'peak GiB', 'MFU'))
    rows = []
    for row in itertools.chain.from_iterable(measure(name) for name in (TASKS if task == 'all' else [task])):
        rows.append(row)
        if not json:
            print(format_row(row, peak), flush=True)
    if json:
        print_json({'environment': environment, 'peak': peak, 'matmul': rate, 'matmul_by_torch': torch_rate,
                    'rows': rows})
