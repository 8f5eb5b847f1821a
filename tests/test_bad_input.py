"""What cannot be right, given to every script: one line that names it and the way out, and nothing is touched."""
import ast
import copy
import gzip
import itertools
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch

import checkpoint
import losses
from conftest import ROOT, run
from model import GPT, GPTConfig
from tokenizer import Tokenizer, train_bpe

TRAIN, SAMPLE, EVALUATE, MAKE = 'train.py', 'sample.py', 'evaluate.py', 'make.py'
PREPARE = 'data/tinystories/prepare.py'
BASE = {TRAIN: '--n_layer=1 --n_head=2 --n_embd=16 --block_size=32 --batch_size=4 --max_iters=2 --eval_iters=1 '
               '--sample_tokens=0 --dataset=data --out_dir=new', SAMPLE: '--out_dir=run --num_samples=1',
        EVALUATE: '--bootstrap=9', PREPARE: '--tokenizer=byte --out_dir=new', MAKE: '',
        'race.py': '--dataset=data'}
ANOTHER = 'give another'  # what is said of a checkpoint that is none
AGAIN = 'prepare the data again'
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a CUDA GPU')
PROC = pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc, where not even root can write')


@pytest.fixture(scope='module')
def good(tiny_data, tmp_path_factory):
    """A folder with data, the run of a tiny model on it, and stories: all good. No test changes it."""
    folder = tmp_path_factory.mktemp('good')
    shutil.copytree(tiny_data, folder / 'data')
    (folder / 'stories.txt').write_text('<|endoftext|>'.join(f'Story {i}.' for i in range(200)))
    status, _, err = run(ROOT / TRAIN, *BASE[TRAIN].split(), '--out_dir=run', cwd=folder)
    assert status == 0, err
    return folder


@pytest.fixture
def here(good, tmp_path):
    """A copy of it to damage; sample.py reads the run's ckpt.pt, since there is no best.pt."""
    folder = shutil.copytree(good, tmp_path / 'here')
    (folder / 'run/best.pt').unlink()
    return folder


def state(folder):
    """{path: size and time, None for a folder}; without the empty lock that a folder may keep."""
    return {path: None if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.rglob('*') if path.name != 'lock' or path.stat().st_size}


def repository():
    """What lies in the repository, but for caches."""
    return {path for place in (ROOT, *ROOT.glob('data/*')) for path in place.iterdir()
            if path.name not in ('.git', '.pytest_cache', '.hypothesis', '.ruff_cache', '__pycache__')}


def refused(folder, script, flags, *says, lines=1):
    """Run the script in the folder: it must fail with so many lines `error: ...` that say this, and touch nothing."""
    flags = flags.split() if isinstance(flags, str) else flags
    before = state(folder), repository()
    status, _, err = run(ROOT / script, *BASE[script].split(), *flags, cwd=folder, timeout=30,
                         limits={'RLIMIT_AS': 6 << 30})  # torch alone has 3: whoever believes 10^12 of anything fails
    assert status in (1, 2), (status, err)
    assert err.count('\n') == lines and all(line.startswith('error: ') for line in err.splitlines()), err
    for text in says:
        assert text in err
    assert (state(folder), repository()) == before


def named(rows):
    """pytest.params of rows (name, ...)."""
    return [pytest.param(*row[1:], id=row[0]) for row in rows]


# -----------------------------------------------------------------------------
# flags: script, flags, what is named, the way out

