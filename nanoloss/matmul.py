"""Fast CPU matmul: use oneDNN where it is faster than PyTorch's default, which is MKL on x86.

PyTorch ships both. On some processors oneDNN computes float32 products in half the time, because MKL does not use
AVX-512 there; on others they are equally fast, so both are timed. oneDNN is also faster on every processor for a
product of a few rows with a large weight, if the weight is packed beforehand. This module calls the operators that
torch.compile generates.
"""
import math
import platform
import time

import torch
from torch.autograd.function import once_differentiable

import losses

HAS_ONEDNN = platform.machine().lower() in ('x86_64', 'amd64') and torch.backends.mkldnn.is_available() and \
    hasattr(torch.ops.mkldnn, '_linear_pointwise') and hasattr(torch.ops.mkldnn, '_reorder_linear_weight')
PACKED_DTYPES = {torch.float32}
if HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    PACKED_DTYPES.add(torch.bfloat16)
MIN_MULTIPLICATIONS = 2**21   # below this, the overhead of a call outweighs the gain
MIN_PACKED_MULTIPLICATIONS = 2**18
# The libraries round differently, so if they are equally fast, each run has to choose the same one. The ratio of their
# times varies by 2 % from one measurement to the next, and by 5 % if other programs use all cores.
MIN_SPEEDUP = 1.05
# processor time, which does not pass while other programs use the core; on Windows it advances in steps of 16 ms
clock = time.perf_counter if platform.system() == 'Windows' else time.thread_time


