"""The losses and their gradients against the published formulas on full logits in float64."""
import math

import pytest
import torch
import torch.nn.functional as F

import losses
from configurator import read_settings
from conftest import ROOT, LargestTensor

CONSTANTS = dict(squentropy_weight=0.7, squentropy_target=0.3, mse_true_weight=3.0, mse_target=2.0)


# the formulas as the papers write them, without coefficients
def formula_of_cross_entropy(f, y):
    return -torch.log(torch.exp(f).gather(1, y[:, None])[:, 0] / torch.exp(f).sum(1))


def formula_of_mse(f, y, k, M):
    true = F.one_hot(y, f.size(1)).bool()
    return torch.where(true, k * (f - M) ** 2, f ** 2).sum(1)


def formula_of_squentropy(f, y, alpha=1.0, t=0.0):
    wrong = ~F.one_hot(y, f.size(1)).bool()
    return formula_of_cross_entropy(f, y) + alpha * ((f - t) ** 2 * wrong).sum(1) / (f.size(1) - 1)


def formula_of_original_study(f, y):
    target = F.one_hot(y, f.size(1)).to(f)
    return formula_of_cross_entropy(f, y) + (torch.where(target > 0, 65.0, 1.0) * (f - target) ** 2).mean(1)


def formula_of_centred(f, y, alpha):
    return formula_of_squentropy_part(f - f.mean(1, keepdim=True), y, alpha) + formula_of_cross_entropy(f, y)


def formula_of_squentropy_part(f, y, alpha):
    return formula_of_squentropy(f, y, alpha) - formula_of_cross_entropy(f, y)


def formula_of_smoothed(f, y, e):
    return -((1 - e) * F.one_hot(y, f.size(1)).to(f) + e / f.size(1)).mul(F.log_softmax(f, 1)).sum(1)


CASES = {
    'cross_entropy': ({}, formula_of_cross_entropy),
    'mse': ({}, lambda f, y: formula_of_mse(f, y, 1, 1)),
    'mse rescaled': (CONSTANTS, lambda f, y: formula_of_mse(f, y, 3, 2)),
    'squentropy': ({}, formula_of_squentropy),
    'squentropy weighted': (CONSTANTS, lambda f, y: formula_of_squentropy(f, y, 0.7, 0.3)),
    'cross_entropy_plus_mse': ({}, formula_of_original_study),
    'squentropy centred': (dict(squentropy_weight=0.7, squentropy_centred=True),
                           lambda f, y: formula_of_centred(f, y, 0.7)),
    'cross_entropy_plus_square': (dict(squentropy_weight=0.7), lambda f, y: formula_of_cross_entropy(f, y) +
                                  0.7 * (f - f.mean(1, keepdim=True)).square().mean(1)),
    'cross_entropy smoothed': (dict(label_smoothing=0.2), lambda f, y: formula_of_smoothed(f, y, 0.2)),
    'cross_entropy z': (dict(z_loss=0.3), lambda f, y: formula_of_cross_entropy(f, y) + 0.3 * f.logsumexp(1) ** 2),
}


def case(key, C):
    constants, formula = CASES[key]
    return losses.make_loss(key.split()[0], C, **constants), formula


def head(N=37, C=70, d=16, rows=128, dtype=torch.float64):
    """Return hidden states (N, d), head weights (rows, d) with zero padding, targets (N,)."""
    W = torch.randn(rows, d, dtype=dtype)
    W[C:] = 0
    return torch.randn(N, d, dtype=dtype).requires_grad_(), W.requires_grad_(), torch.randint(C, (N,))


