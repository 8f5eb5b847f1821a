"""The losses, and the output head that computes them without holding all logits.

Most losses here are cross-entropy plus a quadratic form in the logits. With logits f = W h in R^C and the
target class y:

    L(f, y) = c * (-log softmax(f)_y) + sum_j (a2 f_j^2 + a1 f_j) + b2 f_y^2 + b1 f_y + b0

Cross-entropy (also with label smoothing), the rescaled square loss of Hui & Belkin (arXiv 2006.07322) and
squentropy of Hui, Belkin & Wright (arXiv 2302.03952) are of this form. Two more coefficients describe variants:
z, the weight of log^2 sum_j exp f_j (z-loss), and centred, which applies the quadratic form to f_j - mean f.
A loss of any other form is a function `loss(logits, targets)` in CUSTOM_LOSSES.

Shapes: N tokens, C classes (the tokenizer's vocabulary), d the width of the model. `weight` is the weight of the
head; rows from C on are padding and do not take part in the loss.
"""
import functools
import inspect
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


class LossCoefficients(NamedTuple):
    """The coefficients of the formula above."""
    c: float = 0.0
    a2: float = 0.0
    a1: float = 0.0
    b2: float = 0.0
    b1: float = 0.0
    b0: float = 0.0
    z: float = 0.0
    centred: float = 0.0  # 1 or 0


def cross_entropy(C, label_smoothing=0.0, z_loss=0.0):
    """-log softmax(f)_y.

    label_smoothing e replaces the one-hot target by (1 - e) one-hot + e/C (Szegedy et al. 2016), which adds
    e (f_y - mean f). z_loss z adds z log^2 sum_j exp f_j (PaLM, arXiv 2204.02311).
    """
    return LossCoefficients(c=1.0, a1=-label_smoothing / C, b1=label_smoothing, z=z_loss)


def mse(C, mse_true_weight=1.0, mse_target=1.0, mse_end=0.0, progress=0.0):
    """k (f_y - M)^2 + sum_{j != y} f_j^2, the square loss rescaled by k and M.

    The loss is a sum over classes: with a mean, gradients at C = 50,257 are so small that AdamW's eps dominates.
    If mse_end > 0, cross-entropy takes over from that fraction of training on.
    """
    if mse_end and progress >= mse_end:
        return cross_entropy(C)
    k, M = mse_true_weight, mse_target
    return LossCoefficients(a2=1.0, b2=k - 1, b1=-2 * k * M, b0=k * M * M)


def squentropy(C, squentropy_weight=1.0, squentropy_target=0.0, squentropy_centred=False,
               squentropy_schedule='constant', squentropy_start=0.0, squentropy_end=1.0, progress=0.0):
    """Cross-entropy + alpha / (C-1) sum_{j != y} (f_j - t)^2. The published loss has alpha = 1 and t = 0.

    Before the fraction squentropy_start of training, alpha is 0. From there on squentropy_schedule keeps it
    ('constant'), lowers it to 0 at the fraction squentropy_end ('linear', 'cosine', 'step'), or raises it from 0 until
    then ('rise').
    """
    remaining = min(1.0, max(0.0, 1 - (progress - squentropy_start) / (squentropy_end - squentropy_start)))
    schedule = {'constant': 1.0, 'linear': remaining, 'cosine': 0.5 - 0.5 * math.cos(math.pi * remaining),
                'step': float(remaining > 0), 'rise': 1 - remaining}
    alpha = squentropy_weight * schedule[squentropy_schedule] if progress >= squentropy_start else 0.0
    t = squentropy_target
    a = alpha / (C - 1)
    return LossCoefficients(c=1.0, a2=a, a1=-2 * a * t, b2=-a, b1=2 * a * t, b0=alpha * t * t,
                            centred=float(squentropy_centred))


def cross_entropy_plus_square(C, squentropy_weight=1.0):
    """Cross-entropy + alpha / C sum_j (f_j - mean f)^2.

    A control for squentropy: does it matter that the true class is left out and that the mean logit is penalized?
    """
    return LossCoefficients(c=1.0, a2=squentropy_weight / C, centred=1.0)


def cross_entropy_plus_mse(C):
    """The loss that the original study trained as "squentropy": cross-entropy plus the mean over all classes of the
    squared error to the one-hot target, with weight 65 on the true class."""
    k = 65.0
    return LossCoefficients(c=1.0, a2=1 / C, b2=(k - 1) / C, b1=-2 * k / C, b0=k / C)


LOSSES = {'cross_entropy': cross_entropy, 'mse': mse, 'squentropy': squentropy,
          'cross_entropy_plus_square': cross_entropy_plus_square, 'cross_entropy_plus_mse': cross_entropy_plus_mse}

