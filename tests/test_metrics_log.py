"""metrics.jsonl is read around damaged lines and trimmed to a checkpoint."""
import json

from nanoloss.metrics_log import read_metrics, trim_metrics

LINES = [{'iter': 10, 'loss': 1}, {'iter': 10, 'val_nats': 1}, {'iter': 15, 'loss': 1}, {'iter': 20, 'loss': 1}]


def test_read(tmp_path):
    """Lines that are no entries are skipped; a missing file has no entries."""
    path = tmp_path / 'metrics.jsonl'
    assert list(read_metrics(path)) == []
    good = b'\n'.join(json.dumps(line).encode() for line in LINES)
    path.write_bytes(good + b'\n[1]\n5\n{"loss": 1}\n{"iter": "2"}\n{"iter": null}\n\xff\n\n{"iter": 2')
    assert list(read_metrics(path)) == LINES


def test_trim(tmp_path):
    """Lines after the checkpoint, and a truncated one, are deleted; evaluations count by last_eval."""
    path = tmp_path / 'metrics.jsonl'
    trim_metrics(path, 15, 10)
    assert list(tmp_path.iterdir()) == []
    path.write_text('\n'.join(map(json.dumps, LINES)) + '\n{"iter": 2')
    trim_metrics(path, 15, 10)
    assert [json.loads(line) for line in path.read_text().splitlines()] == LINES[:3]
    trim_metrics(path, 10, -1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == LINES[:1]
    assert list(tmp_path.iterdir()) == [path]
