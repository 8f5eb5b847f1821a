"""Score every token of a split in the three readouts, and fit the calibrated one.

Everything is computed in float32, whatever dtype the model was trained in. At most one chunk of logits is held in
memory at a time. Under torchrun, each rank scores its share of the batches and the results are all-reduced.

Shapes: N tokens in the split, n tokens in a chunk, C classes, d the width of the model.
"""
import numpy as np
import torch
import torch.nn.functional as F

import losses
from nanoloss import dataloader, distributed, link

MAX_CACHE = 2**31  # bytes of hidden states that are cached between two passes over a split
READOUTS = ('softmax', 'link', 'calibrated')


def no_progress(batches, description):
    return batches


class HiddenStates:
    """An iterable over the hidden states of a split, in chunks of tokens. It can be iterated over many times.

    Each chunk is a tuple (positions, hidden, targets): positions (n,) of the target tokens in the split, hidden
    states (n, d) in float32, and target ids (n,). If they take at most MAX_CACHE bytes, the hidden states are cached
    in the first pass; otherwise each pass runs the model again. Each rank iterates over its own share.

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
        self.model, self.tokens, self.eot, self.progress = model.eval(), tokens, eot, progress
        # sorted by length, so that a batch has little padding
        windows = windows[np.argsort(-windows[:, 1], kind='stable')]
        batches = [windows[i:i + batch_size] for i in range(0, len(windows), batch_size)]
        self.batches = batches[distributed.rank::distributed.world_size]
        self.C, self.weight = model.config.vocab_size, model.lm_head.weight[:model.config.vocab_size].detach().float()
        self.rows = losses.chunk_rows(self.C, self.weight.device)
        self.fits_cache = windows[:, 2].sum() * model.config.n_embd * 4 <= MAX_CACHE
        self.cache = None
        self.description = 'scoring'  # of the next pass, for the progress bar

    def __iter__(self):
        computed = []
        if not self.cache:
            dataloader.check_unchanged(self.tokens)
        for batch in self.progress(self.cache or self.batches, self.description):
            positions, hidden, targets = batch if self.cache else self.forward(batch)
            if self.fits_cache:
                computed.append((positions, hidden, targets))
            for i in range(0, len(positions), self.rows):
                chunk = slice(i, i + self.rows)
                yield positions[chunk], hidden[chunk], targets[chunk]
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

    Attributes: tokens, bounds (n_units + 1,), unit (N,), which is -1 for a token that is not scored, scored (N,),
    n_units, and states (HiddenStates).
    """

    def __init__(self, model, tokens, eot, batch_size, stride, progress=no_progress):
        block_size = model.config.block_size
        if stride is None:
            windows = dataloader.block_windows(len(tokens), block_size)
            bounds = np.append(windows[:, 0], len(tokens))
        else:
            bounds = dataloader.story_bounds(tokens, eot)
            windows = dataloader.story_windows(bounds, block_size, stride)
        self.tokens, self.bounds, self.n_units = tokens, bounds, len(bounds) - 1
        self.unit = np.repeat(np.arange(-1, self.n_units), np.diff(bounds, prepend=0))
        self.scored = self.unit >= 0
        self.states = HiddenStates(model, tokens, windows, eot or 0, batch_size, progress)

    def sum_per_unit(self, values):
        """Sum values of the scored tokens (n,) over each unit: (n_units,), float64."""
        return np.bincount(self.unit[self.scored], values, self.n_units)

    def positions(self):
        """Position of each scored token in its unit, from 1: (n,)."""
        return (np.arange(len(self.tokens)) - self.bounds[self.unit])[self.scored] + 1

    def text_bytes(self, tokenizer):
        """Bytes of text in each unit, without the end-of-text tokens: (n_units,)."""
        length = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
        length[tokenizer.eot] = 0
        return self.sum_per_unit(length[self.tokens[self.scored]])


