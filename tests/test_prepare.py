"""data/tinystories/prepare.py as its users run it: a subprocess, small files, what lands on disk."""
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / 'data' / 'tinystories' / 'prepare.py'
SHARED = ROOT.parent / 'shared'
EOT = '<|endoftext|>'
WORDS = 'Once upon a time there was little dog cat who liked to play run in the big park with Tom Lily 🎉 café'


def run(*args, code=0, env=(), **kwargs):
    """prepare.py with these arguments; its stdout, or with code != 0 its stderr of one line."""
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', **dict(env)}
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True,
                          env=env, timeout=100, check=False, **kwargs)
    assert done.returncode == code, done.stdout + done.stderr
    if code:
        assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
    return done.stderr if code else done.stdout


def make_stories(n, seed=0, words=60):
    rng = random.Random(seed)
    return [' '.join(rng.choices(WORDS.split(), k=rng.randint(5, words))) + f' {i}.' for i in range(n)]


def write_txt(path, stories):
    path.write_bytes(''.join(f'{story}\n{EOT}\n' for story in stories).encode())
    return path


def read(out, split='train', kind='byte'):
    """The stories of a bin, split at end of text by this test's own means."""
    tokenizer = Tokenizer.load(out / 'tokenizer.json') if kind == 'bpe' else Tokenizer(kind)
    ids = np.fromfile(out / f'{split}.bin', tokenizer.dtype)
    ends = np.flatnonzero(ids == tokenizer.eot)
    assert len(ids) == ends[-1] + 1
    return [tokenizer.decode(part) for part in np.split(ids, ends[:-1] + 1)], ids


def stories_of(out, split='train', kind='byte'):
    return [story.removesuffix(EOT) for story in read(out, split, kind)[0]]


def val_hash(story):
    return int(hashlib.blake2b(story.encode(), digest_size=8).hexdigest(), 16) / 2**64


