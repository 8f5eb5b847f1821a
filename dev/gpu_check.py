"""Check this project on a GPU: tests, speed, and real training. Takes about eight minutes on an H100.

    python dev/gpu_check.py
    python dev/gpu_check.py --smoke=True    the same steps on any device, with the smallest models

Prints one table and writes result.json and the log of each step to --out_dir.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configurator import configure, fail

out_dir = 'out/gpu_check'   # output folder, which is replaced
seconds = 60.0              # of training per loss, after the first iteration
rounds = 2                  # of each row of bench.py
tests = True                # run the tests marked cuda
smoke = False               # small models, on any device
configure(globals(), rules=["out_dir != ''", 'seconds > 0', 'rounds >= 1'])

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import time

import torch

from nanoloss.metrics_log import read_metrics
from nanoloss.paths import ROOT

if not torch.cuda.is_available() and not smoke:
    fail('dev/gpu_check.py found no CUDA GPU; --smoke=True checks the steps themselves on a CPU')
folder = Path(out_dir).resolve()
if folder.exists() and any(folder.iterdir()) and not (folder / 'result.json').exists():
    fail(f'--out_dir={out_dir} holds other files; pass a new folder, or one of an earlier check, which is replaced')
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)
start = time.perf_counter()
SMALL = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32', '--batch_size=4', '--device=cpu']
result = {'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else 'none',
          'torch': str(torch.__version__), 'python': sys.version.split()[0], 'date': time.strftime('%Y-%m-%d'),
          'steps': {}, 'bench': [], 'training': {}}


def run(name, *command, stop=None):
    """Run a step and log it; stop: function of the process that waits and ends it. Return stdout, '' if it failed."""
    began = time.perf_counter()
    with open(folder / f'{name}.log', 'w+') as log, open(folder / f'{name}.out', 'w+') as out:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=out, stderr=log,
                                   env=os.environ | ({'OMP_NUM_THREADS': '1'} if smoke else {}))
        if stop:
            stop(process)
        try:
            status = process.wait(timeout=600)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        out.seek(0)
        output = out.read()
    ok = status in (0, 143)  # 143: ended by SIGTERM, checkpoint saved
    result['steps'][name] = {'ok': ok, 'status': status, 'seconds': round(time.perf_counter() - began, 1)}
    result['seconds'] = round(time.perf_counter() - start)
    (folder / 'result.json').write_text(json.dumps(result, indent=1))
    print(f"{'ok    ' if ok else 'FAILED'} {name:24} {time.perf_counter() - began:6.1f} s", flush=True)
    if not ok:
        log_text = (folder / f'{name}.log').read_text()
        print('\n'.join([*output.splitlines()[-15:], *log_text.splitlines()[-15:]]), flush=True)
    return output if ok else ''


def run_tests():
    flags = ['-n', '8'] if importlib.util.find_spec('xdist') and not smoke else []
    # only these files, since others need packages that a GPU machine may lack
    files = [path for path in sorted((ROOT / 'tests').glob('test_*.py')) if 'mark.cuda' in path.read_text()]
    output = run('tests', '-m', 'pytest', '-o', 'addopts=-q', '-m', 'cuda', *flags, *(files[:1] if smoke else files))
    result['tests'] = output.splitlines()[-1] if output else 'failed'


def run_bench(task, only):
    size = ['--rounds=1', '--seconds=0.01', '--threads=1'] if smoke else [f'--rounds={rounds}', '--seconds=1.5']
    output = run(f'bench-{task}', 'bench.py', task, f'--only={only}', '--json=True', *size)
    if output:
        bench = json.loads(output)
        result['peak'] = bench['peak']
        result['bench'] += [{key: value for key, value in row.items() if key != 'all'} for row in bench['rows']]


def train(loss, data, resume):
    """Train for some seconds, stop by SIGTERM, evaluate. resume: first resume for 20 iterations; also write a story."""
    run_dir = folder / loss
    flags = ['train.py', 'config/train_tinystories_30m.py', f'--loss={loss}', f'--dataset={data}',
             f'--out_dir={run_dir}', '--eval_interval=1000000', '--log_interval=5', *(SMALL if smoke else [])]

    def losses():
        return [line for line in read_metrics(run_dir / 'metrics.jsonl') if 'loss' in line]

    def stop(process):
        deadline = time.perf_counter() + 300
        while process.poll() is None and not losses() and time.perf_counter() < deadline:
            time.sleep(0.2)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may fail sooner
            process.wait(timeout=seconds)
        process.terminate()
    run(f'train-{loss}', *flags, stop=stop)
    log = losses()
    if not log:
        return
    done = log[-1]['iter']
    if resume:
        run(f'resume-{loss}', *flags, '--init_from=resume', f'--max_iters={done + 20}')
    evaluation = run(f'evaluate-{loss}', 'evaluate.py', f'--out_dir={run_dir}', '--json=True', '--bootstrap=99')
    story = run(f'sample-{loss}', 'sample.py', f'--out_dir={run_dir}', '--num_samples=1') if resume else ''
    speeds = sorted(line['tokens_per_second'] for line in log[1:] or log)
    result['training'][loss] = {
        'iterations': done, 'tokens_per_second': speeds[len(speeds) // 2], 'first_loss': log[0]['loss'],
        'last_loss': log[-1]['loss'], 'last_iteration': losses()[-1]['iter'],
        'evaluation': json.loads(evaluation)['readouts']['link'] if evaluation else None, 'story': story}


if tests:
    run_tests()
run_bench('train', 'cross_entropy, 4,096' if smoke else ' M, ')
run('data', 'data/synthetic/prepare.py', f'--stories={300 if smoke else 24000}', '--vocab_size=1536',
    f'--out_dir={folder}/data')
for name in ('cross_entropy', 'squentropy'):
    train(name, folder / 'data', resume=name == 'cross_entropy')
if not smoke:
    run_bench('sample', '30 M')

print(f"\n{result['gpu']}, torch {result['torch']}, Python {result['python']}, {result['date']}")
print('tests:', result.get('tests', 'not run'))
for row in result['bench']:
    mfu = f", MFU {row['flops'] / result['peak']:.0%}" if 'flops' in row else ''
    print(f"{row['name']:48} {row['ours']:12,.0f} / {row['other']:12,.0f} {row['unit']} = {row['ratio']:.2f}, "
          f"{row['ours_bytes'] / 2**30:.2f} / {row['other_bytes'] / 2**30:.2f} GiB{mfu}")
for name, run_result in result['training'].items():
    readout = run_result['evaluation'] or {}
    print(f"30 M, {name}: {run_result['iterations']} iterations, {run_result['tokens_per_second']:,.0f} tokens/s, loss "
          f"{run_result['first_loss']:.3f} -> {run_result['last_loss']:.3f}, ended at iteration "
          f"{run_result['last_iteration']}, val.bin {readout.get('nats', float('nan')):.3f} nats per token")
failed = [name for name, step in result['steps'].items() if not step['ok']]
result['seconds'] = round(time.perf_counter() - start)
(folder / 'result.json').write_text(json.dumps(result, indent=1))
print(f"{result['seconds']} s; details in {folder}")
if failed:
    fail(f"failed: {', '.join(failed)}; see the logs in {folder}")
