"""From logits to probabilities: the link of a loss, and the readouts built on it.

Softmax turns logits into the model's probabilities only if the model was trained with cross-entropy. A model trained
with another loss encodes its probabilities differently; the function that recovers them is the link of the loss. A
readout is a map from logits to probabilities:

    softmax      softmax of the logits
    link         (1 - LINK_MIX) * link + LINK_MIX * softmax
    calibrated   (1 - mix) * link^(1/temperature) / Z + mix / C, with temperature and mix fitted on val.bin

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
MAX_STEPS = 24  # of the projection onto the simplex
LN2 = math.log(2)


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
    plain MSE the result is sparsemax (Martins & Astudillo, arXiv:1602.02068). A denominator that is not positive is
    replaced by a tiny positive one, so the ratio is above all others (below them if the numerator is negative), and
    the probabilities keep the order of the logits.

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
    if has_softmax_link(loss):
        return F.softmax(logits, dim=-1)
    if not isinstance(loss, losses.LossCoefficients):
        return loss.link(logits)
    return project_to_simplex(link_ratio(loss, logits, F.softmax(logits, dim=-1) if loss.c else None))


def has_softmax_link(loss):
    """Return whether the link of the loss is softmax."""
    if isinstance(loss, losses.LossCoefficients):
        return not any((loss.a2, loss.a1, loss.b2, loss.b1))
    return not hasattr(loss, 'link')


def link_ratio(loss, logits, softmax):
    """Return the ratios (n, C) of the link (see :func:`link`), without the projection. `softmax` is the softmax of the
    logits, or None if loss.c is 0."""
    if loss.centred:
        logits = logits - logits.mean(-1, keepdim=True)
    k = loss.c or 1.0  # divides numerator and denominator
    numerator = torch.add(softmax, logits, alpha=2 * loss.a2 / k) if loss.c else logits * (2 * loss.a2)
    if loss.a1:
        numerator += loss.a1 / k
    denominator = constant = logits.new_full((), (loss.c - loss.b1) / k)
    if loss.b2:
        denominator = torch.add(constant, logits, alpha=-2 * loss.b2 / k)
    if loss.centred:  # subtract the common value of the derivatives
        inverse = torch.where(denominator > 0, 1 / denominator, 0)
        excess = (numerator * inverse).sum(-1, keepdim=True) - 1
        numerator -= excess / inverse.expand_as(logits).sum(-1, keepdim=True)
    return numerator.div_(denominator.clamp_(min=1e-20))


def project_to_simplex(r):
    """Return the Euclidean projection of each row of r (n, C) onto the probability simplex: max(r - tau, 0), with tau
    such that the row sums to 1."""
    # on a CPU, blocks that stay in cache take half the time
    return torch.cat([_project(block.clone()) for block in r.split(block_rows(*r.shape, r.device))])


def _project(r):
    excess, _ = subtract_threshold(r)
    p = excess.relu_()
    return p.div_(p.sum(-1, keepdim=True))


def subtract_threshold(r, tau=None):
    """Subtract tau (n, 1) from r (n, C), in place, so that the positive entries of each row are its projection onto
    the probability simplex (and the largest entry is positive). Return (r, tau).

    Newton's method from below: each step removes the excess mass evenly from the positive entries (Michelot 1986). It
    terminates after finitely many steps, usually five. A test for the end would make the host wait for a GPU, so the
    number of steps is fixed there; if they do not suffice, the positive entries sum to more than 1.

    Args:
        tau: the result of an earlier call for the same r, which saves the search.
    """
    # the projection does not depend on a constant, and differences of ratios far from 0 would lose their digits
    largest = r.amax(-1, keepdim=True)
    shift = torch.where(largest.abs() > 2, largest, 0)
    on_cpu = r.device.type == 'cpu'
    if not on_cpu or shift.any():
        r.sub_(shift)
    if tau is not None:
        return r.sub_(tau), tau
    largest -= shift
    upper = torch.nextafter(largest, largest - 1)  # below the largest entry, so that at least one stays positive
    tau = torch.maximum(largest - 1, (r.sum(-1, keepdim=True) - 1) / r.size(-1)).minimum(upper)
    tolerance = 1e-5 if r.dtype == torch.float32 else 1e-10  # the last step leaves much less
    buffer = torch.empty_like(r)
    for _ in range(MAX_STEPS):
        mass = torch.sub(r, tau, out=buffer).relu_().sum(-1, keepdim=True)
        count = count_true(torch.gt, r, tau, buffer)
        last, tau = tau, torch.maximum(tau, (tau + (mass - 1) / count).minimum(upper))
        if on_cpu and not ((mass > 1 + tolerance) & (tau > last)).any():  # also for NaN
            break
    return r.sub_(tau), tau


def count_true(compare, x, y, buffer=None):
    """Return (n, 1): for how many entries of each row of x (n, C) compare(x, y) is true, in the dtype of x.

    compare: torch.gt or torch.ge. y: (n, 1). buffer: a tensor like x to overwrite.
    """
    if x.device.type == 'cpu':  # it sums booleans slowly
        return compare(x, y, out=torch.empty_like(x) if buffer is None else buffer).sum(-1, keepdim=True)
    return compare(x, y).sum(-1, keepdim=True, dtype=x.dtype)


def block_rows(n, C, device):
    """Return the number of rows of n x C numbers to process at a time: about 2 MB of float32 on a CPU, so that a few
    temporary results stay in its cache, and all of them elsewhere."""
    return max(1, 2**19 // C) if device.type == 'cpu' else max(1, n)


def logit_blocks(hidden, weight):
    """Yield (slice of the tokens, their logits) for hidden (N, d) and weight (C, d), one block of tokens at a time.

    At most one chunk of logits (losses.chunk_rows) is held in memory.
    """
    C = len(weight)
    rows = losses.chunk_rows(C, hidden.device)
    for i in range(0, len(hidden), rows):
        chunk = losses.mm(hidden[i:i + rows], weight.T)
        size = block_rows(*chunk.shape, chunk.device)
        for j in range(0, len(chunk), size):
            logits = chunk[j:j + size]
            yield slice(i + j, i + j + len(logits)), logits


def softmax_nll(logits, targets):
    """Return (softmax (n, C), its largest entry (n, 1), log Z (n, 1), cross-entropy (n, 1)) of logits (n, C)."""
    softmax = torch.softmax(logits, dim=-1)
    top = softmax.amax(-1, keepdim=True)
    # log Z = f_j - log p_j for any j; the most likely class has the most accurate p_j
    log_Z = logits.amax(-1, keepdim=True) - top.log()
    return softmax, top, log_Z, log_Z - logits.gather(1, targets[:, None])


def mixed_nll(p_y, cross_entropy, mix):
    """Return the negative log-likelihood of (1 - mix) * link + mix * softmax, for the link p_y of the true class and
    the cross-entropy, in log space, since softmax can underflow."""
    log_softmax = (math.log(mix) if mix else -math.inf) - cross_entropy
    return -torch.logaddexp(torch.log((1 - mix) * p_y), log_softmax)


def token_scores(loss, logits, targets):
    """Return the part of the training loss that is not quadratic and the negative log-likelihood in the link readout.

    Both are (n,), for logits (n, C) and targets (n,). If the link of the loss is softmax, the latter is the
    cross-entropy.
    """
    softmax, _, log_Z, cross_entropy = softmax_nll(logits, targets)
    objective = partial_objective(loss, logits, targets, log_Z, cross_entropy)
    if has_softmax_link(loss):
        return objective, cross_entropy.squeeze(1)
    if isinstance(loss, losses.LossCoefficients):
        p, _ = subtract_threshold(link_ratio(loss, logits, softmax))
        p_y = p.gather(1, targets[:, None]).relu_()
    else:
        p_y = loss.link(logits).gather(1, targets[:, None])
    return objective, mixed_nll(p_y, cross_entropy, LINK_MIX).squeeze(1)


def partial_objective(loss, logits, targets, log_Z, cross_entropy):
    """Return the training loss (n,) of each token without its quadratic part (losses.quadratic_term)."""
    if not isinstance(loss, losses.LossCoefficients):
        return loss(logits, targets)
    return (loss.c * cross_entropy + loss.z * log_Z ** 2).squeeze(1)


def quadratic_term(loss, hidden, weight, targets, C):
    """Return the quadratic part of the training loss (N,), or 0 if there is none."""
    if not isinstance(loss, losses.LossCoefficients) or not any(loss[1:6]):
        return 0
    return losses.quadratic_term(loss, hidden, weight, targets, C)


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
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight = hidden.float(), weight[:C].float()
        parts = [token_scores(loss, logits, targets[part]) for part, logits in logit_blocks(hidden, weight)]
        objective, nll = map(torch.cat, zip(*parts, strict=True))
        return objective + quadratic_term(loss, hidden, weight, targets, C), nll


def log2_softmax(logits):
    """Return log2 of softmax(logits) (n, C) relative to its largest entry."""
    return (logits - logits.amax(-1, keepdim=True)).mul_(1 / LN2)


def log2_relative(p):
    """Return log2 of p (n, C) relative to its largest entry, with LOG_ZERO / LN2 where p is zero or negative."""
    return (p / p.amax(-1, keepdim=True)).clamp_(min=math.exp(LOG_ZERO)).log2_()


def log2_link(loss, logits, tau=None):
    """Return (log2 of the link relative to its largest entry (n, C), the tau (n, 1) of subtract_threshold or None).

    In base 2, because on many CPUs torch.exp2 takes a third of the time of torch.exp.

    Args:
        tau: the result of an earlier call for the same logits, which saves time.
    """
    if has_softmax_link(loss):
        return log2_softmax(logits), None
    if not isinstance(loss, losses.LossCoefficients):
        return log2_relative(loss.link(logits)), None
    softmax = torch.softmax(logits, dim=-1) if loss.c else None
    p, tau = subtract_threshold(link_ratio(loss, logits, softmax), tau)
    return log2_relative(p), tau
