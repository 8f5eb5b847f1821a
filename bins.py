"""Token bins: the files of data/<name>/<tokenizer>/, and which windows of them an iteration reads."""
import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np

import rng

ROOT = Path(__file__).resolve().parent / 'data'


def find(dataset):
    """The folder of a data set: a name under data/, or any folder with bins in it.

    Raises FileNotFoundError, naming the command that would make it.
    """
    dataset = dataset.rstrip('/')
    for folder in (ROOT / dataset, Path(dataset)):
        if (folder / 'train.bin').is_file():
            return folder
    name, _, kind = dataset.partition('/')
    command = f'python data/{name}/prepare.py' + f' --tokenizer={kind}' * bool(kind)
    how = f'make it with: {command}' if (ROOT / name / 'prepare.py').is_file() else \
        'give a name under data/, like tinystories/bpe, or a folder with train.bin and val.bin'
    raise FileNotFoundError(f'--dataset={dataset}: there is no train.bin in {ROOT / dataset}; {how}')


def read_meta(folder, vocab_size=0):
    """meta.json of a folder; None where there is none, which means GPT-2's tokens as uint16.

    vocab_size: of bins whose tokenizer is not known, as nanoGPT's with a meta.pkl: what stands for their
    meta.json then. Raises ValueError where meta.json is damaged, where vocab_size contradicts it, or where
    there is a meta.pkl and no vocab_size.
    """
    path = Path(folder) / 'meta.json'
    if not path.exists():
        if vocab_size:
            return {'source': f'bins of {vocab_size} ids without a tokenizer', 'synthetic': False, 'splits': {},
                    'vocab_size': vocab_size, 'tokenizer': 'ids', 'dtype': 'uint16'}
        if (pickle := path.with_suffix('.pkl')).exists():
            raise ValueError(f'{pickle} is not opened: a pickle can run any code. Give the number of ids with '
                             '--vocab_size=..., or prepare the text with data/tinystories/prepare.py --input=...')
        return None
    try:
        if not path.is_file() or path.stat().st_size > 2**20:  # a pipe would not end
            raise ValueError(f'no file, or of {path.stat().st_size:,} bytes')
        meta = json.loads(path.read_text(encoding='utf-8'))
        splits = [meta['splits'][name] for name in {'train', 'val', *meta['splits']}]
        wrong = [key for key, kind in (('source', str), ('synthetic', bool), ('vocab_size', int), ('tokenizer', str))
                 if type(meta[key]) is not kind]
        wrong += ['dtype'] * (meta['dtype'] not in ('uint8', 'uint16'))
        wrong += ['splits'] * any(type(split['tokens']) is not int for split in splits)
        if wrong:
            raise ValueError(f"no good {', '.join(wrong)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f'{path} is damaged ({type(e).__name__}: {e}); prepare the data again') from None
    if vocab_size not in (0, meta['vocab_size']):
        raise ValueError(f"--vocab_size={vocab_size}, but {path} says {meta['vocab_size']}; leave the flag away")
    return meta


def open_bin(folder, split, meta, block_size=1, first=0):
    """Tokens of a split as a read-only memmap (n,) of uint8 or uint16, the first so many or all; see also unchanged().

    Raises OSError or ValueError: no such file, not longer than a block, not as long as meta.json
    says, an id out of the vocabulary, fewer tokens than asked for.
    """
    path = Path(folder) / f'{split}.bin'
    dtype = np.dtype(meta['dtype'] if meta else 'uint16').newbyteorder('<')
    if not path.is_file():
        raise FileNotFoundError(f'there is no {split}.bin in {folder}; prepare the data again')
    size = path.stat().st_size
    if size % dtype.itemsize or size <= block_size * dtype.itemsize:
        raise ValueError(f'{path} has {size:,} bytes; of {dtype.name} tokens it must hold whole ones, and more '
                         f'than block_size={block_size} of them; prepare the data again, or lower --block_size')
    known = meta and meta['tokenizer'] != 'ids'
    claimed = meta['splits'].get(split, {}).get('tokens', 0) if known else size // dtype.itemsize
    if claimed != size // dtype.itemsize:
        raise ValueError(f'{path} has {size // dtype.itemsize:,} tokens, but meta.json says {claimed:,}; '
                         'prepare the data again')
    tokens = np.memmap(path, dtype, mode='r')
    tokens.state = _state(path)
    vocab_size, largest = meta['vocab_size'] if meta else 50257, int(tokens.max())
    if largest >= vocab_size:
        raise ValueError(f'{path} holds id {largest}, but its vocabulary has {vocab_size} ids; prepare the data again')
    if not first:
        return tokens
    if not block_size < first <= len(tokens):
        raise ValueError(f'the first {first:,} tokens of {path} are asked for; it holds {len(tokens):,}, and more than '
                         f'block_size={block_size} are needed')
    part = tokens[:first]
    part.state = tokens.state
    return part


def _state(path):
    s = os.stat(path)
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns


def unchanged(tokens):
    """The tokens, if the file of open_bin is still the one that was opened (arrays pass). Raises OSError.

    Reading a memmap of a file that has become shorter kills the process without a word, and one
    that was written over trains on something else.
    """
    try:
        same = not hasattr(tokens, 'state') or _state(tokens.filename) == tokens.state
    except OSError:
        same = False
    if not same:
        raise OSError(f'{tokens.filename} was changed or deleted while it was in use; what was saved before is as it '
                      'was; put the data back, or begin another run')
    return tokens


def fingerprint(tokens):
    """SHA-256 of up to 64 pieces of 64 Ki tokens that lie evenly over a bin: tells two preparations apart at once."""
    digest = hashlib.sha256(str(len(tokens)).encode())
    for start in np.linspace(0, max(0, len(tokens) - 2**16), 64, dtype=np.int64):
        digest.update(tokens[start:start + 2**16].tobytes())
    return digest.hexdigest()


def train_windows(n_tokens, block_size, seed, start, count):
    """Where the windows number start to start + count of training begin, (count,) positions.

    An epoch is a permutation of the windows of block_size that tile the tokens from a random
    phase: each token once an epoch. Both depend on (seed, epoch) alone, so the windows of an
    iteration are a pure function of its number.
    """
    numbers = np.arange(start, start + count)
    n = max(1, (n_tokens - block_size) // block_size)  # windows an epoch, at any phase
    starts = np.empty(count, np.int64)
    for epoch in np.unique(numbers // n):
        here = numbers // n == epoch
        starts[here] = _epoch(n_tokens, n, block_size, seed, int(epoch))[numbers[here] % n]
    return starts


@functools.lru_cache(maxsize=2)  # a batch can straddle two epochs
def _epoch(n_tokens, n, block_size, seed, epoch):
    generator = rng.generator(rng.DATA, seed, epoch)
    phase = generator.integers(min(block_size, n_tokens - n * block_size))
    return phase + block_size * generator.permutation(n)


def val_windows(n_tokens, block_size, count):
    """Where up to `count` windows begin that lie evenly over the tokens: always the same ones."""
    n = (n_tokens - 1) // block_size
    count = min(n, count)
    return np.arange(count) * n // count * block_size


def read_windows(tokens, starts, block_size):
    """Inputs and targets of the windows at `starts`: two int64 arrays (len(starts), block_size)."""
    windows = np.stack([tokens[s:s + block_size + 1] for s in starts]).astype(np.int64)
    return windows[:, :-1], windows[:, 1:]


def stories(tokens, eot):
    """Bounds (S + 1,) of the stories: story i is tokens[bounds[i]:bounds[i + 1]], its end-of-text id the last."""
    bounds = [np.zeros(1, np.int64), np.flatnonzero(tokens == eot) + 1]
    if len(bounds[1]) == 0 or bounds[1][-1] < len(tokens):
        bounds.append(np.array([len(tokens)]))  # the last one was cut off
    return np.concatenate(bounds)


def story_windows(bounds, block_size, stride):
    """Windows that score every token of every story once: (W, 3) of start, length, scored.

    The targets of a window are tokens[start:start + length], of which the last `scored` count; its
    inputs are the tokens one before them, so a story's first window begins with end-of-text. A
    longer story than block_size slides on by stride, 1 <= stride <= block_size: what counts has at
    least block_size - stride tokens of context.
    """
    windows = []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        start = done = begin
        while done < end:
            stop = min(start + block_size, end)
            windows.append((start, stop - start, stop - done))
            done, start = stop, start + stride
    return np.array(windows)


def block_windows(n_tokens, block_size):
    """The same for blocks that follow each other, whatever story they cut, as val_windows has them;
    the last may be shorter, and the very first token, which nothing comes before, is not scored."""
    starts = np.arange(1, n_tokens, block_size)
    lengths = np.minimum(block_size, n_tokens - starts)
    return np.stack([starts, lengths, lengths], axis=1)
