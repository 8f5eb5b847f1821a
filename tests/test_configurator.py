"""Config files, flags, rules, conditions and --help."""
import io
import math
import os
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from configurator import (assigned_at, broken_rules, coerce, configure, fail, printable, read_settings, run_config,
                          scratch_names)

REPO = Path(__file__).resolve().parents[1]

SCRIPT = '''"""Train a tiny thing.

More about it.
"""
import os
from configurator import configure

# i/o ------------------------------------------------------------
out_dir = 'out'         # where things go
eval_only = False       # evaluate once = and stop
# model ------------------------------------------------------------
n_layer = 4             # transformer blocks
n_head = 4
n_embd = 16 * 8         # channels,
                        # a multiple of n_head
bias: bool = True       # in "linear" # layers
dropout = 0.0           # 0 for one epoch
min_x = -1.5            # may be negative
# loss ------------------------------------------------------------
loss = 'cross_entropy'  # cross_entropy | mse | squentropy
mse_target = 1.0        # of the true class
weight = 1.0            # of squentropy's square
schedule = 'constant'   # of weight
_private = 3
path = os.path.join('a', 'b')
sizes = [1, 2]
nothing = None
first = second = 1
config = configure(globals(), rules=[
    'n_layer >= 1',
    ('n_embd % n_head == 0', 'choose another n_head'),
    '0 <= dropout < 1', 'mse_target > 0',
], applies=[
    ("loss == 'mse'", 'mse_target'),
    ("loss == 'squentropy'", 'weight'),
    ("loss == 'squentropy' and weight > 0", 'schedule'),
])
late = 1                # no setting: below the call
import a_module_that_is_heavy
'''

DEFAULTS = dict(out_dir='out', eval_only=False, n_layer=4, n_head=4, n_embd=128, bias=True, dropout=0.0, min_x=-1.5,
                loss='cross_entropy', mse_target=1.0, weight=1.0, schedule='constant')
RULES = ['n_layer >= 1', ('n_embd % n_head == 0', 'choose another n_head'), '0 <= dropout < 1', 'mse_target > 0']
APPLIES = [("loss == 'mse'", 'mse_target'), ("loss == 'squentropy'", 'weight'),
           ("loss == 'squentropy' and weight > 0", 'schedule')]


