"""The output directory of a training run. One process writes to it, and nothing is overwritten.

    ckpt.pt               the latest checkpoint (see checkpoint.py)
    best.pt               the checkpoint with the lowest validation loss
    ckpt-<iteration>.pt   the last N checkpoints, with --keep_checkpoints=N
    metrics.jsonl         one line per log line and per evaluation
    lock                  locked while a training process is running
"""
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from nanoloss.checkpoint import save_checkpoint
from nanoloss.metrics_log import trim_metrics
from nanoloss.signals import first_line, log_line

INTACT = 'saved checkpoints are intact; free some space, then use --init_from=resume'


class RunDir:
    """The output directory of a run, locked by this process until it exits.

    Deletes the partial files of a killed process. The constructor and the methods raise OSError, with a
    message of one line, if another process uses the directory or if it cannot be written.
    """

    def __init__(self, out_dir):
        self.path, self.metrics, self.wandb = Path(out_dir), None, None
        self.lock = FileLock(self.path / 'lock', timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            self.lock_inode = os.stat(self.lock.lock_file).st_ino
            for name in ('ckpt.pt.partial', 'ckpt-*.pt.partial', 'best.pt.partial', 'metrics.jsonl.partial'):
                for partial in self.path.glob(name):
                    partial.unlink()
        except Timeout:
            if os.path.exists(self.lock.lock_file):
                reason = 'another training process uses it; wait until it exits, or'
            else:
                reason = 'no file can be created there;'
            raise OSError(f'--out_dir={out_dir} cannot be used: {reason} choose another directory') from None
        except OSError as e:
            raise OSError(f'--out_dir={out_dir} cannot be used: {e.strerror}; choose another directory') from None

    def start_metrics(self, resume, state, tokens_per_iter):
        """Open metrics.jsonl for the TrainState that the run starts from.

        A resumed run deletes the entries after its checkpoint, because it will log them again. A new run
        first moves the files of an earlier run aside.
        """
        self.tokens_per_iter = tokens_per_iter
        try:
            moved_to = None if resume else move_aside(self.path)
            trim_metrics(self.path / 'metrics.jsonl', state.iter_num, state.last_eval)
            self.metrics = open(self.path / 'metrics.jsonl', 'a', encoding='utf-8')
        except OSError as e:
            remedy = INTACT if resume else 'choose another directory'
            raise OSError(f'--out_dir={self.path} cannot be used: {e.strerror}; {remedy}') from None
        if moved_to:
            log_line(f'{self.path} held an earlier run, which is now in {moved_to} (to continue that run: '
                     f'--init_from=resume --out_dir={moved_to})')

    def start_wandb(self, project, name, run_id, config):
        """Also log to W&B: to a new run, or to the run with this id. Returns the run's id."""
        import wandb
        if run_id and not is_wandb_id(run_id):
            log_line(f'note: W&B cannot continue its run {run_id[:100]!r}, which is not a valid id; starting a new run')
            run_id = ''
        try:
            run = wandb.init(project=project, name=name or self.path.name, dir=self.path, id=run_id or None,
                             resume='allow', config=config)
        except Exception as e:  # no API key, no network: several classes, some of them private
            raise OSError(f'W&B did not start ({first_line(e)}); WANDB_MODE=offline needs no account, and '
                          '--wandb_log=False trains without W&B') from None
        run.define_metric('*', step_metric='iter')
        self.wandb = wandb
        return run.id

    def finish(self, failed):
        """Finish the W&B run, if there is one."""
        if self.wandb:
            self.wandb.finish(exit_code=int(failed))

    def check_ownership(self):
        """Raise OSError if the directory or its lock file is no longer the one that this process locked."""
        try:
            owned = os.stat(self.lock.lock_file).st_ino == self.lock_inode
        except OSError:
            owned = False
        if not owned:
            raise OSError(f'{self.path} was moved, deleted or taken over by another run; this run stops and has not '
                          'written to it since')

    def log(self, state, **values):
        """Append a line with the iteration, tokens and seconds of a TrainState and these values; also log it to W&B."""
        self.check_ownership()
        entry = {'iter': state.iter_num, 'tokens': state.iter_num * self.tokens_per_iter,
                 'seconds': round(state.train_seconds, 3), **values}
        try:
            self.metrics.write(json.dumps(entry, allow_nan=False) + '\n')
            self.metrics.flush()
        except OSError as e:
            raise OSError(f'{self.path}/metrics.jsonl cannot be written ({e.strerror}); {INTACT}') from None
        if self.wandb:
            self.wandb.log(entry)

    def save(self, name, contents, keep=0):
        """Write a checkpoint; with keep > 0 also as ckpt-<iteration>.pt, of which the last `keep` are kept."""
        self.check_ownership()
        try:
            os.fsync(self.metrics.fileno())  # a checkpoint is never ahead of its metrics
            if keep:
                numbered = self.path / f"ckpt-{contents['iter_num']}.pt"
                save_checkpoint(contents, numbered)
                copy_file(numbered, self.path / name)
                prune_checkpoints(self.path, contents['iter_num'], keep)
            else:
                save_checkpoint(contents, self.path / name)
        except OSError as e:
            raise OSError(f'no checkpoint could be saved in {self.path} ({e.strerror}); {INTACT}') from None


def is_wandb_id(run_id):
    """Whether W&B accepts a run id (wandb_settings.py, validate_run_id) and a folder name can contain it."""
    return (run_id == run_id.strip() and not set(run_id) & set(":;,#?/'\\") and run_id.isprintable()
            and len(run_id.encode()) <= 128)


def copy_file(source, target):
    """Replace target by a copy of source, atomically. Not a hard link: writing into one file would change both."""
    partial = Path(f'{target}.partial')
    try:
        shutil.copyfile(source, partial)
        with open(partial, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def numbered_checkpoints(out_dir):
    """Return {iteration: path} of the ckpt-<iteration>.pt files in a directory, in order of iteration."""
    paths = {path.stem.removeprefix('ckpt-'): path for path in Path(out_dir).glob('ckpt-*.pt')}
    return dict(sorted((int(number), path) for number, path in paths.items() if number.isdecimal()))


def prune_checkpoints(out_dir, iter_num, keep):
    """Delete all but the last `keep` of the ckpt-<iteration>.pt files up to iteration iter_num."""
    paths = [path for iteration, path in numbered_checkpoints(out_dir).items() if iteration <= iter_num]
    for path in paths[:-keep]:
        path.unlink()


def move_aside(out_dir):
    """Move the files of an earlier run from out_dir to out_dir.1 (or .2, ...), ckpt.pt last.

    Returns the new directory, or None if there was no earlier run. Raises OSError.
    """
    path = Path(os.path.realpath(out_dir))
    candidates = [path / 'metrics.jsonl', path / 'best.pt', *numbered_checkpoints(path).values(), path / 'ckpt.pt']
    files = [file for file in candidates if file.exists()]
    if not files:
        return None
    same_disk = path.parent.stat().st_dev == path.stat().st_dev  # a rename cannot leave a mount point
    n, prefix = 1, f'{path}.' if same_disk else f'{path}/earlier-'
    while (target := Path(f'{prefix}{n}')).exists():
        n += 1
    target.mkdir()
    for file in files:
        os.rename(file, target / file.name)
    return target


def newest_run(root='out'):
    """Return the directory under root with the most recent checkpoint. Raises FileNotFoundError."""
    checkpoints = [*Path(root).rglob('ckpt.pt'), *Path(root).rglob('best.pt')]
    if not checkpoints:
        raise FileNotFoundError(f'no checkpoint under {root}/; train first: '
                                'python train.py config/train_tinystories_squentropy.py')
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent


def find_checkpoint(checkpoint, out_dir):
    """Return the path of the checkpoint that a script reads, a string.

    Args:
        checkpoint: a path, returned as it is; '' = best.pt of out_dir, or ckpt.pt if there is no best.pt.
        out_dir: the output directory of a run; '' = the newest run under out/.
    Raises FileNotFoundError if both are empty and there is no run.
    """
    if checkpoint:
        return checkpoint
    out_dir = out_dir or newest_run()
    best = f'{out_dir}/best.pt'
    return best if os.path.exists(best) else f'{out_dir}/ckpt.pt'
