"""nanoloss/tokenizer.py against tiktoken, tokenizers and plain UTF-8."""
import functools
import io
import json
import random
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nanoloss import tokenizer as module
from nanoloss.tokenizer import Tokenizer, bytes_to_unicode, token_from_unicode, train_bpe

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / 'shared' / 'tinystories' / 'train.txt'
DETERMINISTIC = settings(deadline=None, derandomize=True, database=None,
                         suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.text(max_size=5)),
                    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner,
                                                                                         max_size=3)), max_leaves=5)
TEXTS = ["Once upon a time, there was a little girl named Lily. She loved to play.\n\n\"Hi!\" said Tom's dog.",
         'The big bear saw 12 apples; he ate 7 of them. Yum, yum, YUM!', 'Étienne fand ein Größenmaß 🎉 im Tal.'] * 40
NASTY = ['', ' ', '\n', '  two  spaces\t\ttabs \n \n', 'a\x00b\x00\x00', 'one\r\ntwo\rthree\n\r', '<|endoftext|>',
         'x<|endoftext|>y <|endoftext|><|endoftext', '🎉👩‍👩‍👧‍👦🇩🇪e\u0301',
         'â€œHelloâ€\x9d said Tomâ€™s dog', '\ufeffbom', '\ufffd',
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
    return [story.strip() for story in REAL.read_text(encoding='utf-8').split('<|endoftext|>')[:600]]


@pytest.fixture(params=['byte', 'bpe', 'gpt2'])
def tokenizer(request):
    return Tokenizer('byte') if request.param == 'byte' else request.getfixturevalue(request.param)


def test_round_trip_of_nasty_strings(tokenizer):
    """text -> ids -> text is exact, and no text encodes to end-of-text"""
    for text in NASTY:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(type(id) is int and 0 <= id < tokenizer.vocab_size - 1 for id in ids)


def test_round_trip_of_any_text(tokenizer):
    """text -> ids -> text is exact, lone surrogates become U+FFFD, and from_dict(to_dict()) gives the same ids"""
    copy = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))

    @settings(DETERMINISTIC, max_examples=100)
    @given(st.text())
    @example('\ud800\udc00\ud800')
    @example("it's <|endoftext|>\0 \n\n  x")
    def check(text):
        expected = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == expected and tokenizer.eot not in ids
        assert copy.encode(text) == ids
        assert tokenizer.encode_stories([text]).tolist() == [*ids, tokenizer.eot]
    check()


def test_sizes(tokenizer):
    """end-of-text is the last id, dtypes are little-endian and can hold every id"""
    assert (tokenizer.vocab_size, tokenizer.eot) == {'byte': (256, 255), 'bpe': (350, 349),
                                                     'gpt2': (50257, 50256)}[tokenizer.kind]
    assert tokenizer.dtype.str == {'byte': '|u1', 'bpe': '<u2', 'gpt2': '<u2'}[tokenizer.kind]


def test_encode_stories(tokenizer):
    """encode_stories gives the ids of each story with eot after them"""
    ids = tokenizer.encode_stories(iter(NASTY))
    assert ids.dtype == tokenizer.dtype
    assert ids.tolist() == [id for text in NASTY for id in [*tokenizer.encode(text), tokenizer.eot]]
    assert (ids == tokenizer.eot).sum() == len(NASTY)
    empty = tokenizer.encode_stories([])
    assert empty.shape == (0,) and empty.dtype == tokenizer.dtype


def test_token_bytes_join_to_the_text(tokenizer):
    """the bytes of the tokens, one by one, are the text's UTF-8; numpy ids work too"""
    for text in NASTY:
        ids = np.array(tokenizer.encode(text), tokenizer.dtype)
        assert b''.join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert tokenizer.decode(ids) == text


