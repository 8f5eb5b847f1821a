"""README.md and docs/: links, flags and paths exist. dev/check_docs.py runs the commands."""
import collections
import functools
import re

import pytest

from configurator import parse_script, read_settings
from conftest import ROOT
from dev.check_docs import pages, read_blocks

TRAIN_SETTINGS_TOO = ('compare.py', 'tune.py', 'dev/race.py')  # race.py passes --flags on
ARGUMENTS_OF_THEIR_OWN = ('make.py',)
ALL = [ROOT / 'README.md', *sorted(ROOT.glob('docs/**/*.md'))]
COMMANDS = [(page, command) for page in pages() for commands, _ in read_blocks(page) for command in commands]
# files that commands create, that a reader would write, or of other projects
NOT_OURS = re.compile(r'my_\w+\.py|(studies/\w+/)?best\.py|(configuration|modeling|tokenization)_\w+\.py')


def name(page):
    return str(page.relative_to(ROOT))


def split_page(page):
    """Return (lines outside of fenced blocks, lines inside)."""
    outside, inside, fenced = [], [], False
    for line in page.read_text(encoding='utf-8').splitlines():
        if line.lstrip().startswith('```'):
            fenced = not fenced
        else:
            (inside if fenced else outside).append(line)
    assert not fenced, f'{name(page)}: a fenced block has no end'
    return outside, inside


@functools.cache
def anchors(page):
    """Return the anchors that GitHub gives to the headings of a page."""
    found, seen = set(), collections.Counter()
    for line in split_page(page)[0]:
        if match := re.fullmatch(r'#{1,6} +(.*?)[ #]*', line):
            text = re.sub(r'!?\[([^]]*)\]\([^)]*\)', r'\1', match[1])  # of a link only its text
            slug = re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-')
            found.add(f'{slug}-{seen[slug]}' if seen[slug] else slug)
            seen[slug] += 1
    return found


def links(page):
    """Return the targets of all links and images of a page."""
    text = re.sub(r'`[^`\n]*`', '', '\n'.join(split_page(page)[0]))
    return re.findall(r'\]\(\s*([^)\s]+)[^)]*\)', text) + re.findall(r'^\[[^]]+\]:\s*(\S+)', text, re.MULTILINE)


def scripts_and_flags(command):
    """Yield (script, [its flags]) for each script that a command runs; quotes count as spaces."""
    for part in re.split(r'(?:^|\s)(?:&&|\|\|?|&|;|>+)(?:\s|$)|;\s', re.split(r'\s#', command)[0]):
        words = re.split(r'[\s\'"]+', part)
        runs = [i for i, word in enumerate(words) if word.endswith('.py') and not word.startswith(('config/', '--'))
                and (ROOT / word).is_file()]
        if runs:
            yield words[runs[0]], [re.split('[= ]', word)[0] for word in words[runs[0]:] if word.startswith('--')]


@functools.cache
def known_flags(script):
    """Return the names of a script's settings, or of its argparse arguments."""
    if parse_script(ROOT / script)[3] is None:
        return set(re.findall(r"add_argument\('--(\w+)'", (ROOT / script).read_text(encoding='utf-8')))
    train = set(read_settings(ROOT / 'train.py')[0]) if script in TRAIN_SETTINGS_TOO else set()
    return set(read_settings(ROOT / script)[0]) | train | {'help'}


@pytest.mark.parametrize('page', ALL, ids=name)
def test_links_exist(page):
    """Every relative link leads to a file of the repository, and every anchor to a heading."""
    broken = []
    for link in links(page):
        if re.match('[a-z]+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(link)
        elif anchor and anchor not in anchors(target):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize('page', pages(), ids=name)
def test_flags_are_settings(page):
    """Every flag in a command is a setting of the script that it is passed to."""
    unknown = [f'{script} {flag}' for command_page, command in COMMANDS if command_page == page
               for script, flags in scripts_and_flags(command) if script not in ARGUMENTS_OF_THEIR_OWN
               for flag in flags if flag.removeprefix('--') not in known_flags(script)]
    assert not unknown


@pytest.mark.parametrize('page', pages(), ids=name)
def test_paths_exist(page):
    """Every Python file that a page names is in the repository: with its path, or by its name alone."""
    folders = [ROOT / folder for folder in ('nanoloss', 'config', 'data', 'tests', 'dev')]
    names = {path.name for path in [*ROOT.glob('*.py'), *(path for folder in folders for path in folder.rglob('*.py'))]}
    found = re.findall(r'(?<![\w/.*}-])[\w/]+\.py\b', page.read_text(encoding='utf-8'))
    missing = {path for path in found if not NOT_OURS.fullmatch(path)
               and not ((ROOT / path).is_file() if '/' in path else path in names)}
    assert not missing


@pytest.mark.parametrize('page', pages(), ids=name)
def test_blocks_have_a_language(page):
    """Every fenced block says what it holds: sh for commands, text for output, python, ... ."""
    fences = [line.strip() for line in page.read_text(encoding='utf-8').splitlines() if line.lstrip().startswith('```')]
    assert all(fence != '```' for fence in fences[::2])


def test_anchors():
    """Anchors of headings with code, punctuation and the same words twice, as GitHub makes them."""
    page = type('Page', (), {'read_text': lambda self, encoding: '# `--init_from`, more\n```sh\n# no\n```\n'
                             '## α = 0.1 & [link](x.md)\n## Again\n## Again\n'})()
    assert anchors(page) == {'--init_from-more', 'α--01--link', 'again', 'again-1'}


def test_scripts_and_flags():
    """Flags belong to the script before them, also in a pipe, under torchrun and within quotes."""
    command = "torchrun --standalone train.py config/a.py --loss=mse --seed 3 | python evaluate.py --json=True  # --x"
    assert list(scripts_and_flags(command)) == [('train.py', ['--loss', '--seed']), ('evaluate.py', ['--json'])]
    assert list(scripts_and_flags("bash -c 'torchrun --nnodes=2 train.py --loss=mse'")) == [('train.py', ['--loss'])]


def test_every_flag_in_prose_is_a_setting():
    """Every --flag that README and docs name, also outside of commands, is a setting of some script."""
    scripts = [*ROOT.glob('*.py'), *ROOT.glob('data/*/prepare.py'), ROOT / 'dev/race.py']
    known = set()
    for script in scripts:
        if 'configure(' in script.read_text() and script.name not in ('configurator.py', 'make.py'):
            known |= set(read_settings(script)[0])
    others = {'help', 'key', 'index-url',  # of every script, of the syntax, of pip
              'standalone', 'nproc_per_node', 'nnodes', 'rdzv_backend', 'rdzv_id', 'rdzv_endpoint', 'max-restarts',
              'nodes', 'ntasks-per-node', 'gpus-per-node', 'signal',  # of torchrun and srun
              'figure', 'labels', 'study_labels', 'rungs', 'beside', 'titles', 'data', 'page', 'repo'}  # of dev/
    for page in [ROOT / 'README.md', *ROOT.glob('docs/*.md')]:
        named = set(re.findall(r'(?<![-\w])--([a-zA-Z][\w-]*)', page.read_text(encoding='utf-8')))
        assert named <= known | others, (page.name, named - known - others)
