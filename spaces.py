"""What a search may vary: the space files of tune.py, config/space_*.py.

A space file is a config file whose values are lists of choices, ranges (low, high), or logarithmic ranges
(low, high, 'log'). It sees the settings of the run, so a loss can have constants of its own.
"""
import types
from itertools import product
from pathlib import Path

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from configurator import broken, fit, run_config, scratch_names, stored_at

HERE = Path(__file__).resolve().parent
OURS = ('out_dir', 'eval_interval', 'log_interval', 'sample_tokens', 'eval_only')  # tune.py sets them for every trial
COMPARABLE = ('dataset', 'block_size', 'seed', 'eval_iters', 'max_iters', 'lr_decay_iters', 'init_from', 'device',
              'dtype', 'compile', 'wandb_log', 'wandb_project', 'wandb_run_name', 'keep_checkpoints')


def read(path, settings, defaults, rules):
    """{setting: Optuna's distribution} of a space file, in its order.

    settings: of the run, which the file sees; defaults, rules: of train.py (configurator.settings_of).
    Raises ValueError, whose args are a line for each mistake.
    """
    found = next((p for p in (Path(path), HERE / path) if p.is_file()), None)
    if not found:
        there = ', '.join(sorted(f'config/{p.name}' for p in HERE.glob('config/space_*.py')))
        raise ValueError(f'--space={path}: no such file; there are {there}')
    try:
        names, trees = run_config(str(found.absolute()), settings)
    except (Exception, SystemExit) as e:
        raise ValueError(f'--space={path}: {type(e).__name__}: {e}; correct this file') from None
    space, errors, scratch = {}, [], scratch_names(trees.values())
    for name, values in names.items():
        if values is settings.get(name) or name[0] == '_' or name in scratch or isinstance(values, types.FunctionType):
            continue
        where = f'--space={path}: {name} = {values!r}'
        if name not in defaults:
            errors.append(f'{where}: train.py has no setting {name}; python train.py --help lists those there are')
            continue
        if name in OURS + COMPARABLE:
            errors.append(f'{where}: {name} cannot be searched, its trials could not be compared')
            continue
        try:
            space[name] = distribution(values, type(defaults[name]))
        except ValueError as e:
            errors.append(f'{where}: {e}')
            continue
        errors += [f'{where}: with {end!r}, {line}' for end in ends(space[name])
                   for line in broken(rules, {**settings, name: end})]
    if not (space or errors):
        errors.append(f"--space={path} holds nothing to search; write like: learning_rate = (1e-4, 1e-1, 'log')")
    if errors:
        raise ValueError(*errors)
    return {name: space[name] for name in sorted(space, key=lambda name: stored_at(name, trees)[1] or 0)}


def distribution(values, kind):
    """Optuna's distribution of a list of choices or a range of a type. Raises ValueError."""
    if isinstance(values, list):
        choices = [fit(value, kind) for value in values]
        if not choices or None in choices or len(set(choices)) < len(choices):
            raise ValueError(f'give different choices of type {kind.__name__}')
        return CategoricalDistribution(choices)
    if not isinstance(values, tuple):
        raise ValueError('give a list of choices or a range (low, high); what is fixed is a flag')
    log = values[2:] == ('log',)
    low, high = (fit(value, kind) for value in values[:2]) if len(values) - log == 2 else (None, None)
    if kind not in (int, float) or None in (low, high) or low >= high or log and low <= 0:
        raise ValueError(f"a range is (low, high) or (low, high, 'log') with low < high, of type {kind.__name__}"
                         + ', low > 0' * log)
    return (IntDistribution if kind is int else FloatDistribution)(low, high, log=log)


def ends(distribution):
    return getattr(distribution, 'choices', None) or (distribution.low, distribution.high)


def text(distribution):
    """0.1 to 10 (log); 0.0|0.1|0.2"""
    if isinstance(distribution, CategoricalDistribution):
        return '|'.join(map(str, distribution.choices))
    return f'{distribution.low:g} to {distribution.high:g}' + ' (log)' * distribution.log


def grid(space):
    """All points of a space of choices. Raises ValueError where there is a range."""
    if ranges := [name for name, d in space.items() if not isinstance(d, CategoricalDistribution)]:
        raise ValueError(f'--sampler=grid needs lists of choices, {ranges[0]} is a range; '
                         'give another --space, or --sampler=tpe')
    return [dict(zip(space, point, strict=True)) for point in product(*(d.choices for d in space.values()))]


def starting_point(space, settings):
    """The settings as they are, as near as the space allows."""
    point = {}
    for name, d in space.items():
        if not isinstance(d, CategoricalDistribution):
            point[name] = min(max(settings[name], d.low), d.high)
        elif settings[name] in d.choices:
            point[name] = settings[name]
    return point
