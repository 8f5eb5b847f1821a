"""Signals, one-line errors and log lines.

    Ctrl-C (SIGINT), SIGTERM, SIGHUP (the terminal closed)   finish the iteration, save, exit with 128 + signal number
    SIGUSR1                                                  save after this iteration and continue
    a second Ctrl-C                                          exit immediately

Only a training loop that called install_handlers() behaves like this. Before that, and in the other
scripts, a signal ends the script as usual. A signal that was ignored at startup (nohup) stays ignored.
"""
import errno
import os
import re
import signal
import sys

from configurator import fail, printable, report_missing_package

stop_signal = 0         # number of the signal that asked the run to stop; 0 = none
save_requested = False  # whether SIGUSR1 asked for a checkpoint
memory_hint = ''        # what the out-of-memory error suggests

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|cannot allocate memory|not enough memory|"
                           'size calculation overflowed', re.IGNORECASE)
CONNECTION_LOST = re.compile('connection (closed|reset)|broken pipe|remote process exited|ncclRemoteError',
                             re.IGNORECASE)


def install_excepthook(hint):
    """Report out-of-memory and file errors in one line instead of a traceback.

    Until install_handlers() is called, Ctrl-C ends the script without a traceback and SIGUSR1 is ignored.

    Args:
        hint: the remedy that an out-of-memory error suggests.
    """
    global memory_hint
    memory_hint = hint
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, 'SIGUSR1'):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.excepthook = print_error


def install_handlers():
    """Record signals in `stop_signal` and `save_requested`, which the training loop reads between iterations."""
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def on_signal(number, frame):
        global stop_signal, save_requested
        if number == getattr(signal, 'SIGUSR1', None):
            save_requested = True
            return
        stop_signal = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        if number == getattr(signal, 'SIGHUP', None):
            redirect_to_null(*terminals)

    for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'):
        number = getattr(signal, name, None)  # Windows has only the first two
        if number and (name == 'SIGUSR1' or signal.getsignal(number) != signal.SIG_IGN):
            signal.signal(number, on_signal)
    sys.excepthook = print_error  # wandb has installed its own


def log_line(text):
    """Print above the progress bar. If the reader of stdout is gone (| head), ask the run to stop."""
    global stop_signal
    from tqdm import tqdm  # here, because sample.py does not need it
    try:
        tqdm.write(printable(text))
        sys.stdout.flush()
    except OSError as e:
        redirect_to_null(1)
        if e.errno in (errno.EPIPE, errno.EIO):
            stop_signal = stop_signal or getattr(signal, 'SIGPIPE', signal.SIGTERM)
        else:
            print(f'note: stdout can no longer be written ({e.strerror}); the run continues', file=sys.stderr)


def redirect_to_null(*descriptors):
    """Send further output of these file descriptors to os.devnull."""
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in descriptors:
        os.dup2(null, fd)


def is_out_of_memory(error):
    """Return whether an exception means that the CPU or GPU ran out of memory."""
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


def first_line(error):
    """Return the first line of an exception's message, cut to 200 characters, or its class if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def print_error(kind, error, traceback):
    """The excepthook: one line for out-of-memory, lost-connection and file errors, the traceback for the rest."""
    if issubclass(kind, BrokenPipeError):
        return redirect_to_null(1)  # sample.py | head
    if is_out_of_memory(error):
        reason = ' '.join(str(error).split('. GPU')[0].split())[:200]
        message = f'out of memory ({reason or kind.__name__}); {memory_hint}'
    elif 'TORCHELASTIC_RUN_ID' in os.environ and issubclass(kind, RuntimeError) and CONNECTION_LOST.search(str(error)):
        message = f'another process failed; see its own error ({first_line(error)})'
    elif issubclass(kind, OSError):
        message = str(error)
    else:
        return report_missing_package(kind, error, traceback)
    wandb = sys.modules.get('wandb')
    if wandb and getattr(wandb, 'run', None):
        wandb.finish(exit_code=1)
    if 'tqdm' in sys.modules:
        sys.modules['tqdm'].tqdm.write('', file=sys.stderr, end='')  # clear the progress bar
    try:
        fail(message)
    except SystemExit:
        pass  # Python exits with status 1 after the excepthook
