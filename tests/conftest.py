"""Fixtures, and functions that run the project's scripts.

The tests of real text and of GPT-2's encoding read ../shared if it exists; otherwise they skip.
"""
import ast
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
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
if (SHARED / 'tiktoken').is_dir():
    os.environ.setdefault('TIKTOKEN_CACHE_DIR', str(SHARED / 'tiktoken'))
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # no test waits for a network
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


def pytest_runtest_setup(item):
    if item.get_closest_marker('cuda') and not torch.cuda.is_available():
        pytest.skip('needs a CUDA GPU')


class LargestTensor(TorchDispatchMode):
    """A context that records the number of elements of the largest tensor that any operation returns."""
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def cold(*command, cwd=ROOT, timeout=120, **env):
    """Run a script in a new Python process. Return (exit status, stdout, stderr)."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True,
                          timeout=timeout, env={'OMP_NUM_THREADS': '1', **os.environ, **env}, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@functools.cache
def fork_server():
    """The process of fork_server.py. It ends with this one, when its stdin closes."""
    return subprocess.Popen([sys.executable, ROOT / 'tests/fork_server.py'], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1',
                                 'OMP_WAIT_POLICY': 'passive'})  # two tests share the cores


def request(**job):
    fork_server().stdin.write(json.dumps(job) + '\n')
    fork_server().stdin.flush()
    return int(fork_server().stdout.readline())


class Started:
    """A running script. finish() waits for it and returns (exit status, stdout, stderr)."""

    def __init__(self, *command, cwd=ROOT, limits=None, **env):
        self.files = [tempfile.mktemp(suffix=name) for name in ('.out', '.err')]
        self.status = None
        self.pid = request(command=[*map(str, command)], cwd=str(cwd), env={'OMP_NUM_THREADS': '1', **env},
                           out=self.files[0], err=self.files[1], limits=limits or {})

    def send(self, number):
        """Send a signal, unless the script has ended."""
        if not self.ended():
            os.kill(self.pid, number)

    def ended(self):
        with open(f'/proc/{self.pid}/stat') as f:  # a zombie until it is waited for, so its pid is not reused
            return f.read().rpartition(')')[2].split()[0] == 'Z'

    def kill(self):
        """Make sure that the process is gone, at the end of a test."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.finish()

    def output(self):
        """Return what the script has written to stdout so far."""
        return Path(self.files[0]).read_text() if os.path.exists(self.files[0]) else ''

    def finish(self, timeout=120):
        timer = threading.Timer(timeout, os.kill, (self.pid, signal.SIGKILL))
        timer.start()
        self.status = request(wait=self.pid)
        timer.cancel()
        texts = [Path(name).read_text() for name in self.files]
        for name in self.files:
            os.unlink(name)
        return self.status, *texts


def run(*command, timeout=120, **options):
    """Run a script as a user does, but in a process that has imported torch. Return (exit status, stdout, stderr).

    options: cwd, limits ({'RLIMIT_FSIZE': bytes}), environment variables.
    """
    return Started(*command, **options).finish(timeout)


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
    """A data folder of 300 synthetic stories as bytes, from which a small model learns something in seconds."""
    folder = tmp_path_factory.mktemp('data') / 'bytes'
    status, _, err = run('data/synthetic/prepare.py', '--tokenizer=byte', '--stories=300', '--val_fraction=0.1',
                         f'--out_dir={folder}')
    assert status == 0, err
    return folder


def settings_of(script):
    """Return the source of a script up to its call of configure: its settings and their checks, for a stand-in."""
    head = ['from configurator import configure']
    for node in ast.parse((ROOT / script).read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign | ast.Expr):
            head.append(ast.unparse(node))
            if 'configure(' in head[-1]:
                return '\n'.join(head)


def snapshot(folder):
    """Return {path: (size, time) or None for a folder}, without empty lock files and meta.json, which remembers the
    largest ids."""
    return {path: None if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.rglob('*') if path.name != 'meta.json' and (path.name != 'lock' or path.stat().st_size)}


def check_refused(script, flags, *names, cwd, lines=1):
    """The script fails with `lines` lines "error: ..." that contain these names, and changes nothing in cwd."""
    before = snapshot(cwd)
    flags = flags.split() if isinstance(flags, str) else flags
    status, out, err = run(ROOT / script, *flags, cwd=cwd, timeout=60,
                           limits={'RLIMIT_AS': 6 << 30})  # a script that believes a huge size fails here
    assert status in (1, 2), (status, err)
    assert err.count('\n') == lines and all(line.startswith('error: ') for line in err.splitlines()), err
    for name in names:
        assert name in err
    assert snapshot(cwd) == before
