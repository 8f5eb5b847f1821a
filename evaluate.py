"""Evaluate a checkpoint on every token of a split: nats, bits per byte, accuracy and calibration.

    python evaluate.py                                              the newest run under out/
    python evaluate.py --checkpoint=out/mse/best.pt --split=test --json=True
    python evaluate.py --checkpoint=out/mse/best.pt --compare=out/squentropy/best.pt --plots=plots
"""
from configurator import configure, fail, fail_on, require

# checkpoint and data ----------------------------------------------------------
checkpoint = ''             # checkpoint file; '' = best.pt or else ckpt.pt of out_dir
out_dir = ''                # run directory; '' = the newest one under out/
compare = ''                # second checkpoint, compared with the first one story by story
per_byte = False            # compare in bits per byte of text; required if the tokenizers differ
dataset = ''                # name under data/ or a folder with token bins; '' = the data set of the checkpoint
split = 'val'               # val | test (reserved for the final evaluation) | train
# evaluation -------------------------------------------------------------------
blocks = False              # False: score each story from a fresh context that starts with end-of-text;
                            # True: score consecutive blocks of block_size that ignore story bounds, as nanoGPT does
stride = 0                  # tokens by which the window slides in stories longer than block_size;
                            # 0 = half of block_size
batch_size = 16             # windows per batch; affects only speed, and the size of the random batches
device = 'auto'             # auto | cpu | cuda | cuda:1 | mps
matmul = 'auto'             # on a CPU, library for float32 matmul: torch | onednn | auto (that of the run if it was
                            # trained on this processor, otherwise the faster one)
random_batches = 0          # also report the interval that contains 95 % of the losses (softmax) over this many random
                            # batches of batch_size blocks, as nanoGPT's estimate_loss measures it
bootstrap = 9999            # resamples for confidence intervals and p-values
seed = 1337                 # random seed of the resamples
# output -----------------------------------------------------------------------
json = False                # print one JSON object instead of the table
plots = ''                  # folder for reliability.png and positions.png
arrays = ''                 # .npz file for sums per story, calibration groups and nats by token frequency
configure(globals(), rules=[
    ('not (checkpoint and out_dir)', 'pass one of them'), "split in ('val', 'test', 'train')",
    'stride >= 0', 'batch_size >= 1', '1 <= bootstrap <= 10**7', 'seed >= 0',
    ("not arrays or arrays.endswith('.npz')", 'pass a file name that ends in .npz'),
    'random_batches >= 0', ('not random_batches or blocks', 'add --blocks=True'),
    ('not per_byte or compare', 'pass a second checkpoint with --compare=FILE'),
    "device == 'auto' or device.split(':')[0] in ('cpu', 'cuda', 'mps')", "matmul in ('auto', 'torch', 'onednn')",
], applies=[("device in ('auto', 'cpu')", 'matmul')])

import itertools
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from nanoloss import signals

signals.install_excepthook('lower --batch_size')
if plots:
    require('matplotlib')

import numpy as np
from tqdm import tqdm

import losses
from model import GPT
from nanoloss import calibration, dataloader, distributed, evaluation_report, link, run_dir, scoring, statistics
from nanoloss.checkpoint import load_checkpoint, match_dataset, restore_model
from nanoloss.device import choose_device, prepare_cpu
from nanoloss.paths import ROOT
from nanoloss.tokenizer import Tokenizer

UNITS = 'blocks' if blocks else 'stories'


@dataclass
class Run:
    """A checkpoint, its data set and its scores."""
    path: str
    checkpoint: dict                      # contents of the file
    model: GPT
    tokenizer: Tokenizer
    loss: object                          # LossCoefficients or a custom loss
    folder: Path                          # of the data set
    meta: dict | None                     # its meta.json
    stride: int | None                    # None with --blocks
    splits: dict = field(default_factory=dict)  # {name: scoring.Split}
    # set by score()
    matmul: str = ''                      # the library for float32 matmul
    fitted: calibration.Calibration | None = None
    calibration_tokens: int = 0           # tokens of val.bin that it was fitted on
    totals: scoring.Totals | None = None


