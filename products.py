"""Products of matrices on a CPU, by oneDNN where torch's own choice, MKL, is slower.

MKL does not use AVX-512 on processors that are not Intel's: there oneDNN, which torch brings too, makes a float32
product in less than half of the time. Thin products, a few rows with a large matrix, it makes sooner everywhere,
if the matrix is laid out for it once. The operations are those that torch.compile's own code calls.
"""
import platform
import warnings

import torch

X86 = platform.machine().lower() in ('x86_64', 'amd64') and torch.backends.mkldnn.is_available() and \
    hasattr(torch.ops.mkldnn, '_linear_pointwise') and hasattr(torch.ops.mkldnn, '_reorder_linear_weight')
PACKED = (torch.float32, *[torch.bfloat16] * (X86 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
NOT_INTEL = ('AuthenticAMD', 'HygonGenuine')
SMALL = 2**21  # multiplications below which the call costs more than oneDNN gains
LIBRARY = []   # holds what take_over() registers, which ends with it


def linear(x, weight, bias=None):
    """x (n, in) times weight (out, in) transposed, plus bias (out,)."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, 'none', [], '')


def dense(weight):
    """weight, or a copy where oneDNN would need long for its strides, or could not read them."""
    return weight if weight.is_contiguous() or weight.T.is_contiguous() else weight.contiguous()


def by_onednn(a, b):
    """Whether a @ b is a float32 product of some size; the others, and mistakes, are torch's own."""
    return a.dtype is b.dtype is torch.float32 and a.dim() == b.dim() == 2 and a.size(1) == b.size(0) \
        and a.size(0) * a.size(1) * b.size(1) >= SMALL


def mm(a, b):
    """a @ b, (n, k) times (k, m). What comes out may lie transposed."""
    if not by_onednn(a, b):
        return torch.mm(a, b, out=a.new_empty(0))  # with out= it is another operation, which is not taken over
    if a.stride(0) == 1 and a.size(0) > b.size(1):  # a weight's gradient: its smaller factor is the one to be copied
        return linear(b.T, dense(a)).T
    return linear(a, dense(b.T))


def addmm_(self, a, b, *, beta=1, alpha=1):
    """self = beta self + alpha a @ b, in place."""
    if by_onednn(a, b) and alpha == beta == 1 and self.dtype is torch.float32 and \
            self.shape == (a.size(0), b.size(1)):
        return self.add_(linear(a, dense(b.T)))
    return self.copy_(torch.addmm(self, a, b, beta=beta, alpha=alpha))


def addmm(self, a, b, *, beta=1, alpha=1):
    """beta self + alpha a @ b; by oneDNN where self is a bias (m,)."""
    if by_onednn(a, b) and alpha == beta == 1 and self.dtype is torch.float32 and self.shape == b.shape[1:]:
        return linear(a, dense(b.T), self.contiguous())
    return torch.addmm(self, a, b, beta=beta, alpha=alpha, out=a.new_empty(0))


def take_over(vendor):
    """Have oneDNN make this process's float32 products, where MKL would make them without AVX-512. Returns who makes
    them, in a word; vendor: of the processor, as it names itself."""
    if not X86 or not torch.backends.mkl.is_available() or not any(name in vendor for name in NOT_INTEL) \
            or torch.backends.cpu.get_cpu_capability() != 'AVX512':
        return 'torch'
    if not LIBRARY:
        LIBRARY.append(torch.library.Library('aten', 'IMPL'))
        with warnings.catch_warnings():  # torch says that this overrides something; that is the intent
            warnings.simplefilter('ignore')
            for operation in (mm, addmm, addmm_):
                LIBRARY[0].impl(operation.__name__, operation, 'CPU')
    return 'oneDNN'


class Weight:
    """A linear layer for products with the same few rows again and again, without gradients."""

    def __init__(self, weight, bias, rows, dtype):
        """weight (out, in), bias (out,) or None; rows: how many x will have; dtype: in which the product is made."""
        self.dtype = dtype
        self.bias = None if bias is None else bias.to(dtype)
        self.packed = X86 and weight.device.type == 'cpu' and dtype in PACKED and rows * weight.numel() >= 2**18
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), rows)
        else:
            self.weight = weight.T.to(dtype).contiguous()

    def __call__(self, x):
        """x (rows, in) -> (rows, out)."""
        x = x.to(self.dtype)
        if self.packed:
            return linear(x, self.weight, self.bias)
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def added_to(self, residual, x):
        """residual (rows, out) + what __call__ makes of x."""
        if self.packed and residual.dtype is self.dtype:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, 'add')
        if self.bias is None and residual.dtype is self.dtype:
            return torch.addmm(residual, x, self.weight)
        return residual + self(x)
