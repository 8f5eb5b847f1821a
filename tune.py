"""Search the hyperparameters of a loss with Optuna: each trial is a run of train.py in a folder of its own.

    python tune.py config/train_tinystories_squentropy.py --trials=40 --iters=500
    python tune.py config/train_tinystories_squentropy.py --show=True

Settings and config files of train.py are taken too, for all trials; --space says what is searched (see
config/space_default.py). What counts is nats a token on val.bin through the loss's link at the end of a
trial: never the training objective, never test.bin. The same command again goes on with a search that was
stopped or killed; started several times at once, the processes share it.
"""
from configurator import configure, fail

# -----------------------------------------------------------------------------
study = 'studies/{loss}_{optimizer}' # folder of its trials, tables and figures; the last part is its name
trials = 40                 # to finish in all; those that are pruned or diverge count
space = 'config/space_default.py' # what is searched
sampler = 'tpe'             # tpe | random | grid (every point of a space of choices, none pruned)
sampler_seed = 1            # of the draws
iters = 0                   # iterations a trial; 0 = max_iters. Trials with other batch sizes get the same tokens
budget_seconds = 0.0        # instead: seconds of training a trial, one at a time, threads pinned; 0 = by tokens
evaluations = 4             # of a trial, besides that of the untrained model
prune = True                # stop a trial that is in the worse half, at half of its schedule or later
storage = ''                # '' = study.db in the folder | a URL, like postgresql://... | the path of a journal file
show = False                # only the tables and figures of what was found
# -----------------------------------------------------------------------------
config = configure(globals(), also='train.py', rules=[
    ("study != ''", 'choose another'), 'trials >= 1', "sampler in ('tpe', 'random', 'grid')",
    '0 <= sampler_seed < 2**20',
    'iters >= 0', 'budget_seconds >= 0', ('not (iters and budget_seconds)', 'give one of them'), 'evaluations >= 2',
    ('iters or max_iters', 'give --iters'), ("init_from != 'resume'", 'a killed search goes on without it')])
import math
import signal
import sys
import time
import uuid
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

import interrupts

interrupts.quiet('give a smaller model or --batch_size')

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import bins
import runlog
import runs
import searched
import spaces

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings('ignore', category=optuna.exceptions.ExperimentalWarning)


# -----------------------------------------------------------------------------
# one trial: train.py as it is

def evaluated(place):
    """The evaluations of a run until now."""
    return [line for line in runlog.entries(place / 'metrics.jsonl') if 'val_nats' in line]