def reference(formula, h, W, y, C):
    """Return the mean loss and its gradients, from full logits in float64."""
    h, W = (x.detach().double().requires_grad_() for x in (h, W))
    value = formula(h @ W[:C].T, y).mean()
    return value, *torch.autograd.grad(value, (h, W))


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('rows', [70, 128])
@pytest.mark.parametrize('key', CASES)
def test_value_and_gradients_are_the_formulas(key, rows, compiled, monkeypatch):
    """In float64, over several uneven chunks, with and without padding, value and gradients are the formula's."""
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 10)
    monkeypatch.setattr(losses, '_compiled', lambda: (losses._row_sums, losses._write_gradient))  # compiling is slow
    loss, formula = case(key, 70)
    h, W, y = head(rows=rows)
    value, grad_h, grad_W = reference(formula, h, W, y, 70)
    ours = losses.mean_loss(loss, h, W, y, 70, compiled)
    ours.backward()
    torch.testing.assert_close(ours, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(h.grad, grad_h, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(W.grad, grad_W, rtol=1e-9, atol=1e-12)
    assert W.grad[70:].abs().sum() == 0


def test_weights_of_cross_entropy_and_z_loss():
    """c scales cross-entropy only, and z the squared log partition function only."""
    h, W, y = head()
    value, grad_h, grad_W = reference(lambda f, y: 2 * formula_of_cross_entropy(f, y) + 0.3 * f.logsumexp(1) ** 2,
                                      h, W, y, 70)
    ours = losses.mean_loss(losses.LossCoefficients(c=2.0, z=0.3), h, W, y, 70)
    ours.backward()
    torch.testing.assert_close(ours, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(h.grad, grad_h, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(W.grad, grad_W, rtol=1e-9, atol=1e-12)


def check_precision(key, device, dtype, tolerance, monkeypatch, compiled=False):
    """Compare value and gradients with float64 at C = 1,500, in chunks of 70, 70 and 60 tokens.

    dtypes below float32 run under autocast.
    """
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 70)
    loss, formula = case(key, 1500)
    h, W, y = head(N=200, C=1500, rows=1536, dtype=torch.float32)
    W.data *= 0.1
    value, grad_h, grad_W = reference(formula, h, W, y, 1500)
    h, W = (x.detach().to(device).requires_grad_() for x in (h, W))
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        ours = losses.mean_loss(loss, h, W, y.to(device), 1500, compiled)
    ours.backward()
    assert ours.dtype == torch.float32
    assert abs(ours.cpu() - value) < tolerance * value
    assert (h.grad.cpu() - grad_h).norm() < tolerance * grad_h.norm()
    assert (W.grad.cpu() - grad_W).norm() < tolerance * grad_W.norm()


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize('key', CASES)
def test_float32_and_bfloat16_autocast(key, dtype, tolerance, monkeypatch):
    """float32 and bfloat16 autocast match float64 to their precision."""
    check_precision(key, 'cpu', dtype, tolerance, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize('key', CASES)
def test_compiled_head(key, monkeypatch):
    """torch.compile changes neither value nor gradients by more than the precision of float32."""
    check_precision(key, 'cpu', torch.float32, 1e-4, monkeypatch, compiled=True)


@pytest.mark.cuda
@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize('key', CASES)
def test_heads_on_cuda(key, dtype, tolerance, compiled, monkeypatch):
    """On a GPU, float32 and both autocast dtypes match float64 to their precision, compiled or not."""
    check_precision(key, 'cuda', dtype, tolerance, monkeypatch, compiled)


@pytest.mark.cuda
@pytest.mark.parametrize('compiled', [False, True])
def test_float16_range_on_cuda(compiled):
    """In float16, gradients that are too small or too large for it reach the weights: products are in float32."""
    h = torch.full((4096, 8), 30.0, device='cuda').requires_grad_()  # the gradient's sum over tokens exceeds 65,504
    W = (1e-4 * torch.randn(1024, 8, device='cuda')).requires_grad_()
    y = torch.zeros(4096, dtype=torch.int64, device='cuda')
    with torch.autocast('cuda', torch.float16):
        losses.mean_loss(losses.cross_entropy(1024), h, W, y, 1024, compiled).backward()
    reference_h, reference_W = (x.detach().double().requires_grad_() for x in (h, W))
    F.cross_entropy(reference_h @ reference_W.T, y).backward()
    for ours, reference in ((h.grad, reference_h.grad), (W.grad, reference_W.grad)):
        assert (ours - reference).norm() < 1e-2 * reference.norm()


def test_improbable_targets_have_finite_losses():
    """In float32, a target whose probability underflows has the loss of its distance to the largest logit."""
    W = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    ours = losses.mean_loss(losses.cross_entropy(3), torch.tensor([[200.0]]), W, torch.tensor([1]), 3)
    ours.backward()
    assert ours == 200 and W.grad.flatten().tolist() == [200, -200, 0]


def test_only_matmuls_are_in_half_precision(monkeypatch):
    """For bfloat16 hidden states, logits are rounded to bfloat16 and everything after them is in float32."""
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 10)
    for N in (1, 2, 3, 200):
        h, W, y = head(N=N, rows=70, dtype=torch.bfloat16)
        ours = losses.mean_loss(losses.cross_entropy(70), h, W, y, 70)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, F.cross_entropy(F.linear(h, W).float(), y), rtol=1e-5, atol=0)


@pytest.mark.skipif(not hasattr(F, 'linear_cross_entropy'), reason='torch before 2.13 has no linear_cross_entropy')
def test_cross_entropy_matches_torch():
    """Cross-entropy and its gradients equal those of F.linear_cross_entropy."""
    h, W, y = head(rows=70)
    theirs = torch.autograd.grad(F.linear_cross_entropy(h, W, y), (h, W))
    ours = torch.autograd.grad(losses.mean_loss(losses.cross_entropy(70), h, W, y, 70), (h, W))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)



@pytest.mark.parametrize('name,limit', [('cross_entropy', 1000 * 32), ('squentropy', 1000 * 32), ('mse', 1000 * 16)])
def test_full_logits_never_exist(name, limit, monkeypatch):
    """No tensor is larger than one chunk of logits; for MSE none is larger than the head's weight."""
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 32)
    h, W, y = head(N=900, C=1000, d=16, rows=1000, dtype=torch.float32)
    with LargestTensor() as largest:
        losses.mean_loss(losses.make_loss(name, 1000), h, W, y, 1000).backward()
    assert largest.numel <= limit < 900 * 1000


