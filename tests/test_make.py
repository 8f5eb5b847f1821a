"""make.py, without installing anything."""
import pytest
from conftest import cold


@pytest.mark.parametrize('flags', [[], ['Story'], ['train'], ['story', '--n_layer=2']])
def test_unknown_task(flags):
    """Anything but `story` and `test` is refused with one line that names both."""
    status, _, err = cold('make.py', *flags)
    assert status == 2 and err.count('\n') == 1 and 'story' in err and 'test' in err


def test_help():
    """--help lists the tasks and does nothing."""
    status, out, _ = cold('make.py', '--help')
    assert status == 0 and 'story' in out and 'test' in out