def run_trial(trial, place):
    """Train with the values of a trial, from its last checkpoint if there is one. Its state, its nats."""
    settings = {**base, **trial.params}
    n = trial.user_attrs.get('iters')
    if not n:
        speed = runs.speed(settings, place, threads) if budget_seconds else None
        n = int(speed * budget_seconds) if budget_seconds else \
            round(base_iters * runs.tokens_per_iter(base) / runs.tokens_per_iter(settings))
        trial.set_user_attr('iters', n := max(n, evaluations))
        if speed == 0:
            return diverged(trial, 0.0)
    resume = (place / 'ckpt.pt').exists()
    for name in ('metrics.jsonl', 'best.pt') if not resume else ():  # of one that was killed before it saved
        (place / name).unlink(missing_ok=True)
    reported, state = 0, TrialState.COMPLETE

    def look(line):
        """Report evaluations from half of the schedule on, but the last one; False where one prunes the trial."""
        nonlocal reported, state
        for step, entry in enumerate(evaluated(place) if ': val loss ' in line else ()):
            if step > reported and 2 * step >= evaluations and entry['iter'] < n:
                trial.report(entry['val_nats'], reported := step)
                if prune and sampler != 'grid' and trial.should_prune():
                    state = TrialState.PRUNED
        return state is TrialState.COMPLETE

    status, last = runs.train(settings, place, look, threads, max_iters=n, out_dir=str(place),
                              eval_interval=-(-n // evaluations),
                              eval_iters=max(1, base['eval_iters'] * base['batch_size'] // settings['batch_size']),
                              **{'init_from': 'resume'} if resume else {})
    seconds = max((line['seconds'] for line in runlog.entries(place / 'metrics.jsonl')), default=0)
    if status == runs.DIVERGED and state is TrialState.COMPLETE:
        return diverged(trial, seconds, *(line['val_nats'] for line in evaluated(place)[-1:]))
    trial.set_user_attr('seconds', round(seconds, 1))
    if state is TrialState.PRUNED:
        return state, None
    if status:
        if status == 128 + signal.SIGTERM or status == 128 + signal.SIGINT:
            stop(status - 128, None)
        opened.tell(trial, state=TrialState.FAIL)
        fail(f'trial {trial.number}: train.py ended with status {status} ({last}); see {place}/log.txt')
    return state, evaluated(place)[-1]['val_nats']


def diverged(trial, seconds, *last):
    """A trial that diverged is a result: as bad as a uniform guess, or as its last evaluation."""
    trial.set_user_attr('seconds', round(seconds, 1))
    trial.set_user_attr('diverged', True)
    return TrialState.COMPLETE, max(math.log(vocab_size), *last, 0.0)


# -----------------------------------------------------------------------------
# the search

def stop(number, _):
    interrupts.say('stopped; the same command goes on with this search')
    raise SystemExit(128 + number)


def take_up_the_dead():
    """Trials of this folder whose process is gone, and those that failed, go on from their last checkpoint, as new
    trials with their values."""
    for t in opened.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        age = time.time() - t.datetime_start.timestamp()
        if t.user_attrs.get('home', home if not storage or age > 60 else '') != home:
            continue  # another machine's, or just begun there
        try:
            with trial_lock(folder / place_of(t)):
                opened.tell(t.number, state=TrialState.FAIL)
        except Timeout:
            pass  # it is at work
    known = opened.get_trials(deepcopy=False)
    taken = {place_of(t) for t in known if t.state is not TrialState.FAIL}
    for t in reversed(known):
        if t.user_attrs.get('home', home) == home and place_of(t) not in taken:
            taken.add(place_of(t))
            iters = {'iters': t.user_attrs['iters']} if 'iters' in t.user_attrs else {}
            opened.enqueue_trial(t.params, {'place': place_of(t), **iters})


def place_of(t):
    return t.user_attrs.get('place', f'trials/{t.number:04}')


def trial_lock(place):
    place.mkdir(parents=True, exist_ok=True)
    return FileLock(place / 'trial.lock', timeout=0)


def next_trial():
    """(trial, its folder, the lock on that), or None where enough have finished or are at work."""
    with FileLock(folder / 'lock'):
        take_up_the_dead()
        known = opened.get_trials(deepcopy=False)
        if sum(t.state in (*searched.FINISHED, TrialState.RUNNING) for t in known) >= trials:
            return None
        if sampler == 'grid' and not any(t.state is TrialState.WAITING for t in opened.get_trials(deepcopy=False)):
            return None
        # for each trial its own seed: a search that goes on, or goes on elsewhere, does not draw the same again
        seed = sampler_seed * 2**12 + len(known) + (int(home, 16) if storage else 0)
        opened.sampler = optuna.samplers.RandomSampler(seed=seed) if sampler == 'random' else \
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, -(-trials // 3)))
        trial = opened.ask(distributions)
        name = place_of(trial)
        lock = trial_lock(folder / name)
        lock.acquire()
        trial.set_user_attr('place', name)
        trial.set_user_attr('home', home)
        return trial, folder / name, lock


def forget_weights():
    """Delete the checkpoints of the trials that have finished, but for the best one's."""
    with FileLock(folder / 'lock'):
        done = searched.finished(opened)
        best = min(done, key=searched.nats)
        for t in done:  # what another machine made has no folder here
            for path in (folder / t.user_attrs['place']).glob('*.pt*') if t is not best else ():
                path.unlink()


def search():
    spent = []
    while claimed := next_trial():
        trial, place, lock = claimed
        with FileLock(place / 'lock', timeout=300):
            pass  # a run whose tune.py was killed saves and ends
        started = time.time()
        state, nats = run_trial(trial, place)
        t = opened.tell(trial, nats, state)
        lock.release()
        forget_weights()
        spent.append(time.time() - started)
        done = searched.finished(opened)
        best = min(done, key=searched.nats)
        at_work = 1 + sum(other.state is TrialState.RUNNING for other in opened.get_trials(deepcopy=False))
        left = max(0, trials - len(done)) * sum(spent) / len(spent) / at_work
        interrupts.say(f'{len(done)} of {trials}: trial {t.number}: {searched.outcome(t)}, {searched.values(t)} '
                       f'({spent[-1]:.0f} s); best {searched.outcome(best)}, trial {best.number}; '
                       f'about {left / 60:.0f} min left')
        if interrupts.stop:  # nobody reads any more
            raise SystemExit(128 + interrupts.stop)
    if others := sum(t.state is TrialState.RUNNING for t in opened.get_trials(deepcopy=False)):
        interrupts.say(f'{others} trials are at work in other processes, or were when these died')


# -----------------------------------------------------------------------------
# the study

def open_storage():
    if storage and '://' not in storage:
        return JournalStorage(JournalFileBackend(storage))
    url = storage or f'sqlite:///{folder / "study.db"}'
    return RDBStorage(url, engine_kwargs={'connect_args': {'timeout': 60}} if url.startswith('sqlite') else {})


def open_study(open_it):
    """open_it(storage=, study_name=), which is one of Optuna's; any error of a storage is one line."""
    try:
        return open_it(storage=open_storage(), study_name=folder.name)
    except KeyError:
        fail(f'--study={folder}: there is no study {folder.name} in the storage; run it first, without --show')
    except Exception as e:  # a file that is none, a database that is away, a driver that lacks: many classes
        reason = (str(e) or repr(e)).strip().splitlines()[0][:200]
        fail(f'--storage={storage or folder / "study.db"} cannot be opened ({type(e).__name__}: {reason}); '
             'give another --study or --storage')


def begin():
    """Open the study, or make it: (study, iterations, what is searched). Exits where it is another search's."""
    opened = open_study(lambda **where: optuna.create_study(**where, load_if_exists=True))
    budget = {'seconds': budget_seconds, 'threads': threads} if budget_seconds else \
        {'iterations': iters or base['max_iters']}
    n = budget.get('iterations') or opened.user_attrs.get('iterations') or \
        int(runs.speed(base, folder / 'trials', threads) * budget_seconds)
    if n < evaluations:
        raise ValueError(f'{n} iterations are too few for --evaluations={evaluations}, or the config diverges at once; '
                         'give a larger budget or a lower --learning_rate')
    space_of = spaces.read(space, {**base, 'max_iters': n}, runs.DEFAULTS, runs.RULES)
    points = spaces.grid(space_of) if sampler == 'grid' else [spaces.starting_point(space_of, base)]
    if sampler == 'grid' and len(points) > trials:
        raise ValueError(f'--space={space} is a grid of {len(points)} points; give --trials={len(points)}')
    wanted = {'settings': {name: value for name, value in base.items() if value != runs.DEFAULTS[name]
                           and name not in spaces.OURS and not name.startswith('wandb_')},
              'space': {name: spaces.text(d) for name, d in space_of.items()}, 'budget': budget, 'data': fingerprints,
              'search': {'sampler': sampler, 'sampler_seed': sampler_seed, 'prune': prune, 'evaluations': evaluations}}
    found = opened.user_attrs.get('search') or wanted
    changed = [f'{name} {found[part].get(name)} -> {new.get(name)}' for part, new in wanted.items()
               for name in sorted({*found[part], *new}) if found[part].get(name) != new.get(name)]
    if changed:
        raise ValueError(f'--study={folder} is another search: {", ".join(changed)}; give another --study')
    for point in points:
        opened.enqueue_trial(point, skip_if_exists=True)  # one that failed is taken up again: see take_up_the_dead
    opened.set_user_attr('iterations', n)
    opened.set_user_attr('about', f'{base["loss"]} with {base["optimizer"]}, trials of ' + (
        f'{budget_seconds:g} s with {budget["threads"]} threads' if budget_seconds else
        f'{n:,} iterations of {runs.tokens_per_iter(base):,} tokens') +
        f', sampler {sampler}, seed {sampler_seed}, data {meta["source"] if meta else data}')
    opened.set_user_attr('search', wanted)
    return opened, n, space_of


for arg in sys.argv[1:]:
    if (name := arg.removeprefix('--').partition('=')[0]) in spaces.OURS:
        fail(f'{arg}: tune.py sets {name} itself, for every trial')
base = {name: config[name] for name in runs.DEFAULTS}
folder = Path(study.replace('{loss}', base['loss']).replace('{optimizer}', base['optimizer']))
if folder.name in ('', '..'):
    fail(f'--study={study} is no name for a folder; choose another')
threads = 0  # as the environment says
if not show:
    try:
        data = bins.find(base['dataset'])
        meta = bins.read_meta(data, base['vocab_size'])
        vocab_size = meta['vocab_size'] if meta else 50257
        fingerprints = {split: bins.fingerprint(bins.open_bin(data, split, meta, base['block_size']))
                        for split in ('train', 'val')}
        (folder / 'trials').mkdir(parents=True, exist_ok=True)
        if budget_seconds:
            import torch
            threads = torch.get_num_threads()
            alone = FileLock(folder / 'alone', timeout=0)
            alone.acquire()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        with FileLock(folder / 'lock'):
            if not (folder / 'home').exists():
                (folder / 'home').write_text(uuid.uuid4().hex[:8])
            home = (folder / 'home').read_text()  # tells the folders of several machines apart
            opened, base_iters, distributions = begin()
        trials = len(spaces.grid(distributions)) if sampler == 'grid' else trials
    except Timeout:
        fail(f'--study={folder}: another tune.py is at work there, and --budget_seconds is for one at a time')
    except (FileExistsError, NotADirectoryError, PermissionError):
        fail(f'--study={folder} cannot be used; choose another')
    except (OSError, ValueError) as e:
        fail(*e.args if isinstance(e, ValueError) else [e])
    # of evaluations, the first that counts is that at half of the schedule
    opened.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=-(-evaluations // 2), reduction_factor=2)
    interrupts.say(f'study: {folder}, {opened.user_attrs["about"]}')
    interrupts.say('searched: ' + ', '.join(f'{name} {spaces.text(d)}' for name, d in distributions.items()))
    try:
        search()
    except optuna.exceptions.StorageInternalError as e:
        fail(f'--storage={storage or folder / "study.db"} gave out ({str(e).splitlines()[0][:200]}); '
             'the same command goes on')
elif '://' not in storage and not Path(storage or folder / 'study.db').is_file():
    fail(f'--study={folder}: there is no study; run it first, without --show')
else:
    opened = open_study(optuna.load_study)
try:
    for line in searched.report(opened, folder):
        interrupts.say(line)
except ValueError as e:
    fail(e)
