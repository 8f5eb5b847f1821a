"""Fit the calibrated readout: an inverse temperature u = 1/T and a share of the uniform distribution.

    p = (1 - mix) * link^u / Z + mix / C

Both are the same for every loss. For a loss whose link is softmax, a share of softmax would be redundant at u = 1. The
uniform distribution needs no data, keeps the order of the classes, and bounds the nats of a single token.

For a fixed u, the nats are convex in mix, so mix is found by bisection. What is left is a function of u alone. It can
have several minima, so it is searched on a wide grid and then refined. It is always evaluated exactly, at several u
in each pass over the tokens; the best u that was evaluated is returned.

Shapes: n tokens, K inverse temperatures, C classes.
"""
import math
from typing import NamedTuple

import numpy as np
import torch

import losses
from nanoloss import distributed, link

FIT_TOKENS = 2**18    # at most about as many tokens of val.bin are used; more would gain less than 1e-5 nats
SEARCH_TOKENS = 1024  # as many of them are used to find the start
FIRST_STEPS = (-0.18, -0.12, -0.06, 0, 0.06, 0.12, 0.18)  # around a start, relative
TOLERANCE = 2e-6      # nats per token
MAX_PASSES = 10


class Calibration(NamedTuple):
    """A pair of parameters for each fold of tokens."""
    inverse_temperature: np.ndarray  # (folds,)
    mix: np.ndarray                  # (folds,)
    nats: np.ndarray                 # (folds,), mean per token of the fold
    converged: bool                  # False if MAX_PASSES ended the fit


def fit_calibration(loss, states, fold=None, with_uniform=True):
    """Fit the calibrated readout to the mean nats per token of each fold.

    Args:
        loss: LossCoefficients or a custom loss.
        states: scoring.HiddenStates.
        fold: (n,), the fold of each token in the order of states.positions(), from 0; None = one fold.
        with_uniform: if False, mix is 0.

    Returns:
        A Calibration. u is 0 if the link predicts no better than the uniform distribution.
    """
    C = states.C
    fold = np.zeros(states.n_tokens, np.int64) if fold is None else fold
    folds = int(fold.max()) + 1
    starts = find_starts(loss, states.subset(SEARCH_TOKENS), with_uniform)
    if not starts:  # constant logits, or a damaged model, which shows when it is scored
        return Calibration(np.zeros(folds), np.zeros(folds), np.full(folds, math.log(C)), True)
    visited = [{} for _ in range(folds)]  # of each fold: {log u: (nats, mix)}
    nodes = [[t + math.log1p(step) for t in starts for step in FIRST_STEPS]] * folds
    for number in range(1, MAX_PASSES + 1):
        states.description = f'calibrating, pass {number}'
        evaluate(loss, states, fold, nodes, visited, with_uniform)
        proposed = [propose(points) for points in visited]
        if not any(proposed):
            break
        # all folds get equally many nodes: at first one, because it is usually the minimum
        count = 1 if number == 1 else 3
        nodes = [(new + [min(points, key=points.get)] * 3)[:count]
                 for new, points in zip(proposed, visited, strict=True)]
    best = [min(points, key=points.get) for points in visited]
    nats, mix = np.array([points[t] for t, points in zip(best, visited, strict=True)]).T
    u = np.exp(best)
    useless = ~(nats < math.log(C) - 1e-9)  # also if they are not finite
    u[useless], mix[useless], nats[useless] = 0, 0, math.log(C)
    return Calibration(u, mix, nats, not any(proposed))


def find_starts(loss, states, with_uniform):
    """Return log u of one or two starts: the lowest minima over a grid of u on a few tokens, refined there."""
    fold, visited = np.zeros(states.n_tokens, np.int64), [{}]
    states.description = 'calibrating, search'
    spread = typical_spread(loss, states)
    if not (math.isfinite(spread) and spread > 0):
        return []
    evaluate(loss, states, fold, [(np.arange(-5, 7) * math.log(2) - math.log(spread)).tolist()], visited, with_uniform)
    points = visited[0]
    starts = local_minima(points)[:2]
    near = [t + math.log(2) * step / 4 for t in starts for step in (-3, -2, -1, 1, 2, 3)]
    evaluate(loss, states, fold, [near], visited, with_uniform)
    if not np.isfinite([value[0] for value in points.values()]).all():
        return []
    lowest = local_minima(points)
    return [t for t in lowest[:2] if points[t][0] < points[lowest[0]][0] + 0.05]


