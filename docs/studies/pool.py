"""Several studies with the same losses as one: paired t over the seeds of all of them, and a figure.

    python docs/studies/pool.py same_decay_05 same_decay_07 [--figure=docs/studies/same_decay.png]
    python docs/studies/pool.py results/mine_05/results-test.json results/mine_07/results-test.json

A study is a name in this folder, or a results.json of compare.py. Each seed's runs are paired with the first loss's
of the same seed in the same study, in the declared reading. With eight pairs or more sign flips stand beside the t; of
several studies each one's mean does, and the mean of these means with a t of the spread within studies, which does not
take the studies for one.
"""
import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
import compared
import metrics
from configurator import fail

names = [arg for arg in sys.argv[1:] if arg[:2] != '--']
figure = next((arg.partition('=')[2] for arg in sys.argv[1:] if arg.startswith('--figure=')), None)
runs, readings, seeds = {}, set(), []  # runs: {arm: {(study, seed): readings}}
kept = [path.stem for path in sorted(HERE.glob('*.json')) if '"declared"' in path.read_text()]
if not names or any(name not in kept and not Path(name).is_file() for name in names):
    fail(f'asked for {", ".join(names) or "nothing"}; give results.json of compare.py, or some of {", ".join(kept)}',
         status=2)
for study in names:
    found = json.loads((HERE / f'{study}.json' if study in kept else Path(study)).read_text())
    readings.add(reading := found['plan']['declared']['reading'])
    seeds += {seed for of in found['runs'].values() for seed in of}
    for arm, of in found['runs'].items():
        runs.setdefault(arm, {}).update({(study, seed): result['readings'] for seed, result in of.items()})
if len(readings) > 1:
    fail(f'their declared readings differ: {", ".join(sorted(readings))}')
if len(seeds) > len(set(seeds)):
    fail('they share seeds, whose runs would count twice')


def less(arm, base, measure, of_arm, of_base):
    """{(study, seed): difference} where both were run."""
    return {key: runs[arm][key][of_arm][measure] - runs[base][key][of_base][measure]
            for key in runs[arm] if key in runs[base]}


def by_study(each):
    """{study: its differences}, and in words what their means say."""
    groups = {name: np.array([d for key, d in each.items() if key[0] == name]) for name in names}
    groups = {name: d for name, d in groups.items() if len(d)}
    freedom = sum(len(d) - 1 for d in groups.values())
    text = '; '.join(f'{Path(name).parent.name or name} {d.mean():+.4f} (n = {len(d)})' for name, d in groups.items())
    if freedom:
        variance = sum(((d - d.mean()) ** 2).sum() for d in groups.values()) / freedom
        error = np.sqrt(variance * sum(1 / len(d) for d in groups.values())) / len(groups)
        mean, half = np.mean([d.mean() for d in groups.values()]), stats.t.ppf(0.975, freedom) * error
        p = 2 * stats.t.sf(abs(mean) / error, freedom)
        text += f'; their mean {mean:+.4f} {compared.span([mean - half, mean + half])} p = {p:.2g}'
    return text


# of all runs: where a vocabulary is so large that fitting takes hours, runs may lack that reading
have = set.intersection(*({name for name in x} for of in runs.values() for x in of.values()))
print('means | seeds | ' + ' | '.join(compared.MEASURES.values()))
for arm, of in runs.items():
    for which in [name for name in dict.fromkeys([reading, 'fitted']) if name in have]:
        means = [np.mean([x[which][key] for x in of.values()]) for key in compared.MEASURES]
        print(f'{arm}, {which} | {len(of)} | ' + ' | '.join(f'{x:.4f}' for x in means))
arms = list(runs)
for base, arm in [(base, arm) for i, base in enumerate(arms) for arm in arms[i + 1:]]:
    print(f'\n{arm} less {base}')
    rows = [(title, measure, reading, reading) for measure, title in compared.MEASURES.items()]
    for name, title in compared.FITTED.items():
        measure = name.removesuffix('_fitted')
        rows += [(title, measure, reading, 'fitted'), (title.replace('the other', 'both'), measure, 'fitted', 'fitted')]
    for title, measure, *readings_of in [row for row in rows if have.issuperset(row[2:])]:
        each = less(arm, base, measure, *readings_of)
        t, strict = metrics.paired_t(list(each.values())), metrics.paired_t(list(each.values()), level=0.995)
        if t['p'] is None:
            print(f'{title}: {t["mean"]:+.4f}, n = {len(each)}')
            continue
        flip = f' (sign flips {metrics.sign_flip(np.array([*each.values()])[:, None], 99_999, 1)[0]:.2g})'
        print(f'{title}: {t["mean"]:+.4f} {compared.span(t["interval"])} p = {t["p"]:.2g}' + flip * (len(each) > 7) +
              f', n = {len(each)}, seen with 80 %: {t["detectable"]:.4f} (at p < 0.005 {strict["detectable"]:.4f})' +
              f', upper 99 %: {t["upper99"]:+.4f}' * (title == compared.MEASURES['nats']))
        if len(names) > 1:
            print(f'    {by_study(each)}')

if figure:
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    drawn, axes = plt.subplots(1, 4, figsize=(11, 1.3 + 0.45 * len(arms)), sharey=True, layout='constrained')
    for axis, (measure, title) in zip(axes, compared.MEASURES.items(), strict=True):
        axis.axvline(0, color='0.6', linewidth=1)
        for row, arm in enumerate(arms[1:]):
            each = less(arm, arms[0], measure, reading, reading)
            for i, study in enumerate(names):
                x = [d for key, d in each.items() if key[0] == study]
                axis.plot(x, [row + 0.12 * (i - (len(names) - 1) / 2)] * len(x), 'o', color=f'C{i}', markersize=4,
                          alpha=0.6, label=Path(study).parent.name or study if not row else None)
            t = metrics.paired_t(list(each.values()))
            axis.errorbar(t['mean'], row, xerr=t['mean'] - t['interval'][0], fmt='|', color='black', capsize=3)
        axis.locator_params(axis='x', nbins=4)
        axis.set(title=title)
    axes[0].set_yticks(range(len(arms) - 1), [arm.replace(':', '\n') for arm in arms[1:]], fontsize=8)
    axes[0].set_ylim(len(arms) - 1.5, -0.5)
    drawn.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc='outside lower center', ncols=len(names))
    drawn.suptitle(f'less {arms[0]}; dots: seeds; bars: 95 % over seeds (t)', fontsize=9)
    drawn.savefig(figure, dpi=110)