FLAGS = [
    # names and arguments
    (TRAIN, '--learning_rte=1', "'learning_rte'", 'did you mean --learning_rate?'),
    (TRAIN, '--Learning-Rate=1', "'Learning-Rate'", 'did you mean --learning_rate?'),
    (TRAIN, '--xyz=1', "'xyz'", 'train.py --help'),
    (TRAIN, '--=1', "''", 'train.py --help'),
    (TRAIN, '--', "''", 'train.py --help'),
    (TRAIN, '-n_layer=3', "'-n_layer=3'", 'did you mean --n_layer=3?'),
    (TRAIN, 'n_layer=3', "'n_layer=3'", 'did you mean --n_layer=3?'),
    (TRAIN, [''], "''", '--key=value'),
    (TRAIN, 'run/ckpt.pt', "'run/ckpt.pt'", '*.py'),
    (TRAIN, '--n_layer', '--n_layer needs a value', '--n_layer=4'),
    (TRAIN, '--eval_only --seed=1', '--eval_only needs a value', '--eval_only=True'),
    (SAMPLE, '--temp=1', "'temp'", 'sample.py --help'),
    (SAMPLE, '--topk=1', "'topk'", 'did you mean --top_k?'),
    (SAMPLE, '--start', '--start needs a value', '--start='),
    (EVALUATE, '--ckpt=x', "'ckpt'", 'evaluate.py --help'),
    (EVALUATE, '--compar=x', "'compar'", 'did you mean --compare?'),
    (PREPARE, '--stories=3', "'stories'", 'did you mean --max_stories?'),
    (PREPARE, 'stories.txt', "'stories.txt'", '--key=value'),
    # types
    (TRAIN, '--n_layer=1.5', "'1.5'", '--n_layer=4'),
    (TRAIN, '--n_layer=', "found ''", '--n_layer=4'),
    (TRAIN, '--max_iters=1e3', "'1e3'", '--max_iters=2000'),
    (TRAIN, '--n_embd=' + '9' * 20, 'below 2**53', '--n_embd=128'),
    (TRAIN, '--n_embd=' + '9' * 5000, '99999', '--n_embd=128'),
    (TRAIN, '--dropout=nan', "'nan'", '--dropout=0.0'),
    (TRAIN, '--learning_rate=inf', "'inf'", '--learning_rate=0.004'),
    (TRAIN, '--learning_rate=1e9999', "'1e9999'", '--learning_rate=0.004'),
    (TRAIN, '--learning_rate=4e-3x', "'4e-3x'", '--learning_rate=0.004'),
    (TRAIN, '--learning_rate=', "found ''", '--learning_rate=0.004'),
    (TRAIN, '--bias=yes', "'yes'", '--bias=True'),
    (TRAIN, '--bias=1', "'1'", '--bias=True'),
    (SAMPLE, '--num_samples=three', "'three'", '--num_samples=3'),
    (SAMPLE, '--top_p=nan', "'nan'", '--top_p=0.9'),
    (EVALUATE, '--json=1', "'1'", '--json=True'),
    (EVALUATE, '--stride=0.5', "'0.5'", '--stride=0'),
    (PREPARE, '--overwrite=yes', "'yes'", '--overwrite=True'),
    (PREPARE, '--val_fraction=-inf', "'-inf'", '--val_fraction=0.02'),
    (PREPARE, '--workers=0.5', "'0.5'", '--workers=0'),
    # what the script looks up or opens
    (TRAIN, '--loss=hinge', "'hinge'", 'choose from cross_entropy, mse'),
    (TRAIN, '--loss=', "''", 'choose from cross_entropy, mse'),
    (TRAIN, '--squentropy_schedule=sqrt --loss=squentropy', "'sqrt'", "'linear'"),
    (TRAIN, '--squentropy_schedule=linear', "'linear'", 'of --loss=squentropy'),
    (TRAIN, '--loss=mse --z_loss=1e-3', 'z_loss=0.001', 'of --loss=cross_entropy'),
    (TRAIN, '--mse_end=0.5', 'mse_end=0.5', 'of --loss=mse'),
    (TRAIN, '--train_tokens=-1', 'train_tokens=-1', 'train_tokens >= 0'),
    (EVALUATE, '--random_batches=10', 'random_batches=10', '--blocks=True'),
    (TRAIN, '--dataset=nowhere', '--dataset=nowhere', 'tinystories/bpe'),
    (TRAIN, '--dataset=', '--dataset=', 'tinystories/bpe'),
    (TRAIN, '--dataset=tinystories/nosuch', 'tinystories/nosuch', 'prepare.py --tokenizer=nosuch'),
    (TRAIN, '--dataset=run', '--dataset=run', 'tinystories/bpe'),
    (TRAIN, '--block_size=1000000000000', 'block_size=1000000000000', 'lower --block_size'),
    (TRAIN, '--n_embd=1000000000', 'out of memory', 'make the model smaller'),
    (TRAIN, '--n_embd=1000000000000000', 'out of memory', 'make the model smaller'),
    (TRAIN, '--device=cpu:x', '--device=cpu:x', '--device=auto'),
    (TRAIN, '--out_dir=', "out_dir=''", 'choose another'),
    (TRAIN, '--out_dir=stories.txt', '--out_dir=stories.txt', 'choose another'),
    (TRAIN, '--out_dir=stories.txt/x/y', '--out_dir=stories.txt/x/y', 'choose another'),
    (TRAIN, '--out_dir=' + 'x' * 300, 'xxx', 'choose another'),
    (TRAIN, '--out_dir=/dev/null', '--out_dir=/dev/null', 'choose another'),
    (TRAIN, '--init_from=', "''", 'give another'),
    (TRAIN, '--init_from=nowhere.pt', 'nowhere.pt', 'give another'),
    (TRAIN, '--init_from=run', 'no checkpoint run', 'give another'),
    (TRAIN, '--init_from=resume', 'new/ckpt.pt', 'train first'),
    (TRAIN, '--init_from=run/best.pt --block_size=64', '--block_size=64', 'no more'),
    (TRAIN, '--init_from=resume --out_dir=run --loss=mse', 'loss cross_entropy -> mse', '--init_from=run/ckpt.pt'),
    (TRAIN, '--init_from=resume --out_dir=run --n_layer=2 --seed=3', 'n_layer 1 -> 2', 'resume with the same config'),
    (SAMPLE, '--out_dir=nowhere', 'nowhere/ckpt.pt', 'train first'),
    (SAMPLE, '--out_dir=', 'under out/', 'python train.py'),
    (SAMPLE, '--out_dir=stories.txt', 'stories.txt/ckpt.pt', 'give another'),
    (SAMPLE, '--start=FILE:nowhere.txt', 'FILE:nowhere.txt', 'give a text file'),
    (SAMPLE, '--start=FILE:data', 'FILE:data', 'give a text file'),
    (SAMPLE, '--start=FILE:', '--start=FILE:', 'give a text file'),
    (EVALUATE, '', 'under out/', 'python train.py'),
    (EVALUATE, '--out_dir=nowhere', 'nowhere/ckpt.pt', 'train first'),
    (EVALUATE, '--checkpoint=stories.txt', 'stories.txt', 'give another'),
    (EVALUATE, '--out_dir=run --stride=33', '--stride=33', 'block_size=32'),
    (EVALUATE, '--out_dir=run --compare=nowhere.pt', 'nowhere.pt', 'give another'),
    (EVALUATE, '--out_dir=run --dataset=nowhere', '--dataset=nowhere', 'tinystories/bpe'),
    (EVALUATE, '--out_dir=run --plots=stories.txt', '--plots=stories.txt', 'choose another'),
    (EVALUATE, '--out_dir=run --plots=stories.txt/x', '--plots=stories.txt/x', 'choose another'),
    (PREPARE, '--input=nowhere.txt', 'nowhere.txt', 'give another file'),
    (PREPARE, '--input=stories.txt --test_input=nowhere.txt', 'nowhere.txt', 'give another file'),
    (PREPARE, '--input=data', 'data: ', '.txt, .txt.gz, .jsonl'),
    (PREPARE, '--input=stories.txt --test_input=stories.txt', 'one file', 'must differ'),
    (PREPARE, '--input=stories.txt --max_stories=1', 'val.bin would be empty', 'raise --val_fraction'),
    (PREPARE, '--input=stories.txt --out_dir=stories.txt', 'stories.txt cannot be used', 'another --out_dir'),
    (PREPARE, '--input=stories.txt --out_dir=stories.txt/x', 'stories.txt/x cannot be used', 'another --out_dir'),
    (PREPARE, '--input=stories.txt --tokenizer=gpt2 --out_dir=run/metrics.jsonl', 'metrics.jsonl', '--out_dir'),
    ('race.py', '--dataset=nowhere', '--dataset=nowhere', 'tinystories/bpe'),
    ('race.py', '--out_dir=stories.txt', '--out_dir=stories.txt', 'choose another'),
    (TRAIN, '--muon_learning_rate=4e-3', 'muon_learning_rate', '--optimizer=muon'),
    (MAKE, '', "''", 'make.py story'),
    (MAKE, 'Story', "'Story'", 'make.py story'),
    (MAKE, 'train', "'train'", 'make.py test'),
    (MAKE, 'story --n_layer=2', "'story --n_layer=2'", 'make.py story'),
]
CUDA = [(TRAIN, ''), (SAMPLE, ''), (EVALUATE, '--out_dir=run')]
IN_PROC = [(TRAIN, '--out_dir=/proc/x', 'choose another'), (TRAIN, '--out_dir=/proc', 'choose another'),
           (EVALUATE, '--out_dir=run --plots=/proc/x', 'choose another'),
           (PREPARE, '--input=stories.txt --out_dir=/proc/x', 'another --out_dir')]