def listing(folder):
    """{path: content} of all files below a folder, hidden ones too, and the folders themselves."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob('*'))}


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return write_txt(tmp_path_factory.mktemp('text') / 'stories.txt', make_stories(300))


def test_split_is_by_hash_of_the_story(text, tmp_path):
    """val holds the stories with a small hash, train the others, both in their order"""
    run(f'--input={text}', '--tokenizer=byte', '--val_fraction=0.1', f'--out_dir={tmp_path}/out')
    stories = make_stories(300)
    assert stories_of(tmp_path / 'out', 'val') == [s for s in stories if val_hash(s) < 0.1]
    assert stories_of(tmp_path / 'out') == [s for s in stories if val_hash(s) >= 0.1]
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['meta.json', 'train.bin', 'val.bin']


def test_split_does_not_depend_on_order_or_company(tmp_path):
    """a story lands in the same split wherever it stands, and all its copies do"""
    stories = make_stories(200)
    a = write_txt(tmp_path / 'a.txt', stories)
    b = write_txt(tmp_path / 'b.txt', stories[150::-1] + make_stories(50, seed=9) + stories[:100])
    for path in (a, b):
        run(f'--input={path}', '--tokenizer=byte', '--val_fraction=0.2', f'--out_dir={tmp_path}/{path.stem}')
    train, val = ({s for d in 'ab' for s in stories_of(tmp_path / d, split)} for split in ('train', 'val'))
    assert not train & val and len(train | val) == 250


@pytest.mark.parametrize('kind, dtype, vocab_size', [('byte', 'uint8', 256), ('bpe', 'uint16', 300),
                                                     ('gpt2', 'uint16', 50257)])
def test_meta_says_what_is_there(text, tmp_path, kind, dtype, vocab_size):
    """counts, bytes, sha256, dtype and ids of meta.json are those of the bins"""
    if kind == 'gpt2':
        try:
            Tokenizer('gpt2').encode('')
        except ConnectionError as e:
            pytest.skip(str(e))
    test = write_txt(tmp_path / 'test.txt', make_stories(20, seed=5))
    out = tmp_path / 'out'
    said = run(f'--input={text}', f'--test_input={test}', f'--tokenizer={kind}', f'--out_dir={out}',
               '--val_fraction=0.1', *['--vocab_size=300'] * (kind == 'bpe'))
    meta = json.loads((out / 'meta.json').read_text())
    assert {k: meta[k] for k in ('source', 'synthetic', 'tokenizer', 'vocab_size', 'dtype', 'eot', 'val_fraction')} == {
        'source': 'file:stories.txt', 'synthetic': False, 'tokenizer': kind, 'vocab_size': vocab_size,
        'dtype': dtype, 'eot': vocab_size - 1, 'val_fraction': 0.1}
    assert list(meta['splits']) == ['train', 'val', 'test']
    stories = make_stories(300)
    expected = {'val': [s for s in stories if val_hash(s) < 0.1], 'train': [s for s in stories if val_hash(s) >= 0.1],
                'test': make_stories(20, seed=5)}
    for split, s in meta['splits'].items():
        data = (out / f'{split}.bin').read_bytes()
        ids = np.frombuffer(data, {'uint8': 'u1', 'uint16': '<u2'}[dtype])
        assert stories_of(out, split, kind) == expected[split]
        assert s == {'stories': len(expected[split]), 'tokens': len(ids), 'sha256': hashlib.sha256(data).hexdigest(),
                     'bytes': sum(len(story.encode()) for story in expected[split]),
                     'source': f'file:{"test" if split == "test" else "stories"}.txt'}
        assert ids.max() == vocab_size - 1 and (ids == vocab_size - 1).sum() == s['stories']
    assert f'--dataset={out}' in said and (out / 'tokenizer.json').exists() == (kind == 'bpe')


def test_gpt2_bins_are_tiktokens(text, tmp_path):
    """the gpt2 bin is tiktoken's ids of each story with 50256 after it"""
    tiktoken = pytest.importorskip('tiktoken')
    try:
        encoding = tiktoken.get_encoding('gpt2')
    except OSError:
        pytest.skip("GPT-2's encoding needs the network or TIKTOKEN_CACHE_DIR")
    run(f'--input={text}', '--tokenizer=gpt2', f'--out_dir={tmp_path}/out')
    expected = [id for s in make_stories(300) if val_hash(s) >= 0.02 for id in [*encoding.encode(s), 50256]]
    assert np.fromfile(tmp_path / 'out' / 'train.bin', '<u2').tolist() == expected


def test_bpe_is_learned_from_the_training_stories_only(text, tmp_path):
    """the bpe does not change when stories of val are left out of the file"""
    fewer = write_txt(tmp_path / 'fewer.txt', [s for s in make_stories(300) if not 0.05 < val_hash(s) < 0.3])
    for path in (text, fewer):
        run(f'--input={path}', '--vocab_size=300', '--val_fraction=0.3', f'--out_dir={tmp_path}/{path.stem}')
    for name in ('tokenizer.json', 'train.bin'):
        assert (tmp_path / 'stories' / name).read_bytes() == (tmp_path / 'fewer' / name).read_bytes()


def test_small_corpus_says_so(text, tmp_path):
    """fewer bpe entries than asked for: said, and meta.json has what was found"""
    said = run(f'--input={text}', f'--out_dir={tmp_path}/out')
    found = json.loads((tmp_path / 'out' / 'meta.json').read_text())['vocab_size']
    assert 257 < found < 4096 and f'gave {found:,} ids, not 4,096' in said


def test_formats_agree(tmp_path):
    """the same stories as txt, jsonl, JSON array, parquet and gz give the same bins; keys text and story"""
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    stories = make_stories(2000, words=200)  # more than one block of the readers
    write_txt(tmp_path / 'a.txt', stories)
    lines = ''.join(json.dumps({'id': i, 'story': s}, ensure_ascii=i % 2) + '\n' for i, s in enumerate(stories))
    (tmp_path / 'b.jsonl').write_text(lines, encoding='utf-8')
    (tmp_path / 'c.json').write_text(json.dumps([{'text': s, 'n': {'a': [1]}} for s in stories], indent=1))
    (tmp_path / 'd.json').write_text(lines, encoding='utf-8')
    parquet.write_table(pyarrow.table({'x': range(2000), 'text': stories}), tmp_path / 'e.parquet')
    for name in ('a.txt', 'b.jsonl', 'c.json'):
        (tmp_path / f'{name}.gz').write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    bins = {}
    for path in sorted(p for p in tmp_path.iterdir() if p.is_file()):
        run(f'--input={path}', '--tokenizer=byte', '--workers=1', f'--out_dir={tmp_path}/out/{path.name}')
        out = tmp_path / 'out' / path.name
        bins[path.name] = (out / 'train.bin').read_bytes(), (out / 'val.bin').read_bytes()
    assert len(bins) == 8 and len(set(bins.values())) == 1
    assert stories_of(tmp_path / 'out' / 'a.txt') == [s for s in stories if val_hash(s) >= 0.02]


