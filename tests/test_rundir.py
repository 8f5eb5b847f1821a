"""The folder of a run: one process at a time, nothing overwritten, nothing left behind."""
import json
import os

import pytest

import rundir
import runlog
from test_checkpoint import saved, small


def test_newest_and_set_aside(tmp_path):
    """The newest run is the one written last; setting a run aside moves its files to a fresh folder and no others."""
    for i, name in enumerate(('a', 'b/c', 'd')):
        (tmp_path / name).mkdir(parents=True)
        saved(tmp_path / name / 'ckpt.pt', small())
        os.utime(tmp_path / name / 'ckpt.pt', (i % 2, i % 2))
    assert rundir.newest(tmp_path) == tmp_path / 'b/c'
    (tmp_path / 'a/mine.txt').write_text('keep')
    (tmp_path / 'a.1').mkdir()
    assert f'is now in {tmp_path}/a.2 ' in rundir.set_aside(f'{tmp_path}/a/')[0]
    assert os.listdir(tmp_path / 'a.2') == ['ckpt.pt'] and os.listdir(tmp_path / 'a') == ['mine.txt']
    assert rundir.set_aside(tmp_path / 'a') == rundir.set_aside(tmp_path) == []
    with pytest.raises(FileNotFoundError, match='train first'):
        rundir.newest(tmp_path / 'none')


def test_trim_metrics(tmp_path):
    """Lines after the checkpoint, and one cut short, are dropped; an evaluation counts by last_eval."""
    path = tmp_path / 'metrics.jsonl'
    lines = [{'iter': 10, 'loss': 1}, {'iter': 10, 'val_nats': 1}, {'iter': 15, 'loss': 1}, {'iter': 20, 'loss': 1}]
    path.write_text('\n'.join(map(json.dumps, lines)) + '\n{"iter": 2')
    runlog.trim(path, 15, 10)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:3]
    runlog.trim(path, 10, -1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:1]
