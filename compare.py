"""Compare losses: each is trained with each seed by train.py and scored by evaluate.py; a table, figures, stories.

    python compare.py --losses=cross_entropy,squentropy,mse --seeds=3 --budget=iters:1000
    python compare.py --name=alpha --losses=cross_entropy,squentropy:squentropy_weight=0.1 --seeds=8

The losses are paired by seed: the same initialisation, the same windows in the same order. Each has its own
config file (--each; README, "What it found", says how they were tuned); settings and config files of train.py that are
given here come after it, for all losses, and those behind a loss's name last. What differs from the first loss is
told over seeds. The same command again goes on with a study that was stopped: finished runs are kept. More losses or
seeds join it: the table is always of all that were scored.
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
import signal
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from filelock import FileLock, Timeout

import interrupts

interrupts.quiet('lower --batch_size')

import numpy as np

import bins
import compared
import losses as family
import runlog
import runs

HERE = Path(__file__).resolve().parent
FOLDER = Path('results') / name
THREADS = max(1, os.cpu_count() // jobs) if jobs > 1 and 'OMP_NUM_THREADS' not in os.environ else 0  # of a run
SET_HERE = ('out_dir', 'seed', 'loss', 'eval_interval', 'eval_only', 'init_from', 'sample_tokens', 'patience')
SUFFIX = '-test' * (split == 'test')  # of the files of the last word, beside those of val.bin


# -----------------------------------------------------------------------------
# what is compared

def constants(loss):
    """Settings of train.py that this loss of losses.py takes, a set; of a loss of your own there are none."""
    code = family.FAMILY[loss].__code__ if loss in family.FAMILY else None
    return set(code.co_varnames[1:code.co_argcount]) & set(runs.DEFAULTS) if code else set()


def arms():
    """{name of the arm: settings of train.py}. Exits with one line for a mistake."""
    found = {}
    for arm in map(str.strip, losses.split(',')):
        loss, *more = arm.split(':')
        flags = [f'--{setting}' for setting in more]
        if any('=' not in flag for flag in flags):
            fail(f'--losses={losses}: {arm} is not written loss:key=value:key=value', status=2)
        for arg in others + flags:
            if (key := arg.removeprefix('--').partition('=')[0]) in SET_HERE:
                fail(f'{arg}: compare.py sets {key} itself, for every run', status=2)
        if arm in found:
            fail(f'--losses={losses} has {arm} twice', status=2)
        try:
            family.make_loss(loss, 10)
        except ValueError as e:
            fail(f'--losses={losses}: {e}', status=2)
        takes = constants(loss)
        for setting in more:
            key = setting.partition('=')[0]
            if key not in takes and any(key in constants(of) for of in family.FAMILY):
                fail(f'--losses={losses}: {loss} has no {key}; its own are {", ".join(sorted(takes)) or "none"}',
                     status=2)
        own = each.replace('{loss}', loss)
        if own and not os.path.isfile(own) and not (HERE / own).is_file():
            fail(f'--each={each}: there is no {own}; write one, or take one for all, --each=config/train_tinystories_'
                 'cross_entropy.py, or none, --each=', status=2)
        found[arm] = configure({**runs.DEFAULTS, '__file__': str(runs.TRAIN)}, runs.RULES,
                               [own] * bool(own) + others + flags + [f'--loss={loss}'])
        for key in ('init_from', 'eval_only', 'patience'):
            if found[arm][key] != runs.DEFAULTS[key]:
                fail(f'{arm}: {key}={found[arm][key]} in a config file; compare.py sets it itself, for every run')
    for key in ('dataset', 'vocab_size'):
        if len({settings[key] for settings in found.values()}) > 1:
            fail(f'--losses={losses}: arms of several {key}; losses are compared on the same tokens', status=2)
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
    known = read_json(FOLDER / 'speeds.json')
    first = next((arm for arm in settings if arm in known), next(iter(settings)))
    if new := [arm for arm in settings if arm not in known]:
        found = {arm: [] for arm in dict.fromkeys([first, *new])}
        for _ in range(3):
            for arm in found:  # as many at a time as there will be
                with ThreadPoolExecutor(jobs) as pool:
                    each_of = pool.map(lambda i, arm=arm: runs.speed(settings[arm], FOLDER / 'runs', THREADS, i),
                                       range(jobs))
                    found[arm].append(np.mean(list(each_of)))
        found = {arm: float(np.median(of)) for arm, of in found.items()}
        found = {arm: x or max(1.0, *found.values()) for arm, x in found.items()}  # one that diverges shall do so
        scale = known.get(first, found[first]) / found[first]
        known |= {arm: found[arm] * scale for arm in new}
        write(FOLDER / 'speeds.json', json.dumps(known))
    return {arm: known[arm] for arm in settings}


def read_json(path):
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        fail(f'{path} is damaged; delete it, or choose another --name')


def write(path, text):
    """The whole file or none of it."""
    partial = path.with_name(path.name + '.partial')
    partial.write_text(text, encoding='utf-8')
    os.replace(partial, path)


def place_of(arm, seed):
    return FOLDER / 'runs' / f'{arm.replace(":", "_").replace("=", "_")}-{seed}'


# -----------------------------------------------------------------------------
# a run

def train(arm, settings, seed):
    """Train it, from its last checkpoint where there is one, unless it has ended. False where it diverged."""
    place, n = place_of(arm, seed), settings['max_iters']
    if (place / 'diverged').exists():
        return False
    scores = [place / f'{name}.json' for name in ('val', 'test')]
    resume = {'init_from': 'resume'} if (place / 'ckpt.pt').exists() else {}
    if resume and any(read_json(path).get('iteration') == n for path in scores):
        return True
    for path in scores:  # of a run that was there before
        path.unlink(missing_ok=True)
    status, last = runs.train(settings, place, threads=THREADS, seed=seed, out_dir=str(place),
                              eval_interval=-(-n // evaluations), **resume)
    if status == runs.DIVERGED:
        (place / 'diverged').write_text(last)
        return False
    if runs.STOPPING.is_set() or status in (130, 143):
        raise SystemExit(130)
    if status:
        fail(f'{arm}, seed {seed}: train.py ended with status {status} ({last}); see {place}/log.txt')
    return True


def run(arm, settings, seed):
    """Train and score it; what came out, in words."""
    if runs.STOPPING.is_set():
        raise SystemExit(130)
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
        out, err, status = runs.call('evaluate.py', flags, THREADS)
        if runs.STOPPING.is_set():
            raise SystemExit(130)
        if status:
            fail(f'{arm}, seed {seed}: {err.strip().removeprefix("error: ") or f"evaluate.py ended with {status}"}')
        write(said, out)
    return json.loads(said.read_text()), np.load(arrays)


def tell(arm, seed):
    """Stories of this run's last checkpoint, a list, through the loss's own link."""
    flags = [f'--checkpoint={place_of(arm, seed)}/ckpt.pt', f'--num_samples={num_samples}', f'--start={start}',
             '--max_new_tokens=200']
    out, err, status = runs.call('sample.py', flags)
    if status:
        fail(f'{arm}, seed {seed}: no stories: {err.strip().removeprefix("error: ")}')
    return out.split('\n' + '-' * 79 + '\n')[:num_samples]


def stop(number, _):
    interrupts.say('stopped; the same command goes on with this study')
    raise SystemExit(128 + number)


def report(about, wanted):
    """Write table.md, results.json, the figures and stories.md of all runs of the study that are scored."""
    settings, seeds = wanted['settings'], wanted['seeds']
    done = {arm: {seed: evaluate(arm, seed) for seed in seeds if (place_of(arm, seed) / f'{split}.json').exists()}
            for arm in settings}
    diverged = {arm: sum((place_of(arm, seed) / 'diverged').exists() for seed in seeds) for arm in settings}
    done = {arm: of for arm, of in done.items() if of or diverged[arm]}  # the others are of the other split
    logs = {arm: {seed: list(runlog.entries(place_of(arm, seed) / 'metrics.jsonl')) for seed in done[arm]}
            for arm in done}
    given = {arm: ', '.join(f'{key}={x}' for key, x in settings[arm].items()
                        if x != runs.DEFAULTS[key] and key not in SET_HERE) or 'the defaults' for arm in done}
    if not any(done.values()):
        fail(f'all runs of --name={name} diverged; lower --learning_rate, under another --name')
    results = [result for of in done.values() for result, _ in of.values()]
    units = {'processor': '', 'device': '', 'dtype': '', 'threads': ' threads', 'torch': ' torch'}
    machines = {', '.join(f'{result["machine"][key]}{unit}' for key, unit in units.items() if key in result['machine'])
                for result in results if result.get('machine')}
    about += f' Scored: {results[0]["stories"]:,} stories, {results[0]["tokens"]:,} tokens of {split}.bin. Machine' + \
        's, NOT all the same' * (len(machines) > 1) + f': {"; ".join(sorted(machines)) or "not recorded"}.'
    against = compared.differences(done, reading, bootstrap)
    text = compared.table(name, done, logs, given, against, about, reading, margin, len(seeds), diverged)
    write(FOLDER / f'table{SUFFIX}.md', text)
    write(FOLDER / f'results{SUFFIX}.json', json.dumps({
        'about': about, 'plan': wanted, 'differences': against,
        'runs': {arm: {str(seed): result for seed, (result, _) in of.items()} for arm, of in done.items()}}, indent=1))
    compared.figures(FOLDER, SUFFIX, done, logs, against, reading)
    if num_samples:
        told = {arm: tell(arm, seeds[0]) for arm in done if seeds[0] in done[arm]}
        text_of = [f'## {i + 1}\n\n' + '\n'.join(f'**{arm}**\n\n```\n{stories[i]}\n```\n'
                                                 for arm, stories in told.items()) for i in range(num_samples)]
        write(FOLDER / 'stories.md', f'# Stories of seed {seeds[0]}, as they came, each through the link of its loss: '
              'the same beginning and the same random numbers for all\n\n' + '\n'.join(text_of))
    for line in text.splitlines():
        interrupts.say(line)
    interrupts.say(f'in {FOLDER}: table{SUFFIX}.md, results{SUFFIX}.json, the figures' +
                   ' and stories.md' * bool(num_samples))


settings = arms()
try:
    one = next(iter(settings.values()))
    folder = bins.find(one['dataset'])
    meta = bins.read_meta(folder, one['vocab_size'])
    fingerprints = {part: bins.fingerprint(bins.open_bin(folder, part, meta)) for part in ('train', 'val', split)}
    train_size = len(bins.open_bin(folder, 'train', meta, one['block_size'], one['train_tokens']))
except (OSError, ValueError) as e:
    fail(e)
try:
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
wanted = {'declared': {'reading': reading, 'margin': margin, 'evaluations': evaluations},
          'settings': {arm: {key: x for key, x in all_settings.items() if key not in SET_HERE and key != '__file__'}
                       for arm, all_settings in settings.items()},
          'seeds': list(range(first_seed, first_seed + seeds)), 'data': fingerprints}
plan = FOLDER / 'plan.json'
if old := read_json(plan):
    changed = [f'{arm}: {key} {old["settings"][arm].get(key)} -> {x}' for arm, new in wanted['settings'].items()
               if arm in old['settings'] for key, x in new.items()
               if old['settings'][arm].get(key, runs.DEFAULTS[key]) != x]
    changed += [f'{key} {was} -> {wanted["declared"][key]}' for key, was in old.get('declared', {}).items()
                if wanted['declared'][key] != was]
    changed += [f'the first of --losses {was} -> {arm}' for was, arm in
                zip(list(old['settings'])[:1], settings, strict=False) if was != arm]
    changed += ['the data'] * any(old['data'].get(part, x) != x for part, x in fingerprints.items())
    if changed:
        fail(f'--name={name} is another study: {", ".join(changed[:5])}; choose another')
    wanted |= {'settings': {**old['settings'], **wanted['settings']}, 'data': {**old['data'], **fingerprints},
               'seeds': sorted({*old.get('seeds', []), *wanted['seeds']})}
write(plan, json.dumps(wanted, indent=1))
started = time.time()
with ThreadPoolExecutor(jobs) as pool:
    work = {pool.submit(run, arm, settings[arm], seed): (arm, seed)
            for seed in range(first_seed, first_seed + seeds) for arm in settings}
    kept = sum((place_of(arm, seed) / f'{split}.json').exists() for arm, seed in work.values())  # they take no time
    try:
        for finished, future in enumerate(as_completed(work), 1):
            arm, seed = work[future]
            minutes = (time.time() - started) / max(1, finished - kept) * (len(work) - finished) / 60
            interrupts.say(printable(f'{arm}, seed {seed}: {future.result()}; {len(work) - finished} runs left' +
                                     f', about {minutes:.0f} min' * (finished > kept)))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        runs.stop_all()
        raise
tokens = {arm: of['max_iters'] * runs.tokens_per_iter(of) for arm, of in wanted['settings'].items()}
each_tokens = ', '.join(f'{arm} {count:,}' for arm, count in tokens.items())
each_tokens = each_tokens if len(set(tokens.values())) > 1 else f'{next(iter(tokens.values())):,}'
about = f'Data: {meta["source"] if meta else folder}' + ', SYNTHETIC stories' * bool(meta and meta['synthetic']) + \
    f'; {train_size:,} training tokens. Seen in a run: {each_tokens}' + f' ({budget})' * bool(budget) + \
    f'. {jobs} runs at a time, {time.strftime("%Y-%m-%d")}.'
report(about, wanted)
