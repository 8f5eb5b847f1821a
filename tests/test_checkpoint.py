"""Checkpoints: what goes in comes out, no code runs, nothing is half written or lost."""
import os
import pickle
import zipfile

import pytest
import torch

import checkpoint
import losses
from model import GPT, GPTConfig
from tokenizer import Tokenizer


def small(**changes):
    return GPT(GPTConfig(**{**dict(block_size=8, vocab_size=256, n_layer=1, n_head=2, n_embd=8), **changes}))


def saved(path, model, name='squentropy', numbers=True):
    tokenizer = Tokenizer('byte')
    loss = losses.make_loss(name, 256)
    more = {'iter_num': 3, 'best_val_loss': 2.5, 'config': {}, 'data': {}}
    checkpoint.save(checkpoint.describe(model, tokenizer, name, loss) | more, path)
    return path


def test_round_trip(tmp_path):
    """A restored model has the weights, the tokenizer and the six numbers that were saved."""
    model = small(activation='gelu_tanh', bias=False)
    restored, tokenizer, loss = checkpoint.restore(checkpoint.load(saved(tmp_path / 'ckpt.pt', model)))
    for a, b in zip(model.state_dict().values(), restored.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert restored.config == model.config and tokenizer.kind == 'byte' and loss == losses.squentropy(256)
    assert os.listdir(tmp_path) == ['ckpt.pt']


def test_padding_is_not_saved(tmp_path):
    """The file holds vocab_size rows, model_args only what nanoGPT's constructor takes; padding comes back as zeros."""
    model = small(vocab_size=70)
    plain = checkpoint.describe(model, Tokenizer('byte'), 'mse', losses.mse(70))
    assert set(plain['model_args']) == {'block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd', 'dropout', 'bias'}
    assert plain['model']['transformer.wte.weight'].shape == plain['model']['lm_head.weight'].shape == (70, 8)
    other = checkpoint.build(model.config, plain['model'])
    assert torch.equal(other.lm_head.weight, model.lm_head.weight) and other.lm_head.weight.shape == (128, 8)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ('bomb',)


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', pickle.dumps({"model": 1}, 2), pickle.dumps(Bomb(), 2)])
def test_damaged_files(tmp_path, monkeypatch, content):
    """A file that is no checkpoint is one ValueError with its name, and runs no code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.pt').write_bytes(content)
    with pytest.raises(ValueError, match='x.pt is no checkpoint') as e:
        checkpoint.load('x.pt')
    assert '\n' not in str(e.value) and not os.path.exists('bomb')


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    """A torch.save file that would run code when unpickled is refused."""
    monkeypatch.chdir(tmp_path)
    torch.save({'model': {}, 'model_args': {}, 'tokenizer': {}, 'loss': Bomb()}, 'x.pt')
    with pytest.raises(ValueError, match='no checkpoint'):
        checkpoint.load('x.pt')
    assert not os.path.exists('bomb')


def test_truncated_or_foreign(tmp_path):
    """A truncated checkpoint, one without our keys, and one whose shapes do not fit are refused."""
    path = saved(tmp_path / 'a.pt', small())
    whole = path.read_bytes()
    (tmp_path / 'b.pt').write_bytes(whole[:len(whole) // 2])
    torch.save({'state_dict': {}}, tmp_path / 'c.pt')
    for name in 'bc':
        with pytest.raises(ValueError, match=f'{name}.pt is no checkpoint'):
            checkpoint.load(tmp_path / f'{name}.pt')


@pytest.mark.parametrize('key,value', [
    ('model_args', {'n_embd': 16}), ('model_args', {'n_head': 3}), ('model_args', {'n_head': 0}), ('model_args', {'x': 1}),
    ('model_args', {'n_layer': 2}), ('model_args', {'vocab_size': 300}), ('loss', {'name': 'nosuch', 'numbers': None}),
    ('loss', {'numbers': [1.0] * 7}), ('loss', {'numbers': ['a'] * 6}), ('tokenizer', {'kind': 'gpt2'}),
    ('tokenizer', {'kind': 'words'}), ('model', {'transformer.wte.weight': torch.zeros(3, 8)}),
    ('model', {'lm_head.weight': 5, 'transformer.wte.weight': 5}),
])
def test_parts_that_do_not_fit(tmp_path, key, value):
    """A checkpoint whose parts contradict each other is one ValueError."""
    loaded = checkpoint.load(saved(tmp_path / 'a.pt', small()))
    loaded[key] = {**loaded[key], **value}
    with pytest.raises(ValueError, match='do not fit each other') as e:
        checkpoint.restore(loaded)
    assert '\n' not in str(e.value)


def test_missing_keys_are_named(tmp_path):
    """A checkpoint that lacks keys, or has them of another type, is refused with their names."""
    loaded = checkpoint.load(saved(tmp_path / 'a.pt', small()))
    del loaded['tokenizer'], loaded['iter_num']
    torch.save(loaded | {'loss': 3}, tmp_path / 'b.pt')
    with pytest.raises(ValueError, match='without a good tokenizer, loss, iter_num'):
        checkpoint.load(tmp_path / 'b.pt')
    torch.save([1], tmp_path / 'b.pt')
    with pytest.raises(ValueError, match='holds a list'):
        checkpoint.load(tmp_path / 'b.pt')


def test_failed_save_leaves_the_old_one(tmp_path):
    """When saving fails half-way, the old checkpoint stays and nothing else is left."""
    path = saved(tmp_path / 'ckpt.pt', small())
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        checkpoint.save({'model': torch.zeros(10), 'bad': lambda: 0}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['ckpt.pt']


def with_pickle(path, pickled):
    """The checkpoint's archive with other bytes in place of its data.pkl."""
    with zipfile.ZipFile(path) as z:
        parts = {entry.filename: z.read(entry) for entry in z.infolist()}
    with zipfile.ZipFile(path, 'w') as z:
        for name, data in parts.items():
            z.writestr(name, pickled if name.endswith('data.pkl') else data)


@pytest.mark.parametrize('pickled', [
    b'\x80\x02}X\x01\0\0\0acbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85Rs.',  # bytearray(2**33)
    b'\x80\x02}(' + b')q\x00' + b''.join(b'h%ch%c\x86q%c' % (i, i, i + 1) for i in range(60)) + b'K\x01u.',
    b'\x80\x02}' + b'K\x01' + b'2\x86' * 60 + b'K\x01s.',
], ids=['memory', 'time by memo', 'time by dup'])
def test_pickles_that_would_take_for_ever(tmp_path, pickled):
    """A pickle that makes gigabytes, or a key that takes 2^60 steps to hash, is refused before it is read."""
    with_pickle(saved(tmp_path / 'x.pt', small()), pickled)
    with pytest.raises(ValueError, match='x.pt is no checkpoint'):
        checkpoint.load(tmp_path / 'x.pt')


def test_other_formats_are_refused(tmp_path):
    """A file of the old format with an archive at its end, which zipfile finds, is refused."""
    old = tmp_path / 'old.pt'
    torch.save({'model': {}}, old, _use_new_zipfile_serialization=False)
    old.write_bytes(old.read_bytes() + saved(tmp_path / 'x.pt', small()).read_bytes())
    with pytest.raises(ValueError, match='not an archive'):
        checkpoint.load(old)


def test_weights_that_share_memory(tmp_path):
    """Many weights in one storage, which would take many times the file's length, are refused."""
    loaded = checkpoint.load(saved(tmp_path / 'a.pt', small()))
    storage = torch.zeros(512)
    loaded['model'] = {name: w if w.numel() > 512 or name == 'lm_head.weight' else storage[:w.numel()].view(w.shape)
                       for name, w in loaded['model'].items()}
    with pytest.raises(ValueError, match='share memory'):
        checkpoint.restore(loaded)
