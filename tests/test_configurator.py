"""Settings, config files and flags: what applies, what is refused, and how it is said."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configurator import configure, fail

REPO = Path(__file__).resolve().parents[1]

SCRIPT = '''"""Train a tiny thing.

More about it.
"""
import os
from configurator import configure

# -----------------------------------------------------------------------------
# i/o
out_dir = 'out'         # where things go
eval_only = False       # evaluate once = and stop
# -----------------------------------------------------------------------------
# model
n_layer = 4             # transformer blocks
n_head = 4
n_embd = 16 * 8         # channels,
                        # a multiple of n_head
bias: bool = True       # in "linear" # layers
dropout = 0.0           # 0 for one epoch
min_x = -1.5            # may be negative
_private = 3
path = os.path.join('a', 'b')
sizes = [1, 2]
nothing = None
first = second = 1
# -----------------------------------------------------------------------------
config = configure(globals(), rules=[
    'n_layer >= 1',
    ('n_embd % n_head == 0', 'choose another n_head'),
    '0 <= dropout < 1',
])
late = 1                # no setting: below the call
import a_module_that_is_heavy
'''

DEFAULTS = dict(out_dir='out', eval_only=False, n_layer=4, n_head=4, n_embd=128, bias=True, dropout=0.0, min_x=-1.5)
RULES = ['n_layer >= 1', ('n_embd % n_head == 0', 'choose another n_head'), '0 <= dropout < 1']


@pytest.fixture(autouse=True)
def script(tmp_path, monkeypatch):
    """the script of every test, in a folder of its own that is also the current one"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'train.py').write_text(SCRIPT)
    (tmp_path / 'config').mkdir()
    return tmp_path / 'train.py'


def write(path, text):
    Path(path).write_text(text)
    return str(path)


def run(*argv, rules=RULES, file='train.py'):
    """what configure returns for these arguments"""
    settings = dict(DEFAULTS, __file__=file, sizes=[1, 2], nothing=None, path='a/b')
    config = configure(settings, rules=rules, argv=list(argv))
    assert {name: settings[name] for name in DEFAULTS} == config
    return config


def refused(capsys, *argv, **kw):
    """the lines on stderr of a run that has to end with status 2"""
    with pytest.raises(SystemExit) as e:
        run(*argv, **kw)
    assert e.value.code == 2
    out, err = capsys.readouterr()
    assert out == ''
    lines = err.splitlines()
    assert all(line.startswith('error: ') for line in lines)
    return [line.removeprefix('error: ') for line in lines]


def refused_once(capsys, *argv, **kw):
    lines = refused(capsys, *argv, **kw)
    assert len(lines) == 1, lines
    return lines[0]


# -----------------------------------------------------------------------------
# what applies

def test_no_arguments_give_the_defaults():
    """The settings are the public constants above the call, and nothing else."""
    assert run() == DEFAULTS


def test_argv_defaults_to_the_command_line(monkeypatch):
    """Without argv the process' own arguments count."""
    monkeypatch.setattr(sys, 'argv', ['train.py', '--n_layer=7'])
    assert configure(dict(DEFAULTS, __file__='train.py', sizes=[], nothing=None))['n_layer'] == 7


def test_settings_are_updated_in_place_and_returned_as_a_copy():
    """The globals change, and changing the returned dict does not change them."""
    settings = dict(DEFAULTS, __file__='train.py', sizes=[], nothing=None)
    config = configure(settings, argv=['--n_layer=7'])
    assert settings['n_layer'] == config['n_layer'] == 7
    config['n_layer'] = 8
    assert settings['n_layer'] == 7


def test_later_wins():
    """Files and flags apply in the order given, whichever kind comes first."""
    a = write('config/a.py', 'n_layer = 1\nn_head = 2\n')
    b = write('config/b.py', 'n_layer = 2\n')
    assert run(a, b)['n_layer'] == 2
    assert run(b, a)['n_layer'] == 1
    assert run(a, b)['n_head'] == 2
    assert run(a, '--n_layer=9')['n_layer'] == 9
    assert run('--n_layer=9', a)['n_layer'] == 1
    assert run('--n_layer=9', '--n_layer', '8')['n_layer'] == 8


