"""Search the hyperparameters of a loss with Optuna: each trial is a run of train.py in a folder of its own.

    python tune.py config/train_tinystories_squentropy.py --trials=40 --iters=500
    python tune.py --study=studies/squentropy_muon --show=True

Settings and config files of train.py are taken too, for all trials. The space file says what is searched:
its settings are lists of choices or ranges (low, high) or (low, high, 'log'). What counts is nats a token
on val.bin through the loss's link at the end of a trial, never the training objective, never test.bin.
The same command again goes on with a search that was killed; started more than once, they share it.
"""
from configurator import broken, configure, fail, fit, run_config, scratch_names, settings_of, stored_at

# -----------------------------------------------------------------------------
study = 'studies/{loss}_{optimizer}' # the folder of trials, tables and figures; its name is the study's in the storage
trials = 40                 # to finish in all; those that are pruned or diverge count
space = 'config/space_default.py' # what is searched
sampler = 'tpe'             # tpe | random | grid (of choices; each point once, none pruned)
sampler_seed = 1            # of the draws; trial n draws with (sampler_seed, n), whoever runs it
iters = 0                   # iterations a trial; 0 = max_iters of train.py. Other batch sizes get the same tokens
budget_seconds = 0.0        # each trial trains for so long instead; one at a time, threads pinned; 0 = by tokens
evaluations = 4             # of a trial, after the one before training
prune = True                # stop trials that are in the worse half, at half of the schedule or later
storage = ''                # '' = study.db in the folder | a URL like postgresql://... | the path of a journal file
show = False                # only tables and figures of what is there
# -----------------------------------------------------------------------------
config = configure(globals(), also='train.py', rules=[
    ("study != ''", 'choose another'), 'trials >= 1', "sampler in ('tpe', 'random', 'grid')", '0 <= sampler_seed < 2**31',
    'iters >= 0', 'budget_seconds >= 0', ('not (iters and budget_seconds)', 'give one of them'), 'evaluations >= 2',
    ('not eval_only', 'every trial is trained'), ('iters or max_iters', 'give --iters')])
import json
import logging
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from itertools import product
from pathlib import Path

from filelock import FileLock, Timeout

import bins
import interrupts

interrupts.quiet('give a smaller model or --batch_size')

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

HERE = Path(__file__).resolve().parent
HOST = socket.gethostname()
DIVERGED = 3  # train.py's exit status
OURS = ('out_dir', 'eval_interval', 'log_interval', 'sample_tokens', 'eval_only')  # set here for every trial
COMPARABLE = ('dataset', 'block_size', 'seed', 'eval_iters', 'max_iters', 'init_from', 'device', 'dtype', 'compile')
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings('ignore', category=optuna.exceptions.ExperimentalWarning)


# -----------------------------------------------------------------------------
# what is searched, and from where

def read_space(path, settings, rules):
    """{setting: Optuna's distribution} of a space file, which sees all settings. Exits with one line a mistake."""
    found = next((p for p in (Path(path), HERE / path) if p.is_file()), None)
    if not found:
        fail(f'--space={path}: no such file; there are {", ".join(f"config/{p.name}" for p in HERE.glob("config/space_*.py"))}')
    try:
        names, trees = run_config(str(found.absolute()), settings)
    except (Exception, SystemExit) as e:
        fail(f'--space={path}: {type(e).__name__}: {e}; correct this file')
    chosen, errors = {}, []
    for name, values in names.items():
        if values is settings.get(name) or name[0] == '_' or name in scratch_names(trees.values()) or callable(values):
            continue
        where = f'--space={path}: {name} = {values!r}'
        if name not in theirs:
            errors.append(f'{where}: train.py has no setting {name}; python train.py --help lists those there are')
        elif name in OURS + COMPARABLE:
            errors.append(f'{where}: {name} cannot be searched, its trials could not be compared')
        elif isinstance(values, list):
            good = [fit(value, type(theirs[name])) for value in values]
            if not values or None in good or len(set(good)) < len(good):
                errors.append(f'{where}: give different choices of type {type(theirs[name]).__name__}')
            else:
                chosen[name] = CategoricalDistribution(good)
        elif isinstance(values, tuple):
            log = values[2:] == ('log',)
            low, high = (fit(value, type(theirs[name])) for value in values[:2]) if len(values) - log == 2 else (1, 0)
            if type(theirs[name]) not in (int, float) or None in (low, high) or low >= high or log and low <= 0:
                errors.append(f"{where}: a range is (low, high) or (low, high, 'log'), of {type(theirs[name]).__name__}")
            else:
                kind = IntDistribution if type(theirs[name]) is int else FloatDistribution
                chosen[name] = kind(low, high, log=log)
        else:
            errors.append(f'{where}: give a list of choices or a range (low, high); what is fixed is a flag')
    for name, distribution in chosen.items():
        ends = getattr(distribution, 'choices', None) or (distribution.low, distribution.high)
        errors += [f'--space={path}: {name} = {end!r}: {line}' for end in ends
                   for line in broken(rules, {**settings, name: end})]
    if not (chosen or errors):
        errors.append(f'--space={path} holds nothing to search; write like: learning_rate = (1e-4, 1e-1, \'log\')')
    if errors:
        fail(*errors)
    order = sorted(chosen, key=lambda name: stored_at(name, trees)[1] or 0)  # the file's: what losses share comes first
    return {name: chosen[name] for name in order}


