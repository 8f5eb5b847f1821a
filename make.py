"""The two commands that do all the set-up, for a machine with nothing but Python and the package index.

    python3 make.py story    make .venv, prepare the embedded corpus, train the small model, print a story
    python3 make.py test     make .venv, run the tests   (more arguments go to pytest)
"""
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / '.venv'
PYTHON = str(VENV / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python'))


def run(*command):
    """Show the command, run it from the repository, and leave with its status if it fails."""
    command = [str(part) for part in command]
    print('$ ' + ' '.join(Path(part).name if part == PYTHON else part for part in command), flush=True)
    status = subprocess.run(command, cwd=ROOT).returncode
    if status:
        sys.exit(f'error: this step failed with status {status}: {" ".join(command)}')


def install(requirements):
    """Make .venv where there is none and install the requirements, once for each version of them."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f'error: Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; '
                 'run this with another, like python3.12 make.py ...')
    wanted = hashlib.sha256(b''.join(f.read_bytes() for f in sorted(ROOT.glob('requirements*.txt')))).hexdigest()
    stamp = VENV / f'installed-{requirements}'
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, '-m', 'pip', '--version'], capture_output=True).returncode:
        run(sys.executable, '-m', 'venv', '--clear', VENV)  # Debian has it in the package python3-venv
    run(PYTHON, '-m', 'pip', 'install', '--disable-pip-version-check', '-r', requirements)
    stamp.write_text(wanted)


def story():
    install('requirements.txt')
    if not (ROOT / 'data/tinystories/bpe/train.bin').exists():
        run(PYTHON, 'data/tinystories/prepare.py', '--source=synthetic', '--tokenizer=bpe')
    run(PYTHON, 'train.py', 'config/train_tinystories_squentropy.py')
    run(PYTHON, 'sample.py', '--out_dir=out/tinystories_squentropy', '--num_samples=1')


def test():
    install('requirements-test.txt')
    run(PYTHON, '-m', 'pytest', *sys.argv[2:])


if __name__ == '__main__':
    task = {'story': story, 'test': test}.get(sys.argv[1] if len(sys.argv) > 1 else '')
    if sys.argv[1:] in (['-h'], ['--help']):
        print(__doc__.strip())
        sys.exit()
    if not task or task is story and len(sys.argv) > 2:
        sys.exit(f'error: {" ".join(sys.argv[1:])!r} is no task; python3 make.py story or make.py test')
    try:
        task()
    except KeyboardInterrupt:
        sys.exit(130)