@pytest.mark.parametrize('argv, name, value', [
    (['--n_layer=12'], 'n_layer', 12),
    (['--n_layer', '12'], 'n_layer', 12),
    (['--dropout=0.5'], 'dropout', 0.5),
    (['--dropout=1e-3'], 'dropout', 1e-3),
    (['--dropout=0'], 'dropout', 0.0),
    (['--min_x=-3'], 'min_x', -3.0),
    (['--min_x', '-3'], 'min_x', -3.0),
    (['--min_x', '-1e-3'], 'min_x', -1e-3),
    (['--eval_only=True'], 'eval_only', True),
    (['--eval_only', 'true'], 'eval_only', True),
    (['--bias=False'], 'bias', False),
    (['--bias', 'false'], 'bias', False),
    (['--out_dir=a'], 'out_dir', 'a'),
    (['--out_dir', 'a'], 'out_dir', 'a'),
    (['--out_dir='], 'out_dir', ''),
    (['--out_dir', ''], 'out_dir', ''),
    (['--out_dir=1e-3'], 'out_dir', '1e-3'),
    (['--out_dir=007'], 'out_dir', '007'),
    (['--out_dir=True'], 'out_dir', 'True'),
    (['--out_dir=None'], 'out_dir', 'None'),
    (['--out_dir="a"'], 'out_dir', '"a"'),
    (['--out_dir=a=b=c'], 'out_dir', 'a=b=c'),
    (['--out_dir', 'a=b'], 'out_dir', 'a=b'),
    (['--out_dir', '-1'], 'out_dir', '-1'),
    (['--out_dir', 'config/a.py'], 'out_dir', 'config/a.py'),
    (['--out_dir=--help me'], 'out_dir', '--help me'),
    (['--out_dir=two words\n'], 'out_dir', 'two words\n'),
])
def test_flag_is_taken(argv, name, value):
    """A flag sets one setting to the value and the type that was meant, and no other."""
    config = run(*argv)
    assert config == dict(DEFAULTS, **{name: value})
    assert type(config[name]) is type(value)


@pytest.mark.parametrize('flag, found', [
    ('--n_layer=four', "'four'"), ('--n_layer=1.0', "'1.0'"), ('--n_layer=1e3', "'1e3'"), ('--n_layer=True', "'True'"),
    ('--n_layer=', "''"), ('--n_layer=nan', "'nan'"), ('--n_layer=0x10', "'0x10'"), ('--n_layer=2*2', "'2*2'"),
    ('--n_layer=None', "'None'"), ('--n_layer="3"', "'\"3\"'"), ('--n_layer=' + '9' * 5000, "'999"),
    ('--dropout=nan', "'nan'"), ('--dropout=inf', "'inf'"), ('--dropout=-inf', "'-inf'"),
    ('--dropout=1e999', "'1e999'"),
    ('--dropout=' + '9' * 400, "'999"), ('--dropout=True', "'True'"), ('--dropout=low', "'low'"), ('--dropout=', "''"),
    ('--dropout=1e-3x', "'1e-3x'"),
    ('--eval_only=1', "'1'"), ('--eval_only=0', "'0'"), ('--eval_only=yes', "'yes'"), ('--eval_only=', "''"),
    ('--eval_only=TRUE', "'TRUE'"),
])
def test_flag_of_a_wrong_type_is_refused(capsys, flag, found):
    """The one line has the flag, the value found and a flag to copy that would be taken."""
    line = refused_once(capsys, flag)
    assert line.startswith(flag + ': ') and f'found {found}' in line
    name = flag[2:].partition('=')[0]
    run(next(word for word in line.split()[::-1] if word.startswith(f'--{name}=')))


