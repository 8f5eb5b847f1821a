"""The losses, the head that computes them without holding all logits, and their link to probabilities.

A loss of the family is six numbers. With logits f = W h in R^C and target class y:

    L(f, y) = c * (-log softmax(f)_y) + sum_j (a2 f_j^2 + a1 f_j) + b2 f_y^2 + b1 f_y + b0

Cross-entropy, also with smoothed labels, the (rescaled) square loss of Hui & Belkin (arXiv 2006.07322)
and squentropy of Hui, Belkin & Wright (arXiv 2302.03952) are all members. Two more numbers make the
controls: z, the weight of log^2 sum_j exp f_j, and centred, which has the quadratic part see
f_j - mean f in place of f_j. Any other loss is a plain function `loss(logits, targets)` in OWN.

Shapes: N tokens, C classes (the tokenizer's vocabulary), d the model's width. `weight` is the
head's matrix; it may have more than C rows, which then are padding and take no part in anything.
"""
import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# Share of softmax in the link reading of nats: the bare link gives some tokens probability 0.
# Chosen on val.bin, once and for all losses (README, "The reading").
MIX = 0.1
LOG_0 = -40.0  # stands for log 0 where the link is tempered: infinities and denormals take a CPU twenty times as long


class Family(NamedTuple):
    """The numbers of a loss (see the formula above)."""
    c: float = 0.0
    a2: float = 0.0
    a1: float = 0.0
    b2: float = 0.0
    b1: float = 0.0
    b0: float = 0.0
    z: float = 0.0
    centred: float = 0.0  # 1 or 0


def cross_entropy(C, label_smoothing=0.0, z_loss=0.0):
    """-log softmax(f)_y. With label_smoothing e the target is (1-e) of y and e/C of every class (Szegedy et al.
    2016), which adds e (f_y - mean f); with z_loss, z log^2 sum_j exp f_j (PaLM, arXiv 2204.02311)."""
    return Family(c=1.0, a1=-label_smoothing / C, b1=label_smoothing, z=z_loss)


def mse(C, mse_true_weight=1.0, mse_target=1.0, mse_end=0.0, progress=0.0):
    """k (f_y - M)^2 + sum_{j != y} f_j^2, the square loss rescaled by k and M; a sum over classes:
    with their mean, gradients at C = 50,257 are so small that AdamW's eps swallows them.
    From the share mse_end of the run on cross-entropy, if that is not 0."""
    if mse_end and progress >= mse_end:
        return cross_entropy(C)
    k, M = mse_true_weight, mse_target
    return Family(a2=1.0, b2=k - 1, b1=-2 * k * M, b0=k * M * M)


def squentropy(C, squentropy_weight=1.0, squentropy_target=0.0, squentropy_centred=False,
               squentropy_schedule='constant', squentropy_end=1.0, progress=0.0):
    """Cross-entropy + alpha / (C-1) sum_{j != y} (f_j - t)^2; alpha = 1, t = 0 is the published loss.
    alpha may fall to 0, at the share squentropy_end of the run."""
    left = max(0.0, 1 - progress / squentropy_end)
    weight = squentropy_weight * {'constant': 1.0, 'linear': left, 'cosine': 0.5 - 0.5 * math.cos(math.pi * left),
                                  'step': float(left > 0)}[squentropy_schedule]
    alpha, t = weight / (C - 1), squentropy_target
    return Family(c=1.0, a2=alpha, a1=-2 * alpha * t, b2=-alpha, b1=2 * alpha * t, b0=weight * t * t,
                  centred=float(squentropy_centred))


def cross_entropy_plus_square(C, squentropy_weight=1.0):
    """Cross-entropy + alpha / C sum_j (f_j - mean f)^2: a control, which asks whether it matters to squentropy
    that the true class is left out and that the logits' mean counts."""
    return Family(c=1.0, a2=squentropy_weight / C, centred=1.0)


def cross_entropy_plus_mse(C, true_weight=65.0):
    """What the original study trained under the name of squentropy: cross-entropy plus the mean over
    all classes of the squared error to the one-hot target, the true class weighted by 65."""
    k = true_weight
    return Family(c=1.0, a2=1 / C, b2=(k - 1) / C, b1=-2 * k / C, b0=k / C)


FAMILY = {'cross_entropy': cross_entropy, 'mse': mse, 'squentropy': squentropy,
          'cross_entropy_plus_square': cross_entropy_plus_square, 'cross_entropy_plus_mse': cross_entropy_plus_mse}

