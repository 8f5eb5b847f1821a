"""Signals, the excepthook and log lines, in small scripts of their own."""
import os
import signal
import subprocess
import sys

import pytest

from conftest import ROOT
from nanoloss import signals

SETUP = ('import os, signal, sys\nfrom configurator import prepare_streams\nfrom nanoloss import signals\n'
         'prepare_streams()\nsignals.install_excepthook("use --less")\n')
HANDLERS = SETUP + 'signals.install_handlers()\n'


def python(code, setup=SETUP, redirect='', **env):
    """Run the code after the setup in a new Python; returns (status, stdout, stderr). redirect: its redirections."""
    command = f'exec {sys.executable} -c "$CODE" {redirect}'
    done = subprocess.run(['bash', '-c', command], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, 'CODE': setup + code, **env})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize('error,text', [
    ('MemoryError()', '--less'),
    ('RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\\nGPU 0 has")', '--less'),
    ('FileNotFoundError(2, "No such file", "x.bin")', 'x.bin'),
    ('PermissionError("--out_dir=/x cannot be used")', '--out_dir=/x'),
    ('ModuleNotFoundError("No module named absent", name="absent")', 'pip install absent'),
])
def test_expected_errors_are_one_line(error, text):
    """Memory and files: status 1 and one line without a traceback."""
    status, out, err = python(f'raise {error}')
    assert status == 1 and out == '' and err.startswith('error: ') and err.count('\n') == 1 and text in err


def test_other_errors_have_a_traceback():
    """An error that may be a bug keeps its traceback."""
    status, _, err = python('raise ValueError("x")')
    assert status == 1 and err.startswith('Traceback') and 'ValueError: x' in err


@pytest.mark.parametrize('launched', [True, False])
def test_lost_connection(launched):
    """A lost connection is one line under torchrun, and a traceback without it."""
    env = {'TORCHELASTIC_RUN_ID': 'x'} if launched else {}
    status, _, err = python('raise RuntimeError("[pair.cc] Connection reset by peer")', **env)
    assert status == 1 and (err.count('\n') == 1) == launched and ('Traceback' in err) != launched


def test_is_out_of_memory():
    """The messages of torch's allocators, and no others."""
    assert signals.is_out_of_memory(MemoryError())
    assert signals.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert not signals.is_out_of_memory(RuntimeError('shapes do not match'))
    assert not signals.is_out_of_memory(ValueError('out of memory'))


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'])
def test_handlers_record_signals(name):
    """After install_handlers() a signal is recorded and the script goes on."""
    code = f'os.kill(os.getpid(), signal.{name})\nprint(int(signals.stop_signal), signals.save_requested)'
    status, out, err = python(code, HANDLERS)
    expected = '0 True' if name == 'SIGUSR1' else f'{int(getattr(signal, name))} False'
    assert (status, out.strip(), err) == (0, expected, '')


def test_second_interrupt():
    """A second Ctrl-C ends the process at once, without a traceback."""
    status, out, err = python('for _ in range(2):\n    os.kill(os.getpid(), signal.SIGINT)\nprint("alive")', HANDLERS)
    assert (status, out, err) == (-signal.SIGINT, '', '')


def test_before_the_handlers():
    """Before install_handlers() Ctrl-C ends the script without a traceback, and SIGUSR1 does nothing."""
    code = 'os.kill(os.getpid(), signal.SIGUSR1)\nprint("alive", flush=True)\nos.kill(os.getpid(), signal.SIGINT)'
    assert python(code) == (-signal.SIGINT, 'alive\n', '')


def test_ignored_signals_stay_ignored():
    """A signal that was ignored from the start, as by nohup, is not recorded."""
    code = 'os.kill(os.getpid(), signal.SIGHUP)\nprint(signals.stop_signal)'
    status, out, _ = python(code, 'import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n' + HANDLERS)
    assert (status, out) == (0, '0\n')


def test_log_line_without_a_reader():
    """When the reader of stdout is gone, log_line() asks the run to stop, and later lines do no harm."""
    code = ('signals.log_line("one")\nr, w = os.pipe()\nos.close(r)\nos.dup2(w, 1)\nsignals.log_line("two")\n'
            'signals.log_line("three")\nprint(int(signals.stop_signal), file=sys.stderr)')
    assert python(code, HANDLERS) == (0, 'one\n', f'{int(signal.SIGPIPE)}\n')


def test_outputs_that_fail():
    """A full stdout is a note, a closed stdout or stderr is nothing: the script runs to its end."""
    code = 'signals.log_line("one")\nsignals.log_line("two")\nsys.exit(signals.stop_signal + 5)'
    status, _, err = python(code, HANDLERS, '> /dev/full')
    assert status == 5 and err.startswith('note: ') and err.count('\n') == 1
    assert python(code, HANDLERS, '>&-') == (5, '', '')
    assert python(code, HANDLERS, '2>&-') == (5, 'one\ntwo\n', '')


def test_broken_pipe():
    """A script in a pipe to head ends without a word."""
    code = 'r, w = os.pipe()\nos.close(r)\nos.dup2(w, 1)\nprint("x", flush=True)'
    assert python(code) == (1, '', '')