def test_cleaning_of_stories(tmp_path):
    """BOM, CRLF and outer whitespace go, empty stories are counted, the inside stays to the byte"""
    given = ['\ufeffOne\r\n\r\ntwo\rthree  \r\n', ' \r\n ',
             '\n\n  Two 🎉  e\u0301\x00 â€œhi\u200d ', '', 'Three\u2028', '|> <|endof|>']
    keep = ['One\n\ntwo\nthree', 'Two 🎉  e\u0301\x00 â€œhi\u200d', 'Three', '|> <|endof|>']
    (tmp_path / 'a.txt').write_bytes(EOT.join(given).encode())
    (tmp_path / 'b.jsonl').write_bytes('\r\n'.join(['\ufeff' * (i == 0) + json.dumps({'text': s.removeprefix('\ufeff')})
                                                   for i, s in enumerate(given)] + ['', '']).encode())
    (tmp_path / 'c.json').write_bytes(b'\xef\xbb\xbf \n' + json.dumps([{'text': s.removeprefix('\ufeff')}
                                                                      for s in given]).encode())
    write_txt(tmp_path / 'val.txt', ['val'])
    for path in ('a.txt', 'b.jsonl', 'c.json'):
        said = run(f'--input={tmp_path}/{path}', f'--val_input={tmp_path}/val.txt', '--tokenizer=byte',
                   f'--out_dir={tmp_path}/{path}.out')
        assert stories_of(tmp_path / f'{path}.out') == keep
        assert '2 empty stories' in said and 'invalid' not in said


def test_words_endoftext_in_json_are_text(tmp_path):
    """the words <|endoftext|> inside a JSON story are characters of it, for every tokenizer"""
    story = f'She read {EOT} aloud.{EOT}'
    (tmp_path / 'a.jsonl').write_text(json.dumps({'text': story}) + '\n')
    (tmp_path / 'val.jsonl').write_text(json.dumps({'text': 'b'}) + '\n')
    for kind in ('byte', 'bpe'):
        out = tmp_path / kind
        run(f'--input={tmp_path}/a.jsonl', f'--val_input={tmp_path}/val.jsonl', f'--tokenizer={kind}',
            f'--out_dir={out}')
        told, _ = read(out, kind=kind)
        assert told == [story + EOT] and json.loads((out / 'meta.json').read_text())['splits']['train']['stories'] == 1


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    """bytes that are no UTF-8, and lone surrogates of JSON, become U+FFFD; the stories are counted"""
    (tmp_path / 'val.txt').write_text('val')
    (tmp_path / 'a.txt').write_bytes(b'caf\xe9 \xf0\x9f\x8e!<|endoftext|>fine \xef\xbf\xbd')
    (tmp_path / 'b.jsonl').write_bytes(b'{"text": "caf\xe9 \\ud800!"}\n{"text": "fine \\ud83c\\udf89"}')
    (tmp_path / 'c.json').write_bytes(b'[{"text": "caf\xe9 \\ud800!"}\n,{"text": "fine \\ud83c\\udf89"}\n]\n')
    for name, expected in (('a.txt', [b'caf\xe9 \xf0\x9f\x8e!'.decode('utf-8', 'replace'), 'fine \ufffd']),
                           ('b.jsonl', ['caf\ufffd \ufffd!', 'fine 🎉']), ('c.json', ['caf\ufffd \ufffd!', 'fine 🎉'])):
        said = run(f'--input={tmp_path}/{name}', f'--val_input={tmp_path}/val.txt', '--tokenizer=byte',
                   f'--out_dir={tmp_path}/{name}.out')
        assert stories_of(tmp_path / f'{name}.out') == expected
        assert '1 stories with invalid UTF-8' in said