@pytest.mark.parametrize('line, value', [
    ('n_layer = 12', 12), ('dropout = 0.5', 0.5), ('dropout = 0', 0.0), ('eval_only = True', True),
    ("out_dir = '1'", '1'),
    ('n_layer = n_layer * 3', 12), ('n_layer += 1', 5), ('n_layer: int = 2', 2),
])
def test_config_value_is_taken(line, value):
    """A config file assigns in Python, the current values at hand."""
    name = line.replace(':', ' ').split()[0]
    config = run(write('a.py', line))
    assert config == dict(DEFAULTS, **{name: value})
    assert type(config[name]) is type(value)


@pytest.mark.parametrize('name, value', [
    ('n_layer', '1.0'), ('n_layer', '1e3'), ('n_layer', 'True'), ('n_layer', "'4'"), ('n_layer', 'None'),
    ('n_layer', '[4]'),
    ('n_layer', 'print'), ('dropout', 'True'), ('dropout', "'0.1'"), ('dropout', "float('nan')"), ('dropout', '1e999'),
    ('dropout', '-1e999'), ('dropout', '10 ** 400'), ('eval_only', '1'), ('eval_only', '0'), ('eval_only', "'True'"),
    ('out_dir', '1'), ('out_dir', 'None'), ('out_dir', "b'out'"), ('out_dir', "__import__('pathlib').Path('a')"),
    ('out_dir', "['a\\n' * 99] * 99"),
])
def test_config_value_of_a_wrong_type_is_refused(capsys, name, value):
    """Config files are checked as flags are, and the line says where."""
    line = refused_once(capsys, write('config/a.py', f'\n{name} = {value}\n'))
    assert line.startswith(f'config/a.py:2: {name} takes ') and 'found ' in line and f'write it like {name} = ' in line


# -----------------------------------------------------------------------------
# mistakes

def test_all_mistakes_are_said_at_once(capsys):
    """Each mistake of each file, each flag and each rule has its own line, argument by argument."""
    a = write('config/a.py', "n_layr = 3\nn_layer = '3'\n")
    b = write('config/b.py', 'n_layer = = 1\n')
    lines = refused(capsys, '--bias=2', a, b, 'config/none.py', 'stray', '--who=3', '--eval_only', '--n_head=3',
                    '--n_embd=100', '--dropout=2')
    starts = ['--bias=2: ', 'config/a.py:2: ', 'config/a.py:1: ', 'config/b.py:1: ', 'config/none.py: ', "'stray' is ",
              '--who=3: ', '--eval_only needs a value', 'n_embd % n_head == 0 ', '0 <= dropout < 1 ']
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts)), lines


def test_mistakes_change_nothing(capsys):
    """The settings stay as they were where anything is wrong."""
    settings = dict(DEFAULTS, __file__='train.py', sizes=[], nothing=None)
    before = dict(settings)
    with pytest.raises(SystemExit):
        configure(settings, argv=['--n_layer=7', '--n_head=x'])
    assert settings == before


