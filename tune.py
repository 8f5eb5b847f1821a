"""Search the hyperparameters of a loss with Optuna. Each trial is a run of train.py in its own folder.

    python tune.py config/train_tinystories_squentropy.py --trials=40 --iters=500
    python tune.py config/train_tinystories_squentropy.py --show=True

Accepts the settings and config files of train.py too; they apply to all trials. --space is the file that
defines what is searched (see config/space_default.py). The objective is nats per token on val.bin through the
link of the loss at the end of a trial. To continue a search that was stopped or killed, run the same command
again. Processes started with the same command share the trials.
"""
from configurator import configure, fail, fail_on, flag_names, require

study = 'studies/{loss}_{optimizer}' # folder for trials, tables and figures; its last part is the study's name
trials = 40                 # number of finished trials, including those that are pruned or diverge
space = 'config/space_default.py' # what is searched
sampler = 'tpe'             # tpe | random | grid (every point of a space of choices, without pruning)
sampler_seed = 1            # seed of the sampler
iters = 0                   # iterations per trial; 0 = max_iters. With other batch sizes, as many tokens
budget_seconds = 0.0        # instead: seconds of training per trial, one process at a time; 0 = use iters
evaluations = 4             # per trial, not counting that of the untrained model
prune = True                # stop a trial in the worse half, from half of its iterations on
storage = ''                # '' = study.db in the folder | a URL, such as postgresql://... | path of a journal file
show = False                # only write and print the report of the finished trials
config = configure(globals(), also='train.py', rules=[
    ("study.rstrip('/').rpartition('/')[2] not in ('', '.', '..')", 'pass a folder name'),
    'trials >= 1', "sampler in ('tpe', 'random', 'grid')", '0 <= sampler_seed < 2**20',
    'iters >= 0', 'budget_seconds >= 0', ('not (iters and budget_seconds)', 'pass one of them'),
    ('iters or max_iters', 'pass --iters'), 'evaluations >= 2',
    ("init_from not in ('resume', 'auto')", 'omit it; tune.py resumes trials by itself')])
import math
import signal
import sys
import time
import uuid
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from nanoloss import signals

signals.install_excepthook('use a smaller model or lower --batch_size')

require('matplotlib')  # for the report
import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError

from nanoloss import dataloader
from nanoloss.checkpoint import SHAPE
from nanoloss.device import library_of_study
from nanoloss.launcher import DIVERGED, measure_speed, run_training, tokens_per_iter, train_settings
from nanoloss.metrics_log import read_metrics
from nanoloss.search_report import (
    FINISHED, describe_outcome, describe_values, final_nats, finished_trials, write_report)
from nanoloss.search_space import SET_BY_TUNE, describe, grid_points, read_space, starting_point

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings('ignore', category=optuna.exceptions.ExperimentalWarning)

JOURNAL_START = b'{"op_code"'
study_dir = Path(study.replace('{loss}', config['loss']).replace('{optimizer}', config['optimizer']))


def locate_storage():
    """Return (URL or None, path or None) of the storage: a journal file has no URL, a database server no path."""
    if not storage:
        return URL.create('sqlite', database=f'{study_dir}/study.db'), study_dir / 'study.db'
    if '://' not in storage:
        return None, Path(storage)
    url = make_url(storage)
    if url.get_backend_name() != 'sqlite' or not url.database:
        return url, None
    path = Path(url.database).expanduser()
    return url.set(database=str(path)), path


try:
    storage_url, storage_path = locate_storage()
except (ArgumentError, ValueError) as e:
    fail(f'--storage={storage} is not the URL of a database ({e}); pass one, or the path of a journal file')
if storage and storage_path and not storage_path.parent.is_dir():
    fail(f'--storage={storage}: there is no folder {storage_path.parent}; create it, or pass another path')
# locked while a trial is started: beside a storage in a file, which study folders can share
lock_file = Path(f'{storage_path}.tune-lock') if storage and storage_path else study_dir / 'lock'


# one trial --------------------------------------------------------------------

def trial_dir(trial):
    """The folder of a trial. A requeued trial keeps it."""
    return study_dir / 'trials' / trial.user_attrs.get('folder', f'{trial.number:04}')


def read_evaluations(folder):
    return [line for line in read_metrics(folder / 'metrics.jsonl') if 'val_nats' in line]


def trial_iters(settings, base, folder, threads):
    """Iterations that the budget allows; 0 if training diverges at once."""
    if budget_seconds:
        speed = measure_speed(settings, folder, threads)
        return max(int(speed * budget_seconds), evaluations) if speed else 0
    return max(round(base['max_iters'] * tokens_per_iter(base) / tokens_per_iter(settings)), evaluations)


