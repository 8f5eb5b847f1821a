"""Read and trim metrics.jsonl, the log of a run: one JSON object per line. Does not import torch."""
import json
import os
from pathlib import Path


def read_metrics(path):
    """Yield the entries of a metrics.jsonl, dicts with a number 'iter'.

    Skips damaged lines, such as the last line of a killed run. Yields nothing if there is no such file.
    """
    if not path.exists():
        return
    with open(path, encoding='utf-8', errors='replace') as f:
        for line in f:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get('iter'), (int, float)):
                yield entry


def trim_metrics(path, iter_num, last_eval):
    """Delete the training entries after iteration iter_num and the evaluations after iteration last_eval."""
    if not path.exists():
        return
    kept = [entry for entry in read_metrics(path) if entry['iter'] <= (last_eval if 'val_nats' in entry else iter_num)]
    partial = Path(f'{path}.partial')
    try:
        with open(partial, 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(entry) + '\n' for entry in kept)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