def starting_point(distributions, settings):
    """The settings as they are, as near as the space allows: the first trial."""
    point = {}
    for name, distribution in distributions.items():
        value = settings[name]
        if not isinstance(distribution, CategoricalDistribution):
            point[name] = min(max(value, distribution.low), distribution.high)
        elif value in distribution.choices:
            point[name] = value
    return point


def open_storage():
    try:
        if storage and '://' not in storage:
            from optuna.storages.journal import JournalFileBackend
            return optuna.storages.JournalStorage(JournalFileBackend(storage))
        url = storage or f'sqlite:///{folder / "study.db"}'
        wait = {'connect_args': {'timeout': 60}} if url.startswith('sqlite') else {}
        return optuna.storages.RDBStorage(url, engine_kwargs=wait)
    except Exception as e:  # of SQLAlchemy, of the drivers, of the file
        fail(f'--storage={storage or folder / "study.db"} cannot be opened ({first_line(e)}); give another')


def first_line(error):
    return (str(error) or repr(error)).strip().splitlines()[0][:200]


# -----------------------------------------------------------------------------
# a trial

def command(settings, **more):
    """train.py with all that is not its default."""
    flags = {name: value for name, value in {**settings, **more}.items() if value != theirs[name]}
    return [sys.executable, str(HERE / 'train.py'), *(f'--{name}={value}' for name, value in flags.items())]