def test_workers_do_not_change_the_result(tmp_path):
    """1 and 2 processes write the same files, stories that cross blocks included"""
    rng = random.Random(1)
    stories = [s + ' and on' * rng.randint(0, 30000 if i % 100 == 0 else 20) for i, s in enumerate(make_stories(3000))]
    text = write_txt(tmp_path / 'a.txt', stories)
    assert text.stat().st_size > 3e6  # several batches
    outs = []
    for workers in (1, 2):
        run(f'--input={text}', '--vocab_size=300', '--bpe_megabytes=1', f'--workers={workers}',
            f'--out_dir={tmp_path}/{workers}')
        outs.append({p.name: p.read_bytes() for p in (tmp_path / str(workers)).iterdir()})
    assert outs[0] == outs[1]
    assert stories_of(tmp_path / '2', kind='bpe') == [s for s in stories if val_hash(s) >= 0.02]


def test_val_input_and_max_stories(text, tmp_path):
    """with --val_input no training story is cut off; max_stories takes the first of the training file"""
    val = write_txt(tmp_path / 'val.txt', make_stories(30, seed=3))
    run(f'--input={text}', f'--val_input={val}', '--max_stories=100', '--tokenizer=byte', f'--out_dir={tmp_path}/out')
    assert stories_of(tmp_path / 'out') == make_stories(300)[:100]
    assert stories_of(tmp_path / 'out', 'val') == make_stories(30, seed=3)


def test_default_folder_and_any_working_directory(text, tmp_path):
    """started anywhere, the bins land next to prepare.py, and the next command names them"""
    copy = tmp_path / 'data' / 'tinystories' / 'prepare.py'
    copy.parent.mkdir(parents=True)
    for module in (SCRIPT, SCRIPT.with_name('sources.py')):
        copy.with_name(module.name).write_bytes(module.read_bytes())
    for module in ('configurator.py', 'tokenizer.py'):
        (tmp_path / module).write_bytes((ROOT / module).read_bytes())
    (tmp_path / 'elsewhere').mkdir()
    done = subprocess.run([sys.executable, '../data/tinystories/prepare.py', f'--input={text}', '--tokenizer=byte'],
                          cwd=tmp_path / 'elsewhere', capture_output=True, text=True, check=False)
    assert done.returncode == 0 and 'next: python train.py --dataset=tinystories/byte' in done.stdout, done.stderr
    assert stories_of(tmp_path / 'data' / 'tinystories' / 'byte')


@pytest.mark.parametrize('name, content, message', [
    ('a.jsonl', b'{"text": "a"}\n{"text": oops}\n', 'a.jsonl, line 2: not JSON'),
    ('a.jsonl', b'{"text": "a"}\n\n{"txt": "a"}\n', "a.jsonl, line 3: no string under 'text' or 'story'"),
    ('a.jsonl', b'{"text": 5}\n', 'a.jsonl, line 1: no string'),
    ('a.jsonl', b'{"text": "a"}\nnull\n', 'a.jsonl, line 2: no string'),
    ('a.json', b'[{"text": "a"}, {"story": null}]', 'a.json, item 2: no string'),
    ('a.json', b'[{"text": "a"}, {"text": "b"', 'a.json, item 2: not JSON'),
    ('a.json', b'[{"text": "a"} {"text": "b"}]', 'a.json, item 2: not JSON'),
    ('a.json', b'[{"text": "a"}] x', 'a.json, item 2: not JSON'),
    ('a.json', b'[]', 'all inputs gave 0 stories'),
    ('a.txt', b'', 'all inputs gave 0 stories'),
    ('a.txt', b'one lonely story', 'val.bin would be empty'),
    ('a.txt', b'x' * (17 << 20), 'no <|endoftext|> in'),
    ('a.csv', b'text\na\n', 'stories come in .txt'),
    ('a.txt.gz', b'no gzip', 'damaged gzip'),
    ('a.txt.gz', gzip.compress(b'abcdefgh' * 99, mtime=0)[:-9], 'damaged gzip'),
    ('a.parquet', b'no parquet', 'damaged parquet'),
])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, name, content, message):
    """bad input ends in one line that names the place; no file and no folder appears"""
    (tmp_path / name).write_bytes(content)
    before = listing(tmp_path)
    assert message in run(f'--input={tmp_path}/{name}', '--tokenizer=byte', f'--out_dir={tmp_path}/new/out', code=1)
    assert listing(tmp_path) == before


