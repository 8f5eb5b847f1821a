"""Which tokens an iteration reads, and which damaged data sets are refused."""
import json
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from nanoloss import dataloader
from nanoloss.tokenizer import Tokenizer, train_bpe

# windows ----------------------------------------------------------------------


@pytest.mark.parametrize('n_tokens,block_size', [(1000, 16), (103, 10), (17, 16), (40, 16), (33, 16)])
def test_epoch_reads_each_window_once(n_tokens, block_size):
    """The windows of an epoch lie in the bin, never overlap, and leave out less than two blocks."""
    n = max(1, (n_tokens - block_size) // block_size)
    for epoch in range(4):
        starts = np.sort(dataloader.train_windows(n_tokens, block_size, 7, epoch * n, n))
        assert starts[0] >= 0 and starts[-1] + block_size + 1 <= n_tokens
        assert (np.diff(starts) == block_size).all()
        assert n_tokens - n * block_size < 2 * block_size


def test_epochs_and_seeds_differ():
    """Another epoch or seed has another order and, in most cases, another offset."""
    def epoch(seed, e):
        return dataloader.train_windows(10_000, 50, seed, e * 199, 199)
    assert not np.array_equal(epoch(1, 0), epoch(1, 1))
    assert not np.array_equal(epoch(1, 0), epoch(2, 0))
    assert len({int(epoch(1, e)[0] % 50) for e in range(20)}) > 5


def test_fingerprint():
    """Another length, or other tokens at the start, in the middle or at the end, give another fingerprint."""
    tokens = np.zeros(300_000, np.uint8)
    changed = [tokens.copy() for _ in range(3)]
    for position, copy in zip((0, 150_000, -1), changed, strict=True):
        copy[position] = 1
    longer = [np.zeros(5_000_000 + i, np.uint8) for i in range(2)]  # not all of it is read
    fingerprints = {dataloader.fingerprint(x) for x in (tokens, *changed, *longer)}
    assert len(fingerprints) == 6 and dataloader.fingerprint(tokens.copy()) in fingerprints


def test_order_is_random():
    """An epoch reads the windows in an order that has nothing to do with their positions."""
    starts = dataloader.train_windows(100_000, 50, 1, 0, 1999)
    assert abs(np.corrcoef(starts, np.arange(1999))[0, 1]) < 0.1 and (abs(np.diff(starts)) == 50).mean() < 0.01


def test_batches_are_a_pure_function():
    """The windows do not depend on how training is split into batches, nor on what was read before."""
    whole = dataloader.train_windows(1000, 16, 3, 0, 300)  # about five epochs
    pieces = np.concatenate([dataloader.train_windows(1000, 16, 3, i, 7) for i in range(0, 294, 7)])
    assert np.array_equal(whole[:294], pieces)
    assert np.array_equal(whole[130:140], dataloader.train_windows(1000, 16, 3, 130, 10))


def test_random_windows():
    """Random windows are uniform over all positions, repeat, and are a pure function of their numbers, too."""
    starts = dataloader.train_windows(1000, 16, 3, 0, 20_000, at_random=True)
    assert starts.min() == 0 and starts.max() == 1000 - 17
    assert stats.chisquare(np.bincount(starts, minlength=984)).pvalue > 0.01
    assert np.array_equal(starts[130:400], dataloader.train_windows(1000, 16, 3, 130, 270, at_random=True))


def test_val_windows():
    """Validation windows are evenly spaced, do not overlap, and are all windows if that many are requested."""
    starts = dataloader.val_windows(1001, 10, 25)
    assert len(starts) == 25 and starts[0] == 0 and (np.diff(starts) == 40).all()
    assert np.array_equal(dataloader.val_windows(1001, 10, 10**9), np.arange(100) * 10)
    assert np.array_equal(dataloader.val_windows(11, 10, 5), [0])
    assert dataloader.val_windows(1000, 10, 10**9).max() + 11 <= 1000  # the last target lies in the bin


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def test_targets_are_the_next_tokens(device):
    """Each target is the token after its input, on any device."""
    tokens, starts = np.arange(100, dtype=np.uint16), np.array([3, 50])
    x, y = dataloader.load_windows(tokens, starts, 10, device)
    assert x.dtype == torch.int64 and x.device.type == device and torch.equal(y, x + 1)
    assert torch.equal(x.cpu(), torch.tensor(starts)[:, None] + torch.arange(10))


def test_story_bounds_of_many_tokens():
    """Stories that end at the first, the last and the next token of a chunk of 2^24 tokens have these bounds."""
    tokens, ends = np.zeros(2**24 + 3, np.uint8), [0, 2**24 - 1, 2**24, 2**24 + 1]
    tokens[ends] = 9
    assert dataloader.story_bounds(tokens, 9).tolist() == [0, *(end + 1 for end in ends), 2**24 + 3]


@pytest.mark.parametrize('tokens', [[1, 2, 9, 3, 9], [9, 9], [1, 2], [9, 1]])
def test_story_bounds(tokens):
    """The stories together are the tokens; each but a truncated last one ends with its only end-of-text id."""
    bounds = dataloader.story_bounds(np.array(tokens), 9)
    stories = [tokens[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    assert sum(stories, []) == tokens
    assert all(9 not in story[:-1] and story for story in stories) and all(story[-1] == 9 for story in stories[:-1])


@pytest.mark.parametrize('stride', [1, 3, 8])
def test_every_token_is_scored_once(stride):
    """Windows of stories and blocks score each token once; in a story with block_size - stride tokens of context."""
    bounds = np.array([0, 1, 9, 30, 32])
    windows = dataloader.story_windows(bounds, 8, stride)
    scored = [range(start + length - n, start + length) for start, length, n in windows]
    assert [i for tokens in scored for i in tokens] == list(range(32))
    for (start, length, _), tokens in zip(windows, scored, strict=True):
        story = bounds[bounds <= start].max()
        assert length <= 8 and start + length <= bounds[bounds > start].min()
        assert start == story or tokens[0] - start >= 8 - stride
    blocks = dataloader.block_windows(30, 8)
    assert [i for start, length, _ in blocks for i in range(start, start + length)] == list(range(1, 30))


# files ------------------------------------------------------------------------

BPE = train_bpe(['the cat sat on the mat, the end. éé 🎉🎉'] * 30, 300)


def write_dataset(folder, tokenizer):
    """Write train.bin, val.bin, meta.json and, for bpe, tokenizer.json. Returns {name: bytes} of the files."""
    tokens = tokenizer.encode_stories(['the cat sat', 'on the mat'] * 9)
    splits = {name: {'tokens': len(tokens), 'bytes': 180, 'stories': 18} for name in ('train', 'val')}
    meta = {'source': 'a test', 'tokenizer': tokenizer.kind, 'dtype': tokenizer.dtype.name,
            'vocab_size': tokenizer.vocab_size, 'eot': tokenizer.eot, 'splits': splits}
    files = {'train.bin': tokens.tobytes(), 'val.bin': tokens.tobytes(), 'meta.json': json.dumps(meta).encode()}
    if tokenizer.kind == 'bpe':
        files['tokenizer.json'] = json.dumps(tokenizer.to_dict()).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


@pytest.mark.parametrize('tokenizer', [Tokenizer('byte'), BPE], ids=['byte', 'bpe'])
def test_open_dataset(tmp_path, tokenizer):
    """A prepared folder gives its tokens, its tokenizer and what a checkpoint stores of it."""
    files = write_dataset(tmp_path, tokenizer)
    data = dataloader.open_dataset(str(tmp_path), 8)
    assert data.folder == tmp_path and data.tokenizer.to_dict() == tokenizer.to_dict()
    assert data.train.tobytes() == files['train.bin'] and data.val.dtype == tokenizer.dtype
    assert data.info['source'] == 'a test' and data.info['tokens'] == {'train': len(data.train), 'val': len(data.val)}


def test_keys_of_older_meta_files_are_ignored(tmp_path):
    """meta.json may have keys that are not known."""
    files = write_dataset(tmp_path, BPE)
    (tmp_path / 'meta.json').write_text(json.dumps(json.loads(files['meta.json']) | {'synthetic': 'no'}))
    assert dataloader.open_dataset(str(tmp_path), 8).tokenizer.kind == 'bpe'


def write_bins(folder, tokens):
    for split in ('train', 'val'):
        np.array(tokens, '<u2').tofile(folder / f'{split}.bin')


def test_bins_without_meta(tmp_path):
    """Bins without meta.json hold uint16 ids of GPT-2, or with --vocab_size ids of an unknown tokenizer."""
    write_bins(tmp_path, [5, 50256, 0])
    assert dataloader.find_dataset(str(tmp_path)) == tmp_path and dataloader.read_meta(tmp_path) is None
    data = dataloader.open_dataset(str(tmp_path), 1)
    assert data.train.tolist() == [5, 50256, 0] and data.tokenizer.kind == 'gpt2'
    data = dataloader.open_dataset(str(tmp_path), 1, vocab_size=60000)
    assert (data.tokenizer.kind, data.tokenizer.vocab_size) == ('ids', 60000)
    write_bins(tmp_path, [5, 50257])
    with pytest.raises(ValueError, match='train.bin'):
        dataloader.open_bin(tmp_path, 'train', None)


class Bomb:
    """Unpickling it creates the folder `bomb`."""
    def __reduce__(self):
        return os.mkdir, ('bomb',)


def test_pickles_are_not_loaded(tmp_path, monkeypatch):
    """nanoGPT's meta.pkl runs no code; --vocab_size replaces it."""
    monkeypatch.chdir(tmp_path)
    write_bins(tmp_path, [1, 2, 3])
    (tmp_path / 'meta.pkl').write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match='meta.pkl.*--vocab_size'):
        dataloader.open_dataset(str(tmp_path), 1)
    assert dataloader.open_dataset(str(tmp_path), 1, vocab_size=4).tokenizer.vocab_size == 4
    assert not (tmp_path / 'bomb').exists()


def test_name_of_a_folder_of_data_sets(tmp_path, monkeypatch):
    """If a name under data/ holds data sets, the error names them; otherwise the script that makes one."""
    monkeypatch.setattr(dataloader, 'DATA', tmp_path)
    (tmp_path / 'stories').mkdir()
    (tmp_path / 'stories/prepare.py').touch()
    with pytest.raises(FileNotFoundError, match='data/stories/prepare.py'):
        dataloader.find_dataset('stories')
    for kind in ('bpe', 'byte'):
        (tmp_path / 'stories' / kind).mkdir()
        write_bins(tmp_path / 'stories' / kind, range(16))
    with pytest.raises(FileNotFoundError, match='--dataset=stories/bpe or stories/byte$'):
        dataloader.find_dataset('stories')


def test_missing_files(tmp_path):
    """A missing data set is one FileNotFoundError with its name and, if there is one, the script that makes it."""
    with pytest.raises(FileNotFoundError, match='data/tinystories/prepare.py --tokenizer=nosuch'):
        dataloader.find_dataset('tinystories/nosuch')
    with pytest.raises(FileNotFoundError, match='data/synthetic/prepare.py --tokenizer=nosuch'):
        dataloader.find_dataset('synthetic/nosuch')
    for name in ('', 'nowhere', str(tmp_path), str(tmp_path / 'nowhere')):
        with pytest.raises(FileNotFoundError, match=f'--dataset={name}: '):
            dataloader.find_dataset(name)
    write_bins(tmp_path, range(16))
    (tmp_path / 'train.bin').unlink()
    (tmp_path / 'train.bin').mkdir()
    with pytest.raises(FileNotFoundError, match='--dataset'):
        dataloader.find_dataset(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='test.bin'):
        dataloader.open_bin(tmp_path, 'test', None)


def test_block_size(tmp_path):
    """A bin must be longer than a block."""
    write_bins(tmp_path, range(16))
    assert len(dataloader.open_bin(tmp_path, 'train', None, 15)) == 16
    with pytest.raises(ValueError, match='train.bin.*--block_size'):
        dataloader.open_bin(tmp_path, 'train', None, 16)


def test_first_tokens(tmp_path):
    """max_tokens=n gives the first n tokens, with another fingerprint; more than there are is refused."""
    tokens = np.arange(300, dtype='<u2')
    tokens.tofile(tmp_path / 'train.bin')
    head = dataloader.open_bin(tmp_path, 'train', None, 10, max_tokens=100)
    assert np.array_equal(head, tokens[:100]) and dataloader.fingerprint(head) != dataloader.fingerprint(tokens)
    for n in (10, 301):
        with pytest.raises(ValueError, match='train.bin'):
            dataloader.open_bin(tmp_path, 'train', None, 10, max_tokens=n)


@pytest.fixture
def scans(monkeypatch):
    """A list that grows with each search of a whole file for its largest id."""
    calls, search = [], np.memmap.max

    def counted(tokens):
        calls.append(tokens.filename)
        return search(tokens)
    monkeypatch.setattr(np.memmap, 'max', counted, raising=False)
    return calls


def age(*paths, seconds=60):
    """Move the modification time of files into the past."""
    for path in paths:
        os.utime(path, ns=(time.time_ns() - seconds * 10**9,) * 2)


@pytest.mark.parametrize('kind', ['bpe', 'gpt2', 'ids'])
def test_a_file_is_searched_once(tmp_path, scans, kind):
    """The largest id is remembered with or without a meta.json, until size or time of the file change. An id outside
    the vocabulary is not remembered."""
    if kind == 'bpe':
        write_dataset(tmp_path, BPE)
    else:
        write_bins(tmp_path, range(1000, 1030))
    vocab_size = 1030 if kind == 'ids' else 0
    paths = tmp_path / 'train.bin', tmp_path / 'val.bin'
    age(*paths)
    before = dataloader.read_meta(tmp_path, vocab_size)
    first = dataloader.open_dataset(str(tmp_path), 8, vocab_size)
    again = dataloader.open_dataset(str(tmp_path), 8, vocab_size)
    assert len(scans) == 2 and first.info == again.info and again.tokenizer.kind == kind
    assert first.tokenizer.to_dict() == again.tokenizer.to_dict() and np.array_equal(first.train, again.train)
    after = dataloader.read_meta(tmp_path, vocab_size)
    assert before == ({key: value for key, value in after.items() if key != 'checked'} if kind == 'bpe' else after)
    age(paths[0], seconds=90)  # of the same size
    dataloader.open_dataset(str(tmp_path), 8, vocab_size)
    assert len(scans) == 3
    content = np.fromfile(paths[0], '<u2')
    content[5] = 60000
    content.tofile(paths[0])
    age(paths[0], seconds=30)
    for _ in range(2):
        with pytest.raises(ValueError, match='train.bin.* 60000'):
            dataloader.open_dataset(str(tmp_path), 8, vocab_size)
    assert len(scans) == 5 and {path.suffix for path in tmp_path.iterdir()} == {'.bin', '.json'}


def test_prepared_data_is_not_searched(tiny_data, scans):
    """prepare.py writes the largest ids of its files."""
    meta = dataloader.read_meta(tiny_data)
    for split in meta['splits']:
        tokens = dataloader.open_bin(tiny_data, split, meta)
        assert not scans
        assert tokens.max() == 255 and scans.pop()


def test_a_file_that_was_just_written_is_searched_again(tmp_path, scans):
    """A file younger than two seconds is searched at each start, and nothing is remembered of it."""
    write_bins(tmp_path, range(30))
    for n in (1, 2):
        dataloader.open_bin(tmp_path, 'train', None)
        assert len(scans) == n and not (tmp_path / 'meta.json').exists()


@pytest.mark.parametrize('value', [7, {}, {'train.bin': 5}, {'train.bin': []}, {'train.bin': ['uint16', 60, 1, 5]},
                                   {'train.bin': ['uint16', 60, None, 'a']}])
def test_remembered_values_that_do_not_fit(tmp_path, value):
    """Whatever is remembered of other files or damaged, an id outside the vocabulary is found."""
    write_bins(tmp_path, range(50240, 50270))
    age(tmp_path / 'train.bin')
    (tmp_path / 'meta.json').write_text(json.dumps({'checked': value}))
    with pytest.raises(ValueError, match='train.bin.* 50269'):
        dataloader.open_dataset(str(tmp_path), 8)


@pytest.mark.parametrize('function', ['Path.write_text', 'os.replace'])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, scans, function):
    """If meta.json cannot be written, each start searches the file, without an error, and no file is left."""
    write_bins(tmp_path, range(30))
    age(tmp_path / 'train.bin')

    def refuse(*_, **__):
        raise OSError(30, 'Read-only file system')
    with monkeypatch.context() as patch:
        patch.setattr(f'nanoloss.dataloader.{function}', refuse)
        for n in (1, 2):
            assert len(dataloader.open_bin(tmp_path, 'train', None)) == 30 and len(scans) == n
    assert {path.name for path in tmp_path.iterdir()} == {'train.bin', 'val.bin'}


def test_a_file_that_changes_while_it_is_searched(tmp_path, monkeypatch):
    """Nothing is remembered of it, so that the next start searches it."""
    write_bins(tmp_path, range(30))
    age(tmp_path / 'train.bin')
    search = np.memmap.max
    monkeypatch.setattr(np.memmap, 'max', lambda tokens: (age(tokens.filename, seconds=10), search(tokens))[1],
                        raising=False)
    dataloader.open_bin(tmp_path, 'train', None)
    assert not (tmp_path / 'meta.json').exists()


def test_several_runs_start_at_once(tmp_path):
    """Runs that start at once all open the data set, and leave one complete meta.json."""
    write_dataset(tmp_path, BPE)

    def start(seconds):
        age(tmp_path / 'train.bin', tmp_path / 'val.bin', seconds=seconds)  # so that every start writes
        return len(dataloader.open_dataset(str(tmp_path), 8).train)
    with ThreadPoolExecutor(4) as pool:  # they share no state but the files
        assert len(set(pool.map(start, range(10, 300)))) == 1
    dataloader.open_dataset(str(tmp_path), 8)
    assert dataloader.read_meta(tmp_path)['checked'].keys() == {'train.bin', 'val.bin'}
    assert {path.name for path in tmp_path.iterdir()} == {'train.bin', 'val.bin', 'meta.json', 'tokenizer.json'}


@pytest.mark.parametrize('content', [
    *(np.arange(1000, 1400).astype(dtype).tobytes() for dtype in ('<u4', '>u4', '<i8', '>i8')),
    b'\x93NUMPY\x01\x00v\x00' + b' ' * 118 + np.arange(400, dtype='<u2').tobytes(),
    b'Once upon a time, there was a little girl. ' * 100, bytes(range(1, 256)) * 20 + b'ab',
    np.random.default_rng(0).integers(65, size=20_000).astype('u1').tobytes(),  # nanoGPT's characters
    np.random.default_rng(0).integers(128_256, size=20_000).astype('<u4').tobytes()])  # Llama 3's ids
@pytest.mark.parametrize('vocab_size', [0, 65536])
def test_ids_of_other_widths(tmp_path, content, vocab_size):
    """Ids of 8, 32 or 64 bits, arrays of NumPy and text, without a meta.json, are refused by the file's name."""
    for split in ('train', 'val'):
        (tmp_path / f'{split}.bin').write_bytes(content)
    with pytest.raises(ValueError, match='train.bin') as e:
        dataloader.open_dataset(str(tmp_path), 8, vocab_size)
    assert len(str(e.value).splitlines()) == 1 and not (tmp_path / 'meta.json').exists()


@pytest.mark.parametrize('vocab_size', [2, 4, 65, 256, 50257])
def test_ids_of_16_bits_are_not_mistaken(tmp_path, vocab_size):
    """Random ids of any vocabulary, also one that fits a few bits, and a file of zeros are what they are."""
    rng = np.random.default_rng(0)
    for n in (17, 20_000):
        for tokens in (rng.integers(vocab_size, size=n), rng.integers(vocab_size, size=n) * 0):
            write_bins(tmp_path, tokens)
            assert np.array_equal(dataloader.open_dataset(str(tmp_path), 8, vocab_size).train, tokens)


@pytest.mark.parametrize('change', ['delete', 'truncate', 'overwrite', 'replace'])
def test_check_unchanged(tmp_path, change):
    """A bin that is deleted, truncated, overwritten or replaced after it was opened is an OSError with its name."""
    path = tmp_path / 'train.bin'
    np.arange(300, dtype='<u2').tofile(path)
    tokens = [dataloader.open_bin(tmp_path, 'train', None, 10, max_tokens=n) for n in (0, 100)]
    for array in (*tokens, np.arange(3)):
        dataloader.check_unchanged(array)
    os.utime(path, (0, 0))
    if change == 'delete':
        path.unlink()
    elif change == 'truncate':
        os.truncate(path, 10)
    elif change == 'overwrite':
        path.write_bytes(path.read_bytes()[::-1])
    else:
        (tmp_path / 'new').write_bytes(path.read_bytes())
        os.replace(tmp_path / 'new', path)
    for array in tokens:
        with pytest.raises(OSError, match='train.bin'):
            dataloader.check_unchanged(array)


def meta(**changes):
    """Damage: replace these values of meta.json."""
    return lambda folder: edit(folder / 'meta.json', lambda content: content.update(changes))


def split(**changes):
    """Damage: replace these values of the train split in meta.json."""
    return lambda folder: edit(folder / 'meta.json', lambda content: content['splits']['train'].update(changes))


def ranks(change):
    """Damage: change the list of ranks in tokenizer.json."""
    return lambda folder: edit(folder / 'tokenizer.json', lambda content: change(content['ranks']))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write(name, content):
    """Damage: these bytes as the content of a file."""
    return lambda folder: (folder / name).write_bytes(content)


def move_to_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    'train.bin': {
        'empty': write('train.bin', b''), 'shorter than a block': write('train.bin', b'a' * 8),
        'half a token': write('train.bin', b'a' * 99), 'truncated': write('train.bin', b'a' * 40),
        'ids out of the vocabulary': lambda folder: (folder / 'train.bin').write_bytes(
            b'\xff' * (folder / 'train.bin').stat().st_size),
        'not in meta.json': split(tokens=10**12), 'negative tokens': split(tokens=-1),
        'negative vocabulary': meta(vocab_size=-1),
    },
    'val.bin': {
        'missing': lambda folder: (folder / 'val.bin').unlink(),
        'longer than in meta.json': write('val.bin', b'a' * 10**4),
        'a folder': lambda folder: move_to_folder(folder / 'val.bin'),
    },
    'meta.json': {
        'empty': write('meta.json', b''), 'truncated': write('meta.json', b'{"source": "file:a.txt", "tok'),
        'a list': write('meta.json', b'[]'), 'null': write('meta.json', b'null'),
        'nested deeply': write('meta.json', b'{"splits": ' * 10**5), 'huge': write('meta.json', b' ' * 2**21),
        'a folder': lambda folder: move_to_folder(folder / 'meta.json'),
        'not UTF-8': write('meta.json', b'\xff\xfe{}'),
        'an int of 5,000 digits': write('meta.json', b'{"vocab_size": ' + b'9' * 5000 + b'}'),
        'no splits': lambda folder: edit(folder / 'meta.json', lambda content: content.pop('splits')),
        'splits empty': meta(splits={}), 'splits a list': meta(splits=[]),
        'splits of numbers': meta(splits={'train': 3}),
        'tokens a float': split(tokens=1.5), 'vocabulary of 10^12': meta(vocab_size=10**12),
        'vocabulary true': meta(vocab_size=True),
        'vocabulary NaN': meta(vocab_size=float('nan')), "not the tokenizer's vocabulary": meta(vocab_size=299),
        'dtype float32': meta(dtype='float32'), 'dtype an object': meta(dtype={}), 'dtype uint8': meta(dtype='uint8'),
        'source a number': meta(source=5), 'a path as tokenizer': meta(tokenizer='../../evil'),
        'tokenizer unknown': meta(tokenizer='words'), 'tokenizer a list': meta(tokenizer=['bpe']),
    },
    'tokenizer.json': {
        'missing': lambda folder: (folder / 'tokenizer.json').unlink(), 'not JSON': write('tokenizer.json', b'hello'),
        'a list': write('tokenizer.json', b'[]'), 'nested deeply': write('tokenizer.json', b'[' * 10**5),
        'huge': write('tokenizer.json', b' ' * (2**24 + 1)),
        'another kind': lambda folder: edit(folder / 'tokenizer.json', lambda content: content.update(kind='gpt2')),
        'vocabulary of 10^12': lambda folder: edit(folder / 'tokenizer.json',
                                                   lambda content: content.update(vocab_size=10**12)),
        'ranks a number': lambda folder: edit(folder / 'tokenizer.json', lambda content: content.update(ranks=7)),
        'ranks twice': ranks(lambda r: r.append('a')), 'a byte missing': ranks(lambda r: r.remove('a')),
        'a rank empty': ranks(lambda r: r.append('')),
        'a rank of other characters': ranks(lambda r: r.append('\u0100')),
        'ranks of numbers': ranks(lambda r: r.append(5)), 'another rank': ranks(lambda r: r.append('xyz')),
    },
}


