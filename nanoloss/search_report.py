"""Results of a search by tune.py: table.md, search.png, and best.py with the settings of the best trial."""
import math
import textwrap

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from nanoloss.launcher import train_settings
from nanoloss.study_report import header, row

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def finished_trials(study):
    """The trials that completed, diverged or were pruned, in the order in which they finished."""
    return sorted(study.get_trials(deepcopy=False, states=FINISHED), key=lambda t: t.datetime_complete)


def final_nats(t):
    """Validation nats per token at the end of a finished trial; inf if it was pruned or diverged."""
    return math.inf if t.state is TrialState.PRUNED or t.user_attrs.get('diverged') else t.value


def describe_outcome(t):
    """'3.5169', 'diverged' or 'pruned at 4.0012'."""
    if t.state is TrialState.PRUNED:
        return f'pruned at {t.value:.4f}'
    return 'diverged' if t.user_attrs.get('diverged') else f'{t.value:.4f}'


def describe_values(t):
    """The searched values of a trial: 'learning_rate 0.00365, dropout 0.1'."""
    return ', '.join(f'{name} {format_value(value)}' for name, value in t.params.items())


def format_value(value):
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def write_report(study, folder):
    """Write table.md, search.png and best.py into a folder.

    Args:
        study: an Optuna study. Its user attributes: 'description', one line; 'search', whose 'settings' are
            {name: value} of the settings common to all trials. User attributes of each finished trial: 'iters',
            'seconds', 'diverged' if it did.
        folder: a Path; its name is the title.

    Returns:
        The lines to print.

    Raises:
        ValueError if no trial has completed.
    """
    trials = finished_trials(study)
    ranked = sorted(trials, key=lambda t: (final_nats(t), t.value))
    if not ranked:
        raise ValueError(f'--study={folder}: no trial has finished; wait for other processes and pass --show=True')
    if final_nats(ranked[0]) == math.inf:
        raise ValueError(f'--study={folder}: no trial has completed, {len(trials)} diverged or were pruned; '
                         'run more trials, or search lower learning rates')
    best, settings = ranked[0], study.user_attrs['search']['settings']
    seed = settings.get('seed', 1337)
    description = study.user_attrs['description']
    importances = parameter_importances(study)
    tables = tabulate(trials, ranked, importances)
    defaults, _, _ = train_settings()
    settings = {name: value for name, value in settings.items()
                if name not in best.params and value != defaults.get(name)}
    fixed = ', '.join(f'{name}={value}' for name, value in settings.items()) or 'the defaults of train.py'
    sections = [f'## {heading}\n\n{markdown(rows)}' for heading, rows in tables.items()]
    intro = f'# {folder.name}\n\n{description[0].upper() + description[1:]}. {len(trials)} trials finished.\n' \
            f'Settings of all trials: {fixed}.\n'
    folder.mkdir(parents=True, exist_ok=True)  # --show on another machine
    (folder / 'table.md').write_text('\n'.join([intro, *sections]), encoding='utf-8', errors='replace')
    (folder / 'best.py').write_text(
        f'# Found by tune.py: {describe_outcome(best)} nats per token on val.bin, the best of {len(trials)} trials; '
        f'{description}.\n# The value is optimistic, as the minimum over the trials: train again with another seed.\n'
        + ''.join(f'{name} = {value!r}\n' for name, value in {**settings, **best.params}.items()), encoding='utf-8')
    draw(trials, importances, folder / 'search.png', f'{folder.name}: {description}')
    lines = [f'best: trial {best.number}, {describe_outcome(best)} nats per token; {describe_values(best)}']
    for heading, rows in tables.items():
        lines += [f'{heading}:', *(f'  {line}' for line in markdown(rows[:11]).splitlines())]
    return [*lines, f'wrote table.md, search.png and best.py in {folder}',
            f'to train on a seed that the search did not use: python train.py {folder}/best.py '
            f'--out_dir=out/{folder.name} --seed={seed + 1}']