FLAGS += [pytest.param(script, f'{flags} --device=cuda', '--device=cuda', '--device=auto', marks=NO_CUDA)
          for script, flags in CUDA]
FLAGS += [pytest.param(script, flags, '/proc', way, marks=PROC) for script, flags, way in IN_PROC]


def flags_id(value):
    return 'all' if value is None else ' '.join(value if isinstance(value, list) else [value])[:50]


@pytest.mark.parametrize('script,flags,names,way', FLAGS, ids=flags_id)
def test_flags(good, script, flags, names, way):
    """A flag that cannot be right: one line names it and says what would be right."""
    refused(good, script, flags, names, way)


def test_all_mistakes_at_once(good):
    """Several mistakes are several lines."""
    refused(good, TRAIN, '--n_layr=2 --n_head=x --dropout=2 no.py', '--n_layer?', '--n_head=4', 'no.py', lines=3)


# -----------------------------------------------------------------------------
# rules: flags that break so many of them at once; None for all that the script has

ONE_OR_THE_OTHER = "source == 'hub' or not input"
RULES = [
    (TRAIN, '--eval_interval=0 --eval_iters=0 --log_interval=-1 --keep_checkpoints=-1 --sample_tokens=-1 '
            '--out_dir= --batch_size=0 --gradient_accumulation_steps=0 --block_size=0 --seed=4294967296 --n_layer=0 '
            '--vocab_size=-1 --n_head=-2 --n_embd=-1 --dropout=1 --activation=relu --squentropy_weight=-1 --mse_true_weight=0 '
            '--mse_target=0 --optimizer=sgd --learning_rate=0 --muon_learning_rate=-1 --train_tokens=-1 '
            '--loss=cross_entropy_plus_mse --squentropy_schedule=sqrt --squentropy_end=0 --mse_end=1 '
            '--label_smoothing=-1 --z_loss=-1 '
            '--max_iters=-1 --weight_decay=-1 --beta1=1 --beta2=1.5 --grad_clip=-1 --warmup_iters=-1 '
            '--lr_decay_iters=-1 --min_lr=1 --patience=-1 --min_delta=-1 --dtype=float64 --compile=yes '
            '--device=tpu', None),
    (SAMPLE, '--num_samples=0 --max_new_tokens=0 --temperature=-1 --top_k=-1 --top_p=0 --seed=-1 --dtype= '
             '--device= --checkpoint=run/best.pt', None),
    (EVALUATE, '--arrays=x --checkpoint=run/best.pt --out_dir=run --per_byte=True --split=dev --stride=-1 --batch_size=0 '
               '--bootstrap=0 --seed=-1 --device=gpu --random_batches=-1', None),
    (PREPARE, '--source=synthetic --input=stories.txt', [ONE_OR_THE_OTHER]),
    (PREPARE, '--source=web --tokenizer=words --val_input=a.txt --test_input=b.txt --val_fraction=0 '
              '--vocab_size=9 --max_stories=-1 --bpe_megabytes=-1 --workers=-1', None),
    (TRAIN, '--n_head=3', ['n_embd % n_head == 0']), (TRAIN, '--min_lr=1', ['0 <= min_lr <= learning_rate']),
    (TRAIN, '--n_layer=1000000000', ['1 <= n_layer <= 10_000']), (SAMPLE, '--top_p=0', ['0 < top_p <= 1']),
    (SAMPLE, '--temperature=-1', ['temperature >= 0']), (EVALUATE, '--per_byte=True', ['not per_byte or compare']),
    (PREPARE, '--vocab_size=257 --tokenizer=bpe', ['258 <= vocab_size <= 65536']),
    (PREPARE, '--input=a.txt --val_input=b.txt --val_fraction=0.1', ['val_fraction == 0.02 or not val_input']),
]


def rules_of(script):
    """{rule: hint} of the script's call of configure."""
    calls = [node for node in ast.walk(ast.parse((ROOT / script).read_text())) if isinstance(node, ast.Call)
             and getattr(node.func, 'id', '') == 'configure']
    rules = [ast.literal_eval(rule) for rule in calls[0].keywords[0].value.elts]
    return dict(rule if isinstance(rule, tuple) else (rule, '') for rule in rules)


@pytest.mark.parametrize('script,flags,rules', RULES, ids=flags_id)
def test_rules(good, script, flags, rules):
    """Values out of range, or that contradict each other: a line for each rule, with the values and the hint."""
    hints = rules_of(script)
    rules = rules or [rule for rule in hints if rule != ONE_OR_THE_OTHER]
    says = [f'{rule} does not hold: ' for rule in rules] + [hints[rule] for rule in rules]
    refused(good, script, flags, *says, lines=len(rules))


# -----------------------------------------------------------------------------
# config files