@torch.no_grad()
def score_tokens(loss, states, n_tokens, mix, temperature):
    """Score every token of a split.

    Args:
        loss: LossCoefficients or a custom loss.
        states: HiddenStates of the split.
        n_tokens: N.
        mix, temperature: (N,), the calibration to use for each token.

    Returns:
        A dict of arrays (N,), NaN for tokens that no window scores:

        - 'objective': the training loss;
        - 'link_sum', 'link_negative': sum over classes of the link before its projection, and of its negative part;
          NaN for a custom loss;
        - 'times_scored': how often the token was scored;
        - for each readout, a dict with 'nats', 'confidence' (the largest probability), 'brier' and 'rank' (number of
          other tokens that are at least as probable as the true one).
    """
    figures = {name: np.full(n_tokens, np.nan, np.float32) for name in ('objective', 'link_sum', 'link_negative')}
    figures['times_scored'] = np.zeros(n_tokens, np.int64)
    for name in READOUTS:
        figures[name] = {key: np.full(n_tokens, np.nan, np.float32) for key in ('nats', 'confidence', 'brier', 'rank')}
    C, W = states.C, states.weight
    built_in, softmax_link = isinstance(loss, losses.LossCoefficients), link.has_softmax_link(loss)
    states.description = 'scoring'
    for i, h, y in states:
        logits = F.linear(h, W)
        figures['times_scored'][i] += 1
        figures['objective'][i] = link.token_objective(loss, h, W, logits, y, C).cpu()
        if built_in and softmax_link:
            figures['link_sum'][i], figures['link_negative'][i] = 1, 0
        elif built_in:
            numerator, denominator = link.link_ratio(loss, logits, F.softmax(logits, dim=-1))
            ratio = numerator / denominator
            figures['link_sum'][i], figures['link_negative'][i] = ratio.sum(-1).cpu(), ratio.clamp_(max=0).sum(-1).cpu()
        # every readout of a built-in loss keeps the order of the logits, even where its own digits run out
        rank = count_not_below(logits, y) - 1 if built_in else None
        calibration = [torch.from_numpy(x[i]).to(logits)[:, None] for x in (mix, temperature)]
        for name, parameters in zip(READOUTS, [(1.0,), (link.LINK_MIX,), calibration], strict=True):
            readout = figures[name]
            if name == 'link' and softmax_link:  # same as the softmax readout
                for key in readout:
                    readout[key][i] = figures['softmax'][key][i]
                continue
            p, nll = link.token_probs(loss, logits, y, *parameters)
            readout['rank'][i] = (count_not_below(p, y) - 1 if rank is None else rank).cpu()
            readout['nats'][i] = nll.cpu()
            readout['confidence'][i] = p.max(-1).values.cpu()
            readout['brier'][i] = ((p * p).sum(-1) - 2 * p.gather(1, y[:, None])[:, 0] + 1).cpu()
    if distributed.world_size > 1:
        scored_here = figures['times_scored'] > 0  # on this rank
        figures['times_scored'] = all_reduce_array(figures['times_scored'])
        scored = figures['times_scored'] > 0
        for part in (figures, *(figures[name] for name in READOUTS)):
            for key in sorted(part.keys() - {'times_scored', *READOUTS}):  # the same order on every rank
                part[key] = np.where(scored, all_reduce_array(np.where(scored_here, part[key], 0)), np.nan)
    return figures


def count_not_below(x, y):
    """Return (n,): the number of entries of each row of x (n, C) that are >= the entry at y (n,), including it."""
    return (x >= x.gather(1, y[:, None])).sum(-1)


def all_reduce_array(x):
    """Return the sum of an array over all ranks."""
    return distributed.all_reduce_sum(torch.from_numpy(x)).numpy()


def fit_calibration(loss, states, fold, max_passes=15):
    """Fit the temperature and the softmax mix of the calibrated readout, a pair for each fold of tokens.

    Each pair minimizes the mean nats per token of its fold. With l = log link, u = 1/temperature and
    q = link^u / Z, each pass over the split computes log q_y of every token and its first two derivatives in u,
    l_y - E_q l and -Var_q l. Between passes, u and mix are optimized jointly on this quadratic model of log q_y; the
    dependence on mix is exact. Four or five passes suffice.

    Args:
        loss: LossCoefficients or a custom loss.
        states: HiddenStates of the split.
        fold: (N,), the fold of each token, from 0.
        max_passes: maximum number of passes over the split.

    Returns:
        (temperature, mix): two arrays (folds,).
    """
    folds = int(fold.max()) + 1
    u, mix = np.ones(folds), np.full(folds, link.LINK_MIX)
    for number in range(1, max_passes + 1):
        # per token: whether it is scored, log softmax_y, log q_y, and the first and second derivative of log q_y
        tokens = np.zeros((5, len(fold)))
        states.description = f'calibrating, pass {number}'
        for i, h, y in states:
            with torch.no_grad():
                logits = F.linear(h, states.weight)
                log_softmax = -F.cross_entropy(logits, y, reduction='none')
                log_link = link.log_link(loss, logits)
                log_link_y = log_link.gather(1, y[:, None])[:, 0].clone()
                token_u = torch.from_numpy(u[fold[i]]).to(logits)
                log_q = link.log_tempered(log_link, 1 / token_u[:, None])
                log_q_y = log_q.gather(1, y[:, None])[:, 0]
                q = log_q.exp_()
                mean = (q * log_link).sum(-1)
                variance = (q * log_link.sub_(mean[:, None]).square_()).sum(-1)
                tokens[0, i] = 1
                tokens[1:, i] = torch.stack([log_softmax, log_q_y, log_link_y - mean, -variance]).cpu()
        tokens = all_reduce_array(tokens)
        if not np.isfinite(tokens).all():  # a damaged model; score_tokens shows it
            break
        gains = [_calibration_step(tokens[1:, (fold == k) & (tokens[0] == 1)], u, mix, k) for k in range(folds)]
        if max(gains) < 1e-7:
            break
    return 1 / u, mix


