"""Pool compare.py studies of the same losses: paired t-tests over the seeds of all of them, and a figure.

    python dev/pool_studies.py same_decay_05 same_decay_07 --figure=docs/studies/same_decay.png \
        --labels="cross_entropy,label smoothing 0.05,centred squentropy 0.25"
    python dev/pool_studies.py results/mine_05/results-test.json results/mine_07/results-test.json

A study is a name in docs/studies or a results.json of compare.py. Runs are paired by seed within a study, in the
declared readout. --labels replaces the names of the losses. From eight pairs on, the p-value of a sign-flip test is
printed too. For several studies, the mean of each study is printed, and the mean of these means with a t-test on the
variance within studies.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configurator import fail
from nanoloss import signals
from nanoloss.statistics import paired_t, sign_flip
from nanoloss.study_plan import read_study
from nanoloss.study_report import CALIBRATED_MEASURES, MEASURES, format_interval, split_labels


def read_studies(names):
    """Return {arm: {(study, seed): readouts}} and the declared readout. Exits if the studies cannot be pooled."""
    runs, declared, seeds = {}, set(), []
    for name in names:
        readout, arms = read_study(name)
        declared.add(readout)
        seeds += {seed for arm_runs in arms.values() for seed in arm_runs}
        for arm, arm_runs in arms.items():
            runs.setdefault(arm, {}).update({(name, seed): readouts for seed, readouts in arm_runs.items()})
    if len(declared) > 1:
        fail(f'the studies declare different readouts: {", ".join(sorted(declared))}; pool those with the same one')
    if len(seeds) > len(set(seeds)):
        fail('the studies share seeds, so runs would count twice; pool studies with different seeds')
    return runs, declared.pop()


def differences_by_run(runs, arm, base, measure, arm_readout, base_readout):
    """Return {(study, seed): difference of arm and base} where both were run."""
    return {key: runs[arm][key][arm_readout][measure] - runs[base][key][base_readout][measure]
            for key in runs[arm] if key in runs[base]}


def group_by_study(differences):
    """{(study, seed): difference} -> {study: array of differences}"""
    groups = {}
    for (study, _), difference in differences.items():
        groups.setdefault(study, []).append(difference)
    return {study: np.array(group) for study, group in groups.items()}


def mean_of_means(groups):
    """Unweighted mean of the studies' means: (mean, 95 % interval, p), or None if no study has two pairs.

    The standard error uses the variance pooled within studies, so differences between studies do not count.
    """
    dof = sum(len(d) - 1 for d in groups.values())
    if not dof:
        return None
    variance = sum(((d - d.mean()) ** 2).sum() for d in groups.values()) / dof
    standard_error = np.sqrt(variance * sum(1 / len(d) for d in groups.values())) / len(groups)
    mean, half_width = np.mean([d.mean() for d in groups.values()]), stats.t.ppf(0.975, dof) * standard_error
    return mean, [mean - half_width, mean + half_width], 2 * stats.t.sf(abs(mean) / standard_error, dof)


def short_name(study):
    return Path(study).parent.name or study


def print_means(runs, readouts):
    print('means | seeds | ' + ' | '.join(MEASURES.values()))
    for arm, arm_runs in runs.items():
        for readout in readouts:
            means = [np.mean([run[readout][measure] for run in arm_runs.values()]) for measure in MEASURES]
            print(f'{arm}, {readout} | {len(arm_runs)} | ' + ' | '.join(f'{mean:.4f}' for mean in means))


def print_difference(title, differences, show_bound, show_studies):
    d = list(differences.values())
    t, strict = paired_t(d), paired_t(d, level=0.995)
    if t['p'] is None:
        print(f'{title}: {t["mean"]:+.4f}, n = {len(d)}')
        return
    line = f'{title}: {t["mean"]:+.4f} {format_interval(t["interval"])} p = {t["p"]:.2g}'
    if len(d) >= 8:
        line += f' (sign flips {sign_flip(np.array(d)[:, None], 99_999, 1)[0]:.2g})'
    line += f', n = {len(d)}, minimum detectable difference (80 % power): {t["detectable"]:.4f} ' \
            f'(at p < 0.005 {strict["detectable"]:.4f})'
    if show_bound:
        line += f', 99 % upper bound: {t["upper99"]:+.4f}'
    print(line)
    if show_studies:
        groups = group_by_study(differences)
        line = '; '.join(f'{short_name(study)} {d.mean():+.4f} (n = {len(d)})' for study, d in groups.items())
        if pooled := mean_of_means(groups):
            mean, interval, p = pooled
            line += f'; mean of means {mean:+.4f} {format_interval(interval)} p = {p:.2g}'
        print(f'    {line}')


def print_pair(runs, arm, base, readout, available, show_studies):
    print(f'\n{arm} minus {base}')
    rows = [(title, measure, readout, readout) for measure, title in MEASURES.items()]
    for name, title in CALIBRATED_MEASURES.items():
        measure = name.removesuffix('_calibrated')
        rows += [(title, measure, readout, 'calibrated'),
                 (f'{MEASURES[measure]}, both calibrated', measure, 'calibrated', 'calibrated')]
    for title, measure, arm_readout, base_readout in rows:
        if not available.issuperset((arm_readout, base_readout)):
            continue
        if differences := differences_by_run(runs, arm, base, measure, arm_readout, base_readout):
            print_difference(title, differences, measure == 'nats' and arm_readout == base_readout == readout,
                             show_studies)


def draw(path, runs, readout, studies, names):
    """Write a figure of the differences to the first arm: a marker for each seed, a color for each study.

    names: of the studies, for the legend.
    """
    from nanoloss import plotting  # imports matplotlib
    base, *others = runs
    lines = max(arm.count(':') + 1 for arm in others)  # of a label
    offsets = np.linspace(-0.35, 0.35, len(studies) + 1)  # within the row of an arm: each study, then the mean
    row_height = max(0.17 * lines + 0.1, 0.25 * len(offsets))  # inches
    figure, axes = plotting.plt.subplots(2, 2, figsize=(plotting.WIDTH, 2 + 2 * row_height * len(others)), sharey=True)
    for axis, (measure, title) in zip(axes.flat, MEASURES.items(), strict=True):
        axis.axvline(0, color=plotting.GRAY, linewidth=1)
        for y, arm in enumerate(others):
            differences = differences_by_run(runs, arm, base, measure, readout, readout)
            for i, study in enumerate(studies):
                x = [d for key, d in differences.items() if key[0] == study]
                axis.plot(x, [y + offsets[i]] * len(x), **{**plotting.style(i), 'linestyle': ''}, alpha=0.7,
                          label=f'{names[i]}, one seed')
            t = paired_t(list(differences.values()))
            if t['interval']:
                axis.errorbar(t['mean'], y + offsets[-1], xerr=t['mean'] - t['interval'][0], fmt='|', color='black',
                              capsize=3, linewidth=1, label='mean, 95 % interval over seeds (t)')
        plotting.separate_rows(axis, len(others))
        better = 'higher' if measure == 'top1' else 'lower'
        axis.set_xlabel(f'{title} ({readout})\n{better} is better')
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(others)), [arm.replace(':', '\n') for arm in others])
    figure.suptitle(f'difference to {base}')
    plotting.legend_below(figure, axes[0, 0])
    plotting.save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('studies', nargs='+', help='names in docs/studies, or results.json files of compare.py')
    parser.add_argument('--figure', metavar='FILE', help='also draw the differences to the first loss')
    parser.add_argument('--labels', help='names for the losses in the output, in the order of the study, separated by '
                                         'commas')
    parser.add_argument('--study_labels', help='names for the studies in the legend, separated by commas')
    args = parser.parse_args()
    names = split_labels('study_labels', args.study_labels, [short_name(study) for study in args.studies])
    runs, readout = read_studies(args.studies)
    if args.figure and len(runs) < 2:
        fail(f'--figure={args.figure}: there is only {", ".join(runs)}; pool studies of at least two losses', status=2)
    runs = dict(zip(split_labels('labels', args.labels, list(runs)), runs.values(), strict=True))
    # readouts of every run: calibration takes hours for a large vocabulary, so runs may lack it
    available = set.intersection(*(set(run) for arm_runs in runs.values() for run in arm_runs.values()))
    print_means(runs, [name for name in dict.fromkeys([readout, 'calibrated']) if name in available])
    arms = list(runs)
    for i, base in enumerate(arms):
        for arm in arms[i + 1:]:
            print_pair(runs, arm, base, readout, available, show_studies=len(args.studies) > 1)
    if args.figure:
        draw(args.figure, runs, readout, args.studies, names)


if __name__ == '__main__':
    signals.install_excepthook('pool fewer studies')  # also ends quietly when the reader of stdout is gone
    main()
