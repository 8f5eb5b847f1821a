"""Token scores and calibration against formulas written out in float64, on untrained models."""
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from model import GPT, GPTConfig
from nanoloss import dataloader, link, scoring
from nanoloss.tokenizer import Tokenizer

TEXTS = ['Tom saw a cat.', 'x', '', 'The end of a very long story ' * 5, 'Once upon a time there was a dog.',
         'One', 'Two']
LOSSES = pytest.mark.parametrize('name', ['cross_entropy', 'mse', 'squentropy'])


def tiny_model(vocab_size=256, block_size=16, scale=8.0, seed=0):
    """An untrained model whose logits are scaled up, so that its probabilities differ."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(block_size=block_size, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=16, bias=False))
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model.eval()


def open_split(model, texts=TEXTS, batch_size=4, stride=8):
    return scoring.Split(model, Tokenizer('byte').encode_stories(texts), 255, batch_size, stride)


def all_logits(split):
    """The logits of every token, (N, C), in float64."""
    states = split.states
    logits = torch.zeros(len(split.tokens), states.C, dtype=torch.float64)
    for i, hidden, _ in states:
        logits[i] = (hidden @ states.weight.T).double()
    return logits


@LOSSES
def test_scores_are_the_written_formulas(name):
    """nats, confidence, Brier score and rank of every token and readout match the formulas in float64."""
    split, loss = open_split(tiny_model(), batch_size=3, stride=16), losses.make_loss(name, 256)
    N = len(split.tokens)
    mix, temperature = np.linspace(0.1, 0.9, N), np.linspace(0.7, 1.8, N)
    scores = scoring.score_tokens(loss, split.states, N, mix, temperature)
    logits, y = all_logits(split), torch.from_numpy(split.tokens).long()
    softmax, bare_link = logits.softmax(-1), link.link(loss, logits)
    tempered = bare_link ** (1 / torch.from_numpy(temperature)[:, None])
    tempered /= tempered.sum(-1, keepdim=True)
    delta = torch.from_numpy(mix)[:, None]
    for readout, p in {'softmax': softmax, 'link': 0.9 * bare_link + 0.1 * softmax,
                       'calibrated': (1 - delta) * tempered + delta * softmax}.items():
        found = scores[readout]
        np.testing.assert_allclose(found['nats'], F.nll_loss(p.log(), y, reduction='none'), rtol=1e-4)
        np.testing.assert_allclose(found['confidence'], p.max(1)[0], rtol=1e-4)
        np.testing.assert_allclose(found['brier'], (p - F.one_hot(y, 256)).square().sum(1), rtol=1e-4)
        np.testing.assert_array_equal(found['rank'], (logits > logits.gather(1, y[:, None])).sum(1))
    numerator, denominator = link.link_ratio(loss, logits, softmax)
    np.testing.assert_allclose(scores['link_sum'], (numerator / denominator).sum(1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scores['link_negative'], (numerator / denominator).clamp(max=0).sum(1), rtol=1e-3,
                               atol=1e-4)
    assert (scores['times_scored'] == 1).all()


@pytest.mark.parametrize('stride', [1, 5, 16, None])
def test_units_partition_the_tokens(stride):
    """Units are the stories, or the blocks without the first token; sums and text bytes per unit agree with a loop."""
    split = open_split(tiny_model(), stride=stride)
    if stride is None:
        units = [split.tokens[i:i + 16] for i in range(1, len(split.tokens), 16)]
        assert split.scored.tolist() == [False] + [True] * (len(split.tokens) - 1)
    else:
        units = [np.frombuffer(text.encode() + b'\xff', np.uint8) for text in TEXTS]
        assert split.scored.all()
    pieces = [split.tokens[a:b] for a, b in itertools.pairwise(split.bounds)]
    assert split.n_units == len(units) and all(map(np.array_equal, pieces, units))
    assert split.positions().tolist() == [i + 1 for unit in units for i in range(len(unit))]
    values = np.arange(len(np.concatenate(units)))
    assert split.sum_per_unit(values).sum() == values.sum()
    assert split.text_bytes(Tokenizer('byte')).tolist() == [(unit != 255).sum() for unit in units]


@LOSSES
def test_scores_do_not_depend_on_the_batch_size(name):
    """Scores and calibration are the same in batches of 1 and of 32 windows, despite padding."""
    model, loss, results = tiny_model(), losses.make_loss(name, 256), []
    for batch_size in (1, 32):
        split = open_split(model, batch_size=batch_size)
        fold = np.arange(len(split.tokens)) % 2
        temperature, mix = scoring.fit_calibration(loss, split.states, fold)
        results.append(scoring.score_tokens(loss, split.states, len(split.tokens), mix[fold], temperature[fold]))
    for readout in scoring.READOUTS:
        for key in ('nats', 'confidence', 'brier'):
            np.testing.assert_allclose(results[0][readout][key], results[1][readout][key], rtol=1e-3, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *(x.numel() for x in tensors)])
        return out


def test_never_all_logits(monkeypatch):
    """No tensor is larger than a chunk of logits; scores are the same if the hidden states are not cached."""
    model, loss, results = tiny_model(vocab_size=2048), losses.squentropy(2048), []
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 3)
    for max_cache in (2**31, 0):
        monkeypatch.setattr(scoring, 'MAX_CACHE', max_cache)
        split = open_split(model, batch_size=64)
        N = len(split.tokens)
        with LargestTensor() as largest:
            temperature, mix = scoring.fit_calibration(loss, split.states, np.zeros(N, np.int64), max_passes=2)
            results.append(scoring.score_tokens(loss, split.states, N, np.full(N, mix), np.full(N, temperature)))
        assert largest.numel <= 16 * 2048 < N * 2048 / 2  # the weight of the head is 16 x 2048
        assert bool(split.states.cache) == (max_cache > 0)
    np.testing.assert_array_equal(results[0]['calibrated']['nats'], results[1]['calibrated']['nats'])


@LOSSES
def test_calibration_is_the_minimum(name):
    """No temperature and mix on a grid give fewer nats than the fitted ones, in either fold."""
    split, loss = open_split(tiny_model(scale=4.0), TEXTS * 2), losses.make_loss(name, 256)
    fold = split.unit % 2
    temperature, mix = scoring.fit_calibration(loss, split.states, fold)
    logits, y = all_logits(split), torch.from_numpy(split.tokens).long()
    softmax, bare_link = logits.softmax(-1), link.link(loss, logits)

    def mean_nats(tokens, T, mix):
        p = bare_link[tokens] ** (1 / T)
        p = (1 - mix) * p / p.sum(-1, keepdim=True) + mix * softmax[tokens]
        return F.nll_loss(p.log(), y[tokens]).item()
    for k in range(2):
        tokens = torch.from_numpy(fold == k)
        grid = itertools.product(np.geomspace(0.3, 3, 20), np.linspace(0.001, 0.999, 20))
        assert mean_nats(tokens, temperature[k], mix[k]) <= min(mean_nats(tokens, *point) for point in grid) + 1e-5


@pytest.mark.parametrize('true_temperature', [0.05, 1.0, 30.0])
def test_softmax_temperature_is_the_minimum(true_temperature):
    """The temperature of softmax minimizes the nats, compared with scipy's scalar minimizer in float64."""
    from scipy.optimize import minimize_scalar

    class States(list):
        weight = torch.eye(20)
    logits = 3 * torch.randn(500, 20)
    y = torch.multinomial(F.softmax(logits / true_temperature, -1), 1)[:, 0]
    temperature, nats = scoring.fit_softmax_temperature(States([(None, logits[:200], y[:200]),
                                                                (None, logits[200:], y[200:])]))
    expected = minimize_scalar(lambda log_u: F.cross_entropy(logits.double() * np.exp(log_u), y).item(),
                               bounds=(-6, 6), method='bounded', options={'xatol': 1e-9})
    assert nats == pytest.approx(expected.fun, rel=1e-6)
    assert temperature == pytest.approx(np.exp(-expected.x), rel=1e-3)


def test_changed_file_is_noticed(tmp_path, monkeypatch):
    """A pass over a file that has changed since it was opened raises OSError; a cached pass does not read it."""
    tokens = Tokenizer('byte').encode_stories(TEXTS)
    meta = {'dtype': 'uint8', 'vocab_size': 256, 'tokenizer': 'byte', 'splits': {'val': {'tokens': len(tokens)}}}
    for max_cache in (2**31, 0):
        (tmp_path / 'val.bin').write_bytes(tokens.tobytes())
        monkeypatch.setattr(scoring, 'MAX_CACHE', max_cache)
        split = scoring.Split(tiny_model(), dataloader.open_bin(tmp_path, 'val', meta), 255, 4, 8)
        assert len(list(split.states)) > 0
        (tmp_path / 'val.bin').write_bytes(tokens.tobytes() * 2)
        if max_cache:
            assert len(list(split.states)) > 0
        else:
            with pytest.raises(OSError, match='val.bin'):
                list(split.states)
