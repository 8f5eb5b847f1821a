"""Run the commands of README.md and docs/*.md, in order, in a scratch clone of the repository.

    python dev/check_docs.py --data=stories.txt
    python dev/check_docs.py --page=docs/checkpoints.md

Commands are the lines of ```sh blocks; a backslash continues a line. Each runs in a shell of its own. Blocks after a
comment <!-- not run: reason --> are skipped. The clone has the code of HEAD, the pages are those of the working tree.
Each page starts with a clean clone, in which the stories of --data, a file where <|endoftext|> separates them, stand in
for TinyStories: the last 1,000 are test.txt, the others stories.txt, and both are in data/tinystories/bpe. Without
--data they are synthetic.

Models are tiny and runs short (see SETTINGS and FLAGS): this checks that commands work, not what they print. pip
installs nothing. Prints a line per command with its status and time. The exit status is 1 if a command failed.
"""
import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_RUN = re.compile('<!-- not run: (.*) -->')
# A config file that train.py reads last.
SETTINGS = '''
n_layer, n_head, n_embd = min(n_layer, 2), 2, 32
block_size, batch_size = min(block_size, 256), min(batch_size, 4)
max_iters, eval_interval, eval_iters = min(max_iters, 40), min(eval_interval, 20), min(eval_iters, 2)
sample_tokens = min(sample_tokens, 10)
'''
# Arguments that are added to those of a script.
FLAGS = {
    'train.py': 'SETTINGS',
    'tune.py': 'SETTINGS --trials=2 --budget_seconds=0 --iters=8',
    'compare.py': 'SETTINGS --budget=iters:8 --seeds=2',
    'evaluate.py': '--bootstrap=99',
    'sample.py': '--max_new_tokens=20',
    'bench.py': '--rounds=1 --seconds=0.1',
    'dev/race.py': '--max_iters=200 --speedup=1 --evaluations=2 --eval_windows=8 --batch_size=1 --own_batch_size=1',
    'data/synthetic/prepare.py': '--stories=3000',
}


def pages(root=ROOT):
    return [root / 'README.md', *sorted((root / 'docs').glob('*.md'))]


def read_blocks(page):
    """Return [(commands of a ```sh block, reason why it is not run or ''), ...] of a page."""
    blocks, commands, reason = [], None, ''
    for line in page.read_text(encoding='utf-8').splitlines():
        if commands is not None and line.strip() == '```':
            joined = re.sub(r'\\\n\s*', '', '\n'.join(commands))
            blocks.append(([line for line in joined.splitlines() if line.strip() and line[0] != '#'], reason))
            commands, reason = None, ''
        elif commands is not None:
            commands.append(line)
        elif line.strip() == '```sh':
            commands = []
        elif match := NOT_RUN.fullmatch(line.strip()):
            reason = match[1]
        elif line.strip():
            reason = ''  # the comment applies to the next block only
    return blocks


def write_launchers(folder, python):
    """Write python, python3 and torchrun, which add FLAGS to the arguments of scripts, and pip, which does nothing."""
    folder.mkdir()
    settings = folder / 'settings.py'
    settings.write_text(SETTINGS)
    cases = '\n'.join(f'  *" {script} "*) set -- "$@" {flags.replace("SETTINGS", str(settings))} ;;'
                      for script, flags in FLAGS.items())
    for name, module in ('python', ''), ('python3', ''), ('torchrun', '-m torch.distributed.run'):
        launcher = folder / name
        launcher.write_text(f'#!/bin/bash\ncase " $* " in\n{cases}\nesac\nexec {shlex.quote(python)} {module} "$@"\n')
        launcher.chmod(0o755)
    for name in 'pip', 'pip3':  # nothing may be installed outside the scratch folder
        launcher = folder / name
        launcher.write_text('#!/bin/bash\n')
        launcher.chmod(0o755)


def run(command, cwd, env, timeout):
    """Run a command in bash. Return (exit status, output, seconds)."""
    start = time.perf_counter()
    process = subprocess.Popen(['bash', '-o', 'pipefail', '-c', command], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8', errors='replace',
                               start_new_session=True)
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output, time.perf_counter() - start
    except BaseException as e:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if not isinstance(e, subprocess.TimeoutExpired):
            raise
        return 124, f'{output}\ntimed out after {timeout} s', time.perf_counter() - start


def write_stories(clone, data):
    """Write stories.txt and test.txt to the clone, from a file of stories or from the grammar."""
    if data:
        stories = [story.strip() for story in data.read_text(encoding='utf-8').split('<|endoftext|>') if story.strip()]
    else:
        sys.path.insert(0, str(ROOT / 'data/synthetic'))
        from grammar import generate_stories
        stories = list(generate_stories(1337, 8000))
    for name, part in ('stories.txt', stories[:-1000]), ('test.txt', stories[-1000:]):
        (clone / name).write_text(''.join(f'{story}\n<|endoftext|>\n' for story in part), encoding='utf-8')


def check_page(page, clone, env, timeout):
    """Run the commands of a page and print a line for each. Return the number of failures."""
    name, failures = page.relative_to(ROOT), 0
    for commands, reason in read_blocks(page):
        for command in commands:
            if reason:
                print(f'skip           {name}: {command} ({reason})', flush=True)
                continue
            status, output, seconds = run(command, clone, env, timeout)
            failures += status != 0
            print(f'{f"FAIL {status}" if status else "ok":8} {seconds:4.0f} s {name}: {command}', flush=True)
            if status:
                print(''.join(f'    {line}\n' for line in output.splitlines()[-15:]), end='', flush=True)
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--page', action='append', help='check only this page; may be repeated')
    parser.add_argument('--python', default=sys.executable, help='the Python that runs the commands')
    parser.add_argument('--data', type=Path, help='a file of stories')
    parser.add_argument('--timeout', type=float, default=600, help='seconds per command')
    options = parser.parse_args()
    wanted = [Path(page).resolve() for page in options.page or pages()]
    if unknown := [str(page) for page in wanted if page not in pages()]:
        parser.error(f'{", ".join(unknown)}: pass README.md or a page in docs/')

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that run() kills its command
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        clone, clean = Path(scratch, 'clone'), Path(scratch, 'clean')
        write_launchers(Path(scratch, 'bin'), os.path.abspath(options.python))
        env = {'OMP_NUM_THREADS': '1', **os.environ, 'PATH': f'{scratch}/bin:{os.environ["PATH"]}',
               'PYTHONIOENCODING': 'utf-8'}
        subprocess.run(['git', 'clone', '--quiet', ROOT, clean], check=True)
        write_stories(clean, options.data)
        prepare = 'python data/tinystories/prepare.py --input=stories.txt --test_input=test.txt'
        status, output, _ = run(prepare, clean, env, options.timeout)
        if status:
            sys.exit(f'{prepare} failed:\n{output}')
        for page in wanted:
            shutil.copytree(clean, clone)
            failures += check_page(page, clone, env, options.timeout)
            shutil.rmtree(clone)
    print(f'{failures} commands failed')
    sys.exit(failures > 0)


if __name__ == '__main__':
    main()