def test_bad_parquet_columns(tmp_path):
    """parquet without a column of stories, or with other things than strings in it: one line"""
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    for column, values, message in (('body', ['a'], 'among body'), ('text', [1], 'row 1: no string'),
                                    ('story', ['a', None], 'row 2: no string')):
        parquet.write_table(pyarrow.table({column: values}), tmp_path / 'a.parquet')
        assert message in run(f'--input={tmp_path}/a.parquet', '--tokenizer=byte', f'--out_dir={tmp_path}/out', code=1)
        assert not (tmp_path / 'out').exists()


def test_paths_that_cannot_be_read(text, tmp_path):
    """missing files, folders and the same file twice are refused in one line"""
    (tmp_path / 'dir.txt').mkdir()
    for args, message in (((f'--input={tmp_path}/none.txt',), 'none.txt'),
                          ((f'--input={tmp_path}/dir.txt',), 'dir.txt'),
                          ((f'--input={text}', f'--test_input={text}'), 'are one file'),
                          ((f'--input={text}', f'--val_input={tmp_path}/none.txt'), 'none.txt')):
        assert message in run(*args, f'--out_dir={tmp_path}/out', code=1)
    assert not (tmp_path / 'out').exists()
    (tmp_path / 'file').write_text('mine')
    run(f'--input={text}', f'--out_dir={tmp_path}/file/out', '--tokenizer=byte', code=1)
    assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('args, message', [
    (['--val_input=a.txt'], '--val_input belongs to --input'),
    (['--test_input=a.txt'], '--test_input belongs to --input'),
    (['--input=a.txt', '--source=synthetic'], 'takes the place of --source'),
    (['--input=a.txt', '--val_input=b.txt', '--val_fraction=0.1'], 'nothing is cut'),
    (['--tokenizer=word'], "tokenizer='word'"), (['--tokenizer=byte', '--vocab_size=300'], 'come with a vocabulary'),
    (['--vocab_size=257'], '258'), (['--vocab_size=70000'], '65536'), (['--source=web'], "source='web'"),
])
def test_settings_that_do_not_fit(args, message):
    """contradictory settings end with status 2 before anything is read"""
    assert message in run(*args, code=2)


def test_data_of_another_source_is_kept(text, tmp_path):
    """another source or unknown files are replaced with --overwrite=True only, the same source at once"""
    out, base = tmp_path / 'out', ['--tokenizer=byte', f'--out_dir={tmp_path}/out', '--val_fraction=0.1']
    run(f'--input={text}', f'--test_input={write_txt(tmp_path / "t.txt", make_stories(5, 2))}', *base)
    (out / 'notes.md').write_text('mine')
    before = listing(out)
    other = write_txt(tmp_path / 'other.txt', make_stories(100, seed=7))
    message = run(f'--input={other}', *base, code=1)
    assert 'holds data from file:stories.txt' in message and '--overwrite=True' in message
    assert 'holds data from file:stories.txt' in run('--source=synthetic', *base, code=1)
    assert listing(out) == before
    assert 'will be replaced' in run(f'--input={text}', *base)
    assert (out / 'notes.md').read_text() == 'mine'
    assert not (out / 'test.bin').exists()  # the new data have none, so the old one must not stay
    run(f'--input={other}', *base, '--overwrite=True')
    assert stories_of(out, 'val') == [s for s in make_stories(100, seed=7) if val_hash(s) < 0.1]
    (out / 'meta.json').unlink()
    assert 'train.bin, val.bin of unknown origin' in run(f'--input={other}', *base, code=1)


