"""Token files and the windows that each iteration reads from them.

A data set is a folder with train.bin, val.bin and perhaps test.bin: token ids as raw little-endian
uint8 or uint16, without a header. meta.json describes them.
"""
import contextlib
import functools
import hashlib
import json
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nanoloss import rng
from nanoloss.paths import DATA
from nanoloss.tokenizer import Tokenizer

GPT2_VOCAB_SIZE = 50257


@dataclass
class Dataset:
    """What a training run reads. info is stored in its checkpoints."""
    folder: Path
    train: np.ndarray     # token ids, a memmap (n,)
    val: np.ndarray
    tokenizer: Tokenizer
    info: dict            # source, and the number of tokens and the fingerprint of each split


def open_dataset(dataset, block_size, vocab_size=0, train_tokens=0):
    """Open train.bin, val.bin and the tokenizer of a data set.

    Args:
        dataset, block_size: see find_dataset() and open_bin().
        vocab_size: see read_meta().
        train_tokens: use only the first train_tokens tokens of train.bin; 0 = all.
    Raises OSError or ValueError if a file is missing, damaged or too short.
    """
    folder = find_dataset(dataset)
    meta = read_meta(folder, vocab_size)
    train = open_bin(folder, 'train', meta, block_size, train_tokens)
    val = open_bin(folder, 'val', meta, block_size)
    info = {'source': meta['source'] if meta else 'bins without meta.json, read as GPT-2 tokens',
            'tokens': {'train': len(train), 'val': len(val)},
            'fingerprint': {'train': fingerprint(train), 'val': fingerprint(val)}}
    return Dataset(folder, train, val, Tokenizer.for_dataset(folder, meta), info)


def find_dataset(dataset):
    """Return the folder of a data set, given its name under data/ or a path.

    Raises FileNotFoundError, with the command that creates the data set if there is one.
    """
    dataset = dataset.rstrip('/')
    for folder in (DATA / dataset, Path(dataset)):
        if (folder / 'train.bin').is_file():
            return folder
    name, _, kind = dataset.partition('/')
    prepared = [f'{name}/{path.parent.name}' for path in sorted((DATA / name).glob('*/train.bin'))]
    if name and not kind and prepared:
        hint = f'pass --dataset={" or ".join(prepared)}'
    elif (DATA / name / 'prepare.py').is_file():
        hint = f'run: python data/{name}/prepare.py' + (f' --tokenizer={kind}' if kind else '')
    else:
        hint = 'pass a name under data/, such as tinystories/bpe, or a folder with train.bin and val.bin'
    raise FileNotFoundError(f'--dataset={dataset}: no train.bin in {DATA / dataset}; {hint}')


def vocab_size_of(meta):
    """Return the vocabulary size of a data set. meta: the result of read_meta()."""
    return meta['vocab_size'] if meta else GPT2_VOCAB_SIZE


def read_meta(folder, vocab_size=0):
    """Return the contents of meta.json, a dict; None if it describes no tokens, which means GPT-2's as uint16.

    Args:
        vocab_size: vocabulary size of bins with an unknown tokenizer, such as nanoGPT's with a meta.pkl.
            It replaces meta.json there; 0 = not set.
    Raises ValueError if meta.json is damaged, if vocab_size contradicts it, or if there is only a
    meta.pkl and vocab_size is 0.
    """
    path = Path(folder) / 'meta.json'
    try:
        meta = _read_json(path)
        if _describes_tokens(meta):
            _check_meta(meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f'{path} is damaged ({type(e).__name__}: {e}); prepare the data again') from None
    if not _describes_tokens(meta):
        if vocab_size:
            return {'source': f'bins of {vocab_size} ids without a tokenizer', 'splits': {}, 'vocab_size': vocab_size,
                    'tokenizer': 'ids', 'dtype': 'uint16'}
        pickle = path.with_suffix('.pkl')
        if pickle.exists():
            raise ValueError(f'{pickle} is not loaded, because a pickle can run any code; pass the number of ids with '
                             '--vocab_size=..., or prepare the text with data/tinystories/prepare.py --input=...')
        return None
    if vocab_size not in (0, meta['vocab_size']):
        raise ValueError(f"--vocab_size={vocab_size}, but {path} says {meta['vocab_size']}; omit the flag")
    return meta


