"""Say how good a checkpoint is: nats, bits per byte, accuracy and calibration on a whole split.

    python evaluate.py                                              the newest run under out/
    python evaluate.py --checkpoint=out/mse/best.pt --split=test --json=True
    python evaluate.py --checkpoint=out/mse/best.pt --compare=out/squentropy/best.pt --plots=plots
"""
from configurator import configure, fail, printable

# -----------------------------------------------------------------------------
# what is scored
checkpoint = ''             # a checkpoint file; '' = that of out_dir
out_dir = ''                # a run: its best.pt, or else its ckpt.pt; '' = the newest under out/
compare = ''                # a second checkpoint, compared with the first story by story
per_byte = False            # compare in bits per byte of text, which two tokenizers can share
dataset = ''                # a name under data/ or a folder with bins; '' = that of the checkpoint
split = 'val'               # val | test (for the last word only) | train
# -----------------------------------------------------------------------------
# how
blocks = False              # True: blocks of block_size that cut across stories, as nanoGPT's loop has
                            # them; False: each story from a fresh context that begins with end-of-text
stride = 0                  # tokens by which the window slides in stories longer than block_size;
                            # 0 = half of block_size
batch_size = 16             # windows at a time; changes the speed and, with random_batches, their size
device = 'auto'             # auto | cpu | cuda | cuda:1 | mps
random_batches = 0          # also what a loop like nanoGPT's would have said: 95 % of the softmax readings of so
                            # many random batches of batch_size blocks
bootstrap = 9999            # resamples behind the intervals and p-values
seed = 1337                 # of the resamples
# -----------------------------------------------------------------------------
# output
json = False                # True: one JSON object on stdout in place of the table
plots = ''                  # a folder for reliability.png and positions.png
arrays = ''                 # a file.npz: sums of each story, calibration groups, nats by frequency of the token
# -----------------------------------------------------------------------------
configure(globals(), rules=[
    ("not (checkpoint and out_dir)", 'give the one or the other'), "split in ('val', 'test', 'train')",
    'stride >= 0', 'batch_size >= 1', '1 <= bootstrap <= 10**7', 'seed >= 0',
    ("not arrays or arrays.endswith('.npz')", 'name it so'),
    'random_batches >= 0', ('not random_batches or blocks', 'add --blocks=True'),
    ('not per_byte or compare', 'give a second checkpoint with --compare=FILE'),
    "device == 'auto' or device.split(':')[0] in ('cpu', 'cuda', 'mps')",
])

import math
import os
import sys
from json import dumps
from types import SimpleNamespace

import interrupts

interrupts.quiet('lower --batch_size')

import numpy as np
from tqdm import tqdm

import bins
import checkpoint as checkpoints
import losses
import machine
import metrics
import processes
import rundir
import scoring
from tokenizer import Tokenizer

UNIT = 'block' if blocks else 'story'
UNITS = 'blocks' if blocks else 'stories'


def bar(batches, about):
    return tqdm(batches, desc=about, unit='batch', disable=None if processes.first else True, leave=False,
                dynamic_ncols=True, delay=1)


def open_run(path):
    """A checkpoint with the data it is scored on. Raises OSError or ValueError, one line each."""
    loaded = checkpoints.load(path)
    model, tokenizer, loss = checkpoints.restore(loaded, device)
    name = dataset or loaded.get('config', {}).get('dataset', '')
    if not name:
        raise ValueError(f'{path} does not say which data it was trained on; give --dataset=...')
    folder = bins.find(name)
    meta = bins.read_meta(folder, tokenizer.vocab_size if tokenizer.kind == 'ids' else 0)
    its_tokenizer = Tokenizer.of_data(folder, meta)
    if tokenizer.eot is None and (not blocks or per_byte):
        raise ValueError(f'{path} was trained on ids without a tokenizer: where stories end and how long they are in '
                         'bytes is not known; --blocks=True, without --per_byte, scores it')
    if its_tokenizer.to_dict() != tokenizer.to_dict():
        raise ValueError(f'{path} has another tokenizer ({tokenizer.kind}, {tokenizer.vocab_size} ids) than '
                         f'--dataset={name} ({its_tokenizer.kind}, {its_tokenizer.vocab_size} ids, not the same ones); '
                         'give the data it was trained with')
    if stride > model.config.block_size:
        raise ValueError(f'--stride={stride} is more than the block_size={model.config.block_size} of {path}; '
                         'tokens would be left out')
    run = SimpleNamespace(path=path, loaded=loaded, model=model, tokenizer=tokenizer, loss=loss, folder=folder,
                          meta=meta, loss_name=loaded['loss']['name'], block_size=model.config.block_size)
    run.data = {name: open_split(run, name) for name in {split, 'val'}}  # T and mix always come from val.bin
    return run