CONFIGS = named([
    ('syntax error', 'n_layer = = 2', 'SyntaxError'), ('raises', 'n_layer = 2\n1 / 0', 'bad.py:2: ZeroDivisionError'),
    ('exits', 'raise SystemExit(0)', 'SystemExit'), ('imports nothing', 'import nowhere', 'nowhere'),
    ('recursion', 'def f(): f()\nf()', 'RecursionError'), ('binary', b'\x7fELF\0\xff', 'bad.py'),
    ('encoding', '# coding: nonsense', 'nonsense'), ('not UTF-8', b'out_dir = "\xff"', 'bad.py'),
    ('an int of 5,000 digits', 'n_layer = ' + '9' * 5000, 'bad.py'),
])


@pytest.mark.parametrize('content,names', CONFIGS)
def test_config_that_does_not_run(here, content, names):
    """A config file that is no Python, or raises: its name, the line and the error."""
    (here / 'bad.py').write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(here, TRAIN, 'bad.py', names, 'correct this file')


@pytest.mark.parametrize('script,content,names,way', [
    (TRAIN, 'n_layr = 2', "'n_layr'", 'did you mean n_layer?'), (TRAIN, 'xyz = 2', "'xyz'", 'train.py --help'),
    (TRAIN, 'n_layer = "2"', "'2' (str)", 'n_layer = 4'), (TRAIN, 'n_layer = True', 'True (bool)', 'n_layer = 4'),
    (TRAIN, 'n_layer = None', 'None', 'n_layer = 4'), (TRAIN, 'n_head = 10**5000', 'thousands of digits', 'n_head = 4'),
    (TRAIN, 'learning_rate = float("nan")', 'nan (float)', 'learning_rate = 0.004'),
    (TRAIN, 'learning_rate = 10**400', '(int)', 'learning_rate = 0.004'), (TRAIN, 'bias = 1', '1 (int)', 'bias = True'),
    (TRAIN, 'out_dir = ["a"]', '(list)', "out_dir = 'out/{loss}'"), (TRAIN, r'out_dir = "\0"', 'x00', 'without NUL'),
    (TRAIN, r'out_dir = "\ud800"', 'out_dir', 'lone surrogates'), (TRAIN, 'n_head = 3', 'n_head=3', 'n_embd % n_head'),
    (SAMPLE, 'top_p = 2', 'top_p=2.0', 'top_p <= 1'), (SAMPLE, r'start = "FILE:\0"', 'start', 'without NUL'),
    (EVALUATE, 'checkpoint = 5', '5 (int)', 'checkpoint = '), (EVALUATE, r'plots = "a\0b"', 'plots', 'without NUL'),
    (PREPARE, 'vocab_size = 1.0', '1.0 (float)', 'vocab_size = 4096'), (PREPARE, r'input="\0"', 'input', 'without NUL'),
    (PREPARE, 'inptu = "a.txt"', "'inptu'", 'did you mean input?'),
], ids=flags_id)
def test_config_of_wrong_values(here, script, content, names, way):
    """A config file that assigns what is no setting, or no value for it: file, line, value and what would be right."""
    (here / 'bad.py').write_text(content)
    refused(here, script, f'{BASE[script]} bad.py', names, way)


@pytest.mark.parametrize('name,way', [('zzz.py', 'give the path'), ('folder.py', 'give the path'),
                                      ('config/train_tinystories_mes.py', 'config/train_tinystories_mse.py'),
                                      ('config/train_tinystories_mse', 'config/train_tinystories_mse.py'),
                                      ('stories.txt', '*.py'), ('data', '*.py')])
def test_config_that_is_no_file(here, name, way):
    """A config file that is not there, is a folder, or is no .py."""
    (here / 'folder.py').mkdir()
    refused(here, TRAIN, name, name, 'did you mean' if name == 'folder.py' else way)


# -----------------------------------------------------------------------------
# data

def meta(change=None, text=None):
    """Damage the data's meta.json: by changing the dict, or by writing this text in its place."""
    def damage(here):
        plain = json.loads((here / 'data/meta.json').read_text())
        (change or (lambda _: None))(plain)
        (here / 'data/meta.json').write_text(json.dumps(plain) if text is None else text)
    return damage


def split(name, content):
    """Damage a bin: its bytes are these, None for no file."""
    def damage(here):
        (here / f'data/{name}.bin').unlink()
        if content is not None:
            (here / f'data/{name}.bin').write_bytes(content)
    return damage


def without_meta(here, pickled=None):
    (here / 'data/meta.json').unlink()
    if pickled is not None:
        (here / 'data/meta.pkl').write_bytes(pickled)


class Bomb:
    """Unpickled, it makes the folder `bomb` where the script works."""
    def __reduce__(self):
        return os.mkdir, ('bomb',)


def bpe_data(here, change=None, text=None):
    """Turn the data into that of a bpe tokenizer, whose tokenizer.json is damaged."""
    learned = train_bpe(['ab ab ab ab'], 300)
    plain = learned.to_dict()
    (change or (lambda _: None))(plain)
    for name in ('train', 'val'):
        np.full(3000, learned.eot, '<u2').tofile(here / f'data/{name}.bin')
    meta(lambda m: m.update(tokenizer='bpe', vocab_size=learned.vocab_size, dtype='uint16',
                            splits=dict.fromkeys(('train', 'val'), {'tokens': 3000, 'bytes': 1})))(here)
    if text != '':
        (here / 'data/tokenizer.json').write_text(json.dumps(plain) if text is None else text)


def bpe(change=None, text=None):
    return lambda here: bpe_data(here, change, text)