@pytest.fixture(autouse=True)
def script(tmp_path, monkeypatch):
    """The script of every test, in a folder of its own that is also the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'train.py').write_text(SCRIPT)
    (tmp_path / 'config').mkdir()
    return tmp_path / 'train.py'


def write(path, text):
    Path(path).write_text(text)
    return str(path)


def run(*argv, rules=RULES, applies=APPLIES, file='train.py', also=''):
    """What configure returns for these arguments."""
    settings = dict(DEFAULTS, __file__=file, sizes=[1, 2], nothing=None, path='a/b')
    config = configure(settings, rules, applies, list(argv), also)
    assert {name: settings[name] for name in DEFAULTS} == {name: config[name] for name in DEFAULTS}
    return config


def refused(capsys, *argv, **options):
    """The error lines of arguments that exit with status 2."""
    with pytest.raises(SystemExit) as e:
        run(*argv, **options)
    assert e.value.code == 2
    out, err = capsys.readouterr()
    assert out == ''
    lines = err.splitlines()
    assert all(line.startswith('error: ') and line.isprintable() for line in lines)
    return [line.removeprefix('error: ') for line in lines]


def refused_once(capsys, *argv, **options):
    lines = refused(capsys, *argv, **options)
    assert len(lines) == 1, lines
    return lines[0]


# values ------------------------------------------------------------

def test_no_arguments_give_the_defaults():
    """The settings are the public constants above the call, and nothing else."""
    assert run() == DEFAULTS


def test_argv_defaults_to_the_command_line(monkeypatch):
    """Without argv the arguments of the process count."""
    monkeypatch.setattr(sys, 'argv', ['train.py', '--n_layer=7'])
    assert configure({'__file__': 'train.py'})['n_layer'] == 7


def test_settings_are_updated_in_place_and_returned_as_a_copy():
    """The globals change, and changing the returned dict does not change them."""
    settings = dict(DEFAULTS, __file__='train.py')
    config = configure(settings, argv=['--n_layer=7'])
    assert settings['n_layer'] == config['n_layer'] == 7
    config['n_layer'] = 8
    assert settings['n_layer'] == 7


def test_later_arguments_win():
    """Files and flags apply in the order of the arguments, whichever kind comes first."""
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
    (['--dropout=1e-3'], 'dropout', 1e-3),
    (['--dropout=0'], 'dropout', 0.0),
    (['--min_x=-3'], 'min_x', -3.0),
    (['--min_x', '-1e-3'], 'min_x', -1e-3),
    (['--eval_only=True'], 'eval_only', True),
    (['--eval_only', 'true'], 'eval_only', True),
    (['--bias=False'], 'bias', False),
    (['--bias', 'false'], 'bias', False),
    (['--out_dir', 'a'], 'out_dir', 'a'),
    (['--out_dir='], 'out_dir', ''),
    (['--out_dir', ''], 'out_dir', ''),
    (['--out_dir=1e-3'], 'out_dir', '1e-3'),
    (['--out_dir=True'], 'out_dir', 'True'),
    (['--out_dir="a"'], 'out_dir', '"a"'),
    (['--out_dir=a=b=c'], 'out_dir', 'a=b=c'),
    (['--out_dir', 'a=b'], 'out_dir', 'a=b'),
    (['--out_dir', '-1'], 'out_dir', '-1'),
    (['--out_dir', 'config/a.py'], 'out_dir', 'config/a.py'),
    (['--out_dir=--help me'], 'out_dir', '--help me'),
    (['--out_dir=two words\n'], 'out_dir', 'two words\n'),
])
def test_good_flag(argv, name, value):
    """A flag sets one setting to a value of its type, and no other."""
    config = run(*argv)
    assert config == dict(DEFAULTS, **{name: value})
    assert type(config[name]) is type(value)


@pytest.mark.parametrize('flag', [
    '--n_layer=four', '--n_layer=1.0', '--n_layer=1e3', '--n_layer=True', '--n_layer=', '--n_layer=0x10',
    '--n_layer=None', '--n_layer="3"', '--n_layer=' + '9' * 20, '--n_layer=' + '9' * 5000, '--dropout=nan',
    '--dropout=-inf', '--dropout=1e999', '--dropout=' + '9' * 400, '--dropout=True', '--dropout=low', '--dropout=',
    '--eval_only=1', '--eval_only=yes', '--eval_only=', '--eval_only=TRUE', '--n_layer', '--eval_only', '--dropout',
    '--out_dir',
])
def test_flag_of_a_wrong_type(capsys, flag):
    """The error begins with the flag and ends with an example that is accepted, also if the value is missing."""
    line = refused_once(capsys, flag, '--n_head=2')
    name, _, text = flag[2:].partition('=')
    assert line.startswith(f'{flag}: {name} ') and repr(text)[1:-1] in line
    example_flag = line.split()[-1]
    assert example_flag.startswith(f'--{name}=')
    run(example_flag)


@pytest.mark.parametrize('line, value', [
    ('n_layer = 12', 12), ('dropout = 0.5', 0.5), ('dropout = 0', 0.0), ('eval_only = True', True),
    ("out_dir = '1'", '1'), ('n_layer = n_layer * 3', 12), ('n_layer += 1', 5), ('n_layer: int = 2', 2),
])
def test_good_config_value(line, value):
    """A config file assigns in Python and sees the current values."""
    name = line.replace(':', ' ').split()[0]
    config = run(write('a.py', line))
    assert config == dict(DEFAULTS, **{name: value})
    assert type(config[name]) is type(value)


@pytest.mark.parametrize('name, value', [
    ('n_layer', '1.0'), ('n_layer', 'True'), ('n_layer', "'4'"), ('n_layer', 'None'), ('n_layer', '[4]'),
    ('n_layer', 'print'), ('n_layer', '2**53'), ('dropout', 'True'), ('dropout', "'0.1'"), ('dropout', "float('nan')"),
    ('dropout', '-1e999'), ('dropout', '10 ** 400'), ('eval_only', '1'), ('eval_only', "'True'"), ('out_dir', '1'),
    ('out_dir', 'None'), ('out_dir', "b'out'"), ('out_dir', "__import__('pathlib').Path('a')"), ('out_dir', r"'\0'"),
    ('out_dir', r"'\ud800'"), ('out_dir', "['a\\n' * 99] * 99"),
])
def test_config_value_of_a_wrong_type(capsys, name, value):
    """The error begins with file, line and setting and ends with an example that is accepted."""
    line = refused_once(capsys, write('config/a.py', f'\n{name} = {value}\n'))
    assert line.startswith(f'config/a.py:2: {name} ')
    run(write('config/b.py', line[line.rindex(f'{name} = '):]))


def test_coerce():
    """An int is accepted as a float, a bool is not an int; integers, floats and strings have limits."""
    for value, kind, expected in [(3, float, 3.0), (3, int, 3), (True, int, None), (1, bool, None), (0.5, int, None),
                                  (2**53, int, None), (1 - 2**53, int, 1 - 2**53), (10**400, float, None),
                                  (math.inf, float, None), (math.nan, float, None), ('a\0', str, None),
                                  ('\ud800', str, None), ('\udc80', str, '\udc80'), (None, str, None)]:
        coerced = coerce(value, kind)
        assert coerced == expected and type(coerced) is type(expected), (value, kind)


@pytest.mark.parametrize('text, expected', [
    ('~/a', '/home/me/a'), ('~', '~'), ('~root', '~root'), ('a/~/b', 'a/~/b'),
    ('a~', 'a~'), ('FILE:a', 'FILE:a'), ('~no_such_user_/a', '~no_such_user_/a'), ('', '')])
def test_home_folder(monkeypatch, text, expected):
    """~/ at the start of a text is the home folder, in flags and config files alike; other prompts may begin with ~."""
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setenv('USERPROFILE', '/home/me')
    assert run(f'--out_dir={text}')['out_dir'] == run('--out_dir', text)['out_dir'] == expected
    assert run(write('a.py', f'out_dir = {text!r}\n'))['out_dir'] == expected
    assert run(write('a.py', 'loss = out_dir\n'), f'--out_dir={text}')['loss'] == 'out'


def test_booleans_for_compile(capsys):
    """compile = False in a config file, as in nanoGPT's, stands for 'False'; other texts take no boolean."""
    for value in (True, False):
        settings = {'__file__': str(REPO / 'train.py')}
        assert configure(settings, argv=[write('a.py', f'compile = {value}\n')])['compile'] == str(value)
    for source in ('loss = False\n', 'out_dir = True\n'):
        assert refused_once(capsys, write('a.py', source)).startswith('a.py:1: ' + source.split()[0])