def linear(x, weight, bias=None):
    """Return x (n, in) @ weight (out, in).T + bias (out,), computed by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, 'none', [], '')


def dense(x):
    """Return x, or a contiguous copy if oneDNN is slow with its strides or does not support them."""
    return x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous()


def is_worthwhile(a, b):
    """Return whether a @ b is a valid float32 product on the CPU that is large enough for oneDNN."""
    return a.dtype is b.dtype is torch.float32 and a.device.type == b.device.type == 'cpu' \
        and a.dim() == b.dim() == 2 and a.size(1) == b.size(0) \
        and a.size(0) * a.size(1) * b.size(1) >= MIN_MULTIPLICATIONS


def mm(a, b):
    """Return a (n, k) @ b (k, m), by oneDNN if that is worthwhile. The result may be a transposed view."""
    if not is_worthwhile(a, b):
        return torch.mm(a, b)
    if a.stride(0) == 1 and a.size(0) > b.size(1):  # the gradient of a weight: copy the smaller factor
        return linear(b.T, dense(a)).T
    return linear(a, dense(b.T))


def addmm_(self, a, b):
    """Add a (n, k) @ b (k, m) to self (n, m) in place, by oneDNN if that is worthwhile."""
    if is_worthwhile(a, b) and self.dtype is torch.float32 and self.shape == (a.size(0), b.size(1)):
        return self.add_(linear(a, dense(b.T)))
    return self.addmm_(a, b)


class _LinearFunction(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return linear(dense(x.reshape(-1, x.size(-1))), weight, bias).reshape(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.size(-1)), grad.reshape(-1, grad.size(-1))
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (mm(grad, weight).reshape(x.shape) if needs_x else None, mm(grad.T, rows) if needs_weight else None,
                grad.sum(0) if needs_bias else None)


class Linear(torch.nn.Linear):
    """A linear layer whose float32 products are computed by oneDNN, those of the backward pass too."""

    def forward(self, x):
        is_small = x.numel() * self.out_features < MIN_MULTIPLICATIONS
        is_supported = x.dtype is torch.float32 and x.device.type == 'cpu'
        if is_small or not is_supported or torch.is_autocast_enabled('cpu'):
            return super().forward(x)
        return _LinearFunction.apply(x, self.weight, self.bias)


def use(library, model):
    """Let a library, 'torch' or 'onednn', compute the float32 products of a model's linear layers and of the head.

    The products of the head, losses.mm and losses.addmm_, are those of all models in this process.
    """
    layer_class, losses.mm, losses.addmm_ = {'torch': (torch.nn.Linear, torch.mm, torch.Tensor.addmm_),
                                             'onednn': (Linear, mm, addmm_)}[library]
    for layer in model.modules():
        if type(layer) in (torch.nn.Linear, Linear):
            layer.__class__ = layer_class


def training_products(config, rows):
    """Return [(weight, a, b)] of the float32 products a @ b of an iteration: blocks and head, forward and backward.

    Large products are represented by smaller ones of the same kind, which take milliseconds. The time of an iteration
    is then the sum of weight * time of the product.

    Args:
        config: GPTConfig of the model.
        rows: tokens per micro-batch.
    """
    d, C = config.n_embd, math.ceil(config.vocab_size / 64) * 64  # with padding
    chunk = min(rows, losses.chunk_rows(config.vocab_size, torch.device('cpu')))
    layers = [(config.n_layer, rows, d, width) for width in (3 * d, d, 4 * d)]
    layers += [(config.n_layer, rows, 4 * d, d), (rows / chunk, chunk, d, C)]
    products = []
    for weight, *sizes in layers:
        weight *= math.prod(sizes)
        while math.prod(sizes) > 2**26:
            shrunk = 0 if sizes[0] > 256 else sizes.index(max(sizes))  # products of few rows are of another kind
            sizes[shrunk] //= 2
        n, k, m = sizes
        x, w, grad = torch.ones(n, k), torch.ones(m, k), torch.ones(n, m)
        products += [(weight / (n * k * m), a, b) for a, b in ((x, w.T), (grad, w), (grad.T, x))]
    return products


def faster_library(config, rows):
    """Return 'onednn' if it computes the products of training_products() faster by MIN_SPEEDUP, otherwise 'torch'.

    It takes about 0.25 s of processor time. Each product is timed several times, the libraries in turns, and its
    shortest time counts. All on one thread: with several, other programs that use the cores change the ratio by a
    factor of two.
    """
    products = training_products(config, rows)
    if not HAS_ONEDNN or not any(is_worthwhile(a, b) for _, a, b in products):
        return 'torch'
    times = [(math.inf, math.inf)] * len(products)
    n_threads, start = torch.get_num_threads(), clock()
    try:
        torch.set_num_threads(1)
        for repetition in range(10):
            for i, (_, a, b) in enumerate(products):
                seconds = [_seconds(product, a, b) for product in (torch.mm, mm)]
                times[i] = tuple(map(min, times[i], seconds))
            if repetition > 1 and clock() - start > 0.2:
                break
    finally:
        torch.set_num_threads(n_threads)
    torch_seconds, onednn_seconds = (sum(weight * t[i] for (weight, *_), t in zip(products, times, strict=True))
                                     for i in range(2))
    return 'onednn' if torch_seconds > MIN_SPEEDUP * onednn_seconds else 'torch'


def _seconds(product, a, b):
    start = clock()
    product(a, b)
    return clock() - start


class PackedLinear:
    """A linear layer for inference with a fixed number of input rows. On a CPU, large weights are packed for oneDNN."""

    def __init__(self, weight, bias, rows, dtype):
        """Copy the layer.

        Args:
            weight: (out, in).
            bias: (out,) or None.
            rows: number of rows of the inputs.
            dtype: of the product.
        """
        self.dtype = dtype
        self.bias = None if bias is None else bias.to(dtype)
        self.is_packed = HAS_ONEDNN and weight.device.type == 'cpu' and dtype in PACKED_DTYPES and \
            rows * weight.numel() >= MIN_PACKED_MULTIPLICATIONS
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), rows)
        else:
            self.weight = weight.T.to(dtype).contiguous()

    def __call__(self, x):
        """Return the output (rows, out) for x (rows, in)."""
        x = x.to(self.dtype)
        if self.is_packed:
            return linear(x, self.weight, self.bias)
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def add_to(self, residual, x):
        """Return residual (rows, out) plus the output for x (rows, in), which has the layer's dtype."""
        if self.is_packed and residual.dtype is self.dtype:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, 'add')
        if self.bias is None and residual.dtype is self.dtype:
            return torch.addmm(residual, x, self.weight)
        return residual + self(x)