@pytest.mark.parametrize('argv, says', [
    (['--n_layr=3'], "--n_layr=3: unknown setting 'n_layr'; did you mean --n_layer?"),
    (['--n-layer', '3'], "--n-layer 3: unknown setting 'n-layer'; did you mean --n_layer?"),
    (['--N_LAYER=3'], 'did you mean --n_layer?'),
    (['--n_layr'], "--n_layr: unknown setting 'n_layr'; did you mean --n_layer?"),
    (['--zzz=3'], "--zzz=3: unknown setting 'zzz'; python train.py --help lists"),
    (['--sizes=3'], "unknown setting 'sizes'"), (['--nothing=3'], "unknown setting 'nothing'"),
    (['--_private=4'], "unknown setting '_private'"), (['--late=4'], "unknown setting 'late'"),
    (['--path=4'], "unknown setting 'path'"), (['--first=4'], "unknown setting 'first'"),
    (['--=4'], "unknown setting ''"), (['--'], "unknown setting ''"),
    (['--a\nb=4'], 'unknown setting'),
    (['--eval_only'], '--eval_only needs a value: --eval_only=True'),
    (['--bias', '--n_layer=3'], '--bias needs a value: --bias=True'),
    (['--n_layer'], '--n_layer needs a value: --n_layer=4'),
    (['--out_dir', '--n_layer=3'], '--out_dir needs a value: --out_dir=out'),
    (['lr'], "'lr' is neither a config file (*.py) nor a flag (--key=value)"),
    (['n_layer=3'], "'n_layer=3' is neither a config file (*.py) nor a flag (--key=value); did you mean --n_layer=3?"),
    (['-n_layer=3'], 'did you mean --n_layer=3?'),
    (['config/small'], 'did you mean config/small.py?'),
    ([''], "'' is neither"),
    (['config/smal.py'], 'config/smal.py: no such config file'),
    (['config/smal.py'], 'did you mean config/small.py?'),
    (['smal.py'], 'did you mean config/small.py?'),
    (['elsewhere/small.py'], 'did you mean config/small.py?'),
    (['all.py'], 'did you mean config/small.py?'),
    (['zzzzzzzz.py'], 'zzzzzzzz.py: no such config file, here or in '),
    (['config/folder.py'], 'config/folder.py: no such config file'),
])
def test_mistaken_argument(capsys, argv, says):
    """One line has what was asked and the nearest thing that exists."""
    write('config/small.py', 'n_layer = 2\n')
    os.mkdir('config/folder.py')
    assert says in refused_once(capsys, *argv)


def test_earlier_mistake_is_told_though_a_later_value_is_good(capsys):
    """A wrong file is wrong, also where a flag overrides it."""
    line = refused_once(capsys, write('a.py', 'n_layer = 1.5\n'), '--n_layer=3')
    assert line.startswith('a.py:1: n_layer takes a whole number (int), found 1.5 (float)')


@pytest.mark.parametrize('source, says', [
    ('n_layer = 1\nn_head = = 2\n', 'a.py:2: SyntaxError: invalid syntax'),
    ('n_layer = (1\n', 'a.py:1: SyntaxError: '),
    ('n_layer = 1\nif bias:\nn_layer = 2\n', 'a.py:3: IndentationError: '),
    ('n_layer = 1\nn_head = no_such_name\n', "a.py:2: NameError: name 'no_such_name' is not defined"),
    ('def f():\n    return 1 / 0\nn_head = f()\n', 'a.py:2: ZeroDivisionError: '),
    ('import os\nos.listdir("/none/such")\n', 'a.py:2: FileNotFoundError: '),
    ('raise ValueError("one\\ntwo")\n', 'a.py:1: ValueError: one two'),
    ('raise SystemExit(0)\n', 'a.py:1: SystemExit: 0'),
    ('from no_such_base import *\n', "a.py:1: ModuleNotFoundError: No module named 'no_such_base'"),
    ('from broken import *\n', 'broken.py:2: SyntaxError: '),
    ('\nfrom raising import *\n', 'raising.py:3: ValueError: in the base'),
    ('n_layer = 1\0\n', 'a.py'),
    ('eval("1 +")\n', 'a.py:1: SyntaxError: '),
])
def test_config_that_does_not_run(capsys, source, says):
    """One line with file, line and error, no traceback; no rule then judges values that are not known."""
    write('config/broken.py', '\nn_layer = = 1\n')
    write('config/raising.py', '\n\nraise ValueError("in the base")\n')
    line = refused_once(capsys, '--n_head=3', write('config/a.py', source), '--n_layer=2')
    assert line.startswith('config/') and says in line and 'Traceback' not in line


def test_keyboard_interrupt_passes():
    """Ctrl-C in a config file is not a mistake in it, and leaves the path as it was."""
    before = sys.path[:], sys.dont_write_bytecode
    with pytest.raises(KeyboardInterrupt):
        run(write('a.py', 'raise KeyboardInterrupt\n'))
    assert (sys.path, sys.dont_write_bytecode) == before


# -----------------------------------------------------------------------------
# rules

