"""
Settings of a script: plain module globals, changed by config files and flags.

    python train.py config/small.py config/mine.py --n_layer=4 --out_dir out/a

Arguments apply from left to right, the later one wins. Files and flags are checked alike, and all
that is wrong is said at once: a run that starts has the settings that were asked for.
"""
import ast
import difflib
import glob
import importlib
import os
import re
import reprlib
import sys
import tokenize
import types

KINDS = {bool: 'True or False', int: 'a whole number', float: 'a finite number', str: 'a string'}
LIMITS = {int: ', below 2**53', str: ', without NUL and lone surrogates'}  # what a value of the right type can lack


def configure(settings, rules=(), argv=None, also=''):
    """
    Apply config files and flags to a script's settings.

    settings: the script's globals(), updated in place. A setting is a public name to which the
        script assigns a constant (bool, int, float or str) at module level above its call of
        configure; the type of this default is the type of the setting.
    rules: expressions over the settings that must hold, like 'n_embd % n_head == 0', or pairs
        (expression, hint) where the hint tells the way out. They see no builtins.
    argv: the arguments, sys.argv[1:] by default.
    also: another script, beside this one, whose settings are taken and checked too but not put
        into settings; where both have a name, it is this script's.

    Returns a dict of all settings, name -> final value. --help prints them and exits with status 0.
    Mistakes exit with status 2, one line each on stderr, and leave settings as they were.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    root, program = os.path.split(os.path.abspath(settings['__file__']))
    tree, lines, declared = read_script(settings)
    own = {name: settings[name] for name in declared}
    theirs, their_rules = settings_of(os.path.join(root, also)) if also else ({}, [])
    defaults, rules = {**theirs, **own}, [*rules, *their_rules]
    values = dict(defaults)
    if '-h' in argv or '--help' in argv:
        print(help_text(program, tree, lines, declared, own))
        raise SystemExit(0)
    declared = defaults

    errors = []
    unsure = set()  # settings whose final value a mistake hides: no rule judges them

    def put(where, name, value, found, flag=''):
        default = defaults.get(name)
        if name not in declared:
            near = difflib.get_close_matches(name.lower().replace('-', '_'), declared, 1)
            way = (f'did you mean {flag}{near[0]}?' if near else f'python {program} --help lists those there are'
                   + ('' if flag else ', and _ in front makes it a name of your own'))
            errors.append(f'{where}: unknown setting {name!r}; {way}')
            unsure.update(near)
        elif (good := fit(value, type(default))) is not None:
            values[name] = good
            unsure.discard(name)
        else:
            example = not default if type(default) is bool else default
            example = f'{flag}{name}={example}' if flag else f'{name} = {example!r}'
            kind = f'{KINDS[type(default)]} ({type(default).__name__})'
            kind += LIMITS.get(type(value), '') if type(value) is type(default) else ''
            errors.append(f'{where}: {name} takes {kind}, found {found}; write it like {example}')
            unsure.add(name)

    while argv:
        arg = argv.pop(0)
        if arg.startswith('--'):
            name, equals, text = arg[2:].partition('=')
            if not equals and argv and not argv[0].startswith('--'):
                text = argv.pop(0)
                arg = f'{arg} {text}'
            elif not equals and name in declared:
                example = True if type(defaults[name]) is bool else defaults[name]
                errors.append(f'{arg} needs a value: {arg}={example}')
                unsure.add(name)
                continue
            put(arg, name, literal(text, type(defaults.get(name))), repr(text), '--')
        elif not arg.endswith('.py'):
            flag = '--' + arg.lstrip('-')
            near = f'{arg}.py' if find(f'{arg}.py', root) else flag if flag[2:].partition('=')[0] in declared else ''
            errors.append(f'{arg!r} is neither a config file (*.py) nor a flag (--key=value)'
                          + (f'; did you mean {near}?' if near else ''))
            unsure.update(declared)
        elif not (path := find(arg, root)):
            near = ' or '.join(similar(arg, root))
            errors.append(f'{arg}: no such config file, here or in {root}; '
                          + (f'did you mean {near}?' if near else 'give the path of one that exists'))
            unsure.update(declared)
        else:
            try:
                space, trees = run_config(path, values)
            except (Exception, SystemExit) as e:
                what = f'{type(e).__name__}: {e.msg if isinstance(e, SyntaxError) else e}'
                errors.append(f'{shown(arg, *raised_at(e, path))}: {what}; correct this file')
                unsure.update(declared)
                continue
            scratch = scratch_names(trees.values())
            for name, value in space.items():
                if name in declared:
                    given = value is not values[name]
                else:
                    given = not (name.startswith('_') or name in scratch or callable(value)
                                 or isinstance(value, types.ModuleType))
                if given:
                    found = f'{brief(value)} ({type(value).__name__})'
                    put(shown(arg, *stored_at(name, trees)), name, value, found)

    errors += broken(rules, values, unsure)
    if errors:
        fail(*errors, status=2)
    settings.update((name, values[name]) for name in own)
    return values


def broken(rules, values, unsure=()):
    """What is said of the rules (see configure) that do not hold for these values, {name: value}: a list of
    lines. No rule judges a name that is unsure."""
    lines = []
    for rule in rules:
        rule, hint = (rule, '') if isinstance(rule, str) else rule
        code = compile(rule, '<rule>', 'eval')
        names = [name for name in code.co_names if name in values]
        if set(unsure).intersection(names):
            continue
        try:
            holds = eval(code, {'__builtins__': {}}, dict(values))
        except ArithmeticError:  # n_embd % n_head where n_head=0
            holds = False
        if not holds:
            found = ', '.join(f'{name}={values[name]!r}' for name in names)
            lines.append(f'{rule} does not hold: {found}' + (f'; {hint}' if hint else ''))
    return lines


def fail(*messages, status=1):
    """Say on stderr what is wrong, one line 'error: message' each, and exit with this status."""
    # of the processes that torchrun starts, all make the same mistakes in settings
    rank = os.environ.get('RANK', '0') if 'TORCHELASTIC_RUN_ID' in os.environ else '0'
    for message in messages if rank == '0' or status != 2 else ():
        print('error: ' + f'process {rank}: ' * (rank != '0') + printable(message), file=sys.stderr)
    raise SystemExit(status)


def printable(text):
    """The text as one line; what would be a command to the terminal, in a name from elsewhere, becomes ?"""
    return ''.join(c if c.isprintable() else '?' for c in ' '.join(str(text).splitlines()))


# -----------------------------------------------------------------------------
# the script: which of its names are settings, and what --help says of them

def settings_of(path):
    """({setting: default}, [rule, ...]) of a script, read without running it; its rules must be literals"""
    with tokenize.open(path) as f:
        tree = ast.parse(f.read())
    found, rules = {'__file__': path}, []
    for node in tree.body:
        call = next((n for n in ast.walk(node) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'configure'),
                    None)
        if call:
            rules = [ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == 'rules']
            break
        if isinstance(node, ast.Assign) and not any(isinstance(n, ast.Name) for n in ast.walk(node.value)):
            found[getattr(node.targets[0], 'id', '_')] = eval(compile(ast.Expression(node.value), path, 'eval'))
    _, _, declared = read_script(found)
    return {name: found[name] for name in declared}, rules[0] if rules else []


def read_script(settings):
    """the script's syntax tree, its source lines above the configure call, {setting: its assignment}"""
    with tokenize.open(settings['__file__']) as f:
        source = f.read()
    tree, lines, declared = ast.parse(source), source.splitlines(True), {}
    for node in tree.body:
        calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
        if any('configure' in (getattr(f, 'id', ''), getattr(f, 'attr', '')) for f in calls):
            lines = lines[:node.lineno - 1]
            break
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = getattr(targets[0], 'id', '_')
            constant = not any(isinstance(n, ast.Name) for n in ast.walk(node.value))
            if constant and len(targets) == 1 and name[0] != '_' and type(settings[name]) in KINDS:
                declared[name] = node
    return tree, lines, declared


