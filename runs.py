"""Runs of train.py that another script starts: a trial of tune.py, an arm of compare.py."""
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import runlog
from configurator import fail, settings_of

TRAIN = Path(__file__).resolve().parent / 'train.py'
DEFAULTS, RULES = settings_of(TRAIN)
DIVERGED = 3  # train.py's exit status
LIVE, STOPPING = set(), threading.Event()


def stop_all():
    """Have the runs that are at work save and end, and let no other begin."""
    STOPPING.set()
    for process in list(LIVE):
        process.terminate()


def train(settings, place, each_line=lambda line: True, threads=0, **more):
    """Run train.py with these settings: (exit status, the last line that it printed). What it prints goes to
    place/log.txt. each_line(line) -> False ends it at once. threads: 0 = as the environment says."""
    flags = {name: value for name, value in {**settings, 'sample_tokens': 0, **more}.items() if value != DEFAULTS[name]}
    place.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, str(TRAIN), *(f'--{k}={v}' for k, v in flags.items())],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
                               env={**os.environ, **({'OMP_NUM_THREADS': str(threads)} if threads else {})})
    LIVE.add(process)
    if STOPPING.is_set():  # it came between
        process.terminate()
    last = ''
    try:
        with open(place / 'log.txt', 'a', encoding='utf-8') as log:
            for line in process.stdout:  # should we be killed, the broken pipe makes it save and end
                log.write(line)
                last = line.strip() or last
                if not each_line(line):
                    process.kill()
                    break
        return process.wait(), last
    finally:
        LIVE.discard(process)
        if process.poll() is None:
            process.terminate()
            process.wait()


def call(script, flags, threads=0):
    """Run another script of ours: (stdout, stderr, exit status)."""
    process = subprocess.Popen([sys.executable, str(TRAIN.with_name(script)), *flags], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               env={**os.environ, **({'OMP_NUM_THREADS': str(threads)} if threads else {})})
    LIVE.add(process)
    if STOPPING.is_set():
        process.terminate()
    try:
        return *process.communicate(), process.returncode
    finally:
        LIVE.discard(process)


def speed(settings, place, threads=0, number=0):
    """Iterations a second, of a short run; 0 where it diverges at once. number: one of several at a time."""
    probe = place / f'probe{number}'
    status, last = train(settings, place, threads=threads, max_iters=21, out_dir=str(probe), eval_iters=1,
                         log_interval=20, eval_interval=21)
    if status not in (0, DIVERGED):
        fail(f'train.py ended with status {status}: {last}')
    lines = [line for line in runlog.entries(probe / 'metrics.jsonl') if 'loss' in line]
    shutil.rmtree(probe, ignore_errors=True)
    if status == DIVERGED:
        return 0
    return (lines[1]['iter'] - lines[0]['iter']) / (lines[1]['seconds'] - lines[0]['seconds'])


def tokens_per_iter(settings):
    return settings['batch_size'] * settings['gradient_accumulation_steps'] * settings['block_size']