def test_rule_names_the_values_and_the_way_out(capsys):
    """A broken rule shows its expression, the settings in it and its hint."""
    assert refused_once(capsys, '--n_head=3') == (
        'n_embd % n_head == 0 does not hold: n_embd=128, n_head=3; choose another n_head')
    assert refused_once(capsys, '--dropout=1') == '0 <= dropout < 1 does not hold: dropout=1.0'


def test_rule_that_divides_by_zero_does_not_hold(capsys):
    """n_head=0 is said, not raised."""
    assert refused_once(capsys, '--n_head=0').startswith('n_embd % n_head == 0 does not hold: n_embd=128, n_head=0')


def test_rules_judge_final_values():
    """A value that breaks a rule on the way does no harm where a later one mends it."""
    assert run('--n_head=3', '--n_embd=96')['n_head'] == 3


@pytest.mark.parametrize('argv', [['--n_head=x', '--n_embd=101'], ['--n_hed=101', '--n_embd=101'],
                                  ['--n_head', '--n_embd=101'], ['--n_embd=101', 'none.py']])
def test_rule_over_a_mistaken_setting_is_skipped(capsys, argv):
    """A mistake is not followed by complaints about the value that it left in place."""
    assert 'n_embd %' not in refused_once(capsys, *argv)


def test_rule_over_strings():
    """A rule may test membership."""
    rule = ["out_dir in ('out', 'b')"]
    assert run('--out_dir=b', rules=rule)['out_dir'] == 'b'
    with pytest.raises(SystemExit):
        run('--out_dir=c', rules=rule)


def test_rule_with_a_mistake_of_ours_is_a_bug():
    """A rule over a name that is no setting raises: this is for the author of the script to see."""
    with pytest.raises(NameError):
        run(rules=['no_such > 1'])
    with pytest.raises(NameError):
        run(rules=['len(out_dir) > 1'])


# -----------------------------------------------------------------------------
# what a config file may do

def test_config_may_use_python():
    """Imports, functions, classes, private names, loops, with, except and := are no settings."""
    path = write('config/a.py', '''
import math, os.path
import json as js
from math import pi, sqrt as root
_width = 32
def helper(x):
    inner = x
    return inner
class Thing:
    attribute = 1
square = lambda x: x * x
loaded = __import__('os')
with open(__file__) as f:
    text_lines = None
    del text_lines
for i, (j, *rest) in enumerate([(1, 2)]):
    n_layer = helper(i + j)
try:
    raise ValueError
except ValueError as error:
    pass
if (found := len([k for k in range(3)])) == 3:
    n_head = found - 1
for n_embd in (64, 48):
    pass
out_dir = os.path.splitext(os.path.basename(__file__))[0] + __name__
''')
    assert run(path) == dict(DEFAULTS, n_layer=1, n_head=2, n_embd=48, out_dir='aa')


def test_config_sees_what_came_before():
    """A config computes from flags and files to its left."""
    a, b = write('a.py', 'n_embd = 32 * n_head\n'), write('b.py', 'n_layer = n_embd // 32\n')
    assert run('--n_head=2', a, b)['n_layer'] == 2


def test_config_may_set_what_is_already_so_or_nothing():
    """An empty config and one that repeats the defaults are fine."""
    assert run(write('a.py', ''), write('b.py', "n_layer = 4\nout_dir = 'out'\ndel n_head\n")) == DEFAULTS


@pytest.mark.parametrize('source, line', [('n_layer = 1\nn_layr = 2\n', 2), ('import os\n\nout_dirr = "a"\n', 3),
                                          ('if bias:\n    n_heads: int = 2\n', 2), ('n_layr = None\n', 1)])
def test_unknown_name_in_config(capsys, source, line):
    """A public name that is no setting is a mistake, with its line and the nearest setting."""
    said = refused_once(capsys, write('config/a.py', source))
    assert said.startswith(f'config/a.py:{line}: unknown setting ') and 'did you mean ' in said


def test_unknown_name_without_a_near_one(capsys):
    """Then the line says how to name a helper."""
    assert '_ in front' in refused_once(capsys, write('a.py', 'zzz = 1\n'))


