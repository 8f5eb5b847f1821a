"""Run the data path of every script on a training set of 500 M tokens; print its seconds and peak memory.

    python dev/measure_scale.py
    python dev/measure_scale.py --tokens=50_000_000 --only=evaluate.py --folder=/mnt/fast

The tokens are those of synthetic stories, repeated. The model is tiny and trains for two iterations, so what is left is
reading the data. Peak memory includes the pages of the token files that were read. Exits with status 1 if a script
fails, needs more than --max_gib or, unless it reads every token, takes more than --max_seconds. Linux and macOS.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configurator import configure, fail

tokens = 500_000_000        # of train.bin, two bytes each
folder = ''                 # where to put the data; '' = the folder for temporary files
only = ''                   # run only the steps whose name contains this text, after the first one
max_gib = 2.0               # peak memory
max_seconds = 60.0          # wall-clock
configure(globals(), rules=['tokens >= 1_000_000', 'max_gib > 0', 'max_seconds > 0'])
import json
import os
import subprocess
import tempfile
import time

import numpy as np

from nanoloss.paths import ROOT

SPLIT = '''
import sys
from model import GPT, GPTConfig
from nanoloss import dataloader, scoring
meta = dataloader.read_meta(sys.argv[1])
model = GPT(GPTConfig(block_size=256, vocab_size=meta['vocab_size'], n_layer=1, n_head=1, n_embd=16, bias=False))
split = scoring.Split(model, dataloader.open_bin(sys.argv[1], 'train', meta), meta['eot'], 16, 128)
scoring.Totals(split)
next(iter(split.states.subset(2**18)))
next(split.states.run(keep=False))
'''


def make_data(data):
    """Prepare synthetic stories, and repeat the training set. Exits if prepare.py fails."""
    if subprocess.run([sys.executable, 'data/synthetic/prepare.py', '--stories=5000', '--vocab_size=512',
                       f'--out_dir={data}'], cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        fail('data/synthetic/prepare.py failed; see above')
    meta = json.loads((data / 'meta.json').read_text())
    stories = np.fromfile(data / 'train.bin', np.uint16)
    copies = -(-tokens // len(stories))
    with open(data / 'train.bin', 'wb') as f:
        for _ in range(copies):
            stories.tofile(f)
    for key in ('tokens', 'stories', 'bytes'):
        meta['splits']['train'][key] *= copies
    (data / 'meta.json').write_text(json.dumps(meta))
    return copies * len(stories)


def steps(data, out):
    """Return (name, command, whether it reads every token) of each step; the first makes the checkpoint."""
    tiny = [f'--dataset={data}', '--n_layer=1', '--n_head=1', '--n_embd=16', '--block_size=64', '--batch_size=4']
    checkpoint = f'--checkpoint={out}/run/ckpt.pt'
    train = ['train.py', *tiny, f'--out_dir={out}/run', '--eval_interval=2', '--eval_iters=2', '--warmup_iters=1']
    listed = [
        ('train.py', [*train, '--max_iters=2'], False),
        ('train.py --init_from=resume', [*train, '--max_iters=4', '--init_from=resume'], False),
        ('sample.py', ['sample.py', checkpoint, '--num_samples=1', '--max_new_tokens=20'], False),
        ('evaluate.py', ['evaluate.py', checkpoint, '--bootstrap=99'], False),
        ('evaluate.py --arrays', ['evaluate.py', checkpoint, '--bootstrap=99', f'--arrays={out}/a.npz'], True),
        ('evaluate.py --split=train, its first batch', ['-c', SPLIT, data], True),
        ('export.py --calibrate=True', ['export.py', checkpoint, f'--to={out}/exported', '--calibrate=True'], False),
        ('compare.py', ['compare.py', *tiny, '--name=measure_scale', '--each=', '--losses=cross_entropy,mse',
                        '--seeds=1', '--budget=iters:2', '--num_samples=0', '--warmup_iters=1'], True),
        ('tune.py', ['tune.py', *tiny, '--study=study', '--trials=1', '--iters=8',
                     '--evaluations=2'], False),
    ]
    return [(name, command if command[0] == '-c' else [ROOT / command[0], *command[1:]], reads_all)
            for name, command, reads_all in listed]


def run(command, cwd):
    """Run a script in a folder; return (exit status, seconds, seconds of processor time, peak memory in bytes, output).

    Processes that the script waits for are included.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile('w+') as output:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=cwd, stdout=output, stderr=output,
                                   env={**os.environ, 'PYTHONPATH': str(ROOT)})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    return (process.returncode, time.perf_counter() - start, usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024), text)


def main():
    failed = False
    with tempfile.TemporaryDirectory(dir=folder or None) as work:
        data, out = Path(work) / 'data', Path(work) / 'out'
        print(f'{make_data(data):,} training tokens', flush=True)
        for i, (name, command, reads_all) in enumerate(steps(data, out)):
            if i and only not in name:
                continue
            status, seconds, processor, peak, output = run(command, cwd=work)
            excess = peak > max_gib * 2**30 or (seconds > max_seconds and not reads_all)
            notes = [text for text, applies in (('reads every token', reads_all), (f'status {status}', status),
                                                ('ABOVE THE LIMIT', excess)) if applies]
            print(f'{name:44}{seconds:8.1f} s {processor:8.1f} s processor {peak / 2**30:8.2f} GiB  {", ".join(notes)}',
                  flush=True)
            if status:
                print(output[-2000:], file=sys.stderr)
            failed |= bool(status or excess)
    sys.exit(int(failed))


if __name__ == '__main__':
    main()
