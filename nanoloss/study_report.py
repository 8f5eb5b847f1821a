"""Report of a compare.py study: differences over seeds, a table and figures.

The functions share these arguments:

    scores: {arm: {seed: (result, arrays)}}, the JSON and the arrays of evaluate.py for each run. The first arm is the
        baseline.
    logs: {arm: {seed: [entry of metrics.jsonl, ...]}}
    readout: the declared readout, one of READOUTS

Runs are scored by stories, or all by blocks if the data has no stories; result['mode'] says which.
"""
import time

import numpy as np

from configurator import fail
from nanoloss import launcher, statistics

READOUTS = ('softmax', 'link', 'calibrated')  # those of nanoloss.scoring, which imports torch
MEASURES = {'nats': 'nats per token', 'top1': 'top-1 accuracy', 'brier': 'Brier score', 'ece_mass': 'ECE'}
CALIBRATED_MEASURES = {f'{measure}_calibrated': f'{MEASURES[measure]}, baseline calibrated'
                       for measure in ('nats', 'brier', 'ece_mass')}


def paired_differences(scores, readout):
    """Compare each arm with the baseline over the seeds that both have.

    Returns:
        {arm: {'seeds': number of pairs, measure: statistics.paired_t of the differences}}. Measures of
        CALIBRATED_MEASURES are differences to the baseline's calibrated readout. Further entries of a measure:
        'crossed', the confidence interval over seeds and stories or blocks (nats, top1, brier, from two pairs on), and
        'flip', the p-value of a sign-flip test (from eight pairs on).
    """
    base, *others = scores
    differences = {}
    for arm in others:
        common = [seed for seed in scores[arm] if seed in scores[base]]
        differences[arm] = {'seeds': len(common)}
        if not common:
            continue
        for measure in [*MEASURES, *CALIBRATED_MEASURES]:
            base_readout = 'calibrated' if measure in CALIBRATED_MEASURES else readout
            key = measure.removesuffix('_calibrated')
            d = np.array([scores[arm][seed][0]['readouts'][readout][key] -
                          scores[base][seed][0]['readouts'][base_readout][key] for seed in common])
            found = differences[arm][measure] = statistics.paired_t(d)
            if len(d) >= 8:
                found['flip'] = float(statistics.sign_flip(d[:, None], 99_999, 1)[0])
            if len(d) > 1 and measure in ('nats', 'top1', 'brier'):
                i = READOUTS.index(readout)
                sums = np.stack([scores[arm][seed][1][measure][i] - scores[base][seed][1][measure][i]
                                 for seed in common])  # (seeds, stories)
                sizes = scores[base][common[0]][1]['tokens']
                if len(sizes) > 1:
                    found['crossed'] = statistics.crossed_interval(sums, sizes).tolist()
    return differences


# text -------------------------------------------------------------------------

def describe_study(plan, scores, data, budget, jobs, split):
    """Return the data, the budget and the environment of a study in words.

    Args:
        plan: contents of plan.json; its 'settings' are {arm: settings of train.py}.
        data: the training data, in words.
        budget, jobs, split: settings of compare.py.
    """
    tokens = {arm: settings['max_iters'] * launcher.tokens_per_iter(settings)
              for arm, settings in plan['settings'].items()}
    if len(set(tokens.values())) > 1:
        per_run = ', '.join(f'{arm} {count:,}' for arm, count in tokens.items())
    else:
        per_run = f'{next(iter(tokens.values())):,}'
    if budget:
        per_run += f' ({budget})'
    results = [result for runs in scores.values() for result, _ in runs.values()]
    formats = {'processor': '{}', 'device': '{}', 'dtype': '{}', 'threads': '{} threads', 'torch': 'torch {}'}
    environments = {', '.join(form.format(result['environment'][key]) for key, form in formats.items()
                              if key in result['environment'])
                    for result in results if result.get('environment')}
    note = ', NOT all the same' if len(environments) > 1 else ''
    return f'Data: {data}. Tokens per run: {per_run}. Runs in parallel: {jobs}. Date: {time.strftime("%Y-%m-%d")}. ' \
           f'Evaluated: {describe_units(results[0])}, {results[0]["tokens"]:,} tokens of {split}.bin. ' \
           f'Environment{note}: {"; ".join(sorted(environments)) or "not recorded"}.'


def describe_units(result):
    """'5,000 stories', or '20 blocks of 256 tokens that ignore story bounds'."""
    blocks = f' of {result["block_size"]} tokens that ignore story bounds' if result['mode'] == 'blocks' else ''
    return f'{result[result["mode"]]:,} {result["mode"]}{blocks}'


def scoring_mode(scores):
    """'stories' or 'blocks'."""
    return next(result['mode'] for runs in scores.values() for result, _ in runs.values())