def test_custom_loss(monkeypatch):
    """A function in CUSTOM_LOSSES is computed in chunks, with the gradients of autograd."""
    def smoothed(logits, targets):
        return F.cross_entropy(logits, targets, reduction='none', label_smoothing=0.1)
    monkeypatch.setitem(losses.CUSTOM_LOSSES, 'smoothed', smoothed)
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 10)
    h, W, y = head()
    value, grad_h, grad_W = reference(smoothed, h, W, y, 70)
    ours = losses.mean_loss(losses.make_loss('smoothed', 70), h, W, y, 70)
    ours.backward()
    torch.testing.assert_close((ours, h.grad, W.grad), (value, grad_h, grad_W), rtol=1e-9, atol=1e-12)


def test_unknown_loss():
    """An unknown loss raises ValueError, which lists the known ones."""
    with pytest.raises(ValueError, match='cross_entropy, mse, squentropy'):
        losses.make_loss('squentrop', 10)


def nll(logits, targets):
    return F.cross_entropy(logits, targets, reduction='none')


def with_link(link):
    def loss(logits, targets):
        return nll(logits, targets)
    loss.link = link
    return loss


CUSTOM = {
    'mean': F.cross_entropy, 'one': lambda f, y: nll(f, y)[:1], 'shared': lambda f, y: nll(f, y) / len(y),
    'nan': lambda f, y: nll(f, y) * float('nan'), 'kink': lambda f, y: (nll(f, y) * 0).sqrt(), 'mse': nll,
    'sum': with_link(lambda f: f.softmax(-1) * 2), 'negative': with_link(lambda f: f - f.mean(-1, True) + 1 / 10),
    'column': with_link(lambda f: f.softmax(-1)[:, :1] * 0 + 1)}


@pytest.mark.parametrize('name', [*CUSTOM, 'squentrop'])
def test_wrong_custom_losses(monkeypatch, name):
    """ValueError unless a loss has a name of its own, is one finite value per token that depends on no other token,
    has finite gradients, and its link returns probabilities."""
    monkeypatch.setattr(losses, 'CUSTOM_LOSSES', CUSTOM)
    with pytest.raises(ValueError, match=f'--loss={name}: '):
        losses.check_loss(name, 10)


@pytest.mark.parametrize('bug', [lambda f: f, lambda f, y: f.nosuch, lambda f, y: f.argmax(-1) * 1.0, lambda f, y: 1.0,
                                 lambda f, y: f.sub_(1).sum(-1), lambda f, y: [a for a, b, c in f]])
def test_bug_in_a_custom_loss(monkeypatch, bug):
    """RuntimeError, so that the error of the function is printed with its traceback."""
    monkeypatch.setitem(losses.CUSTOM_LOSSES, 'bug', bug)
    with pytest.raises(RuntimeError, match='--loss=bug: ') as error:
        losses.check_loss('bug', 10)
    assert error.value.__cause__