def help_text(program, tree, lines, declared, values):
    tokens = tokenize.generate_tokens(iter(lines).__next__)
    comments = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    headings = {n + 1: comments[n + 1].string.lstrip('# ') for n, t in comments.items()
                if re.fullmatch('# ?-{4,}', t.string) and n + 1 in comments}  # line -> text below a ruler
    width = max((len(f'{name}={value}') for name, value in values.items()), default=0)
    out = [ast.get_docstring(tree) or '', '', f'usage: python {program} [config.py ...] [--key=value ...]',
           'applied from left to right, the later one wins', '']
    under = None
    for name, node in declared.items():
        heading = headings.get(max((n for n in headings if n < node.lineno), default=None), 'settings')
        if heading != under:
            under = heading
            out.append(heading)
        n, about = node.end_lineno, ''
        while n in comments and (not about or lines[n - 1][:comments[n].start[1]].isspace()):
            about += ' ' + comments[n].string.lstrip('# ')  # may run on in indented comment lines below
            n += 1
        out.append('  --' + f'{name}={values[name]}'.ljust(width) + ' ' + about)
    return '\n'.join(line.rstrip() for line in out).strip()


# -----------------------------------------------------------------------------
# values

def fit(value, kind):
    """the value as a setting of this type, an int where a float is asked too; None where it does not fit"""
    if kind is float and type(value) in (int, float):
        return float(value) if abs(value) <= sys.float_info.max else None  # neither nan nor inf
    if type(value) is not kind:  # so a bool is no int
        return None
    if kind is int:
        return value if abs(value) < 2**53 else None  # beyond it floats, JSON and torch's sizes give out one by one
    if kind is str:  # each may become a path
        try:
            return None if b'\0' in os.fsencode(value) else value
        except UnicodeEncodeError:
            return None
    return value


