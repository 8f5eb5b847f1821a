"""Report a ladder: compare.py studies whose arms change the recipe one step at a time.

    python dev/ladder.py ladder ladder_tokens --titles="in equal time,with equal tokens" \
        --rungs=stock,rate,shape,windows,muon,schedule --beside=annealed,smoothing \
        --labels="nanoGPT's recipe,learning rate tuned,dropout and layers tuned,..." --figure=docs/studies/ladder.png

A study is a name in docs/studies or a results.json of compare.py. Every rung is compared with the rung before it,
every arm of --beside with the last rung, by a paired t-test over the seeds that both have, in the declared readout.
The figure shows these differences, with one column for each study.
"""
import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configurator import fail
from nanoloss import signals
from nanoloss.statistics import paired_t
from nanoloss.study_plan import read_study
from nanoloss.study_report import format_interval, mean_and_deviation, split_labels


def steps(rungs, beside):
    """Return [(arm, the arm it is compared with)] of all arms but the first rung."""
    return list(zip(rungs[1:], rungs)) + [(arm, rungs[-1]) for arm in beside]


def gains(runs, arm, base):
    """Return the nats per token by which arm is better than base, one number for each seed that both have."""
    return [runs[base][seed]['nats'] - runs[arm][seed]['nats'] for seed in runs[arm] if seed in runs[base]]


def format_table(runs, rungs, beside, labels):
    """Return the Markdown table: for each arm means over its seeds, and the gain over the arm it is compared with."""
    lines = ['| | nats per token (standard deviation) | pairs | gain, 95 % | p | top-1 accuracy | Brier score |',
             '|---|---|---|---|---|---|---|']
    bases = dict(steps(rungs, beside))
    for arm in rungs + beside:
        nats, top1, brier = ([run[measure] for run in runs[arm].values()] for measure in ('nats', 'top1', 'brier'))
        pairs = gain = p = ''
        if arm in bases:
            differences = gains(runs, arm, bases[arm])
            pairs, t = len(differences), paired_t(differences)
            gain = f'{t["mean"]:+.4f} {format_interval(t["interval"])}'.strip()
            p = f'{t["p"]:.2g}' if t['interval'] else ''
        lines.append(f'| {labels[arm]} | {mean_and_deviation(nats)} | {pairs} | {gain} | {p} | {np.mean(top1):.4f} | '
                     f'{np.mean(brier):.4f} |')
    return '\n'.join(lines)


def draw(path, studies, rungs, beside, labels, titles):
    """Write bar charts of the gains with 95 % intervals, a column for each of the studies.

    Above, each bar starts where the one before ends: the gain of a change over the row before it. Below are the
    differences of the arms of `beside` to the last rung.
    """
    from nanoloss import plotting  # imports matplotlib
    groups = [list(zip(rungs[1:], rungs)), [(arm, rungs[-1]) for arm in beside]]
    groups = [pairs for pairs in groups if pairs]
    figure, axes = plotting.plt.subplots(
        len(groups), len(studies), sharex=True, sharey='row', squeeze=False, height_ratios=list(map(len, groups)),
        figsize=(plotting.WIDTH, 1.8 + 0.3 * len(rungs + beside)))
    for column, title, runs in zip(axes.T, titles, studies, strict=True):
        for number, (axis, pairs) in enumerate(zip(column, groups, strict=True)):
            start = 0
            for y, (arm, base) in enumerate(pairs):
                t = paired_t(gains(runs, arm, base))
                half_width = t['interval'][1] - t['mean'] if t['interval'] else 0
                axis.barh(y, t['mean'], left=start, xerr=half_width, height=0.7, color=plotting.COLORS[number],
                          ecolor='black', capsize=3)
                axis.annotate(f'{t["mean"]:+.3f}', (max(start, start + t['mean'] + half_width), y), xytext=(4, 0),
                              textcoords='offset points', va='center')
                start += 0 if number else t['mean']
            axis.grid(axis='y', visible=False)
            axis.axvline(0, color='black', linewidth=1)
        total = paired_t(gains(runs, rungs[-1], rungs[0]))['mean']
        column[0].set_title(f'{title or "changes to the recipe"}: {total:+.2f}')
        if beside:
            column[1].set_title('the last recipe, another loss')
        column[-1].set_xlabel('nats per token gained (95 % intervals)')
    for axis, pairs in zip(axes[:, 0], groups, strict=True):
        axis.set_yticks(range(len(pairs)), [labels[arm] for arm, _ in pairs])
        axis.invert_yaxis()
    left, right = axes[0, 0].get_xlim()
    axes[0, 0].set_xlim(right=right + 0.1 * len(studies)**1.5 * (right - left))  # room for the numbers
    figure.suptitle(f'nats per token gained over {labels[rungs[0]]}, higher is better')
    plotting.save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('studies', nargs='+', help='names in docs/studies, or results.json files of compare.py')
    parser.add_argument('--rungs', required=True, help='arms of the studies, separated by commas, the baseline first')
    parser.add_argument('--beside', default='', help='arms to compare with the last rung')
    parser.add_argument('--labels', help='names for the arms in the output, rungs first, separated by commas')
    parser.add_argument('--figure', metavar='FILE', help='also draw the gains over the first rung')
    parser.add_argument('--titles', help='names for the studies, separated by commas')
    args = parser.parse_args()
    rungs, beside = args.rungs.split(','), args.beside.split(',') if args.beside else []
    arms = rungs + beside
    labels = dict(zip(arms, split_labels('labels', args.labels, arms)))
    titles = split_labels('titles', args.titles, args.studies if len(args.studies) > 1 else [''])
    studies = []
    for readout, runs in map(read_study, args.studies):
        studies.append({arm: {seed: readouts[readout] for seed, readouts in runs[arm].items()} for arm in runs})
    for name, runs in zip(args.studies, studies):
        for arm in arms:
            if not runs.get(arm):
                fail(f'{name}: there is no run of {arm}; pass arms among {", ".join(runs)}', status=2)
        for arm, base in steps(rungs, beside) + [(arm, rungs[0]) for arm in arms]:
            if not gains(runs, arm, base):
                fail(f'{name}: {arm} and {base} have no seed in common; train both with the same seeds')
    for title, runs in zip(titles, studies):
        if len(studies) > 1:
            print(f'\n{title}\n')
        print(format_table(runs, rungs, beside, labels))
    if args.figure:
        draw(args.figure, studies, rungs, beside, labels, titles)


if __name__ == '__main__':
    signals.install_excepthook('report fewer studies')  # also ends quietly when the reader of stdout is gone
    main()
