"""Search spaces of tune.py: the files config/space_*.py.

A space file is a config file that assigns to each setting a list of choices, a range (low, high) or a
logarithmic range (low, high, 'log'). It sees the settings of the run, so a space can depend on the loss.
"""
import itertools
import re
import types
from pathlib import Path

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from configurator import assigned_at, broken_rules, coerce, run_config, scratch_names
from nanoloss.paths import ROOT

SET_BY_TUNE = ('out_dir', 'eval_interval', 'sample_tokens', 'eval_only')
# trials that differ in these could not be compared, or would not run
NOT_SEARCHABLE = ('dataset', 'block_size', 'seed', 'eval_iters', 'eval_windows', 'max_iters', 'lr_decay_iters',
                  'init_from', 'device', 'dtype', 'matmul', 'compile', 'wandb_log', 'wandb_project',
                  'wandb_run_name', 'keep_checkpoints', 'log_interval')


def read_space(path, settings, defaults, rules, applies):
    """Read a space file.

    Args:
        path: the file, relative to the current folder or to the repository.
        settings: settings of the run, {name: value}, which the file sees.
        defaults, rules, applies: of train.py, see configurator.read_settings.

    Returns:
        {name: Optuna distribution} in the order of the file.

    Raises:
        ValueError, whose args are the messages, one for each mistake.
    """
    found = next((p for p in (Path(path), ROOT / path) if p.is_file()), None)
    if not found:
        existing = ', '.join(sorted(f'config/{p.name}' for p in ROOT.glob('config/space_*.py')))
        raise ValueError(f'--space={path}: no such file; pass one of {existing}, or a file of your own')
    try:
        namespace, trees = run_config(str(found.absolute()), settings)
    except (Exception, SystemExit) as e:
        raise ValueError(f'--space={path}: {type(e).__name__}: {e}; correct the file') from None
    ignored = scratch_names(trees.values())
    space, errors = {}, []
    for name, values in namespace.items():
        if values is settings.get(name) or name[0] == '_' or name in ignored or isinstance(values, types.FunctionType):
            continue
        where = f'--space={path}: {name} = {values!r}'
        if name not in defaults:
            errors.append(f'{where}: train.py has no setting {name}; python train.py --help lists all settings')
        elif name in SET_BY_TUNE + NOT_SEARCHABLE:
            errors.append(f'{where}: {name} cannot be searched, because its trials could not be compared')
        else:
            try:
                space[name] = parse_distribution(values, type(defaults[name]))
            except ValueError as e:
                errors.append(f'{where}: {e}')
    errors += [f'--space={path}: {text}' for text in check_space(space, settings, defaults, rules, applies)]
    if not (space or errors):
        errors.append(f'--space={path} assigns nothing to search; example: '
                      "learning_rate = (1e-4, 1e-1, 'log')")
    if errors:
        raise ValueError(*errors)
    return {name: space[name] for name in sorted(space, key=lambda name: assigned_at(name, trees)[1] or 0)}


def parse_distribution(values, kind):
    """Optuna's distribution for a list of choices or a range of values of a type. Raises ValueError."""
    if isinstance(values, list):
        choices = [coerce(value, kind) for value in values]
        if not choices or None in choices or len(set(choices)) < len(choices):
            raise ValueError(f'choices must be different values of type {kind.__name__}')
        return CategoricalDistribution(choices)
    if not isinstance(values, tuple):
        raise ValueError('expected a list of choices or a range (low, high); pass a fixed value as a flag')
    log = values[2:] == ('log',)
    if kind not in (int, float) or len(values) != (3 if log else 2):
        raise ValueError("a range is (low, high) or (low, high, 'log') for a number; use a list of choices for "
                         f'other settings (type {kind.__name__})')
    low, high = (coerce(value, kind) for value in values[:2])
    if None in (low, high) or low >= high or log and low <= 0:
        raise ValueError(f"a range of type {kind.__name__} needs low < high{', and low > 0 for log' if log else ''}")
    distribution = IntDistribution if kind is int else FloatDistribution
    return distribution(low, high, log=log)


def check_space(space, settings, defaults, rules, applies):
    """Return a message for each rule that some trials would break, and for each setting without effect in some trials.

    space: {name: distribution}. Other arguments as in read_space().
    """
    messages = []
    for rule in rules:  # at the extremes of all settings that it names; the first point that breaks it is reported
        expression = rule if isinstance(rule, str) else rule[0]
        named = [name for name in space if re.search(rf'\b{name}\b', expression)]
        for values in itertools.product(*(extreme_values(space[name]) for name in named)) if named else ():
            point = dict(zip(named, values, strict=True))
            if lines := broken_rules([rule], {**settings, **point}):
                messages.append(', '.join(f'{name} = {value!r}' for name, value in point.items()) + f': {lines[0]}')
                break
    points = [(name, value) for name in space for value in extreme_values(space[name])]
    for condition, *names in applies:
        if any(broken_rules([condition], {**settings, name: value}) for name, value in points):
            messages += [f'{name} has an effect only if {condition}, which is false in some trials; remove {name} from '
                         'the space or the settings'
                         for name in names if name in space or settings[name] != defaults[name]]  # refused as a flag
    return messages


def extreme_values(distribution):
    """All choices, or the lowest and the highest value."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return distribution.low, distribution.high


def describe(distribution):
    """As text: '0.1 to 10 (log)' or '0.0|0.1|0.2'."""
    if isinstance(distribution, CategoricalDistribution):
        return '|'.join(map(str, distribution.choices))
    return f'{distribution.low:g} to {distribution.high:g}' + (' (log)' if distribution.log else '')


def grid_points(space):
    """All points of a space of choices, a list of {name: value}. Raises ValueError if the space has a range."""
    for name, distribution in space.items():
        if not isinstance(distribution, CategoricalDistribution):
            raise ValueError(f'--sampler=grid needs lists of choices, but {name} is a range; '
                             'pass another --space, or --sampler=tpe')
    return [dict(zip(space, values, strict=True))
            for values in itertools.product(*(distribution.choices for distribution in space.values()))]


def starting_point(space, settings):
    """The values of the settings, clamped to the ranges. A value that is not among the choices is left out."""
    point = {}
    for name, distribution in space.items():
        if not isinstance(distribution, CategoricalDistribution):
            point[name] = min(max(settings[name], distribution.low), distribution.high)
        elif settings[name] in distribution.choices:
            point[name] = settings[name]
    return point
