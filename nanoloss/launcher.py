"""Run train.py and other scripts of the repository as subprocesses. Used by tune.py, compare.py and export.py."""
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from configurator import fail, read_settings
from nanoloss.metrics_log import read_metrics
from nanoloss.paths import ROOT

TRAIN = ROOT / 'train.py'
DIVERGED = 3  # exit status of train.py when the loss is not finite
RUNNING = set()  # subprocesses
STOPPING = threading.Event()  # set by stop_all()


def count_cpus():
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@functools.cache
def train_settings():
    """Return (defaults, rules, applies) of train.py, see configurator.read_settings. Do not modify them."""
    return read_settings(TRAIN)


def stop_all():
    """Send SIGTERM to all running subprocesses, so that they save and exit, and stop later ones at once."""
    STOPPING.set()
    for process in list(RUNNING):
        process.terminate()


@contextmanager
def running(script, flags, threads, stderr):
    """Start a script and yield its process. Terminate it if the block exits before it has ended."""
    env = {**os.environ, 'PYTHONIOENCODING': 'utf-8', **({'OMP_NUM_THREADS': str(threads)} if threads else {})}
    process = subprocess.Popen([sys.executable, str(script), *flags], stdout=subprocess.PIPE, stderr=stderr,
                               encoding='utf-8', errors='replace', env=env)
    RUNNING.add(process)
    try:
        if STOPPING.is_set():  # stop_all() may have run before the process was in RUNNING
            process.terminate()
        yield process
    finally:
        RUNNING.discard(process)
        if process.poll() is None:
            process.terminate()
            process.wait()


def run_training(settings, folder, on_line=lambda line: True, threads=0, **overrides):
    """Run train.py with the given settings and append its output to folder/log.txt.

    Args:
        settings: {name: value}; settings that equal train.py's default are not passed on.
        folder: path of the folder for log.txt, created if it does not exist.
        on_line: called with each line of output; if it returns False, the run is killed.
        threads: OMP_NUM_THREADS of the run; 0 = inherited from the environment.
        overrides: settings that replace those in `settings`.

    Returns:
        (exit status, last line of output that is not blank)
    """
    defaults, _, _ = train_settings()
    changed = {name: value for name, value in {**settings, 'sample_tokens': 0, **overrides}.items()
               if value != defaults[name]}
    flags = [f'--{name}={value}' for name, value in changed.items()]
    folder.mkdir(parents=True, exist_ok=True)
    last = ''
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log, \
            running(TRAIN, flags, threads, subprocess.STDOUT) as process:
        for line in process.stdout:  # if this process is killed, the broken pipe makes train.py save and exit
            log.write(line)
            last = line.strip() or last
            if not on_line(line):
                process.kill()
                break
        return process.wait(), last


def run_script(script, flags, threads=0):
    """Run a script of the repository. Returns (stdout, stderr, exit status)."""
    with running(ROOT / script, flags, threads, subprocess.PIPE) as process:
        stdout, stderr = process.communicate()
        return stdout, stderr, process.returncode


def measure_speed(settings, folder, threads=0, number=0):
    """Return the iterations per second of a short run with these settings, or 0 if it diverges.

    number: distinguishes runs that are measured in parallel. Sequences have their full length, so that a compiled run
    does not compile twice. Exits if train.py fails.
    """
    probe = folder / f'probe{number}'
    shutil.rmtree(probe, ignore_errors=True)  # of a measurement that was killed
    status, last = run_training(settings, probe, threads=threads, max_iters=21, out_dir=str(probe), eval_iters=1,
                                eval_windows=0, log_interval=20, eval_interval=21, context_warmup=0.0, wandb_log=False)
    if STOPPING.is_set():
        raise SystemExit(128 + signal.SIGINT)
    if status not in (0, DIVERGED):
        fail(f'train.py ended with status {status} ({last}); see {probe}/log.txt')
    lines = [line for line in read_metrics(probe / 'metrics.jsonl') if 'loss' in line]
    shutil.rmtree(probe, ignore_errors=True)
    if status == DIVERGED:
        return 0
    return (lines[1]['iter'] - lines[0]['iter']) / (lines[1]['seconds'] - lines[0]['seconds'])


def measure_speeds(arms, folder, threads=0, jobs=1):
    """Return {arm: iterations per second}, medians of three measurements with `jobs` runs in parallel.

    The arms take turns because the speed of a shared machine varies over time. An arm that diverges gets the largest
    speed, so that its full run diverges too.

    Args:
        arms: {arm: settings of train.py}
    """
    measured = {arm: [] for arm in arms}
    for _ in range(3):
        for arm, settings in arms.items():
            with ThreadPoolExecutor(jobs) as pool:
                futures = [pool.submit(measure_speed, settings, folder, threads, number) for number in range(jobs)]
            measured[arm].append(sum(future.result() for future in futures) / jobs)
    medians = {arm: sorted(speeds)[1] for arm, speeds in measured.items()}
    fastest = max(1.0, *medians.values())
    return {arm: speed or fastest for arm, speed in medians.items()}


def tokens_per_iter(settings):
    return settings['batch_size'] * settings['gradient_accumulation_steps'] * settings['block_size']