def test_decode_shows_end_of_text_and_invalid_bytes(tokenizer):
    """eot decodes to <|endoftext|>, half a character to U+FFFD, an invalid id raises ValueError"""
    half = next(id for id in range(256) if tokenizer.token_bytes(id) == b'\xc3')
    assert tokenizer.decode([*tokenizer.encode('a'), tokenizer.eot]) == 'a<|endoftext|>'
    assert tokenizer.decode([half, *tokenizer.encode('a')]) == '\ufffda'
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f'id {id} '):
            tokenizer.decode([id])


def test_lone_surrogates_become_replacement_characters(tokenizer):
    """a lone surrogate encodes as U+FFFD in every kind"""
    assert tokenizer.encode('a\ud800b') == tokenizer.encode('a\ufffdb')


def test_byte_is_utf8():
    """the ids of the byte kind are the bytes of UTF-8"""
    for text in NASTY:
        assert Tokenizer('byte').encode(text) == list(text.encode())


def test_gpt2_is_tiktoken(gpt2, real):
    """the ids of the gpt2 kind equal tiktoken's, with special tokens encoded as text"""
    import tiktoken
    reference = tiktoken.get_encoding('gpt2')
    for text in NASTY + real[:100]:
        assert gpt2.encode(text) == reference.encode(text, disallowed_special=())


def test_gpt2_known_ids(gpt2):
    """'Hello world' is 15496 995 in GPT-2, as in OpenAI's and Hugging Face's documentation"""
    assert gpt2.encode('Hello world') == [15496, 995]


def train_hf(texts, size):
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, pre_tokenizers, trainers
    reference = HFTokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size - 1, min_frequency=2, show_progress=False,
                                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return reference


def test_bpe_is_tokenizers(bpe):
    """the ids of the bpe equal those of the library that learned it, also for random text"""
    reference = train_hf(TEXTS, 350)

    @settings(DETERMINISTIC, max_examples=150)
    @given(st.one_of(st.text(st.characters(exclude_categories=['Cs'])), st.text("aeht l'.s\n1é")))
    def check(text):
        assert bpe.encode(text) == reference.encode(text).ids

    check()
    for text in NASTY + TEXTS[:3]:
        assert bpe.encode(text) == reference.encode(text).ids


def test_bpe_is_tokenizers_on_real_stories(real):
    """the same on TinyStories with 1,000 ids, held-out stories included"""
    bpe, reference = train_bpe(real[:300], 1000), train_hf(real[:300], 1000)
    assert bpe.vocab_size == 1000
    assert [bpe.encode(text) for text in real] == [reference.encode(text).ids for text in real]


@pytest.mark.parametrize('kind', ['gpt2', 'bpe'])
def test_long_runs_of_whitespace(kind, request, monkeypatch):
    """with the limit lowered, so that most texts are cut into pieces, the ids are those of the libraries"""
    tokenizer = request.getfixturevalue(kind)
    if kind == 'gpt2':
        import tiktoken
        encode = functools.partial(tiktoken.get_encoding('gpt2').encode, disallowed_special=())
    else:
        reference = train_hf(TEXTS, 350)

        def encode(text):
            return reference.encode(text).ids
    monkeypatch.setattr(module, 'LONG_RUN', 3)
    spaces = st.text(" \n\r\t\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2003\u200b\u2028\u3000\ufeff", min_size=2)
    words = st.sampled_from(['a', ' a', "'s", '1', '--', 'é', '中', '🎉', '\x1d', ''])

    @settings(DETERMINISTIC, max_examples=300)
    @given(st.lists(st.one_of(spaces, words)).map(''.join))
    @example('a   \x1c   b    ')
    def check(text):
        assert tokenizer.encode(text) == encode(text)
    check()


