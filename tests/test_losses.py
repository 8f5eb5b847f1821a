"""Losses against their published formulas on materialised logits in float64, and the link at the optimum."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import losses

CONSTANTS = dict(squentropy_weight=0.7, squentropy_target=0.3, mse_true_weight=3.0, mse_target=2.0)


# The formulas as the papers write them, one token at a time in the mind, with no six numbers.
def plain_cross_entropy(f, y):
    return -torch.log(torch.exp(f).gather(1, y[:, None])[:, 0] / torch.exp(f).sum(1))


def plain_mse(f, y, k, M):
    true = F.one_hot(y, f.size(1)).bool()
    return torch.where(true, k * (f - M) ** 2, f ** 2).sum(1)


def plain_squentropy(f, y, alpha=1.0, t=0.0):
    wrong = ~F.one_hot(y, f.size(1)).bool()
    return plain_cross_entropy(f, y) + alpha * ((f - t) ** 2 * wrong).sum(1) / (f.size(1) - 1)


def plain_original_study(f, y):
    target = F.one_hot(y, f.size(1)).to(f)
    return plain_cross_entropy(f, y) + (torch.where(target > 0, 65.0, 1.0) * (f - target) ** 2).mean(1)


def plain_centred(f, y, alpha):
    return plain_squentropy_part(f - f.mean(1, keepdim=True), y, alpha) + plain_cross_entropy(f, y)


def plain_squentropy_part(f, y, alpha):
    return plain_squentropy(f, y, alpha) - plain_cross_entropy(f, y)


def plain_smoothed(f, y, e):
    return -((1 - e) * F.one_hot(y, f.size(1)).to(f) + e / f.size(1)).mul(F.log_softmax(f, 1)).sum(1)


CASES = {
    'cross_entropy': ({}, plain_cross_entropy),
    'mse': ({}, lambda f, y: plain_mse(f, y, 1, 1)),
    'mse rescaled': (CONSTANTS, lambda f, y: plain_mse(f, y, 3, 2)),
    'squentropy': ({}, plain_squentropy),
    'squentropy weighted': (CONSTANTS, lambda f, y: plain_squentropy(f, y, 0.7, 0.3)),
    'cross_entropy_plus_mse': ({}, plain_original_study),
    'squentropy centred': (dict(squentropy_weight=0.7, squentropy_centred=True), lambda f, y: plain_centred(f, y, 0.7)),
    'cross_entropy_plus_square': (dict(squentropy_weight=0.7), lambda f, y: plain_cross_entropy(f, y) +
                                  0.7 * (f - f.mean(1, keepdim=True)).square().mean(1)),
    'cross_entropy smoothed': (dict(label_smoothing=0.2), lambda f, y: plain_smoothed(f, y, 0.2)),
    'cross_entropy z': (dict(z_loss=0.3), lambda f, y: plain_cross_entropy(f, y) + 0.3 * f.logsumexp(1) ** 2),
}


def case(key, C):
    constants, plain = CASES[key]
    return losses.make_loss(key.split()[0], C, **constants), plain


def head(N=37, C=70, d=16, rows=128, dtype=torch.float64):
    """Hidden states, head matrix with zero padding, targets."""
    W = torch.randn(rows, d, dtype=dtype)
    W[C:] = 0
    return torch.randn(N, d, dtype=dtype).requires_grad_(), W.requires_grad_(), torch.randint(C, (N,))


def reference(plain, h, W, y, C):
    """The mean loss and its gradients on materialised float64 logits."""
    h, W = (x.detach().double().requires_grad_() for x in (h, W))
    value = plain(h @ W[:C].T, y).mean()
    return value, *torch.autograd.grad(value, (h, W))


@pytest.mark.parametrize('rows', [70, 128])
@pytest.mark.parametrize('key', CASES)
def test_value_and_gradients_are_the_formulas(key, rows, monkeypatch):
    """In float64, over several uneven chunks, with and without padding rows, nothing but rounding differs."""
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 10)
    loss, plain = case(key, 70)
    h, W, y = head(rows=rows)
    value, grad_h, grad_W = reference(plain, h, W, y, 70)
    ours = losses.mean_loss(loss, h, W, y, 70)
    ours.backward()
    torch.testing.assert_close(ours, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(h.grad, grad_h, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(W.grad, grad_W, rtol=1e-9, atol=1e-12)
    assert W.grad[70:].abs().sum() == 0


def check_precision(key, device, dtype, tolerance):
    """Value and gradients of N = 200, C = 500 against float64, plain for float32, else under autocast."""
    loss, plain = case(key, 500)
    h, W, y = head(N=200, C=500, rows=512, dtype=torch.float32)
    W.data *= 0.1
    value, grad_h, grad_W = reference(plain, h, W, y, 500)
    h, W = (x.detach().to(device).requires_grad_() for x in (h, W))
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        ours = losses.mean_loss(loss, h, W, y.to(device), 500)
    ours.backward()
    assert ours.dtype == torch.float32
    assert abs(ours.cpu() - value) < tolerance * value
    assert (h.grad.cpu() - grad_h).norm() < tolerance * grad_h.norm()
    assert (W.grad.cpu() - grad_W).norm() < tolerance * grad_W.norm()


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize('key', CASES)
def test_float32_and_bfloat16_autocast(key, dtype, tolerance):
    """float32 and bf16 autocast give the float64 value and gradients to their precision."""
    check_precision(key, 'cpu', dtype, tolerance)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize('key', CASES)
def test_heads_on_cuda(key, dtype, tolerance):
    """On a GPU, plain and under both autocasts, value and gradients are the float64 ones to their precision."""
    check_precision(key, 'cuda', dtype, tolerance)


@pytest.mark.skipif(not hasattr(F, 'linear_cross_entropy'), reason='torch before 2.13 has no linear_cross_entropy')
def test_cross_entropy_is_torchs_fused_one():
    """Cross-entropy and its gradients equal torch's own fused linear_cross_entropy."""
    h, W, y = head(rows=70)
    theirs = torch.autograd.grad(F.linear_cross_entropy(h, W, y), (h, W))
    ours = torch.autograd.grad(losses.mean_loss(losses.cross_entropy(70), h, W, y, 70), (h, W))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation returned."""
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize('name,limit', [('cross_entropy', 1000 * 32), ('squentropy', 1000 * 32), ('mse', 1000 * 16)])
def test_never_all_logits(name, limit, monkeypatch):
    """No tensor of training holds more than a chunk of logits; MSE's none but the head's matrix."""
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 32)
    h, W, y = head(N=900, C=1000, d=16, rows=1000, dtype=torch.float32)
    with LargestTensor() as largest:
        losses.mean_loss(losses.make_loss(name, 1000), h, W, y, 1000).backward()
    assert largest.numel <= limit < 900 * 1000


def test_own_loss(monkeypatch):
    """A plain function of logits trains in chunks with autograd's gradients, and is read through softmax."""
    def smoothed(logits, targets):
        return F.cross_entropy(logits, targets, reduction='none', label_smoothing=0.1)
    monkeypatch.setitem(losses.OWN, 'smoothed', smoothed)
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 10)
    h, W, y = head()
    value, grad_h, grad_W = reference(smoothed, h, W, y, 70)
    ours = losses.mean_loss(losses.make_loss('smoothed', 70), h, W, y, 70)
    ours.backward()
    torch.testing.assert_close((ours, h.grad, W.grad), (value, grad_h, grad_W), rtol=1e-9, atol=1e-12)
    f = torch.randn(5, 70)
    assert torch.equal(losses.link(smoothed, f), F.softmax(f, -1))
    smoothed.link = lambda logits: torch.full_like(logits, 1 / 70)  # one that says otherwise
    assert torch.allclose(losses.nats(smoothed, f, torch.arange(5), mix=0.0), torch.tensor(70.0).log())


