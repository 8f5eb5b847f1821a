"""The output of evaluate.py: a table, a comparison table, JSON, arrays and figures.

A result is the dict that evaluate.py computes for a checkpoint and that --json=True prints. With --compare, its key
'compared' holds the differences and, as 'other', the result of the second checkpoint.
"""
import json
import math
import textwrap
from pathlib import Path

import numpy as np

from configurator import printable
from nanoloss import statistics

ROWS = [('nats per token', 'nats', '{:.4f}'), ('', 'nats_interval', '[{:.4f}, {:.4f}]'),
        ('perplexity', 'perplexity', '{:.3f}'), ('bits per byte', 'bits_per_byte', '{:.4f}'),
        ('top-1 accuracy', 'top1', '{:.4f}'), ('', 'top1_interval', '[{:.4f}, {:.4f}]'),
        ('top-5 accuracy', 'top5', '{:.4f}'), ('ECE, equal width', 'ece_width', '{:.4f}'),
        ('ECE, equal mass', 'ece_mass', '{:.4f}'), ('Brier score', 'brier', '{:.4f}')]


def format_json(result):
    return json.dumps(result, indent=1)


def format_report(result, resamples, random_batches=0, batch_size=0):
    """Return the text that evaluate.py prints: a table for each checkpoint and the comparison, if there is one.

    resamples: of the bootstrap. random_batches, batch_size: the settings behind result['random_batches'].
    """
    compared = result.get('compared')
    parts = [format_table(r, resamples, random_batches, batch_size)
             for r in ([result, compared['other']] if compared else [result])]
    if compared:
        parts.append(format_comparison(result, resamples))
    return '\n\n'.join(parts)


def format_table(result, resamples, random_batches=0, batch_size=0):
    """Return the table of one checkpoint, without a final newline."""
    r, units = result, result['mode']
    if units == 'blocks':
        context = f"blocks of {r['block_size']} tokens that ignore story bounds, as in nanoGPT"
    else:
        context = (f"each story starts after end-of-text; beyond {r['block_size']} tokens the window slides by "
                   f"{r['stride']}")
    if r['raw_link_sum'] is None:
        raw_link = 'not defined for a custom loss'
    else:
        raw_link = (f"sums to {r['raw_link_sum']:.4f} per token, of which {r['raw_link_negative']:.4f} is negative "
                    '(means)')
    folds = f'two-fold cross-fitting over {units}' if len(r['calibration_mix']) > 1 else 'all of it'
    pairs = ', '.join(f'T {"infinite" if t is None else f"{t:.3f}"} mix {m:.3g}'
                      for t, m in zip(r['calibration_temperature'], r['calibration_mix'], strict=True))
    lines = [
        printable(f"checkpoint   {r['checkpoint']}: {r['loss']}, iteration {r['iteration']:,}"),
        printable(f"data         {r['split']}.bin of {r['data']}, from {r['source']}"),
        f"             {r[units]:,} {units}, {r['tokens']:,} tokens ({r['tokenizer']}, {r['vocab_size']:,} ids), "
        f"{r['bytes'] or 0:,} bytes of text",
        f'context      {context}; each token is scored once',
        f"objective    {r['objective']:.6g} (the training loss)",
        f'raw link     {raw_link}',
        f'calibrated   on val.bin, {folds}: {pairs}',
        '',
        ' ' * 22 + ''.join(f'{name:>20}' for name in r['readouts'])]
    for title, key, form in ROWS:
        cells = []
        for readout in r['readouts'].values():
            x = readout[key]
            cells.append('?' if x is None else form.format(*x) if isinstance(x, list) else form.format(x))
        lines.append(f'{title:22}' + ''.join(f'{cell:>20}' for cell in cells))
    if r['random_batches']:
        low, high = r['random_batches']
        lines.append(f'softmax over {random_batches} random batches of {batch_size} blocks: 95 % of such estimates are '
                     f'in [{low:.4f}, {high:.4f}] nats, [{math.exp(low):.3f}, {math.exp(high):.3f}] perplexity')
    lines.append(f'[ ] 95 % intervals, bootstrap over {units}, {resamples:,} resamples. ECE: 15 groups. '
                 f'link: {1 - r["link_mix"]:g} link + {r["link_mix"]:g} softmax.')
    return '\n'.join(lines)


def format_comparison(result, resamples):
    """Return the table of the differences between two checkpoints, without a final newline."""
    compared = result['compared']
    lines = [printable(f"{result['checkpoint']} minus {compared['with']}, paired by {compared['paired_by']}:")]
    for key, title in (('nats', 'nats per token'), ('bits_per_byte', 'bits per byte'), ('top1', 'top-1 accuracy')):
        for name, readout in compared['readouts'].items():
            if key in readout:
                low, high = readout[key]['interval']
                lines.append(f"{title:16}{name:12}{readout[key]['difference']:+10.4f}  [{low:+.4f}, {high:+.4f}]  "
                             f"p = {readout[key]['p']:.4f}")
    lines.append(f"p: sign-flip test over {result['mode']}, {resamples:,} random flips or, if fewer, all. This compares"
                 ' two checkpoints,\nnot two losses: training with another seed gives other checkpoints.')
    return '\n'.join(lines)


