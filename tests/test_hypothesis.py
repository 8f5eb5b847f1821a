"""Random input, good and damaged: it means what it says, or is refused in one line. The same examples every time."""
import io
import json
import math
from contextlib import redirect_stderr

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import bins
import checkpoint
import losses
from configurator import configure
from model import GPT, GPTConfig
from tokenizer import Tokenizer, train_bpe

FEW = settings(max_examples=100, deadline=None, derandomize=True, database=None,
               suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SCRIPT = """
whole = 4       # a comment
part = 0.5
flag = False
name = 'x'
configure(globals(), rules=['whole < 10**6'])
"""

# -----------------------------------------------------------------------------
# configurator


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs the script's configure with these arguments, in its folder: (settings, None) or (None, lines on stderr)."""
    (tmp_path / 'script.py').write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)

    def start(*argv):
        space = {'__file__': str(tmp_path / 'script.py'), 'whole': 4, 'part': 0.5, 'flag': False, 'name': 'x'}
        err = io.StringIO()
        try:
            with redirect_stderr(err):
                return configure(space, ['whole < 10**6'], list(argv)), None
        except SystemExit as e:
            assert e.code == 2
            lines = err.getvalue().splitlines()
            assert lines and all(line.startswith('error: ') and line.isprintable() for line in lines)
            return None, lines
    return start


def no_nul(text):
    return '\0' not in text


TEXT = st.text(st.characters(exclude_categories=['Cs'])).filter(no_nul)
VALUES = {'whole': st.integers(-2**53 + 1, 10**6 - 1), 'flag': st.booleans(), 'name': TEXT,
          'part': st.floats(allow_nan=False, allow_infinity=False)}


@pytest.mark.parametrize('name', VALUES)
def test_values_of_the_right_type_arrive(script, tmp_path, name):
    """A value of the setting's type comes back exactly, as a flag in one word or two, and from a config file."""
    @FEW
    @given(VALUES[name])
    def check(value):
        text = value if name == 'name' else repr(value)
        (tmp_path / 'config.py').write_text(f'{name} = {value!r}\n', encoding='utf-8')
        ways = [[f'--{name}={text}'], ['config.py']]
        ways += [[f'--{name}', text]] * (not text.startswith('--'))
        for argv in ways:
            values, err = script(*argv)
            assert err is None
            assert type(values[name]) is type(value) and repr(values[name]) == repr(value)  # -0.0 is not 0.0
    check()


@pytest.mark.parametrize('name', ['whole', 'part', 'flag'])
def test_values_of_wrong_types_are_refused(script, tmp_path, name):
    """A flag that stands for no value of the type, and a config's value of another type: one line with the name."""
    kind = {'whole': int, 'part': float, 'flag': bool}[name]

    def good(text):
        try:
            return text in ('True', 'true', 'False', 'false') if kind is bool else math.isfinite(kind(text))
        except (ValueError, OverflowError):
            return False

    @FEW
    @given(st.text().filter(lambda text: not good(text)), st.sampled_from(
        ['None', "'1'", '[1]', 'b"1"', 'float("nan")', 'float("inf")', '1j', '10**5000', 'int', 'type("X", (), {})']))
    @example('9' * 5000, '10**400')
    @example('1e999', '-10**400')
    @example('', '()')
    def check(text, value):
        for argv in ([f'--{name}={text}'], ['config.py']):
            (tmp_path / 'config.py').write_text(f'{name} = {value}\n')
            _, err = script(*argv)
            assert err and f'{name} takes' in err[0]
    check()


def test_random_arguments(script):
    """Whatever the arguments: they apply, or status 2 and lines `error: ...`; never a traceback."""
    word = st.one_of(st.text(), TEXT.map('--'.__add__), TEXT.map('{}.py'.format), st.sampled_from(['--flag', '--part']),
                     st.builds('--{}={}'.format, st.sampled_from([*VALUES, 'nmae', '']), st.text()))

    @settings(FEW, max_examples=400)
    @given(st.lists(word.filter(lambda text: text not in ('-h', '--help')), max_size=4))
    @example(['--whole=' + '9' * 5000])
    @example(['\0.py'])
    @example(['--name=\ud800'])
    @example(['--name=\0'])
    def check(argv):
        values, err = script(*argv)
        assert err or {key: type(value) for key, value in values.items()} == {
            'whole': int, 'part': float, 'flag': bool, 'name': str}
    check()


