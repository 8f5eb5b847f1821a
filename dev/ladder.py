"""Report a ladder: a compare.py study whose arms change the recipe one step at a time.

    python dev/ladder.py ladder --rungs=stock,rate,shape,windows,muon,linear --beside=annealed,smoothing \
        --labels="nanoGPT's recipe,learning rate tuned,dropout and layers tuned,..." --figure=docs/studies/ladder.png

The study is a name in docs/studies or a results.json of compare.py. Every rung is compared with the rung before it,
every arm of --beside with the last rung, by a paired t-test over the seeds that both have, in the declared readout.
The figure shows how many nats per token each arm gains over the first rung.
"""
import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configurator import fail
from dev.pool_studies import paired_differences, read_studies
from nanoloss.statistics import paired_t
from nanoloss.study_report import format_interval


def steps(rungs, beside):
    """Return [(arm, the arm it is compared with)] of all arms but the first rung."""
    return list(zip(rungs[1:], rungs)) + [(arm, rungs[-1]) for arm in beside]


def difference(runs, arm, base, measure, readout):
    """Return paired_t() of arm minus base over their common seeds."""
    return paired_t(list(paired_differences(runs, arm, base, measure, readout, readout).values()))


def format_table(runs, readout, rungs, beside, labels):
    """Return the Markdown table, one row per arm: means over seeds, and differences to the arm below it."""
    lines = ['| | seeds | nats per token (standard deviation) | gain, 95 % | p | top-1 accuracy | Brier score |',
             '|---|---|---|---|---|---|---|']
    bases = dict(steps(rungs, beside))
    for arm in rungs + beside:
        nats, top1, brier = ([run[readout][measure] for run in runs[arm].values()]
                             for measure in ('nats', 'top1', 'brier'))
        gain = p = ''
        if arm in bases:
            t = difference(runs, arm, bases[arm], 'nats', readout)
            gain = f'{-t["mean"]:+.4f}'
            if t['interval']:
                gain += ' ' + format_interval([-bound for bound in reversed(t['interval'])])
                p = f'{t["p"]:.2g}'
        deviation = f' ({np.std(nats, ddof=1):.4f})' if len(nats) > 1 else ''
        lines.append(f'| {labels[arm]} | {len(nats)} | {np.mean(nats):.4f}{deviation} | {gain} | {p} | '
                     f'{np.mean(top1):.4f} | {np.mean(brier):.4f} |')
    return '\n'.join(lines)


def draw(path, runs, readout, rungs, beside, labels):
    """Write a bar chart of the gains over the first rung, with 95 % intervals."""
    from nanoloss import plotting  # imports matplotlib
    arms = rungs[1:] + beside
    figure, axis = plotting.plt.subplots(figsize=(plotting.WIDTH, 1.1 + 0.3 * len(arms)))
    for y, arm in enumerate(arms):
        t = difference(runs, arm, rungs[0], 'nats', readout)
        half = t['interval'][1] - t['mean'] if t['interval'] else 0
        axis.barh(y, -t['mean'], xerr=half, height=0.7, color=plotting.COLORS[arm in beside], ecolor='black', capsize=3)
        axis.annotate(f'{-t["mean"]:+.3f}', (max(0, -t['mean']) + half, y), xytext=(4, 0), textcoords='offset points',
                      va='center')
    axis.set_yticks(range(len(arms)), [labels[arm] for arm in arms])
    axis.invert_yaxis()
    axis.grid(axis='y', visible=False)
    axis.margins(x=0.12)
    axis.axvline(0, color='black', linewidth=1)
    first = np.mean([run[readout]['nats'] for run in runs[rungs[0]].values()])
    axis.set_xlabel(f'nats per token gained over {labels[rungs[0]]} ({first:.3f}); longer is better')
    plotting.save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', help='a name in docs/studies, or a results.json of compare.py')
    parser.add_argument('--rungs', required=True, help='arms of the study, separated by commas, from the bottom')
    parser.add_argument('--beside', default='', help='arms to compare with the last rung')
    parser.add_argument('--labels', help='names for the arms in the output, rungs first, separated by commas')
    parser.add_argument('--figure', metavar='FILE', help='also draw the gains over the first rung')
    args = parser.parse_args()
    rungs, beside = args.rungs.split(','), args.beside.split(',') if args.beside else []
    arms = rungs + beside
    runs, readout = read_studies([args.study])
    for arm in arms:
        if not runs.get(arm):
            fail(f'{args.study}: there is no run of {arm}; pass arms among {", ".join(runs)}', status=2)
    names = [name.strip() for name in args.labels.split(',')] if args.labels else arms
    if len(names) != len(arms):
        fail(f'--labels={args.labels}: pass {len(arms)} labels, separated by commas', status=2)
    for arm, base in steps(rungs, beside) + [(arm, rungs[0]) for arm in arms]:
        if not paired_differences(runs, arm, base, 'nats', readout, readout):
            fail(f'{args.study}: {arm} and {base} have no seed in common; train both with the same seeds')
    labels = dict(zip(arms, names))
    print(format_table(runs, readout, rungs, beside, labels))
    if args.figure:
        draw(args.figure, runs, readout, rungs, beside, labels)


if __name__ == '__main__':
    main()