def tabulate(trials, ranked, importances):
    """{heading: rows}; the first row of each table is its header."""
    names = list(ranked[0].params)
    counts = sorted({*(2**i for i in range(12) if 2**i < len(trials)), len(trials)})
    tables = {'Best of the first N trials': [
        ['trials', *counts],
        ['nats per token', *(f'{min(map(final_nats, trials[:n])):.4f}' for n in counts)]]}
    if importances:
        tables['Importance (PED-ANOVA over the completed trials)'] = [
            list(importances), [f'{share:.2f}' for share in importances.values()]]
    tables['Trials'] = [['trial', 'nats per token', *names, 'iterations', 'seconds']]
    for t in ranked:
        tables['Trials'].append([t.number, describe_outcome(t), *(format_value(t.params[name]) for name in names),
                                 t.user_attrs['iters'], round(t.user_attrs['seconds'])])
    return tables


def markdown(rows):
    head, *body = [[str(cell) for cell in cells] for cells in rows]
    return '\n'.join([*header(head), *map(row, body)]) + '\n'


def parameter_importances(study):
    """{setting: share of the variance among the better trials}; {} with fewer than four completed trials, or if
    the trials do not differ."""
    if sum(math.isfinite(final_nats(t)) for t in finished_trials(study)) < 4:
        return {}
    try:
        importances = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):  # no variance
        return {}
    return importances if all(map(math.isfinite, importances.values())) else {}


def draw(trials, importances, path, title):
    """Plot nats per token in the order of the trials and against each setting, the most important one first.

    Pruned trials are plotted at their last value. Values far above the best are plotted as triangles at the
    upper edge.
    """
    import numpy as np

    from nanoloss import plotting  # imports matplotlib
    ys = np.array([math.inf if t.user_attrs.get('diverged') else t.value for t in trials])
    pruned = np.array([t.state is TrialState.PRUNED for t in trials])
    winner = min(range(len(trials)), key=lambda i: final_nats(trials[i]))
    best = ys[winner]
    top = best + max(2.5 * float(np.median(ys[np.isfinite(ys)]) - best), 0.1)
    names = list(importances) or list(trials[0].params)
    columns = min(3, len(names) + 1)
    rows = math.ceil((len(names) + 1) / columns)
    figure, axes = plotting.plt.subplots(rows, columns, sharey=True, squeeze=False,
                                         figsize=(plotting.WIDTH, 2.3 * rows + 0.7))

    def scatter(axis, xs):
        for label, marker, color, group in (('completed', 'o', plotting.COLORS[0], ~pruned),
                                            ('pruned', 'x', plotting.GRAY, pruned)):
            inside, outside = group & (ys <= top), group & (ys > top)
            if inside.any():
                axis.scatter(xs[inside], ys[inside], marker=marker, color=color, s=22, label=label)
            if outside.any():
                axis.scatter(xs[outside], np.full(outside.sum(), top), marker='^', color=color, s=22,
                             label=f'{label}, above the axis')
        axis.scatter(xs[winner], best, marker='o', facecolors='none', edgecolors=plotting.COLORS[1], s=90,
                     label='best')
        axis.set_ylim(best - 0.08 * (top - best), top + 0.04 * (top - best))

    order = np.arange(1, len(trials) + 1)
    axes[0, 0].step(order, np.minimum.accumulate([final_nats(t) for t in trials]), where='post',
                    color=plotting.COLORS[1], label='best so far')
    axes[0, 0].set_xlabel('finished trials')
    scatter(axes[0, 0], order)
    for axis, name in zip(axes.flat[1:], names, strict=False):
        xs, d = [t.params[name] for t in trials], trials[0].distributions[name]
        if isinstance(d, CategoricalDistribution):
            axis.set_xticks(range(len(d.choices)), [str(choice) for choice in d.choices])
            axis.set_xlim(-0.5, len(d.choices) - 0.5)
            xs = [d.choices.index(x) for x in xs]
        elif d.log:
            margin = (d.high / d.low) ** 0.05
            axis.set_xscale('log')
            axis.set_xlim(d.low / margin, d.high * margin)
        else:
            margin = 0.05 * (d.high - d.low)
            axis.set_xlim(d.low - margin, d.high + margin)
        axis.set_xlabel(name + (f'\nimportance {importances[name]:.2f}' if importances else ''))
        scatter(axis, np.array(xs))
    for axis in axes.flat[len(names) + 1:]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel('validation nats per token')
    figure.suptitle(textwrap.fill(title, 110))
    plotting.legend_below(figure, axes[0, 0])
    plotting.save(figure, path)