# mistakes ------------------------------------------------------------

def test_all_mistakes_at_once(capsys):
    """Each mistake of each file, each flag and each rule has its own line, in the order of the arguments."""
    a = write('config/a.py', "n_layr = 3\nn_layer = '3'\n")
    b = write('config/b.py', 'n_layer = = 1\n')
    lines = refused(capsys, '--bias=2', a, b, 'config/none.py', 'stray', '--who=3', '--eval_only', '--n_head=3',
                    '--n_embd=100', '--dropout=2', '--loss=mse', '--weight=2')
    names = ['--bias=2', 'config/a.py:2', 'config/a.py:1', 'config/b.py', 'config/none.py', 'stray', '--who=3',
             '--eval_only', '--weight=2', 'n_embd % n_head == 0', '0 <= dropout < 1']
    assert len(lines) == len(names)
    assert all(name in line for line, name in zip(lines, names, strict=True)), lines


def test_mistakes_change_nothing():
    """The settings stay as they were if anything is wrong."""
    settings = dict(DEFAULTS, __file__='train.py')
    before = dict(settings)
    with pytest.raises(SystemExit):
        configure(settings, argv=['--n_layer=7', '--n_head=x'])
    assert settings == before


@pytest.mark.parametrize('argv, names', [
    (['--n_layr=3'], ['--n_layr=3', '--n_layer?']),
    (['--n-layer', '3'], ['--n-layer 3', '--n_layer?']),
    (['--N_LAYER=3'], ['--N_LAYER=3', '--n_layer?']),
    (['--n_layr'], ['--n_layr', '--n_layer?']),
    (['--zzz=3'], ['--zzz=3', 'train.py --help']),
    (['--sizes=3'], ['--sizes=3']), (['--nothing=3'], ['--nothing=3']), (['--_private=4'], ['--_private=4']),
    (['--late=4'], ['--late=4']), (['--path=4'], ['--path=4']), (['--first=4'], ['--first=4']),
    (['--=4'], ['--=4']), (['--'], ['--']), (['--a\nb=4'], ['b=4']),
    (['--bias', '--n_layer=3'], ['--bias']), (['--out_dir', '--n_layer=3'], ['--out_dir']),
    (['lr'], ["'lr'"]), ([''], ["''"]),
    (['n_layer=3'], ["'n_layer=3'", '--n_layer?']), (['-n_layer=3'], ["'-n_layer=3'", '--n_layer?']),
    (['config/small'], ["'config/small'", 'config/small.py?']),
    (['config/smal.py'], ["'config/smal.py'", 'config/small.py?']),
    (['smal.py'], ["'smal.py'", 'config/small.py?']),
    (['zzzzzzzz.py'], ["'zzzzzzzz.py'"]), (['folder.py'], ["'folder.py'"]), (['notes.txt'], ["'notes.txt'"]),
])
def test_mistaken_argument(capsys, argv, names):
    """One line names the argument and the nearest flag or config file that exists."""
    write('config/small.py', 'n_layer = 2\n')
    write('notes.txt', 'n_layer = 2\n')
    os.mkdir('folder.py')
    line = refused_once(capsys, *argv)
    assert all(name in line for name in names), line


def test_earlier_mistake_counts_though_a_later_value_is_good(capsys):
    """A mistake in a file is reported even if a flag overrides it."""
    assert refused_once(capsys, write('a.py', 'n_layer = 1.5\n'), '--n_layer=3').startswith('a.py:1: n_layer ')


