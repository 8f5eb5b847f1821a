"""A model and the tokens of a split -> figures of every token, in three readings of the logits.

Everything runs in float32, whatever the model was trained in, and no more than a chunk of logits
is ever held. N tokens, C classes, d the model's width.
"""
import numpy as np
import torch
import torch.nn.functional as F

import bins
import losses
import processes

KEEP = 2**31     # bytes of hidden states that are kept from one pass over a split to the next
READINGS = ('softmax', 'link', 'fitted')


class HiddenStates:
    """Iterable as often as asked for: (positions, hidden (n, d), targets (n,)), a chunk of tokens at a
    time, where positions (n,) are those of the targets in the split. Each of torchrun's processes has
    a part of the batches; the functions below put the parts together.

    windows: of bins.story_windows or bins.block_windows. Kept in memory after the first pass if they
    are few, N d floats; otherwise each pass makes them anew. bar: wraps the iterable of batches.
    """

    def __init__(self, model, tokens, windows, eot, batch_size, bar=lambda batches, about: batches):
        self.model, self.tokens, self.eot, self.bar = model.eval(), tokens, eot, bar
        # windows of like length go together, so that little is padding
        windows = windows[np.argsort(-windows[:, 1], kind='stable')]
        batches = [windows[i:i + batch_size] for i in range(0, len(windows), batch_size)]
        self.batches = batches[processes.rank::processes.world]
        self.C, self.weight = model.config.vocab_size, model.lm_head.weight[:model.config.vocab_size].detach().float()
        self.rows = losses.chunk_rows(self.C, self.weight.device)
        self.keep = windows[:, 2].sum() * model.config.n_embd * 4 <= KEEP
        self.kept = None
        self.about = 'reading'  # what the next pass is for

    def __iter__(self):
        made = []
        for batch in self.bar(self.kept or self.batches, self.about):
            positions, hidden, targets = batch if self.kept else self.run(batch)
            if self.keep:
                made.append((positions, hidden, targets))
            for i in range(0, len(positions), self.rows):
                part = slice(i, i + self.rows)
                yield positions[part], hidden[part], targets[part]
        self.kept = made

    @torch.no_grad()
    def run(self, batch):
        T = batch[:, 1].max()
        tokens = bins.unchanged(self.tokens)
        x = np.full((len(batch), T + 1), self.eot, np.int64)  # padding comes last, where no token sees it
        for row, (start, length, _) in zip(x, batch, strict=True):
            row[int(start == 0):length + 1] = tokens[max(0, start - 1):start + length]
        start, length, scored = batch.T[:, :, None]
        column = np.arange(T)
        counts = (column < length) & (column >= length - scored)
        device = self.weight.device
        x, mask = torch.from_numpy(x).to(device), torch.from_numpy(counts).to(device)
        return (start + column)[counts], self.model(x[:, :-1])[mask].float(), x[:, 1:][mask]


@torch.no_grad()
def measure(loss, states, n_tokens, mix, temperature):
    """Figures of each token: {'objective', 'link_sum', 'link_negative', 'times'} and, of each reading,
    {'nats', 'confidence', 'brier', 'rank'}: arrays (n_tokens,) in the order of the split.

    mix, temperature: (n_tokens,), the fitted reading's at each token. rank: how many tokens the
    reading puts above or level with the true one. link_sum and link_negative: the sum over
    classes of the link as derived, before its completion, and of its negative part; NaN for a
    loss outside the family. times: how often the token was scored.
    """
    figures = {name: np.full(n_tokens, np.nan, np.float32) for name in ('objective', 'link_sum', 'link_negative')}
    figures['times'] = np.zeros(n_tokens, np.int64)
    for name in READINGS:
        figures[name] = {key: np.full(n_tokens, np.nan, np.float32) for key in ('nats', 'confidence', 'brier', 'rank')}
    C, W = states.C, states.weight
    family, of_softmax = isinstance(loss, losses.Family), losses.is_softmax(loss)
    states.about = 'reading'
    for at, h, y in states:
        logits = F.linear(h, W)
        figures['times'][at] += 1
        figures['objective'][at] = losses.objectives(loss, h, W, logits, y, C).cpu()
        if family and of_softmax:
            figures['link_sum'][at], figures['link_negative'][at] = 1, 0
        elif family:
            above, below = losses.ratio(loss, logits, F.softmax(logits, dim=-1))
            raw = above / below
            figures['link_sum'][at], figures['link_negative'][at] = raw.sum(-1).cpu(), raw.clamp_(max=0).sum(-1).cpu()
        # every reading of the family keeps the logits' order, also where its own digits run out
        rank = level_or_above(logits, y) - 1 if family else None
        fitted = [torch.from_numpy(x[at]).to(logits)[:, None] for x in (mix, temperature)]
        for name, how in zip(READINGS, [(1.0,), (losses.MIX,), fitted], strict=True):
            here = figures[name]
            if name == 'link' and of_softmax:  # the same once more
                for key in here:
                    here[key][at] = figures['softmax'][key][at]
                continue
            p, nats = losses.read(loss, logits, y, *how)
            here['rank'][at] = (level_or_above(p, y) - 1 if rank is None else rank).cpu()
            here['nats'][at] = nats.cpu()
            here['confidence'][at] = p.max(-1).values.cpu()
            here['brier'][at] = ((p * p).sum(-1) - 2 * p.gather(1, y[:, None])[:, 0] + 1).cpu()
    if processes.world > 1:
        mine = figures['times'] > 0
        figures['times'] = everyones(figures['times'])
        for part in (figures, *(figures[name] for name in READINGS)):
            for key in sorted(part.keys() - {'times', *READINGS}):  # in one order in all processes
                part[key] = np.where(figures['times'] > 0, everyones(np.where(mine, part[key], 0)), np.nan)
    return figures


