"""oneDNN's products against float64, a model that uses them, and the choice between the libraries."""
import pytest
import torch

import losses
from model import GPT, GPTConfig
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
    """mm and addmm_ equal float64 products, large and small, whatever the strides."""
    a, b = STRIDES[a_strides](n, k), STRIDES[b_strides](k, m)
    exact, matrix = a.double() @ b.double(), torch.randn(n, m)
    assert is_close(matmul.mm(a, b), exact)
    before = matrix.double()
    assert matmul.addmm_(matrix, a, b) is matrix and is_close(matrix, exact + before)


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


@needs_onednn
@pytest.mark.parametrize('shape', [(3, 200, 128), (4, 128)])
@pytest.mark.parametrize('has_bias', [True, False])
def test_linear(shape, has_bias):
    """The output and the gradients of a layer, large or small, are those of a float64 layer; under autocast and in
    float64 it is PyTorch's."""
    layer, x = matmul.Linear(128, 130, bias=has_bias), torch.randn(128, *shape[:-1]).movedim(0, -1).requires_grad_()
    exact = torch.nn.Linear(128, 130, bias=has_bias).double()
    exact.load_state_dict(layer.state_dict())
    grad = torch.randn(130, *shape[:-1]).movedim(0, -1)
    y, exact_y = layer(x), exact(x.double())
    parameters, exact_parameters = [x, *layer.parameters()], [x.detach().double().requires_grad_(), *exact.parameters()]
    assert y.shape == exact_y.shape and is_close(y, exact_y)
    exact_grads = torch.autograd.grad(exact(exact_parameters[0]), exact_parameters, grad.double())
    for found, expected in zip(torch.autograd.grad(y, parameters, grad), exact_grads, strict=True):
        assert is_close(found, expected)
    plain = torch.nn.Linear(128, 130, bias=has_bias)
    plain.load_state_dict(layer.state_dict())
    with torch.autocast('cpu'):
        assert torch.equal(layer(x), plain(x)) and layer(x).dtype is torch.bfloat16
    assert torch.equal(layer.double()(x.double()), exact_y)


def count_calls(monkeypatch, name):
    """Return a list that grows with every call of this function of matmul."""
    calls, function = [], getattr(matmul, name)
    monkeypatch.setattr(matmul, name, lambda *arguments: calls.append(arguments) or function(*arguments))
    return calls


@needs_onednn
@pytest.mark.parametrize('frozen', ['x', 'weight', 'bias'])
def test_frozen_parameters(frozen, monkeypatch):
    """The backward pass computes only the gradients that are needed."""
    layer = matmul.Linear(128, 130)
    tensors = {'x': torch.randn(600, 128, requires_grad=True), 'weight': layer.weight, 'bias': layer.bias}
    tensors[frozen].requires_grad_(False)
    y, products = layer(tensors['x']), count_calls(monkeypatch, 'mm')
    y.sum().backward()
    assert len(products) == (2 if frozen == 'bias' else 1)
    assert [name for name, tensor in tensors.items() if tensor.grad is None] == [frozen]


def test_other_devices(monkeypatch):
    """Products and layers on another device than the CPU never use oneDNN."""
    calls = count_calls(monkeypatch, 'linear')
    with torch.device('meta'):
        a, layer, matrix = torch.empty(512, 512), matmul.Linear(512, 512), torch.empty(512, 512)
    assert matmul.mm(a, a).is_meta and matmul.addmm_(matrix, a, a) is matrix and layer(a).is_meta and not calls


def loss_and_gradients(model):
    torch.manual_seed(1)
    x, y = torch.randint(1000, (2, 8, 64))
    model.zero_grad()
    loss = losses.mean_loss(losses.squentropy(1000), model(x), model.lm_head.weight, y, 1000)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@needs_onednn