@pytest.mark.parametrize('source, names', [
    ('n_layer = 1\nn_head = = 2\n', ['SyntaxError', 'a.py, line 2']),
    ('n_layer = 1\nif bias:\nn_layer = 2\n', ['IndentationError', 'a.py, line 3']),
    ('n_layer = 1\nn_head = no_such_name\n', ['a.py:2', 'NameError', 'no_such_name']),
    ('def f():\n    return 1 / 0\nn_head = f()\n', ['a.py:2', 'ZeroDivisionError']),
    ('import os\nos.listdir("/none/such")\n', ['a.py:2', 'FileNotFoundError', '/none/such']),
    ('raise ValueError("one\\ntwo")\n', ['a.py:1', 'ValueError', 'one two']),
    ('raise SystemExit(0)\n', ['a.py:1', 'SystemExit']),
    ('from no_such_base import *\n', ['a.py:1', 'no_such_base']),
    ('from broken import *\n', ['a.py:1', 'SyntaxError', 'broken.py, line 2']),
    ('\nfrom raising import *\n', ['a.py:2', 'ValueError', 'in the base']),
    ('n_layer = 1\0\n', ['a.py']),
    ('out_dir = "\udcff"\n', ['a.py', 'SyntaxError']),
])
def test_config_that_does_not_run(capsys, source, names):
    """One line with file, line and error, no traceback; no rule then judges unknown values."""
    write('config/broken.py', '\nn_layer = = 1\n')
    write('config/raising.py', '\n\nraise ValueError("in the base")\n')
    Path('config/a.py').write_bytes(source.encode(errors='surrogateescape'))
    line = refused_once(capsys, '--n_head=3', 'config/a.py', '--n_layer=2')
    assert line.startswith('config/a.py') and all(name in line for name in names) and 'Traceback' not in line, line


def test_keyboard_interrupt_passes():
    """Ctrl-C in a config file is not a mistake in it, and leaves the path as it was."""
    before = sys.path[:], sys.dont_write_bytecode
    with pytest.raises(KeyboardInterrupt):
        run(write('a.py', 'raise KeyboardInterrupt\n'))
    assert (sys.path, sys.dont_write_bytecode) == before


# rules ------------------------------------------------------------

def test_rule_names_the_values_and_the_hint(capsys):
    """A broken rule shows its expression, the settings in it and its hint."""
    line = refused_once(capsys, '--n_head=3')
    assert all(part in line for part in ('n_embd % n_head == 0', 'n_embd=128', 'n_head=3', 'choose another n_head'))
    line = refused_once(capsys, '--dropout=1')
    assert '0 <= dropout < 1' in line and 'dropout=1.0' in line


def test_rule_that_divides_by_zero(capsys):
    """n_head = 0 is a broken rule, not a traceback."""
    assert 'n_head=0' in refused_once(capsys, '--n_head=0')


def test_rules_judge_final_values():
    """A value that breaks a rule does no harm if a later argument replaces it."""
    assert run('--n_head=3', '--n_embd=96')['n_head'] == 3


@pytest.mark.parametrize('argv', [['--n_head=x', '--n_embd=101'], ['--n_hed=101', '--n_embd=101'],
                                  ['--n_head', '--n_embd=101'], ['--n_embd=101', 'none.py']])
def test_rule_over_a_mistaken_setting_is_skipped(capsys, argv):
    """A mistake is not followed by errors about the value that it left in place."""
    assert 'n_embd %' not in refused_once(capsys, *argv)


def test_rule_over_strings(capsys):
    """A rule may test membership and call methods; an attribute with the name of a setting is not that setting."""
    assert run('--out_dir=b', rules=["out_dir in ('out', 'b')"])['out_dir'] == 'b'
    assert "out_dir='out'" in refused_once(capsys, rules=["out_dir.count('x') == 1"])
    assert 'loss=' not in refused_once(capsys, rules=["n_layer.real > 5 and 'x'.loss"])


def test_rule_with_an_unknown_name_is_a_bug():
    """A rule over a name that is no setting raises: the author of the script has to see it."""
    with pytest.raises(NameError):
        run(rules=['no_such > 1'])
    with pytest.raises(NameError):
        run(rules=['len(out_dir) > 1'])


def test_broken_rules():
    """One line per broken rule, except for rules with unsure settings."""
    assert broken_rules(RULES, DEFAULTS) == []
    values = DEFAULTS | {'n_head': 3, 'dropout': 2.0}
    assert len(broken_rules(RULES, values)) == 2
    assert [line for line in broken_rules(RULES, values, ['n_head']) if 'dropout=2.0' not in line] == []


# applies ------------------------------------------------------------

