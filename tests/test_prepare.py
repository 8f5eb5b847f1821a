"""nanoloss/prepare.py and the scripts data/*/prepare.py: what the bins hold, what is replaced, what errors leave."""
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SHARED, cold, run

from nanoloss.prepare import make_batches, split_edges, story_split
from nanoloss.tokenizer import Tokenizer

TINYSTORIES, SYNTHETIC = ROOT / 'data/tinystories/prepare.py', ROOT / 'data/synthetic/prepare.py'
EOT = '<|endoftext|>'
WORDS = 'Once upon a time there was little dog cat who liked to play run in the big park with Tom Lily 🎉 café'.split()


def prepare(*flags, script=TINYSTORIES, code=0, **options):
    """Run the script: its stdout or, if it must fail with this code, its stderr of one line."""
    status, out, err = run(script, *flags, **options)
    assert status == code, out + err
    if code:
        assert err.startswith('error: ') and err.count('\n') == 1, err
    return err if code else out


def make_stories(n, seed=0, words=60):
    rng = random.Random(seed)
    return [' '.join(rng.choices(WORDS, k=rng.randint(5, words))) + f' {i}.' for i in range(n)]


def write_txt(path, stories):
    path.write_bytes(''.join(f'{story}\n{EOT}\n' for story in stories).encode())
    return path


def read_bin(out, split='train', kind='byte'):
    """The stories of a bin, split at end-of-text without the code under test."""
    tokenizer = Tokenizer.load(out / 'tokenizer.json') if kind == 'bpe' else Tokenizer(kind)
    ids = np.fromfile(out / f'{split}.bin', tokenizer.dtype)
    ends = np.flatnonzero(ids == tokenizer.eot)
    assert len(ids) == ends[-1] + 1
    return [tokenizer.decode(story[:-1]) for story in np.split(ids, ends[:-1] + 1)]


def read_meta(out):
    return json.loads((out / 'meta.json').read_text())


def story_hash(story):
    return int(hashlib.blake2b(story.encode(), digest_size=8).hexdigest(), 16) / 2**64


def cut(stories, low, high=1.0):
    return [story for story in stories if low <= story_hash(story) < high]