# Add a loss of your own here: name -> function of float32 logits (n, C) and targets (n,) that returns n losses.
# It is called on chunks of tokens, so the loss of a token must not depend on others. Probabilities are softmax(logits),
# unless the function has an attribute `link`, a function of logits (n, C) that returns probabilities (n, C).
CUSTOM_LOSSES = {}


def make_loss(name, C, **constants):
    """Return the LossCoefficients of a built-in loss, or a function of CUSTOM_LOSSES.

    constants may hold any settings; each loss takes those that it knows. `progress` is the fraction of training that
    is done, in [0, 1]. Raises ValueError for an unknown name.
    """
    if name in CUSTOM_LOSSES:
        return CUSTOM_LOSSES[name]
    if name not in LOSSES:
        raise ValueError(f"--loss={name}: there is no such loss in losses.py; choose from "
                         f"{', '.join([*LOSSES, *CUSTOM_LOSSES])}")
    accepted = inspect.signature(LOSSES[name]).parameters
    return LOSSES[name](C, **{key: value for key, value in constants.items() if key in accepted})


def check_loss(name, C):
    """Try a custom loss on four tokens. Returns its values in a short text, '' for a built-in loss.

    If the text is the same later, so is the function, very probably. Raises ValueError if there is no such loss or if
    it breaks the rules for CUSTOM_LOSSES, and RuntimeError if it raises an error itself.
    """
    loss = make_loss(name, C)
    if name not in CUSTOM_LOSSES:
        return ''
    logits, targets = torch.randn(4, C, generator=torch.Generator().manual_seed(0)), torch.arange(4) % C
    try:
        values = loss(logits.clone(), targets)
        shape = tuple(values.shape)
        halves = torch.cat([loss(logits[i:i + 2].clone(), targets[i:i + 2]).reshape(-1) for i in (0, 2)])
        p = getattr(loss, 'link', lambda f: f.softmax(-1))(logits.clone())
        _, grad = _custom_with_grad(loss)(logits, targets, C, 1.0)
    except Exception as e:  # not a ValueError, which is reported without a traceback
        raise RuntimeError(f'--loss={name}: the function failed on logits of shape (4, {C})') from e
    for is_right, rule in (
            (name not in LOSSES, 'this is the name of a built-in loss; use another name'),
            (shape == (4,), f"it returned shape {shape} for 4 tokens; return one loss each, as reduction='none' does"),
            (torch.isfinite(values).all() and torch.isfinite(grad).all(), 'the loss or its gradient is not finite'),
            (values.shape == halves.shape and torch.allclose(values, halves, rtol=1e-3, atol=1e-5),
             'the loss of a token depends on the other tokens of its chunk; use no sums or means over tokens'),
            (p.shape == logits.shape and (p >= 0).all() and torch.allclose(p.sum(-1), torch.ones(4), atol=1e-3),
             'its link does not return probabilities')):
        if not is_right:
            raise ValueError(f'--loss={name}: {rule}')
    return f'{values.mean():.3e} (gradient {grad.norm():.3e}, probability {p[0, 0]:.3e})'


def loss_settings(name):
    """Return the names of the constants that a built-in loss takes, a tuple; () for a custom loss."""
    parameters = inspect.signature(LOSSES[name]).parameters if name in LOSSES else ()
    return tuple(key for key in parameters if key not in ('C', 'progress'))


def reported_scale(loss, C):
    """Return the factor for printing a training loss: MSE is trained on the sum over classes and reported as their
    mean."""
    return 1 / C if isinstance(loss, LossCoefficients) and not loss.c else 1.0


# the mean loss and its gradients without N x C logits -------------------------

mm, addmm_ = torch.mm, torch.Tensor.addmm_  # nanoloss/matmul.py replaces them by oneDNN's where these are faster
FLOAT16_SCALE = 2.0**10  # float16 rounds gradients below 3e-8 to zero, so those of a GPU are computed times this


