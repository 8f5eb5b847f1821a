"""Set up a bare machine that has Python and a package index, and do one of two things:

    python3 make.py story    install, make the synthetic data, train the small model, print a story
    python3 make.py test     install, run the tests (further arguments go to pytest)

Both use .venv, which the first call creates.
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
    """Print a command and run it in the repository. Exit with its status if it fails."""
    command = [str(part) for part in command]
    print('$ ' + ' '.join('python' if part == PYTHON else part for part in command), flush=True)
    status = subprocess.run(command, cwd=ROOT).returncode
    if status:
        print(f'error: this command failed with status {status}: {" ".join(command)}', file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)


def install(requirements):
    """Create .venv if it is missing and install a requirements file, once for each version of it."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f'error: this needs Python 3.11 to 3.13, found {sys.version.split()[0]}; '
                 'run it with another one, such as python3.12 make.py ...')
    files = sorted(ROOT.glob('requirements*.txt'))
    fingerprint = hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()
    stamp = VENV / f'installed-{requirements}'
    if Path(PYTHON).exists() and stamp.exists() and stamp.read_text() == fingerprint:
        return
    has_pip = Path(PYTHON).exists() and not subprocess.run([PYTHON, '-m', 'pip', '--version'],
                                                           capture_output=True).returncode
    if not has_pip:
        run(sys.executable, '-m', 'venv', '--clear', VENV)  # on Debian this is the package python3-venv
    run(PYTHON, '-m', 'pip', 'install', '--disable-pip-version-check', '-r', requirements)
    stamp.write_text(fingerprint)


def story():
    install('requirements.txt')
    if not (ROOT / 'data/synthetic/bpe/train.bin').exists():
        run(PYTHON, 'data/synthetic/prepare.py')
    run(PYTHON, 'train.py', 'config/train_synthetic.py')
    run(PYTHON, 'sample.py', '--out_dir=out/synthetic', '--num_samples=1')


def test():
    install('requirements-test.txt')
    run(PYTHON, '-m', 'pytest', *sys.argv[2:])


if __name__ == '__main__':
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed at startup
        stream.reconfigure(errors='replace')  # for paths that the terminal cannot encode
    tasks = {'story': story, 'test': test}
    name = sys.argv[1] if len(sys.argv) > 1 else ''
    if name in ('-h', '--help'):
        print(__doc__.strip())
    elif name not in tasks or (name == 'story' and len(sys.argv) > 2):
        print(f'error: pass story or test, found {" ".join(sys.argv[1:])!r}; example: python3 make.py story',
              file=sys.stderr)
        sys.exit(2)
    else:
        try:
            tasks[name]()
        except KeyboardInterrupt:
            sys.exit(130)
