"""Products by oneDNN against float64, and what they change in a process that has taken them over."""
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import products

needs_onednn = pytest.mark.skipif(not products.X86, reason='torch has no oneDNN for this processor')


def close(ours, exact, dtype=torch.float32):
    eps = torch.finfo(dtype).eps
    return (ours.double() - exact).abs().max() < 50 * eps * exact.abs().max()


LAYOUTS = {'rows': torch.randn, 'columns': lambda n, m: torch.randn(m, n).T,
           'padded': lambda n, m: torch.randn(n, m + 3)[:, :m], 'stepped': lambda n, m: torch.randn(n, 2 * m)[:, ::2],
           'expanded': lambda n, m: torch.randn(n, 1).expand(n, m), 'overlapping': lambda n, m:
           torch.randn(n + m - 1).unfold(0, m, 1)}


@needs_onednn
@pytest.mark.parametrize('n, k, m', [(300, 128, 130), (130, 300, 128), (7, 5, 3)])
@pytest.mark.parametrize('of_a', LAYOUTS)
@pytest.mark.parametrize('of_b', LAYOUTS)
def test_products(n, k, m, of_a, of_b):
    """mm, addmm and addmm_ are the float64 products, large and small, however the factors lie."""
    a, b = LAYOUTS[of_a](n, k), LAYOUTS[of_b](k, m)
    exact, bias, sum = a.double() @ b.double(), torch.randn(m), torch.randn(n, m)
    assert close(products.mm(a, b), exact)
    assert close(products.addmm(bias, a, b), exact + bias)
    assert close(products.addmm(sum, a, b), exact + sum)
    assert close(products.addmm(bias, a, b, beta=0.5, alpha=2), 2 * exact + 0.5 * bias)
    before = sum.double()
    assert products.addmm_(sum, a, b) is sum and close(sum, exact + before)
    products.addmm_(sum, a, b, alpha=-1)
    torch.testing.assert_close(sum.double(), before, rtol=0, atol=1e-4)


@needs_onednn
def test_mistakes():
    """Shapes and types that do not fit are refused by torch, with its own words."""
    a, b = torch.randn(300, 128), torch.randn(130, 128)
    with pytest.raises(RuntimeError, match='mat1 and mat2 shapes cannot be multiplied'):
        products.mm(a, b)
    with pytest.raises(RuntimeError, match='expected'):
        products.mm(a, b.T.double())
    with pytest.raises(RuntimeError):
        products.addmm_(torch.zeros(1, 130), a, b.T)


@pytest.mark.parametrize('rows', [1, 10])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('size', [(512, 512), (16, 8)])
@pytest.mark.parametrize('with_bias', [True, False])
@torch.inference_mode()
def test_weight(rows, dtype, size, with_bias):
    """A Weight makes x W' + b, and adds it to a residual of another type too."""
    weight, bias, x = torch.randn(size), torch.randn(size[0]) if with_bias else None, torch.randn(rows, size[1])
    layer = products.Weight(weight, bias, rows, dtype)
    exact = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
    assert layer(x).dtype is dtype and close(layer(x), exact, dtype)
    for kind in (torch.float32, dtype):
        residual = torch.randn(rows, size[0]).to(kind)
        assert close(layer.added_to(residual, x.to(dtype)), exact + residual, dtype)


SCRIPT = '''
import sys, torch
import losses, products
from model import GPT, GPTConfig
if sys.argv[1] == 'True':
    assert products.take_over('AuthenticAMD') == 'oneDNN' and products.take_over('AuthenticAMD') == 'oneDNN'
torch.manual_seed(1)
model = GPT(GPTConfig(block_size=64, vocab_size=1000, n_layer=2, n_head=2, n_embd=64))
x, y = torch.randint(1000, (2, 8, 64))
value = losses.mean_loss(losses.squentropy(1000), model(x), model.lm_head.weight, y, 1000)
value.backward()
torch.save([value.detach()] + [p.grad for p in model.parameters()], sys.argv[2])
'''


@needs_onednn
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != 'AVX512' or not torch.backends.mkl.is_available(),
                    reason='only where there is AVX-512, and MKL beside oneDNN')
def test_taken_over(tmp_path):
    """A process whose products oneDNN makes has the same loss and gradients, but for rounding, and says nothing."""
    found = []
    for take in (True, False):
        done = subprocess.run([sys.executable, '-c', SCRIPT, str(take), str(tmp_path / 'a')], cwd=ROOT, text=True,
                              capture_output=True, check=True)
        assert done.stderr == ''
        found.append(torch.load(tmp_path / 'a', weights_only=True))
    assert not all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # another library rounds in another way
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_not_taken_over():
    """Where MKL is on its own ground it stays."""
    assert products.take_over('GenuineIntel') == 'torch' and not products.LIBRARY