@pytest.mark.parametrize('name,damage', [pytest.param(name, damage, id=f'{name} {case}')
                                         for name, cases in DAMAGE.items() for case, damage in cases.items()])
def test_damage(tmp_path, name, damage):
    """A damaged file is one OSError or ValueError of one line that names it."""
    write_dataset(tmp_path, BPE)
    damage(tmp_path)
    with pytest.raises((OSError, ValueError)) as e:
        dataloader.open_dataset(str(tmp_path), 8)
    assert name in str(e.value) and len(str(e.value).splitlines()) == 1


JSON = st.recursive(st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=5)


def mutate(data, value):
    """A copy of a JSON value in which one part is replaced or deleted."""
    mutated = json.loads(json.dumps(value))
    part = mutated
    while isinstance(part, (dict, list)) and part:
        key = data.draw(st.sampled_from([*part] if isinstance(part, dict) else [*range(min(len(part), 300))]))
        if not isinstance(part[key], (dict, list)) or not part[key] or data.draw(st.integers(0, 3)) == 0:
            if data.draw(st.booleans()):
                del part[key]
            else:
                part[key] = data.draw(JSON)
            break
        part = part[key]
    return mutated


def flip_bytes(data, content):
    """The bytes with one to three of them changed, perhaps truncated."""
    flipped = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= data.draw(st.integers(1, 255))
    truncate = data.draw(st.integers(0, 4)) == 0
    return bytes(flipped[:data.draw(st.integers(0, len(flipped)))] if truncate else flipped)


@pytest.mark.parametrize('tokenizer', [Tokenizer('byte'), BPE], ids=['byte', 'bpe'])
def test_random_damage(tmp_path, tokenizer):
    """A data set with a randomly damaged file has tokens within its vocabulary, or is one OSError or ValueError."""
    files = write_dataset(tmp_path, tokenizer)

    @settings(max_examples=250, deadline=None, derandomize=True, database=None,
              suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(st.data())
    def check(data):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        name = data.draw(st.sampled_from([*files]))
        if name.endswith('.json') and data.draw(st.booleans()):
            (tmp_path / name).write_text(json.dumps(mutate(data, json.loads(files[name]))))
        else:
            (tmp_path / name).write_bytes(flip_bytes(data, files[name]))
        try:
            opened = dataloader.open_dataset(str(tmp_path), 8)
        except (OSError, ValueError) as e:
            assert len(str(e).splitlines()) == 1
        else:
            assert opened.tokenizer.dtype == opened.train.dtype
            for tokens in (opened.train, opened.val):
                assert len(tokens) > 8 and tokens.max() < opened.tokenizer.vocab_size
                opened.tokenizer.decode(tokens)
    check()