def is_described(folder):
    """Return whether the folder has a meta.json that describes its tokens, intact or not."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return _describes_tokens(_read_json(Path(folder) / 'meta.json'))
    return True


def _describes_tokens(meta):
    """Whether the contents of meta.json are more than the largest ids that largest_id() writes into any folder."""
    return not meta.keys() <= {'checked'}


def _read_json(path):
    """Return the contents of meta.json; {} if there is no such file."""
    if not path.exists():
        return {}
    if not path.is_file() or path.stat().st_size > 2**20:  # reading a pipe would not end
        raise ValueError(f'not a regular file, or too large: {path.stat().st_size:,} bytes')
    return json.loads(path.read_text(encoding='utf-8'))


def _check_meta(meta):
    splits = [meta['splits'][name] for name in {'train', 'val', *meta['splits']}]
    types = {'source': str, 'vocab_size': int, 'tokenizer': str}
    invalid = [key for key in types if type(meta[key]) is not types[key]]
    if meta['dtype'] not in ('uint8', 'uint16'):
        invalid.append('dtype')
    if any(type(split['tokens']) is not int for split in splits):
        invalid.append('splits')
    if invalid:
        raise ValueError(f"invalid {', '.join(invalid)}")


def open_bin(folder, split, meta, block_size=1, max_tokens=0):
    """Return the tokens of a split as a read-only memmap (n,) of uint8 or uint16; see check_unchanged().

    The first time, the whole file is read to find its largest id; see largest_id().

    Args:
        meta: what read_meta() returned.
        block_size: the split must hold more tokens than this.
        max_tokens: use only the first max_tokens tokens; 0 = all.
    Raises OSError or ValueError if the file is missing, is not longer than block_size, has another length
    than meta.json says, holds no 16-bit ids although no meta.json describes it, holds an id outside the
    vocabulary, or holds fewer than max_tokens tokens.
    """
    path = Path(folder) / f'{split}.bin'
    dtype = np.dtype(meta['dtype'] if meta else 'uint16').newbyteorder('<')
    if not path.is_file():
        raise FileNotFoundError(f'no {split}.bin in {folder}; prepare the data again')
    size = path.stat().st_size
    if size % dtype.itemsize or size <= block_size * dtype.itemsize:
        raise ValueError(f'{path} has {size:,} bytes; expected whole {dtype.name} tokens, more than '
                         f'block_size={block_size}; prepare the data again, or lower --block_size')
    n_tokens = size // dtype.itemsize
    has_splits = meta is not None and meta['tokenizer'] != 'ids'
    expected = meta['splits'].get(split, {}).get('tokens', 0) if has_splits else n_tokens
    if expected != n_tokens:
        raise ValueError(f'{path} has {n_tokens:,} tokens, but meta.json says {expected:,}; prepare the data again')
    tokens = np.memmap(path, dtype, mode='r')
    tokens.file_state = _file_state(path)
    if not has_splits:
        _check_width(path, tokens[:2**16])
    vocab_size = vocab_size_of(meta)
    largest = largest_id(path, tokens, vocab_size)
    if largest >= vocab_size:
        raise ValueError(f'{path} holds id {largest}, but its vocabulary has {vocab_size} ids; prepare the data again')
    if not max_tokens:
        return tokens
    if not block_size < max_tokens <= len(tokens):
        raise ValueError(f'{path}: asked for the first {max_tokens:,} tokens; it holds {len(tokens):,}, and more than '
                         f'block_size={block_size} are needed')
    head = tokens[:max_tokens]
    head.file_state = tokens.file_state
    return head


def _check_width(path, words):
    """Raise ValueError if these first words of a file are not 16-bit ids."""
    words, found = np.array(words), ''
    data = words.view(np.uint8)
    if data[:6].tobytes() == b'\x93NUMPY':
        found = 'a NumPy array (.npy)'
    elif len(words) >= 16 and words.any():
        # the largest of every fourth word; the high words of wider ids are 0, or small for a large vocabulary
        largest = [words[i::4].max() for i in range(4)]
        even, odd = max(largest[::2]), max(largest[1::2])
        if min(even, odd) == 0 or min(even, odd) < 8 and max(even, odd) >= 2**15:
            found = 'ids of 64 bits' if largest.count(0) == 3 else 'ids of 32 bits'
    if not found and len(data) >= 4096 and words.any():
        # the first and second bytes of 16-bit ids are distributed differently, unless the ids are random
        first, second = (np.bincount(data[i::2], minlength=256) / len(words) for i in (0, 1))
        if abs(first - second).sum() < 0.3 and np.count_nonzero(first + second) < 256:
            found = 'text, or ids of 8 bits'
    if found:
        raise ValueError(f'{path} holds {found}, not 16-bit ids; convert it with NumPy: '
                         "ids.astype('<u2').tofile(file); or prepare the text again")


def largest_id(path, tokens, vocab_size):
    """Return the largest id of a token file, after reading all of it or from meta.json beside it.

    meta.json remembers it for as long as dtype, size and modification time of the file stay the same. If the folder is
    not writable, or if the id is not below vocab_size, nothing is stored.
    """
    meta_path, state = path.with_name('meta.json'), _checked_state(path, tokens.dtype)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        *known_state, largest = _read_json(meta_path)['checked'][path.name]
        if known_state == state and type(largest) is int:
            return largest
    largest = int(tokens.max())
    # a time stamp is exact to 2 s; a younger file may still change
    if largest < vocab_size and time.time_ns() - state[-1] > 2e9:
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):
            _remember(meta_path, path, [*state, largest])
    return largest


def _checked_state(path, dtype):
    s = os.stat(path)
    return [dtype.name, s.st_size, s.st_mtime_ns]


def _remember(meta_path, path, entry):
    """Add an entry to meta.json: another process sees the old file or the new one."""
    partial = meta_path.with_name(f'meta.json.{uuid.uuid4().hex}')
    meta = _read_json(meta_path)
    meta.setdefault('checked', {})[path.name] = entry
    try:
        partial.write_text(json.dumps(meta, indent=2) + '\n', encoding='utf-8')
        if _checked_state(path, np.dtype(entry[0])) == entry[:-1]:  # neither changed nor prepared again meanwhile
            os.replace(partial, meta_path)
    finally:
        partial.unlink(missing_ok=True)


def _file_state(path):
    s = os.stat(path)
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns


def check_unchanged(*bins):
    """Raise OSError if a file was changed or deleted since open_bin() opened it. Accepts plain arrays.

    Reading a memmap of a file that was truncated kills the process, and a file that was overwritten
    silently changes the data.
    """
    for tokens in bins:
        try:
            unchanged = not hasattr(tokens, 'file_state') or _file_state(tokens.filename) == tokens.file_state
        except OSError:
            unchanged = False
        if not unchanged:
            raise OSError(f'{tokens.filename} was changed or deleted while in use; the checkpoints are intact; '
                          'restore the file, or start another run')


def fingerprint(tokens):
    """Return the SHA-256 of up to 64 evenly spaced chunks of 64 Ki tokens, a fast way to recognize other data."""
    digest = hashlib.sha256(str(len(tokens)).encode())
    for start in np.linspace(0, max(0, len(tokens) - 2**16), 64, dtype=np.int64):
        digest.update(tokens[start:start + 2**16].tobytes())
    return digest.hexdigest()


def train_windows(n_tokens, block_size, seed, start, count, at_random=False):
    """Return the start positions (count,) of the training windows start, start + 1, ..., start + count - 1.

    Each epoch permutes the windows of block_size that tile the tokens from a random offset, so it
    reads every token at most once. Permutation and offset depend on (seed, epoch) only, so the windows
    of an iteration are a pure function of its number.

    at_random: draw all positions independently instead, as nanoGPT does, so windows overlap and repeat.
    """
    numbers = np.arange(start, start + count)
    n = max(1, (n_tokens - block_size) // block_size)  # windows per epoch, whatever the offset
    starts = np.empty(count, np.int64)
    for epoch in np.unique(numbers // n):
        selected = numbers // n == epoch
        starts[selected] = _epoch(n_tokens, n, block_size, seed, int(epoch), at_random)[numbers[selected] % n]
    return starts


@functools.lru_cache(maxsize=2)  # a batch can span two epochs
def _epoch(n_tokens, n, block_size, seed, epoch, at_random):
    generator = rng.generator(rng.DATA, seed, epoch)
    if at_random:
        return generator.integers(n_tokens - block_size, size=n)
    offset = generator.integers(min(block_size, n_tokens - n * block_size))
    return offset + block_size * generator.permutation(n)


def val_windows(n_tokens, block_size, count):
    """Return the start positions of up to `count` evenly spaced windows that do not overlap, always the same ones."""
    n = (n_tokens - 1) // block_size
    count = min(n, count)
    return np.arange(count) * n // count * block_size


def load_windows(tokens, starts, block_size, device='cpu'):
    """Return inputs and targets of the windows at `starts`: two int64 tensors (len(starts), block_size) on the device.

    To a CUDA device they are copied asynchronously, in one block of pinned memory.
    """
    windows = torch.from_numpy(np.stack([tokens[s:s + block_size + 1] for s in starts]).astype(np.int64))
    if device.startswith('cuda'):
        windows = windows.pin_memory().to(device, non_blocking=True)
    else:
        windows = windows.to(device)
    return windows[:, :-1], windows[:, 1:]


def story_bounds(tokens, eot):
    """Return the bounds (S + 1,) of S stories: story i is tokens[bounds[i]:bounds[i + 1]], end-of-text id included."""
    bounds = [np.zeros(1, np.int64)]
    for i in range(0, len(tokens), 2**24):  # in chunks, so that a large split needs little memory
        bounds.append(np.flatnonzero(tokens[i:i + 2**24] == eot) + i + 1)
    bounds = np.concatenate(bounds)
    return bounds if bounds[-1] == len(tokens) else np.append(bounds, len(tokens))  # the last story can be truncated


def story_windows(bounds, block_size, stride):
    """Return windows that score every token of every story exactly once: (W, 3) of start, length, scored.

    The targets of a window are tokens[start:start + length], of which only the last `scored` are scored. Its
    inputs are the preceding tokens, so the first window of a story starts with end-of-text. In a story
    longer than block_size the window slides by stride, 1 <= stride <= block_size, so that scored tokens
    have at least block_size - stride tokens of context.
    """
    begin, end = bounds[:-1], bounds[1:]
    count = 1 + np.maximum(0, -((begin + block_size - end) // stride))  # windows of each story
    begin, end, first = (np.repeat(x, count) for x in (begin, end, np.cumsum(count) - count))
    number = np.arange(len(begin)) - first  # of a window in its story
    start = begin + number * stride
    stop = np.minimum(start + block_size, end)
    done = np.where(number == 0, start, start - stride + block_size)  # where the window before stopped
    return np.stack([start, stop - start, stop - done], axis=1)


def block_windows(n_tokens, block_size):
    """Return consecutive blocks that ignore story bounds, like val_windows(), in the format of story_windows().

    The last block may be shorter. The first token is not scored, because it has no context.
    """
    starts = np.arange(1, n_tokens, block_size)
    lengths = np.minimum(block_size, n_tokens - starts)
    return np.stack([starts, lengths, lengths], axis=1)
