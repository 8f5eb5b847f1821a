"""Settings of a script: module globals that config files and flags override.

    python train.py config/train_tinystories_mse.py my_config.py --n_layer=4 --out_dir out/a

Later arguments override earlier ones. A config file is Python that assigns to settings. It sees their current values
(n_embd = 64 * n_head) and can start from a config file in its folder (from train_tinystories_30m import *). Names of
helper variables start with _. A text that starts with ~ is a path in the home folder. Unlike in nanoGPT, names and
types are checked and all mistakes are reported together.
"""
import ast
import difflib
import importlib
import os
import re
import sys
import tokenize
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

KINDS = {bool: 'True or False', int: 'a whole number below 2**53', float: 'a finite number',  # see coerce()
         str: 'a string without NUL and lone surrogates'}


def configure(settings, rules=(), applies=(), argv=None, also=''):
    """Apply config files and flags to a script's settings.

    settings: the script's globals(), updated in place. A setting is a public name to which the script assigns a bool,
        int, float or str at module level, above its call of configure. The type of this default is the setting's type.
    rules: expressions over the settings that must be true, like 'n_embd % n_head == 0', or pairs (expression, hint)
        where the hint says what to do. They cannot use builtins.
    applies: tuples (expression, setting, ...) for settings that have an effect only if the expression is true. If it
        is false, a flag for such a setting is a mistake, and a value from a config file is reset to the default before
        the rules are checked.
    argv: the arguments, sys.argv[1:] by default.
    also: the file name of another script in the same folder. Its settings are accepted, checked and returned as well.

    Returns {setting: final value}. Exits with status 0 for --help, and with status 2 and a line for each mistake.
    """
    prepare_streams()
    script = os.path.abspath(settings['__file__'])
    root = os.path.dirname(script)
    argv = list(sys.argv[1:] if argv is None else argv)
    if '-h' in argv or '--help' in argv:
        print(help_text(script))
        raise SystemExit(0)
    own = parse_script(script)[1]
    also_defaults, also_rules, also_applies = read_settings(os.path.join(root, also)) if also else ({}, [], [])
    defaults, rules, applies = also_defaults | own, [*rules, *also_rules], [*also_applies, *applies]
    values = dict(defaults)
    flags, errors = {}, []  # {setting: the argument that sets it}, messages
    unsure = set()  # settings with a mistake: their intended value is unknown, so no rule or condition judges it

    def mistake(message, *names):
        errors.append(message)
        unsure.update(names)

    def assign(where, name, value, found, dashes=''):
        kind = type(defaults.get(name))
        if type(value) is bool and name == 'compile' and kind is str:  # compile = False, as in nanoGPT's configs
            value = str(value)
        coerced = coerce(value, kind)
        if name not in defaults:
            near = difflib.get_close_matches(name.lower().replace('-', '_'), defaults, 1)
            advice = (f'did you mean {dashes}{near[0]}?' if near else
                      f'python {os.path.relpath(script)} --help lists all' +
                      ('' if dashes else '; helper variables of configs start with _'))
            mistake(f'{where}: unknown setting {name!r}; {advice}', *near)
        elif coerced is None:
            example = True if kind is bool else defaults[name]
            example = f'{dashes}{name}={example}' if dashes else f'{name} = {example!r}'
            mistake(f'{where}: {name} takes {KINDS[kind]} ({kind.__name__}), found {found}; example: {example}', name)
        else:
            values[name] = coerced
            unsure.discard(name)

    while argv:
        arg = argv.pop(0)
        files = [path for path in (os.path.abspath(arg), os.path.join(root, arg)) if os.path.isfile(path)]
        if arg.startswith('--'):
            name, equals, text = arg[2:].partition('=')
            if not equals and argv and not argv[0].startswith('--'):
                equals, text = ' ', argv.pop(0)
                arg = f'{arg} {text}'
            flags[name] = arg
            value = parse_flag(text, type(defaults.get(name))) if equals else None
            assign(arg, name, value, repr(text) if equals else 'no value', '--')
        elif arg.endswith('.py') and files:
            try:
                for name, value, file, line in read_config(files[0], values):
                    where = os.path.join(os.path.dirname(arg), os.path.basename(file)) + (f':{line}' if line else '')
                    assign(where, name, value, f'{value!r:.80} ({type(value).__name__})')
            except (Exception, SystemExit) as e:
                lines = [f':{call.lineno}' for call in extract_tb(e.__traceback__) if call.filename == files[0]]
                where = arg + (lines[-1] if lines else '')
                mistake(f'{where}: {type(e).__name__}: {e}; correct this file', *defaults)
        else:
            configs = [f'config/{path.name}' for path in Path(root, 'config').glob('*.py')]
            near = difflib.get_close_matches(arg, [*configs, *(f'--{name}' for name in defaults)], 1)
            advice = f'; did you mean {near[0]}?' if near else ''
            mistake(f'{arg!r} is neither an existing config file (*.py) nor a flag (--key=value){advice}', *defaults)

    for condition, *names in applies:
        found = violation(condition, values, unsure)
        for name in names if found else ():
            if name in flags and name not in unsure:
                mistake(f'{flags[name]} requires {condition}, got {found}; omit the flag', name)
            else:
                values[name] = defaults[name]
    errors += broken_rules(rules, values, unsure)
    if errors:
        fail(*errors, status=2)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = report_missing_package
    settings.update((name, values[name]) for name in own)
    return values


