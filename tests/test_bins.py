"""Which tokens an iteration reads, and what is refused about the files they come from."""
import json

import numpy as np
import pytest

import bins


@pytest.mark.parametrize('n_tokens,block_size', [(1000, 16), (103, 10), (17, 16), (40, 16), (33, 16)])
def test_epoch_reads_each_window_once(n_tokens, block_size):
    """An epoch's windows lie in the bin, never overlap, and leave out less than two blocks."""
    n = max(1, (n_tokens - block_size) // block_size)
    for epoch in range(4):
        starts = np.sort(bins.train_windows(n_tokens, block_size, 7, epoch * n, n))
        assert starts[0] >= 0 and starts[-1] + block_size + 1 <= n_tokens
        assert (np.diff(starts) == block_size).all()
        assert n_tokens - n * block_size < 2 * block_size


def test_epochs_and_seeds_differ():
    """Another epoch or seed has another order and, mostly, another phase."""
    def epoch(seed, e):
        return bins.train_windows(10_000, 50, seed, e * 199, 199)
    assert not np.array_equal(epoch(1, 0), epoch(1, 1))
    assert not np.array_equal(epoch(1, 0), epoch(2, 0))
    assert len({int(epoch(1, e)[0] % 50) for e in range(20)}) > 5


def test_batches_are_a_pure_function():
    """However training is cut into batches, and whatever was read before, the windows are the same."""
    whole = bins.train_windows(1000, 16, 3, 0, 300)  # about five epochs
    pieces = np.concatenate([bins.train_windows(1000, 16, 3, i, 7) for i in range(0, 294, 7)])
    assert np.array_equal(whole[:294], pieces)
    assert np.array_equal(whole[130:140], bins.train_windows(1000, 16, 3, 130, 10))


def test_val_windows():
    """Validation windows are spread evenly, do not overlap, and are all of them when all are asked for."""
    starts = bins.val_windows(1001, 10, 25)
    assert len(starts) == 25 and starts[0] == 0 and (np.diff(starts) == 40).all()
    assert np.array_equal(bins.val_windows(1001, 10, 10**9), np.arange(100) * 10)
    assert np.array_equal(bins.val_windows(11, 10, 5), [0])


def test_targets_are_the_next_tokens():
    """Each target is the token after its input."""
    x, y = bins.read_windows(np.arange(100, dtype=np.uint16), np.array([3, 50]), 10)
    assert x.dtype == np.int64 and np.array_equal(y, x + 1) and np.array_equal(x[:, 0], [3, 50])


def folder(tmp_path, tokens, meta=None):
    for split in ('train', 'val'):
        np.array(tokens, '<u2').tofile(tmp_path / f'{split}.bin')
    if meta is not None:
        (tmp_path / 'meta.json').write_text(meta)
    return tmp_path


def test_bins_without_meta_are_gpt2s(tmp_path):
    """Bins with no meta.json are uint16 ids below 50,257."""
    where = folder(tmp_path, [5, 50256, 0])
    assert bins.find(str(where)) == where and bins.read_meta(where) is None
    assert bins.open_bin(where, 'train', None).tolist() == [5, 50256, 0]
    with pytest.raises(ValueError, match='holds id 50257, but its vocabulary has 50257'):
        bins.open_bin(folder(tmp_path, [5, 50257]), 'train', None)


META = dict(tokenizer='byte', vocab_size=256, dtype='uint8', synthetic=False, source='x',
            splits={split: {'sha256': '0'} for split in ('train', 'val')})


@pytest.mark.parametrize('meta', ['', '[]', '{"tokenizer": "bpe"}', json.dumps(META | {'dtype': 'float64'}),
                                  json.dumps(META | {'vocab_size': 'many'}), json.dumps(META | {'splits': {}}), '{"tok'])
def test_damaged_meta(tmp_path, meta):
    """A damaged meta.json is one ValueError that names the file."""
    with pytest.raises(ValueError, match='meta.json is damaged.*prepare the data again'):
        bins.read_meta(folder(tmp_path, [1, 2], meta))


def test_what_cannot_be_trained_on(tmp_path):
    """Missing folders and splits, bins no longer than a block, and half a token are refused by name."""
    with pytest.raises(FileNotFoundError, match='python data/tinystories/prepare.py --tokenizer=nosuch'):
        bins.find('tinystories/nosuch')
    with pytest.raises(FileNotFoundError, match='give a name under data/'):
        bins.find(str(tmp_path / 'nowhere'))
    where = folder(tmp_path, range(16))
    with pytest.raises(FileNotFoundError, match='no test.bin'):
        bins.open_bin(where, 'test', None)
    with pytest.raises(ValueError, match='more than block_size=16'):
        bins.open_bin(where, 'train', None, 16)
    assert len(bins.open_bin(where, 'train', None, 15)) == 16
    (where / 'train.bin').write_bytes(b'abc')
    with pytest.raises(ValueError, match='3 bytes'):
        bins.open_bin(where, 'train', None)


def test_the_first_tokens(tmp_path):
    """open_bin(first=n) is the first n tokens, still watched for changes; more than there are is refused."""
    tokens = np.arange(300, dtype='<u2')
    tokens.tofile(tmp_path / 'train.bin')
    part = bins.open_bin(tmp_path, 'train', None, 10, first=100)
    assert np.array_equal(part, tokens[:100]) and bins.fingerprint(part) != bins.fingerprint(tokens)
    assert bins.unchanged(part) is part
    for first in (10, 301):
        with pytest.raises(ValueError, match='it holds 300'):
            bins.open_bin(tmp_path, 'train', None, 10, first=first)
    tokens[:200].tofile(tmp_path / 'train.bin')
    with pytest.raises(OSError, match='was changed'):
        bins.unchanged(part)