DATA = named([
    ('an empty folder', lambda here: (shutil.rmtree(here / 'data'), (here / 'data').mkdir()),
     'no train.bin', 'tinystories/bpe'),
    ('train.bin empty', split('train', b''), 'train.bin has 0 bytes', AGAIN),
    ('train.bin shorter than a block', split('train', b'a' * 32), 'train.bin has 32 bytes', 'lower --block_size'),
    ('half a token', lambda here: (without_meta(here), split('train', b'a' * 99)(here)), 'has 99 bytes', AGAIN),
    ('train.bin cut', split('train', b'a' * 1000), 'has 1,000 tokens', AGAIN),
    ('train.bin a folder', lambda here: (split('train', None)(here), (here / 'data/train.bin').mkdir()),
     'no train.bin', 'tinystories/bpe'),
    ('val.bin missing', split('val', None), 'no val.bin', AGAIN),
    ('val.bin longer than meta.json says', split('val', b'a' * 10**6), 'val.bin has 1,000,000 tokens', AGAIN),
    ('ids out of vocabulary', without_meta, 'but its vocabulary has 50257', AGAIN),
    ('meta.json empty', meta(text=''), 'meta.json', AGAIN),
    ('meta.json truncated', meta(text='{"source": "file:a.txt", "tok'), 'meta.json', AGAIN),
    ('meta.json a list', meta(text='[]'), 'meta.json', AGAIN),
    ('meta.json null', meta(text='null'), 'meta.json', AGAIN),
    ('meta.json nested deeply', meta(text='{"splits": ' * 10**5), 'meta.json', AGAIN),
    ('meta.json huge', meta(text=' ' * 2**21), 'meta.json', AGAIN),
    ('meta.json a folder', lambda here: (without_meta(here), (here / 'data/meta.json').mkdir()), 'meta.json', AGAIN),
    ('meta.json not UTF-8', lambda here: (here / 'data/meta.json').write_bytes(b'\xff\xfe{}'), 'meta.json', AGAIN),
    ('an int of 5,000 digits', meta(text='{"vocab_size": ' + '9' * 5000 + '}'), 'meta.json', AGAIN),
    ('no splits', meta(lambda m: m.pop('splits')), 'splits', AGAIN),
    ('splits a list', meta(lambda m: m.update(splits=[])), 'meta.json', AGAIN),
    ('splits of numbers', meta(lambda m: m['splits'].update(train=3)), 'meta.json', AGAIN),
    ('claims 10^12 tokens', meta(lambda m: m['splits']['train'].update(tokens=10**12)), '1,000,000,000,000', AGAIN),
    ('claims -1 tokens', meta(lambda m: m['splits']['val'].update(tokens=-1)), 'meta.json says -1', AGAIN),
    ('tokens a float', meta(lambda m: m['splits']['train'].update(tokens=1.5)), 'no good splits', AGAIN),
    ('vocabulary of 10^12', meta(lambda m: m.update(vocab_size=10**12)), '1000000000000 ids', AGAIN),
    ('vocabulary of -1', meta(lambda m: m.update(vocab_size=-1)), '-1 ids', AGAIN),
    ('vocabulary true', meta(lambda m: m.update(vocab_size=True)), 'no good vocab_size', AGAIN),
    ('vocabulary NaN', meta(lambda m: m.update(vocab_size=float('nan'))), 'no good vocab_size', AGAIN),
    ('not the vocabulary of the tokenizer', meta(lambda m: m.update(vocab_size=257)), '257 ids', AGAIN),
    ('dtype float32', meta(lambda m: m.update(dtype='float32')), 'no good dtype', AGAIN),
    ('dtype an object', meta(lambda m: m.update(dtype={})), 'no good dtype', AGAIN),
    ('dtype uint16', meta(lambda m: m.update(dtype='uint16')), 'tokens, but meta.json says', AGAIN),
    ('source a number', meta(lambda m: m.update(source=5)), 'no good source', AGAIN),
    ('synthetic a string', meta(lambda m: m.update(synthetic='no')), 'no good synthetic', AGAIN),
    ('tokenizer that climbs', meta(lambda m: m.update(tokenizer='../../evil')), "'../../evil'", AGAIN),
    ('tokenizer unknown', meta(lambda m: m.update(tokenizer='words')), "'words'", AGAIN),
    ('tokenizer a list', meta(lambda m: m.update(tokenizer=['bpe'])), 'no good tokenizer', AGAIN),
    ('meta.pkl', lambda here: without_meta(here, pickle.dumps(Bomb())), 'meta.pkl is not opened', 'prepare.py --input'),
    ('tokenizer.json missing', bpe(text=''), 'tokenizer.json', AGAIN),
    ('tokenizer.json not JSON', bpe(text='hello'), 'tokenizer.json', AGAIN),
    ('tokenizer.json a list', bpe(text='[]'), 'tokenizer.json', AGAIN),
    ('tokenizer.json nested deeply', bpe(text='[' * 10**5), 'tokenizer.json', AGAIN),
    ('tokenizer.json huge', bpe(text=' ' * (2**24 + 1)), 'tokenizer.json', AGAIN),
    ('tokenizer.json of another kind', bpe(lambda t: t.update(kind='gpt2')), 'tokenizer.json', AGAIN),
    ('ranks twice', bpe(lambda t: t['ranks'].append('a')), '1 duplicates', AGAIN),
    ('a byte missing', bpe(lambda t: t['ranks'].remove('a')), '1 of the 256 bytes', AGAIN),
    ('a rank empty', bpe(lambda t: t['ranks'].append('')), 'an empty one', AGAIN),
    ('a rank that is no bytes', bpe(lambda t: t['ranks'].append('\u0100')), 'latin-1', AGAIN),
    ('ranks of numbers', bpe(lambda t: t.update(ranks=[*range(300)])), 'tokenizer.json', AGAIN),
    ('ranks a number', bpe(lambda t: t.update(ranks=7)), 'tokenizer.json', AGAIN),
    ('a rank more than meta.json says', bpe(lambda t: t.update(ranks=[*t['ranks'], 'xyz'], vocab_size=260)),
     'but its tokenizer has 260', AGAIN),
    ('claims 10^12 ranks', bpe(lambda t: t.update(vocab_size=10**12)), 'claims 1000000000000', AGAIN),
])


@pytest.mark.parametrize('damage,names,way', DATA)
def test_data(here, damage, names, way):
    """Damaged data: one line has the file, what is wrong in it, and that it must be prepared again."""
    damage(here)
    refused(here, TRAIN, '', names, way)


