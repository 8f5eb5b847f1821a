"""Figures of a compare.py study.

The arguments are those of nanoloss/study_report.py.
"""
import numpy as np

from nanoloss import plotting
from nanoloss.study_report import MEASURES, READOUTS, scoring_mode


def draw_figures(folder, suffix, scores, logs, differences, readout):
    """Write the figures of a study to folder.

    differences.png: differences to the baseline, one marker per seed. curves.png: validation nats during training.
    calibration.png: reliability diagrams. frequency.png: nats by the token's frequency. `suffix` is appended to the
    names.
    """
    scored = {arm: runs for arm, runs in scores.items() if runs}
    figures = {'curves': draw_curves(scored, logs), 'calibration': draw_calibration(scored),
               'frequency': draw_frequency(scored, readout)}
    if differences:
        figures['differences'] = draw_differences(scores, differences, readout)
    for name, figure in figures.items():
        if scoring_mode(scores) == 'blocks' and name != 'curves':
            figure.suptitle(f'{figure.get_suptitle()}, scored by blocks'.removeprefix(', '))
        plotting.save(figure, folder / f'{name}{suffix}.png')


def draw_differences(scores, differences, readout):
    base = next(iter(scores))
    lines = max(arm.count(':') + 1 for arm in differences)  # of a label
    figure, axes = plotting.plt.subplots(1, 2, figsize=(plotting.WIDTH, 1.3 + (0.3 + 0.14 * lines) * len(differences)),
                                         sharey=True)
    for axis, (measure, better) in zip(axes, (('nats', 'lower'), ('top1', 'higher')), strict=True):
        axis.axvline(0, color=plotting.GRAY, linewidth=1)
        for y, arm in enumerate(differences):
            d = [scores[arm][seed][0]['readouts'][readout][measure] -
                 scores[base][seed][0]['readouts'][readout][measure] for seed in scores[arm] if seed in scores[base]]
            axis.plot(d, [y - 0.15] * len(d), 'o', color=plotting.COLORS[0], alpha=0.6, label='one seed')
            interval = differences[arm][measure]['interval'] if d else None
            if interval:
                axis.errorbar(np.mean(d), y + 0.15, xerr=np.ptp(interval) / 2, fmt='|', color='black', capsize=3,
                              linewidth=1, label='mean, 95 % interval over seeds (t)')
        plotting.separate_rows(axis, len(differences))
        axis.set(xlabel=f'{MEASURES[measure]} ({readout})\n{better} is better')
    axes[0].set_yticks(range(len(differences)), [arm.replace(':', '\n') for arm in differences])
    figure.suptitle(f'difference to {base}')
    plotting.legend_below(figure, axes[0])
    return figure


def draw_curves(scores, logs):
    figure, axes = plotting.plt.subplots(1, 2, figsize=(plotting.WIDTH, 4), sharey=True)
    limits = []
    for i, arm in enumerate(scores):
        evaluations = [[entry for entry in logs[arm][seed] if 'val_nats' in entry][1:]  # not of the untrained model
                       for seed in scores[arm]]
        common = set.intersection(*({entry['iter'] for entry in entries} for entries in evaluations))
        evaluations = [[entry for entry in entries if entry['iter'] in common] for entries in evaluations]
        nats = np.array([[entry['val_nats'] for entry in entries] for entries in evaluations])  # (seeds, evaluations)
        limits += [nats.min(), np.median(nats[:, 0])]
        style = plotting.style(i)
        for axis, key in zip(axes, ('tokens', 'seconds'), strict=True):
            x = np.mean([[entry[key] for entry in entries] for entries in evaluations], axis=0)
            axis.plot(x, nats.mean(0), **style, label=f'{arm} ({len(nats)} seeds)')
            axis.fill_between(x, nats.min(0), nats.max(0), color=style['color'], alpha=0.2, linewidth=0)
    plotting.label_tokens(axes[0], 'training tokens')
    axes[1].set_xlabel('seconds of training')
    for axis in axes:
        axis.set_xlim(left=0)
    axes[0].set_ylim(min(limits) - 0.05, max(limits) + 0.05)  # a single high start does not compress the curves
    axes[0].set_ylabel('validation nats per token (link)')
    plotting.legend_below(figure, axes[0], title='mean over seeds; band: minimum to maximum')
    return figure


def draw_calibration(scores):
    columns = min(2, len(scores))
    rows = -(-len(scores) // columns)
    figure, axes = plotting.plt.subplots(rows, columns, figsize=(plotting.WIDTH, 3.9 * rows), squeeze=False)
    for axis, (arm, runs) in zip(axes.flat, scores.items(), strict=False):
        axis.plot([0, 1], [0, 1], color=plotting.GRAY, linewidth=1)
        for i, readout in enumerate(READOUTS):
            ece = np.mean([result['readouts'][readout]['ece_mass'] for result, _ in runs.values()])
            groups = np.array([arrays['calibration'][i] for _, arrays in runs.values()])  # (seeds, groups, 3)
            count = groups[:, :, 0].sum(0)
            confidence, accuracy = np.einsum('sg,sgk->kg', groups[:, :, 0], groups[:, :, 1:])[:, count > 0]
            axis.plot(confidence / count[count > 0], accuracy / count[count > 0], **plotting.readout_style(i),
                      label=f'{readout} {ece:.3f}')
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect='equal', title=arm.replace(':', '\n'))
        axis.legend(title='ECE', loc='lower right')
    for axis in axes.flat[len(scores):]:
        axis.set_visible(False)
    figure.supxlabel('confidence of the top-1 prediction (means over seeds)', fontsize=9)
    figure.supylabel('top-1 accuracy', fontsize=9)
    return figure


def draw_frequency(scores, readout):
    figure, axis = plotting.plt.subplots(figsize=(plotting.WIDTH, 4))
    for i, (arm, runs) in enumerate(scores.items()):
        occurrences, tokens = next(iter(runs.values()))[1]['frequency'].T[:2]
        scored = tokens > 0
        nats = np.array([arrays['frequency'][scored, 2 + READOUTS.index(readout)] for _, arrays in runs.values()])
        nats /= tokens[scored]  # (seeds, groups)
        style = plotting.style(i)
        axis.plot(occurrences[scored], nats.mean(0), **style, label=f'{arm} ({len(nats)} seeds)')
        axis.fill_between(occurrences[scored], nats.min(0), nats.max(0), color=style['color'], alpha=0.2, linewidth=0)
    axis.set(xscale='log', xlabel='occurrences of the token in the training data (groups within a factor of two)',
             ylabel=f'nats per token ({readout})')
    plotting.legend_below(figure, axis, title='mean over seeds; band: minimum to maximum')
    return figure