def test_random_config_files(script, tmp_path):
    """Whatever a config file holds that cannot do harm: it applies, or status 2 and lines `error: ...`."""
    words = "whole part flag name wohle = = \n 1 - 2.5 True 'a' [ ] * 9 if : None / 0 ( ) for in # %".split(' ')

    @settings(FEW, max_examples=300)
    @given(st.lists(st.sampled_from(words), max_size=12).map(' '.join).map(str.encode) | st.binary(max_size=20))
    @example(b'whole = 10**5000')
    @example(b'name = "\\ud800"')
    def check(source):
        (tmp_path / 'config.py').write_bytes(source)
        script('config.py')
    check()


# -----------------------------------------------------------------------------
# tokenizers

BPE = train_bpe(['the cat sat on the mat, the end. éé 🎉🎉'] * 30, 300)
JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.text(max_size=5)),
                    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner,
                                                                                        max_size=3)), max_leaves=5)


@pytest.fixture(params=['byte', 'bpe', 'gpt2'])
def tokenizer(request):
    made = BPE if request.param == 'bpe' else Tokenizer(request.param)
    try:
        made.encode('')
    except ConnectionError as e:
        pytest.skip(str(e))
    return made


def test_any_text_comes_back(tokenizer):
    """text -> ids -> text is exact, lone surrogates are U+FFFD; from_dict(to_dict) gives the same ids."""
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))

    @settings(FEW, max_examples=200)
    @given(st.text())
    @example('\ud800\udc00\ud800')
    @example("it's <|endoftext|>\0 \n\n  x")
    def check(text):
        whole = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == whole and tokenizer.eot not in ids
        assert again.encode(text) == ids
        assert tokenizer.encode_stories([text]).tolist() == [*ids, tokenizer.eot]
    check()


def test_damaged_tokenizer_dicts():
    """A tokenizer's dict with anything in place of its parts is an equal tokenizer, or one ValueError."""
    good = BPE.to_dict()

    @settings(FEW, max_examples=300)
    @given(st.dictionaries(st.sampled_from(['kind', 'vocab_size', 'ranks', 'x']), st.one_of(JSON, st.sampled_from(
        [*good.values(), 'byte', 256, 'gpt2', 50257]))), st.sets(st.sampled_from([*good])), st.data())
    def check(change, gone, data):
        plain = {key: value for key, value in (good | change).items() if key not in gone}
        if plain.get('ranks') == good['ranks'] and data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(good['ranks']) - 1))
            plain['ranks'] = [*good['ranks'][:place], data.draw(JSON), *good['ranks'][place + 1:]]
        try:
            made = Tokenizer.from_dict(plain)
        except ValueError as e:
            assert '\n' not in str(e)
        else:
            assert made.to_dict() == {key: plain[key] for key in made.to_dict()}
    check()


# -----------------------------------------------------------------------------
# files

def mutated(data, plain):
    """A copy of a JSON value in which one place holds another value, or is gone."""
    plain = json.loads(json.dumps(plain))
    here = plain
    while isinstance(here, (dict, list)) and here:
        key = data.draw(st.sampled_from([*here] if isinstance(here, dict) else [*range(min(len(here), 300))]))
        if not isinstance(here[key], (dict, list)) or not here[key] or data.draw(st.integers(0, 3)) == 0:
            if data.draw(st.booleans()):
                del here[key]
            else:
                here[key] = data.draw(JSON)
            break
        here = here[key]
    return plain