@pytest.mark.parametrize('damage,flags,names,way', named([
    ('val.bin empty', split('val', b''), '', 'val.bin has 0 bytes', AGAIN),
    ('test.bin missing', split('test', None), '--split=test', 'no test.bin', AGAIN),
    ('test.bin of half the size', split('test', b'a' * 99), '--split=test', 'has 99 tokens', AGAIN),
    ('test.bin not in meta.json', meta(lambda m: m['splits'].pop('test')), '--split=test', 'meta.json says 0', AGAIN),
    ('meta.json truncated', meta(text='{'), '', 'meta.json', AGAIN),
    ('of another tokenizer', bpe(), '', 'another tokenizer (byte, 256 ids)', 'give the data it was trained with'),
    ('meta.pkl', lambda here: without_meta(here, pickle.dumps(Bomb())), '', 'meta.pkl', 'prepare.py --input'),
]))
def test_data_to_evaluate(here, damage, flags, names, way):
    """The same for evaluate.py and the data of a checkpoint."""
    damage(here)
    refused(here, EVALUATE, f'--checkpoint=run/ckpt.pt {flags}', names, way)


def test_data_of_another_tokenizer(here):
    """Weights are not trained on the ids of another tokenizer, nor are two checkpoints compared in nats."""
    bpe_data(here)
    refused(here, TRAIN, '--init_from=run/ckpt.pt', 'another tokenizer (byte, 256 ids)', 'the data it was made with')
    refused(here, TRAIN, '--init_from=resume --out_dir=run', 'another preparation', '--init_from=run/ckpt.pt --out_dir')
    shutil.copytree(here / 'data', here / 'bpe')
    shutil.rmtree(here / 'data')
    tokenizer = Tokenizer.load(here / 'bpe')
    model = GPT(GPTConfig(block_size=32, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=8))
    bytes_ = torch.load(here / 'run/ckpt.pt', weights_only=True)
    checkpoint.save({**bytes_, **checkpoint.describe(model, tokenizer, 'mse', losses.mse(tokenizer.vocab_size)),
                     'config': {'dataset': 'bpe'}}, here / 'bpe.pt')
    refused(here, EVALUATE, '--checkpoint=run/ckpt.pt', '--dataset=data', 'tinystories/bpe')
    refused(here, EVALUATE, '--checkpoint=bpe.pt --compare=run/ckpt.pt --dataset=bpe', 'another tokenizer', 'give the')


def test_compare_of_two_tokenizers(here):
    """Nats a token of two tokenizers are not compared; bits per byte are, but only of one text."""
    shutil.copytree(here / 'data', here / 'bytes')
    (here / 'm.pt').write_bytes((here / 'run/ckpt.pt').read_bytes())
    bpe_data(here)
    tokenizer = Tokenizer.load(here / 'data')
    model = GPT(GPTConfig(block_size=32, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=8))
    loaded = torch.load(here / 'm.pt', weights_only=True)
    torch.save(loaded | {'config': {'dataset': 'bytes'}}, here / 'm.pt')
    torch.save(loaded | checkpoint.describe(model, tokenizer, 'mse', losses.mse(tokenizer.vocab_size)), here / 'bpe.pt')
    flags = '--checkpoint=m.pt --compare=bpe.pt'
    refused(here, EVALUATE, flags, 'm.pt and bpe.pt have different tokenizers', '--per_byte=True')
    refused(here, EVALUATE, f'{flags} --per_byte=True', 'not the same stories', 'prepare both from one text')
    shutil.copytree(here / 'bytes', here / 'other')
    (here / 'other/val.bin').write_bytes((here / 'bytes/val.bin').read_bytes()[::-1])
    torch.save(loaded | {'config': {'dataset': 'other'}}, here / 'other.pt')
    refused(here, EVALUATE, '--checkpoint=m.pt --compare=other.pt', 'val.bin of bytes', 'give --dataset')


# -----------------------------------------------------------------------------
# checkpoints: what is wrong, and what is named beside the file

READERS = {'weights': (TRAIN, '--init_from=run/ckpt.pt'), 'resume': (TRAIN, '--init_from=resume --out_dir=run'),
           'sample': (SAMPLE, ''), 'evaluate': (EVALUATE, '--checkpoint=run/ckpt.pt')}


def saved(change):
    """A damage: the checkpoint after this change of its dict."""
    def damage(path):
        contents = torch.load(path, weights_only=True)
        change(contents)
        torch.save(contents, path)
    return damage


def size(name, value):
    return (f'{name} {str(value)[:20]}', saved(lambda c: c['model_args'].update({name: value})),
            f'{name}={value!r}')


def weight(tensor, name='transformer.wpe.weight'):
    return saved(lambda c: c['model'].update({name: tensor}))


def zipped(path, **how):
    """The same entries in another zip, with a stowaway of 16 MB."""
    with zipfile.ZipFile(path) as z:
        entries = {entry.filename: z.read(entry) for entry in z.infolist()}
    with zipfile.ZipFile(path, 'w', **how) as z:
        for name, content in entries.items():
            z.writestr(name, content)
        z.writestr('ckpt/data/99', bytes(2**24))


def overlapping(path):
    """A zip whose largest entry is listed under fifty names."""
    with zipfile.ZipFile(path, 'a') as z:
        largest = max(z.infolist(), key=lambda entry: entry.file_size)
        for i in range(50):
            entry = copy.copy(largest)
            entry.filename = f'ckpt/data/{100 + i}'
            z.filelist.append(entry)
        z.writestr('ckpt/end', b'')


def huge(c):
    """Weights that fit each other, of 10^11 numbers in a file of kilobytes: each is one number, repeated."""
    c['model_args'] |= {'n_embd': 2 * 10**5, 'n_head': 2}
    with torch.device('meta'):
        shapes = GPT(GPTConfig(**c['model_args'])).state_dict()
    c['model'] = {name: torch.zeros(1).expand(p.shape) for name, p in shapes.items()}


def circle(c):
    c['data']['source'] = c['data']


def laughs(c):
    """Ten lists of ten lists of ten lists ...: walking through them, or printing them, would never end."""
    x = ['ha']
    for _ in range(40):
        x = [x] * 10
    c['config']['learning_rate'] = x


FILES = named([
    ('missing', lambda path: path.unlink(), 'no checkpoint'),
    ('empty', lambda path: path.write_bytes(b''), 'not an archive'),
    ('truncated', lambda path: path.write_bytes(path.read_bytes()[:-5000]), 'not a zip'),
    ('a pickle bomb', saved(lambda c: c.update(loss=Bomb())), 'more than plain data'),
    ('keys missing', saved(lambda c: [c.pop(key) for key in ('tokenizer', 'loss')]), 'without a good tokenizer, loss'),
    ('weights of 10^11 numbers', saved(huge), 'transformer.wte.weight is of shape'),
])

