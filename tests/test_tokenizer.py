"""tokenizer.py against tiktoken, tokenizers and plain UTF-8."""
import io
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import Tokenizer, train_bpe

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / 'shared' / 'tinystories' / 'train.txt'
TEXTS = ["Once upon a time, there was a little girl named Lily. She loved to play.\n\n\"Hi!\" said Tom's dog.",
         'The big bear saw 12 apples; he ate 7 of them. Yum, yum, YUM!', 'Étienne fand ein Größenmaß 🎉 im Tal.'] * 40
NASTY = ['', ' ', '\n', '  two  spaces\t\ttabs \n \n', 'a\x00b\x00\x00', 'one\r\ntwo\rthree\n\r', '<|endoftext|>',
         'x<|endoftext|>y <|endoftext|><|endoftext', '🎉👩‍👩‍👧‍👦🇩🇪e\u0301', 'â€œHelloâ€\x9d said Tomâ€™s dog', '\ufeffbom', '\ufffd',
         '\u2028\u2029\x85\xa0', "it's WE'LL 'twas 1234567890 ½", 'a' * 5000, ' ' * 5000, '\U0010ffff\ud7ff\ue000']


@pytest.fixture(scope='module')
def bpe():
    return train_bpe(TEXTS, 350)


@pytest.fixture(scope='module')
def gpt2():
    tokenizer = Tokenizer('gpt2')
    try:
        tokenizer.encode('')
    except ConnectionError as e:
        pytest.skip(str(e))
    return tokenizer


@pytest.fixture(scope='module')
def real():
    if not REAL.exists():
        pytest.skip(f'needs {REAL}')
    return [story.strip() for story in REAL.read_text(encoding='utf-8').split('<|endoftext|>')[:2000]]


@pytest.fixture(params=['byte', 'bpe', 'gpt2'])
def tokenizer(request):
    return Tokenizer('byte') if request.param == 'byte' else request.getfixturevalue(request.param)


@pytest.mark.parametrize('text', NASTY)
def test_round_trip_of_nasty_strings(tokenizer, text):
    """text -> ids -> text is exact, and no text encodes to end of text"""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(type(id) is int and 0 <= id < tokenizer.vocab_size - 1 for id in ids)


def test_round_trip_of_random_unicode(tokenizer):
    """text -> ids -> text is exact for any Unicode string"""
    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(exclude_categories=['Cs'])))
    def check(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    check()


def test_sizes(tokenizer):
    """end of text is the last id, dtypes are little-endian and hold every id"""
    assert (tokenizer.vocab_size, tokenizer.eot) == {'byte': (256, 255), 'bpe': (350, 349),
                                                     'gpt2': (50257, 50256)}[tokenizer.kind]
    assert tokenizer.dtype.str == {'byte': '|u1', 'bpe': '<u2', 'gpt2': '<u2'}[tokenizer.kind]


def test_stories_are_ids_and_end_of_text(tokenizer):
    """encode_stories is each story's encode with eot after it"""
    ids = tokenizer.encode_stories(iter(NASTY))
    assert ids.dtype == tokenizer.dtype
    assert ids.tolist() == [id for text in NASTY for id in [*tokenizer.encode(text), tokenizer.eot]]
    assert (ids == tokenizer.eot).sum() == len(NASTY)
    nothing = tokenizer.encode_stories([])
    assert nothing.shape == (0,) and nothing.dtype == tokenizer.dtype


def test_token_bytes_join_to_the_text(tokenizer):
    """the bytes of the tokens, one by one, are the text's UTF-8; numpy ids do as well"""
    for text in NASTY:
        ids = np.array(tokenizer.encode(text), tokenizer.dtype)
        assert b''.join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert tokenizer.decode(ids) == text


def test_decode_shows_end_of_text_and_invalid_bytes(tokenizer):
    """eot renders as <|endoftext|>, half a character as U+FFFD, an id outside is refused"""
    half = next(id for id in range(256) if tokenizer.token_bytes(id) == b'\xc3')
    assert tokenizer.decode([*tokenizer.encode('a'), tokenizer.eot]) == 'a<|endoftext|>'
    assert tokenizer.decode([half, *tokenizer.encode('a')]) == '\ufffda'
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f'id {id} '):
            tokenizer.decode([id])


def test_lone_surrogates_become_replacement_characters(tokenizer):
    """a lone surrogate, which UTF-8 cannot hold, encodes as U+FFFD in every kind"""
    assert tokenizer.encode('a\ud800b') == tokenizer.encode('a\ufffdb')


def test_byte_is_utf8():
    """the byte kind's ids are Python's own UTF-8 bytes"""
    for text in NASTY:
        assert Tokenizer('byte').encode(text) == list(text.encode())


def test_gpt2_is_tiktoken(gpt2, real):
    """the gpt2 kind's ids are those of tiktoken's gpt2, special tokens taken as text"""
    import tiktoken
    reference = tiktoken.get_encoding('gpt2')
    for text in NASTY + real[:100]:
        assert gpt2.encode(text) == reference.encode(text, disallowed_special=())


def test_gpt2_known_ids(gpt2):
    """'Hello world' is 15496 995 in GPT-2, as in OpenAI's and Hugging Face's documentation"""
    assert gpt2.encode('Hello world') == [15496, 995]