def contents(folder):
    """{path: content} of all files below a folder, hidden ones too, and of the folders themselves."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob('*'))}


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return write_txt(tmp_path_factory.mktemp('text') / 'stories.txt', make_stories(300))


# splits and batches -----------------------------------------------------------

def test_split_is_a_function_of_the_story():
    """val has the smallest hashes, then test, then train, each with its fraction of the stories"""
    edges = split_edges({'train': None}, 0.1, 0.2)['train']
    stories = make_stories(4000)
    splits = [story_split(story.encode(), edges) for story in stories]
    for split, low, high in (('val', 0, 0.1), ('test', 0.1, 0.3), ('train', 0.3, 1)):
        found = [story for story, s in zip(stories, splits, strict=True) if s == split]
        assert found == cut(stories, low, high)
        assert abs(len(found) / 4000 - (high - low)) < 0.03


def test_a_source_of_its_own_cuts_nothing():
    """a split with a source takes all of it and nothing of the training stories"""
    edges = split_edges({'train': None, 'val': None, 'test': None}, 0.1, 0.2)
    assert edges == {split: [(split, 1)] for split in ('train', 'val', 'test')}
    assert split_edges({'train': None, 'val': None}, 0.1, 0.2)['train'] == [('test', 0.2), ('train', 1)]
    assert split_edges({'train': None, 'test': None}, 0.1, 0.2)['train'] == [('val', 0.1), ('train', 1)]


def test_batches_hold_all_stories():
    """batches hold all stories in order, each with the position of its last story"""
    stories = [('x' * n, i) for i, n in enumerate([5, 1 << 20, 3, 1 << 19, 1 << 19, 7])]
    batches = list(make_batches(stories))
    assert [story for batch, _ in batches for story in batch] == [story for story, _ in stories]
    assert [(len(batch), position) for batch, position in batches] == [(2, 1), (3, 4), (1, 5)]


# bins -------------------------------------------------------------------------

@pytest.mark.parametrize('kind, dtype, vocab_size', [('byte', 'uint8', 256), ('bpe', 'uint16', 300),
                                                     ('gpt2', 'uint16', 50257)])
def test_bins_and_meta(text, tmp_path, kind, dtype, vocab_size):
    """the bins hold the stories of their split in order, and meta.json describes the bins"""
    if kind == 'gpt2':
        try:
            Tokenizer('gpt2').encode('')
        except ConnectionError as e:
            pytest.skip(str(e))
    test = write_txt(tmp_path / 'test.txt', make_stories(20, seed=5))
    out = tmp_path / 'out'
    stdout = prepare(f'--input={text}', f'--test_input={test}', f'--tokenizer={kind}', f'--out_dir={out}',
                     '--val_fraction=0.1', *(['--vocab_size=300'] if kind == 'bpe' else []))
    meta = read_meta(out)
    expected = {'source': 'file:stories.txt', 'tokenizer': kind, 'vocab_size': vocab_size, 'dtype': dtype,
                'eot': vocab_size - 1, 'val_fraction': 0.1}
    assert {key: meta[key] for key in expected} == expected
    assert list(meta['splits']) == ['train', 'val', 'test']
    stories = {'train': cut(make_stories(300), 0.1), 'val': cut(make_stories(300), 0, 0.1),
               'test': make_stories(20, seed=5)}
    for split, figures in meta['splits'].items():
        data = (out / f'{split}.bin').read_bytes()
        ids = np.frombuffer(data, {'uint8': 'u1', 'uint16': '<u2'}[dtype])
        assert read_bin(out, split, kind) == stories[split]
        assert figures == {'stories': len(stories[split]), 'tokens': len(ids),
                           'bytes': sum(len(story.encode()) for story in stories[split]),
                           'sha256': hashlib.sha256(data).hexdigest(),
                           'source': f'file:{"test" if split == "test" else "stories"}.txt'}
        assert ids.max() == vocab_size - 1 and (ids == vocab_size - 1).sum() == figures['stories']
    assert f'--dataset={out}' in stdout
    assert {p.name for p in out.iterdir()} == {'meta.json', 'train.bin', 'val.bin', 'test.bin'} | (
        {'tokenizer.json'} if kind == 'bpe' else set())


def test_gpt2_bins_are_tiktokens(text, tmp_path):
    """the gpt2 bin has the ids of tiktoken for each story, with 50256 after it"""
    tiktoken = pytest.importorskip('tiktoken')
    try:
        encoding = tiktoken.get_encoding('gpt2')
    except OSError:
        pytest.skip("GPT-2's encoding needs the network or TIKTOKEN_CACHE_DIR")
    prepare(f'--input={text}', '--tokenizer=gpt2', f'--out_dir={tmp_path}/out')
    expected = [id for story in cut(make_stories(300), 0.02) for id in [*encoding.encode(story), 50256]]
    assert np.fromfile(tmp_path / 'out' / 'train.bin', '<u2').tolist() == expected


def test_bpe_is_learned_from_the_training_stories(text, tmp_path):
    """the BPE does not change if stories of val are removed from the input"""
    fewer = write_txt(tmp_path / 'fewer.txt', [s for s in make_stories(300) if not 0.05 < story_hash(s) < 0.3])
    for path in (text, fewer):
        prepare(f'--input={path}', '--vocab_size=300', '--val_fraction=0.3', f'--out_dir={tmp_path}/{path.stem}')
    for name in ('tokenizer.json', 'train.bin'):
        assert (tmp_path / 'stories' / name).read_bytes() == (tmp_path / 'fewer' / name).read_bytes()


def test_separator_in_json_is_text(tmp_path):
    """<|endoftext|> in a JSON story is not the end-of-text id, for the BPE and for bytes"""
    story = f'She read {EOT} aloud.{EOT}'
    (tmp_path / 'a.jsonl').write_text(json.dumps({'text': story}) + '\n')
    (tmp_path / 'val.jsonl').write_text(json.dumps({'text': 'b'}) + '\n')
    for kind in ('byte', 'bpe'):
        prepare(f'--input={tmp_path}/a.jsonl', f'--val_input={tmp_path}/val.jsonl', f'--tokenizer={kind}',
                f'--out_dir={tmp_path}/{kind}')
        assert read_bin(tmp_path / kind, kind=kind) == [story]
        meta = read_meta(tmp_path / kind)
        assert meta['splits']['train']['stories'] == 1 and meta['vocab_size'] < 4096  # the text is too short for more


def test_val_input_and_max_stories(text, tmp_path):
    """with --val_input all training stories are kept; --max_stories takes the first of the training file"""
    val = write_txt(tmp_path / 'val.txt', make_stories(30, seed=3))
    prepare(f'--input={text}', f'--val_input={val}', '--max_stories=100', '--tokenizer=byte',
            f'--out_dir={tmp_path}/out')
    assert read_bin(tmp_path / 'out') == make_stories(300)[:100]
    assert read_bin(tmp_path / 'out', 'val') == make_stories(30, seed=3)
    assert read_meta(tmp_path / 'out')['val_fraction'] == 0


def test_workers_do_not_change_the_result(tmp_path):
    """1 and 2 processes write the same files, also for stories longer than a block of the reader"""
    rng = random.Random(1)
    stories = [story + ' and on' * rng.randint(0, 300000 if i % 400 == 0 else 30)
               for i, story in enumerate(make_stories(1500))]
    text = write_txt(tmp_path / 'a.txt', stories)
    assert text.stat().st_size > 2.2e6  # three batches
    flags = f'--input={text}', '--vocab_size=300', '--bpe_megabytes=1'
    prepare(*flags, '--workers=1', f'--out_dir={tmp_path}/1')
    status, _, err = cold(TINYSTORIES, *flags, '--workers=2', f'--out_dir={tmp_path}/2')
    assert status == 0, err
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in '12')
    metas = [json.loads(files.pop('meta.json')) for files in (one, two)]
    for meta in metas:
        del meta['checked']  # times of the files
    assert one == two and metas[0] == metas[1]
    assert read_bin(tmp_path / '2', kind='bpe') == cut(stories, 0.02)


def test_long_runs(tmp_path):
    """stories without spaces, and stories of spaces, are learned from and encoded in seconds and come back"""
    stories = ['a' + '-' * 200_000 + 'b', 'c' + ' ' * 1_100_000 + 'd', *make_stories(20)]
    text = write_txt(tmp_path / 'a.txt', stories)
    val = write_txt(tmp_path / 'val.txt', make_stories(3))
    for kind in ('bpe', 'gpt2'):
        try:
            Tokenizer(kind).encode('') if kind == 'gpt2' else None
        except ConnectionError:
            continue
        prepare(f'--input={text}', f'--val_input={val}', f'--tokenizer={kind}', f'--out_dir={tmp_path}/{kind}',
                timeout=30)
        assert read_bin(tmp_path / kind, kind=kind) == stories


def test_real_stories(tmp_path):
    """every story of TinyStories comes back from the BPE, with 3.7 to 4.1 bytes per token"""
    if not (SHARED / 'tinystories').exists():
        pytest.skip(f'needs {SHARED / "tinystories"}')
    stories = [s.strip() for s in (SHARED / 'tinystories/train.txt').read_text(encoding='utf-8').split(EOT)[:1500]]
    prepare(f'--input={SHARED}/tinystories/train.txt', f'--test_input={SHARED}/tinystories/test.txt',
            f'--out_dir={tmp_path}/out', '--max_stories=1500', '--workers=1')
    splits = read_meta(tmp_path / 'out')['splits']
    assert splits['train']['stories'] + splits['val']['stories'] == 1500 and splits['test']['stories'] == 1000
    assert read_bin(tmp_path / 'out', kind='bpe') == cut(stories, 0.02)
    assert 3.7 < splits['test']['bytes'] / splits['test']['tokens'] < 4.1


# the scripts ------------------------------------------------------------------

def test_default_folder_from_another_directory(text, tmp_path):
    """started from any directory, the bins are written beside the script, and the next command names them"""
    for folder in ('data', 'nanoloss'):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns('*.bin', '__pycache__'))
    shutil.copy(ROOT / 'configurator.py', tmp_path)
    (tmp_path / 'cwd').mkdir()
    for name, flag in (('tinystories', f'--input={text}'), ('synthetic', '--stories=300')):
        status, out, err = cold(f'../data/{name}/prepare.py', flag, '--tokenizer=byte', cwd=tmp_path / 'cwd')
        assert status == 0, err
        assert f'next: python train.py --dataset={name}/byte\n' in out
        assert (tmp_path / 'data' / name / 'byte' / 'train.bin').exists()


def test_synthetic(tmp_path):
    """the stories are those of the grammar, val and test are cut by hash, and meta.json gives the source"""
    from data.synthetic.grammar import generate_stories
    out = tmp_path / 'out'
    prepare('--stories=400', '--seed=5', '--tokenizer=byte', '--val_fraction=0.1', f'--out_dir={out}',
            script=SYNTHETIC)
    stories = list(generate_stories(5, 400))
    for split, low, high in (('val', 0, 0.1), ('test', 0.1, 0.12), ('train', 0.12, 1)):
        assert read_bin(out, split) == cut(stories, low, high)
    assert 'synthetic' in read_meta(out)['source'] and '5' in read_meta(out)['source']


@pytest.mark.parametrize('script, flags, names', [
    (TINYSTORIES, ['--val_input=a.txt', '--vocab_size=257'], ['--val_input', 'input', '258']),
    (TINYSTORIES, ['--test_input=a.txt', '--vocab_size=70000'], ['--test_input', 'input', '65536']),
    (TINYSTORIES, ['--input=a.txt', '--val_input=b.txt', '--val_fraction=0.1'], ['--val_fraction', 'val_input']),
    (TINYSTORIES, ['--tokenizer=word'], ["tokenizer='word'"]),
    (TINYSTORIES, ['--tokenizer=byte', '--vocab_size=300'], ['--vocab_size']),
    (TINYSTORIES, ['--source=synthetic'], ['--source']),
    (SYNTHETIC, ['--stories=0', '--vocab_size=70000'], ['stories=0', '65536']),
    (SYNTHETIC, ['--tokenizer=byte', '--vocab_size=300'], ['--vocab_size'])])
def test_contradictory_settings(script, flags, names):
    """contradictory settings end with status 2 before anything is read"""
    status, _, err = run(script, *flags)
    assert status == 2 and all(name in err for name in names), err


# errors and old data ----------------------------------------------------------

def test_other_data_is_kept(text, tmp_path):
    """only --overwrite=True replaces other data: of another source, tokenizer, split or text, or of unknown origin"""
    out, flags = tmp_path / 'out', ['--tokenizer=byte', f'--out_dir={tmp_path}/out', '--val_fraction=0.1']
    test = write_txt(tmp_path / 'test.txt', make_stories(5, seed=2))
    prepare(f'--input={text}', f'--test_input={test}', *flags)
    (out / 'notes.md').write_text('mine')
    before = contents(out)
    other = write_txt(tmp_path / 'other.txt', make_stories(100, seed=7))
    err = prepare(f'--input={other}', *flags, code=1)
    assert 'file:stories.txt' in err and '--overwrite=True' in err and '--out_dir' in err
    assert 'file:stories.txt' in prepare('--stories=300', *flags, script=SYNTHETIC, code=1)
    same_name = tmp_path / 'folder' / text.name
    same_name.parent.mkdir()
    same_name.write_bytes(other.read_bytes())
    for wrong in ([f'--input={text}'], [f'--input={same_name}', f'--test_input={test}'],
                  [f'--input={text}', f'--test_input={test}', '--tokenizer=bpe', '--vocab_size=300']):
        assert '--overwrite=True' in prepare(*flags, *wrong, code=1) and contents(out) == before
    prepare(f'--input={text}', f'--test_input={test}', *flags)  # the same data again
    assert (out / 'notes.md').read_text() == 'mine' and read_bin(out, 'test') == make_stories(5, seed=2)
    prepare(f'--input={other}', *flags, '--overwrite=True')
    assert not (out / 'test.bin').exists()  # the new data has none, so the old one is deleted
    assert read_bin(out, 'val') == cut(make_stories(100, seed=7), 0, 0.1)
    (out / 'meta.json').unlink()
    assert 'train.bin, val.bin' in prepare(f'--input={other}', *flags, code=1)


def test_names_that_the_terminal_cannot_encode(text, tmp_path):
    """other encodings of stdout, and names that are not valid in any, do not end the script after its work"""
    for encoding, name in ('cp1252', 'データ'), ('ascii', 'Größe'), ('utf-8', 'a\udcff'):
        status, out, err = cold(TINYSTORIES, f'--input={text}', '--tokenizer=byte', f'--out_dir={tmp_path / name}',
                                PYTHONIOENCODING=encoding)
        assert (status, err) == (0, '') and '--dataset=' in out
        assert (tmp_path / name / 'train.bin').exists()


def test_error_keeps_the_old_data(tmp_path):
    """an error in the input names the line and leaves the old data unchanged"""
    out, path = tmp_path / 'out', tmp_path / 'a.jsonl'
    lines = ''.join(json.dumps({'text': s}) + '\n' for s in make_stories(200))
    path.write_text(lines)
    prepare(f'--input={path}', '--tokenizer=byte', f'--out_dir={out}')
    before = contents(out)
    path.write_text(lines + 'oops')
    assert 'a.jsonl, line 201' in prepare(f'--input={path}', '--tokenizer=byte', f'--out_dir={out}', code=1)
    assert contents(out) == before


@pytest.mark.parametrize('name, content, message', [
    ('a.txt', b'', 'train.bin'), ('a.txt', b'one lonely story', 'val.bin'), ('a.json', b'[]', 'train.bin'),
    ('a.csv', b'text\na\n', 'a.csv'), ('none.txt', None, 'none.txt')])
def test_unusable_input_leaves_nothing(tmp_path, name, content, message):
    """input without enough stories ends with one line, and no file or folder appears"""
    if content is not None:
        (tmp_path / 'a').mkdir()
        (tmp_path / 'a' / name).write_bytes(content)
    before = contents(tmp_path)
    err = prepare(f'--input={tmp_path}/a/{name}', '--tokenizer=byte', f'--out_dir={tmp_path}/new/out', code=1)
    assert message in err
    assert contents(tmp_path) == before


def test_unusable_out_dir(text, tmp_path):
    """a file in the place of the output folder is an error, and is not changed"""
    (tmp_path / 'file').write_text('mine')
    err = prepare(f'--input={text}', f'--out_dir={tmp_path}/file/out', '--tokenizer=byte', code=1)
    assert f'{tmp_path}/file/out' in err and '--out_dir' in err
    assert (tmp_path / 'file').read_text() == 'mine'


def test_full_disk(text, tmp_path):
    """a failed write, here by a limit on the file size, is one line and leaves nothing"""
    prepare(f'--input={text}', '--tokenizer=byte', f'--out_dir={tmp_path}/out', code=1, limits={'RLIMIT_FSIZE': 4096})
    assert not list(tmp_path.iterdir())


def test_hub_without_network(tmp_path):
    """without network, the error names the other sources, and nothing is written"""
    pytest.importorskip('datasets')
    status, _, err = cold(TINYSTORIES, '--tokenizer=byte', f'--out_dir={tmp_path}/out', HF_HUB_OFFLINE='1',
                          HF_HOME=str(tmp_path / 'hf'), HF_DATASETS_CACHE=str(tmp_path / 'hf'))
    assert status == 1 and err.startswith('error: ') and err.count('\n') == 1, err
    assert '--input=FILE' in err and 'data/synthetic/prepare.py' in err
    assert not (tmp_path / 'out').exists()


def test_gpt2_without_network(text, tmp_path):
    """without GPT-2's encoding, the error names the options, and nothing is written"""
    proxy = 'http://127.0.0.1:9'  # nothing listens there
    err = prepare(f'--input={text}', '--tokenizer=gpt2', f'--out_dir={tmp_path}/out', code=1, https_proxy=proxy,
                  HTTPS_PROXY=proxy, TIKTOKEN_CACHE_DIR=str(tmp_path / 'cache'))
    assert 'TIKTOKEN_CACHE_DIR' in err and '--tokenizer=bpe' in err
    assert not (tmp_path / 'out').exists()