def _calibration_step(tokens, u, mix, k):
    """Move u[k] and mix[k] to the minimum of the quadratic model; return the decrease of the mean nats.

    tokens (4, n): log softmax_y, log q_y and its first two derivatives in u. Newton's method in u and the logit of
    mix, where every step decreases the mean nats.
    """
    log_softmax, log_q, slope, curvature = tokens

    def evaluate(x):
        """Return the mean nats, the share of the link in p (n,) and d log q_y / du (n,)."""
        step = x[0] - u[k]
        log_link_part = log_q + step * (slope + 0.5 * curvature * step) - np.logaddexp(0, x[1])
        log_p = np.logaddexp(log_link_part, log_softmax - np.logaddexp(0, -x[1]))
        return -log_p.mean(), np.exp(log_link_part - log_p), slope + curvature * step

    x = np.array([u[k], np.log(mix[k] / (1 - mix[k]))])
    value, share, derivative = evaluate(x)
    start = value
    for _ in range(50):
        m = 1 / (1 + np.exp(-x[1]))
        gradient = -np.array([(share * derivative).mean(), (1 - m - share).mean()])
        spread = share * (1 - share)
        cross = (spread * derivative).mean()
        hessian = -np.array([[(share * curvature + spread * derivative * derivative).mean(), -cross],
                             [-cross, spread.mean() - m * (1 - m)]])
        eigenvalues, eigenvectors = np.linalg.eigh(hessian)
        move = -eigenvectors @ (eigenvectors.T @ gradient / np.maximum(abs(eigenvalues), 1e-9))
        move *= min(1, 2 / max(abs(move[1]), 1e-9))
        move[0] = np.clip(x[0] + move[0], u[k] / 1.6, u[k] * 1.6) - x[0]  # the quadratic model holds near u only
        move[1] = np.clip(x[1] + move[1], -14, 14) - x[1]
        while abs(move).max() > 1e-9 and (trial := evaluate(x + move))[0] >= value:
            move /= 2
        if abs(move).max() <= 1e-9:
            break
        x, (value, share, derivative) = x + move, trial
    u[k], mix[k] = x[0], 1 / (1 + np.exp(-x[1]))
    return start - value


@torch.no_grad()
def fit_softmax_temperature(states, max_passes=40):
    """Fit the temperature T at which softmax(f / T) has the fewest nats per token.

    Newton's method in u = 1/T. The nats are convex in u, with derivatives E_q f - f_y and Var_q f for
    q = softmax(u f). Runs in a single process.

    Returns:
        (T, mean nats per token at T)
    """
    u, nats, step = 1.0, float('inf'), 0.0  # the best u so far, the nats there, the step to try next
    for number in range(1, max_passes + 1):
        trial = u + step
        sums, n = torch.zeros(3, dtype=torch.float64), 0
        states.description = f'fitting the temperature, pass {number}'
        for _, h, y in states:
            logits = F.linear(h, states.weight)
            log_q = F.log_softmax(trial * logits, dim=-1)
            q, logit_y = log_q.exp(), logits.gather(1, y[:, None])[:, 0]
            mean = (q * logits).sum(-1)
            variance = (q * (logits - mean[:, None]).square_()).sum(-1)
            sums += torch.stack([-log_q.gather(1, y[:, None])[:, 0], mean - logit_y, variance]).double().sum(1).cpu()
            n += len(y)
        trial_nats, slope, curvature = (sums / n).tolist()
        if trial_nats < nats:
            u, nats = trial, trial_nats
            step = float(np.clip(u - slope / max(curvature, 1e-12), u / 3, u * 3)) - u
        else:  # the step was too long (or the model is damaged); by convexity, a shorter one decreases the nats
            step /= 2
        if abs(step) < 1e-5 * u:
            break
    return 1 / u, nats