def test_change_of_a_custom_loss(monkeypatch):
    """The description of a custom loss changes with its values, its gradient and its link; built-in losses have none."""
    variants = [nll, lambda f, y: 1.01 * nll(f, y), lambda f, y: nll(f, y) + 0.01 * (nll(f, y) - nll(f, y).detach()),
                with_link(lambda f: (1.01 * f).softmax(-1))]
    descriptions = set()
    for function in variants:
        monkeypatch.setitem(losses.CUSTOM_LOSSES, 'own', function)
        descriptions |= {losses.check_loss('own', 10), losses.check_loss('own', 10)}
    assert len(descriptions) == len(variants) and losses.check_loss('mse', 10) == ''


def test_reported_scale():
    """MSE is reported as a mean over classes, the other losses as they are trained."""
    assert losses.reported_scale(losses.mse(50), 50) == 1 / 50
    assert losses.reported_scale(losses.squentropy(50), 50) == 1
    assert losses.reported_scale(losses.mse(50, mse_end=0.5, progress=0.5), 50) == 1
    assert math.isclose(losses.mse(50).b0, 1)


def test_schedules():
    """alpha follows its schedule between start and end, squentropy equals cross-entropy where it is 0, MSE ends at
    mse_end."""
    for schedule, at_half, at_end in (('constant', 0.4, 0.4), ('linear', 0.2, 0), ('cosine', 0.2, 0), ('step', 0.4, 0)):
        constants = dict(squentropy_weight=0.4, squentropy_schedule=schedule, squentropy_end=0.5)
        for progress, weight in ((0.0, 0.4), (0.25, at_half), (0.5, at_end), (1.0, at_end)):
            found = losses.make_loss('squentropy', 11, progress=progress, **constants)
            assert found == pytest.approx(losses.squentropy(11, weight))
    later = dict(squentropy_weight=0.4, squentropy_start=0.4, squentropy_end=0.8)
    for schedule, weights in (('rise', (0, 0, 0, 0.2, 0.4, 0.4)), ('linear', (0, 0, 0.4, 0.2, 0, 0)),
                              ('step', (0, 0, 0.4, 0.4, 0, 0)), ('constant', (0, 0, 0.4, 0.4, 0.4, 0.4))):
        for progress, weight in zip((0.0, 0.39, 0.4, 0.6, 0.8, 1.0), weights):
            found = losses.make_loss('squentropy', 11, progress=progress, squentropy_schedule=schedule, **later)
            assert found == pytest.approx(losses.squentropy(11, weight)), (schedule, progress)
    quarter = losses.squentropy(11, 0.4, squentropy_schedule='cosine', progress=0.25)
    assert quarter == pytest.approx(losses.squentropy(11, 0.4 * (1 + math.cos(math.pi / 4)) / 2))
    for progress, name in ((0.0, 'mse'), (0.29, 'mse'), (0.3, 'cross_entropy'), (1.0, 'cross_entropy')):
        assert losses.make_loss('mse', 11, mse_end=0.3, progress=progress) == losses.make_loss(name, 11)


def test_loss_settings():
    """loss_settings names exactly the constants that change the coefficients of a loss."""
    for name in losses.LOSSES:
        constants = {key: value for key, value in {
            'squentropy_weight': 0.5, 'squentropy_target': 0.5, 'squentropy_centred': True,
            'squentropy_schedule': 'linear', 'squentropy_start': 0.5, 'squentropy_end': 0.5, 'mse_true_weight': 2.0,
            'mse_target': 2.0, 'mse_end': 0.1, 'label_smoothing': 0.1, 'z_loss': 0.1}.items()}
        for key, value in constants.items():
            others = {'squentropy_schedule': 'linear'} if key == 'squentropy_end' else {}
            changes = losses.make_loss(name, 11, progress=0.3, **others, **{key: value}) != \
                losses.make_loss(name, 11, progress=0.3, **others)
            assert changes == (key in losses.loss_settings(name)), (name, key)
    assert losses.loss_settings('no such loss') == ()


def test_train_py_knows_the_constants():
    """The settings that train.py applies to a loss are those that the loss takes."""
    _, _, applies = read_settings(ROOT / 'train.py')
    for name in losses.LOSSES:
        known = {setting for condition, *settings in applies for setting in settings
                 if 'loss' in condition and eval(condition, {'loss': name, 'optimizer': 'adamw'})}
        assert known == set(losses.loss_settings(name)), name
