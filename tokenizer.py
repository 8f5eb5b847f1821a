"""Text to token ids and back, in four kinds behind one class:

    gpt2   GPT-2's own encoding, 50,257 ids, through tiktoken
    bpe    a byte-level BPE learned from the training text, as many ids as asked for
    byte   the bytes of UTF-8, 256 ids
    ids    of data that came without its tokenizer: the text is the ids themselves, "17 4 212"

End of text is one id that no text ever encodes to: the words <|endoftext|> in
a story are ordinary characters. Any Unicode string survives the round trip.
"""
import functools
import json
import os

import numpy as np

END_OF_TEXT = '<|endoftext|>'  # how the end-of-text id is rendered, by every kind


class Tokenizer:
    """kind: 'gpt2', 'bpe', 'byte' or 'ids'. ranks: for bpe, the bytes of every id but the last, in id order.
    size: for ids, how many there are.

    Attributes: kind, vocab_size (end of text included), eot (its id; None for ids), dtype
    (little-endian, of a bin). The encoding itself is built at its first use,
    so a gpt2 tokenizer that only gives its sizes needs no network.
    """

    def __init__(self, kind, ranks=None, size=None):
        if kind not in ('gpt2', 'bpe', 'byte', 'ids'):
            raise ValueError(f"a tokenizer is 'gpt2', 'bpe', 'byte' or 'ids', not {kind!r}")
        if (size is not None) != (kind == 'ids') or kind == 'ids' and (type(size) is not int or not 0 < size <= 65536):
            raise ValueError(f'a size of 1 to 65536 belongs to an ids tokenizer, and only to that; found {size!r}')
        if (ranks is not None) != (kind == 'bpe'):
            raise ValueError('ranks belong to a bpe tokenizer, and only to that')
        self.kind, self.ranks = kind, ranks
        if kind == 'bpe':
            _check_ranks(ranks)
        self.vocab_size = {'gpt2': 50257, 'byte': 256, 'ids': size}.get(kind) or len(ranks) + 1
        self.eot = None if kind == 'ids' else self.vocab_size - 1  # 0xFF for bytes: UTF-8 never uses 0xF5 to 0xFF
        self.dtype = np.dtype('u1' if kind == 'byte' else '<u2')

    def encode(self, text):
        """A string to a list of ids, without end of text. Lone surrogates become U+FFFD."""
        return self._ids(text).tolist()

    def encode_stories(self, texts):
        """An iterable of strings to one array of ids of self.dtype, (n,): each text's ids, then eot."""
        end = np.array([self.eot], self.dtype)
        parts = [part for text in texts for part in (self._ids(text), end)]
        return np.concatenate(parts, dtype=self.dtype, casting='unsafe') if parts else end[:0]

    def decode(self, ids):
        """Ids to a string; eot shows as <|endoftext|>, bytes that are no UTF-8 as U+FFFD."""
        return b''.join(map(self.token_bytes, ids)).decode('utf-8', 'replace')

    def token_bytes(self, id):
        """The bytes of one id, for streaming: perhaps part of a character. ValueError for an id outside."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f'id {int(id)} is outside the {self.kind} tokenizer: 0 to {self.vocab_size - 1}')
        return self._bytes[int(id)]

    def to_dict(self):
        """Plain strings, numbers and lists, for JSON or a checkpoint; bpe's byte strings as latin-1."""
        plain = {'kind': self.kind, 'vocab_size': self.vocab_size}
        if self.kind == 'bpe':
            plain['ranks'] = [rank.decode('latin-1') for rank in self.ranks]
        return plain

    @classmethod
    def from_dict(cls, plain):
        """The inverse of to_dict. Raises ValueError where that dict is damaged."""
        try:
            kind, size, ranks = plain['kind'], plain['vocab_size'], plain.get('ranks')
            ranks = ranks if ranks is None else [rank.encode('latin-1') for rank in ranks]
        except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as e:
            raise ValueError(f'not a tokenizer: {type(e).__name__}: {e}') from None
        tokenizer = cls(kind, ranks, size if kind == 'ids' else None)
        if size != tokenizer.vocab_size:
            raise ValueError(f'damaged {kind} tokenizer: it claims {size} ids and holds {tokenizer.vocab_size}')
        return tokenizer

    def save(self, path):
        """Writes to_dict as JSON."""
        with open(path, 'w', encoding='utf-8') as f:
            json.dump(self.to_dict(), f, indent=0)

    @classmethod
    def load(cls, where):
        """'gpt2', 'byte', a file that save wrote, or a folder of prepared data (by its meta.json).

        Raises OSError where there is no such file, ValueError where it cannot be read or is damaged.
        """
        if where in ('gpt2', 'byte'):
            return cls(where)
        folder = os.path.isdir(where)
        path = os.path.join(where, 'meta.json') if folder else where
        if os.path.exists(path) and (not os.path.isfile(path) or os.path.getsize(path) > 2**24):  # 1 MB is usual
            raise ValueError(f'{path} is no tokenizer: no file, or of {os.path.getsize(path):,} bytes; prepare the '
                             'data again')
        try:
            with open(path, encoding='utf-8') as f:
                plain = json.load(f)
            if not folder:
                return cls.from_dict(plain)
            tokenizer = cls.load(os.path.join(where, 'tokenizer.json')) if plain['tokenizer'] == 'bpe' \
                else cls(plain['tokenizer'])
            if (plain['vocab_size'], plain['dtype']) != (tokenizer.vocab_size, tokenizer.dtype.name):
                raise ValueError(f"{plain['vocab_size']} ids as {plain['dtype']}, but its tokenizer has "
                                 f'{tokenizer.vocab_size} as {tokenizer.dtype.name}')
            return tokenizer
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise ValueError(f'{path}: {e}' + '; prepare the data again' * folder) from None

    @classmethod
    def of_data(cls, folder, meta):
        """That of prepared data: meta is what bins.read_meta gave. Raises as load does."""
        if not meta or meta['tokenizer'] == 'ids':
            return cls('ids', size=meta['vocab_size']) if meta else cls('gpt2')
        return cls.load(folder)

    def _ids(self, text):
        if self.kind == 'ids':
            if not all(word.isdecimal() and int(word) < self.vocab_size for word in text.split()):
                raise ValueError(f'this tokenizer has no text: write ids below {self.vocab_size}, like "0 5 17"')
            return np.array(text.split(), np.uint16)
        if not text.isascii():  # the same replacement for all kinds; tiktoken has its own
            text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
        if self.kind == 'byte':
            return np.frombuffer(text.encode(), np.uint8)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    @functools.cached_property
    def _bytes(self):  # id -> bytes
        if self.kind == 'ids':
            return [b'%d ' % i for i in range(self.vocab_size)]
        if self.kind == 'byte':
            table = [bytes([i]) for i in range(255)]
        else:
            table = self.ranks or [self._encoding.decode_single_token_bytes(i) for i in range(self.eot)]
        return [*table, END_OF_TEXT.encode()]

    @functools.cached_property
    def _encoding(self):
        import tiktoken
        if self.kind == 'gpt2':
            try:
                return tiktoken.get_encoding('gpt2')
            except (OSError, ValueError) as e:  # requests' errors are OSErrors; ValueError: a wrong hash
                raise ConnectionError(f"GPT-2's encoding could not be fetched: {type(e).__name__}; "
                                      'set TIKTOKEN_CACHE_DIR, or prepare the data with --tokenizer=bpe') from e
        from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's split into words
        return tiktoken.Encoding('bpe', pat_str=r50k_pat_str, special_tokens={},
                                 mergeable_ranks={rank: i for i, rank in enumerate(self.ranks)})