def test_config_builds_on_another(monkeypatch):
    """`from base import *` takes the base beside the config, what follows overrides it, and no trace is left."""
    monkeypatch.setattr(sys, 'dont_write_bytecode', False)
    write('config/base.py', 'import math\nn_layer = 2\nn_head = 2\nfor i in range(3):\n    pass\n')
    write('config/middle.py', 'from base import *\nn_embd = 64\n')
    a = write('config/a.py', 'from middle import *\nn_layer = n_layer + 1\n')
    before = sys.path[:], set(sys.modules), sys.dont_write_bytecode
    assert run(a) == dict(DEFAULTS, n_layer=3, n_head=2, n_embd=64)
    assert (sys.path, sys.dont_write_bytecode) == (before[0], before[2])
    assert not {'base', 'middle', 'a'} & (set(sys.modules) - before[1])
    assert not os.path.exists('config/__pycache__')


def test_config_may_import_names_from_another():
    """`from base import n_layer` sets it; other names imported one by one are helpers."""
    write('config/base.py', 'n_layer = 2\nn_head = 2\nwidth = 3\n')
    assert run(write('config/a.py', 'from base import n_layer, width\n')) == dict(DEFAULTS, n_layer=2)


def test_base_is_read_afresh():
    """A second call in the same process sees the base as it is then, in whichever folder."""
    a = write('config/a.py', 'from base import *\n')
    for n in (2, 3):
        write('config/base.py', f'n_layer = {n}\n')
        assert run(a)['n_layer'] == n
    os.mkdir('other')
    write('other/base.py', 'n_layer = 5\n')
    assert run(write('other/b.py', 'from base import *\n'))['n_layer'] == 5
    write('config/base2.py', 'n_layer = 6\n')  # a file that the import system has not seen yet
    assert run(write('config/a.py', 'from base2 import *\n'))['n_layer'] == 6


def test_modules_of_others_stay_loaded(tmp_path, monkeypatch):
    """Only what the config brought in from its own folder is dropped."""
    os.mkdir('lib')
    monkeypatch.syspath_prepend(str(tmp_path / 'lib'))
    monkeypatch.syspath_prepend(str(tmp_path / 'config'))
    write('lib/a_lib_module.py', '')
    write('config/loaded_before.py', 'n_layer = 2\n')
    import loaded_before
    run(write('config/a.py', 'import a_lib_module\nfrom loaded_before import *\n'))
    assert sys.modules.pop('loaded_before') is loaded_before
    assert sys.modules.pop('a_lib_module')


@pytest.mark.parametrize('base, says', [
    ('import os\n\nn_layr = 2\n', "config/base.py:3: unknown setting 'n_layr'; did you mean n_layer?"),
    ('n_layer = "2"\n', "config/base.py:1: n_layer takes a whole number (int), found '2' (str)"),
])
def test_mistake_in_the_base(capsys, base, says):
    """A name that arrives by `import *` is checked too, and found where it stands."""
    write('config/base.py', base)
    write('config/middle.py', 'from base import *\n')
    assert refused_once(capsys, write('config/a.py', 'from middle import *\n')).startswith(says)


# -----------------------------------------------------------------------------
# where files are looked up

def test_config_is_found_from_another_folder(script, tmp_path, monkeypatch):
    """A relative path counts from here first, then from the script's folder; an absolute one as it is."""
    a = write(tmp_path / 'config/a.py', 'n_layer = 2\n')
    (tmp_path / 'else/config').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'else')
    assert run('config/a.py', file=str(script))['n_layer'] == 2
    assert run('../config/a.py', file=str(script))['n_layer'] == 2
    assert run(a, file=str(script))['n_layer'] == 2
    write('config/a.py', 'n_layer = 3\n')
    assert run('config/a.py', file=str(script))['n_layer'] == 3