def mean_loss(loss, hidden, weight, targets, C, compiled=False):
    """Return the mean of `loss` over all tokens, differentiable in hidden and weight.

    hidden (..., d), weight (at least C rows, d), targets (...) of ids in [0, C). compiled: use torch.compile where that
    is faster. The result is a float32 scalar (float64 for float64 input). It supports one backward pass; a second one
    raises RuntimeError.
    """
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)
    if not isinstance(loss, LossCoefficients):
        total = _ChunkedLoss.apply(hidden, weight, targets, C, _custom_with_grad(loss), 1.0)
    elif compiled and loss.c:  # the logits exist, so the quadratic form costs nothing
        dtype = _at_least_float32(weight[:0]).dtype
        with_grad = functools.partial(_family_with_grad, coefficients=_as_tensor(loss, dtype, hidden.device))
        total = _ChunkedLoss.apply(hidden, weight, targets, C, with_grad, FLOAT16_SCALE)
    else:
        total = 0.0
        if loss.c:
            with_grad = functools.partial(_cross_entropy_with_grad, z=loss.z / loss.c)
            total = loss.c * _ChunkedLoss.apply(hidden, weight, targets, C, with_grad, FLOAT16_SCALE)
        if any(loss[1:6]):
            total = total + quadratic_term(loss, hidden, weight, targets, C).sum()
    return total / len(targets)


def quadratic_term(loss, hidden, weight, targets, C):
    """Return the quadratic part of the loss per token (N,), computed from the d x d Gram matrix of the head.

    Differences of squares lose all digits in bfloat16, so this runs in float32 whatever autocast says.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        h, W = _at_least_float32(hidden), _at_least_float32(weight)
        W = W if len(W) == C else W[:C]
        if loss.centred:  # the logits are W h, so their mean is (mean of the rows) . h
            W = W - W.mean(0)
        # F.embedding rather than W[targets]: its backward is deterministic
        f_y = (h * F.embedding(targets, W)).sum(-1)
        total = loss.b2 * f_y * f_y + loss.b1 * f_y + loss.b0
        if loss.a2:
            total = total + loss.a2 * _SumOfSquares.apply(h, W)
        if loss.a1:
            total = total + loss.a1 * (h @ W.sum(0))
        return total


class _SumOfSquares(torch.autograd.Function):
    """sum_j f_j^2 of the logits f = W h of each token, (N,), for h (N, d) and W (C, d), without the logits.

    It is h' (W'W) h, and its gradient in W is 2 W (sum of h h' over tokens): d x d matrices in place of N x C logits
    (Vincent, de Brebisson & Bouthillier, arXiv 1412.7091).
    """

    @staticmethod
    def forward(ctx, h, W):
        Gh = mm(h, mm(W.T, W))
        ctx.save_for_backward(h, W, Gh)
        return (h * Gh).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        h, W, Gh = ctx.saved_tensors
        grad = 2 * grad[:, None]
        return grad * Gh, mm(W, mm((grad * h).T, h))


class _ChunkedLoss(torch.autograd.Function):
    """The sum over tokens of a loss of the logits, one chunk of tokens at a time.

    Gradients are computed in the forward pass while the logits of the chunk exist, so there are never more than
    `chunk_rows` rows of logits. with_grad(logits (n, rows of weight), targets (n,), C, scale) returns the losses (n,)
    and `scale` times their gradient in the shape and dtype of the logits, zero from column C on. It computes in float32
    and may overwrite the logits. float16_scale is the scale in float16 on a GPU.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, C, with_grad, float16_scale):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        keep_float32 = device == 'cuda' and dtype != weight.dtype  # for products of factors in half precision
        scale = float16_scale if keep_float32 and dtype == torch.float16 else 1.0
        with torch.autocast(device, enabled=False):
            h, W = hidden.to(dtype), weight.to(dtype)
            grad_h = torch.empty_like(hidden)
            if keep_float32:
                grad_W = torch.empty_like(weight)
            else:  # transposed: faster with oneDNN, no slower with MKL
                grad_W = weight.new_zeros(weight.shape[::-1]).T
            total = torch.zeros((), dtype=_at_least_float32(hidden[:0]).dtype, device=hidden.device)
            n_chunks = math.ceil(len(h) / chunk_rows(C, hidden.device))
            rows = math.ceil(len(h) / n_chunks)
            for i in range(0, len(h), rows):
                chunk = slice(i, i + rows)
                losses, grad = with_grad(mm(h[chunk], W.T), targets[chunk], C, scale)
                total += losses.sum()
                if keep_float32:
                    grad_h[chunk] = torch.mm(grad, W, out_dtype=torch.float32)
                    beta = 0 if i == 0 else 1  # at first, grad_W is not initialized
                    torch.addmm(grad_W, grad.T, h[chunk], beta=beta, out_dtype=torch.float32, out=grad_W)
                    continue
                grad_h[chunk] = mm(grad, W)
                if dtype == weight.dtype:
                    addmm_(grad_W.T, h[chunk].T, grad)
                else:
                    grad_W += (h[chunk].T @ grad).T
        ctx.grads, ctx.scale = (grad_h, grad_W), scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if ctx.grads is None:
            raise RuntimeError('mean_loss supports one backward pass: its gradients are scaled in place')
        (grad_h, grad_W), ctx.grads = ctx.grads, None
        grad = grad / ctx.scale
        return grad_h.mul_(grad), grad_W.mul_(grad), None, None, None, None