def train_bpe(texts, vocab_size):
    """Learns a byte-level BPE from an iterable of strings, end of text the last of its ids.

    A small corpus yields fewer entries than asked for: see the result's vocab_size.
    The same texts give the same tokenizer. Raises ValueError unless 257 <= vocab_size <= 65536.
    """
    if not 257 <= vocab_size <= 65536:
        raise ValueError(f'a bpe vocabulary has 257 to 65536 ids (256 bytes, end of text, 16 bits), not {vocab_size}')
    from tokenizers import Tokenizer as Learner
    from tokenizers import models, pre_tokenizers, trainers
    learner = Learner(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    learner.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    vocab = json.loads(learner.to_str())['model']['vocab']
    return Tokenizer('bpe', [from_letters(entry) for entry in sorted(vocab, key=vocab.get)])


@functools.cache
def letters():
    """GPT-2's letter of each byte: a printable byte stands for itself, the n-th other byte for chr(256 + n)."""
    printable = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def from_letters(entry):
    """The bytes of an entry of a byte-level vocabulary. Raises KeyError for what is no letter of that."""
    byte = {letter: b for b, letter in letters().items()}
    return bytes(byte[c] for c in entry)


def _check_ranks(ranks):  # tiktoken panics on ranks without some byte, and trusts the rest
    seen = set(ranks)
    missing = sum(bytes([b]) not in seen for b in range(256))
    if missing or len(seen) < len(ranks) or b'' in seen or len(ranks) > 65535:
        raise ValueError(f'damaged bpe tokenizer: {len(ranks)} ranks, {missing} of the 256 bytes missing, '
                         f'{len(ranks) - len(seen)} duplicates' + ', an empty one' * (b'' in seen))