def flipped(data, content, most=3):
    """The bytes with some of them changed, or cut short."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, most))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    return bytes(content[:data.draw(st.integers(0, len(content)))] if data.draw(st.integers(0, 4)) == 0 else content)


@pytest.mark.parametrize('made', [Tokenizer('byte'), BPE], ids=['byte', 'bpe'])
def test_damaged_data(tmp_path, made):
    """A data folder with a damaged meta.json, tokenizer.json or bin gives tokens of its vocabulary, or one OSError or
    ValueError of one line."""
    tokens = made.encode_stories(['the cat sat', 'on the mat'] * 9)
    splits = {name: {'tokens': len(tokens), 'bytes': 180, 'stories': 18} for name in ('train', 'val')}
    files = {'meta.json': {'source': 'a test', 'synthetic': False, 'tokenizer': made.kind, 'dtype': made.dtype.name,
                           'vocab_size': made.vocab_size, 'eot': made.eot, 'splits': splits}}
    files |= {'tokenizer.json': made.to_dict()} if made.kind == 'bpe' else {}
    whole = {name: json.dumps(plain).encode() for name, plain in files.items()} | {
        'train.bin': tokens.tobytes(), 'val.bin': tokens.tobytes()}

    @settings(FEW, max_examples=250)
    @given(st.data())
    def check(data):
        for name, content in whole.items():
            (tmp_path / name).write_bytes(content)
        name = data.draw(st.sampled_from([*whole]))
        if name in files and data.draw(st.booleans()):
            (tmp_path / name).write_text(json.dumps(mutated(data, files[name])))
        else:
            (tmp_path / name).write_bytes(flipped(data, whole[name]))
        try:
            meta = bins.read_meta(tmp_path)
            read = {split: bins.open_bin(tmp_path, split, meta, 8) for split in ('train', 'val')}
            tokenizer = Tokenizer.load(tmp_path)
        except (OSError, ValueError) as e:
            assert len(str(e).splitlines()) == 1
        else:
            assert tokenizer.vocab_size == meta['vocab_size'] and tokenizer.dtype == read['train'].dtype
            for split, found in read.items():
                assert len(found) == meta['splits'][split]['tokens'] > 8 and found.max() < tokenizer.vocab_size
            tokenizer.decode(found)
    check()


def small_checkpoint():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=4, vocab_size=256, n_layer=1, n_head=1, n_embd=4, bias=False))
    more = {'iter_num': 3, 'best_val_loss': 2.5, 'config': {'dataset': 'x'}, 'data': {'source': 'a test'}}
    return checkpoint.describe(model, Tokenizer('byte'), 'mse', losses.mse(256)) | more


def read_checkpoint(path):
    """A model whose parts fit, or None where load or restore refuse the file in one line."""
    try:
        model, tokenizer, loss = checkpoint.restore(checkpoint.load(path))
    except (OSError, ValueError) as e:
        assert len(str(e).splitlines()) == 1 and str(path) in str(e)
        return None
    assert tokenizer.vocab_size == model.config.vocab_size and isinstance(loss, losses.Family)
    assert all(p.isfinite().all() for p in model.parameters())
    assert model(torch.zeros(1, model.config.block_size, dtype=torch.int64)).isfinite().all()
    return model


@pytest.mark.filterwarnings('ignore')
def test_checkpoint_of_flipped_bytes(tmp_path):
    """A checkpoint with bytes flipped, anywhere or in its pickle, or cut short: a model that runs, or one line."""
    torch.save(small_checkpoint(), tmp_path / 'whole.pt')
    whole = (tmp_path / 'whole.pt').read_bytes()
    begin = whole.index(b'data.pkl')
    end = whole.index(b'PK\x03\x04', begin)
    assert read_checkpoint(tmp_path / 'whole.pt')

    @settings(FEW, max_examples=400)
    @given(st.data())
    def check(data):
        damaged = whole[:begin] + flipped(data, whole[begin:end]) + whole[end:] if data.draw(st.booleans()) else \
            flipped(data, whole)
        (tmp_path / 'a.pt').write_bytes(damaged)
        read_checkpoint(tmp_path / 'a.pt')
    check()


@pytest.mark.filterwarnings('ignore')
def test_checkpoint_of_other_parts(tmp_path):
    """A checkpoint with anything in place of one of its parts: a model that runs, or one line."""
    whole = small_checkpoint()

    @settings(FEW, max_examples=200)
    @given(st.sampled_from([*whole]), st.data())
    def check(part, data):
        value = whole[part]
        if isinstance(value, dict) and data.draw(st.integers(0, 4)):
            key = data.draw(st.sampled_from([*value, 'x']))
            value = {**value, key: data.draw(st.one_of(JSON, st.sampled_from(
                [torch.zeros(4), torch.zeros(4, 4), torch.zeros(1).expand(10**5, 10**5), 2**31, -1, 0, 64])))}
        else:
            value = data.draw(JSON)
        torch.save(whole | {part: value}, tmp_path / 'a.pt')
        read_checkpoint(tmp_path / 'a.pt')
    check()
