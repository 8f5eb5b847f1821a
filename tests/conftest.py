"""Where the real text and GPT-2's encoding lie, if they do; else the tests that need them skip."""
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
if (SHARED / 'tiktoken').is_dir():
    os.environ.setdefault('TIKTOKEN_CACHE_DIR', str(SHARED / 'tiktoken'))
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # no test waits for a network
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def cold(*command, cwd=ROOT, timeout=120, **env):
    """A script of the project in a Python of its own: (exit status, stdout, stderr)."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True,
                          timeout=timeout, env={'OMP_NUM_THREADS': '1', **os.environ, **env}, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@functools.cache
def warm():
    """The Python of warm.py; it ends with this one, since its stdin does."""
    return subprocess.Popen([sys.executable, ROOT / 'tests/warm.py'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, cwd=ROOT, start_new_session=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1',
                                 'OMP_WAIT_POLICY': 'passive'})  # threads of two tests share the cores


def ask(**job):
    warm().stdin.write(json.dumps(job) + '\n')
    warm().stdin.flush()
    return int(warm().stdout.readline())


class Started:
    """A script at work: its process id, and finish() -> (exit status, stdout, stderr)."""

    def __init__(self, *command, cwd=ROOT, limits=None, **env):
        self.files = [tempfile.mktemp(suffix=name) for name in ('.out', '.err')]
        self.status = None
        self.pid = ask(command=[*map(str, command)], cwd=str(cwd), env={'OMP_NUM_THREADS': '1', **env},
                       out=self.files[0], err=self.files[1], limits=limits or {})

    def send(self, number):
        """A signal; to one that has ended already, nothing."""
        if not self.ended():
            os.kill(self.pid, number)

    def ended(self):
        with open(f'/proc/{self.pid}/stat') as f:  # not waited for yet, so its number is its own
            return f.read().rpartition(')')[2].split()[0] == 'Z'

    def kill(self):
        """Make sure that a test leaves no process behind."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.finish()

    def output(self):
        """What it has said on stdout until now."""
        return Path(self.files[0]).read_text() if os.path.exists(self.files[0]) else ''

    def finish(self, timeout=120):
        timer = threading.Timer(timeout, os.kill, (self.pid, signal.SIGKILL))
        timer.start()
        self.status = ask(wait=self.pid)
        timer.cancel()
        texts = [Path(name).read_text() for name in self.files]
        for name in self.files:
            os.unlink(name)
        return self.status, *texts


def run(*command, timeout=120, **how):
    """A script of the project as a user runs it, but with torch imported before: (exit status, stdout, stderr).

    how: cwd, limits ({'RLIMIT_FSIZE': bytes}), environment variables.
    """
    return Started(*command, **how).finish(timeout)


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
    """300 synthetic stories as bytes: a data folder that a small model learns something of in seconds."""
    folder = tmp_path_factory.mktemp('data') / 'bytes'
    status, _, err = run('data/tinystories/prepare.py', '--source=synthetic', '--tokenizer=byte', '--max_stories=300',
                         '--val_fraction=0.1', f'--out_dir={folder}')
    assert status == 0, err
    return folder
