"""From logits to probabilities: the link of a loss, and the readouts built on it.

Softmax turns logits into the model's probabilities only if the model was trained with cross-entropy. A model trained
with another loss encodes its probabilities differently; the function that recovers them is the link of the loss. A
readout is a map from logits to probabilities:

    softmax      softmax of the logits
    link         (1 - LINK_MIX) * link + LINK_MIX * softmax
    calibrated   (1 - mix) * link^(1/temperature) / Z + mix * softmax, with temperature and mix fitted on val.bin

Shapes: n or N tokens, C classes (the tokenizer's vocabulary), d the width of the model.
"""
import math

import torch
import torch.nn.functional as F

import losses

# Weight of softmax in the link readout. The link alone can assign probability 0 to a token, whose negative
# log-likelihood is infinite. Chosen once on val.bin and used for all losses (docs/evaluation.md).
LINK_MIX = 0.1
LOG_ZERO = -40.0  # replaces log 0 before temperature scaling: infinities and denormals are 20 times slower on a CPU


def link(loss, logits):
    """Return the class probabilities encoded by the logits of a model trained with `loss`.

    A model that minimizes E_{y~p} L(f, y) has logits f at which the derivative with respect to every f_j is zero:

        c (softmax(f)_j - p_j) + 2 a2 f_j + a1 + p_j (2 b2 f_j + b1) = 0

    Solving for p gives the link:

        p_j = (c softmax(f)_j + 2 a2 f_j + a1) / (c - b1 - 2 b2 f_j)

    For cross-entropy this is softmax; for plain MSE it is f itself. The minimizer is unique (for cross-entropy, up to
    a constant added to all logits) if a2 >= 0, a2 + b2 >= 0 and at least one of c and a2 is positive. Losses whose
    minimizer determines p are called proper composite (Reid & Williamson, JMLR 11, 2010); the formula for squentropy
    was derived for this project. For a centered loss the derivatives only need to be equal to one another; their
    common value is the one at which the p_j sum to 1. A z-loss does not change p: it goes with losses that ignore a
    constant added to all logits, and selects the constant for which log Z = 0.

    Away from the minimum the ratios r_j need not form a distribution. They are projected onto the probability simplex
    (:func:`project_to_simplex`). The true p lies in the simplex, so the projection only moves r closer to it. For
    plain MSE the result is sparsemax (Martins & Astudillo, arXiv:1602.02068). Before the projection, ratios are
    clamped to [-1, 1] and a denominator that is not positive gives 1, so the probabilities keep the order of the
    logits.

    Args:
        loss: LossCoefficients, or a custom loss. The link of a custom loss is its attribute `link`, a function
            from logits to probabilities, or softmax if it has none.
        logits: (n, C), float32 or float64. The numerator is a small difference, so half precision is not enough.

    Returns:
        Probabilities (n, C), of the dtype of the logits.

    Raises:
        TypeError: if the logits are of another dtype.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        raise TypeError(f'link needs float32 or float64 logits, got {logits.dtype}; convert them with .float()')
    softmax = F.softmax(logits, dim=-1)
    if has_softmax_link(loss):
        return softmax
    if not isinstance(loss, losses.LossCoefficients):
        return loss.link(logits)
    numerator, denominator = link_ratio(loss, logits, softmax)
    return project_to_simplex((numerator / denominator.clamp_(min=1e-30)).clamp_(-1, 1))


def has_softmax_link(loss):
    """Return whether the link of the loss is softmax."""
    if isinstance(loss, losses.LossCoefficients):
        return not any((loss.a2, loss.a1, loss.b2, loss.b1))
    return not hasattr(loss, 'link')


def link_ratio(loss, logits, softmax):
    """Return the numerator and the denominator of the link (see :func:`link`), without the projection: two tensors
    (n, C). `softmax` is the softmax of the logits."""
    if loss.centred:
        logits = logits - logits.mean(-1, keepdim=True)
    numerator = loss.c * softmax + 2 * loss.a2 * logits + loss.a1
    denominator = loss.c - loss.b1 - 2 * loss.b2 * logits
    if loss.centred:  # the common value of the derivatives
        excess = (numerator / denominator).sum(-1, keepdim=True) - 1
        numerator -= excess / (1 / denominator).sum(-1, keepdim=True)
    return numerator, denominator


def project_to_simplex(r):
    """Return the Euclidean projection of each row of r (n, C) onto the probability simplex.

    The projection is max(r - tau, 0), with tau such that the row sums to 1. tau is found by Newton's method from
    below: each step removes the excess mass evenly from the positive entries (Michelot 1986). It terminates after
    finitely many steps, usually five to ten.
    """
    # on a CPU, small chunks stay in cache and take half the time
    rows = max(1, 2**17 // r.size(-1)) if r.device.type == 'cpu' else len(r)
    return torch.cat([_project_chunk(chunk) for chunk in r.split(rows)])


def _project_chunk(r):
    largest = r.amax(-1, keepdim=True)
    upper = torch.nextafter(largest, largest - 1)  # below the largest entry, so that at least one stays positive
    tau = torch.maximum(largest - 1, (r.sum(-1, keepdim=True) - 1) / r.size(-1)).minimum(upper)
    tolerance = 1e-6 if r.dtype == torch.float32 else 1e-13
    while True:
        p = (r - tau).clamp_(min=0)
        mass = p.sum(-1, keepdim=True)
        next_tau = (tau + (mass - 1) / p.sign().sum(-1, keepdim=True)).minimum(upper)
        if not ((mass > 1 + tolerance) & (next_tau > tau)).any():  # also false for NaN
            return p.div_(mass)
        tau = torch.maximum(tau, next_tau)


def log_link(loss, logits):
    """Return log link(loss, logits), (n, C), with LOG_ZERO where the link is 0."""
    if has_softmax_link(loss):
        return F.log_softmax(logits, dim=-1)
    return link(loss, logits).clamp_(min=math.exp(LOG_ZERO)).log_()


def log_tempered(log_link, temperature):
    """Return log (link^(1/temperature) / Z), (n, C), for log_link (n, C) and temperature (n, 1)."""
    return F.log_softmax(log_link / temperature, dim=-1)


def token_probs(loss, logits, targets, mix, temperature=None):
    """Return the probabilities of all classes and the negative log-likelihood of the targets, for the readout

        p = (1 - mix) * link^(1/temperature) / Z + mix * softmax

    mix=1.0 without a temperature is the softmax readout, mix=LINK_MIX without a temperature the link readout, and a
    fitted pair the calibrated readout.

    Args:
        loss: LossCoefficients or a custom loss.
        logits: (n, C), float32 or float64.
        targets: (n,), class indices.
        mix, temperature: numbers, or tensors (n, 1).

    Returns:
        (probs, nll): (n, C) and (n,), nll in nats.
    """
    softmax = F.softmax(logits, dim=-1)
    if temperature is None and (has_softmax_link(loss) or isinstance(mix, float) and mix == 1):
        return softmax, F.cross_entropy(logits, targets, reduction='none')
    index = targets[:, None]
    if temperature is None:
        q = link(loss, logits)
        log_q = q.gather(1, index).log()
    else:
        q = log_tempered(log_link(loss, logits), temperature)
        log_q = q.gather(1, index)
        q = q.exp_()
    mix = torch.as_tensor(mix, dtype=q.dtype, device=q.device)
    log_softmax = -F.cross_entropy(logits, targets, reduction='none')[:, None]
    nll = -torch.logaddexp(log_q + torch.log1p(-mix), log_softmax + mix.log())
    return q.mul_(1 - mix).add_(softmax.mul_(mix)), nll.squeeze(1)


def token_nll(loss, logits, targets, mix=LINK_MIX):
    """Return the negative log-likelihood (n,) of the targets (n,) under p = (1 - mix) * link + mix * softmax.

    If the link of the loss is softmax, this is the cross-entropy of the logits (n, C), bit for bit.
    """
    log_softmax = -F.cross_entropy(logits, targets, reduction='none')
    if has_softmax_link(loss):
        return -log_softmax
    p = link(loss, logits).gather(1, targets[:, None]).squeeze(1)
    # in log space, since softmax can underflow
    return -torch.logaddexp(torch.log((1 - mix) * p), log_softmax + (math.log(mix) if mix else -math.inf))


def token_objective(loss, hidden, weight, logits, targets, C):
    """Return the training loss (n,) of each token, given hidden (n, d), weight (C, d) and their product, the logits
    (n, C)."""
    if not isinstance(loss, losses.LossCoefficients):
        return loss(logits, targets)
    cross_entropy = F.cross_entropy(logits, targets, reduction='none')
    total = losses.quadratic_term(loss, hidden, weight, targets, C) + loss.c * cross_entropy
    return total + loss.z * logits.logsumexp(-1) ** 2 if loss.z else total


@torch.no_grad()
def score_batch(loss, hidden, weight, targets, C):
    """Return the training loss and the negative log-likelihood in the link readout of each token.

    Args:
        loss: LossCoefficients or a custom loss.
        hidden: (..., d), hidden states.
        weight: (at least C rows, d), the matrix of the head.
        targets: (...), class indices in [0, C).
        C: number of classes.

    Returns:
        (objective, nll): both (N,), float32.
    """
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)
    objective, nll = [], []
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight = hidden.float(), weight[:C].float()
        rows = losses.chunk_rows(C, hidden.device)
        for h, y in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = F.linear(h, weight)
            objective.append(token_objective(loss, h, weight, logits, y, C))
            nll.append(token_nll(loss, logits, y))
    return torch.cat(objective), torch.cat(nll)