def test_failure_keeps_the_old_data(text, tmp_path):
    """a run that fails on its way leaves the earlier data to the byte"""
    out, path = tmp_path / 'out', tmp_path / 'a.jsonl'
    lines = ''.join(json.dumps({'text': s}) + '\n' for s in make_stories(200))
    path.write_text(lines)
    run(f'--input={path}', '--vocab_size=300', f'--out_dir={out}')
    before = listing(out)
    path.write_text(lines + 'oops')
    assert 'line 201' in run(f'--input={path}', '--vocab_size=300', f'--out_dir={out}', code=1)
    assert listing(out) == before


@pytest.mark.skipif(sys.platform == 'win32', reason='no resource limits there')
def test_full_disk(text, tmp_path):
    """a write that fails, here by a limit on the size of files, is one line and leaves nothing"""
    import resource
    assert 'File too large' in run(f'--input={text}', '--tokenizer=byte', f'--out_dir={tmp_path}/out', code=1,
                                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    assert not list(tmp_path.iterdir())


def start(folder):
    """prepare.py with two workers that are at work, in a process group of its own."""
    text = write_txt(folder / 'a.txt', make_stories(200, words=3000) * 40)
    process = subprocess.Popen([sys.executable, str(SCRIPT), f'--input={text}', '--tokenizer=byte', '--workers=2',
                                f'--out_dir={folder}/out'], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    began = time.time()
    while not any(p.stat().st_size for p in folder.glob('out/.partial-*/train.bin')):
        assert process.poll() is None and time.time() - began < 60
        time.sleep(0.005)
    return process


def wait_for_group(process):
    """Waits until no process of its group is left, workers included."""
    try:
        for _ in range(1000):
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    except ProcessLookupError:
        return
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail('worker processes were left behind')


@pytest.mark.skipif(sys.platform == 'win32', reason='no such signals there')
@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_leaves_nothing_half(tmp_path, number, code):
    """Ctrl-C and SIGTERM while workers encode: one line, status 128 + n, nothing half, no workers left"""
    process = start(tmp_path)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the workers too
    else:
        process.send_signal(number)
    err = process.communicate(timeout=30)[1]
    assert (process.returncode, err) == (code, f'error: stopped by {number.name}; nothing was written\n')
    assert not (tmp_path / 'out').exists()
    wait_for_group(process)


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL there')
def test_kill_leaves_no_train_bin_and_no_workers(tmp_path):
    """SIGKILL while workers encode: there is no train.bin, and the workers end by themselves"""
    process = start(tmp_path)
    process.kill()
    process.wait()
    assert not (tmp_path / 'out' / 'train.bin').exists()
    wait_for_group(process)


def test_synthetic(tmp_path):
    """the synthetic source needs no network, says so in meta.json, and cuts test.bin by hash as well"""
    run('--source=synthetic', '--max_stories=400', '--tokenizer=byte', f'--out_dir={tmp_path}/out')
    meta = json.loads((tmp_path / 'out' / 'meta.json').read_text())
    assert meta['synthetic'] is True and meta['source'] == 'synthetic (seed 1337)'
    edges = {'val': (0, 0.02), 'test': (0.02, 0.04), 'train': (0.04, 1)}
    for split, (low, high) in edges.items():
        assert all(low <= val_hash(s) < high for s in stories_of(tmp_path / 'out', split))
    assert sum(s['stories'] for s in meta['splits'].values()) == 400


def test_hub_out_of_reach(tmp_path):
    """no network: one line that names the two other ways, and nothing written"""
    pytest.importorskip('datasets')
    message = run('--tokenizer=byte', f'--out_dir={tmp_path}/out', code=1,
                  env={'HF_HOME': str(tmp_path / 'hf'), 'HF_DATASETS_CACHE': str(tmp_path / 'hf')})
    assert 'could not be reached' in message and '--input=FILE' in message and '--source=synthetic' in message
    assert not (tmp_path / 'out').exists()


FAKE = '''
class Rows(list):
    def iter(self, batch_size):
        for i in range(0, len(self), batch_size):
            yield {{'text': self[i:i + batch_size]}}

def load_dataset(name, revision):
    assert (name, revision) == ('roneneldan/TinyStories', 'f54c09fd23315a6f9c86f9dc80f725de7d8f9c64')
    {body}
'''


def fake_hub(folder, body):
    (folder / 'fake').mkdir()
    (folder / 'fake' / 'datasets.py').write_text(FAKE.format(body=body))
    return {'PYTHONPATH': str(folder / 'fake')}


def test_hub(tmp_path):
    """the hub's train split becomes train and val, its validation split test, at the pinned revision"""
    env = fake_hub(tmp_path, "return {'train': Rows(f' Story {i} ' * (i != 7) for i in range(3000)), "
                             "'validation': Rows(f'Test {i}' for i in range(9))}")
    said = run('--tokenizer=byte', f'--out_dir={tmp_path}/out', env=env)
    stories = [f'Story {i}' for i in range(3000) if i != 7]
    assert stories_of(tmp_path / 'out') == [s for s in stories if val_hash(s) >= 0.02]
    assert stories_of(tmp_path / 'out', 'val') == [s for s in stories if val_hash(s) < 0.02]
    assert stories_of(tmp_path / 'out', 'test') == [f'Test {i}' for i in range(9)]
    meta = json.loads((tmp_path / 'out' / 'meta.json').read_text())
    assert meta['source'] == 'roneneldan/TinyStories@f54c09fd23315a6f9c86f9dc80f725de7d8f9c64'
    assert not meta['synthetic'] and said.startswith('asking the hub') and '1 empty stories' in said
    assert 'holds data from roneneldan' in run('--source=synthetic', '--tokenizer=byte', f'--out_dir={tmp_path}/out',
                                               code=1)


@pytest.mark.parametrize('body, message', [
    ("raise ConnectionError('no route')", 'could not be reached (no route)'),
    ("raise FileNotFoundError('no such data set')", 'the hub was reached, but did not give'),
    ("raise OSError(28, 'No space left on device')", 'No space left on device'),
    ("raise RuntimeError('generation') from TimeoutError('slow')", 'could not be reached'),
])
def test_hub_failures(tmp_path, body, message):
    """out of reach, a refusal and a full disk are told apart, one line each"""
    assert message in run('--tokenizer=byte', f'--out_dir={tmp_path}/out', code=1, env=fake_hub(tmp_path, body))
    assert not (tmp_path / 'out').exists()


def test_gpt2_out_of_reach(text, tmp_path):
    """GPT-2's encoding neither cached nor fetched: one line with the way out, and nothing written"""
    (tmp_path / 'fake').mkdir()
    (tmp_path / 'fake' / 'tiktoken.py').write_text("def get_encoding(name):\n    raise OSError('no network')\n")
    message = run(f'--input={text}', '--tokenizer=gpt2', f'--out_dir={tmp_path}/out', code=1,
                  env={'PYTHONPATH': str(tmp_path / 'fake')})
    assert 'set TIKTOKEN_CACHE_DIR' in message and '--tokenizer=bpe' in message
    assert not (tmp_path / 'out').exists()


def test_real_stories(tmp_path):
    """real TinyStories through the bpe: every story comes back, 3.9 to 4.1 bytes a token"""
    if not (SHARED / 'tinystories').exists():
        pytest.skip(f'needs {SHARED / "tinystories"}')
    run(f'--input={SHARED}/tinystories/train.txt', f'--test_input={SHARED}/tinystories/test.txt',
        f'--out_dir={tmp_path}/out', '--max_stories=4000')
    stories = [s.strip() for s in (SHARED / 'tinystories/train.txt').read_text(encoding='utf-8').split(EOT)[:4000]]
    out, splits = tmp_path / 'out', json.loads((tmp_path / 'out/meta.json').read_text())['splits']
    assert splits['train']['stories'] + splits['val']['stories'] == 4000 and splits['test']['stories'] == 1000
    assert stories_of(out, kind='bpe') == [s for s in stories if val_hash(s) >= 0.02]
    assert 3.9 < splits['test']['bytes'] / splits['test']['tokens'] < 4.1