def test_use(monkeypatch):
    """A model that uses oneDNN has the same parameters and, up to rounding, the same loss and gradients; it can go back
    to torch, and other products of the process do not change."""
    for name in ('mm', 'addmm_'):
        monkeypatch.setattr(losses, name, getattr(losses, name))  # restored at the end
    model, a = GPT(GPTConfig(block_size=64, vocab_size=1000, n_layer=2, n_head=2, n_embd=64)), torch.randn(512, 512)
    calls = count_calls(monkeypatch, 'linear')
    names, expected, product = list(model.state_dict()), loss_and_gradients(model), a @ a
    assert not calls
    matmul.use('onednn', model)
    found, n_calls = loss_and_gradients(model), len(calls)
    assert list(model.state_dict()) == names and torch.equal(a @ a, product) and len(calls) == n_calls
    # forward and backward: of the blocks the two layers of the MLP are large enough, and the whole head
    assert n_calls > 2 * 2 * 3
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    matmul.use('torch', model)
    assert all(map(torch.equal, loss_and_gradients(model), expected)) and len(calls) == n_calls


def config(**changes):
    return GPTConfig(**{**dict(block_size=64, vocab_size=1000, n_layer=2, n_head=2, n_embd=64), **changes})


@needs_onednn
@pytest.mark.parametrize('seconds, library', [((1, 0.5), 'onednn'), ((1, 0.98), 'torch'), ((1, 1), 'torch'),
                                              ((0.5, 1), 'torch')])
def test_faster_library(seconds, library, monkeypatch):
    """oneDNN is chosen if its shortest times are clearly shorter, even if later ones are disturbed."""
    now = [0.0]

    def takes(seconds, is_disturbed):
        def product(a, b):
            assert a.size(1) == b.size(0)
            calls.append(seconds)
            now[0] += 1e-6 * seconds * (100 if is_disturbed and len(calls) > 60 else 1)
        calls = []
        return product
    monkeypatch.setattr(torch, 'mm', takes(seconds[0], library == 'torch'))
    monkeypatch.setattr(matmul, 'mm', takes(seconds[1], library == 'onednn'))
    monkeypatch.setattr(matmul, 'clock', lambda: now[0])
    assert matmul.faster_library(config(), 512) == library


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_choice_has_no_side_effects(two_threads, monkeypatch):
    """Timing the libraries leaves the number of threads and the random numbers alone, and a model whose products are
    all too small for oneDNN is not timed."""
    state = torch.get_rng_state()
    assert matmul.faster_library(config(), 512) in ('torch', 'onednn')
    assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(matmul, 'clock', None)
    assert matmul.faster_library(config(n_embd=16, vocab_size=256), 128) == 'torch'


@needs_onednn
def test_interrupted_choice(two_threads, monkeypatch):
    """The number of threads is restored if the timing is interrupted."""
    def interrupt(product, a, b):
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt
    monkeypatch.setattr(matmul, '_seconds', interrupt)
    with pytest.raises(KeyboardInterrupt):
        matmul.faster_library(config(), 512)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize('changes, rows', [({}, 512), ({}, 2**20),
                                           ({'n_layer': 12, 'n_embd': 768, 'vocab_size': 50257}, 16384)])
def test_training_products(changes, rows):
    """The weighted products have as many multiplications as an iteration, and none takes long."""
    c = config(**changes)
    sizes = [(weight, a.size(0) * a.size(1) * b.size(1)) for weight, a, b in matmul.training_products(c, rows)]
    forward = rows * (12 * c.n_layer * c.n_embd**2 + -(-c.vocab_size // 64) * 64 * c.n_embd)
    assert sum(weight * size for weight, size in sizes) == pytest.approx(3 * forward)
    assert all(size <= 2**26 for _, size in sizes)


def test_rows_shrink_first():
    """Large products are represented by ones with fewer rows, and narrower only if 256 rows are still too many."""
    products = matmul.training_products(config(n_embd=192), 2**14)
    assert [b.shape for _, _, b in products[::3]] == [(192, 576), (192, 192), (192, 768), (768, 192), (192, 1024)]
    wide = matmul.training_products(config(n_embd=768, vocab_size=50257), 2**14)
    assert min(a.size(0) for _, a, _ in wide[::3]) >= 256
