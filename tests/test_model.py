"""The model against a naive float64 GPT-2 written out in the test, and the cache against no cache."""
import math

import pytest
import torch
import torch.nn.functional as F

from model import Cache, GPT, GPTConfig


def tiny(**changes):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**dict(block_size=16, vocab_size=70, n_layer=3, n_head=2, n_embd=8), **changes})).double()
    with torch.no_grad():  # initial logits are nearly equal; spread them
        for p in model.parameters():
            p.mul_(8)
    return model.eval()


def naive_logits(model, idx):
    """GPT-2's equations for one sequence, without batches, fused attention or modules."""
    w, c = model.state_dict(), model.config
    zero = torch.zeros((), dtype=torch.float64)

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + 1e-5)
        return x * w[f'{name}.weight'] + w.get(f'{name}.bias', zero)

    def linear(x, name):
        return x @ w[f'{name}.weight'].T + w.get(f'{name}.bias', zero)

    def gelu(x):
        if c.activation == 'gelu':
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))

    x = w['transformer.wte.weight'][idx] + w['transformer.wpe.weight'][:len(idx)]
    D = c.n_embd // c.n_head
    for i in range(c.n_layer):
        block = f'transformer.h.{i}'
        q, k, v = linear(norm(x, f'{block}.ln_1'), f'{block}.attn.c_attn').split(c.n_embd, dim=1)
        heads = []
        for j in range(c.n_head):
            part = slice(j * D, (j + 1) * D)
            rows = []
            for t in range(len(idx)):
                attention = F.softmax(k[:t + 1, part] @ q[t, part] / math.sqrt(D), 0)
                rows.append(attention @ v[:t + 1, part])
            heads.append(torch.stack(rows))
        x = x + linear(torch.cat(heads, 1), f'{block}.attn.c_proj')
        x = x + linear(gelu(linear(norm(x, f'{block}.ln_2'), f'{block}.mlp.c_fc')), f'{block}.mlp.c_proj')
    return norm(x, 'transformer.ln_f') @ w['transformer.wte.weight'][:c.vocab_size].T


@pytest.mark.parametrize('changes', [{}, {'bias': False}, {'activation': 'gelu_tanh'}])
def test_logits_are_gpt2s(changes):
    """Logits equal GPT-2's equations written out naively in float64."""
    model = tiny(**changes)
    idx = torch.randint(70, (2, 11))
    ours = model.logits(model(idx))
    for b in range(2):
        torch.testing.assert_close(ours[b], naive_logits(model, idx[b]), rtol=1e-9, atol=1e-10)


def test_no_token_sees_the_future():
    """Changing a token changes no hidden state before it."""
    model = tiny()
    a = torch.randint(70, (1, 12))
    b = a.clone()
    b[0, 7] = (b[0, 7] + 1) % 70
    assert torch.equal(model(a)[:, :7], model(b)[:, :7])
    assert not torch.allclose(model(a)[:, 7:], model(b)[:, 7:])


def generate(model, idx, steps, use_cache):
    return torch.stack(list(model.generate(idx, steps, lambda f: f.argmax(-1), use_cache)), 1)


@pytest.mark.parametrize('prompt', [1, 5, 16, 40])
def test_cache_changes_no_token(prompt):
    """Greedy decoding with the cache equals that without it, also past a full window and for long prompts."""
    model = tiny()
    idx = torch.randint(70, (3, prompt))
    a, b = generate(model, idx, 60, True), generate(model, idx, 60, False)
    assert torch.equal(a, b)
    assert len(a.unique()) > 3  # not one token over and over


def test_full_window_keeps_its_newest_half():
    """When the window is full, the next token follows from the newest half of it alone."""
    model = tiny()
    idx = torch.randint(70, (1, 17))  # one more than fits
    assert torch.equal(generate(model, idx, 1, True), generate(model, idx[:, -8:], 1, True))