def format_table(title, about, plan, scores, logs, diverged, differences):
    """Return table.md as text.

    Args:
        about: result of describe_study.
        plan: contents of plan.json.
        diverged: {arm: number of diverged runs}
        differences: result of paired_differences.
    """
    readout, seeds = plan['declared']['readout'], len(plan['seeds'])
    others = [(name, measure) for name in READOUTS if name != readout for measure in ('nats', 'brier')]
    columns = [(readout, measure) for measure in MEASURES] + others
    headings = ['', 'seeds', *(f'{name}: {MEASURES[measure]}' for name, measure in columns), 'seconds']
    lines = [f'# {title}', '', about, '',
             f'Declared in advance: the readout is {readout}, the unit is the seed, losses are paired by seed, and the '
             'last checkpoint of each run is evaluated. Means over seeds (standard deviation).', '', *header(headings)]
    for arm, runs in scores.items():
        count = str(len(runs)) if len(runs) == seeds else f'{len(runs)} of {seeds}'
        if diverged[arm]:
            count += f', {diverged[arm]} diverged'
        cells = [arm, count]
        for name, measure in columns:
            cells.append(mean_and_deviation([result['readouts'][name][measure] for result, _ in runs.values()]))
        seconds = [max(entry['seconds'] for entry in logs[arm][seed]) for seed in runs]
        lines.append(row([*cells, f'{np.mean(seconds):.0f}' if seconds else '']))
    for arm, found in differences.items():
        lines += ['', *difference_section(f'{arm} minus {next(iter(scores))}', found, plan['declared']['margin'],
                                        scoring_mode(scores))]
    lines += ['', *settings_section({arm: plan['settings'][arm] for arm in scores})]
    return '\n'.join(lines) + '\n'


def difference_section(title, found, margin, mode):
    lines = [f'## {title}, {found["seeds"]} seeds', '',
             *header(['', 'difference', '95 % interval over seeds (t)', 'p (t)', f'95 % interval over seeds and {mode}',
                      'minimum detectable difference (80 % power)'])]
    for measure, name in {**MEASURES, **CALIBRATED_MEASURES}.items():
        if measure not in found:
            continue
        d = found[measure]
        p = '' if d['p'] is None else f'{d["p"]:.4f}' if d['p'] >= 1e-4 else '< 0.0001'
        if 'flip' in d:
            p += f' (sign-flip test {d["flip"]:.4f})'
        lines.append(row([name, f'{d["mean"]:+.4f}', format_interval(d['interval']), p,
                          format_interval(d.get('crossed')),
                          '' if d['detectable'] is None else f'{d["detectable"]:.4f}']))
    upper = found['nats']['upper99'] if 'nats' in found else None
    if upper is not None:
        verdict = 'below' if upper < margin else 'not below'
        lines += ['', f'99 % upper bound on the difference in nats per token: {upper:+.4f}, {verdict} the margin of '
                      f'{margin:g}.']
    return lines


def settings_section(settings):
    """settings: {arm: settings of train.py}"""
    defaults, _, _ = launcher.train_settings()
    changed = {arm: [f'{key}={value}' for key, value in values.items() if key != 'loss' and value != defaults[key]]
               for arm, values in settings.items()}
    first = next(iter(changed.values()))
    common = [text for text in first if all(text in texts for texts in changed.values())]
    lines = ['## Settings', '']
    for arm, texts in changed.items():
        own = [text for text in texts if text not in common]
        lines.append(f'- {arm}: ' + ', '.join([f'loss={settings[arm]["loss"]}', *own]))
    lines.append(f'- common settings: {", ".join(common) or "the defaults of train.py"}')
    if any(values.get('init_from', 'scratch') != 'scratch' for values in settings.values()):
        lines.append('- the shape of the model is that of the init_from checkpoint')
    return lines


def format_stories(stories, seed):
    """Return stories.md as text. stories: {arm: [story, ...]}, of runs with this seed."""
    text = f'# Stories of seed {seed}, not selected: link readout, the same prompt and random numbers for all\n'
    for number, versions in enumerate(zip(*stories.values(), strict=True), 1):
        text += f'\n## {number}\n'
        for arm, story in zip(stories, versions, strict=True):
            text += f'\n**{arm}**\n\n```\n{story}\n```\n'
    return text


def row(cells):
    return '| ' + ' | '.join(cells) + ' |'


def header(cells):
    return [row(cells), '|' + '---|' * len(cells)]


def mean_and_deviation(values):
    if not values:
        return ''
    deviation = f' ({np.std(values, ddof=1):.4f})' if len(values) > 1 else ''
    return f'{np.mean(values):.4f}{deviation}'


def format_interval(interval):
    return '' if interval is None else f'[{interval[0]:+.4f}, {interval[1]:+.4f}]'


def split_labels(flag, text, names):
    """Return the labels in `text`, separated by commas, or the names if it is empty. Exits unless they are valid."""
    if not text:
        return names
    labels = [label.strip() for label in text.split(',')]
    if len(labels) != len(names) or len(set(labels)) < len(labels) or not all(labels):
        fail(f'--{flag}={text}: pass {len(names)} different labels, separated by commas, for {", ".join(names)}',
             status=2)
    return labels


# the figures ------------------------------------------------------------------

def draw_figures(folder, suffix, scores, logs, differences, readout):
    """Write the figures of a study to folder.

    differences.png: differences to the baseline, one marker per seed. curves.png: validation nats during training.
    calibration.png: reliability diagrams. frequency.png: nats by the token's frequency. `suffix` is appended to the
    names.
    """
    from nanoloss import plotting  # imports matplotlib
    scored = {arm: runs for arm, runs in scores.items() if runs}
    figures = {'curves': draw_curves(plotting, scored, logs), 'calibration': draw_calibration(plotting, scored),
               'frequency': draw_frequency(plotting, scored, readout)}
    if differences:
        figures['differences'] = draw_differences(plotting, scores, differences, readout)
    for name, figure in figures.items():
        if scoring_mode(scores) == 'blocks' and name != 'curves':
            figure.suptitle(f'{figure.get_suptitle()}, scored by blocks'.removeprefix(', '))
        plotting.save(figure, folder / f'{name}{suffix}.png')


def draw_differences(plotting, scores, differences, readout):
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


def draw_curves(plotting, scores, logs):
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


def draw_calibration(plotting, scores):
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


def draw_frequency(plotting, scores, readout):
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