@pytest.mark.parametrize('value', ['0.3', '1.0'])
def test_flag_without_effect(capsys, value):
    """A flag whose condition is false is a mistake, even with the default value; the line names flag and condition."""
    for argv in ([f'--weight={value}', '--loss=mse'], ['--loss=mse', '--weight', value]):
        line = refused_once(capsys, *argv)
        assert all(part in line for part in ('--weight', value, "loss == 'squentropy'", "loss='mse'"))
    assert run('--loss=squentropy', f'--weight={value}')['weight'] == float(value)
    assert run(f'--weight={value}', '--loss=mse', '--loss=squentropy')['weight'] == float(value)


def test_config_value_without_effect_is_reset():
    """A value from a config file whose condition is false in the end becomes the default."""
    a = write('config/a.py', "loss = 'squentropy'\nweight = 0.3\nschedule = 'cosine'\n")
    assert run(a) == dict(DEFAULTS, loss='squentropy', weight=0.3, schedule='cosine')
    assert run(a, '--loss=mse') == dict(DEFAULTS, loss='mse')
    assert run(a, '--loss=mse', '--loss=squentropy')['weight'] == 0.3
    assert run(a, '--weight=0')['schedule'] == 'constant'


def test_flag_is_not_excused_by_a_config_file(capsys):
    """A flag without effect is a mistake if a config file sets the same setting, before or after it."""
    a = write('config/a.py', 'weight = 0.3\n')
    for argv in ([a, '--weight=0.5'], ['--weight=0.5', a]):
        assert refused_once(capsys, *argv).startswith('--weight=0.5 ')


def test_reset_comes_before_the_rules(capsys):
    """Rules do not judge a value that is reset, nor one that is refused."""
    a = write('config/a.py', 'mse_target = -1.0\n')
    assert run(a)['mse_target'] == 1.0
    assert "mse_target > 0" in refused_once(capsys, a, '--loss=mse')
    assert refused_once(capsys, '--mse_target=-1').startswith('--mse_target=-1 ')


@pytest.mark.parametrize('argv', [['--weight=0.3', '--loss'], ['--weight=0.3', '--los=squentropy'], ['--weight=x'],
                                  ['--weight=0.3', 'none.py'], ['--loss=squentropy', '--weight=x', '--schedule=step']])
def test_condition_over_a_mistaken_setting_is_skipped(capsys, argv):
    """A mistake is the only line: a condition with the mistaken setting, or for it, is not judged."""
    assert 'loss ==' not in refused_once(capsys, *argv)


# two scripts ------------------------------------------------------------------

def test_settings_of_another_script(capsys):
    """`also` adds the settings, rules and conditions of another script; the defaults of this one take precedence."""
    settings = {'__file__': write('tune.py', 'trials = 4\nn_layer = 2\nconfigure(globals())\n')}
    config = configure(settings, argv=['--loss=mse', '--trials=5', '--mse_target=3'], also='train.py')
    assert config == dict(DEFAULTS, trials=5, n_layer=2, loss='mse', mse_target=3.0)
    assert settings == {'__file__': 'tune.py', 'trials': 5, 'n_layer': 2}
    for flag in ('--n_head=3', '--weight=2', '--trails=3'):
        with pytest.raises(SystemExit):
            configure(settings, argv=[flag], also='train.py')
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_read_settings(script):
    """Defaults, rules and conditions are read without running the script."""
    assert read_settings(script) == (DEFAULTS, RULES, APPLIES)
    assert read_settings(write('bare.py', 'a = 1\nconfigure(globals())\n')) == ({'a': 1}, [], [])


