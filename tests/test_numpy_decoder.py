"""Decoding in numpy against the naive GPT-2 of test_model.py, and against decoding in torch."""
import numpy as np
import pytest
import torch
from test_model import naive_logits, tiny_model
from threadpoolctl import threadpool_info, threadpool_limits

from losses import cross_entropy
from nanoloss import engine, numpy_decoder
from nanoloss.numpy_decoder import KVCache, decode_step


def last_logits(model, idx, prompt_length):
    """Logits (B, C) after idx, of which all but prompt_length tokens are decoded one by one."""
    cache = KVCache(model, len(idx))
    engine.prefill(model, idx[:, :prompt_length], cache)
    return [decode_step(model, ids, cache) for ids in idx[:, prompt_length:].T][-1]


@torch.no_grad()
@pytest.mark.parametrize('batch_size', [1, 3])
@pytest.mark.parametrize('changes', [{}, {'bias': False, 'n_embd': 16}, {'activation': 'gelu_tanh'}])
def test_decode_steps(batch_size, changes):
    """A prompt followed by one token at a time gives the naive logits of the whole sequence."""
    model = tiny_model(**changes)
    for name, p in model.named_parameters():
        if p.dim() == 1:  # layer norms and biases with values of their own
            p.normal_()
    idx = torch.randint(70, (batch_size, 14))
    for prompt_length in (1, 9, 13):
        logits = last_logits(model, idx, prompt_length)
        for row, ids in zip(logits, idx, strict=True):
            torch.testing.assert_close(row, naive_logits(model, ids)[-1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize('batch_size', [1, 6])
@pytest.mark.parametrize('bias', [True, False])
def test_wide_float32_model(batch_size, bias):
    """A wide float32 model has the naive logits. Only several rows are multiplied by packed weights."""
    model = tiny_model(n_embd=256, n_layer=1, vocab_size=1500, bias=bias)
    idx = torch.randint(1500, (batch_size, 8))
    exact = torch.stack([naive_logits(model, row)[-1] for row in idx])
    model.float()
    logits = last_logits(model, idx, 5)
    assert logits.dtype == torch.float32
    assert any(layer.c_fc.packed for layer in KVCache(model, batch_size).layers) == (batch_size > 1)
    assert (logits.double() - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize('batch_size', [1, 2])
def test_same_tokens_as_torch(batch_size, monkeypatch):
    """numpy and torch sample the same tokens, beyond a full window too."""
    model = tiny_model().float()
    idx = torch.randint(70, (batch_size, 4))
    stories = []
    for use_numpy in (True, False):
        if not use_numpy:
            monkeypatch.setattr(numpy_decoder, 'is_worthwhile', lambda *args: False)
        uniforms = np.random.default_rng(1).random((batch_size, 40), 'float32')
        sampler = engine.make_sampler(cross_entropy(70), uniforms, 0.8, top_k=30, top_p=0.9)
        stories.append(torch.stack(list(engine.generate(model, idx, 40, sampler)), 1))
    assert torch.equal(*stories) and len(stories[0].unique()) > 5


def test_generate_uses_numpy_where_it_can(monkeypatch):
    """A few float32 sequences on a CPU are decoded by numpy; many sequences and autocast are not."""
    model, calls = tiny_model().float(), []
    monkeypatch.setattr(numpy_decoder, 'decode_step', lambda model, ids, cache: calls.append(1) or torch.zeros(1, 70))

    def decoded_by_numpy(batch_size):
        calls.clear()
        list(engine.generate(model, torch.zeros(batch_size, 1, dtype=torch.long), 2, lambda logits: logits.argmax(-1)))
        return bool(calls)
    assert decoded_by_numpy(1) and not decoded_by_numpy(numpy_decoder.MAX_SEQUENCES + 1)
    with torch.autocast('cpu', torch.bfloat16):
        assert not decoded_by_numpy(1)
    monkeypatch.setattr(numpy_decoder, 'LARGE', 1)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    assert decoded_by_numpy(1) and not decoded_by_numpy(2)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 3)
    assert not decoded_by_numpy(1)


def test_one_blas_thread():
    """numpy's BLAS has one thread while stories are generated, and its own number afterwards."""
    def blas_threads():
        return [x['num_threads'] for x in threadpool_info() if x['user_api'] == 'blas']
    with threadpool_limits(2, 'blas'):
        before = blas_threads()
        ids = torch.zeros(1, 1, dtype=torch.long)
        for _ in engine.generate(tiny_model().float(), ids, 3, lambda logits: logits.argmax(-1)):
            assert blas_threads() == [1] * len(before)
        assert blas_threads() == before


@torch.no_grad()
def test_full_cache():
    """A token beyond block_size is refused."""
    model = tiny_model()
    cache = KVCache(model, 1)
    engine.prefill(model, torch.zeros(1, 16, dtype=torch.long), cache)
    with pytest.raises(ValueError, match='17.*block_size=16'):
        decode_step(model, torch.zeros(1, dtype=torch.long), cache)


@torch.no_grad()
def test_no_warnings(recwarn):
    """A model whose activations overflow gives logits that are not finite, and no warnings."""
    model = tiny_model().float()
    model.transformer.h[0].mlp.c_proj.weight.fill_(3e38)
    model.transformer.wte.weight.fill_(3e38)
    assert not last_logits(model, torch.zeros(1, 3, dtype=torch.long), 1).isfinite().all()
    assert not recwarn
