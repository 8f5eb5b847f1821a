"""Compare losses: each is trained with each seed by train.py and scored by evaluate.py; a table, figures, stories.

    python compare.py --losses=cross_entropy,squentropy,mse --seeds=3 --budget=iters:1000
    python compare.py --name=alpha --losses=cross_entropy,squentropy:squentropy_weight=0.1 --seeds=8

The losses are paired by seed: the same initialisation, the same windows in the same order. Each has its own
config file (--each) with the hyperparameters it was tuned to; settings and config files of train.py that are
given here come after it, for all losses, and those behind a loss's name last. What differs from the first loss is
told over seeds. The same command again goes on with a study that was stopped: finished runs are kept.
"""
import sys

from configurator import configure, fail, printable

# -----------------------------------------------------------------------------
name = 'comparison'         # results/<name> is written, its runs under results/<name>/runs
losses = 'cross_entropy,squentropy,mse' # the first is the one that the others are compared with; loss:key=value:...
seeds = 3                   # of initialisation and data order, for each loss
first_seed = 1              # they are first_seed, first_seed + 1, ...
budget = ''                 # of each run: iters:N | tokens:N | seconds:N of training; '' = max_iters
each = 'config/train_tinystories_{loss}.py' # the config file of each loss; '' = none
reading = 'link'            # softmax | link | fitted: declared before, it decides; the others stand beside it
split = 'val'               # val | test (for the last word only)
margin = 0.005              # nats: who is surely (99 %) less than this behind is no worse
evaluations = 8             # of each run, for the curves
bootstrap = 9999            # resamples behind the intervals over seeds and stories
num_samples = 2             # stories of each loss, of the first seed
start = 'One day, a little girl named Lily' # how they begin; '' = a new story
jobs = 1                    # runs at a time; they share the cores (or the GPU)
# -----------------------------------------------------------------------------


def split_arguments(own):
    """(arguments of this script, arguments of train.py), by whose settings they are."""
    mine, rest, argv = [], [], sys.argv[1:]
    while argv:
        arg = argv.pop(0)
        key, equals, _ = arg.removeprefix('--').partition('=')
        pair = [arg] + ([argv.pop(0)] if arg.startswith('--') and not equals and argv and argv[0][:2] != '--' else [])
        (mine if key in own or key in ('help', '-h') else rest).extend(pair)
    return mine, rest


own, others = split_arguments({key for key in globals() if key[0] != '_'})
configure(globals(), argv=own, rules=[
    ("name != '' and '/' not in name and name[0] != '.'", 'choose another'), "losses != ''", '1 <= seeds <= 1000',
    '0 <= first_seed < 2**31', "reading in ('softmax', 'link', 'fitted')", "split in ('val', 'test')",
    'evaluations >= 1', 'bootstrap >= 1', 'num_samples >= 0', 'margin >= 0', '1 <= jobs <= 1000'])
import json
import os
import platform
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from filelock import FileLock, Timeout

import interrupts

interrupts.quiet('lower --batch_size')

import numpy as np

import bins
import compared
import runlog
import runs

