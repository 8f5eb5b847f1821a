"""Fit the calibrated readout: an inverse temperature u = 1/T and a share of the uniform distribution.

    p = (1 - mix) * link^u / Z + mix / C

Both are the same for every loss. For a loss whose link is softmax, a share of softmax would be redundant at u = 1. The
uniform distribution needs no data, keeps the order of the classes, and bounds the nats of a single token.

For a fixed u, the nats are convex in mix, so mix is found by bisection. What is left is a function of u alone, which
can have several minima. It is searched on a wide grid, for each fold by itself, and every minimum that could be the
lowest is refined. The nats are always computed exactly, at several u in each pass over the tokens, and the best u that
was evaluated is returned. If there are many tokens, the grid sees a part of them only.

Shapes: n tokens, K inverse temperatures, C classes.
"""
import math
from typing import NamedTuple

import numpy as np
import torch

import losses
from nanoloss import distributed, link

FIT_TOKENS = 2**18     # tokens of val.bin in the fit, at most about; two parameters cost about 1/n nats
SEARCH_TOKENS = 2**13  # tokens in the grid search, at most about,
SEARCH_LOGITS = 2**24  # and their logits
BELOW, ABOVE = 5, 10   # octaves by which the grid of u extends beyond the inverse spreads of the tokens' log links
MAX_RATIO = 1e4        # tokens whose spread is this many times the median, or less than 1 / this, are left out
MAX_MINIMA = 3         # minima to refine
KEPT = 0.05            # nats: a minimum that is higher than the lowest by more is not evaluated on all tokens
TOLERANCE = 1e-5       # nats per token
MIN_MIX = 1e-6         # no token costs more than log C + 13.8 nats
MAX_PASSES = 10
# Offsets of log u. The last two are equal steps of u, which normalizers() computes faster.
AROUND_GRID_POINT = np.array([-3, -2, -1, 1, 2, 3]) * math.log(2) / 4
AROUND_START = np.log1p(0.06 * np.arange(-3, 4))  # where the passes over all tokens begin
AROUND_ESTIMATE = np.log1p(0.002 * np.arange(-3, 4))  # of the minimum


class Calibration(NamedTuple):
    """A pair of parameters for each fold of tokens."""
    inverse_temperature: np.ndarray  # (folds,)
    mix: np.ndarray                  # (folds,)
    nats: np.ndarray                 # (folds,), mean per token of the fold
    converged: bool                  # False if MAX_PASSES ended the fit


def fit_calibration(loss, states, fold_of=None, with_uniform=True):
    """Fit the calibrated readout to the mean nats per token of each fold.

    Args:
        loss: LossCoefficients or a custom loss.
        states: scoring.HiddenStates.
        fold_of: function of positions (n,) in the split that returns the fold of each, from 0; None = one fold.
        with_uniform: if False, mix is 0.

    Returns:
        A Calibration. u is 0 if the link predicts no better than the uniform distribution.
    """
    fold = fold_numbers(states, fold_of)
    visited = search(loss, states, fold, fold_of, with_uniform)
    for number in range(MAX_PASSES):
        # if the model fails, halving the intervals still converges
        proposed = [propose(points, halve=number % 2 == 1) for points in visited]
        if not any(proposed):
            break
        states.description = f'calibrating, pass {number + 2}'
        evaluate(loss, states, fold, proposed, visited, with_uniform)
    best = [min(points, key=points.get) for points in visited]
    nats, mix = np.array([points[t] for t, points in zip(best, visited, strict=True)]).T
    u = np.exp(best)
    useless = ~(nats < math.log(states.C) - TOLERANCE)  # or the model is damaged, which shows when it is scored
    u[useless], mix[useless], nats[useless] = 0, 0, math.log(states.C)
    return Calibration(u, mix, nats, not any(proposed))


def fold_numbers(states, fold_of):
    """Return the fold (n,) of each token of the states."""
    return np.zeros(states.n_tokens, np.int64) if fold_of is None else fold_of(states.positions())