def prepare_streams():
    """Let no script fail because stdout cannot encode a character (Python escapes those on stderr) or is closed.

    The encoding stays that of the terminal or of PYTHONIOENCODING, where UTF-8 would not be readable. A character that
    it lacks becomes a question mark.
    """
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed at startup: >&-
            setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))
    if hasattr(sys.stdout, 'reconfigure'):  # not in a notebook
        sys.stdout.reconfigure(errors='replace')


def flag_names():
    """Names of the settings that are given on the command line rather than by a config file."""
    return {arg[2:].partition('=')[0] for arg in sys.argv[1:] if arg.startswith('--')}


def fail(*messages, status=1):
    """Print each message as a line 'error: message' on stderr and exit with this status.

    Status 2 is for mistakes in settings and 3 for divergence: under torchrun all ranks find them, and only rank 0
    prints.
    """
    rank = os.environ.get('RANK', '0') if 'TORCHELASTIC_RUN_ID' in os.environ else '0'
    if rank == '0' or status not in (2, 3):
        for message in messages:
            print('error: ' + ('' if rank == '0' else f'rank {rank}: ') + printable(message), file=sys.stderr)
    raise SystemExit(status)


@contextmanager
def fail_on(*errors, status=1):
    """Turn these exceptions into fail()."""
    try:
        yield
    except errors as e:
        fail(e, status=status)


def require(*packages):
    """Import packages that a script needs only later, so that a missing one is reported before the work is done."""
    for name in packages:
        importlib.import_module(name)


def report_missing_package(kind, error, traceback):
    """The excepthook: one line for a package that is not installed, the traceback for the rest."""
    package = error.name.partition('.')[0] if issubclass(kind, ModuleNotFoundError) and error.name else None
    if not package or sys.modules.get(package):  # a missing module of an installed package is a bug
        return sys.__excepthook__(kind, error, traceback)
    try:
        fail(f'the package {package} is not installed; run: pip install {package}')
    except SystemExit:
        pass  # Python exits with status 1 after the excepthook


def printable(text):
    """The text on one line, with ? for characters that could control the terminal."""
    return ''.join(c if c.isprintable() else '?' for c in ' '.join(str(text).splitlines()))


def violation(expression, values, unsure=()):
    """'name=value, ...' of the settings in a false expression; None if it is true or has a setting in unsure."""
    names = [node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)]
    found = {name: values[name] for name in names if name in values}
    try:
        if not found.keys().isdisjoint(unsure) or eval(expression, {'__builtins__': {}}, dict(values)):
            return None
    except ArithmeticError:  # n_embd % n_head with n_head = 0
        pass
    return ', '.join(f'{name}={value!r}' for name, value in found.items())


def broken_rules(rules, values, unsure=()):
    """A line for each rule (see configure) that these values make false, except for rules with settings in unsure."""
    pairs = [(rule, '') if isinstance(rule, str) else rule for rule in rules]
    return [f'{expression} must be true, got {found}' + (f'; {hint}' if hint else '') for expression, hint in pairs
            if (found := violation(expression, values, unsure)) is not None]


def coerce(value, kind):
    """The value as a setting of type kind, or None if it is not one.

    Ints are accepted as floats. In a text, ~/ at the start becomes the home folder.
    """
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if (type(value) is not kind  # isinstance would accept a bool as an int
            or kind is int and abs(value) >= 2**53  # not exact in float64 and JSON
            or kind is float and not abs(value) <= sys.float_info.max  # inf or nan
            or kind is str and re.search('[\0\ud800-\udc7f\udd00-\udfff]', value)):  # not possible in a path
        return None
    if kind is str and value.startswith(('~/', f'~{os.sep}')):
        value = os.path.expanduser(value)
    return value