def run_trial(trial, base, threads, uniform_nats):
    """Train with the values of a trial, from its last checkpoint if there is one.

    base: settings of all trials. threads: of each run, 0 = inherited. uniform_nats: value of a trial that diverges.
    Returns (state, nats per token), or (PRUNED, None).
    """
    folder, settings = trial_dir(trial), {**base, **trial.params}
    max_iters = trial.user_attrs.get('iters') or trial_iters(settings, base, folder, threads)
    trial.set_user_attr('iters', max_iters)
    resume = (folder / 'ckpt.pt').exists()
    if not resume:  # left by a run that was killed before its first checkpoint
        for name in ('metrics.jsonl', 'best.pt'):
            (folder / name).unlink(missing_ok=True)
    pruned = False
    next_step = math.ceil(evaluations / 2)  # with cosine decay, pruning before half of the run favors quick starters

    def on_line(line):
        """Report new evaluations, except the last, to Optuna. Returns False, which ends the run, to prune it."""
        nonlocal next_step, pruned
        if ': val loss ' in line:
            for entry in read_evaluations(folder)[next_step:]:
                if entry['iter'] < max_iters and not pruned:
                    trial.report(entry['val_nats'], next_step)
                    pruned = trial.should_prune()
                next_step += 1
        return not pruned

    overrides = {'max_iters': max_iters, 'out_dir': str(folder), 'eval_interval': math.ceil(max_iters / evaluations),
                 # the same windows for every batch size
                 'eval_windows': base['eval_windows'] or base['eval_iters'] * base['batch_size']}
    if resume:
        overrides['init_from'] = 'resume'
    status, last_line = DIVERGED, ''
    if max_iters > 0:
        status, last_line = run_training(settings, folder, on_line, threads, **overrides)
    seconds = max((line['seconds'] for line in read_metrics(folder / 'metrics.jsonl')), default=0)
    trial.set_user_attr('seconds', round(seconds, 1))
    nats = [entry['val_nats'] for entry in read_evaluations(folder)]
    if pruned:
        return TrialState.PRUNED, None
    if status == DIVERGED:  # a result: as bad as a uniform guess, or as the last evaluation if that was worse
        trial.set_user_attr('diverged', True)
        return TrialState.COMPLETE, max([uniform_nats, *nats[-1:]])
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        stop(status - 128)
    if status:
        trial.study.tell(trial, state=TrialState.FAIL)
        fail(f'trial {trial.number}: train.py ended with status {status} ({last_line}); see {folder}/log.txt')
    return TrialState.COMPLETE, nats[-1]


# the search -------------------------------------------------------------------

def stop(number, frame=None):
    signals.log_line('stopped; run the same command to continue')
    raise SystemExit(128 + number)


def trial_lock(trial):
    return FileLock(trial_dir(trial) / 'trial.lock', timeout=0)


def requeue_dead_trials(optuna_study, folder_id):
    """Enqueue the trials of this folder that failed or whose process died. They resume from their checkpoints."""
    # RetryHeartbeatStaleTrialCallback of Optuna needs RDBStorage and study.optimize(), waits for a grace period and
    # does not retry failed trials. A file lock is released as soon as its process dies.
    default_id = None if storage else folder_id  # in a shared storage, another machine may have just started it
    for t in optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if t.user_attrs.get('folder_id', default_id) == folder_id:
            try:
                with trial_lock(t):
                    optuna_study.tell(t.number, state=TrialState.FAIL, skip_if_finished=True)
            except Timeout:
                pass  # still running
    latest = {trial_dir(t): t for t in optuna_study.get_trials(deepcopy=False)}
    for folder, t in latest.items():
        if t.state is TrialState.FAIL and t.user_attrs.get('folder_id', folder_id) == folder_id:
            iters_attr = {'iters': t.user_attrs['iters']} if 'iters' in t.user_attrs else {}
            optuna_study.enqueue_trial(t.params, user_attrs={'folder': folder.name, **iters_attr})


def next_trial(optuna_study, distributions, folder_id):
    """Start a trial. Returns (trial, lock of its folder), or None if enough trials have finished or are running."""
    with FileLock(lock_file):
        requeue_dead_trials(optuna_study, folder_id)
        states = [t.state for t in optuna_study.get_trials(deepcopy=False)]
        if sampler == 'grid':  # machines that start at once may enqueue a point twice, so do not count
            if TrialState.WAITING not in states:
                return None
        elif sum(state in (*FINISHED, TrialState.RUNNING) for state in states) >= trials:
            return None
        # one seed per trial, so that neither a resumed search nor another machine repeats a draw
        seed = (sampler_seed * 2**12 + len(states) + (int(folder_id, 16) if storage else 0)) % 2**32
        optuna_study.sampler = optuna.samplers.RandomSampler(seed=seed) if sampler == 'random' else \
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, math.ceil(trials / 3)))
        trial = optuna_study.ask(distributions)
        lock = trial_lock(trial)
        lock.acquire()
        trial.set_user_attr('folder_id', folder_id)
        return trial, lock


