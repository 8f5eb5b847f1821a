"""Sampling: the distribution that is asked for, streams that do not depend on the batch, whole characters."""
import numpy as np
import pytest
import torch

import losses
import sampling
from model import GPT, GPTConfig
from tokenizer import Tokenizer


def frequencies(loss, logits, draws=20_000, **how):
    """How often each token is drawn from one row of logits, with evenly spread uniforms."""
    uniforms = np.linspace(0, 1, draws, endpoint=False, dtype='float32')[:, None]
    ids = sampling.chooser(loss, uniforms, **how)(logits.expand(draws, -1))
    return torch.bincount(ids, minlength=len(logits)) / draws


@pytest.mark.parametrize('name', ['cross_entropy', 'mse', 'squentropy'])
def test_draws_follow_the_link(name):
    """At temperature 1 tokens are drawn as often as the link says; at another, as p^(1/T) renormalised."""
    loss, logits = losses.make_loss(name, 30), torch.randn(30)
    p = losses.link(loss, logits[None])[0]
    for temperature in (1.0, 0.5, 1.7):
        expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
        torch.testing.assert_close(frequencies(loss, logits, temperature=temperature), expected, rtol=0, atol=2e-4)


def test_top_k_and_top_p():
    """top_k keeps the k likeliest; top_p the fewest tokens that hold its share; both renormalise."""
    loss = losses.cross_entropy(4)
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    close = dict(rtol=0, atol=2e-4)
    torch.testing.assert_close(frequencies(loss, logits, top_k=2), torch.tensor([0, 4 / 7, 0, 3 / 7]), **close)
    torch.testing.assert_close(frequencies(loss, logits, top_p=0.75), torch.tensor([0, 4 / 9, 2 / 9, 3 / 9]), **close)
    torch.testing.assert_close(frequencies(loss, logits, top_p=0.01), torch.tensor([0, 1.0, 0, 0]), **close)
    torch.testing.assert_close(frequencies(loss, logits, top_k=9), torch.tensor([0.1, 0.4, 0.2, 0.3]), **close)
    # top_p is a share of what top_k leaves
    torch.testing.assert_close(frequencies(loss, logits, top_k=2, top_p=0.5), torch.tensor([0, 1.0, 0, 0]), **close)


def test_greedy_and_impossible_tokens():
    """Temperature 0 is the largest logit; a token of probability 0 is never drawn, whatever the draw."""
    logits = torch.randn(5, 30)
    greedy = sampling.chooser(losses.mse(30), np.zeros((5, 1), 'float32'), temperature=0)(logits)
    assert torch.equal(greedy, logits.argmax(1))
    for u in (0.0, 1 - 2**-24):
        ids = sampling.chooser(losses.mse(30), np.full((5, 1), u, 'float32'))(logits)
        assert (losses.link(losses.mse(30), logits).gather(1, ids[:, None]) > 0).all()


def test_ties_and_numbers_that_are_none():
    """Among level probabilities top_k takes as many as it says; logits that are not finite give an id all the same."""
    loss = losses.mse(30)
    level = torch.zeros(30)
    level[:3] = 0.5  # the link of the others is 0, or as good as that
    found = frequencies(loss, level, top_k=5, top_p=0.99)
    assert found[:3].sum() == 1 and (found > 0).sum() == 3
    found = frequencies(losses.cross_entropy(30), torch.zeros(30), top_k=5)
    assert (found > 0).sum() == 5 and abs(found.max() - 0.2) < 1e-3
    for how in ({}, {'top_k': 3}, {'top_p': 0.5}):
        choose = sampling.chooser(losses.cross_entropy(30), np.full((2, 1), 0.5, 'float32'), **how)
        assert (choose(torch.full((2, 30), float('nan'))) < 30).all()


def model_and_tokenizer():
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=16, vocab_size=256, n_layer=1, n_head=2, n_embd=16)).double().eval()
    return model, Tokenizer('byte')


def tell(num_samples, **how):
    model, tokenizer = model_and_tokenizer()
    texts = [''] * num_samples
    ended = []
    for i, piece in sampling.stories(model, tokenizer, losses.cross_entropy(256), 'Hi', num_samples, 40, **how):
        if piece is None:
            ended.append(i)
        else:
            assert i not in ended
            texts[i] += piece
    assert sorted(ended) == list(range(num_samples))
    return texts


def test_a_sample_does_not_depend_on_the_batch():
    """Story i is a function of (seed, i): the same alone and among others; other seeds tell others."""
    assert tell(4)[:2] == tell(2) and len(set(tell(4))) == 4
    assert tell(2, seed=5) != tell(2)


def test_streamed_pieces_are_the_decoded_story(monkeypatch):
    """Pieces put together decode as the whole: a character cut over tokens is never broken; eot ends a story."""
    text = 'naïve 🐰!'
    ids = [*text.encode(), 255, 65, 66]
    model, tokenizer = model_and_tokenizer()
    monkeypatch.setattr(model, 'generate', lambda *args: (torch.tensor([i, i]) for i in ids))
    pieces = list(sampling.stories(model, tokenizer, losses.cross_entropy(256), '', 2, len(ids)))
    assert ''.join(p for i, p in pieces if i == 0 and p) == text
    assert [p for i, p in pieces if i == 1][-1] is None
    assert np.array_equal([i for i, p in pieces if p is None], [0, 1])
