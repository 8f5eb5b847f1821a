"""Report of a compare.py study: differences over seeds and a table.

The functions share these arguments:

    scores: {arm: {seed: (result, arrays)}}, the JSON and the arrays of evaluate.py for each run. The first arm is the
        baseline.
    logs: {arm: {seed: [entry of metrics.jsonl, ...]}}
    readout: the declared readout, one of READOUTS

Runs are scored by stories, or all by blocks if the data has no stories; result['mode'] says which.
"""
import math
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
        {arm: {'seeds': number of pairs, measure: statistics.paired_t of the differences}}. 'nats:softmax' etc. are
        differences in another readout, those of CALIBRATED_MEASURES are to the baseline's calibrated readout. Further
        entries of a measure:
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
        compared = {measure: (measure, readout, readout) for measure in MEASURES}
        compared |= {f'nats:{name}': ('nats', name, name) for name in READOUTS if name != readout}
        compared |= {measure: (measure.removesuffix('_calibrated'), readout, 'calibrated')
                     for measure in CALIBRATED_MEASURES}
        for measure, (key, arm_readout, base_readout) in compared.items():
            d = np.array([scores[arm][seed][0]['readouts'][arm_readout][key] -
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

def describe_study(plan, scores, data, budget, split):
    """Return the data, the budget and the environment of a study in words.

    Args:
        plan: contents of plan.json; its 'settings' are {arm: settings of train.py}.
        data: the training data, in words.
        budget, split: settings of compare.py.
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
    return f'Data: {data}. Tokens per run: {per_run}. Reported on {time.strftime("%Y-%m-%d")}. ' \
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
        lines += ['', *difference_section(f'{arm} minus {next(iter(scores))}', found, plan['declared'],
                                        scoring_mode(scores))]
    lines += ['', *settings_section({arm: plan['settings'][arm] for arm in scores})]
    return '\n'.join(lines) + '\n'


def difference_section(title, found, declared, mode):
    readout, margin = declared['readout'], declared['margin']
    lines = [f'## {title}, {found["seeds"]} seeds', '',
             *header([f'{readout} readout', 'difference', '95 % interval over seeds (t)', 'p (t)',
                      f'95 % interval over seeds and {mode}', 'minimum detectable difference (80 % power)'])]
    others = {f'nats:{name}': f'nats per token, {name} readout' for name in READOUTS}
    for measure, name in {**MEASURES, **others, **CALIBRATED_MEASURES}.items():
        if measure not in found:
            continue
        d = found[measure]
        digits = 4 if d['interval'] is None else max(4, 1 - math.floor(math.log10(np.ptp(d['interval']) / 2)))
        p = '' if d['p'] is None else f'{d["p"]:.4f}' if d['p'] >= 1e-4 else '< 0.0001'
        if 'flip' in d:
            p += f' (sign-flip test {d["flip"]:.4f})'
        lines.append(row([name, f'{d["mean"]:+.{digits}f}', format_interval(d['interval'], digits), p,
                          format_interval(d.get('crossed'), digits),
                          '' if d['detectable'] is None else f'{d["detectable"]:.{digits}f}']))
    upper = found['nats']['upper99'] if 'nats' in found else None
    if upper is not None:
        verdict = 'below' if upper < margin else 'not below'
        lines += ['', f'99 % upper bound on the difference in nats per token: {upper:+.4f}, {verdict} the margin of '
                      f'{margin:g}.']
    return lines


def settings_section(settings):
    """settings: {arm: settings of train.py}"""
    defaults, _, _ = launcher.train_settings()
    changed = {arm: [f'{key}={value}' for key, value in values.items() if key != 'loss' and value != defaults.get(key)]
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


def format_interval(interval, digits=4):
    return '' if interval is None else f'[{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]'


def split_labels(flag, text, names):
    """Return the labels in `text`, separated by commas, or the names if it is empty. Exits unless they are valid."""
    if not text:
        return names
    labels = [label.strip() for label in text.split(',')]
    if len(labels) != len(names) or len(set(labels)) < len(labels) or not all(labels):
        fail(f'--{flag}={text}: pass {len(names)} different labels, separated by commas, for {", ".join(names)}',
             status=2)
    return labels