def search(optuna_study, distributions, folder_id, base, threads, uniform_nats):
    durations = []
    while started := next_trial(optuna_study, distributions, folder_id):
        trial, lock = started
        with FileLock(trial_dir(trial) / 'lock', timeout=300):
            pass  # the run of a tune.py that was killed may still be saving
        start = time.time()
        state, nats = run_trial(trial, base, threads, uniform_nats)
        t = optuna_study.tell(trial, nats, state)
        lock.release()
        durations.append(time.time() - start)
        finished = finished_trials(optuna_study)
        best = min(finished, key=final_nats)
        for other in finished:
            if other is not best:
                for path in trial_dir(other).glob('*.pt*'):
                    path.unlink(missing_ok=True)  # another process may have just deleted it
        running = optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        left = max(0, trials - len(finished)) * sum(durations) / len(durations) / (len(running) + 1)
        signals.log_line(f'{len(finished)} of {trials}: trial {t.number}: {describe_outcome(t)}, {describe_values(t)} '
                         f'({durations[-1]:.0f} s); best: trial {best.number}, {describe_outcome(best)}; '
                         f'about {left / 60:.0f} min left')
        if signals.stop_signal:  # the reader of stdout is gone
            raise SystemExit(128 + signals.stop_signal)
    if running := optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        signals.log_line(f'{len(running)} trials have not finished; other processes are running them or were killed')


# the study --------------------------------------------------------------------

def open_database(url):
    """Connect to a database, and create its tables if it is new. url: a sqlalchemy.URL."""
    timeout = {'connect_args': {'timeout': 60}} if url.get_backend_name() == 'sqlite' else {}
    text = url.render_as_string(hide_password=False)
    for seconds in (0.1, 0.2, 0.4, 0.8, 1.6):
        try:
            return RDBStorage(text, engine_kwargs=timeout)
        except (OperationalError, ProgrammingError, IntegrityError) as e:
            if not isinstance(e, IntegrityError) and 'already' not in str(e):
                raise
            time.sleep(seconds)  # another machine is creating the tables
    return RDBStorage(text, engine_kwargs=timeout)


def cut_incomplete_line(path):
    """Delete the incomplete last line of a journal file, left by a process that was killed. Optuna would append to it.

    Raises ValueError if the file is not a journal.
    """
    lock = JournalFileSymlinkLock(path)
    lock.acquire()  # so that no process is writing
    try:
        with open(path, 'rb+') as f:
            journal = f.read()
            if not JOURNAL_START.startswith(journal[:len(JOURNAL_START)]):
                raise ValueError('not a journal file of Optuna')
            f.truncate(journal.rfind(b'\n') + 1)
    finally:
        lock.release()


def open_study(open_function, **options):
    """Call optuna.create_study or optuna.load_study. Exits with one line if that fails."""
    try:
        if storage_url:
            backend = open_database(storage_url)
        else:
            if not show and storage_path.exists():
                cut_incomplete_line(str(storage_path))
            backend = JournalStorage(JournalFileBackend(str(storage_path)))
        return open_function(storage=backend, study_name=study_dir.name, **options)
    except KeyError:
        fail(f'--study={study_dir}: no such study; run the search first, without --show')
    except Exception as e:  # not a database, no connection, driver not installed: many classes
        fail(f'{storage_path or storage} cannot be opened ({type(e).__name__}: {signals.first_line(e)}); pass another '
             '--study or --storage')


def check_same_search(stored, wanted):
    """Raise ValueError if two searches, {part: {name: value}}, differ."""
    changes = [f'{name} {stored[part].get(name)} -> {wanted[part].get(name)}' for part in wanted
               for name in sorted({*stored[part], *wanted[part]}) if stored[part].get(name) != wanted[part].get(name)]
    if changes:
        raise ValueError(f'--study={study_dir} is a different search: {", ".join(changes[:5])}; pass another --study')


