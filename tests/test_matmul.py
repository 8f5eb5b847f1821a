"""oneDNN's products against float64, and their effect on a process that uses them."""
import pytest
import torch
from conftest import ROOT, run

from nanoloss import matmul

needs_onednn = pytest.mark.skipif(not matmul.HAS_ONEDNN, reason='PyTorch has no oneDNN for this processor')


def is_close(x, exact):
    return (x.double() - exact).abs().max() < 50 * torch.finfo(x.dtype).eps * exact.abs().max()


STRIDES = {'rows': torch.randn, 'columns': lambda n, m: torch.randn(m, n).T,
           'padded': lambda n, m: torch.randn(n, m + 3)[:, :m], 'stepped': lambda n, m: torch.randn(n, 2 * m)[:, ::2],
           'expanded': lambda n, m: torch.randn(n, 1).expand(n, m),
           'overlapping': lambda n, m: torch.randn(n + m - 1).unfold(0, m, 1)}


@needs_onednn
@pytest.mark.parametrize('n, k, m', [(300, 128, 130), (130, 300, 128), (7, 5, 3)])
@pytest.mark.parametrize('b_strides', STRIDES)
@pytest.mark.parametrize('a_strides', STRIDES)
def test_products(n, k, m, a_strides, b_strides):
    """mm, addmm and addmm_ equal float64 products, large and small, whatever the strides."""
    a, b = STRIDES[a_strides](n, k), STRIDES[b_strides](k, m)
    exact, bias, matrix = a.double() @ b.double(), torch.randn(m), torch.randn(n, m)
    assert is_close(matmul.mm(a, b), exact)
    assert is_close(matmul.addmm(bias, a, b), exact + bias)
    assert is_close(matmul.addmm(matrix, a, b), exact + matrix)
    assert is_close(matmul.addmm(bias, a, b, beta=0.5, alpha=2), 2 * exact + 0.5 * bias)
    before = matrix.double()
    assert matmul.addmm_(matrix, a, b) is matrix and is_close(matrix, exact + before)
    matmul.addmm_(matrix, a, b, alpha=-1)
    torch.testing.assert_close(matrix.double(), before, rtol=0, atol=1e-4)


@needs_onednn
def test_invalid_arguments():
    """Shapes and dtypes that do not match raise PyTorch's own error."""
    a, b = torch.randn(300, 128), torch.randn(130, 128)
    for product in (lambda: matmul.mm(a, b), lambda: matmul.mm(a, b.T.double()),
                    lambda: matmul.addmm_(torch.zeros(1, 130), a, b.T)):
        with pytest.raises(RuntimeError):
            product()


@pytest.mark.parametrize('rows', [1, 10])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('size', [(512, 512), (16, 8)])
@pytest.mark.parametrize('has_bias', [True, False])
@torch.inference_mode()
def test_packed_linear(rows, dtype, size, has_bias):
    """A PackedLinear equals the float64 linear layer, and adds to a residual of another dtype too."""
    weight, x = torch.randn(size), torch.randn(rows, size[1])
    bias = torch.randn(size[0]) if has_bias else None
    layer = matmul.PackedLinear(weight, bias, rows, dtype)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    y = layer(x)
    assert y.dtype is dtype and is_close(y, exact)
    for residual_dtype in (torch.float32, dtype):
        residual = torch.randn(rows, size[0]).to(residual_dtype)
        total = layer.add_to(residual, x.to(dtype))
        assert is_close(total.to(dtype), exact + residual)


SCRIPT = f'''
import sys, torch
sys.path.insert(0, {str(ROOT)!r})
import losses
from model import GPT, GPTConfig
from nanoloss import matmul
if sys.argv[1] == 'oneDNN':
    assert matmul.use_onednn('AuthenticAMD') == 'oneDNN' and matmul.use_onednn('AuthenticAMD') == 'oneDNN'
torch.manual_seed(1)
model = GPT(GPTConfig(block_size=64, vocab_size=1000, n_layer=2, n_head=2, n_embd=64))
x, y = torch.randint(1000, (2, 8, 64))
loss = losses.mean_loss(losses.squentropy(1000), model(x), model.lm_head.weight, y, 1000)
loss.backward()
torch.save([loss.detach()] + [p.grad for p in model.parameters()], sys.argv[2])
'''


@needs_onednn
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != 'AVX512' or not torch.backends.mkl.is_available(),
                    reason='needs AVX-512 and MKL')
def test_use_onednn(tmp_path):
    """A process that uses oneDNN gets the same loss and gradients up to rounding, and prints no warning."""
    (tmp_path / 'script.py').write_text(SCRIPT)
    results = []
    for library in ('oneDNN', 'torch'):
        path = tmp_path / library
        status, _, err = run(tmp_path / 'script.py', library, path)
        assert status == 0 and err == ''
        results.append(torch.load(path, weights_only=True))
    assert not all(torch.equal(a, b) for a, b in zip(*results, strict=True))  # the libraries round differently
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_intel_keeps_mkl():
    """On Intel's processors nothing is replaced."""
    assert matmul.use_onednn('GenuineIntel') == 'torch' and not matmul.libraries