def test_whitespace_that_overflows_tiktoken(gpt2, bpe):
    """a million spaces or more between words, where tiktoken's regular expression overflows its stack"""
    n = 1_100_000
    assert gpt2.encode('a' + ' ' * n + 'b') == [64, *[220] * (n - 1), 275]  # GPT-2 has no id of several spaces
    text = ('x' + '\n \xa0' * (n // 3) + 'y') * 2 + ' ' * n
    assert bpe.decode(bpe.encode(text)) == text


@pytest.mark.parametrize('text', ['a' + '-' * 20_000 + 'b', 'ab' * 20_000], ids=['dashes', 'letters'])
def test_bpe_of_text_without_spaces(text):
    """A BPE is learned from pieces of limited length, since the time grows with the square of it."""
    bpe = train_bpe([text], 600)
    assert max(map(len, bpe.ranks)) <= 256
    assert bpe.vocab_size > 259 and bpe.decode(bpe.encode(text)) == text


def test_bpe_of_long_words():
    """words of up to 256 bytes are learned from whole: the ids are those of the library without a limit"""
    letters = random.Random(0)
    texts = [' '.join(''.join(letters.choices('ab', k=n)) for n in range(180, 256)) for _ in range(3)]
    bpe, reference = train_bpe(texts, 400), train_hf(texts, 400)
    assert bpe.ranks == [token_from_unicode(reference.id_to_token(i)) for i in range(reference.get_vocab_size())]


def test_bytes_to_unicode():
    """the characters are those of tokenizers' byte-level alphabet, and token_from_unicode is the inverse"""
    from tokenizers import pre_tokenizers
    mapping = bytes_to_unicode()
    assert sorted(mapping) == list(range(256))
    assert sorted(mapping.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert token_from_unicode(''.join(mapping[b] for b in range(256))) == bytes(range(256))
    with pytest.raises(KeyError):
        token_from_unicode(' ')


def test_bpe_compresses_and_is_deterministic():
    """the same texts give the same ranks, and the merges shorten these texts"""
    first, second = train_bpe(TEXTS, 350), train_bpe(iter(TEXTS), 350)
    assert first.ranks == second.ranks
    assert len(first.encode(TEXTS[0])) < 0.5 * len(TEXTS[0])


def test_bpe_of_small_corpus():
    """a small corpus gives fewer ids than asked for, down to the bytes and end-of-text"""
    assert train_bpe(['abc'], 4096).vocab_size == 257
    small = train_bpe(['ab ab ab'], 4096)
    assert small.vocab_size == 259 and small.ranks[256:] == [b'ab', b' ab']  # learned by hand
    with pytest.raises(ValueError, match='256'):
        train_bpe(['abc'], 256)


def test_dict_survives_json_and_torch(tokenizer):
    """to_dict -> JSON or a weights-only checkpoint -> from_dict gives the same ids"""
    torch = pytest.importorskip('torch')
    file = io.BytesIO()
    torch.save(tokenizer.to_dict(), file)
    file.seek(0)
    for state in (json.loads(json.dumps(tokenizer.to_dict())), torch.load(file, weights_only=True)):
        copy = Tokenizer.from_dict(state)
        assert (copy.kind, copy.vocab_size, copy.eot) == (tokenizer.kind, tokenizer.vocab_size, tokenizer.eot)
        assert [copy.encode(text) for text in NASTY] == [tokenizer.encode(text) for text in NASTY]


def test_save_and_load(tokenizer, tmp_path):
    """a saved tokenizer is loaded by file and by dataset folder"""
    tokenizer.save(tmp_path / 'tokenizer.json')
    meta = {'tokenizer': tokenizer.kind, 'vocab_size': tokenizer.vocab_size, 'dtype': tokenizer.dtype.name}
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    for path in tmp_path / 'tokenizer.json', tmp_path, str(tmp_path):
        assert Tokenizer.load(path).to_dict() == tokenizer.to_dict()
    (tmp_path / 'meta.json').write_text(json.dumps(meta | {'vocab_size': 77}))
    with pytest.raises(ValueError, match='meta.json.* 77 '):
        Tokenizer.load(tmp_path)


def test_for_dataset(tmp_path):
    """data without meta.json has GPT-2's tokens, data without a tokenizer has ids, other data is loaded"""
    assert Tokenizer.for_dataset(tmp_path, None).to_dict() == Tokenizer('gpt2').to_dict()
    ids = Tokenizer.for_dataset(tmp_path, {'tokenizer': 'ids', 'vocab_size': 300})
    assert (ids.kind, ids.vocab_size, ids.eot) == ('ids', 300, None)
    assert ids.encode('0 17 299') == [0, 17, 299] and ids.decode([0, 17, 299]) == '0 17 299 '
    for text in ('300', 'word', '-1'):
        with pytest.raises(ValueError, match='300'):
            ids.encode(text)
    meta = {'tokenizer': 'byte', 'vocab_size': 256, 'dtype': 'uint8'}
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    assert Tokenizer.for_dataset(tmp_path, meta).kind == 'byte'


@pytest.mark.parametrize('damage, message', [
    (lambda state: state.clear(), 'kind'),
    (lambda state: state.update(kind='word'), "'word'"),
    (lambda state: state.pop('ranks'), 'ranks'),
    (lambda state: state.update(kind='gpt2'), 'ranks'),
    (lambda state: state.update(vocab_size=351), '351'),
    (lambda state: state['ranks'].pop(65), None),
    (lambda state: state['ranks'].append(state['ranks'][300]), None),
    (lambda state: state['ranks'].append(''), None),
    (lambda state: state['ranks'].append('\u0100'), 'latin-1'),
    (lambda state: state['ranks'].append(7), 'int'),
])
def test_damaged_dict(bpe, damage, message):
    """a damaged dict raises one ValueError that says what is wrong, instead of a panic in tiktoken"""
    state = bpe.to_dict()
    damage(state)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_dict(state)


def test_randomly_damaged_dict(bpe):
    """a dict with random values in place of some parts is an equal tokenizer, or raises one ValueError of one line"""
    valid = bpe.to_dict()
    values = st.one_of(JSON, st.sampled_from([*valid.values(), 'byte', 256, 'gpt2', 50257]))

    @settings(DETERMINISTIC, max_examples=150)
    @given(st.dictionaries(st.sampled_from(['kind', 'vocab_size', 'ranks', 'x']), values),
           st.sets(st.sampled_from([*valid])), st.data())
    def check(changes, removed, data):
        state = {key: value for key, value in (valid | changes).items() if key not in removed}
        if state.get('ranks') == valid['ranks'] and data.draw(st.booleans()):
            i = data.draw(st.integers(0, len(valid['ranks']) - 1))
            state['ranks'] = [*valid['ranks'][:i], data.draw(JSON), *valid['ranks'][i + 1:]]
        try:
            tokenizer = Tokenizer.from_dict(state)
        except ValueError as e:
            assert '\n' not in str(e)
        else:
            assert tokenizer.to_dict() == {key: state[key] for key in tokenizer.to_dict()}
    check()


def test_damaged_file_is_named(tmp_path):
    """the error for a damaged tokenizer.json or meta.json names the file"""
    (tmp_path / 'tokenizer.json').write_text('{"kind": "bpe"')
    with pytest.raises(ValueError, match='tokenizer.json'):
        Tokenizer.load(tmp_path / 'tokenizer.json')
    (tmp_path / 'meta.json').write_text('[]')
    with pytest.raises(ValueError, match='meta.json'):
        Tokenizer.load(tmp_path)


def test_gpt2_without_network(tmp_path, monkeypatch):
    """without network and cache, encoding raises one ConnectionError with the options; the sizes need neither"""
    tiktoken = pytest.importorskip('tiktoken')

    def refuse(*_, **__):
        raise OSError('no network in this test')
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, 'ENCODINGS', {})
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    tokenizer = Tokenizer('gpt2')
    assert Tokenizer.from_dict(tokenizer.to_dict()).vocab_size == 50257
    with pytest.raises(ConnectionError, match='TIKTOKEN_CACHE_DIR.*--tokenizer=bpe'):
        tokenizer.encode('x')
