"""What a study of compare.py found: differences over seeds, as a table and figures.

done: {arm: {seed: (what evaluate.py said, its arrays)}}, logs: {arm: {seed: the entries of metrics.jsonl}}. The first
arm is the one that the others are compared with.
"""
import numpy as np

import metrics

READINGS = ('softmax', 'link', 'fitted')
MEASURES = {'nats': 'nats a token', 'top1': 'top-1 accuracy', 'brier': 'Brier score', 'ece_mass': 'ECE'}
FITTED = {f'{key}_fitted': f'{title}, the other fitted' for key, title in MEASURES.items() if key != 'top1'}


def differences(done, reading, bootstrap):
    """{arm: {measure: paired_t of the differences to the first arm over seeds}}, in the declared reading; for nats and
    top1 also an interval over seeds and stories, 'crossed', and with 8 seeds or more a sign-flip p, 'flip'.
    nats_fitted, brier_fitted and ece_mass_fitted: to the first arm read with the temperature that was fitted to it."""
    base, *rest = done
    out = {}
    for arm in rest:
        common = [seed for seed in done[arm] if seed in done[base]]
        out[arm] = {'seeds': len(common)}
        for measure in [*MEASURES, *FITTED] if common else ():
            of_base = 'fitted' if measure in FITTED else reading
            key = measure.removesuffix('_fitted')
            d = np.array([done[arm][seed][0]['readings'][reading][key] -
                          done[base][seed][0]['readings'][of_base][key] for seed in common])
            out[arm][measure] = metrics.paired_t(d)
            if len(d) >= 8:
                out[arm][measure]['flip'] = float(metrics.sign_flip(d[:, None], 99_999, 1)[0])
            if measure in ('nats', 'top1', 'brier') and len(common) > 1:
                i = READINGS.index(reading)
                sums = np.stack([done[arm][seed][1][measure][i] - done[base][seed][1][measure][i] for seed in common])
                out[arm][measure]['crossed'] = metrics.crossed_bootstrap(
                    sums, done[base][common[0]][1]['tokens'], bootstrap, 1).tolist()
    return out


def table(title, done, logs, given, against, about, reading, margin, seeds, diverged):
    """table.md as text. given: {arm: what it was set to, in words}; seeds: how many the study has; diverged: {arm: how
    many of them did}."""
    text = f'# {title}\n\n{about}\n\nDeclared before: the reading is {reading}, the unit is the seed, losses are ' \
           'paired by seed, and the last checkpoint of each run counts. Means over seeds (standard deviation).\n\n' \
           '| | seeds | '
    beside = [(name, measure) for name in READINGS if name != reading for measure in ('nats', 'brier')]
    text += f'{reading}: ' + ' | '.join(MEASURES.values()) + ' | ' + \
        ' | '.join(f'{name}: {MEASURES[measure]}' for name, measure in beside) + ' | seconds |\n|' + '---|' * 11 + '\n'
    for arm, runs_of in done.items():
        cells = [arm, str(len(runs_of)) + f' of {seeds}' * (len(runs_of) < seeds) +
                 f', {diverged[arm]} diverged' * bool(diverged[arm])]
        for key, measure in [*((reading, measure) for measure in MEASURES), *beside]:
            x = np.array([result['readings'][key][measure] for result, _ in runs_of.values()])
            spread = f' ({x.std(ddof=1):.4f})' if len(x) > 1 else ''
            cells.append(f'{x.mean():.4f}{spread}' if len(x) else '')
        spent = [max(line['seconds'] for line in logs[arm][seed]) for seed in runs_of]
        text += '| ' + ' | '.join([*cells, f'{np.mean(spent):.0f}' if spent else '']) + ' |\n'
    first = next(iter(done))
    for arm, of in against.items():
        text += f'\n## {arm} less {first}, {of["seeds"]} seeds\n\n| | difference | 95 % over seeds (t) | p (t) | ' \
                '95 % over seeds and stories | smallest that would have been seen (80 %) |\n|---|---|---|---|---|---|\n'
        for measure, title in {**MEASURES, **FITTED}.items():
            if (d := of.get(measure)) is None:
                continue
            p = '' if d['p'] is None else f'{d["p"]:.4f}' if d['p'] >= 1e-4 else '< 0.0001'
            flip = f' (sign flips {d["flip"]:.4f})' if 'flip' in d else ''
            cells = [f'{d["mean"]:+.4f}', span(d['interval']), p + flip, span(d.get('crossed')),
                     '' if d['detectable'] is None else f'{d["detectable"]:.4f}']
            text += f'| {title} | ' + ' | '.join(cells) + ' |\n'
        if 'nats' in of and (upper := of['nats']['upper99']) is not None:
            text += f'\nIn nats surely (99 %) no more than {upper:+.4f} behind: ' + \
                ('no worse by the margin of' if upper < margin else 'it may be worse than the margin of') + \
                f' {margin:g}.\n'
    text += '\n## Settings\n\n'
    for arm, words in given.items():
        text += f'- {arm}: {words}\n'
    return text


