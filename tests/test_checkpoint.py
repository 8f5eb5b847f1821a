"""Checkpoints: what goes in comes out, no code runs, nothing is half written or lost."""
import os
import pickle

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
