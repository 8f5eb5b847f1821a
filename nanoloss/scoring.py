"""Score every token of a split in the three readouts.

Everything is computed in float32, whatever dtype the model was trained in. At most one chunk of logits is held in
memory at a time, and metrics of single tokens only for one batch. Under torchrun, each rank scores its share of the
batches and the results are all-reduced.

Shapes: N tokens in the split, n tokens in a batch or block, C classes, d the width of the model.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch

import losses
from nanoloss import dataloader, distributed, link, rng

MAX_CACHE = 2**31  # bytes of hidden states that are cached between two passes over a split
READOUTS = ('softmax', 'link', 'calibrated')
METRICS = ('nats', 'confidence', 'brier', 'rank')
N_METRICS = len(READOUTS) * len(METRICS)
DIAGNOSTICS = ('objective', 'link_sum', 'link_negative')
CONFIDENCE_STEPS = 10**6  # confidences are counted in steps of 1e-6


def no_progress(batches, description):
    return batches


@dataclass
class Batch:
    """The tokens that one batch of windows scores."""
    first: int                # the number of its first token in the order of the batches
    positions: np.ndarray     # (n,), of the tokens in the split
    hidden: torch.Tensor      # (n, d), float32
    targets: torch.Tensor     # (n,)
    thresholds: torch.Tensor | None = None  # (n, 1), of the link (link.subtract_threshold), kept for later passes


class HiddenStates:
    """The hidden states of a split, in batches. They can be iterated over many times.

    If they take at most MAX_CACHE bytes, the batches are cached in the first pass; otherwise each pass runs the model
    again. Each rank iterates over its own share.

    Args:
        model: a GPT; it is put into evaluation mode.
        tokens: (N,), the ids of the split.
        windows: (W, 3), from dataloader.story_windows or dataloader.block_windows.
        eot: id of the end-of-text token, which precedes the first token of the split.
        batch_size: windows per batch.
        progress: a function (batches, description) -> batches, to display a progress bar.

    Raises:
        OSError: while iterating, if the file behind `tokens` has changed since it was opened.
    """

    def __init__(self, model, tokens, windows, eot, batch_size, progress=no_progress):
        self.model, self.tokens, self.eot = model.eval(), tokens, eot
        self.batch_size, self.progress = batch_size, progress
        # sorted by length, so that a batch has little padding
        self.windows = windows[np.argsort(-windows[:, 1], kind='stable')]
        self.n_tokens = int(windows[:, 2].sum())
        self.C, self.weight = model.config.vocab_size, model.lm_head.weight[:model.config.vocab_size].detach().float()
        self.fits_cache = self.n_tokens * model.config.n_embd * 4 <= MAX_CACHE
        self.cache = None
        self.description = 'scoring'  # of the next pass, for the progress bar

    def __iter__(self):
        return self.run(keep=True)

    def run(self, keep):
        """Yield each Batch of this rank. keep: cache them if they fit, for another pass."""
        if self.cache:
            yield from self.progress(self.cache, self.description)
            return
        dataloader.check_unchanged(self.tokens)
        starts = range(0, len(self.windows), self.batch_size)
        first = np.cumsum(self.windows[:, 2]) - self.windows[:, 2]
        computed = []
        for i in self.progress(starts[distributed.rank::distributed.world_size], self.description):
            batch = Batch(int(first[i]), *self.forward(self.windows[i:i + self.batch_size]))
            if keep and self.fits_cache:
                computed.append(batch)
            yield batch
        self.cache = computed

    @torch.no_grad()
    def forward(self, batch):
        """Run the model on a batch of windows (B, 3); return (positions, hidden, targets) of the scored tokens."""
        T = batch[:, 1].max()
        ids = np.full((len(batch), T + 1), self.eot, np.int64)  # padded on the right, where no scored token attends
        for row, (start, length, _) in zip(ids, batch, strict=True):
            row[int(start == 0):length + 1] = self.tokens[max(0, start - 1):start + length]
        start, length, n_scored = batch.T[:, :, None]
        column = np.arange(T)
        scored = (column < length) & (column >= length - n_scored)
        device = self.weight.device
        x, mask = torch.from_numpy(ids).to(device), torch.from_numpy(scored).to(device)
        return (start + column)[scored], self.model(x[:, :-1])[mask].float(), x[:, 1:][mask]

    def positions(self):
        """Return the positions (n_tokens,) in the split of all tokens, in the order of the batches of all ranks."""
        end = self.windows[:, 0] + self.windows[:, 1]
        scored = self.windows[:, 2]
        return np.arange(self.n_tokens) + np.repeat(end - np.cumsum(scored), scored)

    def subset(self, n_tokens):
        """Return HiddenStates of a fixed random choice of windows with n_tokens tokens or a few more, or self."""
        if self.n_tokens <= n_tokens:
            return self
        order = rng.generator(rng.RESAMPLE, 0, rng.CALIBRATION_SUBSET).permutation(len(self.windows))
        chosen = order[:np.searchsorted(np.cumsum(self.windows[order, 2]), n_tokens) + 1]
        return HiddenStates(self.model, self.tokens, self.windows[chosen], self.eot, self.batch_size, self.progress)


class Split:
    """The tokens of a split, divided into units, which are stories or blocks.

    Unit i is tokens[bounds[i]:bounds[i + 1]].

    Args:
        model: a GPT.
        tokens: (N,), from dataloader.open_bin.
        eot: id of the end-of-text token, or None if the tokens have no stories.
        batch_size: windows per batch.
        stride: score each story from a fresh context, in windows that slide by this many tokens; None = score
            consecutive blocks of block_size instead.
        progress: see HiddenStates.

    Attributes: tokens, bounds (n_units + 1,), sizes (n_units,), n_units, and states (HiddenStates).
    """

    def __init__(self, model, tokens, eot, batch_size, stride, progress=no_progress):
        block_size = model.config.block_size
        if stride is None:
            windows = dataloader.block_windows(len(tokens), block_size)
            self.bounds = np.append(windows[:, 0], len(tokens))  # without the first token, which is not scored
        else:
            self.bounds = dataloader.story_bounds(tokens, eot)
            windows = dataloader.story_windows(self.bounds, block_size, stride)
        self.tokens, self.sizes, self.n_units = tokens, np.diff(self.bounds), len(self.bounds) - 1
        self.states = HiddenStates(model, tokens, windows, eot or 0, batch_size, progress)

    def unit(self, positions):
        """Return the number of the unit of each position (n,)."""
        return np.searchsorted(self.bounds, positions, side='right') - 1

    def text_bytes(self, tokenizer):
        """Bytes of text in each unit, without the end-of-text tokens: (n_units,)."""
        length = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
        length[tokenizer.eot] = 0
        parts = []
        for i in range(0, self.n_units, 2**14):  # of the units, so that memory does not grow with the split
            bounds = self.bounds[i:i + 2**14 + 1]
            parts.append(np.add.reduceat(length[self.tokens[bounds[0]:bounds[-1]]], bounds[:-1] - bounds[0]))
        return np.concatenate(parts)


class Totals:
    """Sums of the metrics of all scored tokens. Their memory grows with the number of units, not with the tokens.

    Metrics are rounded to multiples of 2^-24, so that the sums are exact and do not depend on the order, hence not on
    the number of ranks.

    Attributes:
        tokens: number of scored tokens.
        sums: {key: (readouts, n_units)} of 'nats', 'top1', 'top5' and 'brier'.
        objective, link_sum, link_negative: sums over all tokens; see score_tokens.
        confidences: (readouts, 2, CONFIDENCE_STEPS + 1), for each confidence, rounded, the number of tokens and of
            those that are predicted correctly.
        by_id: (1 + readouts, C), for each token id, the number of tokens and the sums of their nats.
        by_position: (1 + readouts, length of the longest unit), the same for each position in its unit.
    """

    def __init__(self, split):
        self.split, readouts = split, len(READOUTS)
        self.units = np.zeros((4, readouts, split.n_units))
        self.counts = np.zeros(split.n_units)
        self.diagnostics = np.zeros(3)
        self.confidences = np.zeros((readouts, 2, CONFIDENCE_STEPS + 1))
        self.by_id = np.zeros((1 + readouts, split.states.C))
        self.by_position = np.zeros((1 + readouts, split.sizes.max()))

    def add(self, positions, ids, metrics, diagnostics):
        """Add the metrics of a batch; see score_tokens for the arguments."""
        nats, confidence, brier, rank = np.rint(metrics.astype(np.float64) * 2**24).transpose(1, 0, 2) / 2**24
        self.diagnostics += (np.rint(diagnostics.astype(np.float64) * 2**24) / 2**24).sum(1)
        correct = rank < 1
        unit = self.split.unit(positions)
        units, inverse = np.unique(unit, return_inverse=True)
        self.counts[units] += np.bincount(inverse)
        for total, values in zip(self.units, (nats, correct, rank < 5, brier), strict=True):
            for readout, x in zip(total, values, strict=True):
                readout[units] += np.bincount(inverse, x)
        for total, where in ((self.by_id, ids), (self.by_position, positions - self.split.bounds[unit])):
            for row, x in zip(total, (np.ones(len(ids)), *nats), strict=True):
                np.add.at(row, where, x)
        step = np.rint(np.nan_to_num(confidence) * CONFIDENCE_STEPS).astype(np.int64).clip(0, CONFIDENCE_STEPS)
        for (count, right), where, x in zip(self.confidences, step, correct, strict=True):
            np.add.at(count, where, 1.0)
            np.add.at(right, where[x], 1.0)

    def finish(self):
        """All-reduce the sums and check that each token was scored once."""
        for x in (self.units, self.counts, self.diagnostics, self.confidences, self.by_id, self.by_position):
            distributed.all_reduce_sum(torch.from_numpy(x))  # in place
        assert np.array_equal(self.counts, self.split.sizes)
        self.tokens = int(self.counts.sum())
        self.sums = dict(zip(('nats', 'top1', 'top5', 'brier'), self.units, strict=True))
        self.objective, self.link_sum, self.link_negative = self.diagnostics.tolist()

    def calibration_counts(self, i):
        """Return (confidence, accuracy, number of tokens), an array each, for each confidence in readout i."""
        count, correct = self.confidences[i]
        step = np.flatnonzero(count)
        return step / CONFIDENCE_STEPS, correct[step] / count[step], count[step]


@torch.no_grad()
def score_tokens(loss, states, calibration):
    """Score every token of a split; yield (positions, ids, metrics, diagnostics) for each batch.

    Args:
        loss: LossCoefficients or a custom loss.
        states: HiddenStates of the split.
        calibration: function of positions (n,) that returns the inverse temperature and the mix of the calibrated
            readout, two arrays (n,).

    Yields:
        Tuples of arrays:

        - positions (n,) in the split and the token ids (n,) there;
        - metrics (readouts, 4, n): nats, confidence (the largest probability), Brier score and rank (number of other
          tokens that are at least as probable as the true one);
        - diagnostics (3, n): the training loss, the sum over classes of the link before its projection, and of its
          negative part; NaN for a custom loss.
    """
    states.description = 'scoring'
    for batch in states.run(keep=False):
        u, mix = (torch.from_numpy(x).to(batch.hidden)[:, None] for x in calibration(batch.positions))
        parts = []
        for part, logits in link.logit_blocks(batch.hidden, states.weight):
            tau = None if batch.thresholds is None else batch.thresholds[part]
            parts.append(score_block(loss, logits, batch.targets[part], u[part], mix[part], tau))
        values = torch.cat(parts, 1)
        values[N_METRICS] += link.quadratic_term(loss, batch.hidden, states.weight, batch.targets, states.C)
        values = values.cpu().numpy()  # the only copy to the host
        metrics, diagnostics = np.split(values, [N_METRICS])
        metrics = metrics.reshape(len(READOUTS), len(METRICS), -1)
        yield batch.positions, states.tokens[batch.positions], metrics, diagnostics


def score_block(loss, logits, y, u, mix, tau=None):
    """Return metrics and diagnostics of score_tokens, without the quadratic part of the loss, in one tensor.

    Its shape is (N_METRICS + len(DIAGNOSTICS), n).

    Args:
        logits: (n, C).
        y: (n,), targets.
        u, mix: (n, 1), the inverse temperature and the mix of the calibrated readout.
        tau: (n, 1), thresholds of the link, if they are known.
    """
    n, C = logits.shape
    index, built_in, softmax_link = y[:, None], isinstance(loss, losses.LossCoefficients), link.has_softmax_link(loss)
    softmax, top, log_Z, cross_entropy = link.softmax_nll(logits, y)
    # every readout of a built-in loss keeps the order of the logits, even where its own digits run out
    rank = count_not_below(logits, index) - 1
    values = logits.new_full((N_METRICS + len(DIAGNOSTICS), n), math.nan)
    readouts, diagnostics = values[:N_METRICS].view(len(READOUTS), len(METRICS), n, 1), values[N_METRICS:]
    diagnostics[0] = link.partial_objective(loss, logits, y, log_Z, cross_entropy)
    readouts[0] = torch.stack([cross_entropy, top, sum_of_squares(softmax) - 2 * softmax.gather(1, index) + 1, rank])

    if softmax_link:
        readouts[1] = readouts[0]
        if built_in:
            diagnostics[1], diagnostics[2] = 1, 0
        x = link.log2_softmax(logits)
    else:
        if built_in:
            r = link.link_ratio(loss, logits, softmax)
            diagnostics[1], diagnostics[2] = r.sum(-1), r.clamp(max=0).sum(-1)
            p, _ = link.subtract_threshold(r, tau)
        else:
            p = loss.link(logits)
        x = link.log2_relative(p)
        if built_in:
            p = p.relu_().div_(p.sum(-1, keepdim=True))
        nats = link.mixed_nll(p.gather(1, index), cross_entropy, link.LINK_MIX)
        p = softmax.lerp_(p, 1 - link.LINK_MIX)
        readouts[1] = torch.stack([nats, p.amax(-1, keepdim=True), sum_of_squares(p) - 2 * p.gather(1, index) + 1,
                                   rank if built_in else count_not_below(p, index) - 1])
        if not built_in:
            rank = count_not_below(x, index) - 1

    x_y = x.gather(1, index)
    q = x.mul_(u).exp2_()  # not normalized; the largest is 1
    Z = q.sum(-1, keepdim=True)
    log_q_y = x_y * u * link.LN2 - Z.log()
    nats = -torch.logaddexp(torch.log1p(-mix) + log_q_y, torch.log(mix / C))
    squares = ((1 - mix) / Z) ** 2 * sum_of_squares(q) + (2 - mix) * mix / C
    readouts[2] = torch.stack([nats, (1 - mix) / Z + mix / C, squares - 2 * torch.exp(-nats) + 1, rank])
    return values


def sum_of_squares(x):
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2


def count_not_below(x, index):
    """Return (n, 1): the number of entries of each row of x (n, C) that are >= the one at index (n, 1), with itself."""
    return link.count_true(torch.ge, x, x.gather(1, index))
