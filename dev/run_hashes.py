"""Print hashes of short runs, to see whether a change of the code changes any bit of a result.

    python dev/run_hashes.py DATA > after.json
    python dev/run_hashes.py DATA --repo=../other_checkout > before.json
    python dev/run_hashes.py DATA --flags=--matmul=torch > torch.json

DATA is a folder of token bins with a tokenizer. Each run trains a tiny model for 60 iterations: every loss with AdamW
and Muon, with and without dropout and gradient accumulation, in one process and in two. The hash covers the final
weights. The evaluation and the samples of one checkpoint follow. Hashes agree on one machine and torch build only.
--flags are more flags of train.py; without --matmul, each run chooses a library, and two runs may choose differently.
"""
import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('data', type=Path)
parser.add_argument('--repo', type=Path, default=Path(__file__).resolve().parent.parent, help='the checkout to run')
parser.add_argument('--flags', default='', help='more flags for train.py, separated by spaces')
options = parser.parse_args()
MODEL = ['--n_layer=2', '--n_head=2', '--n_embd=64', '--block_size=64', '--batch_size=8', '--max_iters=60',
         '--warmup_iters=10', '--eval_interval=30', '--eval_iters=4', '--sample_tokens=20']
LOSSES = [['--loss=cross_entropy'], ['--loss=mse', '--mse_true_weight=10', '--mse_target=5'],
          ['--loss=squentropy', '--squentropy_weight=0.3', '--squentropy_schedule=linear']]
OTHERS = [['--loss=cross_entropy_plus_mse'], ['--loss=cross_entropy', '--label_smoothing=0.1', '--z_loss=1e-3'],
          ['--loss=squentropy', '--squentropy_centred=True', '--squentropy_target=0.5'],
          ['--loss=mse', '--mse_end=0.5']]
OPTIMIZERS = [['--optimizer=adamw'], ['--optimizer=muon', '--muon_learning_rate=2e-2']]
EXTRAS = [[], ['--dropout=0.2', '--gradient_accumulation_steps=2', '--batch_size=4']]


def run(*command):
    """Run a command in the checkout with one thread; return what it prints."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'utf-8'}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=options.repo, capture_output=True,
                          encoding='utf-8', env=env)
    if done.returncode:
        sys.exit(f'{" ".join(map(str, command))}\n{done.stderr}')
    return done.stdout


def hash_weights(path):
    weights = torch.load(path, map_location='cpu', weights_only=True)['model']
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].float().numpy().tobytes())
    return digest.hexdigest()[:16]


def train(folder, flags, processes=1):
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    run(*(launcher if processes > 1 else []), 'train.py', *MODEL, f'--dataset={options.data.resolve()}',
        f'--out_dir={folder}', *flags, *options.flags.split())
    return hash_weights(folder / 'ckpt.pt')


hashes = {}
with tempfile.TemporaryDirectory() as scratch:
    cases = [(*parts, n) for *parts, n in itertools.product(LOSSES, OPTIMIZERS, EXTRAS, (1, 2))]
    cases += [(loss, [], [], 1) for loss in OTHERS]
    for number, (*parts, processes) in enumerate(cases):
        flags = sum(parts, [])
        name = ' '.join(flags) + f' x{processes}'
        hashes[name] = train(Path(scratch) / str(number), flags, processes)
        print(hashes[name], name, file=sys.stderr, flush=True)
    for number in (0, 8, 16):  # one run of each loss
        checkpoint = Path(scratch) / str(number) / 'ckpt.pt'
        evaluation = json.loads(run('evaluate.py', f'--checkpoint={checkpoint}', '--json=True', '--bootstrap=99'))
        del evaluation['checkpoint']  # in the temporary folder
        hashes[f'evaluate {number}'] = evaluation
        hashes[f'sample {number}'] = run('sample.py', f'--checkpoint={checkpoint}', '--num_samples=2', '--seed=7',
                                         '--max_new_tokens=90')
json.dump(hashes, sys.stdout, indent=1)
