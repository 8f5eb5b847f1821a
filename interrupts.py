"""What reaches a script from outside while it works: signals, memory or a disk that gives out.

    Ctrl-C (SIGINT), SIGTERM, SIGHUP (the terminal is gone)   finish the iteration, save, end with 128 + number
    SIGUSR1                                                   save after this iteration and go on
    a second Ctrl-C                                           end at once

Only a training loop that has called listen() does this; before that, and in the other scripts, a
signal ends the script as usual. What was ignored from the start (nohup) stays ignored.
"""
import errno
import os
import re
import signal
import sys

from tqdm import tqdm

from configurator import fail, printable

stop = 0      # number of the signal that asks the run to end
save = False  # whether a signal asked for a checkpoint
way_out = ''  # what to do where the memory does not suffice

NO_MEMORY = re.compile("out of memory|can't allocate memory|cannot allocate memory|not enough memory|"
                       'size calculation overflowed', re.IGNORECASE)

LOST = re.compile('connection (closed|reset)|broken pipe|remote process exited|ncclRemoteError', re.IGNORECASE)


def quiet(hint):
    """Until listen(): Ctrl-C ends the script without a traceback, SIGUSR1 does nothing yet. From now
    on: no traceback where the memory or a file gives out, but one line with this hint."""
    global way_out
    way_out = hint
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, 'SIGUSR1'):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed from the start: >&-
            setattr(sys, name, open(os.devnull, 'w'))
    sys.stdout.reconfigure(errors='replace')  # a terminal that lacks a character does not end a run
    sys.excepthook = explain


def listen():
    """From now on signals are noted in `stop` and `save`, for the loop to act on between iterations."""
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def on_signal(number, frame):
        global stop, save
        if number == getattr(signal, 'SIGUSR1', None):
            save = True
            return
        stop = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        if number == getattr(signal, 'SIGHUP', None):
            mute(*terminals)

    for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'):
        number = getattr(signal, name, None)  # Windows has the first two
        if number and (name == 'SIGUSR1' or signal.getsignal(number) != signal.SIG_IGN):
            signal.signal(number, on_signal)
    sys.excepthook = explain  # wandb puts its own before it


def say(text):
    """Print above the progress bar. Where nobody reads any more (| head), that asks the run to end."""
    global stop
    try:
        tqdm.write(printable(text))
        sys.stdout.flush()
    except OSError as e:
        mute(1)
        if e.errno in (errno.EPIPE, errno.EIO):
            stop = stop or getattr(signal, 'SIGPIPE', signal.SIGTERM)
        else:
            print(f'note: nothing more can be written to stdout ({e.strerror}); the run goes on', file=sys.stderr)


def mute(*outputs):
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in outputs:
        os.dup2(null, fd)


def no_memory(error):
    """Whether an exception says that memory, of the machine or the GPU, did not suffice."""
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def explain(kind, error, traceback):
    """The excepthook: one line for what is no mistake of the code, the traceback for the rest."""
    if issubclass(kind, BrokenPipeError):
        return mute(1)  # sample.py | head
    if no_memory(error):
        reason = ' '.join(str(error).split('. GPU')[0].split())[:200]
        message = f'out of memory ({reason or kind.__name__}); {way_out}'
    elif 'TORCHELASTIC_RUN_ID' in os.environ and issubclass(kind, RuntimeError) and LOST.search(str(error)):
        message = f'another process has ended, for its own reason ({str(error).splitlines()[0][:120]})'
    elif issubclass(kind, OSError):
        message = str(error)
    else:
        return sys.__excepthook__(kind, error, traceback)
    wandb = sys.modules.get('wandb')
    if wandb and getattr(wandb, 'run', None):
        wandb.finish(exit_code=1)
    tqdm.write('', file=sys.stderr, end='')  # clears a progress bar
    try:
        fail(message)
    except SystemExit:
        pass  # with status 1, as after any exception
