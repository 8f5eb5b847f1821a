"""The folder of a training run: one process at a time, nothing overwritten, nothing left behind.

    ckpt.pt               the last state (see checkpoint.py)
    best.pt               the best one
    ckpt-<iteration>.pt   the last few states, with --keep_checkpoints
    metrics.jsonl         a line for each log line and each evaluation
    lock                  held while a training process is at work here; left empty by one that is gone
    launch                of a run that torchrun started, by what it knows the run again when it restarts it
"""
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

import checkpoint
import processes


SAFE = 'what was saved before is as it was; make room, then --init_from=resume'


class RunDir:
    """The folder of a run, this process's own until it ends, however it ends.

    What a killed process had half written is deleted. Raises OSError with one clear line, here and in
    its methods: another process is at work in the folder, or nothing can be written there.
    """

    def __init__(self, out_dir):
        self.path, self.metrics = Path(out_dir), None
        self.lock = FileLock(self.path / 'lock', timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            for name in ('ckpt*.pt.partial', 'best.pt.partial', 'metrics.jsonl.partial'):
                for partial in self.path.glob(name):
                    partial.unlink()
        except Timeout:
            reason = 'another training process is at work there; wait for its end, or' if \
                os.path.exists(self.lock.lock_file) else 'no file can be made there;'
            raise OSError(f'--out_dir={out_dir} cannot be used: {reason} choose another') from None
        except OSError as e:
            raise OSError(f'--out_dir={out_dir} cannot be used: {e.strerror}; choose another') from None

    def begin(self, resume, iter_num, last_eval):
        """Open metrics.jsonl for a resumed run, without what was logged after its checkpoint, since it logs
        that again; or for a new one: then an earlier run is moved aside, to the folder that is returned."""
        try:
            aside = None if resume else set_aside(self.path)
            if processes.launch:
                (self.path / 'launch').write_text(processes.launch, encoding='utf-8')
            trim_metrics(self.path / 'metrics.jsonl', iter_num, last_eval)
            self.metrics = open(self.path / 'metrics.jsonl', 'a', encoding='utf-8')
            return aside
        except OSError as e:
            raise OSError(f'--out_dir={self.path} cannot be used: {e}; choose another') from None

    def log(self, **values):
        """A line of metrics.jsonl. Raises OSError."""
        try:
            self.metrics.write(json.dumps(values, allow_nan=False) + '\n')
            self.metrics.flush()
        except OSError as e:
            raise OSError(f'{self.path}/metrics.jsonl cannot be written ({e.strerror}); {SAFE}') from None

    def save(self, contents, best=False, keep=0):
        """Write best.pt, or ckpt.pt; that with keep > 0 as ckpt-<iteration>.pt too, of which the last `keep`
        up to here stay. Raises OSError."""
        try:
            os.fsync(self.metrics.fileno())  # no checkpoint is ahead of its metrics
            last = self.path / ('best.pt' if best else 'ckpt.pt')
            path = self.path / f"ckpt-{contents['iter_num']}.pt" if keep else last
            checkpoint.save(contents, path)
            if keep:
                link(path, last)
                for path in [path for n, path in numbered(self.path).items() if n <= contents['iter_num']][:-keep]:
                    path.unlink()
        except OSError as e:
            raise OSError(f'no checkpoint could be saved in {self.path} ({e.strerror}); {SAFE}') from None


def link(path, name):
    """Give a file a second name, in place of what had it; at any instant one of the two is there."""
    partial = Path(f'{name}.partial')
    try:
        os.link(path, partial)
    except OSError:  # a file system without links
        shutil.copyfile(path, partial)
    os.replace(partial, name)


def numbered(out_dir):
    """{iteration: path} of the ckpt-<iteration>.pt in the folder, in order."""
    found = {path.stem.removeprefix('ckpt-'): path for path in Path(out_dir).glob('ckpt-*.pt')}
    return dict(sorted((int(n), path) for n, path in found.items() if n.isdecimal()))


def set_aside(out_dir):
    """Move an earlier run's files from out_dir to out_dir.1 (or .2, ...); that folder, or None. Raises OSError."""
    files = [path for name in ('ckpt.pt', 'best.pt', 'metrics.jsonl') if (path := Path(out_dir) / name).exists()]
    files += numbered(out_dir).values()
    if not files:
        return None
    n = 1
    while (aside := Path(f'{os.path.normpath(out_dir)}.{n}')).exists():
        n += 1
    aside.mkdir()
    for path in files:
        os.rename(path, aside / path.name)
    return aside


def trim_metrics(path, iter_num, last_eval):
    """Leave out what was logged after iteration iter_num, and evaluations after last_eval."""
    if not path.exists():
        return
    kept = []
    with open(path, encoding='utf-8', errors='replace') as f:
        for line in f:
            try:
                entry = json.loads(line)
                if entry['iter'] <= (last_eval if 'val_nats' in entry else iter_num):
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # a kill cut this line short
                continue
    with open(f'{path}.partial', 'w', encoding='utf-8') as f:
        f.writelines(kept)
        f.flush()
        os.fsync(f.fileno())
    os.replace(f'{path}.partial', path)


def newest(root='out'):
    """The folder under root whose checkpoint was written last. Raises FileNotFoundError."""
    found = [*Path(root).rglob('ckpt.pt'), *Path(root).rglob('best.pt')]
    if not found:
        raise FileNotFoundError(f'there is no checkpoint under {root}/; train first: '
                                'python train.py config/train_tinystories_squentropy.py')
    return max(found, key=lambda path: path.stat().st_mtime).parent


def restarted(out_dir):
    """Whether torchrun has started these processes again: 1, then the run in the folder is its own; 2, with a
    checkpoint to go on from; else 0."""
    own = processes.first and processes.launch and read_launch(out_dir) == processes.launch
    return processes.agree(own * (1 + os.path.exists(f'{out_dir}/ckpt.pt')) if own else 0)[0]


def read_launch(out_dir):
    try:
        return (Path(out_dir) / 'launch').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return ''
