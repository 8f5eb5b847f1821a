"""The import graph of the project. `pytest -n 0 -s tests/test_structure.py` prints it."""
import ast
import graphlib
import subprocess
import sys

from conftest import ROOT

CORE = {'model', 'losses', 'configurator'}
TORCH_FREE = ['configurator', 'nanoloss.paths', 'nanoloss.metrics_log', 'nanoloss.launcher', 'nanoloss.search_space',
              'nanoloss.tokenizer', 'nanoloss.readers']


def modules():
    """Return {name: path} of all modules of the project but the tests."""
    paths = [path for pattern in ('*.py', 'nanoloss/*.py', 'dev/*.py', 'data/*/*.py') for path in ROOT.glob(pattern)]
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__') for path in paths]
    return dict(zip(names, paths, strict=True))


def import_graph():
    """Return {module: the project's modules that it imports, anywhere in its code}."""
    known, graph = modules(), {}
    for name, path in known.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f'{node.module}.{alias.name}' for alias in node.names} | {node.module}
        folder = name.rpartition('.')[0]  # a script also finds the modules beside it
        graph[name] = {module for module in known for imported in found
                       if module in (imported, f'{folder}.{imported}') and module not in ('nanoloss', name)}
    return graph


def test_import_graph():
    """No cycle; scripts import nanoloss, which imports model, losses and configurator; these import nothing."""
    graph = import_graph()
    for name, imports in sorted(graph.items()):
        print(f'{name:30} -> {", ".join(sorted(imports)) or "-"}')
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
    for name, imports in graph.items():
        if name in CORE:
            assert not imports, name
        elif name.startswith('nanoloss'):
            assert all(module in CORE or module.startswith('nanoloss.') for module in imports), name
    assert graph['train'] >= {'model', 'losses', 'configurator'}


def test_scripts_are_not_imported():
    """No script is imported by another module."""
    scripts = {name for name in modules() if not name.startswith('nanoloss')} - CORE
    grammar = {'data.synthetic.grammar'}  # the one module beside a script
    for name, imports in import_graph().items():
        assert not imports & (scripts - grammar), name


def test_top_level():
    """At most eleven Python files at the top level."""
    assert len([*ROOT.glob('*.py')]) <= 11


def test_subprocesses_name_their_encoding():
    """No text from another process is read in the encoding of the terminal."""
    for name, path in modules().items():
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(node, ast.Call)]
        assert not [f'{name}:{call.lineno}' for call in calls if ast.unparse(call.func).startswith('subprocess.')
                    for keyword in call.keywords if keyword.arg in ('text', 'universal_newlines')]


def test_torch_is_imported_late():
    """Modules that answer before torch is loaded do not import it."""
    code = f'import sys, {", ".join(TORCH_FREE)}; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_environment_is_set_before_torch():
    """Scripts import nanoloss, which sets variables that torch reads when it is imported, before torch."""
    for path in sorted(ROOT.glob('*.py')):
        lines = {}
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [node.module or ''] if isinstance(node, ast.ImportFrom) else \
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                package = name.partition('.')[0]
                lines[package] = min(node.lineno, lines.get(package, node.lineno))
        if 'nanoloss' in lines:
            torch_users = [lines[name] for name in ('torch', 'model', 'losses') if name in lines]
            assert all(lines['nanoloss'] < line for line in torch_users), path