# A loss of your own goes here: a function of float32 logits (n, C) and targets (n,) that returns the
# n losses. It sees the tokens in chunks. It is read through softmax, unless it has an attribute
# `link`, a function logits (n, C) -> probabilities (n, C).
OWN = {}


def make_loss(name, C, **constants):
    """The loss called `name` at C classes: a Family or a function of OWN.

    constants: those of the losses above that are set; each takes its own and leaves the others. progress, among
    them, is the share of the run that is done. Raises ValueError for an unknown name.
    """
    if name in OWN:
        return OWN[name]
    if name not in FAMILY:
        raise ValueError(f"there is no loss {name!r} in losses.py; choose from {', '.join([*FAMILY, *OWN])}")
    takes = FAMILY[name].__code__.co_varnames[1:FAMILY[name].__code__.co_argcount]
    return FAMILY[name](C, **{k: v for k, v in constants.items() if k in takes})


def reported_scale(loss, C):
    """What the training objective is multiplied by where it is printed: MSE trains on the sum over
    classes and is reported as their mean."""
    return 1 / C if isinstance(loss, Family) and not loss.c else 1.0


# -----------------------------------------------------------------------------
# training: the mean loss and its gradients, without N x C logits

def mean_loss(loss, hidden, weight, targets, C):
    """The mean of `loss` over all tokens, differentiable in hidden and weight.

    hidden (..., d), weight (at least C rows, d), targets (...) of ids in [0, C). Returns a float32
    scalar (float64 for float64 input). One backward pass; a second raises RuntimeError.
    """
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)
    if not isinstance(loss, Family):
        return _Chunked.apply(hidden, weight, targets, C, _with_grad(loss)) / len(targets)
    total = 0.0
    if loss.c:
        with_grad = partial(_cross_entropy_with_grad, z=loss.z / loss.c)
        total = loss.c * _Chunked.apply(hidden, weight, targets, C, with_grad)
    if any(loss[1:6]):
        total = total + quadratic(loss, hidden, weight, targets, C).sum()
    return total / len(targets)