def parse_flag(text, kind):
    """The value that the text of a flag stands for, or the text itself if it does not fit the type."""
    try:
        return {'True': True, 'true': True, 'False': False, 'false': False}[text] if kind is bool else kind(text)
    except (KeyError, TypeError, ValueError):
        return text


def parse_script(path):
    """(syntax tree, {setting: default}, {last line of its assignment: setting}, call of configure) of a script."""
    tree, defaults, lines = ast.parse(Path(path).read_bytes()), {}, {}
    for node in tree.body:
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == 'configure':
                return tree, defaults, lines, call
        match node:
            case (ast.Assign(targets=[ast.Name(id=name)], value=value)
                  | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)):
                constant = not any(isinstance(n, ast.Name) for n in ast.walk(value))
                default = eval(compile(ast.Expression(value), path, 'eval')) if constant else None
                if name[0] != '_' and type(default) in KINDS:
                    defaults[name], lines[node.end_lineno] = default, name
    return tree, defaults, lines, None


def read_settings(path):
    """(defaults {setting: value}, rules, applies) of a script, without running it. Rules and applies are literals."""
    _, defaults, _, call = parse_script(path)
    literals = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in ('rules', 'applies')}
    return defaults, literals.get('rules', []), literals.get('applies', [])


def help_text(path):
    """The docstring of a script, then its settings with their comments, under its headings '# text ------'."""
    tree, defaults, lines, _ = parse_script(path)
    with tokenize.open(path) as f:
        comments = {t.start[0]: t for t in tokenize.generate_tokens(f.readline) if t.type == tokenize.COMMENT}
    text = {line: t.string.lstrip('# ') for line, t in comments.items()}
    usage = f'usage: python {os.path.relpath(path)} [config.py ...] [--key=value ...]'
    out = [ast.get_docstring(tree) or '', '', usage, 'later arguments override earlier ones', '']
    width = max((len(f'{name}={value}') for name, value in defaults.items()), default=0)
    last = 0  # line of the last setting or comment of it
    for line in sorted({*lines, *text}):
        if line in lines:
            setting = f'{lines[line]}={defaults[lines[line]]}'
            out.append(f'  --{setting:{width}}  {text.get(line, "")}')
            last = line
        elif line == last + 1 and comments[line].line[:comments[line].start[1]].isspace():  # the comment continues
            out[-1] += ' ' + text[line]
            last = line
        elif (heading := re.fullmatch('(.*[^-]) -{4,}', text[line])) and line < max(lines, default=0):
            out.append(heading[1])
    return '\n'.join(line.rstrip() for line in out).strip()


def read_config(path, values):
    """[(name, value, file, line), ...] of the settings and unknown public names that a config file assigns."""
    space, trees = run_config(path, values)
    ignored = scratch_names(trees.values())
    changed = {name: value for name, value in space.items() if name not in values or value is not values[name]}
    return [(name, value, *assigned_at(name, trees)) for name, value in changed.items()
            if name in values or not (name[0] == '_' or name in ignored or callable(value))]


def run_config(path, values):
    """Run a config file on these values: (its namespace, {file: syntax tree} of it and the config files it imports)."""
    space, folder, modules = dict(values, __file__=path), os.path.dirname(path), set(sys.modules)
    sys_path, no_bytecode = sys.path[:], sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True  # no __pycache__ among the configs
    try:
        exec(compile(Path(path).read_bytes(), path, 'exec'), space)
    finally:
        sys.path[:], sys.dont_write_bytecode = sys_path, no_bytecode
        imported = [sys.modules.pop(name).__file__ for name in set(sys.modules) - modules  # so that they can run again
                    if os.path.dirname(getattr(sys.modules[name], '__file__', None) or '') == folder]
    return space, {file: ast.parse(Path(file).read_bytes()) for file in [path, *imported]}


def assigned_at(name, trees):
    """(file, line) of the last assignment to a name in {file: syntax tree}; (first file, None) if there is none."""
    for file, tree in trees.items():
        if lines := [node.lineno for node in ast.walk(tree)
                     if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)]:
            return file, max(lines)
    return next(iter(trees)), None


def scratch_names(trees):
    """Names bound in these syntax trees by import, for, with and :=, which are not meant as settings."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.alias(name=name, asname=alias):
                names.add((alias or name).partition('.')[0])
            case ast.For(target=target) | ast.NamedExpr(target=target) | ast.withitem(optional_vars=target) if target:
                names.update(n.id for n in ast.walk(target) if isinstance(n, ast.Name))
    return names
