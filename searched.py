"""What a search of tune.py has found: table.md, search.png, and the best trial's settings as a config file."""
import math
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def finished(study):
    """Its trials that ran to the end, diverged or were pruned, in the order in which they ended."""
    return sorted(study.get_trials(deepcopy=False, states=FINISHED), key=lambda t: t.datetime_complete)


def nats(t):
    """Of a finished trial: at its end; inf where it was pruned or diverged."""
    return math.inf if t.state is TrialState.PRUNED or t.user_attrs.get('diverged') else t.value


def outcome(t):
    if t.state is TrialState.PRUNED:
        return f'pruned at {t.value:.4f}'
    return 'diverged' if t.user_attrs.get('diverged') else f'{t.value:.4f}'


def short(x):
    return f'{x:.3g}' if isinstance(x, float) else str(x)


def report(study, folder):
    """Write the files into the folder, a Path. The lines to say. Raises ValueError where nothing was found."""
    done = finished(study)
    ranked = sorted(done, key=lambda t: (nats(t), outcome(t)))
    if not ranked or nats(ranked[0]) == math.inf:
        raise ValueError(f'--study={folder}: no trial has finished'
                         + f', {len(done)} diverged or were pruned' * bool(done)
                         + '; go on with it, or search lower learning rates')
    best, about, settings = ranked[0], study.user_attrs['about'], study.user_attrs['search']['settings']
    names = list(best.params)
    steps = sorted({*(2**i for i in range(12) if 2**i < len(done)), len(done)})
    tables = {'Best of n': [['trials', *steps],
                            ['nats', *(f'{min(map(nats, done[:n])):.4f}' for n in steps)]]}
    if shares := importance(study):
        tables['Importance (PED-ANOVA over the trials that ran to the end)'] = \
            [list(shares), [f'{share:.2f}' for share in shares.values()]]
    tables['Trials'] = [['trial', 'nats', *names, 'iterations', 'seconds']] + [
        [t.number, outcome(t), *(short(t.params[name]) for name in names), t.user_attrs['iters'],
         round(t.user_attrs['seconds'])] for t in ranked]
    text = f'# {folder.name}\n\n{about[0].upper() + about[1:]}. {len(done)} trials finished.\n'
    text += f'Fixed: {", ".join(f"{name}={x}" for name, x in settings.items()) or "the defaults of train.py"}.\n'
    text += ''.join(f'\n## {heading}\n\n{markdown(rows)}' for heading, rows in tables.items())
    (folder / 'table.md').write_text(text, encoding='utf-8')
    (folder / 'best.py').write_text(
        f'# Found by tune.py: {outcome(best)} nats on val.bin, the best of {len(done)} trials; {about}.\n'
        '# These nats chose it, so they flatter it: train it again with another seed.\n'
        + ''.join(f'{name} = {x!r}\n' for name, x in {**settings, **best.params}.items()), encoding='utf-8')
    draw(done, shares, folder / 'search.png', f'{folder.name}: {about}')
    lines = [f'best: trial {best.number}, {outcome(best)} nats; ' + values(best)]
    for heading, rows in tables.items():
        lines += [f'{heading}:', *('  ' + line for line in markdown(rows[:11]).splitlines())]
    return [*lines, f'in {folder}: table.md, search.png, best.py',
            f'train it on a seed that the search did not see: python train.py {folder}/best.py '
            f'--out_dir=out/{folder.name} --seed=1']


def values(t):
    return ', '.join(f'{name} {short(x)}' for name, x in t.params.items())


def importance(study):
    """{setting: share of the variance among the better trials}; {} of fewer than four, or where nothing varies."""
    if sum(math.isfinite(nats(t)) for t in finished(study)) < 4:
        return {}
    try:
        shares = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):  # all alike
        return {}
    return shares if all(map(math.isfinite, shares.values())) else {}


def markdown(rows):
    lines = [' | '.join(map(str, row)) for row in rows]
    return ''.join(f'| {line} |\n' for line in [lines[0], ' | '.join('---' for _ in rows[0]), *lines[1:]])


def draw(done, shares, path, title):
    """Nats in the order of the trials, and against each setting, the most important one first. Pruned trials
    stand where they were cut; what is far off the best stands at the upper edge."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import numpy as np
    best = min(map(nats, done))
    ys = np.array([math.inf if t.user_attrs.get('diverged') else t.value for t in done])
    top = best + max(2.5 * float(np.median([y for y in ys if math.isfinite(y)]) - best), 0.1)
    kinds = {'to the end': ('o', 'C0', [t.state is TrialState.COMPLETE for t in done]),
             'pruned': ('x', '0.5', [t.state is TrialState.PRUNED for t in done])}
    names = list(shares) or list(done[0].params)
    columns = min(4, len(names) + 1)
    figure, axes = plt.subplots(-(-(len(names) + 1) // columns), columns, sharey=True, squeeze=False,
                                figsize=(3.1 * columns, 2.8 * -(-(len(names) + 1) // columns)), layout='constrained')
    winner = min(range(len(done)), key=lambda i: nats(done[i]))
    for axis, name in zip(axes.flat, ['', *names], strict=False):
        xs = [t.params[name] if name else i + 1 for i, t in enumerate(done)]
        d = done[0].distributions[name] if name else None
        if isinstance(d, CategoricalDistribution):
            axis.set_xticks(range(len(d.choices)), [str(choice) for choice in d.choices])
            axis.set_xlim(-0.5, len(d.choices) - 0.5)
            xs = [d.choices.index(x) for x in xs]
        elif d:
            axis.set_xscale('log' if d.log else 'linear')
            margin = (d.high / d.low) ** 0.05 if d.log else 0.05 * (d.high - d.low)
            axis.set_xlim(*((d.low / margin, d.high * margin) if d.log else (d.low - margin, d.high + margin)))
        else:
            axis.step(xs, np.minimum.accumulate([nats(t) for t in done]), where='post', color='C1', label='best so far')
        for label, (marker, color, chosen) in kinds.items():
            near, far = (np.array(chosen) & which for which in (ys <= top, ys > top))
            axis.scatter(np.array(xs)[near], ys[near], marker=marker, color=color, s=22, label=label)
            axis.scatter(np.array(xs)[far], np.full(far.sum(), top), marker='^', color=color, s=22)
        axis.scatter(xs[winner], best, marker='o', facecolors='none', edgecolors='C3', s=90, label='best')
        share = f' (importance {shares[name]:.2f})' if name in shares else ''
        axis.set(xlabel=name + share or 'trials finished', ylim=(best - 0.08 * (top - best), top + 0.04 * (top - best)))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) + 1:]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel('validation nats a token')
    axes[0, 0].legend(fontsize=7)
    figure.suptitle(title if len(title) < 45 * columns else title.split(', data')[0], fontsize=9)
    figure.savefig(Path(path), dpi=110)
    plt.close(figure)
