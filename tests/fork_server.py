"""A process that has imported torch and forks to run scripts, so that a test need not wait for the import.

It reads one JSON object per line from stdin:

    {"command": [script, *flags], "cwd": ..., "env": {...}, "out": file, "err": file, "limits": {...}}
                                                      -> prints the process id
    {"wait": pid}                                     -> prints its exit status, as a shell reports it
"""
import atexit
import contextlib
import importlib
import json
import os
import resource
import sys
import types
import weakref


def run_script(job):
    """Do what `python script flags` does, in a forked process. Never returns."""
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for fd, name, flags in ((0, os.devnull, os.O_RDONLY), (1, job['out'], write), (2, job['err'], write)):
        os.dup2(os.open(name, flags, 0o600), fd)
    for fd, mode, name in ((1, 'w', 'stdout'), (2, 'w', 'stderr')):
        setattr(sys, name, open(fd, mode, encoding='utf-8', buffering=1 if fd == 2 else -1))
    weakref.finalize._registry.clear()  # torch's cleanup at exit belongs to the parent and takes 50 ms
    os.chdir(job['cwd'])
    os.environ.update(job['env'])
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    for name, limit in job['limits'].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    path = os.path.abspath(job['command'][0])
    sys.argv, sys.path[0] = job['command'], os.path.dirname(path)
    module = sys.modules['__main__'] = types.ModuleType('__main__')
    module.__file__ = job['command'][0]
    status = 0
    try:
        with open(path, encoding='utf-8') as f:
            exec(compile(f.read(), path, 'exec'), module.__dict__)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = 120
    os._exit(status)


if __name__ == '__main__':
    import torch
    for name in ('matplotlib.pyplot', 'numpy', 'optuna', 'tiktoken', 'tokenizers', 'torch._dynamo', 'tqdm'):
        with contextlib.suppress(ModuleNotFoundError):  # a script that needs it says so
            importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        if 'wait' in job:
            answer = os.waitstatus_to_exitcode(os.waitpid(job['wait'], 0)[1])
            answer = answer if answer >= 0 else 128 - answer
        else:
            answer = os.fork()
            if not answer:
                run_script(job)
        print(answer, flush=True)