PARTS = named([
    ('a folder', lambda path: (path.unlink(), path.mkdir()), 'no checkpoint'),
    ('text', lambda path: path.write_text('not a checkpoint'), 'not an archive'),
    ('a bare pickle bomb', lambda path: path.write_bytes(pickle.dumps(Bomb(), 2)), 'not an archive'),
    ('a list', lambda path: torch.save([1, 2], path), 'holds a list'),
    ('a zip of something else', lambda path: zipfile.ZipFile(path, 'w').writestr('a.txt', 'b'), 'damaged'),
    ('compressed', lambda path: zipped(path, compression=zipfile.ZIP_DEFLATED), 'compressed'),
    ('overlapping', overlapping, 'overlap'),
    ('keys of wrong types', saved(lambda c: c.update(iter_num='3', config=[])), 'without a good iter_num, config'),
    ('iter_num negative', saved(lambda c: c.update(iter_num=-1)), 'iter_num'),
    ('iter_num huge', saved(lambda c: c.update(iter_num=10**30)), 'iter_num'),
    ('best_val_loss NaN', saved(lambda c: c.update(best_val_loss=float('nan'))), 'best_val_loss'),
    ('best_val_loss negative', saved(lambda c: c.update(best_val_loss=-1.0)), 'best_val_loss'),
    ('data with a tensor', saved(lambda c: c['data'].update(x=torch.zeros(1))), 'a good data'),
    ('data in a circle', saved(circle), 'a good data'),
    ('data without fingerprints', saved(lambda c: c['data'].update(fingerprint=5)), 'a good data'),
    ('a billion laughs', saved(laughs), 'a good config'),
    ('dataset a number', saved(lambda c: c['config'].update(dataset=5)), 'a good config'),
    size('n_layer', 10**9), size('n_layer', 0), size('n_layer', -1), size('n_layer', True), size('n_layer', '1'),
    size('n_embd', 10**9), size('n_embd', -16), size('n_embd', 16.0), size('n_embd', 10**20),
    size('n_head', 0), size('n_head', -2), size('n_head', 1.0), size('n_head', 3), size('n_head', None),
    size('vocab_size', 10**12), size('vocab_size', -256), size('vocab_size', [256]),
    size('block_size', 10**12), size('block_size', -32), size('block_size', float('nan')),
    ('n_head missing', saved(lambda c: c['model_args'].pop('n_head')), 'n_head'),
    ('unknown argument', saved(lambda c: c['model_args'].update(n_expert=8)), 'n_expert'),
    ('activation unknown', saved(lambda c: c.update(activation='relu')), 'relu'),
    ('another vocabulary', saved(lambda c: c['tokenizer'].update(kind='gpt2', vocab_size=50257)), '50257 tokens'),
    ('shape that does not fit', weight(torch.zeros(31, 16)), 'wpe.weight is of shape [31, 16]'),
    ('weight expanded', weight(torch.zeros(1).expand(32, 16)), 'wpe.weight is of shape'),
    ('weight of 10^12 numbers', weight(torch.zeros(1).expand(10**6, 10**6)), 'wpe.weight is of shape'),
    ('weight of integers', weight(torch.zeros(32, 16, dtype=torch.int64)), 'wpe.weight is no tensor of floats'),
    ('weight sparse', weight(torch.zeros(32, 16).to_sparse()), 'more than plain data'),
    ('weight a string', weight('evil'), 'wpe.weight is no tensor of floats'),
    ('weight NaN', weight(torch.full((32, 16), float('nan'))), 'wpe.weight is not finite'),
    ('weight missing', saved(lambda c: c['model'].pop('transformer.ln_f.weight')), 'ln_f.weight is missing'),
    ('weight too many', weight(torch.zeros(3), 'evil.weight'), 'evil.weight'),
    ('layer too many', weight(torch.zeros(16), 'transformer.h.1.ln_1.weight'), 'weights of 2 layers'),
    ('weight without a name', weight(torch.zeros(3), 5), 'do not fit'),
    ('loss unknown', saved(lambda c: c.update(loss={'name': 'nosuch', 'numbers': None})), "'nosuch' in losses.py"),
    ('loss without a name', saved(lambda c: c['loss'].update(name=5)), 'a loss'),
    ('loss of NaN', saved(lambda c: c['loss'].update(numbers=[float('nan')] * 6)), 'nan, nan'),
    ('loss of five numbers', saved(lambda c: c['loss'].update(numbers=[1.0] * 5)), '[1.0, 1.0, 1.0, 1.0, 1.0]'),
    ('loss of seven numbers', saved(lambda c: c['loss'].update(numbers=[1.0] * 7)), 'a loss'),
    ('loss of digits', saved(lambda c: c['loss'].update(numbers='123456')), 'do not fit'),
    ('loss of huge numbers', saved(lambda c: c['loss'].update(numbers=[10**400] * 6)), 'do not fit'),
    ('tokenizer of a tensor of 10^12', saved(lambda c: c['tokenizer'].update(vocab_size=torch.zeros(1).expand(10**12))),
     'a good tokenizer'),
    ('tokenizer damaged', saved(lambda c: c['tokenizer'].update(kind='bpe', ranks=['a'])), '255 of the 256 bytes'),
    ('tokenizer that climbs', saved(lambda c: c['tokenizer'].update(kind='../../evil')), "'../../evil'"),
])


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('damage,names', FILES)
def test_checkpoint_file(here, reader, damage, names):
    """A file that is no checkpoint, in each of the four places that read one; no code of it runs."""
    damage(here / 'run/ckpt.pt')
    refused(here, *READERS[reader], 'run/ckpt.pt', names, ANOTHER)


@pytest.mark.parametrize('reader,damage,names', [
    pytest.param(reader, *case.values, id=f'{case.id}-{reader}')
    for case, reader in zip(PARTS, itertools.cycle(READERS), strict=False)])
