"""metrics.jsonl of a run: read without torch, by whoever looks at runs."""
import json
import os
from pathlib import Path


def entries(path):
    """The lines of a metrics.jsonl, dicts; without one that a kill has cut short."""
    if not path.exists():
        return
    with open(path, encoding='utf-8', errors='replace') as f:
        for line in f:
            try:
                entry = json.loads(line)
                entry['iter'] + 0  # noqa: B018
            except (ValueError, KeyError, TypeError):
                continue
            yield entry


def trim(path, iter_num, last_eval):
    """Leave out what was logged after iteration iter_num, and evaluations after last_eval."""
    kept = [entry for entry in entries(path) if entry['iter'] <= (last_eval if 'val_nats' in entry else iter_num)]
    if not path.exists():
        return
    partial = Path(f'{path}.partial')
    try:
        with open(partial, 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(entry) + '\n' for entry in kept)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