def test_unknown_loss_names_the_choices():
    """An unknown loss is refused with the list of those there are."""
    with pytest.raises(ValueError, match='cross_entropy, mse, squentropy'):
        losses.make_loss('squentrop', 10)


def minimise(loss, p):
    """arg min over f of E_{y~p} L(f, y) by Newton's method in float64, from f = 0."""
    C = len(p)

    def expected(f):
        log_p, log_Z, f = F.log_softmax(f, 0), f.logsumexp(0), f - f.mean() if loss.centred else f
        true = loss.b2 * f * f + loss.b1 * f - loss.c * log_p
        return (loss.a2 * f * f + loss.a1 * f).sum() + (p * true).sum() + loss.z * log_Z ** 2
    f = torch.zeros(C, dtype=torch.float64)
    for _ in range(100):
        g = torch.autograd.functional.jacobian(expected, f)
        step = torch.linalg.lstsq(torch.autograd.functional.hessian(expected, f), g, driver='gelsd').solution
        size = 1.0
        while size > 1e-9 and expected(f - size * step) > expected(f) + 1e-15:
            size /= 2
        f = f - size * step
    return f


@pytest.mark.parametrize('key', CASES)
def test_link_gives_back_the_distribution(key):
    """At the minimum of the expected loss, the link of f is the distribution that y was drawn from."""
    loss, _ = case(key, 12)
    for spread in (0.3, 1.0, 2.0):
        p = F.softmax(spread * torch.randn(12, dtype=torch.float64), 0)
        torch.testing.assert_close(losses.link(loss, minimise(loss, p)[None])[0], p, rtol=0, atol=1e-6)