def brief(value):
    try:
        return reprlib.repr(value)
    except ValueError:
        return 'a number of thousands of digits'  # Python does not write them out


def literal(text, kind):
    """what a config file would hold for the text of a flag; the text itself where it is nothing better"""
    if kind is bool:
        return {'True': True, 'true': True, 'False': False, 'false': False}.get(text, text)
    for number in (int, float) if kind in (int, float) else ():
        try:
            return number(text)
        except ValueError:
            pass
    return text


# -----------------------------------------------------------------------------
# config files

def find(path, root):
    """absolute path of a config file, looked up from here and then from the script's folder"""
    places = os.path.abspath(path), os.path.join(root, path)
    return next((place for place in places if os.path.isfile(place)), None)


def similar(path, root):
    """up to three paths that exist, here or under root, of files named almost like this one"""
    folder, name = os.path.split(path)
    there = {file: found for place in ('config', folder) for base in (root, os.getcwd())
             for file in glob.glob('*.py', root_dir=os.path.join(base, place))
             if find(found := os.path.join(place, file), root)}
    near = difflib.get_close_matches(name, there, 3) or [file for file in there if file.endswith(name)][:3]
    return [there[file] for file in near]


def run_config(path, values):
    """the namespace that a config file leaves, and {file: tree} of it and of the neighbours it imported"""
    folder, name = os.path.split(path)
    space = dict(values, __file__=path, __name__=name.removesuffix('.py'))
    modules, places, no_bytecode = set(sys.modules), sys.path[:], sys.dont_write_bytecode
    sys.path.insert(0, folder)  # so that `from small import *` finds the small.py beside it
    sys.dont_write_bytecode = True  # no __pycache__ among the configs
    importlib.invalidate_caches()
    files = [path]
    try:
        with open(path, 'rb') as f:
            source = f.read()
        exec(compile(source, path, 'exec'), space)
    finally:
        sys.path[:], sys.dont_write_bytecode = places, no_bytecode
        for name in [name for name in sys.modules if name not in modules]:
            file = os.path.abspath(getattr(sys.modules[name], '__file__', None) or os.sep)
            if os.path.dirname(file) == folder and file.endswith('.py'):
                del sys.modules[name]  # the next config reads it afresh
                files.append(file)
    trees = {}
    for file in files:
        with open(file, 'rb') as f:
            trees[file] = ast.parse(f.read())
    return space, trees


def shown(arg, file, line):
    """a file of the config's folder as the user would write it, with the line where it is known"""
    return os.path.join(os.path.dirname(arg), os.path.basename(file)) + (f':{line}' if line else '')


def raised_at(error, path):
    """file and line of an error: the innermost in the folder of the config file"""
    where, tb = [(path, None)], error.__traceback__
    while tb:
        where.append((tb.tb_frame.f_code.co_filename, tb.tb_lineno))
        tb = tb.tb_next
    if isinstance(error, SyntaxError):
        where.append((error.filename or '', error.lineno))
    return [at for at in where if os.path.dirname(at[0]) == os.path.dirname(path) and at[0] != __file__][-1]


def stored_at(name, trees):
    """file and line where a name was last assigned, in the config file rather than in its neighbours"""
    for file, tree in trees.items():
        lines = [n.lineno for n in ast.walk(tree)
                 if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store)]
        if lines:
            return file, max(lines)
    return next(iter(trees)), None


def scratch_names(trees):
    """names bound by import, for, with and :=, not meant as settings (those of except are gone by then)"""
    names, targets = set(), []
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition('.')[0])
        elif isinstance(node, (ast.For, ast.NamedExpr)):
            targets.append(node.target)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            targets.append(node.optional_vars)
    return names | {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