HERE = Path(__file__).resolve().parent
FOLDER = Path('results') / name
THREADS = max(1, os.cpu_count() // jobs) if jobs > 1 and 'OMP_NUM_THREADS' not in os.environ else 0  # of a run
SET_HERE = ('out_dir', 'seed', 'loss', 'eval_interval', 'eval_only', 'init_from', 'sample_tokens')


# -----------------------------------------------------------------------------
# what is compared

def arms():
    """{name of the arm: settings of train.py}. Exits with one line for a mistake."""
    for arg in others:
        if (key := arg.removeprefix('--').partition('=')[0]) in SET_HERE:
            fail(f'{arg}: compare.py sets {key} itself, for every run', status=2)
    found = {}
    for arm in losses.split(','):
        loss, *more = arm.strip().split(':')
        settings = {**runs.DEFAULTS, '__file__': str(runs.TRAIN)}
        flags = [f'--{setting}' for setting in more]
        if any('=' not in flag for flag in flags):
            fail(f'--losses={losses}: {arm} is not written loss:key=value:key=value', status=2)
        argv = [each.replace('{loss}', loss)] * bool(each) + others + flags + [f'--loss={loss}']
        if arm in found:
            fail(f'--losses={losses} has {arm} twice', status=2)
        found[arm.strip()] = configure(settings, runs.RULES, argv)
    return found


def iterations():
    """{arm: iterations of a run with this budget}."""
    kind, _, amount = budget.partition(':')
    if not budget:
        return {arm: of['max_iters'] for arm, of in settings.items()}
    try:
        amount = float(amount)
        if kind not in ('iters', 'tokens', 'seconds') or not 1 <= amount < 2**53:
            raise ValueError
    except ValueError:
        fail(f'--budget={budget} is not iters:N, tokens:N or seconds:N', status=2)
    if kind == 'seconds':
        return {arm: max(1, int(speed * amount)) for arm, speed in speeds().items()}
    return {arm: max(1, round(amount if kind == 'iters' else amount / runs.tokens_per_iter(of)))
            for arm, of in settings.items()}


def speeds():
    """{arm: iterations a second}, measured once and kept: medians of three short runs, in turns, since a shared
    machine is now quick and now slow. What joins a study later is measured against its first arm again."""
    kept = FOLDER / 'speeds.json'
    known = json.loads(kept.read_text()) if kept.exists() else {}
    first, new = next(iter(settings)), [arm for arm in settings if arm not in known]
    if new:
        found = {arm: [] for arm in dict.fromkeys([first, *new])}
        for _ in range(3):
            for arm in found:
                found[arm].append(runs.speed(settings[arm], FOLDER / 'runs', THREADS))
        found = {arm: float(np.median(of)) for arm, of in found.items()}
        scale = known[first] / found[first] if known.get(first) and found[first] else 1
        known |= {arm: found[arm] * scale for arm in new}
        kept.write_text(json.dumps(known))
    return {arm: known[arm] for arm in settings}


def place_of(arm, seed):
    return FOLDER / 'runs' / f'{arm.replace(":", "_").replace("=", "_")}-{seed}'


# -----------------------------------------------------------------------------
# a run

def train(arm, settings, seed):
    """Train it, from its last checkpoint where there is one, unless it has ended. False where it diverged."""
    place, n = place_of(arm, seed), settings['max_iters']
    if (place / 'diverged').exists():
        return False
    lines = list(runlog.entries(place / 'metrics.jsonl'))
    if lines and lines[-1]['iter'] >= n and (place / 'ckpt.pt').exists():
        return True
    resume = {'init_from': 'resume'} if (place / 'ckpt.pt').exists() else {}
    status, last = runs.train(settings, place, threads=THREADS, seed=seed, out_dir=str(place),
                              eval_interval=-(-n // evaluations), **resume)
    if status == runs.DIVERGED:
        (place / 'diverged').write_text(last)
        return False
    if runs.STOPPING.is_set():
        raise SystemExit
    if status > 128:
        stop(status - 128, None)
    if status:
        fail(f'{arm}, seed {seed}: train.py ended with status {status} ({last}); see {place}/log.txt')
    return True


def run(arm, settings, seed):
    """Train and score it; what came out, in words."""
    if not train(arm, settings, seed):
        return 'diverged'
    return f'{evaluate(arm, seed)[0]["readings"][reading]["nats"]:.4f} nats'


def evaluate(arm, seed):
    """What evaluate.py says of the run's last checkpoint, a dict, and its arrays."""
    place = place_of(arm, seed)
    said, arrays = place / f'{split}.json', place / f'{split}.npz'
    if not said.exists():
        flags = [f'--checkpoint={place}/ckpt.pt', f'--split={split}', '--json=True', f'--arrays={arrays}',
                 '--bootstrap=99']
        threads = {'OMP_NUM_THREADS': str(THREADS)} if THREADS else {}
        done = subprocess.run([sys.executable, str(HERE / 'evaluate.py'), *flags], capture_output=True, text=True,
                              env={**os.environ, **threads})
        if runs.STOPPING.is_set():
            raise SystemExit
        if done.returncode:
            fail(f'{arm}, seed {seed}: {done.stderr.strip().removeprefix("error: ")}')
        partial = said.with_suffix('.partial')
        partial.write_text(done.stdout)
        os.replace(partial, said)
    return json.loads(said.read_text()), np.load(arrays)


def tell(arm):
    """Stories of the first seed, from the loss's own reading."""
    flags = [f'--out_dir={place_of(arm, first_seed)}', f'--num_samples={num_samples}', f'--start={start}',
             '--max_new_tokens=200']
    done = subprocess.run([sys.executable, str(HERE / 'sample.py'), *flags], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else done.stderr


def stop(number, _):
    interrupts.say('stopped; the same command goes on with this study')
    raise SystemExit(128 + number)


def report(settings, about, wanted):
    """Write table.md, results.json, the figures and stories.md of the runs that are there."""
    done = {arm: {seed: evaluate(arm, seed) for seed in range(first_seed, first_seed + seeds)
                  if not (place_of(arm, seed) / 'diverged').exists()} for arm in settings}
    logs = {arm: {seed: list(runlog.entries(place_of(arm, seed) / 'metrics.jsonl')) for seed in done[arm]}
            for arm in done}
    given = {arm: ', '.join(f'{key}={x}' for key, x in of.items() if x != runs.DEFAULTS[key] and key not in SET_HERE)
             or 'the defaults' for arm, of in settings.items()}
    against = compared.differences(done, reading, bootstrap)
    text = compared.table(name, done, logs, given, against, about, reading, margin, seeds)
    (FOLDER / 'table.md').write_text(text, encoding='utf-8')
    (FOLDER / 'results.json').write_text(json.dumps({
        'about': about, 'plan': wanted, 'differences': against,
        'runs': {arm: {str(seed): result for seed, (result, _) in of.items()} for arm, of in done.items()}}, indent=1))
    compared.figures(FOLDER, done, logs, against, reading)
    if num_samples:
        told = '\n'.join(f'## {arm}\n\n```\n{tell(arm)}```\n' for arm in done if first_seed in done[arm])
        (FOLDER / 'stories.md').write_text(f'# Stories of seed {first_seed}, as they came\n\n{told}', encoding='utf-8')
    for line in text.splitlines():
        interrupts.say(line)
    interrupts.say(f'in {FOLDER}: table.md, results.json, differences.png, curves.png, calibration.png, frequency.png' +
                   ', stories.md' * bool(num_samples))


settings = arms()
try:
    one = next(iter(settings.values()))
    folder = bins.find(one['dataset'])
    meta = bins.read_meta(folder, one['vocab_size'])
    fingerprints = {part: bins.fingerprint(bins.open_bin(folder, part, meta)) for part in ('train', 'val', split)}
    train_size = len(bins.open_bin(folder, 'train', meta, one['block_size'], one['train_tokens']))
    (FOLDER / 'runs').mkdir(parents=True, exist_ok=True)
    lock = FileLock(FOLDER / 'lock', timeout=0)
    lock.acquire()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for arm, n in iterations().items():
        settings[arm]['max_iters'] = n
except Timeout:
    fail(f'--name={name}: another compare.py is at work in {FOLDER}; wait for its end, or choose another')
except (FileExistsError, NotADirectoryError, PermissionError):
    fail(f'--name={name}: {FOLDER} cannot be used; choose another')
except (OSError, ValueError) as e:
    fail(e)
wanted = {'settings': {arm: {key: x for key, x in all_settings.items() if key not in SET_HERE and key != '__file__'}
                       for arm, all_settings in settings.items()}, 'data': fingerprints}
plan = FOLDER / 'plan.json'
if plan.exists():
    old = json.loads(plan.read_text())
    changed = [f'{arm}: {key} {old["settings"][arm].get(key)} -> {x}' for arm, new in wanted['settings'].items()
               if arm in old['settings'] for key, x in new.items() if old['settings'][arm].get(key) != x]
    changed += ['the data'] * any(old['data'].get(part, x) != x for part, x in fingerprints.items())
    if changed:
        fail(f'--name={name} is another study: {", ".join(changed[:5])}; choose another')
    wanted = {'settings': {**old['settings'], **wanted['settings']}, 'data': {**old['data'], **fingerprints}}
plan.write_text(json.dumps(wanted, indent=1))
started = time.time()
with ThreadPoolExecutor(jobs) as pool:
    work = {pool.submit(run, arm, settings[arm], seed): (arm, seed)
            for seed in range(first_seed, first_seed + seeds) for arm in settings}
    try:
        for finished, future in enumerate(as_completed(work), 1):
            arm, seed = work[future]
            interrupts.say(printable(f'{arm}, seed {seed}: {future.result()}; {len(work) - finished} runs left, about '
                                     f'{(time.time() - started) / finished * (len(work) - finished) / 60:.0f} min'))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        runs.stop_all()
        raise
tokens = {arm: of['max_iters'] * runs.tokens_per_iter(of) for arm, of in settings.items()}
each_tokens = ', '.join(f'{arm} {count:,}' for arm, count in tokens.items())
about = f'Data: {meta["source"] if meta else folder}' + ', SYNTHETIC stories' * bool(meta and meta['synthetic']) + \
    f', scored on {split}.bin; {train_size:,} training tokens. Seen in a run: ' + \
    (f'{tokens[arm]:,}' if len(set(tokens.values())) == 1 else each_tokens) + f' ({budget})' * bool(budget) + \
    f'. Machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {jobs} runs at a time, ' \
    f'OMP_NUM_THREADS {THREADS or os.environ.get("OMP_NUM_THREADS", "not set")}, {time.strftime("%Y-%m-%d")}.'
report(settings, about, wanted)