def test_checkpoint_parts(here, reader, damage, names):
    """A checkpoint with parts that cannot be right: they are named; read in one of the four places in turn."""
    damage(here / 'run/ckpt.pt')
    refused(here, *READERS[reader], 'run/ckpt.pt', names, ANOTHER)


def moments(change):
    """A damage: each weight's moments after this change of their dict."""
    return saved(lambda c: [change(m) for m in c['optimizer']['state'].values()])


def progress(**values):
    return saved(lambda c: c['progress'].update(values))


@pytest.mark.parametrize('damage,names', named([
    ('no optimizer', saved(lambda c: c.pop('optimizer')), 'no optimizer'),
    ('optimizer a number', saved(lambda c: c.update(optimizer=5)), 'no optimizer'),
    ('optimizer empty', saved(lambda c: c['optimizer'].clear()), "'state'"),
    ('optimizer without groups', saved(lambda c: c['optimizer'].pop('param_groups')), "'param_groups'"),
    ('optimizer of one group', saved(lambda c: c['optimizer']['param_groups'].pop()), 'parameter groups'),
    ('moments of some weights', saved(lambda c: c['optimizer']['state'].pop(0)), 'the state of 8 weights'),
    ('moments of other shapes', moments(lambda m: m.update(exp_avg=torch.zeros(3))), 'weight 0 has the shape'),
    ('moments missing', moments(lambda m: m.pop('exp_avg_sq')), 'weight 0 has the shape'),
    ('moments of no shape', moments(lambda m: m.update(exp_avg=torch.tensor(0.0))), 'weight 0 has the shape'),
    ('moments of integers', moments(lambda m: m.update(exp_avg=m['exp_avg'].long())), 'weight 0 has the shape'),
    ('moments expanded', moments(lambda m: m.update(exp_avg=torch.zeros(1).expand(m['exp_avg'].shape))), 'weight 0'),
    ('moments of strings', moments(lambda m: m.update(exp_avg='x')), 'weight 0 has the shape'),
    ('no scaler', saved(lambda c: c.pop('scaler')), 'no scaler'),
    ('no machine', saved(lambda c: c.pop('machine')), 'no machine'),
    ('no progress', saved(lambda c: c.pop('progress')), 'no progress'),
    ('progress empty', saved(lambda c: c['progress'].clear()), 'last_eval'),
    ('progress of floats', progress(last_eval=1.5), '1.5'),
    ('seconds NaN', progress(seconds=float('nan')), 'nan'),
    ('seconds infinite', progress(seconds=float('inf')), 'inf'),
    ('wandb_run_id that climbs', progress(wandb_run_id='../../x'), '../../x'),
    ('wandb_run_id a number', progress(wandb_run_id=5), 'progress'),
    ('of another loss', saved(lambda c: c['config'].update(loss='mse')), 'loss mse -> cross_entropy'),
    ('of other data', saved(lambda c: c['data']['fingerprint'].update(train='0')), 'another preparation'),
    ('of another model', saved(lambda c: c['config'].update(n_embd=32)), 'n_embd 32 -> 16'),
]))
def test_checkpoint_to_resume(here, damage, names):
    """A checkpoint that has weights, but can't be resumed: what is wrong, and that its weights can begin a new run."""
    damage(here / 'run/ckpt.pt')
    refused(here, *READERS['resume'], 'run/ckpt.pt', names, '--init_from=run/ckpt.pt --out_dir=...')


def test_checkpoint_of_numbers_too_large(here):
    """A checkpoint that overflows when it is used is said to be damaged, not with a traceback or a table of NaNs."""
    saved(lambda c: c['loss'].update(numbers=[1e308] * 6))(here / 'run/ckpt.pt')
    refused(here, EVALUATE, '--checkpoint=run/ckpt.pt', 'run/ckpt.pt', ANOTHER)


# -----------------------------------------------------------------------------
# prepare.py: files of stories (more in test_prepare.py)

@pytest.mark.parametrize('name,content,names,way', [
    ('empty.txt', b'', 'all inputs gave 0 stories', 'give more stories'),
    ('blank.txt', b' \n \n<|endoftext|> \n', 'all inputs gave 0 stories', 'give more stories'),
    ('bomb.txt.gz', gzip.compress(bytes(2**26)), 'bomb.txt.gz', 'stories need one between them'),
    ('cut.txt.gz', gzip.compress(b'story' * 999, mtime=0)[:-12], 'cut.txt.gz: damaged gzip', 'get it again'),
    ('text.jsonl.gz', b'{"text": "a"}\n', 'text.jsonl.gz: damaged gzip', 'get it again'),
    ('deep.json', b'[' * 10**5, 'deep.json, item 1: not JSON', 'correct this item'),
    ('deep.jsonl', b'{"text": ' * 10**5, 'deep.jsonl, line 1: not JSON', 'correct this line'),
    ('digits.jsonl', b'{"text": ' + b'9' * 5000 + b'}', 'digits.jsonl, line 1: not JSON', 'correct this line'),
    ('list.jsonl', b'{"text": "a"}\n["b"]\n', 'list.jsonl, line 2', "no string under 'text' or 'story'"),
    ('a.parquet', b'PAR1' + bytes(100) + b'PAR1', 'a.parquet: damaged parquet', 'get it again'),
    ('a.txt.zip', b'PK', 'a.txt.zip', '.txt, .txt.gz, .jsonl'),
])
def test_stories(here, name, content, names, way):
    """A damaged file of stories: its name, the place in it, and what would be right."""
    (here / name).write_bytes(content)
    refused(here, PREPARE, f'--input={name}', names, way)


def test_data_that_is_in_the_way(here):
    """Other data in out_dir, and data that somebody else put there, stay as they are."""
    meta(lambda m: m.update(source='file:other.txt', synthetic=False))(here)
    refused(here, PREPARE, '--input=stories.txt --out_dir=data', 'file:other.txt', '--overwrite=True')
    without_meta(here)
    refused(here, PREPARE, '--input=stories.txt --out_dir=data', 'of unknown origin', '--overwrite=True')