def span(interval):
    return '' if interval is None else f'[{interval[0]:+.4f}, {interval[1]:+.4f}]'


def below(figure, axis, **how):
    """The legend of an axis under the figure: names of arms are long."""
    figure.legend(*axis.get_legend_handles_labels(), fontsize=8, loc='outside lower center', **how)


def figures(folder, suffix, done, logs, against, reading):
    """differences.png: to the first arm, of each seed; curves.png: nats on val.bin against tokens and seconds;
    calibration.png; frequency.png."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    if against:
        figure, axes = plt.subplots(1, 2, figsize=(11, 1.4 + 0.32 * len(against)), sharey=True, layout='constrained')
        for axis, measure in zip(axes, ('nats', 'top1'), strict=True):
            axis.axvline(0, color='0.6', linewidth=1)
            for row, arm in enumerate(against):
                common = sorted(done[arm].keys() & done[next(iter(done))].keys())
                each = [done[arm][seed][0]['readings'][reading][measure] -
                        done[next(iter(done))][seed][0]['readings'][reading][measure] for seed in common]
                axis.plot(each, [row] * len(each), 'o', color='C0', markersize=4, alpha=0.5)
                if common and against[arm][measure]['interval']:
                    axis.errorbar(np.mean(each), row, xerr=np.ptp(against[arm][measure]['interval']) / 2, fmt='|',
                                  color='black', capsize=3, linewidth=1)
            axis.locator_params(axis='x', nbins=6)
            axis.set(xlabel=f'{MEASURES[measure]} ({reading})')
        axes[0].set_yticks(range(len(against)), [arm.replace(':', '\n', 1) for arm in against], fontsize=8)
        axes[0].invert_yaxis()
        figure.suptitle(f'less {next(iter(done))}; dots: seeds; bars: 95 % over seeds (t)', fontsize=9)
        figure.savefig(folder / f'differences{suffix}.png', dpi=110)

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout='constrained')
    shown = []
    for color, arm in enumerate(done):
        of_seed = [[line for line in logs[arm][seed] if 'val_nats' in line][1:] for seed in done[arm]]
        if not of_seed:
            continue
        there = set.intersection(*({line['iter'] for line in lines} for lines in of_seed))  # in all of them
        of_seed = [[line for line in lines if line['iter'] in there] for lines in of_seed]
        nats = np.array([[line['val_nats'] for line in lines] for lines in of_seed])
        shown += [nats.min(), np.median(nats[:, 0])]
        for axis, key in zip(axes, ('tokens', 'seconds'), strict=True):
            x = np.mean([[line[key] for line in lines] for lines in of_seed], axis=0)
            axis.plot(x, nats.mean(0), color=f'C{color}', marker='o', markersize=3, label=f'{arm} ({len(nats)} seeds)')
            axis.fill_between(x, nats.min(0), nats.max(0), color=f'C{color}', alpha=0.2, linewidth=0)
    for axis, key in zip(axes, ('tokens', 'seconds'), strict=True):
        axis.set(xlabel=f'{key} of training')
        axis.set_xlim(left=0)
    if shown:  # one that starts far off would press the others together
        axes[0].set_ylim(min(shown) - 0.05, max(shown) + 0.05)
    axes[0].set(ylabel='nats a token, fixed windows\nof val.bin, link reading')
    below(figure, axes[0], title='mean; band: least to most')
    figure.savefig(folder / f'curves{suffix}.png', dpi=110)

    done = {arm: of for arm, of in done.items() if of}
    figure, axes = plt.subplots(1, len(done), figsize=(4.2 * len(done), 4.2), squeeze=False, layout='constrained')
    for axis, (arm, of) in zip(axes[0], done.items(), strict=True):
        axis.plot([0, 1], [0, 1], color='0.7', linewidth=1)
        for i, which in enumerate(READINGS):
            for k, (result, arrays) in enumerate(of.values()):
                count, confidence, correct = arrays['calibration'][i].T
                axis.plot(confidence[count > 0], correct[count > 0], color=f'C{i}', linewidth=1,
                          label=f'{which}, ECE {result["readings"][which]["ece_mass"]:.3f}' if not k else None)
        axis.set(xlabel='confidence', ylabel='share correct', xlim=(0, 1), ylim=(0, 1), aspect='equal')
        axis.set_title(arm.replace(':', '\n'), fontsize=9)
        axis.legend(fontsize=8)
    figure.savefig(folder / f'calibration{suffix}.png', dpi=110)

    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout='constrained')
    for color, (arm, of) in enumerate(done.items()):
        for k, (_, arrays) in enumerate(of.values()):
            seen, scored, *sums = arrays['frequency'].T
            there = scored > 0
            axis.plot(seen[there], sums[READINGS.index(reading)][there] / scored[there], color=f'C{color}', marker='o',
                      markersize=3, linewidth=1, label=None if k else arm)
    axis.set(xscale='log', xlabel='how often the token is in train.bin (groups double)',
             ylabel=f'nats a token, {reading}')
    below(figure, axis)
    figure.savefig(folder / f'frequency{suffix}.png', dpi=110)
    plt.close('all')