def save_arrays(path, totals, train):
    """Write what compare.py needs of a checkpoint besides the JSON, a .npz file. Raises OSError.

    Its arrays, where readouts are in the order of scoring.READOUTS:

    - tokens (units,): scored tokens of each story or block;
    - nats, top1, brier (readouts, units): sums over each story or block;
    - calibration (readouts, 15, 3): count, mean confidence and accuracy of the groups of equal mass;
    - frequency (groups, 2 + readouts): minimum number of occurrences in the training set, number of scored tokens,
      and the sum of their nats in each readout, for groups of tokens whose frequencies are within a factor of two.
      Tokens that never occur count as occurring once.

    Args:
        path: the file.
        totals: the scoring.Totals of the split.
        train: (n_train,), the token ids that the model was trained on.
    """
    contents = {key: totals.sums[key] for key in ('nats', 'top1', 'brier')} | {'tokens': totals.counts}
    contents['calibration'] = []
    for i in range(len(totals.confidences)):
        groups = np.stack(statistics.calibration(*totals.calibration_counts(i), mass=True), 1)
        contents['calibration'].append(np.pad(groups, ((0, 15 - len(groups)), (0, 0))))
    ids = np.flatnonzero(totals.by_id[0])
    vocab_size = max(len(totals.by_id[0]), int(train.max()) + 1)
    # in chunks, because bincount converts its input to int64
    occurrences = sum(np.bincount(train[i:i + 2**24], minlength=vocab_size) for i in range(0, len(train), 2**24))
    group = np.floor(np.log2(np.maximum(occurrences[ids], 1))).astype(int)
    columns = [2.0 ** np.arange(group.max() + 1), *(np.bincount(group, x) for x in totals.by_id[:, ids])]
    contents['frequency'] = np.column_stack(columns)
    np.savez_compressed(path, **contents)


def draw_figures(folder, results, totals):
    """Draw reliability.png and positions.png in a folder.

    Args:
        folder: an existing folder.
        results: the result of each checkpoint.
        totals: the scoring.Totals of each checkpoint.
    Raises OSError if a file cannot be written.
    """
    names = [result['loss'] for result in results]
    if len(set(names)) < len(names):
        names = [Path(result['checkpoint']).parent.name for result in results]
    if len(set(names)) < len(names):
        names = [result['checkpoint'] for result in results]
    draw_reliability(f'{folder}/reliability.png', names, results, totals)
    draw_positions(f'{folder}/positions.png', names, results, totals)


def draw_reliability(path, names, results, totals):
    """Accuracy against confidence in 15 groups of equal mass, for each readout; a panel for each checkpoint."""
    from nanoloss import plotting  # imports matplotlib
    height = 4.1 if len(results) > 1 else 5.2
    figure, axes = plotting.plt.subplots(1, len(results), figsize=(plotting.WIDTH, height), squeeze=False, sharey=True)
    for ax, name, result, total in zip(axes[0], names, results, totals, strict=True):
        ax.plot([0, 1], [0, 1], color=plotting.GRAY, linewidth=1)
        for i, readout in enumerate(result['readouts']):
            _, confidence, accuracy = statistics.calibration(*total.calibration_counts(i), mass=True)
            ax.plot(confidence, accuracy, **plotting.readout_style(i),
                    label=f"{readout} {result['readouts'][readout]['ece_mass']:.3f}")
        ax.set(xlabel='confidence of the top-1 prediction', xlim=(0, 1), ylim=(0, 1), aspect='equal',
               title=textwrap.fill(f"{name}, {result['split']}.bin", 50 if len(results) > 1 else 100))
        ax.legend(title='ECE', loc='lower right')
    axes[0, 0].set_ylabel('top-1 accuracy')
    plotting.save(figure, path)


def draw_positions(path, names, results, totals):
    """Nats per token against the position of the token in its story or block, in up to 40 logarithmic groups."""
    from nanoloss import plotting  # imports matplotlib
    figure, ax = plotting.plt.subplots(figsize=(plotting.WIDTH, 4.3))
    for number, (name, result, total) in enumerate(zip(names, results, totals, strict=True)):
        tokens, *nats = total.by_position
        position = np.arange(1, len(tokens) + 1)
        edges = np.unique(np.geomspace(1, len(tokens) + 1, 40).astype(int))
        group = np.searchsorted(edges, position, side='right') - 1  # none is empty
        counts = np.bincount(group, tokens)
        for i, readout in enumerate(result['readouts']):
            style = {**plotting.readout_style(i), 'linestyle': plotting.LINE_STYLES[number]}
            ax.plot(np.bincount(group, position * tokens) / counts, np.bincount(group, nats[i]) / counts, **style,
                    label=f'{name}, {readout}' if len(results) > 1 else readout)
        ax.axvline(result['block_size'], color=plotting.GRAY, linewidth=1, zorder=0)
    unit = 'block' if results[0]['mode'] == 'blocks' else 'story'
    split = f"{results[0]['split']}.bin"
    ax.set(xscale='log', xlabel=f'position of the token in its {unit}, in tokens (gray line: block_size)',
           ylabel='nats per token', title=split if len(results) > 1 else f'{names[0]}, {split}')
    plotting.legend_below(figure, ax, max_columns=3 if len(results) == 1 else len(results))
    plotting.save(figure, path)
