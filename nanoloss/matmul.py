"""Fast CPU matmul: use oneDNN where MKL, PyTorch's default, is slower.

MKL does not use AVX-512 on processors that are not Intel's. On these, oneDNN (which PyTorch ships as well) computes
float32 products in less than half the time. oneDNN is also faster on every processor for a product of a few rows with
a large weight, if the weight is packed beforehand. This module calls the operators that torch.compile generates.
"""
import platform
import warnings

import torch

HAS_ONEDNN = platform.machine().lower() in ('x86_64', 'amd64') and torch.backends.mkldnn.is_available() and \
    hasattr(torch.ops.mkldnn, '_linear_pointwise') and hasattr(torch.ops.mkldnn, '_reorder_linear_weight')
PACKED_DTYPES = {torch.float32}
if HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    PACKED_DTYPES.add(torch.bfloat16)
SLOW_WITH_MKL = ('AuthenticAMD', 'HygonGenuine')  # vendor strings of /proc/cpuinfo
MIN_MULTIPLICATIONS = 2**21   # below this, the overhead of a call outweighs the gain
MIN_PACKED_MULTIPLICATIONS = 2**18
libraries = []  # keeps the registered kernels alive


def linear(x, weight, bias=None):
    """Return x (n, in) @ weight (out, in).T + bias (out,), computed by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, 'none', [], '')


def dense(x):
    """Return x, or a contiguous copy if oneDNN is slow with its strides or does not support them."""
    return x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous()


def is_worthwhile(a, b):
    """Return whether a @ b is a valid float32 product that is large enough for oneDNN."""
    return a.dtype is b.dtype is torch.float32 and a.dim() == b.dim() == 2 and a.size(1) == b.size(0) \
        and a.size(0) * a.size(1) * b.size(1) >= MIN_MULTIPLICATIONS


# Replacements for aten::mm, aten::addmm and aten::addmm_. For other products and for invalid arguments they call
# PyTorch's own kernel through the out= overload, which is not replaced.

def mm(a, b):
    """Return a (n, k) @ b (k, m). The result may be a transposed view."""
    if not is_worthwhile(a, b):
        return torch.mm(a, b, out=a.new_empty(0))
    if a.stride(0) == 1 and a.size(0) > b.size(1):  # the gradient of a weight: copy the smaller factor
        return linear(b.T, dense(a)).T
    return linear(a, dense(b.T))


def addmm(self, a, b, *, beta=1, alpha=1):
    """Return beta * self + alpha * (a @ b). oneDNN is used only if self is a bias (m,)."""
    if is_worthwhile(a, b) and alpha == beta == 1 and self.dtype is torch.float32 and self.shape == b.shape[1:]:
        return linear(a, dense(b.T), self.contiguous())
    return torch.addmm(self, a, b, beta=beta, alpha=alpha, out=a.new_empty(0))


def addmm_(self, a, b, *, beta=1, alpha=1):
    """Compute self = beta * self + alpha * (a @ b) in place."""
    if is_worthwhile(a, b) and alpha == beta == 1 and self.dtype is torch.float32 and \
            self.shape == (a.size(0), b.size(1)):
        return self.add_(linear(a, dense(b.T)))
    return self.copy_(torch.addmm(self, a, b, beta=beta, alpha=alpha))


def use_onednn(vendor):
    """Let oneDNN compute the float32 products of this process if MKL would not use AVX-512.

    vendor: the vendor string of the CPU. Returns 'oneDNN', or 'torch' if nothing was replaced.
    """
    if not HAS_ONEDNN or not torch.backends.mkl.is_available() or not any(name in vendor for name in SLOW_WITH_MKL) \
            or torch.backends.cpu.get_cpu_capability() != 'AVX512':
        return 'torch'
    if not libraries:
        libraries.append(torch.library.Library('aten', 'IMPL'))
        with warnings.catch_warnings():  # PyTorch warns that this overrides a kernel, which is the intention
            warnings.simplefilter('ignore')
            for kernel in (mm, addmm, addmm_):
                libraries[0].impl(kernel.__name__, kernel, 'CPU')
    return 'oneDNN'


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