def test_near_config_is_named_from_another_folder(script, tmp_path, monkeypatch, capsys):
    """The suggestion is a path that works as typed."""
    write('config/small.py', 'n_layer = 2\n')
    (tmp_path / 'else').mkdir()
    monkeypatch.chdir(tmp_path / 'else')
    assert 'did you mean config/small.py?' in refused_once(capsys, 'smal.py', file=str(script))
    assert run('config/small.py', file=str(script))['n_layer'] == 2


# -----------------------------------------------------------------------------
# --help

HELP = '''Train a tiny thing.

More about it.

usage: python train.py [config.py ...] [--key=value ...]
applied from left to right, the later one wins

i/o
  --out_dir=out      where things go
  --eval_only=False  evaluate once = and stop
model
  --n_layer=4        transformer blocks
  --n_head=4
  --n_embd=128       channels, a multiple of n_head
  --bias=True        in "linear" # layers
  --dropout=0.0      0 for one epoch
  --min_x=-1.5       may be negative
'''


@pytest.mark.parametrize('argv', [['--help'], ['-h'], ['--n_layer=x', '--help'], ['--eval_only', '-h']])
def test_help(capsys, argv):
    """--help shows each setting under its heading with its default and its comment, whatever stands beside it."""
    with pytest.raises(SystemExit) as e:
        run(*argv)
    assert e.value.code == 0
    assert capsys.readouterr() == (HELP, '')


def test_help_of_a_bare_script(capsys):
    """No docstring, no ruler, no comment and no settings are no reason to fail."""
    for source, settings in ('configure(globals())', {}), ('a = 1\nconfigure(globals())', {'a': 1}), ('', {}):
        with pytest.raises(SystemExit) as e:
            configure(dict(settings, __file__=write('bare.py', source)), argv=['--help'])
        assert e.value.code == 0
        assert ('--a=1' in capsys.readouterr().out) == bool(settings)


# -----------------------------------------------------------------------------
# as a process

def process(script, *argv, **kw):
    env = dict(os.environ, PYTHONPATH=str(REPO), PYTHONDONTWRITEBYTECODE='1')
    return subprocess.run([sys.executable, str(script), *argv], env=env, capture_output=True, text=True, **kw)


def test_help_comes_before_the_heavy_imports(script):
    """A script that calls configure above its imports answers --help without them."""
    done = process(script, '--help')
    assert (done.returncode, done.stdout, done.stderr) == (0, HELP, '')
    assert 'a_module_that_is_heavy' in process(script).stderr  # which it does import when it runs


def test_process_sets_the_globals_from_any_folder(script, tmp_path):
    """A run from elsewhere has the values of its config and flags."""
    script.write_text(SCRIPT.replace(
        'import a_module_that_is_heavy', 'print(config["n_layer"], n_layer, n_head, bias)'
    ))
    write('config/base.py', 'n_layer = 2\n')
    write('config/a.py', 'from base import *\nn_head = 2\n')
    (tmp_path / 'else').mkdir()
    done = process(script, 'config/a.py', '--bias', 'false', cwd=tmp_path / 'else')
    assert (done.returncode, done.stdout, done.stderr) == (0, '2 2 2 False\n', '')


def test_config_beside_the_code(script, tmp_path):
    """A config in the folder of configurator.py itself is blamed for its mistakes, not our lines that ran it."""
    write('configurator.py', (REPO / 'configurator.py').read_text())
    write('a.py', 'n_layer = 1\0\n')
    assert process(script, 'a.py').stderr.startswith('error: a.py')


def test_process_with_mistakes(script):
    """Status 2, one line for each mistake on stderr, nothing on stdout."""
    done = process(script, '--n_layr=3', '--n_head=3')
    assert (done.returncode, done.stdout) == (2, '')
    assert [line[:15] for line in done.stderr.splitlines()] == ['error: --n_layr', 'error: n_embd %']


def test_fail(capsys):
    """fail says one line on stderr and ends with status 1."""
    with pytest.raises(SystemExit) as e:
        fail('no data in a/b\nrun prepare.py')
    assert e.value.code == 1
    assert capsys.readouterr() == ('', 'error: no data in a/b run prepare.py\n')