@pytest.mark.parametrize('key', CASES)
def test_link_is_a_distribution_that_keeps_the_order(key):
    """Far off the optimum the link still sums to 1 and never ranks two tokens against their logits."""
    loss, _ = case(key, 50)
    for scale in (0.1, 3.0, 30.0, 300.0):
        f = scale * torch.randn(200, 50)
        p = losses.link(loss, f)
        assert (p >= 0).all() and torch.isfinite(p).all()
        torch.testing.assert_close(p.sum(-1), torch.ones(200), rtol=0, atol=1e-5)
        by_logit = p.gather(1, f.argsort(dim=1))
        assert (by_logit.diff(dim=1) >= 0).all()


def test_completion_is_the_nearest_distribution():
    """project(r) is the closest distribution to r: what sorting gives in float64, also where all are level, where
    one has everything, and where the sum is short of 1."""
    rows = torch.cat([torch.randn(60, 5000) * torch.logspace(-4, 1, 60)[:, None], torch.ones(1, 5000),
                      -torch.ones(1, 5000), torch.zeros(1, 5000)])
    rows[0, 7] = 50.0
    z = rows.double().sort(dim=1, descending=True).values
    excess = (z.cumsum(1) - 1) / torch.arange(1, 5001)
    tau = excess.gather(1, (z > excess).sum(1, keepdim=True) - 1)
    exact = (rows.double() - tau).clamp(min=0)
    torch.testing.assert_close(losses.project(rows).double(), exact, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(losses.project(rows.double()), exact, rtol=1e-9, atol=1e-12)
    p = F.softmax(rows, -1)
    torch.testing.assert_close(losses.project(p), p, rtol=1e-4, atol=1e-7)  # a distribution stays as it is


def test_zero_and_negative_denominators():
    """Where the denominator is zero, negative or below the numerator the link is the largest, and where the
    numerator is not positive the least; never NaN."""
    rescaled = losses.mse(6, mse_true_weight=3.0, mse_target=2.0)  # p = f / (6 - 2 f): 0 at f = 3, past 1 at f = 2
    p = losses.link(rescaled, torch.tensor([[3.0, 4.0, 2.5, 1.0, 0.0, -5.0], [0.1, 0.0, -1.0, -2.0, -9.0, 0.05]]))
    assert p[0, 0] == p[0, 1] == p[0, 2] == pytest.approx(1 / 3) and (p[0, 3:] == 0).all()
    assert p[1, 0] == p[1].max() and p[1].sum() == pytest.approx(1) and torch.isfinite(p).all()
    squentropy = losses.squentropy(6)  # the denominator is 1 + 0.4 f: 0 at f = -2.5
    p = losses.link(squentropy, torch.tensor([[-2.5, -3.0, -2.4, 1.0, 0.5, 0.0]]))
    assert torch.isfinite(p).all() and (p[0, :3] == p.min()).all() and p.argmax() == 3


def test_link_of_cross_entropy_is_softmax():
    """For plain cross-entropy the link is softmax to the last digit, and its nats are the cross-entropy."""
    f, y = 5 * torch.randn(100, 50), torch.randint(50, (100,))
    assert torch.equal(losses.link(losses.cross_entropy(50), f), F.softmax(f, -1))
    assert torch.equal(losses.nats(losses.cross_entropy(50), f, y), F.cross_entropy(f, y, reduction='none'))


def test_link_refuses_low_precision():
    """bfloat16 logits are refused: the link's numerator is a small difference."""
    with pytest.raises(TypeError, match='float32'):
        losses.link(losses.squentropy(10), torch.zeros(1, 10, dtype=torch.bfloat16))


@pytest.mark.parametrize('key', CASES)
def test_nats_are_finite_and_mixed_as_said(key):
    """nats = -log((1 - mix) link + mix softmax), finite even where softmax underflows."""
    loss, _ = case(key, 50)
    f, y = 2 * torch.randn(100, 50, dtype=torch.float64), torch.randint(50, (100,))
    p = 0.9 * losses.link(loss, f) + 0.1 * F.softmax(f, -1)
    torch.testing.assert_close(losses.nats(loss, f, y, mix=0.1), -p.gather(1, y[:, None])[:, 0].log())
    far = torch.zeros(1, 50)
    far[0, 3] = 500.0
    assert torch.isfinite(losses.nats(loss, far, torch.tensor([7]))).all()


@pytest.mark.parametrize('key', CASES)
def test_score_agrees_with_training(key):
    """The objective that evaluation reports is the one that was trained, token by token its mean."""
    loss, plain = case(key, 70)
    h, W, y = head(dtype=torch.float32)
    objective, nats = losses.score(loss, h, W, y, 70)
    f = (h @ W[:70].T).detach()
    torch.testing.assert_close(objective, plain(f.double(), y).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nats, losses.nats(loss, f, y), rtol=1e-4, atol=1e-4)


def test_reported_scale():
    """MSE is reported as a mean over classes, the others as they are trained."""
    assert losses.reported_scale(losses.mse(50), 50) == 1 / 50
    assert losses.reported_scale(losses.squentropy(50), 50) == 1
    assert losses.reported_scale(losses.mse(50, mse_end=0.5, progress=0.5), 50) == 1
    assert math.isclose(losses.mse(50).b0, 1)


def test_schedules():
    """alpha falls to 0 as its schedule says, after which squentropy is cross-entropy; MSE ends where it should."""
    for schedule, at_half, at_end in (('constant', 0.4, 0.4), ('linear', 0.2, 0), ('cosine', 0.2, 0), ('step', 0.4, 0)):
        set_to = dict(squentropy_weight=0.4, squentropy_schedule=schedule, squentropy_end=0.5)
        for progress, weight in ((0.0, 0.4), (0.25, at_half), (0.5, at_end), (1.0, at_end)):
            found = losses.make_loss('squentropy', 11, progress=progress, **set_to)
            assert found == pytest.approx(losses.squentropy(11, weight))
    quarter = losses.squentropy(11, 0.4, squentropy_schedule='cosine', progress=0.25)
    assert quarter == pytest.approx(losses.squentropy(11, 0.4 * (1 + math.cos(math.pi / 4)) / 2))
    for progress, name in ((0.0, 'mse'), (0.29, 'mse'), (0.3, 'cross_entropy'), (1.0, 'cross_entropy')):
        assert losses.make_loss('mse', 11, mse_end=0.3, progress=progress) == losses.make_loss(name, 11)