def run(settings, log, each_line=lambda line: True, **more):
    """Run train.py: (exit status, its last line). each_line() -> False ends it at once. That it writes into a
    pipe makes it save and stop should this process be killed."""
    process = subprocess.Popen(command(settings, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               errors='replace', env={**os.environ, **pinned})
    last = ''
    try:
        with open(log, 'a', encoding='utf-8') as f:
            for line in process.stdout:
                f.write(line)
                last = line.strip() or last
                if not each_line(line):
                    process.kill()
                    break
        return process.wait(), last
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def speed(settings, place):
    """Iterations a second of a short run."""
    place.mkdir(parents=True, exist_ok=True)
    status, last = run(settings, place / 'log.txt', max_iters=21, out_dir=str(place / 'probe'), eval_iters=1,
                       sample_tokens=0, log_interval=20, eval_interval=21)
    if status and status != DIVERGED:
        fail(f'train.py ended with status {status}: {last}')
    lines = [line for line in entries(place / 'probe/metrics.jsonl') if 'loss' in line]
    shutil.rmtree(place / 'probe')
    a, b = lines[0], lines[1]
    return (b['iter'] - a['iter']) / (b['seconds'] - a['seconds'])


def tokens_per_iter(settings):
    return settings['batch_size'] * settings['gradient_accumulation_steps'] * settings['block_size']


def run_trial(trial, place):
    """Train with the trial's values. Its state and what it came to: nats, or the reason for which it failed."""
    settings = {**base, **trial.params}
    n = trial.user_attrs.get('iters')
    if not n:
        n = int(speed(settings, place) * budget_seconds) if budget_seconds else \
            round(base_iters * tokens_per_iter(base) / tokens_per_iter(settings))
        trial.set_user_attr('iters', n := max(n, evaluations))
    if not (place / 'ckpt.pt').exists():
        for name in ('metrics.jsonl', 'best.pt'):
            (place / name).unlink(missing_ok=True)
    windows = base['eval_iters'] * base['batch_size']
    reported = 0
    state = TrialState.COMPLETE

    def each_line(line):
        nonlocal reported, state
        if ': val loss ' not in line:
            return True
        values = [entry for entry in entries(place / 'metrics.jsonl') if 'val_nats' in entry]
        for step, entry in enumerate(values):
            if step > reported and 2 * step >= evaluations and entry['iter'] < n:
                reported = step
                trial.report(entry['val_nats'], step)
                if prune and sampler != 'grid' and trial.should_prune():
                    state = TrialState.PRUNED
        return state is TrialState.COMPLETE

    resume = {'init_from': 'resume'} if (place / 'ckpt.pt').exists() else {}
    status, last = run(settings, place / 'log.txt', each_line, max_iters=n, out_dir=str(place), sample_tokens=0,
                       eval_iters=max(1, windows // settings['batch_size']), eval_interval=-(-n // evaluations), **resume)
    lines = [entry for entry in entries(place / 'metrics.jsonl')]
    trial.set_user_attr('seconds', round(max((line['seconds'] for line in lines), default=0.0), 1))
    if state is TrialState.PRUNED:
        return state, None
    if status == DIVERGED:
        trial.set_user_attr('diverged', True)
        return state, math.log(vocab_size)  # as a uniform guess: worse than whatever learns something
    if status < 0 or status > 128:
        stop(status - 128 if status > 128 else -status, None)
    if status:
        return TrialState.FAIL, f'train.py ended with status {status}: {last}; see {place / "log.txt"}'
    return state, [line['val_nats'] for line in lines if 'val_nats' in line][-1]


def entries(path):
    import rundir  # after the mistakes: it imports torch
    return list(rundir.entries(path))


# -----------------------------------------------------------------------------
# the search

def open_study(create):
    """The study of this name in the storage."""
    try:
        opened = open_storage()
        if create:
            return optuna.create_study(storage=opened, study_name=folder.name, load_if_exists=True)
        return optuna.load_study(storage=opened, study_name=folder.name)
    except KeyError:
        fail(f'--study={folder}: the storage has no study {folder.name}; run it first, without --show')
    except Exception as e:  # a file that is no storage, a database that is away: classes of several packages
        fail(f'--study={folder} cannot be opened in {storage or folder / "study.db"} ({first_line(e)}); '
             'give another --study or --storage')


def same_search(found, wanted):
    """Refuse a study that is another search than the one asked for."""
    changed = [f'{key}.{name} {old.get(name)} -> {new.get(name)}' for key, new in wanted.items()
               for old in [found.get(key, {})] for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if changed:
        fail(f'--study={folder} is another search: {", ".join(changed)}; give another --study')


def own_lock(n):
    return FileLock(folder / f'trials/{n:04}.lock', timeout=0)


def take_up_the_dead():
    """Trials whose process on this machine is gone go on, from their last checkpoint, as new ones."""
    for t in opened.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host = t.user_attrs.get('host')
        old = host is None and (time.time() - t.datetime_start.timestamp()) > 60  # killed in the moment it began
        try:
            if not old and host != HOST:
                continue
            with own_lock(t.user_attrs.get('place', t.number)):
                opened.tell(t.number, state=TrialState.FAIL)
                opened.enqueue_trial(t.params, {k: v for k, v in t.user_attrs.items() if k in ('place', 'iters')})
        except Timeout:
            pass  # it is at work


def next_trial():
    """A trial to run, with its place and the lock on it; None where there are enough."""
    with FileLock(folder / 'lock'):
        take_up_the_dead()
        trials_now = opened.get_trials(deepcopy=False)
        if sum(t.state in (*FINISHED, TrialState.RUNNING) for t in trials_now) >= trials:
            return None
        seed = sampler_seed * 100_003 + len(trials_now)  # not one stream for all: a killed search would draw again
        opened.sampler = optuna.samplers.RandomSampler(seed=seed) if sampler == 'random' else \
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, -(-trials // 3)))
        trial = opened.ask(distributions)
        place = trial.user_attrs.get('place', trial.number)
        lock = own_lock(place)
        lock.acquire()
        trial.set_user_attr('place', place)
        trial.set_user_attr('host', HOST)
        return trial, folder / f'trials/{place:04}', lock


def forget_weights():
    """Delete the checkpoints of finished trials here, but for the best one's."""
    with FileLock(folder / 'lock'):
        done = [t for t in opened.get_trials(deepcopy=False, states=FINISHED) if t.user_attrs['host'] == HOST]
        best = min(done, key=value, default=None)
        for t in done:
            for path in (folder / f"trials/{t.user_attrs['place']:04}").glob('*.pt') if t is not best else ():
                path.unlink()


def value(t):
    """Nats of a finished trial; inf for one that was pruned."""
    return t.value if t.state is TrialState.COMPLETE else math.inf


def search():
    spent = []
    while claimed := next_trial():
        trial, place, lock = claimed
        place.mkdir(parents=True, exist_ok=True)
        started = time.time()
        state, result = run_trial(trial, place)
        if state is TrialState.FAIL:
            opened.tell(trial, state=state)
            fail(f'trial {trial.number}: {result}')
        t = opened.tell(trial, None if state is TrialState.PRUNED else result, state)
        lock.release()
        forget_weights()
        spent.append(time.time() - started)
        done = opened.get_trials(deepcopy=False, states=FINISHED)
        best = min(done, key=value)
        at_work = max(1, len(opened.get_trials(deepcopy=False, states=(TrialState.RUNNING,))) + 1)
        left = max(0, trials - len(done)) * sum(spent) / len(spent) / at_work
        interrupts.say(f'{len(done)} of {trials}, trial {t.number}: {outcome(t)}, {values_of(t)} ({spent[-1]:.0f} s); '
                       f'best {outcome(best)}, trial {best.number}; {minutes(left)} left')


def minutes(seconds):
    return f'{seconds / 60:.0f} min' if seconds >= 90 else f'{seconds:.0f} s'


# -----------------------------------------------------------------------------
# what was found

def short(x):
    return f'{x:.3g}' if isinstance(x, float) else str(x)


def values_of(t):
    return ', '.join(f'{name} {short(x)}' for name, x in t.params.items())


def outcome(t):
    if t.state is TrialState.PRUNED:
        return 'pruned at {:.4f} nats'.format(list(t.intermediate_values.values())[-1])
    return 'diverged' if t.user_attrs.get('diverged') else f'{t.value:.4f} nats'


def report():
    """Tables, figures and the best trial's config file."""
    done = opened.get_trials(deepcopy=False, states=FINISHED)
    ranked = sorted(done, key=lambda t: (value(t), -len(t.intermediate_values)))
    if not ranked or value(ranked[0]) == math.inf or ranked[0].user_attrs.get('diverged'):
        fail(f'--study={folder}: no trial has finished' + f' but {len(done)} that diverged or were pruned' * bool(done)
             + '; run it on, or give a --space with lower learning rates')
    best, about, settings = ranked[0], opened.user_attrs['about'], opened.user_attrs['search']['settings']
    names = list(best.params)
    rows = [['trial', 'nats', *names, 'iterations', 'seconds']] + \
           [[t.number, outcome(t), *(short(t.params[name]) for name in names), t.user_attrs['iters'],
             round(t.user_attrs['seconds'])] for t in ranked]
    in_order = sorted(done, key=lambda t: t.datetime_complete)
    steps = sorted({*(2**i for i in range(12) if 2**i < len(done)), len(done)})
    best_of = [['best of the first', *steps], ['nats', *(f'{min(map(value, in_order[:n])):.4f}' for n in steps)]]
    tables = {'Best of n': best_of}
    varied = sum(t.state is TrialState.COMPLETE for t in done) >= 4 and importances()
    if varied:
        tables['Importance (PED-ANOVA)'] = [list(varied), [f'{x:.2f}' for x in varied.values()]]
    tables['Trials'] = rows
    fixed = ', '.join(f'{name}={x}' for name, x in settings.items())
    text = f'# {folder.name}\n\n{about}\nFixed: {fixed or "the defaults of train.py"}.\n'
    for heading, table in tables.items():
        text += f'\n## {heading}\n\n' + markdown(table)
    (folder / 'table.md').write_text(text, encoding='utf-8')
    figures(bool(varied))
    found = {**settings, **best.params}
    (folder / 'best.py').write_text(
        f'# Found by tune.py: {outcome(best)} on val.bin, the best of {len(done)} trials: {about}\n'
        f'# These nats chose it, so they flatter it: train it again with another --seed.\n'
        + ''.join(f'{name} = {x!r}\n' for name, x in found.items()), encoding='utf-8')
    for heading, table in tables.items():
        interrupts.say(f'{heading}:')
        for line in markdown(table[:11]).splitlines():
            interrupts.say('  ' + line)
    interrupts.say(f'{folder}: table.md, history.png, slices.png' + ', importance.png' * bool(varied) + ', best.py')
    interrupts.say(f'train it: python train.py {folder}/best.py --out_dir=out/{folder.name} --seed=2')


def importances():
    """{name: share}, {} where too little varies."""
    try:
        return optuna.importance.get_param_importances(opened)
    except (ValueError, RuntimeError):
        return {}


def markdown(rows):
    head, *body = [' | '.join(map(str, row)) for row in rows]
    return '\n'.join(f'| {line} |' for line in [head, ' | '.join('---' for _ in rows[0]), *body]) + '\n'


def figures(with_importance):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots
    for name, plot in {'history': plots.plot_optimization_history, 'slices': plots.plot_slice,
                       **({'importance': plots.plot_param_importances} if with_importance else {})}.items():
        plot(opened)
        plt.gcf().savefig(folder / f'{name}.png', dpi=110, bbox_inches='tight')
        plt.close('all')


# -----------------------------------------------------------------------------

def stop(number, _):
    interrupts.say('stopped; the same command goes on with this search')
    raise SystemExit(128 + number)


theirs, rules = settings_of(HERE / 'train.py')
for arg in sys.argv[1:]:
    if (name := arg.lstrip('-').partition('=')[0]) in OURS:
        fail(f'{arg}: tune.py sets {name} itself, for every trial')
base = {name: config[name] for name in theirs}
folder = Path(study.format(loss=base['loss'], optimizer=base['optimizer']) if '{' in study else study)
if show:
    if not (storage or (folder / 'study.db').is_file()):
        fail(f'--study={folder}: there is no study; run it first, without --show')
    opened = open_study(create=False)
    report()
    sys.exit()

try:
    data = bins.find(base['dataset'])
    meta = bins.read_meta(data)
    data_says = {split: bins.fingerprint(bins.open_bin(data, split, meta, base['block_size'])) for split in ('train', 'val')}
    (folder / 'trials').mkdir(parents=True, exist_ok=True)
except (FileExistsError, NotADirectoryError, PermissionError):
    fail(f'--study={folder} cannot be used; choose another')
except (OSError, ValueError) as e:
    fail(e)

# the study: new, or gone on with
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
vocab_size = meta['vocab_size'] if meta else 50257
pinned = {}
try:
    alone = FileLock(folder / 'alone.lock', timeout=0)
    with FileLock(folder / 'lock'):
        opened = open_study(create=True)
        found = opened.user_attrs.get('search', {})
        budget = {'iters': iters or base['max_iters']}
        if budget_seconds:
            import torch
            alone.acquire()  # seconds shared with another trial are not seconds
            pinned = {'OMP_NUM_THREADS': str(torch.get_num_threads())}
            budget = {'seconds': budget_seconds, 'threads': torch.get_num_threads()}
        base_iters = budget.get('iters') or opened.user_attrs.get('base_iters') or \
            int(speed(base, folder / 'trials') * budget_seconds)
        distributions = read_space(space, {**base, 'max_iters': base_iters}, rules)
        if sampler == 'grid' and not all(isinstance(d, CategoricalDistribution) for d in distributions.values()):
            fail(f'--sampler=grid needs lists of choices; --space={space} has a range')
        wanted = {'settings': {name: x for name, x in base.items() if x != theirs[name] and name not in OURS
                               and not name.startswith('wandb_')},
                  'space': {name: str(d) for name, d in distributions.items()},
                  'sampler': {'name': sampler, 'seed': sampler_seed, 'prune': prune, 'evaluations': evaluations},
                  'budget': budget, 'data': data_says}
        if found:
            same_search(found, wanted)
        points = [starting_point(distributions, base)] if sampler != 'grid' else \
            [dict(zip(distributions, point, strict=True)) for point in product(*(d.choices for d in distributions.values()))]
        if sampler == 'grid' and len(points) > trials:
            fail(f'--space={space} is a grid of {len(points)} points; give --trials={len(points)}')
        for point in points:
            opened.enqueue_trial(point, skip_if_exists=True)
        opened.set_user_attr('base_iters', base_iters)
        opened.set_user_attr('search', wanted)
        opened.set_user_attr('about', f'{base["loss"]} with {base["optimizer"]}, ' + (
            f'{budget_seconds:g} seconds of training with {budget["threads"]} threads' if budget_seconds else
            f'{base_iters:,} iterations of {tokens_per_iter(base):,} tokens') +
            f' a trial, sampler {sampler} with seed {sampler_seed}, data: {meta["source"] if meta else data}')
except Timeout:
    fail(f'--study={folder}: another tune.py is at work there; with --budget_seconds trials run one at a time')
if sampler == 'grid':
    trials = len(points)
opened.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=-(-evaluations // 2), reduction_factor=2)
interrupts.say(f'study: {folder}, {trials} trials of {base_iters:,} iterations; searched: ' +
               ', '.join(f'{name} {d}' for name, d in distributions.items()))
search()
report()