# what a config file may do ----------------------------------------------------

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
out_dir = os.path.splitext(os.path.basename(__file__))[0]
''')
    assert run(path) == dict(DEFAULTS, n_layer=1, n_head=2, n_embd=48, out_dir='a')


def test_config_sees_what_came_before():
    """A config computes from flags and files to its left."""
    a, b = write('a.py', 'n_embd = 32 * n_head\n'), write('b.py', 'n_layer = n_embd // 32\n')
    assert run('--n_head=2', a, b)['n_layer'] == 2


def test_config_may_set_defaults_or_nothing():
    """An empty config and one that repeats the defaults are fine."""
    assert run(write('a.py', ''), write('b.py', "n_layer = 4\nout_dir = 'out'\ndel n_head\n")) == DEFAULTS


@pytest.mark.parametrize('source, line, near', [
    ('n_layer = 1\nn_layr = 2\n', 2, 'n_layer?'), ('import os\n\nout_dirr = "a"\n', 3, 'out_dir?'),
    ('if bias:\n    n_heads: int = 2\n', 2, 'n_head?'), ('n_layr = None\n', 1, 'n_layer?'),
    ('zzz = 1\n', 1, 'train.py --help')])
def test_unknown_name_in_config(capsys, source, line, near):
    """A public name that is no setting is a mistake, with its line and the nearest setting."""
    error = refused_once(capsys, write('config/a.py', source))
    assert error.startswith(f'config/a.py:{line}: ') and near in error


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


def test_base_is_read_again():
    """A second call in the same process sees the base as it is then, in whichever folder."""
    write('config/base.py', 'n_layer = 2\n')
    a = write('config/a.py', 'from base import *\n')
    os.mkdir('other')
    write('other/base.py', 'n_layer = 5\n')
    b = write('other/b.py', 'from base import *\n')
    assert run(a)['n_layer'] == 2
    write('config/base.py', 'n_layer = 3\n')
    assert run(a)['n_layer'] == 3
    assert run(b)['n_layer'] == 5


def test_modules_of_others_stay_loaded(tmp_path, monkeypatch):
    """Only modules that the config imported from its own folder are removed."""
    os.mkdir('lib')
    monkeypatch.syspath_prepend(str(tmp_path / 'lib'))
    monkeypatch.syspath_prepend(str(tmp_path / 'config'))
    write('lib/a_lib_module.py', '')
    write('config/loaded_before.py', 'n_layer = 2\n')
    import loaded_before
    run(write('config/a.py', 'import a_lib_module\nfrom loaded_before import *\n'))
    assert sys.modules.pop('loaded_before') is loaded_before
    assert sys.modules.pop('a_lib_module')


def test_mistake_in_the_base(capsys):
    """A name that arrives by `import *` is checked too, and located in the file that assigns it."""
    write('config/base.py', 'import os\n\nn_layr = 2\n')
    write('config/middle.py', 'from base import *\n')
    assert refused_once(capsys, write('config/a.py', 'from middle import *\n')).startswith('config/base.py:3: ')


def test_run_config(tmp_path):
    """The namespace and syntax trees of a config and its base say what is assigned where, and what is scratch."""
    base = write(tmp_path / 'config/base.py', 'import math\nn_layer = 2\n')
    a = write(tmp_path / 'config/a.py', 'from base import *\nfor i in range(3):\n    n_head = i\nn_head = width = 5\n')
    space, trees = run_config(a, DEFAULTS)
    assert (space['n_layer'], space['n_head'], space['loss']) == (2, 5, 'cross_entropy')
    assert list(trees) == [a, base]
    assert assigned_at('n_head', trees) == (a, 4) and assigned_at('n_layer', trees) == (base, 2)
    assert assigned_at('nowhere', trees) == (a, None)
    assert {'i', 'math'} <= scratch_names(trees.values()) and 'width' not in scratch_names(trees.values())


def test_config_is_found_from_another_folder(script, tmp_path, monkeypatch):
    """A relative path counts from the current folder first, then from the script's folder."""
    a = write(tmp_path / 'config/a.py', 'n_layer = 2\n')
    (tmp_path / 'else/config').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'else')
    for path in ('config/a.py', '../config/a.py', a):
        assert run(path, file=str(script))['n_layer'] == 2
    write('config/a.py', 'n_layer = 3\n')
    assert run('config/a.py', file=str(script))['n_layer'] == 3


def test_near_config_is_named_from_another_folder(script, tmp_path, monkeypatch, capsys):
    """The suggestion is a path that works as typed."""
    write('config/small.py', 'n_layer = 2\n')
    (tmp_path / 'else').mkdir()
    monkeypatch.chdir(tmp_path / 'else')
    assert 'config/small.py?' in refused_once(capsys, 'smal.py', file=str(script))
    assert run('config/small.py', file=str(script))['n_layer'] == 2


# --help

HELP = '''i/o
  --out_dir=out         where things go
  --eval_only=False     evaluate once = and stop
model
  --n_layer=4           transformer blocks
  --n_head=4
  --n_embd=128          channels, a multiple of n_head
  --bias=True           in "linear" # layers
  --dropout=0.0         0 for one epoch
  --min_x=-1.5          may be negative
loss
  --loss=cross_entropy  cross_entropy | mse | squentropy
  --mse_target=1.0      of the true class
  --weight=1.0          of squentropy's square
  --schedule=constant   of weight
