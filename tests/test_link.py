"""The link against a numerical minimizer in float64, and the readouts against their formulas."""
import pytest
import torch
import torch.nn.functional as F

import losses
from nanoloss import link

CASES = [
    ('cross_entropy', {}),
    ('cross_entropy', dict(label_smoothing=0.2)),
    ('cross_entropy', dict(z_loss=0.3)),
    ('mse', {}),
    ('mse', dict(mse_true_weight=3.0, mse_target=2.0)),
    ('squentropy', {}),
    ('squentropy', dict(squentropy_weight=0.7, squentropy_target=0.3)),
    ('squentropy', dict(squentropy_weight=0.7, squentropy_centred=True)),
    ('cross_entropy_plus_square', dict(squentropy_weight=0.7)),
    ('cross_entropy_plus_mse', {}),
]
ALL_LOSSES = pytest.mark.parametrize('name,constants', CASES, ids=lambda x: x if isinstance(x, str) else ','.join(x))


def minimize(loss, p):
    """arg min over f of E_{y~p} L(f, y), by Newton's method in float64 from f = 0."""
    def expected(f):
        log_p, log_Z, f = F.log_softmax(f, 0), f.logsumexp(0), f - f.mean() if loss.centred else f
        true_class = loss.b2 * f * f + loss.b1 * f - loss.c * log_p
        return (loss.a2 * f * f + loss.a1 * f).sum() + (p * true_class).sum() + loss.z * log_Z ** 2
    f = torch.zeros(len(p), dtype=torch.float64)
    for _ in range(100):
        gradient = torch.autograd.functional.jacobian(expected, f)
        if gradient.norm() < 1e-10:
            break
        hessian = torch.autograd.functional.hessian(expected, f)
        step = torch.linalg.lstsq(hessian, gradient, driver='gelsd').solution  # least squares: it can be singular
        size = 1.0
        while size > 1e-9 and expected(f - size * step) > expected(f) + 1e-15:
            size /= 2
        f = f - size * step
    return f


@ALL_LOSSES
def test_link_recovers_the_distribution(name, constants):
    """At the minimum of the expected loss, the link of the logits is the distribution of the targets."""
    loss = losses.make_loss(name, 12, **constants)
    for spread in (0.3, 1.0, 2.0):
        p = F.softmax(spread * torch.randn(12, dtype=torch.float64), 0)
        torch.testing.assert_close(link.link(loss, minimize(loss, p)[None])[0], p, rtol=0, atol=1e-6)


@ALL_LOSSES
def test_link_is_a_distribution_in_the_order_of_the_logits(name, constants):
    """Away from the minimum, the link is still nonnegative, sums to 1 and is monotone in the logits."""
    loss = losses.make_loss(name, 50, **constants)
    for scale in (0.1, 3.0, 30.0, 300.0):
        f = scale * torch.randn(200, 50)
        p = link.link(loss, f)
        assert (p >= 0).all() and torch.isfinite(p).all()
        torch.testing.assert_close(p.sum(-1), torch.ones(200), rtol=0, atol=1e-5)
        assert (p.gather(1, f.argsort(dim=1)).diff(dim=1) >= 0).all()