def search(loss, states, fold, fold_of, with_uniform):
    """Evaluate u on a wide grid and near its lowest minima. Return the points {log u: (nats, mix)} of each fold.

    If only a part of the tokens was searched, these are the points around its minima, evaluated on all tokens.
    """
    few = states.subset(min(SEARCH_TOKENS, max(1024, SEARCH_LOGITS // states.C)))
    few_fold = fold_numbers(few, fold_of)
    folds = fold.max() + 1
    if np.bincount(few_fold, minlength=folds).min() < len(few_fold) / (4 * folds):  # a story can be longer than `few`
        few, few_fold = states, fold
    few.description = 'calibrating, search'
    found = [{} for _ in range(folds)]
    grid = wide_grid(loss, few, step=link.LN2 / 2 if few is states else link.LN2)
    evaluate(loss, few, few_fold, [grid] * folds, found, with_uniform)
    near = [[t + step for t in local_minima(points)[:MAX_MINIMA] for step in AROUND_GRID_POINT] for points in found]
    evaluate(loss, few, few_fold, near, found, with_uniform)
    if few is states:
        return found
    visited, nodes = [{} for _ in range(folds)], []
    for points in found:
        starts = local_minima(points)[:MAX_MINIMA]
        nodes.append([t + step for t in starts if points[t][0] < points[starts[0]][0] + KEPT for step in AROUND_START])
    states.description = 'calibrating, pass 1'
    evaluate(loss, states, fold, nodes, visited, with_uniform)
    return visited


def local_minima(points):
    """Return the log u whose nats are not above their neighbors', the lowest first. points: {log u: (nats, mix)}"""
    t = sorted(points)
    nats = [math.inf, *(points[x][0] for x in t), math.inf]
    found = [x for i, x in enumerate(t, 1) if nats[i] < nats[i - 1] and nats[i] <= nats[i + 1]]
    return sorted(found, key=points.get) or t[:1]


def propose(points, halve):
    """Return log u to evaluate next, or [] if no minimum among the points {log u: (nats, mix)} can be much lower.

    The nats of a parabola fall below those of a point by at most a quarter of the larger rise to its neighbors, if
    these are higher and equally far. A minimum that could so become the lowest is refined: at the minimum of the
    polynomial through the five nearest points, or, with `halve`, in the middle between it and its neighbors.
    """
    points = {t: value for t, value in points.items() if math.isfinite(value[0])}
    t = np.array(sorted(points))
    nats = np.array([points[x][0] for x in t])
    nodes = []
    for minimum in local_minima(points)[:MAX_MINIMA]:
        i = int(np.searchsorted(t, minimum))
        if i in (0, len(t) - 1):  # an edge: go on if it is the best point, unless the nats are flat there
            outward = math.log(2) if i else -math.log(2)
            inner = nats[abs(t - t[i]) >= abs(outward) / 2]
            if nats[i] == nats.min() and not (len(inner) and inner.min() - nats[i] < TOLERANCE / 4):
                nodes += [t[i] + outward, t[i] + 2 * outward, t[i] + 4 * outward]
            continue
        left, right = t[i] - t[i - 1], t[i + 1] - t[i]
        gain = max((nats[i - 1] - nats[i]) * right / left, (nats[i + 1] - nats[i]) * left / right) \
            * max(left, right) / (2 * (left + right))
        if nats[i] - gain > nats.min() - TOLERANCE or min(left, right) < 1e-5:
            continue
        if halve:
            nodes += [t[i] - left / 2, t[i] + right / 2]
            continue
        low = min(max(i - 2, 0), max(len(t) - 5, 0))
        near = slice(low, low + 5)
        x = np.linspace(-left, right, 2001)
        model, _ = np.polynomial.Polynomial.fit(t[near] - t[i], nats[near], len(t[near]) - 1, full=True)
        nodes += [t[i] + x[model(x).argmin()] + step for step in AROUND_ESTIMATE]
    return nodes


def evaluate(loss, states, fold, nodes, visited, with_uniform):
    """Add to the points of each fold, visited[k] = {log u: (nats, mix)}, those at log u = nodes[k]."""
    nodes = [own or [min(points, key=points.get)] for own, points in zip(nodes, visited, strict=True)]
    most = max(map(len, nodes))
    nodes = np.array([own + own[-1:] * (most - len(own)) for own in nodes])  # all folds need equally many
    log_q = target_log_q(loss, states, np.exp(nodes), fold)
    for k, points in enumerate(visited):
        values = log_q[torch.from_numpy(fold == k)].double()
        mix = best_mix(values, states.C) if with_uniform else torch.zeros(most, dtype=torch.float64)
        nats = -torch.logaddexp(values + torch.log1p(-mix), torch.log(mix / states.C)).mean(0)
        nats[nats.isnan()] = math.inf
        points.update(zip(nodes[k].tolist(), zip(nats.tolist(), mix.tolist(), strict=True), strict=True))


def best_mix(log_q, C):
    """Return the mix (K,) with the lowest mean of -log((1 - mix) q + mix / C) over the tokens, for log q (n, K), but at
    least MIN_MIX.

    The mean is convex in mix: bisection of the sign of its derivative, in the logit of mix.
    """
    q = log_q.exp()
    slope = 1 / C - q
    low, high = torch.full_like(q[0], math.log(MIN_MIX)), torch.full_like(q[0], 30)
    for _ in range(32):
        middle = (low + high) / 2
        ascending = (slope / (slope * torch.sigmoid(middle) + q)).mean(0) < 0
        low, high = torch.where(ascending, low, middle), torch.where(ascending, middle, high)
    return torch.sigmoid((low + high) / 2)


@torch.no_grad()
def target_log_q(loss, states, u, fold):
    """Return log(link^u / Z) of the true classes, (n, K) on the CPU, in the order of states.positions().

    Args:
        u: (folds, K), inverse temperatures.
        fold: (n,), the fold of each token.
    """
    result, step = torch.zeros(states.n_tokens, u.shape[1]), np.diff(u)
    equally_spaced = u.shape[1] > 2 and np.allclose(step, step[:, :1], rtol=1e-6, atol=0)
    for batch in states:
        tokens = slice(batch.first, batch.first + len(batch.targets))
        batch_u = torch.from_numpy(u[fold[tokens]]).to(batch.hidden)
        parts, thresholds = [], []
        for part, logits in link.logit_blocks(batch.hidden, states.weight):
            x, tau = link.log2_link(loss, logits, None if batch.thresholds is None else batch.thresholds[part])
            thresholds.append(tau)
            x_y = x.gather(1, batch.targets[part][:, None])
            Z = normalizers(x, batch_u[part], equally_spaced)
            parts.append((x_y * batch_u[part] - Z.log2_()) * link.LN2)
        result[tokens] = torch.cat(parts).cpu()
        if thresholds[0] is not None:
            batch.thresholds = torch.cat(thresholds)
    return distributed.all_reduce_sum(result)


def normalizers(x, u, equally_spaced):
    """Return the sums of 2^(u x) over the classes, (n, K), for x (n, C), which may be overwritten, and u (n, K)."""
    columns = u.split(1, 1)
    power = x * columns[0]
    sums = [power.exp2_().sum(-1)]
    if equally_spaced:  # a product takes a third of the time of a power
        factor = x.mul_(columns[1] - columns[0]).exp2_()
    for column in columns[1:]:
        power = power.mul_(factor) if equally_spaced else torch.mul(x, column, out=power).exp2_()
        sums.append(power.sum(-1))
    return torch.stack(sums, 1)


@torch.no_grad()
def wide_grid(loss, states, step):
    """Return equally spaced log u, such that u times the standard deviation of the log link is from well below 1 to
    well above 1 for every token. The standard deviation is over the classes that the link does not set to 0."""
    spread = torch.zeros(states.n_tokens)
    for batch in states:
        blocks = link.logit_blocks(batch.hidden, states.weight)
        values = torch.cat([spread_of(link.log2_link(loss, logits)[0] * link.LN2) for _, logits in blocks])
        spread[batch.first:batch.first + len(values)] = values.cpu()
    spread = distributed.all_reduce_sum(spread)
    spread = spread[(spread > 0) & spread.isfinite()].log()
    if not len(spread):  # constant logits, or a damaged model
        return [0.0]
    spread = spread[(spread - spread.median()).abs() <= math.log(MAX_RATIO)]
    low, high = -spread.max().item(), -spread.min().item()
    return np.arange(low - BELOW * link.LN2, high + ABOVE * link.LN2, step).tolist()


def spread_of(x):
    """Return the standard deviation (n,) of each row of x (n, C), without the entries at link.LOG_ZERO."""
    kept = ((x - link.LOG_ZERO).abs() > 1e-3).float()
    count = kept.sum(-1)
    mean = (x * kept).sum(-1) / count
    return ((x - mean[:, None]).square() * kept).sum(-1).div(count).sqrt()


def fit_softmax_temperature(states):
    """Return (T, mean nats per token at T) for the temperature T at which softmax(f / T) has the fewest nats. T is
    infinite if no temperature is better than the uniform distribution."""
    fitted = fit_calibration(losses.cross_entropy(states.C), states, with_uniform=False)
    u = float(fitted.inverse_temperature[0])
    return 1 / u if u else math.inf, float(fitted.nats[0])