def open_split(run, name):
    """Tokens of a split, the windows that score them, and the unit of each token: 0 .. units-1, -1 = not scored."""
    tokens = bins.open_bin(run.folder, name, run.meta)
    if blocks:
        windows = bins.block_windows(len(tokens), run.block_size)
        bounds = np.append(windows[:, 0], len(tokens))
    else:
        bounds = bins.stories(tokens, run.tokenizer.eot)
        windows = bins.story_windows(bounds, run.block_size, stride or max(1, run.block_size // 2))
    unit = np.repeat(np.arange(-1, len(bounds) - 1), np.diff(bounds, prepend=0))
    return SimpleNamespace(tokens=tokens, windows=windows, bounds=bounds, unit=unit, units=len(bounds) - 1,
                           states=scoring.HiddenStates(run.model, tokens, windows, run.tokenizer.eot or 0, batch_size,
                                                        bar))


def text_bytes(run):
    """Bytes of text in each unit (units,), end-of-text marks left out."""
    length = np.array([len(run.tokenizer.token_bytes(i)) for i in range(run.tokenizer.vocab_size)])
    length[run.tokenizer.eot] = 0
    here = run.data[split]
    return np.bincount(here.unit[here.unit >= 0], length[here.tokens][here.unit >= 0], here.units)


def score(run):
    """Everything that is known of one checkpoint: fills run.figures, run.sums and run.result."""
    here, val = run.data[split], run.data['val']
    scored = here.unit >= 0
    # two halves of val.bin, each read with what was fitted on the other; another split with what all of val.bin gave
    fold = (val.unit % 2 if split == 'val' else np.zeros(len(val.tokens), np.int64)) if val.units > 1 else val.unit * 0
    temperature, mix = scoring.fit(run.loss, val.states, fold)
    if split != 'val':
        val.states.kept = None  # make room
    other = 1 - fold if len(mix) == 2 else np.zeros(len(here.tokens), np.int64)
    figures = scoring.measure(run.loss, here.states, len(here.tokens), mix[other], temperature[other])
    here.states.kept = None
    assert (figures.pop('times') == scored).all()
    if not np.isfinite(figures['objective'][scored]).all():
        fail(f'{run.path}: the model gives figures that are not finite; its weights are damaged or training diverged; '
             'give another')

    # sums of each unit, in float64
    def per_unit(x):
        return np.bincount(here.unit[scored], x[scored], here.units)
    run.tokens = per_unit(np.ones(len(scored)))
    run.sums = {}
    for name in scoring.READINGS:
        f = figures[name]
        f['top1'], f['top5'] = f['rank'] < 1, f['rank'] < 5
        run.sums[name] = {key: per_unit(f[key]) for key in ('nats', 'top1', 'top5')}
    columns = [run.sums[name][key] for name in scoring.READINGS for key in ('nats', 'top1')]
    intervals = metrics.bootstrap(np.stack(columns, 1), run.tokens, bootstrap, seed).tolist()

    n, readings = int(scored.sum()), {}
    if run.tokenizer.kind == 'ids':
        run.bytes = None
    else:
        run.bytes = run.meta['splits'].get(split, {}).get('bytes') if run.meta else int(text_bytes(run).sum())
    for i, name in enumerate(scoring.READINGS):
        f = {key: x[scored] for key, x in figures[name].items()}
        total = {key: float(x.sum()) for key, x in run.sums[name].items()}
        nats = total['nats'] / n
        readings[name] = {
            'nats': nats, 'nats_interval': intervals[2 * i], 'perplexity': math.exp(min(nats, 700)),
            'bits_per_byte': total['nats'] / math.log(2) / run.bytes if run.bytes else None,
            'top1': total['top1'] / n, 'top1_interval': intervals[2 * i + 1], 'top5': total['top5'] / n,
            'ece_width': metrics.ece(f['confidence'], f['top1']),
            'ece_mass': metrics.ece(f['confidence'], f['top1'], mass=True),
            'brier': float(f['brier'].mean(dtype=np.float64))}
    run.figures = figures

    def mean(key):
        value = float(figures[key][scored].mean(dtype=np.float64))
        return value if math.isfinite(value) else None
    repo = bins.ROOT.parent  # results are passed on: they need not say where it lies
    place = run.folder.relative_to(repo) if run.folder.is_relative_to(repo) else run.folder
    run.result = {
        'checkpoint': str(run.path), 'loss': run.loss_name, 'numbers': run.loaded['loss']['numbers'],
        'iteration': run.loaded.get('iter_num'), 'data': str(place), 'split': split,
        'source': run.meta['source'] if run.meta else 'bins without meta.json, taken as GPT-2 tokens',
        'synthetic': run.meta['synthetic'] if run.meta else None,
        'tokenizer': run.tokenizer.kind, 'vocab_size': run.tokenizer.vocab_size, 'block_size': run.block_size,
        'mode': UNITS, 'stride': None if blocks else stride or max(1, run.block_size // 2),
        'random_batches': metrics.random_batches(
            (run.sums['softmax']['nats'] / run.tokens)[:max(1, here.units - 1)],  # the last one is short
            random_batches * batch_size, bootstrap, seed).tolist() if random_batches else None,
        'machine': run.loaded.get('machine', {}),
        UNITS: here.units, 'tokens': n, 'bytes': run.bytes,
        'objective': mean('objective') * losses.reported_scale(run.loss, run.model.config.vocab_size),
        'raw_link_sum': mean('link_sum'), 'raw_link_negative': mean('link_negative'),
        'link_mix': losses.MIX, 'fitted_on': f'val.bin, {len(mix)} folds' if len(mix) == 2 else 'val.bin',
        'fitted_temperature': temperature.tolist(), 'fitted_mix': mix.tolist(), 'readings': readings}


def save_arrays(run, path):
    """What compare.py needs of a run beside its result, as arrays in a .npz file:

    tokens (units,); nats, top1, brier (readings, units), sums of each; calibration (readings,
    15, 3) of equal-mass groups: count, confidence, share correct; frequency (groups, 2 + readings): how often the
    tokens of a group occur in train.bin (at least), how many were scored, and the sum of their nats.
    """
    here = run.data[split]
    scored = here.unit >= 0
    out = {'tokens': run.tokens, 'nats': [], 'top1': [], 'brier': [], 'calibration': []}
    for name in scoring.READINGS:
        f = run.figures[name]
        out['nats'].append(run.sums[name]['nats'])
        out['top1'].append(run.sums[name]['top1'])
        out['brier'].append(np.bincount(here.unit[scored], f['brier'][scored], here.units))
        groups = np.stack(metrics.calibration(f['confidence'][scored], f['top1'][scored], mass=True), 1)
        out['calibration'].append(np.pad(groups, ((0, 15 - len(groups)), (0, 0))))
    first = run.loaded['config'].get('train_tokens')
    train = bins.open_bin(run.folder, 'train', run.meta)
    train = train[:first if type(first) is int and first > 0 else None]
    seen = sum(np.bincount(train[i:i + 2**24], minlength=run.tokenizer.vocab_size)  # bincount copies, 8 bytes a token
               for i in range(0, len(train), 2**24))
    power = np.floor(np.log2(np.maximum(seen[here.tokens[scored]], 1))).astype(int)  # groups double
    columns = [np.bincount(power, weights) for weights in
               [None, *(run.figures[name]['nats'][scored] for name in scoring.READINGS)]]
    out['frequency'] = np.column_stack([2.0 ** np.arange(power.max() + 1), *columns])
    try:
        np.savez_compressed(path, **out)
    except OSError as e:
        fail(f'--arrays={path} cannot be written: {e.strerror}; choose another')


def check_paired(a, b):
    """Ends the run where the units of two checkpoints are not the same text."""
    here, there = a.data[split], b.data[split]
    if per_byte:
        same = np.array_equal(text_bytes(a), text_bytes(b))
    else:
        same = np.array_equal(here.tokens, there.tokens) and np.array_equal(here.unit, there.unit)
    if not same:
        way = '--blocks=False pairs stories' if blocks else 'give --dataset, or prepare both from one text'
        fail(f'{split}.bin of {a.folder} for {a.path} and of {b.folder} for {b.path} are not the same {UNITS}; {way}')


def compared(a, b):
    """The first checkpoint less the second, unit by unit, in every reading."""
    sizes = text_bytes(a) if per_byte else a.tokens
    unit, scale = ('bits_per_byte', 1 / math.log(2)) if per_byte else ('nats', 1.0)
    out = {'with': str(b.path), 'paired_by': UNIT, UNITS: len(sizes), 'readings': {}}
    columns = [scale * (a.sums[name]['nats'] - b.sums[name]['nats']) for name in scoring.READINGS]
    if not per_byte:
        columns += [a.sums[name]['top1'] - b.sums[name]['top1'] for name in scoring.READINGS]
    columns = np.stack(columns, 1)
    intervals = metrics.bootstrap(columns, sizes, bootstrap, seed).tolist()
    p_values = metrics.sign_flip(columns, bootstrap, seed).tolist()
    differences = (columns.sum(0) / sizes.sum()).tolist()
    rows = [{'difference': d, 'interval': i, 'p': p} for d, i, p in zip(differences, intervals, p_values, strict=True)]
    for i, name in enumerate(scoring.READINGS):
        out['readings'][name] = {unit: rows[i]} | ({} if per_byte else {'top1': rows[i + 3]})
    return out


# -----------------------------------------------------------------------------
# score
try:
    if not checkpoint:
        out_dir = out_dir or str(rundir.newest())
        checkpoint = f'{out_dir}/best.pt' if os.path.exists(f'{out_dir}/best.pt') else f'{out_dir}/ckpt.pt'
    device, _, _, why = machine.choose(device, 'float32', processes.local_rank if processes.launched else None)
    machine.prepare(device)
    processes.start(device)
    runs = [open_run(path) for path in [checkpoint, compare] if path]
    if len({dumps(run.tokenizer.to_dict()) for run in runs}) == 2 and not per_byte:
        fail(f'{checkpoint} and {compare} have different tokenizers ({runs[0].tokenizer.kind}, '
             f'{runs[0].tokenizer.vocab_size} ids, and {runs[1].tokenizer.kind}, {runs[1].tokenizer.vocab_size}): '
             'nats a token do not compare; add --per_byte=True')
    if compare:
        check_paired(*runs)  # now: the scoring may take hours
    if plots:
        try:
            os.makedirs(plots, exist_ok=True)
        except OSError as e:
            fail(f'--plots={plots} cannot be used: {e.strerror}; choose another')
    if arrays and (os.path.isdir(arrays) or not os.access(os.path.dirname(arrays) or '.', os.W_OK)):
        fail(f'--arrays={arrays} cannot be written; choose another')
    for run in runs:
        score(run)
except (OSError, ValueError) as e:
    fail(e)
processes.part()
if not processes.first:
    sys.exit()
result = runs[0].result
if arrays:
    save_arrays(runs[0], arrays)
if compare:
    result = {**result, 'compared': {**compared(*runs), 'other': runs[1].result}}

# -----------------------------------------------------------------------------
# say
ROWS = [('nats a token', 'nats', '{:.4f}'), ('', 'nats_interval', '[{:.4f}, {:.4f}]'),
        ('perplexity', 'perplexity', '{:.3f}'), ('bits per byte', 'bits_per_byte', '{:.4f}'),
        ('top-1 accuracy', 'top1', '{:.4f}'), ('', 'top1_interval', '[{:.4f}, {:.4f}]'),
        ('top-5 accuracy', 'top5', '{:.4f}'), ('ECE, 15 equal widths', 'ece_width', '{:.4f}'),
        ('ECE, 15 equal masses', 'ece_mass', '{:.4f}'), ('Brier score', 'brier', '{:.4f}')]


def say(r):
    made_up = {True: '; NOTE: made-up stories of a grammar, not TinyStories', False: '', None: ''}[r['synthetic']]
    print(printable(f"checkpoint   {r['checkpoint']}: {r['loss']}, iteration {r['iteration'] or 0:,}"))
    print(printable(f"data         {r['split']}.bin of {r['data']}, from {r['source']}{made_up}"))
    print(f"             {r[UNITS]:,} {UNITS}, {r['tokens']:,} tokens ({r['tokenizer']}, {r['vocab_size']:,} ids), "
          f"{r['bytes'] or 0:,} bytes of text")
    print('context      ' + (f"blocks of {r['block_size']} that cut across stories, as nanoGPT's loop has them"
                             if blocks else f"each story from end-of-text on; past {r['block_size']} tokens the window "
                             f"slides by {r['stride']}") + '; each token scored once')
    raw = 'not defined for a loss of your own' if r['raw_link_sum'] is None else \
        f"sums to {r['raw_link_sum']:.4f} a token, {r['raw_link_negative']:.4f} of it negative (means)"
    print(f"objective    {r['objective']:.6g}, as trained and logged")
    print(f'raw link     {raw}')
    how = 'two-fold cross-fitting over ' + UNITS if 'folds' in r['fitted_on'] else 'all of it'
    numbers = ', '.join(f'T {t:.3f} mix {m:.3f}'
                        for t, m in zip(r['fitted_temperature'], r['fitted_mix'], strict=True))
    print(f'fitted       on val.bin, {how}: {numbers}\n')
    print(' ' * 22 + ''.join(f'{name:>20}' for name in r['readings']))
    for title, key, form in ROWS:
        cells = [reading[key] for reading in r['readings'].values()]
        cells = ['?' if x is None else form.format(*x) if isinstance(x, list) else form.format(x) for x in cells]
        print(f'{title:22}' + ''.join(f'{cell:>20}' for cell in cells))
    if r['random_batches']:
        low, high = r['random_batches']
        print(f'softmax on {random_batches} random batches of {batch_size} blocks: 95 % of such readings lie in '
              f'[{low:.4f}, {high:.4f}] nats, [{math.exp(low):.3f}, {math.exp(high):.3f}] in perplexity')
    print(f'[ ] 95 % intervals: bootstrap over {UNITS}, {bootstrap:,} resamples. link: {1 - r["link_mix"]:g} link + '
          f'{r["link_mix"]:g} softmax.\n')


def say_compared(c):
    print(f"{runs[0].path} less {c['with']}, paired by {c['paired_by']} on the same text:")
    for key, title in (('nats', 'nats a token'), ('bits_per_byte', 'bits per byte'), ('top1', 'top-1 accuracy')):
        for name, reading in c['readings'].items():
            if key in reading:
                low, high = reading[key]['interval']
                print(f"{title:16}{name:8}{reading[key]['difference']:+10.4f}  [{low:+.4f}, {high:+.4f}]  "
                      f"p = {reading[key]['p']:.4f}")
    print(f'p: sign flips of whole {UNITS}, (b + 1) / (B + 1), B = {bootstrap:,}. This is about these two checkpoints '
          'on this text,\nnot about two losses: another seed of training would give two others.')


def draw(folder):
    """reliability.png: share correct against confidence, in 15 groups of equal mass, of each reading; positions.png:
    nats against the place of the token in its story (or block), in groups that widen."""
    import matplotlib
    matplotlib.use('agg')  # files only, so no screen is needed
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(runs), figsize=(5 * len(runs), 5), squeeze=False, layout='constrained')
    for ax, run in zip(axes[0], runs, strict=True):
        scored = run.data[split].unit >= 0
        ax.plot([0, 1], [0, 1], color='0.7', linewidth=1)
        for name, marker in zip(scoring.READINGS, 'osD', strict=True):
            f = run.figures[name]
            _, confidence, accuracy = metrics.calibration(f['confidence'][scored], f['top1'][scored], mass=True)
            ax.plot(confidence, accuracy, marker=marker, markersize=4, linewidth=1.2,
                    label=f"{name}, ECE {run.result['readings'][name]['ece_mass']:.3f}")
        ax.set(xlabel='confidence of the top-1 prediction', ylabel='share correct', xlim=(0, 1), ylim=(0, 1),
               title=f'{run.loss_name}, {split}.bin', aspect='equal')
        ax.legend(loc='upper left')
    figure.savefig(f'{folder}/reliability.png', dpi=150)

    figure, ax = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for run, line in zip(runs, ('-', '--'), strict=False):
        here = run.data[split]
        scored = here.unit >= 0
        place = (np.arange(len(here.tokens)) - here.bounds[here.unit])[scored] + 1
        edges = np.unique(np.geomspace(1, place.max() + 1, 40).astype(int))
        group = np.searchsorted(edges, place, side='right') - 1
        counts = np.bincount(group)
        for name, colour in zip(scoring.READINGS, ('C0', 'C1', 'C2'), strict=True):
            nats = np.bincount(group, run.figures[name]['nats'][scored])
            ax.plot((np.bincount(group, place) / counts)[counts > 0], (nats / counts.clip(1))[counts > 0], line,
                    color=colour, linewidth=1.2, label=f'{run.loss_name}, {name}' if compare else name)
        ax.axvline(run.block_size, color='0.8', linewidth=1, zorder=0)
    ax.set(xscale='log', xlabel=f'place of the token in its {UNIT} (grey: block_size)', ylabel='nats a token',
           title=f'{split}.bin' if compare else f'{runs[0].loss_name}, {split}.bin')
    ax.legend()
    figure.savefig(f'{folder}/positions.png', dpi=150)


for run in runs:
    trained_with = run.loaded['data'].get('fingerprint', {}).get('val')
    if trained_with and trained_with != bins.fingerprint(run.data['val'].tokens):
        print(f"note: {run.folder} is another preparation than the one {run.path} was trained with, "
              'so it may hold stories of its training', file=sys.stderr)
if plots:
    try:
        draw(plots)
    except (OSError, ImportError) as e:
        fail(f'--plots={plots}: {e}')
if json:
    print(dumps(result, indent=1))
else:
    for run in runs:
        say(run.result)
    if compare:
        say_compared(result['compared'])