def test_completion_is_the_projection_onto_the_simplex():
    """project_to_simplex equals the projection by sorting in float64, also for constant and one-hot rows."""
    rows = torch.cat([torch.randn(60, 5000) * torch.logspace(-4, 1, 60)[:, None], torch.ones(1, 5000),
                      -torch.ones(1, 5000), torch.zeros(1, 5000)])
    rows[0, 7] = 50.0
    z = rows.double().sort(dim=1, descending=True).values
    threshold = (z.cumsum(1) - 1) / torch.arange(1, 5001)
    tau = threshold.gather(1, (z > threshold).sum(1, keepdim=True) - 1)
    expected = (rows.double() - tau).clamp(min=0)
    torch.testing.assert_close(link.project_to_simplex(rows).double(), expected, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(link.project_to_simplex(rows.double()), expected, rtol=1e-9, atol=1e-12)
    p = F.softmax(rows, -1)
    torch.testing.assert_close(link.project_to_simplex(p), p, rtol=1e-4, atol=1e-7)  # a distribution is unchanged


def sparsemax(z):
    """Martins & Astudillo 2016, algorithm 1, in float64: the support by sorting, one row at a time."""
    rows = []
    for row in z.double().tolist():
        total = 0.0
        for k, x in enumerate(sorted(row, reverse=True), 1):
            if 1 + k * x <= total + x:
                break
            total += x
            tau = (total - 1) / k
        rows.append([max(x - tau, 0.0) for x in row])
    return torch.tensor(rows, dtype=torch.float64)


def test_link_of_plain_mse_is_sparsemax():
    """The link of plain MSE is sparsemax for logits of any size and any offset, also where several exceed 1."""
    loss = losses.mse(40)
    f = torch.cat([torch.randn(300, 40) * torch.logspace(-3, 3, 300)[:, None] + 3 * torch.randn(300, 1),
                   torch.tensor([[1.5, 1.0] + [0.0] * 38, [1e6, 1e6 - 0.25] + [-1e6] * 38]),
                   torch.randn(20, 40) - torch.logspace(0, 6, 20)[:, None]])
    torch.testing.assert_close(link.link(loss, f).double(), sparsemax(f), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(link.link(loss, f.double()), sparsemax(f), rtol=1e-9, atol=1e-9)
    p = link.link(losses.mse(4), torch.tensor([[1.5, 1, 0, 0], [-1.5, -2, -2.5, -3]]))
    torch.testing.assert_close(p, torch.tensor([[0.75, 0.25, 0, 0], [0.75, 0.25, 0, 0]]))


def test_a_fixed_number_of_steps_suffices(monkeypatch):
    """The projection takes fewer steps than a GPU, which cannot test for the end, always makes."""
    monkeypatch.setattr(link, 'MAX_STEPS', link.MAX_STEPS // 2)
    kinds = [torch.randn(20, 5000), torch.randn(20, 5000) ** 5, torch.rand(20, 5000).log(),
             0.5 ** torch.arange(100.0).expand(20, 100)]
    for scale in (1e-3, 0.03, 1.0, 30.0):
        for rows in kinds:
            p, _ = link.subtract_threshold(scale * rows)
            torch.testing.assert_close(p.relu().sum(-1), torch.ones(20), rtol=0, atol=2e-5)


def test_zero_and_negative_denominators():
    """With a denominator that is zero or negative, the largest numerator gets probability 1, a negative one 0."""
    rescaled = losses.mse(6, mse_true_weight=3.0, mse_target=2.0)  # p = f / (6 - 2 f), infinite at f = 3
    p = link.link(rescaled, torch.tensor([[3.0, 4.0, 2.5, 1.0, 0.0, -5.0], [0.1, 0.0, -1.0, -2.0, -9.0, 0.05]]))
    assert p[0].tolist() == [0, 1, 0, 0, 0, 0]
    assert p[1, 0] == p[1].max() and p[1].sum() == pytest.approx(1) and torch.isfinite(p).all()
    squentropy = losses.squentropy(6)  # the denominator is 1 + 0.4 f: 0 at f = -2.5
    p = link.link(squentropy, torch.tensor([[-2.5, -3.0, -2.4, 1.0, 0.5, 0.0]]))
    assert torch.isfinite(p).all() and (p[0, :3] == 0).all() and p.argmax() == 3
    f = torch.tensor([[-3.0, -3.1, -4.0, -5.0, -6.0, -7.0]])  # all denominators are negative
    assert link.link(squentropy, f).tolist() == [[1, 0, 0, 0, 0, 0]]
    torch.testing.assert_close(link.link(squentropy, torch.full((1, 6), -3.0)), torch.full((1, 6), 1 / 6))


def test_link_of_cross_entropy_is_softmax():
    """The link of cross-entropy is softmax bit for bit, and its nll is the cross-entropy, also where p underflows."""
    f, y = 5 * torch.randn(100, 50), torch.randint(50, (100,))
    assert link.has_softmax_link(losses.cross_entropy(50))
    assert torch.equal(link.link(losses.cross_entropy(50), f), F.softmax(f, -1))
    for scale in (1, 100):
        torch.testing.assert_close(link.token_scores(losses.cross_entropy(50), scale * f, y)[1],
                                   F.cross_entropy(scale * f, y, reduction='none'))


def test_link_of_a_custom_loss():
    """A custom loss has a softmax link unless it has an attribute `link`."""
    def custom(logits, targets):
        return F.cross_entropy(logits, targets, reduction='none', label_smoothing=0.1)
    f, y = torch.randn(5, 70), torch.arange(5)
    assert link.has_softmax_link(custom) and torch.equal(link.link(custom, f), F.softmax(f, -1))
    custom.link = lambda logits: torch.full_like(logits, 1 / 70)
    assert not link.has_softmax_link(custom)
    p = 0.9 / 70 + 0.1 * F.softmax(f, -1)[y, y]
    torch.testing.assert_close(link.token_scores(custom, f, y)[1], -p.log())


def test_link_refuses_half_precision():
    """bfloat16 logits raise TypeError."""
    with pytest.raises(TypeError):
        link.link(losses.squentropy(10), torch.zeros(1, 10, dtype=torch.bfloat16))


@ALL_LOSSES
def test_nats_are_finite_and_mixed(name, constants):
    """The negative log-likelihood is -log(0.9 link + 0.1 softmax), and finite even if softmax underflows."""
    loss = losses.make_loss(name, 50, **constants)
    f, y = 2 * torch.randn(100, 50, dtype=torch.float64), torch.randint(50, (100,))
    p = 0.9 * link.link(loss, f) + 0.1 * F.softmax(f, -1)
    torch.testing.assert_close(link.token_scores(loss, f, y)[1], -p.gather(1, y[:, None])[:, 0].log())
    peaked = torch.zeros(1, 50)
    peaked[0, 3] = 500.0
    assert torch.isfinite(link.token_scores(loss, peaked, torch.tensor([7]))[1]).all()


@ALL_LOSSES
def test_score_agrees_with_training(name, constants, monkeypatch):
    """The objective of each token is the training loss of that token alone, in float64; padding rows are ignored."""
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 20)  # two chunks, the first in three blocks
    monkeypatch.setattr(link, 'block_rows', lambda n, C, device: 7)
    loss = losses.make_loss(name, 70, **constants)
    h, W, y = torch.randn(37, 16), torch.randn(128, 16), torch.randint(70, (37,))
    objective, nll = link.score_batch(loss, h, W, y, 70)
    expected = [losses.mean_loss(loss, h[i:i + 1].double(), W.double(), y[i:i + 1], 70) for i in range(37)]
    torch.testing.assert_close(objective, torch.stack(expected).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nll, link.token_scores(loss, h @ W[:70].T, y)[1], rtol=1e-4, atol=1e-4)
    assert objective.dtype == nll.dtype == torch.float32
