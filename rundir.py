"""The folder of a training run: one process at a time, nothing overwritten, nothing left behind.

    ckpt.pt               the last state (see checkpoint.py)
    best.pt               the best one
    ckpt-<iteration>.pt   the last few states, with --keep_checkpoints
    best-<iteration>.pt, metrics-<iteration>.jsonl    what a run had made that then went back to an earlier state
    metrics.jsonl         a line for each log line and each evaluation
    lock                  held while a training process is at work here; left empty by one that is gone
    launch                of a run that torchrun started, by what it knows the run again when it restarts it
"""
import itertools
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

import checkpoint
import processes
import runlog


SAFE = 'what was saved before is as it was; make room, then --init_from=resume'


class RunDir:
    """The folder of a run, this process's own until it ends, however it ends.

    What a killed process had half written is deleted. Raises OSError with one clear line, here and in
    its methods: another process is at work in the folder, or nothing can be written there.
    """

    def __init__(self, out_dir):
        self.path, self.metrics, self.wandb = Path(out_dir), None, None
        self.lock = FileLock(self.path / 'lock', timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            self.inode = os.stat(self.lock.lock_file).st_ino
            for name in ('ckpt.pt.partial', 'ckpt-*.pt.partial', 'best.pt.partial', 'metrics.jsonl.partial'):
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
        that again; or for a new one, whose folder an earlier run leaves. What moved where, a list."""
        try:
            moved = self.go_back(iter_num, last_eval) if resume else set_aside(self.path)
            if processes.launch:
                (self.path / 'launch').write_text(processes.launch, encoding='utf-8')
            runlog.trim(self.path / 'metrics.jsonl', iter_num, last_eval)
            self.metrics = open(self.path / 'metrics.jsonl', 'a', encoding='utf-8')
            return moved
        except OSError as e:
            way = SAFE if resume else 'choose another'
            raise OSError(f'--out_dir={self.path} cannot be used: {e.strerror}; {way}') from None

    def watch(self, project, name, id, config):
        """Log to W&B too: to a new run there, or to that of an id. Its id. Raises OSError."""
        import wandb
        try:
            run = wandb.init(project=project, name=name or self.path.name, dir=self.path, id=id or None,
                             resume='allow', config=config)
        except Exception as e:  # no key, no network: several classes, some private
            raise OSError(f'W&B did not start ({(str(e) or repr(e)).splitlines()[0]}); WANDB_MODE=offline needs no '
                          'account') from None
        run.define_metric('*', step_metric='iter')
        self.wandb = wandb
        return run.id

    def end(self, failed):
        if self.wandb:
            self.wandb.finish(exit_code=int(failed))

    def go_back(self, iter_num, last_eval):
        """Give what a run had made beyond the checkpoint that it is resumed from names of its own, so that
        it stays. (After a kill this may be a best.pt that is made again: then save() deletes it.)"""
        best, metrics = self.path / 'best.pt', self.path / 'metrics.jsonl'
        if not metrics.exists():
            return [f'{metrics} is gone, so what was logged until iteration {iter_num} is missing in it']
        lost = [entry['iter'] for entry in runlog.entries(metrics) if 'val_nats' in entry and entry['iter'] > last_eval]
        said = []
        if len(lost) > 1:
            shutil.copyfile(metrics, later := free(self.path / f'metrics-{max(lost)}.jsonl'))
            said.append(f'the metrics of later iterations stay in {later}')
        n, nats = summary(best)
        if n > iter_num:
            later = self.path / f'best-{n}.pt'
            os.replace(best, later := later if summary(later) == (n, nats) else free(later))
            said.append(f'the best of later iterations is now {later}')
        return said if len(lost) > 1 else []

    def still_ours(self):
        """Raises OSError where the folder, or the lock in it, is no longer the one that this run has taken."""
        try:
            if os.stat(self.lock.lock_file).st_ino == self.inode:
                return
        except OSError:
            pass
        raise OSError(f'{self.path} was moved, deleted or taken by another run while this one was at work in it; '
                      'this run ends, and has written nothing more there')

    def log(self, **values):
        """A line of metrics.jsonl. Raises OSError."""
        self.still_ours()
        try:
            self.metrics.write(json.dumps(values, allow_nan=False) + '\n')
            self.metrics.flush()
        except OSError as e:
            raise OSError(f'{self.path}/metrics.jsonl cannot be written ({e.strerror}); {SAFE}') from None
        if self.wandb:
            self.wandb.log(values)

    def save(self, contents, best=False, keep=0):
        """Write best.pt, or ckpt.pt; that with keep > 0 as ckpt-<iteration>.pt too, of which the last `keep`
        up to here stay. Raises OSError."""
        self.still_ours()
        try:
            os.fsync(self.metrics.fileno())  # no checkpoint is ahead of its metrics
            last = self.path / ('best.pt' if best else 'ckpt.pt')
            path = self.path / f"ckpt-{contents['iter_num']}.pt" if keep else last
            checkpoint.save(contents, path)
            before = self.path / f"best-{contents['iter_num']}.pt"  # by a start that was killed before it wrote ckpt.pt
            if best and summary(before) == (contents['iter_num'], contents['best_val_loss']):
                before.unlink()
            if keep:
                copy(path, last)
                for path in [path for n, path in numbered(self.path).items() if n <= contents['iter_num']][:-keep]:
                    path.unlink()
        except OSError as e:
            raise OSError(f'no checkpoint could be saved in {self.path} ({e.strerror}); {SAFE}') from None


def summary(path):
    """(iteration, nats) of a checkpoint; (-1, -1) where there is none, or a damaged one."""
    try:
        loaded = checkpoint.load(path)
        return loaded['iter_num'], loaded['best_val_loss']
    except (OSError, ValueError):
        return -1, -1


def free(path):
    """The path, or where there is something, the first of path-1, path-2, ... (before the suffix) that is free."""
    candidates = (path.with_stem(f'{path.stem}-{n}') for n in itertools.count(1))
    return next(p for p in itertools.chain([path], candidates) if not p.exists())


def copy(path, name):
    """Copy a file in place of another; at any instant one of the two is there. (No link: whoever copies over
    one of two linked files writes into both.)"""
    partial = Path(f'{name}.partial')
    try:
        shutil.copyfile(path, partial)
        with open(partial, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(partial, name)
    finally:
        partial.unlink(missing_ok=True)


def numbered(out_dir):
    """{iteration: path} of the ckpt-<iteration>.pt in the folder, in order."""
    found = {path.stem.removeprefix('ckpt-'): path for path in Path(out_dir).glob('ckpt-*.pt')}
    return dict(sorted((int(n), path) for n, path in found.items() if n.isdecimal()))


def set_aside(out_dir):
    """Move an earlier run's files from out_dir to out_dir.1 (or .2, ...), ckpt.pt last. Says so in a list.
    Raises OSError."""
    path = Path(os.path.realpath(out_dir))
    names = 'metrics.jsonl', 'metrics-*.jsonl', 'best.pt', 'best-*.pt'
    files = [file for name in names for file in path.glob(name)]
    files += [file for file in (*numbered(path).values(), path / 'ckpt.pt') if file.exists()]
    if not files:
        return []
    same_disk = path.parent.stat().st_dev == path.stat().st_dev  # no file moves out of a mount point
    n, beside = 1, f'{path}.' if same_disk else f'{path}/earlier-'
    while (aside := Path(f'{beside}{n}')).exists():
        n += 1
    aside.mkdir()
    for file in files:
        os.rename(file, aside / file.name)
    return [f'{out_dir} held an earlier run, which is now in {aside} (to go on with that one: --init_from=resume '
            f'--out_dir={aside})']


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