def quadratic(loss, hidden, weight, targets, C):
    """The quadratic part of the loss of each token (N,), from the d x d Gram matrix of the head.

    sum_j f_j^2 = h' (W'W) h and sum_j f_j = h . sum_j W_j, so no logits are needed (Vincent,
    de Brebisson & Bouthillier, arXiv 1412.7091), and autograd through them is exact. Differences
    of squares lose everything in bfloat16, hence float32 here, whatever autocast says.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        h, W = _at_least_float32(hidden), _at_least_float32(weight)
        W = W if len(W) == C else W[:C]
        if loss.centred:  # the logits are W h, so their mean is that of the rows
            W = W - W.mean(0)
        # F.embedding and not W[targets]: its backward is deterministic
        f_y = (h * F.embedding(targets, W)).sum(-1)
        total = loss.b2 * f_y * f_y + loss.b1 * f_y + loss.b0
        if loss.a2:
            total = total + loss.a2 * (h @ (W.T @ W) * h).sum(-1)
        if loss.a1:
            total = total + loss.a1 * (h @ W.sum(0))
        return total


class _Chunked(torch.autograd.Function):
    """The sum over tokens of a loss of the logits, a chunk of tokens at a time.

    The gradients are made in the forward pass, while the chunk's logits are at hand, so there are
    never more than `chunk_rows` rows of them. per_token(logits (n, rows of weight), targets (n,), C) ->
    (losses (n,), their gradient, of the logits' shape, zero from C on), and may overwrite the logits.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, C, per_token):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            h, W = hidden.to(dtype), weight.to(dtype)
            grad_h = torch.empty_like(hidden)
            grad_W = weight.new_zeros(weight.shape[::-1])  # transposed, since oneDNN is quicker so and MKL no slower
            total = torch.zeros((), dtype=_at_least_float32(hidden[:0]).dtype, device=hidden.device)
            rows = chunk_rows(C, hidden.device)
            for i in range(0, len(h), rows):
                part = slice(i, i + rows)
                logits = _at_least_float32(F.linear(h[part], W))
                losses, grad = per_token(logits, targets[part], C)
                total += losses.sum()
                grad = grad.to(dtype)
                grad_h[part] = grad @ W
                if dtype == weight.dtype:
                    grad_W.addmm_(h[part].T, grad)
                else:
                    grad_W += h[part].T @ grad
        ctx.grads = grad_h, grad_W.T
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if ctx.grads is None:
            raise RuntimeError('mean_loss has one backward pass: its gradients are scaled in place')
        (grad_h, grad_W), ctx.grads = ctx.grads, None
        return grad_h.mul_(grad), grad_W.mul_(grad), None, None, None


def _cross_entropy_with_grad(logits, targets, C, z=0.0):
    logits[:, C:] = -torch.inf  # the padding made the product faster; here it ends
    of_target = logits.gather(1, targets[:, None]).squeeze(1)
    largest = logits.amax(-1)
    p = torch.softmax(logits, dim=-1, out=logits)  # row by row, so it may overwrite what it reads
    # log sum exp f = f_j - log p_j for any j; the likeliest p_j is not near 0, and a common shift goes first
    losses = (largest - of_target) - p.amax(-1).log()
    if z:
        log_Z = losses + of_target
        losses = losses + z * log_Z ** 2
        p *= (1 + 2 * z * log_Z)[:, None]
    p[torch.arange(len(targets), device=targets.device), targets] -= 1
    return losses, p


def _with_grad(loss):
    def per_token(logits, targets, C):
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            losses = loss(logits[:, :C], targets)
            grad, = torch.autograd.grad(losses.sum(), logits)
        return losses.detach(), grad
    return per_token


def chunk_rows(C, device):
    """Tokens whose logits are held at a time: on a CPU 8 MB of them in float32, which stay in its cache,
    elsewhere 256 MB; no fewer than 256 tokens, below which the products are slow (README, "Speed")."""
    return max(256, 2**(21 if device.type == 'cpu' else 26) // C)


def _at_least_float32(x):
    return x if x.dtype == torch.float64 else x.float()


# -----------------------------------------------------------------------------
# reading a model: from logits to probabilities

def link(loss, logits):
    """The probabilities that the logits of a model trained with `loss` mean: (n, C) -> (n, C).

    At the optimum of E_{y~p} L(f, y) the derivative in f_j is zero:
    c (softmax_j - p_j) + 2 a2 f_j + a1 + p_j (2 b2 f_j + b1) = 0, so

        p_j = (c softmax(f)_j + 2 a2 f_j + a1) / (c - b1 - 2 b2 f_j)

    which is softmax for cross-entropy. (Losses whose minimiser gives back p are proper composite:
    Reid & Williamson, JMLR 11, 2010; for squentropy the formula is ours.) Minimisers are unique, but
    for cross-entropy's shift, where a2 and a2 + b2 are not negative and c, a2 or both positive.
    Of a centred loss the derivatives need only be alike: their value is what makes the p_j sum to 1.
    z draws log Z to 0 and adds nothing there.

    Off the optimum the ratio r need not be a distribution: it is completed by the one that is
    nearest to it, p = max(r - tau, 0) with sum 1. The truth is a distribution too, so that this only
    moves r towards it; for plain MSE it makes the reading sparsemax (Martins & Astudillo, arXiv
    1602.02068). A negative numerator is the least there is, a denominator below the numerator means
    1, so the order of the logits is kept. What lost against it: README, "The completion".
    Logits must be float32 or float64: the numerator is a small difference.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        raise TypeError(f'the link needs float32 logits, found {logits.dtype}')
    softmax = F.softmax(logits, dim=-1)
    if not isinstance(loss, Family):
        return loss.link(logits) if hasattr(loss, 'link') else softmax
    if not any(loss[1:5]):
        return softmax
    above, below = ratio(loss, logits, softmax)
    return project((above / below.clamp_(min=1e-30)).clamp_(-1, 1))


def project(r):
    """The distribution nearest to r in squares: max(r - tau, 0) with sum 1, (n, C) -> (n, C).

    Newton's method for tau, from below: the mass that is too much is taken off evenly from those
    that still have some (Michelot 1986). It ends after finitely many steps, mostly five to ten.
    """
    rows = max(1, 2**17 // r.size(-1)) if r.device.type == 'cpu' else len(r)  # few stay in the cache: half the time
    return torch.cat([_project(part) for part in r.split(rows)])


def _project(r):
    largest = r.amax(-1, keepdim=True)
    below = torch.nextafter(largest, largest - 1)  # some mass is left there, whatever is rounded
    tau = torch.maximum(largest - 1, (r.sum(-1, keepdim=True) - 1) / r.size(-1)).minimum(below)
    close = 1e-6 if r.dtype == torch.float32 else 1e-13
    while True:
        p = (r - tau).clamp_(min=0)
        mass = p.sum(-1, keepdim=True)
        higher = (tau + (mass - 1) / p.sign().sum(-1, keepdim=True)).minimum(below)
        if not ((mass > 1 + close) & (higher > tau)).any():  # a NaN ends it too
            return p.div_(mass)
        tau = torch.maximum(tau, higher)


def ratio(loss, logits, softmax):
    """Numerator and denominator of the link as it is derived, before any completion, each (n, C)."""
    if loss.centred:
        logits = logits - logits.mean(-1, keepdim=True)
    above = loss.c * softmax + 2 * loss.a2 * logits + loss.a1
    below = loss.c - loss.b1 - 2 * loss.b2 * logits
    if loss.centred:
        above -= ((above / below).sum(-1, keepdim=True) - 1) / (1 / below).sum(-1, keepdim=True)
    return above, below


def log_link(loss, logits):
    """log link(loss, logits), (n, C), with LOG_0 where the link is 0."""
    return F.log_softmax(logits, dim=-1) if is_softmax(loss) else link(loss, logits).clamp_(min=math.exp(LOG_0)).log_()


def tempered(log_link, temperature):
    """log (link^(1/temperature) / Z), (n, C); temperature (n, 1)."""
    return F.log_softmax(log_link / temperature, dim=-1)


def read(loss, logits, targets, mix, temperature=None):
    """A reading: (p (n, C), -log p of the targets (n,)) of

        p = (1 - mix) link^(1/temperature) / Z + mix softmax

    mix = 1 is the softmax reading, MIX without temperature the link reading, and two fitted numbers
    the fitted one. mix and temperature are numbers, or tensors (n, 1).
    """
    softmax = F.softmax(logits, dim=-1)
    if temperature is None and (is_softmax(loss) or isinstance(mix, float) and mix == 1):
        return softmax, F.cross_entropy(logits, targets, reduction='none')
    at = targets[:, None]
    if temperature is None:
        q = link(loss, logits)
        log_q = q.gather(1, at).log()
    else:
        q = tempered(log_link(loss, logits), temperature)
        log_q = q.gather(1, at)
        q = q.exp_()
    mix = torch.as_tensor(mix, dtype=q.dtype, device=q.device)
    log_softmax = -F.cross_entropy(logits, targets, reduction='none')[:, None]
    nats = -torch.logaddexp(log_q + torch.log1p(-mix), log_softmax + mix.log())
    return q.mul_(1 - mix).add_(softmax.mul_(mix)), nats.squeeze(1)


def nats(loss, logits, targets, mix=MIX):
    """-log p of each target (n,), read as p = (1 - mix) link + mix softmax: (n, C), (n,) -> (n,).

    For a loss whose link is softmax this is its cross-entropy, to the last digit.
    """
    log_softmax = -F.cross_entropy(logits, targets, reduction='none')
    if is_softmax(loss):
        return -log_softmax
    p = link(loss, logits).gather(1, targets[:, None]).squeeze(1)
    # in logarithms: softmax alone may underflow
    return -torch.logaddexp(torch.log((1 - mix) * p), log_softmax + (math.log(mix) if mix else -math.inf))


def is_softmax(loss):
    return not any(loss[1:5]) if isinstance(loss, Family) else not hasattr(loss, 'link')


def objectives(loss, hidden, weight, logits, targets, C):
    """What was trained, of each token (n,), from the logits that are at hand and the hidden states
    that they were made of."""
    if not isinstance(loss, Family):
        return loss(logits, targets)
    total = quadratic(loss, hidden, weight, targets, C) + loss.c * F.cross_entropy(logits, targets, reduction='none')
    return total + loss.z * logits.logsumexp(-1) ** 2 if loss.z else total


@torch.no_grad()
def score(loss, hidden, weight, targets, C):
    """(objective, nats) of each token, both (N,) float32: what was trained, and -log p through the
    link reading. Shapes as in mean_loss; no gradients."""
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)
    objective, surprise = [], []
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, W = hidden.float(), weight[:C].float()
        rows = chunk_rows(C, hidden.device)
        for h, y in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = F.linear(h, W)
            objective.append(objectives(loss, h, W, logits, y, C))
            surprise.append(nats(loss, logits, y))
    return torch.cat(objective), torch.cat(surprise)