def tokenizers_own(texts, size):
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models, pre_tokenizers, trainers
    theirs = Theirs(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size - 1, min_frequency=2, show_progress=False,
                                                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return theirs


def test_bpe_is_tokenizers(bpe):
    """the bpe's ids are those that the library that learned it gives, for random text too"""
    theirs = tokenizers_own(TEXTS, 350)

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.text(st.characters(exclude_categories=['Cs'])), st.text("aeht l'.s\n1é")))
    def check(text):
        assert bpe.encode(text) == theirs.encode(text).ids

    check()
    for text in NASTY + TEXTS[:3]:
        assert bpe.encode(text) == theirs.encode(text).ids


def test_bpe_is_tokenizers_on_real_stories(real):
    """the same on TinyStories, with 2,000 entries; held-out stories included"""
    ours, theirs = train_bpe(real[:1000], 2000), tokenizers_own(real[:1000], 2000)
    assert ours.vocab_size == 2000
    assert [ours.encode(text) for text in real] == [theirs.encode(text).ids for text in real]


def test_bpe_compresses_and_is_deterministic():
    """the same texts give the same ranks; merges shorten the text they were learned from"""
    first, second = train_bpe(TEXTS, 350), train_bpe(iter(TEXTS), 350)
    assert first.ranks == second.ranks
    assert len(first.encode(TEXTS[0])) < 0.5 * len(TEXTS[0])


def test_bpe_of_small_corpus():
    """little text gives fewer entries than asked for; no text, the bytes and end of text"""
    assert train_bpe(['abc'], 4096).vocab_size == 257
    small = train_bpe(['ab ab ab'], 4096)
    assert small.vocab_size == 259 and small.ranks[256:] == [b'ab', b' ab']  # learned by hand
    with pytest.raises(ValueError, match='not 256'):
        train_bpe(['abc'], 256)


def test_dict_survives_json_and_torch(tokenizer):
    """to_dict -> JSON or a weights-only checkpoint -> from_dict gives the same ids"""
    torch = pytest.importorskip('torch')
    file = io.BytesIO()
    torch.save(tokenizer.to_dict(), file)
    file.seek(0)
    for plain in (json.loads(json.dumps(tokenizer.to_dict())), torch.load(file, weights_only=True)):
        again = Tokenizer.from_dict(plain)
        assert (again.kind, again.vocab_size, again.eot) == (tokenizer.kind, tokenizer.vocab_size, tokenizer.eot)
        assert [again.encode(text) for text in NASTY] == [tokenizer.encode(text) for text in NASTY]


def test_save_and_load(tokenizer, tmp_path):
    """save -> load, by file, by prepared folder and, where it needs none, by name"""
    tokenizer.save(tmp_path / 'tokenizer.json')
    meta = {'tokenizer': tokenizer.kind, 'vocab_size': tokenizer.vocab_size, 'dtype': tokenizer.dtype.name}
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    places = [tmp_path / 'tokenizer.json', tmp_path, str(tmp_path)] + [tokenizer.kind] * (tokenizer.kind != 'bpe')
    for where in places:
        assert Tokenizer.load(where).to_dict() == tokenizer.to_dict()
    (tmp_path / 'meta.json').write_text(json.dumps(meta | {'vocab_size': 77}))
    with pytest.raises(ValueError, match='meta.json: 77 ids as .* prepare the data again'):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize('damage, message', [
    (lambda d: d.clear(), 'kind'),
    (lambda d: d.update(kind='word'), "'word'"),
    (lambda d: d.pop('ranks'), 'ranks'),
    (lambda d: d.update(kind='gpt2'), 'ranks'),
    (lambda d: d.update(vocab_size=351), '351'),
    (lambda d: d['ranks'].pop(65), '1 of the 256 bytes'),
    (lambda d: d['ranks'].append(d['ranks'][300]), '1 duplicates'),
    (lambda d: d['ranks'].append(''), 'empty'),
    (lambda d: d['ranks'].append('\u0100'), 'latin-1'),
    (lambda d: d['ranks'].append(7), 'int'),
])
def test_damaged_dict_is_refused(bpe, damage, message):
    """a damaged dict ends in one ValueError that says what is wrong, never in tiktoken's panic"""
    plain = bpe.to_dict()
    damage(plain)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_dict(plain)


def test_damaged_file_is_named(tmp_path):
    """the error of a damaged tokenizer.json or meta.json names the file"""
    (tmp_path / 'tokenizer.json').write_text('{"kind": "bpe"')
    with pytest.raises(ValueError, match='tokenizer.json'):
        Tokenizer.load(tmp_path / 'tokenizer.json')
    (tmp_path / 'meta.json').write_text('[]')
    with pytest.raises(ValueError, match='meta.json'):
        Tokenizer.load(tmp_path)


def test_gpt2_without_network(tmp_path, monkeypatch):
    """no network and no cache: one ConnectionError with the way out; the sizes need neither"""
    tiktoken = pytest.importorskip('tiktoken')

    def refuse(*_, **__):
        raise OSError('no network in this test')
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, 'ENCODINGS', {})
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    tokenizer = Tokenizer('gpt2')
    assert Tokenizer.from_dict(tokenizer.to_dict()).vocab_size == 50257
    with pytest.raises(ConnectionError, match='TIKTOKEN_CACHE_DIR, or prepare the data with --tokenizer=bpe'):
        tokenizer.encode('x')
