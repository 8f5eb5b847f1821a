"""bench.py: each task in its smallest form."""
import json

import pytest
from conftest import run


def bench(task, *flags):
    status, out, err = run('bench.py', task, '--rounds=1', '--seconds=0.01', '--json=True', *flags, timeout=300)
    assert status == 0, err
    return json.loads(out)['rows']


@pytest.mark.slow  # test_gpu_check.py runs one of these rows
@pytest.mark.parametrize('task, only', [
    ('train', 'cross_entropy, 4,096'), ('sample', '10 stories'), ('heads', 'squentropy'),
])
def test_pairs(task, only):
    """A pair has one row, with the speed and memory of both cases."""
    row, = bench(task, f'--only={only}')
    assert row['ours'] > 0 and row['other'] > 0 and row['ratio'] == pytest.approx(row['ours'] / row['other'])
    assert row['ours_bytes'] > 2**25 and row['other_bytes'] > 2**25
    assert ('flops' in row) == (task == 'train')


@pytest.mark.slow
def test_evaluate():
    """The rows of evaluate are times per token, and an evaluation takes longer than a forward pass."""
    rows = bench('evaluate', '--only=mse, 4,096')
    assert len(rows) == 2
    for row in rows:
        assert row['ours'] > row['other'] > 0 and row['ratio'] == pytest.approx(row['ours'] / row['other'])


@pytest.mark.slow
def test_start():
    """The rows of start are positive durations, and --help takes less time than a first iteration."""
    help_row, first_row, data_row = bench('start')
    assert 0 < help_row['ours'] < first_row['ours'] and data_row['ours'] > 0


@pytest.mark.slow
def test_prepare():
    """The row of prepare has the speed of prepare.py and of the loop."""
    row, = bench('prepare')
    assert row['ours'] > 0 and row['other'] > 0


@pytest.mark.slow
def test_table():
    """The last line of the table is the row."""
    status, out, err = run('bench.py', 'sample', '--only=1 story, 4,096', '--rounds=1', '--seconds=0.01')
    assert status == 0, err
    name, cells = out.splitlines()[-1][:44], out.splitlines()[-1][44:].split()
    assert name.startswith('1 story, 4,096 ids') and cells[2] == 'tokens/s' and float(cells[3]) > 0


@pytest.mark.parametrize('arguments', [[], ['heds'], ['sample', '--rounds=0']])
def test_invalid_arguments(arguments):
    """A missing or unknown task and an invalid setting give one line and status 2."""
    status, _, err = run('bench.py', *arguments)
    assert status == 2 and err.startswith('error: ') and err.count('\n') == 1
    assert arguments[-1:] == [] or arguments[-1].lstrip('-').split('=')[0] in err
