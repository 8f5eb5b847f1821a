"""Generation: the cache against the naive GPT-2 of test_model.py, and samples against the expected distribution."""
import numpy as np
import pytest
import torch
from test_model import naive_logits, tiny_model

from losses import cross_entropy, make_loss, mse
from model import GPT, GPTConfig
from nanoloss import engine
from nanoloss.engine import (KVCache, decode_step, generate_stories, generate_text, largest_ids, make_sampler,
                             prefill)
from nanoloss.link import link
from nanoloss.tokenizer import Tokenizer


def greedy(model, idx, steps, use_cache=True):
    return torch.stack(list(engine.generate(model, idx, steps, lambda logits: logits.argmax(-1), use_cache)), 1)


@pytest.mark.parametrize('prompt_length', [1, 5, 16, 40])
def test_cache_does_not_change_tokens(prompt_length):
    """Greedy decoding gives the same ids with and without the cache, for long prompts and full windows too."""
    model = tiny_model()
    idx = torch.randint(70, (3, prompt_length))
    cached, uncached = greedy(model, idx, 60), greedy(model, idx, 60, use_cache=False)
    assert torch.equal(cached, uncached)
    assert len(cached.unique()) > 3  # not always the same token


def test_same_tokens_as_model_generate():
    """While the window is not full, greedy decoding gives the ids of model.generate()."""
    model, idx = tiny_model(), torch.randint(70, (3, 4))
    assert torch.equal(torch.cat([idx, greedy(model, idx, 12)], 1), model.generate(idx, 12, top_k=1))


def test_full_window_keeps_its_newest_half():
    """When the window is full, the next token depends on its newest half only."""
    model = tiny_model()
    idx = torch.randint(70, (1, 17))  # one more than block_size
    assert torch.equal(greedy(model, idx, 1), greedy(model, idx[:, -8:], 1))