def local_minima(points):
    """Return the log u whose nats are not above their neighbors', the lowest first. points: {log u: (nats, mix)}"""
    t = sorted(points)
    nats = [math.inf, *(points[x][0] for x in t), math.inf]
    found = [x for i, x in enumerate(t, 1) if nats[i] < nats[i - 1] and nats[i] <= nats[i + 1]]
    return sorted(found, key=points.get)


def propose(points):
    """Return up to three log u to evaluate next, or [] if the best of the points {log u: (nats, mix)} is a minimum.

    Between the neighbors of the best point, the nats are modeled by the polynomial through the five nearest points.
    Halving both intervals as well makes the search converge where the model is wrong.
    """
    t = np.array(sorted(points))
    nats = np.array([points[x][0] for x in t])
    i = int(nats.argmin())
    if not np.isfinite(nats).all():
        return []
    if i in (0, len(t) - 1):  # an edge: go on, unless the nats are flat there
        outward = math.log(2) if i else -math.log(2)
        inner = nats[abs(t - t[i]) >= abs(outward) / 2]
        if len(inner) and inner.min() - nats[i] < TOLERANCE:
            return []
        return [t[i] + outward / 2, t[i] + outward, t[i] + 2 * outward]
    low = min(max(i - 2, 0), max(len(t) - 5, 0))
    near = slice(low, low + 5)
    scale = t[i + 1] - t[i - 1]
    x = np.linspace(t[i - 1], t[i + 1], 2001)
    model = np.polynomial.Polynomial.fit((t[near] - t[i]) / scale, nats[near], len(t[near]) - 1)((x - t[i]) / scale)
    if model.min() > nats[i] - TOLERANCE or scale < 1e-6:
        return []
    return [x[model.argmin()], (t[i - 1] + t[i]) / 2, (t[i] + t[i + 1]) / 2]


def evaluate(loss, states, fold, nodes, visited, with_uniform):
    """Add to the points of each fold, visited[k] = {log u: (nats, mix)}, those at log u = nodes[k]."""
    nodes = np.array(nodes)  # (folds, K)
    log_q = target_log_q(loss, states, np.exp(nodes), fold)
    for k, points in enumerate(visited):
        values = log_q[torch.from_numpy(fold == k)].double()
        mix = best_mix(values, states.C) if with_uniform else torch.zeros(nodes.shape[1], dtype=torch.float64)
        nats = -torch.logaddexp(values + torch.log1p(-mix), torch.log(mix / states.C)).mean(0)
        points.update(zip(nodes[k].tolist(), zip(nats.tolist(), mix.tolist(), strict=True), strict=True))


def best_mix(log_q, C):
    """Return the mix (K,) with the lowest mean of -log((1 - mix) q + mix / C) over the tokens, for log q (n, K).

    The mean is convex in mix: bisection of the sign of its derivative, in the logit of mix.
    """
    q = log_q.exp()
    slope = 1 / C - q
    low, high = torch.full_like(q[0], -30), torch.full_like(q[0], 30)
    for _ in range(32):
        middle = (low + high) / 2
        ascending = (slope / (slope * torch.sigmoid(middle) + q)).mean(0) < 0
        low, high = torch.where(ascending, low, middle), torch.where(ascending, middle, high)
    mix = torch.sigmoid((low + high) / 2)
    return torch.where(mix < 1e-12, 0, torch.where(mix > 1 - 1e-12, 1, mix))


@torch.no_grad()
def target_log_q(loss, states, u, fold):
    """Return log(link^u / Z) of the true classes, (n, K) on the CPU, in the order of states.positions().

    Args:
        u: (folds, K), inverse temperatures.
        fold: (n,), the fold of each token.
    """
    result, step = torch.zeros(states.n_tokens, u.shape[1]), np.diff(u)
    equally_spaced = u.shape[1] > 2 and np.allclose(step, step[:, :1], rtol=1e-6)
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
def typical_spread(loss, states):
    """Return the median of the standard deviation of the log link over the classes, for some tokens."""
    spread = torch.zeros(1)
    for batch in states:
        if batch.first == 0:  # on one rank
            _, logits = next(link.logit_blocks(batch.hidden, states.weight))
            spread += link.log2_link(loss, logits)[0].std(-1).median().cpu() * link.LN2
    return distributed.all_reduce_sum(spread).item()


def fit_softmax_temperature(states):
    """Return (T, mean nats per token at T) for the temperature T at which softmax(f / T) has the fewest nats. T is
    infinite if no temperature is better than the uniform distribution."""
    fitted = fit_calibration(losses.cross_entropy(states.C), states, with_uniform=False)
    u = float(fitted.inverse_temperature[0])
    return 1 / u if u else math.inf, float(fitted.nats[0])