@torch.no_grad()
@pytest.mark.parametrize('changes', [{}, {'bias': False, 'n_embd': 16}, {'activation': 'gelu_tanh'}])
def test_steps_after_a_prompt(changes):
    """A prompt and then one token at a time gives the logits of the naive GPT-2 for the whole."""
    model = tiny(**changes)
    idx = torch.randint(70, (2, 14))
    cache = Cache(model, 2, torch.float64)
    ours = [model.logits(model(idx[:, :5], cache)[:, -1])] + [model.step(idx[:, i], cache) for i in range(5, 14)]
    for b in range(2):
        torch.testing.assert_close(torch.stack(ours)[:, b], naive_logits(model, idx[b])[4:], rtol=1e-9, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize('bias', [True, False])
def test_steps_of_a_larger_model(bias):
    """Steps in float32 with weights that are laid out for them (products.Weight) give the naive logits too."""
    model = tiny(n_embd=256, n_layer=1, vocab_size=1500, bias=bias)
    idx = torch.randint(1500, (3, 8))
    exact = torch.stack([naive_logits(model, row)[-1] for row in idx])
    model.float()
    cache = Cache(model, 3, torch.float32)
    model(idx[:, :5], cache)
    ours = [model.step(idx[:, i], cache) for i in range(5, 8)][-1]
    assert (ours.double() - exact).abs().max() < 1e-5 * exact.abs().max()


@torch.no_grad()
def test_steps_in_bfloat16():
    """Under autocast the steps' products are made in bfloat16, and the logits are the float64 ones to its precision."""
    model = tiny(n_embd=32)
    idx = torch.randint(70, (2, 14))
    exact = torch.stack([naive_logits(model, row)[-1] for row in idx])
    model.float()
    rows = []
    with torch.autocast('cpu', torch.bfloat16):
        for _ in model.generate(idx[:, :13], 2, lambda f: rows.append(f) or idx[:, 13]):
            pass
    assert rows[1].dtype == torch.float32
    error = (rows[1] - exact).norm() / exact.norm()
    assert 1e-4 < error < 5e-2  # not made in float32 by mistake, either


def test_too_many_steps():
    """One token more than the window holds is refused."""
    model = tiny()
    cache = Cache(model, 1, torch.float64)
    with torch.no_grad(), pytest.raises(ValueError, match='17 tokens do not fit block_size=16'):
        model(torch.zeros(1, 16, dtype=torch.long), cache)
        model.step(torch.zeros(1, dtype=torch.long), cache)


def test_padding_is_no_token():
    """The embedding is padded to a multiple of 64 with zeros, which are no logits and are never chosen."""
    model = tiny()
    assert model.lm_head.weight.shape == (128, 8) and model.lm_head.weight[70:].abs().sum() == 0
    assert model.logits(model(torch.zeros(1, 1, dtype=torch.long))).shape == (1, 1, 70)
    assert generate(model, torch.zeros(4, 1, dtype=torch.long), 50, True).max() < 70


def test_parameters_are_nanogpts():
    """Parameter names are nanoGPT's, the head is the embedding, and GPT-2 small has its known size."""
    names = set(tiny(n_layer=1).state_dict())
    layers = ('ln_1', 'attn.c_attn', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj')
    block = {f'transformer.h.0.{layer}.{p}' for layer in layers for p in ('weight', 'bias')}
    assert names == block | {'transformer.wte.weight', 'transformer.wpe.weight', 'transformer.ln_f.weight',
                             'transformer.ln_f.bias', 'lm_head.weight'}
    with torch.device('meta'):
        model = GPT(GPTConfig(vocab_size=50257))
    assert model.lm_head.weight is model.transformer.wte.weight
    # 124,439,808 parameters (Hugging Face's gpt2), less 1024 x 768 position embeddings
    assert model.num_params() == 124_439_808 - 1024 * 768


def test_initialisation():
    """Weights begin with standard deviation 0.02, residual projections 0.02 / sqrt(2 layers), biases at 0."""
    model = GPT(GPTConfig(block_size=64, vocab_size=512, n_layer=8, n_head=4, n_embd=128))
    for name, p in model.named_parameters():
        if 'ln_' in name:
            continue
        expected = 0 if name.endswith('bias') else 0.02 / 4 if name.endswith('c_proj.weight') else 0.02
        assert abs(p.std() - expected) < 0.03 * expected + 1e-9, name


def test_too_many_tokens():
    """A sequence longer than the window is refused with both numbers."""
    with pytest.raises(ValueError, match='17 tokens do not fit block_size=16'):
        tiny()(torch.zeros(1, 17, dtype=torch.long))
