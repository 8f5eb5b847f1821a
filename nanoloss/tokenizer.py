"""Tokenizers: text to token ids and back. One class has four kinds:

    gpt2   GPT-2's encoding, 50,257 ids, through tiktoken
    bpe    a byte-level BPE learned from the training text
    byte   the bytes of UTF-8, 256 ids
    ids    for data without a tokenizer: the text is the ids themselves, as in "17 4 212"

No text encodes to the end-of-text id: <|endoftext|> in a story is encoded as ordinary characters. Encoding and
decoding returns any valid Unicode string unchanged.
"""
import functools
import itertools
import json
import os
import re

import numpy as np

END_OF_TEXT = '<|endoftext|>'  # the end-of-text id decodes to this, in every kind but ids
LONG_RUN = 1 << 16  # whitespace characters; tiktoken's regular expression overflows its stack at a million
MAX_WORD = 256  # bytes; learning a BPE takes quadratic time in the length of a word


class Tokenizer:
    """A tokenizer of one of the four kinds.

    Args:
        kind: 'gpt2', 'bpe', 'byte' or 'ids'.
        ranks: for bpe, the bytes of each id except end-of-text, in id order.
        size: for ids, the vocabulary size.

    Attributes:
        vocab_size: number of ids, end-of-text included.
        eot: the end-of-text id; None for ids.
        dtype: of a token bin, little-endian.

    Raises ValueError if the arguments do not fit together. The encoding is created at its first use, so a gpt2
    tokenizer needs no network until it encodes or decodes.
    """

    def __init__(self, kind, ranks=None, size=None):
        if kind not in ('gpt2', 'bpe', 'byte', 'ids'):
            raise ValueError(f"unknown tokenizer {kind!r}: use 'gpt2', 'bpe', 'byte' or 'ids'")
        if (size is not None) != (kind == 'ids') or kind == 'ids' and (type(size) is not int or not 0 < size <= 65536):
            raise ValueError(f'an ids tokenizer, and no other, takes a size from 1 to 65536; found {kind!r}, {size!r}')
        if (ranks is not None) != (kind == 'bpe'):
            raise ValueError(f'a bpe tokenizer, and no other, takes ranks; found {kind!r}')
        self.kind, self.ranks = kind, ranks
        if kind == 'bpe':
            _check_ranks(ranks)
        self.vocab_size = {'gpt2': 50257, 'byte': 256, 'ids': size}.get(kind) or len(ranks) + 1
        self.eot = None if kind == 'ids' else self.vocab_size - 1  # 0xFF for bytes: UTF-8 never uses 0xF5 to 0xFF
        self.dtype = np.dtype('u1' if kind == 'byte' else '<u2')

    def encode(self, text):
        """Encode a string as a list of ids, without end-of-text. Lone surrogates become U+FFFD.

        Raises ValueError for text that is not a list of ids (kind 'ids'), ConnectionError if GPT-2's encoding is not
        cached and cannot be downloaded.
        """
        return self._ids(text).tolist()

    def encode_stories(self, texts):
        """Encode an iterable of strings as an array (n,) of self.dtype, with eot after each. Not for kind 'ids'."""
        eot = np.array([self.eot], self.dtype)
        parts = [part for text in texts for part in (self._ids(text), eot)]
        return np.concatenate(parts, dtype=self.dtype, casting='unsafe') if parts else eot[:0]

    def decode(self, ids):
        """Decode ids as a string: eot becomes <|endoftext|>, invalid UTF-8 becomes U+FFFD."""
        return b''.join(map(self.token_bytes, ids)).decode('utf-8', 'replace')

    def token_bytes(self, id):
        """The bytes of one id, which may be part of a character. Raises ValueError for an invalid id."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f'id {int(id)} is out of range: {self.kind} ids are 0 to {self.vocab_size - 1}')
        return self._bytes[int(id)]

    def to_dict(self):
        """Strings, numbers and lists only, for JSON or a checkpoint; the byte strings of a bpe as Latin-1."""
        state = {'kind': self.kind, 'vocab_size': self.vocab_size}
        if self.kind == 'bpe':
            state['ranks'] = [rank.decode('latin-1') for rank in self.ranks]
        return state

    @classmethod
    def from_dict(cls, state):
        """The inverse of to_dict. Raises ValueError if state is not a valid tokenizer."""
        try:
            kind, size, ranks = state['kind'], state['vocab_size'], state.get('ranks')
            ranks = None if ranks is None else [rank.encode('latin-1') for rank in ranks]
        except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as e:
            raise ValueError(f'not a valid tokenizer: {type(e).__name__}: {e}') from None
        tokenizer = cls(kind, ranks, size if kind == 'ids' else None)
        if size != tokenizer.vocab_size:
            raise ValueError(f'not a valid {kind} tokenizer: vocab_size is {size}, but it has '
                             f'{tokenizer.vocab_size} ids')
        return tokenizer

    def save(self, path):
        """Write to_dict() as JSON."""
        with open(path, 'w', encoding='utf-8') as f:
            json.dump(self.to_dict(), f, indent=0)

    @classmethod
    def load(cls, path):
        """Load the tokenizer of a dataset folder (from its meta.json), or a file written by save().

        Raises OSError or ValueError, in one line with the path, if the file is missing or not valid.
        """
        is_folder = os.path.isdir(path)
        file = os.path.join(path, 'meta.json') if is_folder else path
        try:
            if os.path.exists(file) and (not os.path.isfile(file) or os.path.getsize(file) > 2**24):  # usual: 1 MB
                raise ValueError(f'not a tokenizer, but {os.path.getsize(file):,} bytes of something else')
            with open(file, encoding='utf-8') as f:
                content = json.load(f)
            if not is_folder:
                return cls.from_dict(content)
            kind = content['tokenizer']
            tokenizer = cls.load(os.path.join(path, 'tokenizer.json')) if kind == 'bpe' else cls(kind)
            if (content['vocab_size'], content['dtype']) != (tokenizer.vocab_size, tokenizer.dtype.name):
                raise ValueError(f"meta.json has {content['vocab_size']} ids of {content['dtype']}, but the tokenizer "
                                 f'has {tokenizer.vocab_size} of {tokenizer.dtype.name}')
            return tokenizer
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            advice = '; prepare the data again' if is_folder else ''
            raise ValueError(f'{file}: {e}{advice}') from None

    @classmethod
    def for_dataset(cls, folder, meta):
        """The tokenizer of a dataset. meta: the result of dataloader.read_meta(folder). Raises what load() raises."""
        if not meta:
            return cls('gpt2')
        return cls('ids', size=meta['vocab_size']) if meta['tokenizer'] == 'ids' else cls.load(folder)

    def _ids(self, text):
        if self.kind == 'ids':
            if not all(word.isdecimal() and int(word) < self.vocab_size for word in text.split()):
                raise ValueError(f'the data has no tokenizer: write ids below {self.vocab_size}, like "0 5 17"')
            return np.array(text.split(), np.uint16)
        if not text.isascii():  # tiktoken would replace lone surrogates in another way
            text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
        if self.kind == 'byte':
            return np.frombuffer(text.encode(), np.uint8)
        pieces = _cut_long_runs(text) if len(text) > LONG_RUN else [text]
        return np.concatenate([self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in pieces])

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
            except (OSError, ValueError) as e:  # requests' errors are OSErrors; ValueError is a wrong hash
                raise ConnectionError(f"GPT-2's encoding could not be downloaded ({type(e).__name__}): set "
                                      'TIKTOKEN_CACHE_DIR, or prepare the data with --tokenizer=bpe; train.py '
                                      'needs it only for --sample_tokens') from e
        from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's regular expression
        return tiktoken.Encoding('bpe', pat_str=r50k_pat_str, special_tokens={},
                                 mergeable_ranks={rank: i for i, rank in enumerate(self.ranks)})


def train_bpe(texts, vocab_size):
    """Learn a byte-level BPE from an iterable of strings. Its last id is end-of-text.

    The same texts give the same tokenizer. A small corpus gives fewer than vocab_size ids. A longer word than MAX_WORD
    is cut into pieces for learning, so no id is longer.
    Raises ValueError unless 257 <= vocab_size <= 65536.
    """
    if not 257 <= vocab_size <= 65536:
        raise ValueError(f'a BPE has 257 to 65536 ids (256 bytes, end-of-text, 16 bits); found vocab_size={vocab_size}')
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, pre_tokenizers, trainers
    learner = HFTokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), pre_tokenizers.FixedLength(MAX_WORD)])
    learner.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    vocab = json.loads(learner.to_str())['model']['vocab']
    return Tokenizer('bpe', [token_from_unicode(token) for token in sorted(vocab, key=vocab.get)])


def _cut_long_runs(text):
    """Cut a text before the last character of each long run of whitespace; the ids of the pieces are those of the text.

    GPT-2's regular expression ends a token there anyway: the last whitespace character belongs to the next word. The
    whitespace is that of \\s in tiktoken; Python's also has \\x1c to \\x1f.
    """
    runs = re.finditer(r'[^\S\x1c-\x1f]{%d,}' % LONG_RUN, text)
    cuts = [run.end() - 1 for run in runs if run.end() < len(text)]
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


@functools.cache
def bytes_to_unicode():
    """GPT-2's mapping {byte: character}: printable bytes map to themselves, the n-th other byte to chr(256 + n)."""
    printable = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def token_from_unicode(token):
    """The bytes of a token written with bytes_to_unicode(). Raises KeyError for any other character."""
    byte = {character: b for b, character in bytes_to_unicode().items()}
    return bytes(byte[character] for character in token)


def _check_ranks(ranks):  # tiktoken panics if a byte is missing and does not check the rest
    seen = set(ranks)
    missing = sum(bytes([b]) not in seen for b in range(256))
    if missing or len(seen) < len(ranks) or b'' in seen or len(ranks) > 65535:
        empty = ', an empty one' if b'' in seen else ''
        raise ValueError(f'not a valid bpe tokenizer: {len(ranks)} ranks, {missing} of the 256 bytes missing, '
                         f'{len(ranks) - len(seen)} duplicates{empty}')