# load -------------------------------------------------------------------------

def load_run(path):
    """Load a checkpoint with its data set. Raises OSError or ValueError."""
    loaded = load_checkpoint(path)
    model, tokenizer, loss = restore_model(loaded, device)
    name = dataset or loaded['config'].get('dataset', '')
    if not name:
        raise ValueError(f'{path} does not name its data set; pass --dataset=...')
    folder, meta = match_dataset(path, tokenizer, name)
    if tokenizer.eot is None and (not blocks or per_byte):
        raise ValueError(f'{path} was trained on token ids without a tokenizer, so story bounds and text lengths are '
                         'unknown; use --blocks=True without --per_byte')
    if not meta:
        tokenizer.encode('')  # GPT-2's encoding counts the bytes after scoring, and may need a download
    block_size = model.config.block_size
    if stride > block_size:
        raise ValueError(f'--stride={stride} exceeds block_size={block_size} of {path}, which would skip tokens; '
                         'lower --stride')
    run = Run(path, loaded, model, tokenizer, loss, folder, meta,
              stride=None if blocks else stride or max(1, block_size // 2))
    for name in dict.fromkeys([split, 'val']):  # calibration always uses val.bin
        tokens = dataloader.open_bin(folder, name, meta)
        run.splits[name] = scoring.Split(model, tokens, tokenizer.eot, batch_size, run.stride, progress_bar)
    return run


def progress_bar(batches, description):
    return tqdm(batches, desc=description, unit='batch', disable=None if distributed.is_master else True, leave=False,
                dynamic_ncols=True, delay=1)


def check_comparable(a, b):
    """Exit with an error unless the units of two runs are the same text and the metric can be compared."""
    if a.tokenizer.to_dict() != b.tokenizer.to_dict() and not per_byte:
        fail(f'{a.path} and {b.path} have different tokenizers ({a.tokenizer.kind}, {a.tokenizer.vocab_size} ids, and '
             f'{b.tokenizer.kind}, {b.tokenizer.vocab_size} ids), so nats per token are not comparable; '
             'add --per_byte=True')
    data_a, data_b = a.splits[split], b.splits[split]
    if per_byte:
        same_text = np.array_equal(data_a.text_bytes(a.tokenizer), data_b.text_bytes(b.tokenizer))
    else:
        same_text = np.array_equal(data_a.tokens, data_b.tokens) and np.array_equal(data_a.bounds, data_b.bounds)
    if not same_text:
        hint = 'use --blocks=False to pair stories' if blocks else 'pass --dataset, or prepare both from the same text'
        fail(f'{split}.bin in {a.folder} for {a.path} and in {b.folder} for {b.path} do not hold the same {UNITS}; '
             f'{hint}')


# score ------------------------------------------------------------------------

def score(run):
    """Score a run; every rank must call this. Raises ValueError if a loss is not finite."""
    run.matmul = prepare_cpu(device, run.model, batch_size * run.model.config.block_size, matmul,
                             run.checkpoint.get('environment'))
    data, val = run.splits[split], run.splits['val']

    def half_of(positions):
        return val.unit(positions) % 2

    # Each half of val.bin is scored with the calibration fitted on the other half, any other split with the one fitted
    # on all of val.bin.
    states = val.states.subset(calibration.FIT_TOKENS)
    cross_fit = split == 'val' and len(np.unique(half_of(states.positions()))) == 2  # a long story can fill the subset
    fitted = calibration.fit_calibration(run.loss, states, half_of if cross_fit else None)
    if not fitted.converged and distributed.is_master:
        print(f'warning: the calibration of {run.path} did not converge in {calibration.MAX_PASSES} passes; the best '
              'values found are used', file=sys.stderr)
    run.fitted, run.calibration_tokens = fitted, states.n_tokens
    if split != 'val':
        del states  # free memory for the other split
        val.states.cache = None

    def calibration_at(positions):
        fold = 1 - half_of(positions) if cross_fit else np.zeros(len(positions), np.int64)
        return fitted.inverse_temperature[fold], fitted.mix[fold]
    run.totals = scoring.Totals(data)
    for batch in scoring.score_tokens(run.loss, data.states, calibration_at):
        run.totals.add(*batch)
    run.totals.finish()
    data.states.cache = None
    if not np.isfinite([run.totals.objective, *(x.sum() for x in run.totals.sums.values())]).all():
        raise ValueError(f'{run.path}: the loss or a score is not finite; the weights are damaged or training '
                         'diverged; pass another checkpoint')


def readout_metrics(run, n_bytes):
    """Return {readout: {metric: value}} of a scored run. n_bytes: length of the text, None if it is unknown."""
    totals, n = run.totals, run.totals.tokens
    columns = [totals.sums[key][i] for i in range(len(scoring.READOUTS)) for key in ('nats', 'top1')]
    intervals = statistics.bootstrap(np.stack(columns, 1), run.splits[split].sizes, bootstrap, seed).tolist()
    readouts = {}
    for i, name in enumerate(scoring.READOUTS):
        total = {key: float(x[i].sum()) for key, x in totals.sums.items()}
        nats, counts = total['nats'] / n, totals.calibration_counts(i)
        readouts[name] = {
            'nats': nats, 'nats_interval': intervals[2 * i], 'perplexity': statistics.perplexity(nats),
            'bits_per_byte': total['nats'] / math.log(2) / n_bytes if n_bytes else None,
            'top1': total['top1'] / n, 'top1_interval': intervals[2 * i + 1], 'top5': total['top5'] / n,
            'ece_width': statistics.ece(*counts), 'ece_mass': statistics.ece(*counts, mass=True),
            'brier': total['brier'] / n}
    return readouts


def summarize(run):
    """Return the metrics of a scored run, which --json prints."""
    data, totals, n = run.splits[split], run.totals, run.totals.tokens
    if run.tokenizer.kind == 'ids':
        n_bytes = None
    elif run.meta:
        n_bytes = run.meta['splits'][split].get('bytes')
    else:
        n_bytes = int(data.text_bytes(run.tokenizer).sum())
    interval = None
    if random_batches:
        block_means = (totals.sums['nats'][0] / data.sizes)[:max(1, data.n_units - 1)]  # the last block is shorter
        interval = statistics.random_batches(block_means, random_batches * batch_size, bootstrap, seed).tolist()
    # relative to the repository, because results are shared between machines
    folder = run.folder.relative_to(ROOT) if run.folder.is_relative_to(ROOT) else run.folder
    scale = losses.reported_scale(run.loss, run.model.config.vocab_size)
    u, mix = run.fitted.inverse_temperature.tolist(), run.fitted.mix.tolist()
    return {
        'checkpoint': str(run.path), 'loss': run.checkpoint['loss']['name'],
        'coefficients': run.checkpoint['loss']['coefficients'], 'iteration': run.checkpoint['iter_num'],
        'data': str(folder), 'split': split,
        'source': run.meta['source'] if run.meta else 'token bins without meta.json, read as GPT-2 tokens',
        'tokenizer': run.tokenizer.kind, 'vocab_size': run.tokenizer.vocab_size,
        'block_size': run.model.config.block_size, 'mode': UNITS, 'stride': run.stride, 'random_batches': interval,
        'matmul': run.matmul,  # of the scoring; that of the training is in the environment
        'environment': run.checkpoint.get('environment', {}), UNITS: data.n_units, 'tokens': n, 'bytes': n_bytes,
        'objective': totals.objective / n * scale, 'raw_link_sum': finite_or_none(totals.link_sum / n),
        'raw_link_negative': finite_or_none(totals.link_negative / n), 'link_mix': link.LINK_MIX,
        'calibration_tokens': run.calibration_tokens, 'calibration_converged': run.fitted.converged,
        'calibration_temperature': [1 / x if x else None for x in u],  # None: infinite
        'calibration_mix': mix, 'readouts': readout_metrics(run, n_bytes)}


def finite_or_none(x):
    return x if math.isfinite(x) else None


def compare_runs(a, b):
    """Return the paired differences of two runs, a minus b, in every readout."""
    sizes = a.splits[split].text_bytes(a.tokenizer) if per_byte else a.splits[split].sizes
    metrics = {'bits_per_byte': 'nats'} if per_byte else {'nats': 'nats', 'top1': 'top1'}
    scale = 1 / math.log(2) if per_byte else 1.0
    columns = np.stack([scale * (x - y) for key in metrics.values()
                        for x, y in zip(a.totals.sums[key], b.totals.sums[key], strict=True)], 1)
    differences = (columns.sum(0) / sizes.sum()).tolist()
    intervals = statistics.bootstrap(columns, sizes, bootstrap, seed).tolist()
    p_values = statistics.sign_flip(columns, bootstrap, seed).tolist()
    readouts = {name: {} for name in scoring.READOUTS}
    for i, (metric, name) in enumerate(itertools.product(metrics, scoring.READOUTS)):
        readouts[name][metric] = {'difference': differences[i], 'interval': intervals[i], 'p': p_values[i]}
    return {'with': str(b.path), 'paired_by': 'block' if blocks else 'story', UNITS: len(sizes), 'readouts': readouts}


with fail_on(OSError, ValueError):
    checkpoint = run_dir.find_checkpoint(checkpoint, out_dir)
    device, _, _, _ = choose_device(device, 'float32', distributed.local_rank)
    distributed.init(device)
    runs = [load_run(path) for path in [checkpoint, compare] if path]
    if compare:
        check_comparable(*runs)
    # before scoring, which can take hours
    if plots:
        try:
            os.makedirs(plots, exist_ok=True)
        except OSError as e:
            fail(f'--plots={plots} is not a usable folder: {e.strerror}; pass another one')
    if arrays and (os.path.isdir(arrays) or not os.access(os.path.dirname(arrays) or '.', os.W_OK)):
        fail(f'--arrays={arrays} is not writable; pass another file')
    for run in runs:
        score(run)
distributed.shutdown()
if not distributed.is_master:
    sys.exit()
results = [summarize(run) for run in runs]
result = results[0]
if compare:
    result = {**result, 'compared': {**compare_runs(*runs), 'other': results[1]}}

# print, before anything can fail ----------------------------------------------

if json:
    print(evaluation_report.format_json(result), flush=True)
else:
    print(evaluation_report.format_report(result, bootstrap, random_batches, batch_size), flush=True)
for run in runs:
    fingerprint = run.checkpoint['data'].get('fingerprint', {}).get('val')
    if fingerprint and fingerprint != dataloader.fingerprint(run.splits['val'].tokens):
        print(f'note: the val.bin in {run.folder} is not the one that {run.path} was trained with, so it may contain '
              'stories that the model was trained on', file=sys.stderr)
if arrays:
    try:
        train = dataloader.open_bin(runs[0].folder, 'train', runs[0].meta)
        limit = runs[0].checkpoint['config'].get('train_tokens')
        train = train[:limit if type(limit) is int and limit > 0 else None]
        evaluation_report.save_arrays(arrays, runs[0].totals, train)
    except (OSError, ValueError) as e:
        fail(f'--arrays={arrays}: {e}')
if plots:
    try:
        evaluation_report.draw_figures(plots, results, [run.totals for run in runs])
    except OSError as e:
        fail(f'--plots={plots}: {e}')