'''


@pytest.mark.parametrize('argv', [['--help'], ['-h'], ['--n_layer=x', '--help'], ['--eval_only', '-h']])
def test_help(capsys, argv):
    """--help shows the docstring and each setting under its heading, whatever the other arguments."""
    with pytest.raises(SystemExit) as e:
        run(*argv)
    assert e.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith('Train a tiny thing.\n\nMore about it.\n') and out.endswith(HELP) and 'train.py' in out
    assert err == ''


@pytest.mark.parametrize('source, expected', [
    ('', []), ('configure(globals())', []), ('a = 1\nconfigure(globals())', ['  --a=1']),
    ('# ------\na = 1  # first\nbc = 2  # second\n\nconfigure(globals())\n', ['  --a=1   first', '  --bc=2  second'])])
def test_help_of_a_bare_script(capsys, source, expected):
    """A script without docstring, headings, comments or settings has help too."""
    with pytest.raises(SystemExit) as e:
        configure({'__file__': write('bare.py', source)}, argv=['--help'])
    assert e.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'bare.py' in lines[0] and lines[3:] == expected


# as a process -----------------------------------------------------------------

def process(script, *argv, cwd=None, **env):
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'PYTHONDONTWRITEBYTECODE': '1', **env}
    return subprocess.run([sys.executable, str(script), *argv], env=env, capture_output=True, text=True, cwd=cwd)


def test_help_comes_before_the_heavy_imports(script):
    """A script that calls configure above its imports answers --help without them."""
    done = process(script, '--help')
    assert done.returncode == 0 and done.stdout.endswith(HELP) and done.stderr == ''
    assert 'a_module_that_is_heavy' in process(script).stderr  # imported when the script runs


def test_process_sets_the_globals_from_any_folder(script, tmp_path):
    """A run from another folder has the values of its config and flags."""
    script.write_text(SCRIPT.replace(
        'import a_module_that_is_heavy', 'print(config["n_layer"], n_layer, n_head, bias)'
    ))
    write('config/base.py', 'n_layer = 2\n')
    write('config/a.py', 'from base import *\nn_head = 2\n')
    (tmp_path / 'else').mkdir()
    done = process(script, 'config/a.py', '--bias', 'false', cwd=tmp_path / 'else')
    assert (done.returncode, done.stdout, done.stderr) == (0, '2 2 2 False\n', '')


def test_process_with_mistakes(script):
    """Status 2, one line for each mistake on stderr, nothing on stdout."""
    done = process(script, '--n_layr=3', '--n_head=3')
    assert (done.returncode, done.stdout) == (2, '')
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith('error: --n_layr=3') and 'n_head=3' in lines[1]


def test_fail(capsys, monkeypatch):
    """fail prints one line per message and exits with status 1; under torchrun the line names the rank."""
    def failed(*messages, **options):
        with pytest.raises(SystemExit) as e:
            fail(*messages, **options)
        assert e.value.code == options.get('status', 1)
        return capsys.readouterr().err
    assert failed('no data in a/b\nrun prepare.py') == 'error: no data in a/b run prepare.py\n'
    monkeypatch.setenv('RANK', '1')
    assert failed('a', 'b', status=2) == 'error: a\nerror: b\n'  # RANK alone may come from MPI
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'x')
    assert '1' in failed('a') and failed('a', status=2) == ''
    monkeypatch.setenv('RANK', '0')
    assert failed('a', status=2) == 'error: a\n'


@pytest.mark.parametrize('code, missing', [
    ('import absent.part', 'absent'), ('import half', 'absent'), ('require("os", "absent")', 'absent'),
    ('import config.part', None), ('raise ModuleNotFoundError("x")', None),
    ('raise ImportError("x", name="absent")', None)])
def test_missing_package(script, tmp_path, code, missing):
    """A package that is not installed is one line with its name and the pip command; other errors keep the traceback,
    also that of a missing module in a package that exists."""
    write(tmp_path / 'half.py', 'import absent')
    write(tmp_path / 'config/__init__.py', '')
    script.write_text(SCRIPT.replace('import a_module_that_is_heavy', f'from configurator import require\n{code}'))
    done = process(script)
    assert done.returncode == 1
    if missing:
        assert done.stderr.count('\n') == 1 and f'pip install {missing}' in done.stderr
    else:
        assert done.stderr.startswith('Traceback') and 'pip' not in done.stderr


@pytest.mark.parametrize('command, package', [
    ('tune.py', 'optuna'), ('tune.py', 'matplotlib'), ('tune.py', 'filelock'), ('compare.py', 'matplotlib'),
    ('compare.py', 'scipy'), ('compare.py', 'filelock'), ('evaluate.py --plots=p', 'matplotlib'),
    ('evaluate.py', 'tqdm'), ('train.py', 'torch'), ('data/synthetic/prepare.py --tokenizer=gpt2', 'tiktoken'),
    ('data/synthetic/prepare.py', 'tokenizers')])
def test_scripts_report_missing_packages_first(tmp_path, command, package):
    """One line with the pip command, before torch is imported and before any file is written."""
    (tmp_path / 'absent').mkdir()
    for name in ('torch', package):
        write(tmp_path / f'absent/{name}.py', f'raise ModuleNotFoundError("No module named {name!r}", name={name!r})')
    name, *flags = command.split()
    before = sorted(tmp_path.rglob('*'))
    if 'prepare' in name:
        flags.append('--out_dir=data')
    done = process(REPO / name, *flags, PYTHONPATH=tmp_path / 'absent')
    assert done.returncode == 1 and done.stderr.count('\n') == 1 and f'pip install {package}' in done.stderr, done
    assert sorted(tmp_path.rglob('*')) == before


def test_printable():
    """Line breaks become spaces and control characters question marks; other text stays."""
    assert printable('a\nb\x1b[31mé🎉') == 'a b?[31mé🎉'
    assert printable(ValueError('x')) == 'x'


# random values, arguments and config files; the same examples every time ------

FEW = hypothesis_settings(max_examples=100, deadline=None, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
TYPES = """
whole = 4       # a comment
part = 0.5
flag = False
name = 'x'
configure(globals(), rules=['whole < 10**6'])
"""


@pytest.fixture
def start(tmp_path):
    """Runs configure with these arguments: (settings, None) or (None, error lines)."""
    (tmp_path / 'script.py').write_text(TYPES)

    def start(*argv):
        err = io.StringIO()
        try:
            with redirect_stderr(err):
                return configure({'__file__': str(tmp_path / 'script.py')}, ['whole < 10**6'], argv=list(argv)), None
        except SystemExit as e:
            assert e.code == 2
            lines = err.getvalue().splitlines()
            assert lines and all(line.startswith('error: ') and line.isprintable() for line in lines)
            return None, lines
    return start


TEXT = st.text(st.characters(exclude_categories=['Cs'])).filter(lambda text: '\0' not in text and text[:2] != '~/')
VALUES = {'whole': st.integers(-2**53 + 1, 10**6 - 1), 'flag': st.booleans(), 'name': TEXT,
          'part': st.floats(allow_nan=False, allow_infinity=False)}


@pytest.mark.parametrize('name', VALUES)
def test_values_of_the_right_type_arrive(start, tmp_path, name):
    """A value of the setting's type comes back exactly, as a flag in one word or two, and from a config file."""
    @FEW
    @given(VALUES[name])
    def check(value):
        text = value if name == 'name' else repr(value)
        (tmp_path / 'config.py').write_text(f'{name} = {value!r}\n', encoding='utf-8')
        ways = [[f'--{name}={text}'], ['config.py']]
        if not text.startswith('--'):
            ways.append([f'--{name}', text])
        for argv in ways:
            values, err = start(*argv)
            assert err is None
            assert type(values[name]) is type(value) and repr(values[name]) == repr(value)  # -0.0 is not 0.0
    check()


@pytest.mark.parametrize('name', ['whole', 'part', 'flag'])
def test_values_of_wrong_types_are_refused(start, tmp_path, name):
    """A flag that stands for no value of the type, and a config value of another type: one line with the name."""
    kind = {'whole': int, 'part': float, 'flag': bool}[name]

    def good(text):
        try:
            return text in ('True', 'true', 'False', 'false') if kind is bool else math.isfinite(kind(text))
        except (ValueError, OverflowError):
            return False

    @FEW
    @given(st.text().filter(lambda text: not good(text)), st.sampled_from(
        ['None', "'1'", '[1]', 'b"1"', 'float("nan")', 'float("inf")', '1j', '10**400', 'int', 'type("X", (), {})']))
    @example('9' * 5000, '10**400')
    @example('1e999', '-10**400')
    @example('', '()')
    def check(text, value):
        for argv in ([f'--{name}={text}'], ['config.py']):
            (tmp_path / 'config.py').write_text(f'{name} = {value}\n')
            _, err = start(*argv)
            assert len(err) == 1 and name in err[0]
    check()


def test_random_arguments(start):
    """Whatever the arguments: they apply, or status 2 and lines `error: ...`; never a traceback."""
    word = st.one_of(st.text(), TEXT.map('--'.__add__), TEXT.map('{}.py'.format), st.sampled_from(['--flag', '--part']),
                     st.builds('--{}={}'.format, st.sampled_from([*VALUES, 'nmae', '']), st.text()))

    @hypothesis_settings(FEW, max_examples=400)
    @given(st.lists(word.filter(lambda text: text not in ('-h', '--help')), max_size=4))
    @example(['--whole=' + '9' * 5000])
    @example(['\0.py'])
    @example(['--name=\ud800'])
    @example(['--name=\0'])
    def check(argv):
        values, err = start(*argv)
        assert err or {key: type(value) for key, value in values.items()} == {
            'whole': int, 'part': float, 'flag': bool, 'name': str}
    check()


def test_random_config_files(start, tmp_path):
    """Whatever a config file holds that cannot do harm: it applies, or status 2 and lines `error: ...`."""
    words = "whole part flag name wohle = = \n 1 - 2.5 True 'a' [ ] * 9 if : None / 0 ( ) for in # %".split(' ')

    @hypothesis_settings(FEW, max_examples=300)
    @given(st.lists(st.sampled_from(words), max_size=12).map(' '.join).map(str.encode) | st.binary(max_size=20))
    @example(b'whole = 10**5000')
    @example(b'name = "\\ud800"')
    def check(source):
        (tmp_path / 'config.py').write_bytes(source)
        start('config.py')
    check()