# signals ----------------------------------------------------------------------

def start(folder):
    """The script in a process group of its own, once it has written a part of its output."""
    text = write_txt(folder / 'a.txt', make_stories(200, words=3000) * 20)
    process = subprocess.Popen([sys.executable, TINYSTORIES, f'--input={text}', '--tokenizer=byte', '--workers=2',
                                f'--out_dir={folder}/out'], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    deadline = time.time() + 60
    while not any(p.stat().st_size for p in folder.glob('out/.partial-*/train.bin')):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.005)
    return process


def wait_for_group(process):
    """Wait until no process of the group is left, workers included."""
    try:
        for _ in range(1000):
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    except ProcessLookupError:
        return
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail('worker processes were left behind')


@pytest.mark.skipif(sys.platform == 'win32', reason='needs POSIX signals')
@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_leaves_nothing(tmp_path, number, code):
    """Ctrl-C and SIGTERM during encoding: one line, status 128 + n, no partial data, no workers"""
    process = start(tmp_path)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the workers too
    else:
        process.send_signal(number)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == code and number.name in err and err.count('\n') == 1, err
    assert not (tmp_path / 'out').exists()
    wait_for_group(process)


SLOW_LEARNING = '''
import hashlib, runpy, sys
sys.path[0] = sys.argv.pop(1)
import nanoloss.prepare

def train_bpe(texts, size):
    print('learning', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)  # takes half an hour, and no signal interrupts it

nanoloss.prepare.train_bpe = train_bpe
runpy.run_path('data/tinystories/prepare.py', run_name='__main__')
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='needs POSIX signals')
def test_signal_while_learning(tmp_path):
    """A signal ends the learning of a BPE, which cannot be interrupted, and leaves nothing; one that was ignored stays
    ignored."""
    (tmp_path / 'slow.py').write_text(SLOW_LEARNING)
    text = write_txt(tmp_path / 'a.txt', ['A story.'] * 99)
    process = subprocess.Popen([sys.executable, tmp_path / 'slow.py', ROOT, f'--input={text}',
                                f'--out_dir={tmp_path}/out'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    while process.stdout.readline() not in ('learning\n', ''):
        pass
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and 'SIGTERM' in err and err.count('\n') == 1, err
    assert not (tmp_path / 'out').exists()


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_kill_leaves_no_train_bin_and_no_workers(tmp_path):
    """SIGKILL during encoding: there is no train.bin, and the workers end"""
    process = start(tmp_path)
    process.kill()
    process.wait()
    process.stderr.close()
    assert not (tmp_path / 'out' / 'train.bin').exists()
    wait_for_group(process)