def start_study(base, threads, data, meta):
    """Create or open the study: (study, iterations per trial, --matmul of all trials, {setting: distribution}).

    Raises ValueError if the settings are invalid, the study is a different search, or its library is not available.
    """
    optuna_study = open_study(optuna.create_study, load_if_exists=True)
    library = library_of_study(base, dataloader.vocab_size_of(meta), optuna_study.user_attrs.get('matmul'))
    if budget_seconds:
        budget = {'seconds': budget_seconds, 'threads': threads}
        length = f'{budget_seconds:g} s with {threads} threads'
        n = optuna_study.user_attrs.get('iterations') or \
            int(measure_speed({**base, 'matmul': library}, study_dir / 'trials', threads) * budget_seconds)
    else:
        n = iters or base['max_iters']
        budget = {'iterations': n}
        length = f'{n:,} iterations of {tokens_per_iter(base):,} tokens'
    if n < evaluations:
        raise ValueError(f'{n} iterations are too few for --evaluations={evaluations}, or training diverges at once; '
                         'use a larger budget or a lower --learning_rate')
    defaults, rules, applies = train_settings()
    distributions = read_space(space, {**base, 'max_iters': n}, defaults, rules, applies)
    points = grid_points(distributions) if sampler == 'grid' else [starting_point(distributions, base)]
    if sampler == 'grid' and len(points) > trials:
        raise ValueError(f'--space={space} is a grid of {len(points)} points; pass --trials={len(points)}')
    wanted = {'settings': {name: value for name, value in base.items()
                           if name not in (*SET_BY_TUNE, 'log_interval') and not name.startswith('wandb_')},
              'space': {name: describe(distribution) for name, distribution in distributions.items()},
              'budget': budget,
              'data': {split: dataloader.fingerprint(dataloader.open_bin(data, split, meta, base['block_size']))
                       for split in ('train', 'val')},
              'search': {'sampler': sampler, 'sampler_seed': sampler_seed, 'prune': prune, 'evaluations': evaluations}}
    check_same_search(optuna_study.user_attrs.get('search', wanted), wanted)
    for point in points:
        optuna_study.enqueue_trial(point, skip_if_exists=True)
    optuna_study.set_user_attr('iterations', n)
    if optuna_study.user_attrs.get('matmul', 'auto') == 'auto':
        optuna_study.set_user_attr('matmul', library)
    description = f'loss {base["loss"]}, optimizer {base["optimizer"]}, trials of {length}, sampler {sampler}, ' \
                  f'seed {sampler_seed}, data {meta["source"] if meta else data}'
    optuna_study.set_user_attr('description', description)
    optuna_study.set_user_attr('search', wanted)
    # another machine may have stored its own choice at the same time
    library = library_of_study(base, dataloader.vocab_size_of(meta), optuna_study.user_attrs['matmul'])
    return optuna_study, n, library, distributions


# main -------------------------------------------------------------------------

for arg in sys.argv[1:]:
    if arg.removeprefix('--').partition('=')[0] in SET_BY_TUNE:
        fail(f'{arg}: tune.py sets this for every trial; omit the flag', status=2)
if show:
    if storage_path and not storage_path.is_file():
        fail(f'--study={study_dir}: no such study; run the search first, without --show')
    optuna_study = open_study(optuna.load_study)
else:
    base = {name: config[name] for name in train_settings()[0]}
    if base['eval_only']:
        fail('found eval_only=True in a config file; tune.py trains: omit it', status=2)
    if base['init_from'] != 'scratch':  # the weights decide the shape, whatever a config file says
        base |= {name: train_settings()[0][name] for name in SHAPE if name not in flag_names()}
    threads = 0
    try:
        data = dataloader.find_dataset(base['dataset'])
        meta = dataloader.read_meta(data, base['vocab_size'])
        (study_dir / 'trials').mkdir(parents=True, exist_ok=True)
        if budget_seconds:
            import torch
            threads = torch.get_num_threads()
            only_process = FileLock(study_dir / 'only_process.lock', timeout=0)
            only_process.acquire()
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        with FileLock(lock_file):
            id_file = study_dir / 'folder_id'  # tells the machines that share a storage apart
            if not id_file.exists():
                id_file.write_text(uuid.uuid4().hex[:8])
            optuna_study, base['max_iters'], base['matmul'], distributions = start_study(base, threads, data, meta)
    except Timeout:
        fail(f'--study={study_dir}: another tune.py is running, and --budget_seconds allows only one at a time')
    except (FileExistsError, NotADirectoryError, PermissionError) as e:
        fail(f'{e.filename or study_dir} cannot be used ({e.strerror}); pass another --study or --storage')
    except (OSError, ValueError) as e:
        fail(*e.args if isinstance(e, ValueError) else [e])
    if sampler == 'grid':
        trials = len(grid_points(distributions))
    if prune and sampler != 'grid':
        optuna_study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=math.ceil(evaluations / 2),
                                                                     reduction_factor=2)
    else:
        optuna_study.pruner = optuna.pruners.NopPruner()
    signals.log_line(f'study: {study_dir}, {optuna_study.user_attrs["description"]}')
    signals.log_line('searched: ' + ', '.join(f'{name} {describe(d)}' for name, d in distributions.items()))
    try:
        search(optuna_study, distributions, id_file.read_text(), base, threads,
               uniform_nats=math.log(dataloader.vocab_size_of(meta)))
    except optuna.exceptions.StorageInternalError as e:
        fail(f'the storage failed ({signals.first_line(e)}); run the same command to continue')
with fail_on(ValueError):
    for line in write_report(optuna_study, study_dir):
        signals.log_line(line)