def level_or_above(order, y):
    """How many entries of each row of order (n, C) are no less than that of y (n,), itself among them."""
    return (order >= order.gather(1, y[:, None])).sum(-1)


def everyones(x):
    """The sum over all processes of an array: what each has found, zero elsewhere."""
    return processes.total(torch.from_numpy(x)).numpy()


def fit(loss, states, fold, max_passes=15):
    """T and mix of the fitted reading for each fold of tokens: arrays (folds,), (folds,).

    fold (N,): ids from 0. Each pair minimises the mean nats of its own fold's tokens. A pass over
    the split finds every token's log q_y, q = link^(1/T) / Z, and its first two derivatives in
    u = 1/T (l_y - E_q l and -Var_q l, with l = log link); between passes u and mix are optimised
    together on that parabola, where mix is exact. Newton's method, so four or five passes do.
    """
    folds = int(fold.max()) + 1
    u, mix = np.ones(folds), np.full(folds, losses.MIX)
    for number in range(1, max_passes + 1):
        tokens = np.zeros((5, len(fold)))  # the first says which are scored
        states.about = f'fitting, pass {number}'
        for at, h, y in states:
            with torch.no_grad():
                logits = F.linear(h, states.weight)
                log_softmax = -F.cross_entropy(logits, y, reduction='none')
                ell = losses.log_link(loss, logits)
                of_target = ell.gather(1, y[:, None])[:, 0].clone()
                here = torch.from_numpy(u[fold[at]]).to(logits)
                log_q = losses.tempered(ell, 1 / here[:, None])
                log_q_y = log_q.gather(1, y[:, None])[:, 0]
                q = log_q.exp_()
                mean = (q * ell).sum(-1)
                variance = (q * ell.sub_(mean[:, None]).square_()).sum(-1)
                tokens[0, at] = 1
                tokens[1:, at] = torch.stack([log_softmax, log_q_y, of_target - mean, -variance]).cpu()
        tokens = everyones(tokens)
        if not np.isfinite(tokens).all():  # a broken model, as measure shows
            break
        gains = [_step(tokens[1:, (fold == k) & (tokens[0] == 1)], u, mix, k) for k in range(folds)]
        if max(gains) < 1e-7:
            break
    return 1 / u, mix


@torch.no_grad()
def softmax_temperature(states, max_passes=40):
    """(T, the mean nats a token there): the temperature at which softmax(f / T) does best on all tokens.

    Newton's method in u = 1/T, in which the nats are convex: their derivatives are E_q f - f_y and Var_q f.
    """
    u, nats, step = 1.0, float('inf'), 0.0  # the best u until now, what it gives, the step that led there
    for number in range(1, max_passes + 1):
        trial = u + step
        sums, n = torch.zeros(3, dtype=torch.float64), 0
        states.about = f'fitting the temperature, pass {number}'
        for _, h, y in states:
            logits = F.linear(h, states.weight)
            log_q = F.log_softmax(trial * logits, dim=-1)
            q, of_target = log_q.exp(), logits.gather(1, y[:, None])[:, 0]
            mean = (q * logits).sum(-1)
            variance = (q * (logits - mean[:, None]).square_()).sum(-1)
            sums += torch.stack([-log_q.gather(1, y[:, None])[:, 0], mean - of_target, variance]).double().sum(1).cpu()
            n += len(y)
        found, slope, curvature = (sums / n).tolist()
        if found < nats:
            u, nats = trial, found
            step = float(np.clip(u - slope / max(curvature, 1e-12), u / 3, u * 3)) - u
        else:  # too far (or a broken model): the nats are convex, so half of the way is downhill some time
            step /= 2
        if abs(step) < 1e-5 * u:
            break
    return 1 / u, nats


def _step(tokens, u, mix, k):
    """Move u[k] and mix[k] to the optimum of the parabolas of tokens (4, n); the nats gained by it.

    Newton's method in (u, logit of mix), every step downhill.
    """
    log_softmax, log_q, slope, curvature = tokens

    def at(x):  # mean nats, and the parts of their derivatives
        step = x[0] - u[k]
        log_a = log_q + step * (slope + 0.5 * curvature * step) - np.logaddexp(0, x[1])
        log_p = np.logaddexp(log_a, log_softmax - np.logaddexp(0, -x[1]))
        return -log_p.mean(), np.exp(log_a - log_p), slope + curvature * step

    x = np.array([u[k], np.log(mix[k] / (1 - mix[k]))])
    value, share, rise = at(x)  # share: of the link in p
    start = value
    for _ in range(50):
        m = 1 / (1 + np.exp(-x[1]))
        gradient = -np.array([(share * rise).mean(), (1 - m - share).mean()])
        both = share * (1 - share)
        cross = (both * rise).mean()
        hessian = -np.array([[(share * curvature + both * rise * rise).mean(), -cross],
                             [-cross, both.mean() - m * (1 - m)]])
        sizes, axes = np.linalg.eigh(hessian)
        move = -axes @ (axes.T @ gradient / np.maximum(abs(sizes), 1e-9))
        move *= min(1, 2 / max(abs(move[1]), 1e-9))
        move[0] = np.clip(x[0] + move[0], u[k] / 1.6, u[k] * 1.6) - x[0]  # the parabolas hold near u only
        move[1] = np.clip(x[1] + move[1], -14, 14) - x[1]
        while abs(move).max() > 1e-9 and (trial := at(x + move))[0] >= value:
            move /= 2
        if abs(move).max() <= 1e-9:
            break
        x, (value, share, rise) = x + move, trial
    u[k], mix[k] = x[0], 1 / (1 + np.exp(-x[1]))
    return start - value