def _cross_entropy_with_grad(logits, targets, C, scale, z=0.0):
    dtype, logits = logits.dtype, _at_least_float32(logits)
    logits[:, C:] = -torch.inf  # the padding rows only make the matmul faster
    f_y = logits.gather(1, targets[:, None]).squeeze(1)
    largest = logits.amax(-1)
    p = torch.softmax(logits, dim=-1, out=logits)  # works row by row, so it may overwrite its input
    # log sum exp f = f_j - log p_j for any j; the most likely class has the most accurate p_j
    losses = (largest - f_y) - p.amax(-1).log()
    if z:
        log_Z = losses + f_y
        losses = losses + z * log_Z ** 2
        p *= (1 + 2 * z * log_Z)[:, None]
    p[torch.arange(len(targets), device=targets.device), targets] -= 1
    return losses, p.to(dtype) if scale == 1 else p.mul_(scale).to(dtype)


@functools.lru_cache(maxsize=1)
def _as_tensor(loss, dtype, device):
    coefficients = torch.tensor(loss, dtype=dtype)  # as numbers, each iteration of a schedule would compile again
    return coefficients.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else coefficients.to(device)


def _family_with_grad(logits, targets, C, scale, coefficients):
    """Any LossCoefficients and its gradient, for torch.compile: one kernel for the sums, one for the gradient."""
    row_sums, write_gradient = _compiled()
    losses, *row = row_sums(logits, targets, C, coefficients)
    write_gradient(logits, targets, C, scale, coefficients, *row)
    return losses, logits


@functools.cache  # only when it is needed: importing torch's compiler takes a second
def _compiled():
    return torch.compile(_row_sums), torch.compile(_write_gradient)


def _row_sums(logits, targets, C, coefficients):
    c, a2, a1, b2, b1, b0, z, centred = coefficients.unbind()
    is_class = _columns(logits) < C
    logits = _at_least_float32(logits)
    f = torch.where(is_class, logits, 0.0)
    total, squares = f.sum(-1), (f * f).sum(-1)
    log_Z = torch.where(is_class, logits, -torch.inf).logsumexp(-1)
    mean = centred * total / C
    f_y = logits.gather(1, targets[:, None]).squeeze(1)
    g_y = f_y - mean
    losses = c * (log_Z - f_y) + z * log_Z ** 2 + a2 * (squares - mean * (2 * total - C * mean)) + \
        a1 * (total - C * mean) + b2 * g_y * g_y + b1 * g_y + b0
    slope_y = 2 * b2 * g_y + b1
    constant = (1 - centred) * a1 - centred * slope_y / C - 2 * a2 * mean
    return losses, log_Z, c + 2 * z * log_Z, constant, slope_y - c


def _write_gradient(logits, targets, C, scale, coefficients, *row):
    log_Z, softmax_weight, constant, at_target = (x[:, None] for x in row)
    column = _columns(logits)
    f = _at_least_float32(logits)
    grad = softmax_weight * (f - log_Z).exp() + 2 * coefficients[1] * f + constant
    grad = grad + torch.where(column == targets.int()[:, None], at_target, 0.0)
    logits.copy_(torch.where(column < C, scale * grad, 0.0))


def _columns(logits):
    return torch.arange(logits.size(1), dtype=torch.int32, device=logits.device)


def _custom_with_grad(loss):
    def with_grad(logits, targets, C, scale):
        dtype, logits = logits.dtype, _at_least_float32(logits)
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            losses = loss(logits[:, :C], targets)
            grad, = torch.autograd.grad(losses.sum(), logits)
        return losses.detach(), (scale * grad).to(dtype)
    return with_grad


def chunk_rows(C, device):
    """Return the number of tokens whose logits exist at a time, at least 256, since the matmul is slow for fewer.

    Their float32 logits take 8 MB on a CPU, which fit its cache, and at most 1/64 of the memory of a CUDA GPU, where a
    power of two divides the usual batches into chunks of one shape.
    """
    if device.type == 'cpu':
        budget = 2**23
    elif device.type == 'cuda':
        rows = torch.cuda.get_device_properties(device).total_memory // 64 // (4 * C)
        return max(256, 2**(rows.bit_length() - 1))
    else:
        budget = 2**28
    return max(256, budget // (4 * C))


def _at_least_float32(x):
    return x if x.dtype == torch.float64 else x.float()
