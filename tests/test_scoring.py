"""Token scores and calibration against formulas written out in float64, on untrained models."""
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import losses
from conftest import LargestTensor
from model import GPT, GPTConfig
from nanoloss import calibration, dataloader, link, scoring, statistics
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
    for batch in states:
        logits[batch.positions] = (batch.hidden @ states.weight.T).double()
    return logits


def score(loss, split, u=1.0, mix=0.1):
    """(figures (readouts, 4, N), other (3, N)) of every token, each scored once; u, mix: numbers or (N,)."""
    N = len(split.tokens)
    u, mix = np.broadcast_to(u, N), np.broadcast_to(mix, N)
    figures, other, times = np.zeros((3, 4, N)), np.zeros((3, N)), np.zeros(N)
    for positions, ids, *values in scoring.score_tokens(loss, split.states, lambda i: (u[i], mix[i])):
        assert (ids == split.tokens[positions]).all()
        times[positions] += 1
        figures[:, :, positions], other[:, positions] = values
    assert (times == 1).all()
    return figures, other


@LOSSES
def test_scores_are_the_written_formulas(name, monkeypatch):
    """nats, confidence, Brier score and rank of every token and readout match the formulas in float64."""
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 20)
    monkeypatch.setattr(link, 'block_rows', lambda n, C, device: 7)
    split, loss = open_split(tiny_model(), batch_size=3, stride=16), losses.make_loss(name, 256)
    N = len(split.tokens)
    u, mix = np.linspace(0, 1.8, N), np.linspace(0, 1, N)[::-1].copy()
    figures, other = score(loss, split, u, mix)
    logits, y = all_logits(split), torch.from_numpy(split.tokens).long()
    softmax, bare_link = logits.softmax(-1), link.link(loss, logits)
    # a link of 0 counts as exp(-40) of the largest one
    tempered = (bare_link / bare_link.amax(-1, keepdim=True)).clamp(min=math.exp(-40)) ** torch.from_numpy(u)[:, None]
    tempered /= tempered.sum(-1, keepdim=True)
    share = torch.from_numpy(mix)[:, None]
    for p, found in zip((softmax, 0.9 * bare_link + 0.1 * softmax, (1 - share) * tempered + share / 256), figures,
                        strict=True):
        nats, confidence, brier, rank = found
        np.testing.assert_allclose(nats, F.nll_loss(p.log(), y, reduction='none'), rtol=1e-4)
        np.testing.assert_allclose(confidence, p.max(1)[0], rtol=1e-4)
        np.testing.assert_allclose(brier, (p - F.one_hot(y, 256)).square().sum(1), rtol=1e-4)
        np.testing.assert_array_equal(rank, (logits > logits.gather(1, y[:, None])).sum(1))
    ratio = link.link_ratio(loss, logits, softmax)
    np.testing.assert_allclose(other[1], ratio.sum(1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other[2], ratio.clamp(max=0).sum(1), rtol=1e-3, atol=1e-4)


def test_scores_of_a_custom_loss():
    """A custom loss with a link of its own is read through it, and ranks follow each readout."""
    def custom(logits, targets):
        return F.cross_entropy(logits, targets, reduction='none')
    custom.link = lambda logits: F.softmax(-logits, -1)  # reverses the order
    split = open_split(tiny_model())
    figures, other = score(custom, split, u=1.0, mix=0.2)
    logits, y = all_logits(split), torch.from_numpy(split.tokens).long()
    softmax, reverse = logits.softmax(-1), (-logits).softmax(-1)
    for p, (nats, _, _, rank) in zip((softmax, 0.9 * reverse + 0.1 * softmax, 0.8 * reverse + 0.2 / 256), figures,
                                     strict=True):
        np.testing.assert_allclose(nats, F.nll_loss(p.log(), y, reduction='none'), rtol=1e-4)
        assert abs(rank - (p > p.gather(1, y[:, None])).sum(1).numpy()).max() <= 1  # float32 has more ties
    np.testing.assert_allclose(other[0], figures[0, 0], rtol=1e-5)
    assert np.isnan(other[1:]).all()


@LOSSES
@pytest.mark.parametrize('stride', [8, None])
def test_totals_are_sums_of_the_tokens(name, stride):
    """Sums by unit, token id, position and confidence equal a loop over the tokens, whatever the batch size."""
    loss, model = losses.make_loss(name, 256), tiny_model()
    for batch_size in (2, 64):
        split = open_split(model, batch_size=batch_size, stride=stride)
        totals = scoring.Totals(split)
        batches = list(scoring.score_tokens(loss, split.states, lambda i: (np.full(len(i), 1.1), np.full(len(i), 0.1))))
        for batch in batches:
            totals.add(*batch)
        totals.finish()
        positions = np.concatenate([batch[0] for batch in batches])
        nats, confidence, brier, rank = np.concatenate([batch[2] for batch in batches], 2).transpose(1, 0, 2)
        assert totals.tokens == len(positions) == split.sizes.sum()
        for values, key in ((nats, 'nats'), (rank < 1, 'top1'), (rank < 5, 'top5'), (brier, 'brier')):
            for i, (low, high) in enumerate(itertools.pairwise(split.bounds)):
                inside = (positions >= low) & (positions < high)
                np.testing.assert_allclose(totals.sums[key][:, i], values[:, inside].sum(1), rtol=1e-6, atol=1e-9)
        for token in (97, 255):
            chosen = split.tokens[positions] == token
            np.testing.assert_allclose(totals.by_id[:, token], [chosen.sum(), *nats[:, chosen].sum(1)], rtol=1e-6)
        offset = positions - split.bounds[split.unit(positions)]
        np.testing.assert_allclose(totals.by_position[:, 3], [(offset == 3).sum(), *nats[:, offset == 3].sum(1)],
                                   rtol=1e-6)
        for i in range(3):
            values, accuracy, counts = totals.calibration_counts(i)
            np.testing.assert_allclose(np.repeat(values, counts.astype(int)), np.sort(confidence[i]), atol=1e-6)
            assert accuracy @ counts == (rank[i] < 1).sum()
            for mass in (False, True):
                assert statistics.ece(values, accuracy, counts, mass=mass) == \
                    pytest.approx(statistics.ece(confidence[i], rank[i] < 1, mass=mass), abs=1e-4)
        np.testing.assert_allclose(totals.objective, sum(batch[3][0].sum(dtype=float) for batch in batches), rtol=1e-6)


@pytest.mark.parametrize('stride', [1, 5, 16, None])
def test_units_partition_the_tokens(stride):
    """Units are the stories, or the blocks without the first token; sums and text bytes per unit agree with a loop."""
    split = open_split(tiny_model(), stride=stride)
    if stride is None:
        units = [split.tokens[i:i + 16] for i in range(1, len(split.tokens), 16)]
    else:
        units = [np.frombuffer(text.encode() + b'\xff', np.uint8) for text in TEXTS]
    pieces = [split.tokens[a:b] for a, b in itertools.pairwise(split.bounds)]
    assert split.n_units == len(units) and all(map(np.array_equal, pieces, units))
    assert split.sizes.tolist() == [len(unit) for unit in units]
    assert split.unit(np.arange(split.bounds[0], split.bounds[-1])).tolist() == \
        [i for i, unit in enumerate(units) for _ in unit]
    assert split.text_bytes(Tokenizer('byte')).tolist() == [(unit != 255).sum() for unit in units]
    seen = np.concatenate([batch.positions for batch in split.states])
    assert (seen == split.states.positions()).all() and sorted(seen) == list(range(split.bounds[0], split.bounds[-1]))


def test_text_bytes_of_many_stories():
    """Every story has its own bytes, also beyond the first 16,384 stories."""
    assert open_split(tiny_model(), ['ab', 'c'] * 10_000).text_bytes(Tokenizer('byte')).tolist() == [2, 1] * 10_000


def test_subset_is_fixed_and_large_enough():
    """A subset has the same whole windows each time, at least as many tokens as asked, and is the whole if small."""
    split = open_split(tiny_model(), TEXTS * 9)
    first, again = split.states.subset(200), split.states.subset(200)
    assert 200 <= first.n_tokens < 216 + 1 and (first.windows == again.windows).all()
    assert {*map(tuple, first.windows)} < {*map(tuple, split.states.windows)}
    assert split.states.subset(10**6) is split.states
    assert sum(len(batch.targets) for batch in first) == first.n_tokens


@LOSSES
def test_scores_do_not_depend_on_the_batch_size(name, monkeypatch):
    """Scores and calibration are the same in batches of 1 and of 32 windows, despite padding, and in small blocks."""
    model, loss, results = tiny_model(), losses.make_loss(name, 256), []
    for batch_size in (1, 32):
        if batch_size == 32:
            monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 20)
            monkeypatch.setattr(link, 'block_rows', lambda n, C, device: 7)
        split = open_split(model, batch_size=batch_size)
        fitted = calibration.fit_calibration(loss, split.states)
        results.append(score(loss, split, fitted.inverse_temperature[0], fitted.mix[0])[0])
    np.testing.assert_allclose(results[0][:, :3], results[1][:, :3], rtol=1e-3, atol=1e-5)



def test_never_all_logits(monkeypatch):
    """No tensor is larger than a chunk of logits; scores are the same if the hidden states are not cached."""
    model, loss, results = tiny_model(vocab_size=2048), losses.squentropy(2048), []
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 16)
    for max_cache in (2**31, 0):
        monkeypatch.setattr(scoring, 'MAX_CACHE', max_cache)
        split = open_split(model, batch_size=64)
        with LargestTensor() as largest:
            fitted = calibration.fit_calibration(loss, split.states)
            results.append(score(loss, split, fitted.inverse_temperature[0], fitted.mix[0])[0])
        assert largest.numel <= 16 * 2048 < len(split.tokens) * 2048 / 2  # the weight of the head is 16 x 2048
        assert bool(split.states.cache) == (max_cache > 0)
    np.testing.assert_allclose(*results, rtol=1e-5)


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
