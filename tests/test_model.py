"""The model against a naive GPT-2 in float64, written out in this file."""
import math

import pytest
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig


def tiny_model(**changes):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**dict(block_size=16, vocab_size=70, n_layer=3, n_head=2, n_embd=8), **changes})).double()
    with torch.no_grad():  # initial logits are nearly equal: spread them
        for p in model.parameters():
            p.mul_(8)
    return model.eval()


def naive_logits(model, idx):
    """Logits (T, vocab_size) of one sequence (T,): GPT-2's equations without batches, fused attention or modules."""
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
            columns = slice(j * D, (j + 1) * D)
            rows = []
            for t in range(len(idx)):
                attention = F.softmax(k[:t + 1, columns] @ q[t, columns] / math.sqrt(D), 0)
                rows.append(attention @ v[:t + 1, columns])
            heads.append(torch.stack(rows))
        x = x + linear(torch.cat(heads, 1), f'{block}.attn.c_proj')
        x = x + linear(gelu(linear(norm(x, f'{block}.ln_2'), f'{block}.mlp.c_fc')), f'{block}.mlp.c_proj')
    return norm(x, 'transformer.ln_f') @ w['transformer.wte.weight'][:c.vocab_size].T


@pytest.mark.parametrize('changes', [{}, {'bias': False}, {'activation': 'gelu_tanh'}])
def test_logits_match_naive_gpt2(changes):
    """Logits equal those of the naive GPT-2."""
    model = tiny_model(**changes)
    idx = torch.randint(70, (2, 11))
    logits = model.logits(model(idx))
    for b in range(2):
        torch.testing.assert_close(logits[b], naive_logits(model, idx[b]), rtol=1e-9, atol=1e-10)


def test_attention_is_causal():
    """Changing a token changes no hidden state before it."""
    model = tiny_model()
    a = torch.randint(70, (1, 12))
    b = a.clone()
    b[0, 7] = (b[0, 7] + 1) % 70
    assert torch.equal(model(a)[:, :7], model(b)[:, :7])
    assert not torch.allclose(model(a)[:, 7:], model(b)[:, 7:])


def test_dropout_is_off_in_eval_mode():
    """With dropout, two passes differ in training mode and are equal in eval mode."""
    model = tiny_model(dropout=0.5)
    idx = torch.randint(70, (2, 11))
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


@pytest.mark.parametrize('temperature, top_k', [(1.0, None), (0.7, 5), (1.5, 500)])
def test_generate_samples_naive_probabilities(temperature, top_k):
    """With the same seed, generate() equals torch.multinomial from naive probabilities, beyond block_size too."""
    model = tiny_model()
    expected = torch.randint(70, (2, 6))
    torch.manual_seed(1)
    ids = model.generate(expected, 15, temperature, top_k)
    torch.manual_seed(1)
    for _ in range(15):
        logits = torch.stack([naive_logits(model, row[-16:])[-1] for row in expected])
        p = F.softmax(logits / temperature, dim=-1)
        if top_k is not None:
            smallest = p.sort(descending=True).values[:, :top_k][:, -1:]
            p = torch.where(p >= smallest, p, 0)
        expected = torch.cat([expected, torch.multinomial(p / p.sum(1, keepdim=True), 1)], dim=1)
    assert torch.equal(ids, expected)


def test_greedy_generation():
    """top_k=1 always takes the most likely token."""
    model = tiny_model()
    ids = model.generate(torch.randint(70, (1, 3)), 10, top_k=1)
    assert torch.equal(ids[0, 3:], naive_logits(model, ids[0])[2:-1].argmax(1))


def test_padding_has_no_logits():
    """The embedding is padded with zeros to a multiple of 64; the padding has no logits and is never generated."""
    model = tiny_model()
    idx = torch.zeros(4, 1, dtype=torch.long)
    assert model.lm_head.weight.shape == (128, 8) and model.lm_head.weight[70:].abs().sum() == 0
    assert model.logits(model(idx)).shape == (4, 1, 70)
    assert model.generate(idx, 50).max() < 70


def test_parameter_names_and_counts():
    """Parameter names are nanoGPT's, the output layer is tied to the embedding, and GPT-2 small has its known size."""
    names = set(tiny_model(n_layer=1).state_dict())
    layers = ('ln_1', 'attn.c_attn', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj')
    block = {f'transformer.h.0.{layer}.{p}' for layer in layers for p in ('weight', 'bias')}
    assert names == block | {'transformer.wte.weight', 'transformer.wpe.weight', 'transformer.ln_f.weight',
                             'transformer.ln_f.bias', 'lm_head.weight'}
    with torch.device('meta'):
        model = GPT(GPTConfig(vocab_size=50257))
    assert model.lm_head.weight is model.transformer.wte.weight
    # 124,439,808 parameters (Hugging Face's gpt2), minus 1024 x 768 position embeddings
    assert model.num_params() == 124_439_808 - 1024 * 768


def test_initialization():
    """Weights start with std 0.02, residual projections with 0.02 / sqrt(2 n_layer), biases at 0, layer norms at 1."""
    model = GPT(GPTConfig(block_size=64, vocab_size=512, n_layer=8, n_head=4, n_embd=128))
    for name, p in model.named_parameters():
        if name.endswith('bias'):
            assert (p == 0).all(), name
        elif 'ln_' in name:
            assert (p == 1).all(), name
        else:
            std = 0.02 / 4 if name.endswith('c_proj.weight') else 0.02
            assert abs(p.std() - std) < 0.03 * std and abs(p.mean()) < 0.03 * std, name


def test_sizes_that_do_not_fit():
    """A sequence longer than block_size and a width that n_head does not divide are refused with both numbers."""
    with pytest.raises(ValueError, match='17.*block_size=16'):
        tiny_model()(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match='n_embd=8.*n_head=3'):
        tiny_model(n_head=3)
