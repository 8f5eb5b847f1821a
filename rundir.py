"""The folder of a training run: one process at a time, nothing overwritten, nothing left behind.

    ckpt.pt               the last state (see checkpoint.py)
    best.pt               the best one
    ckpt-<iteration>.pt   the last few states, with --keep_checkpoints
    metrics.jsonl         a line for each log line and each evaluation
    lock                  held while a training process is at work here; left empty by one that is gone
"""
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

import checkpoint


def claim(out_dir):
    """Make the folder this process's own until it ends, however it ends; the lock, to be kept.

    What a killed process had half written is deleted. Raises OSError: another process is at work in
    the folder, or nothing can be written there.
    """
    os.makedirs(out_dir, exist_ok=True)
    lock = FileLock(f'{out_dir}/lock', timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OSError('another training process is at work there; wait for its end' if os.path.exists(lock.lock_file)
                      else 'no file can be made there') from None
    for name in ('ckpt*.pt.partial', 'best.pt.partial', 'metrics.jsonl.partial'):
        for partial in Path(out_dir).glob(name):
            partial.unlink()
    return lock


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


def save_last(contents, out_dir, keep):
    """Write ckpt.pt; with keep > 0 as ckpt-<iteration>.pt too, of which the last `keep` up to here stay.

    Raises what checkpoint.save raises.
    """
    last = Path(out_dir) / 'ckpt.pt'
    if not keep:
        return checkpoint.save(contents, last)
    checkpoint.save(contents, path := Path(out_dir) / f"ckpt-{contents['iter_num']}.pt")
    partial = Path(f'{last}.partial')
    try:
        os.link(path, partial)  # the same bytes under two names
    except OSError:  # a file system without links
        shutil.copyfile(path, partial)
    os.replace(partial, last)
    earlier = [path for n, path in numbered(out_dir).items() if n <= contents['iter_num']]
    for path in earlier[:-keep]:
        path.unlink()


def trim_metrics(out_dir, iter_num, last_eval):
    """Leave out of metrics.jsonl what was logged after the checkpoint: the resumed run logs it again."""
    path = Path(out_dir) / 'metrics.jsonl'
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