@torch.no_grad()
@pytest.mark.parametrize('changes', [{}, {'bias': False, 'n_embd': 16}, {'activation': 'gelu_tanh'}])
def test_prefill_and_decode_steps(changes):
    """A prompt followed by one token at a time gives the naive logits of the whole sequence; prefill starts again."""
    model = tiny_model(**changes)
    idx = torch.randint(70, (2, 14))
    cache = KVCache(model, 2, torch.float64)
    for prompt_length in (9, 5):
        logits = [model.logits(prefill(model, idx[:, :prompt_length], cache)[:, -1])]
        logits += [decode_step(model, idx[:, i], cache) for i in range(prompt_length, 14)]
        for b in range(2):
            torch.testing.assert_close(torch.stack(logits)[:, b], naive_logits(model, idx[b])[prompt_length - 1:],
                                       rtol=1e-9, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize('bias', [True, False])
def test_decode_steps_with_packed_weights(bias):
    """Steps of a wider float32 model, whose weights are packed for oneDNN, give the naive logits."""
    model = tiny_model(n_embd=256, n_layer=1, vocab_size=1500, bias=bias)
    idx = torch.randint(1500, (3, 8))
    exact = torch.stack([naive_logits(model, row)[-1] for row in idx])
    model.float()
    cache = KVCache(model, 3, torch.float32)
    prefill(model, idx[:, :5], cache)
    logits = [decode_step(model, idx[:, i], cache) for i in range(5, 8)][-1]
    assert (logits.double() - exact).abs().max() < 1e-5 * exact.abs().max()


@torch.no_grad()
def test_decode_steps_in_bfloat16():
    """Under autocast the products of a step are in bfloat16; the logits are float32 and close to the naive ones."""
    model = tiny_model(n_embd=32)
    idx = torch.randint(70, (2, 14))
    exact = torch.stack([naive_logits(model, row)[-1] for row in idx])
    model.float()
    logits = []

    def choose(step_logits):
        logits.append(step_logits)
        return idx[:, 13]
    with torch.autocast('cpu', torch.bfloat16):
        for _ in engine.generate(model, idx[:, :13], 2, choose):
            pass
    assert logits[1].dtype == torch.float32
    error = (logits[1] - exact).norm() / exact.norm()
    assert 1e-4 < error < 5e-2  # a smaller error would mean float32 products


@torch.no_grad()
def test_full_cache():
    """A token beyond block_size is refused."""
    model = tiny_model()
    cache = KVCache(model, 1, torch.float64)
    prefill(model, torch.zeros(1, 16, dtype=torch.long), cache)
    with pytest.raises(ValueError, match='17.*block_size=16'):
        decode_step(model, torch.zeros(1, dtype=torch.long), cache)


def test_prefill_removes_its_hooks():
    """No forward hook is left on the model, after an error either."""
    model = tiny_model()
    cache = KVCache(model, 1, torch.float64)
    prefill(model, torch.zeros(1, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match='block_size'):
        prefill(model, torch.zeros(1, 17, dtype=torch.long), cache)
    assert not any(module._forward_hooks for module in model.modules())


def frequencies(loss, logits, draws=20_000, **sampling):
    """Frequency of each id (C,) when sampling from one row of logits with evenly spaced uniforms."""
    uniforms = np.linspace(0, 1, draws, endpoint=False, dtype='float32')[:, None]
    ids = make_sampler(loss, uniforms, **sampling)(logits.expand(draws, -1))
    return torch.bincount(ids, minlength=len(logits)) / draws


@pytest.mark.parametrize('name', ['cross_entropy', 'mse', 'squentropy'])
def test_samples_follow_the_link(name):
    """Tokens are sampled with probability p^(1/T), renormalized, where p is the link of the loss."""
    loss, logits = make_loss(name, 30), torch.randn(30)
    p = link(loss, logits[None])[0]
    for temperature in (1.0, 0.5, 1.7):
        expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
        torch.testing.assert_close(frequencies(loss, logits, temperature=temperature), expected, rtol=0, atol=2e-4)


def test_sampler_agrees_with_multinomial():
    """With random uniforms, ids are as frequent as those of torch.multinomial (chi-squared test of both samples)."""
    draws, logits = 40_000, torch.randn(30)
    p = torch.softmax(logits / 0.8, 0)
    p = torch.where(p >= p.topk(10).values[-1], p, 0)
    ids = make_sampler(cross_entropy(30), torch.rand(draws, 1).numpy(), 0.8, top_k=10)(logits.expand(draws, -1))
    a, b = (torch.bincount(x, minlength=30)[p > 0] for x in (ids, torch.multinomial(p, draws, replacement=True)))
    assert a.sum() == b.sum() == draws
    assert ((a - b) ** 2 / (a + b)).sum() < 27.9  # 99.9 % quantile with 9 degrees of freedom


def test_top_k_and_top_p():
    """top_k keeps the k most likely tokens, top_p the fewest that hold this share; both renormalize."""
    loss, logits = cross_entropy(4), torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    for sampling, probs in [(dict(top_k=2), [0, 4 / 7, 0, 3 / 7]), (dict(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
                            (dict(top_p=0.01), [0, 1, 0, 0]), (dict(top_k=9), [0.1, 0.4, 0.2, 0.3]),
                            (dict(top_k=2, top_p=0.5), [0, 1, 0, 0])]:  # top_p is a share of what top_k keeps
        expected = torch.tensor(probs, dtype=torch.float32)
        torch.testing.assert_close(frequencies(loss, logits, **sampling), expected, rtol=0, atol=2e-4)


def test_greedy_and_zero_probabilities():
    """Temperature 0 takes the largest logit; a token with probability 0 is never sampled."""
    logits = torch.randn(5, 30)
    ids = make_sampler(mse(30), np.zeros((5, 1), 'float32'), temperature=0)(logits)
    assert torch.equal(ids, logits.argmax(1))
    for uniform in (0.0, 1 - 2**-24):
        ids = make_sampler(mse(30), np.full((5, 1), uniform, 'float32'))(logits)
        assert (link(mse(30), logits).gather(1, ids[:, None]) > 0).all()


def test_ties():
    """Among equal probabilities top_k keeps exactly k tokens."""
    logits = torch.zeros(30)
    logits[:3] = 0.5  # mse: the link of the others is 0
    p = frequencies(mse(30), logits, top_k=5, top_p=0.99)
    assert p[:3].sum() == 1 and (p > 0).sum() == 3
    p = frequencies(cross_entropy(30), torch.zeros(30), top_k=5)
    assert (p > 0).sum() == 5 and abs(p.max() - 0.2) < 1e-3


@pytest.mark.parametrize('C, k', [(30, 5), (4096, 200), (4099, 7), (4096, 4096), (50_257, 200)])
def test_largest_ids(C, k):
    """largest_ids finds the k largest values in descending order, also among ties and next to infinities and NaN."""
    generator = np.random.default_rng(0)
    for row in (generator.normal(size=C), generator.integers(0, 9, C), np.zeros(C)):
        row = row.astype('float32')
        row[generator.integers(0, C, 3)] = np.inf
        row[generator.integers(0, C, 3)] = -np.inf
        ids = largest_ids(row, k)
        assert len(set(ids)) == k and (row[ids] == np.sort(row)[::-1][:k]).all()
        row[::2] = np.nan
        assert len(set(largest_ids(row, k))) == k


@pytest.mark.parametrize('sampling', [{}, {'top_k': 3}, {'top_p': 0.5}])
def test_non_finite_logits(sampling):
    """Logits that are not finite still give valid ids."""
    sample = make_sampler(cross_entropy(30), np.full((2, 1), 0.5, 'float32'), **sampling)
    assert (sample(torch.full((2, 30), float('nan'))) < 30).all()


def byte_model():
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=16, vocab_size=256, n_layer=1, n_head=2, n_embd=16)).double().eval()
    return model, Tokenizer('byte')


def tell(num_samples, **sampling):
    model, tokenizer = byte_model()
    texts, ended = [''] * num_samples, []
    for i, text in generate_stories(model, tokenizer, cross_entropy(256), 'Hi', num_samples, 40, **sampling):
        if text is None:
            ended.append(i)
        else:
            assert i not in ended
            texts[i] += text
    assert sorted(ended) == list(range(num_samples))
    return texts


def test_samples_do_not_depend_on_the_batch():
    """Story i depends on (seed, i) only: it is the same alone and in a batch, and differs with another seed."""
    assert tell(4)[:2] == tell(2) and len(set(tell(4))) == 4
    assert tell(2, seed=5) != tell(2)


def test_streamed_text_is_the_decoded_story(monkeypatch):
    """The streamed pieces concatenate to the story: no character is split, and end-of-text ends the story."""
    text = 'naïve 🐰!'
    ids = [*text.encode(), 255, 65, 66]
    monkeypatch.setattr(engine, 'generate', lambda *args: (torch.tensor([i, i]) for i in ids))
    pieces = list(generate_stories(*byte_model(), cross_entropy(256), '', 2, len(ids)))
    for story in range(2):
        *texts, last = [piece for i, piece in pieces if i == story]
        assert ''.join(texts) == text and last is None


def test_generate_text():
    """The text is story 0 at top_p 0.9 on one line; the model stays in training mode."""
    model, tokenizer = byte_model()
    pieces = list(generate_stories(model, tokenizer, cross_entropy(256), '', 1, 40, seed=3, top_p=0.9))
    model.train()
    text = generate_text(model, tokenizer, cross_entropy(256), 40, seed=3)
    assert text and text.split() == ''.join(piece for _, piece in pieces if piece).split() and '\n' not in text
    assert model.training
