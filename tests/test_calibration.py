"""The fit of the calibrated readout against fine grids in float64, on made-up logits."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import losses
from nanoloss import calibration, link, scoring

C = 30
LOSSES = ['cross_entropy', 'mse', 'squentropy', 'cross_entropy_plus_mse']


class States:
    """Logits (n, C) and targets (n,) in the form of scoring.HiddenStates: the head is the identity matrix."""

    def __init__(self, logits, targets):
        self.logits, self.targets, self.n_tokens, self.C = logits, targets, len(targets), logits.size(1)
        self.weight, self.passes = torch.eye(self.C), 0

    def __iter__(self):
        self.passes += 1
        for i in range(0, self.n_tokens, 256):
            yield scoring.Batch(i, np.arange(i, min(i + 256, self.n_tokens)), self.logits[i:i + 256],
                                self.targets[i:i + 256])

    def positions(self):
        return np.arange(self.n_tokens)

    def subset(self, n_tokens):
        return self if self.n_tokens <= n_tokens else States(self.logits[:n_tokens], self.targets[:n_tokens])


def make_states(kind, scale, seed, n=1500):
    """Logits of a kind, and targets drawn from softmax(logits) before they are scaled."""
    torch.manual_seed(seed)
    f = torch.randn(n, C) * {'flat': 0.02, 'heavy': 1.0}.get(kind, 2.0)
    if kind == 'heavy':
        f = f / torch.rand(n, 1).sqrt() * (1 + (torch.rand(n, C) < 0.02) * 20)
    y = torch.multinomial(F.softmax(f, -1), 1)[:, 0]
    if kind == 'noisy':  # a quarter of the targets cannot be predicted
        y = torch.where(torch.rand(n) < 0.25, torch.randint(C, (n,)), y)
    if kind == 'two scales':
        f[::2] *= 30
    if kind == 'three scales':
        f *= 10.0 ** torch.randint(-2, 3, (n, 1))
    if kind == 'wrong':
        f = f[:, torch.randperm(C)]
    if kind == 'shuffled':
        y = torch.randint(C, (n,))
    if kind == 'mostly constant':
        f[: n * 4 // 5] = 0.5
    return States(scale * f, y)


def nats_on_grid(loss, states, u, mix):
    """Mean nats (len(u), len(mix)) of (1 - mix) link^u / Z + mix / C, in float64 from the float32 link."""
    p = link.link(loss, states.logits).double()
    log_p = (p / p.amax(-1, keepdim=True)).clamp(min=math.exp(link.LOG_ZERO)).log()
    if link.has_softmax_link(loss):
        log_p = F.log_softmax(states.logits.double(), -1)
    mix = torch.as_tensor(mix, dtype=torch.float64)
    rows = []
    for x in np.atleast_1d(u):
        q = F.softmax(x * log_p, -1).gather(1, states.targets[:, None])
        rows.append(-((1 - mix) * q + mix / C).log().mean(0))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize('name', LOSSES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(kind=st.sampled_from(['plain', 'heavy', 'flat', 'noisy', 'two scales', 'three scales', 'wrong', 'shuffled',
                             'mostly constant']),
       scale=st.floats(-3, 3).map(lambda x: 10**x), seed=st.integers(0, 99), folds=st.sampled_from([1, 2]))
def test_no_grid_point_is_better(name, kind, scale, seed, folds):
    """No inverse temperature and mix on a fine grid have fewer nats by 1e-5, for logits of any kind and scale."""
    loss, states = losses.make_loss(name, C), make_states(kind, scale, seed, n=300)
    fitted = calibration.fit_calibration(loss, states, lambda i: i % folds)
    for k in range(folds):
        check_minimum(fitted, k, loss, States(states.logits[k::folds], states.targets[k::folds]),
                      center=1 / scale if link.has_softmax_link(loss) else 1.0)


@pytest.mark.parametrize('name,kind,scale,seed,n', [
    ('cross_entropy', 'three scales', 1.0, 6, 40), ('squentropy', 'three scales', 1.0, 1, 40),
    ('squentropy', 'three scales', 1.0, 11, 40), ('squentropy', 'two scales', 103.06, 800826, 100),
    ('squentropy', 'heavy', 128.643, 330046, 300), ('mse', 'mostly constant', 0.03011, 37697, 40),
    ('cross_entropy', 'mostly constant', 0.9646, 878433, 100), ('cross_entropy', 'plain', 1e11, 3, 300)])
def test_the_lowest_of_several_minima_is_found(name, kind, scale, seed, n):
    """The lowest minimum is found if it is far from the best point of the wide grid, or in a narrow basin."""
    loss, states = losses.make_loss(name, C), make_states(kind, scale, seed, n=n)
    fitted = calibration.fit_calibration(loss, states, lambda i: i % 2)
    for k in range(2):
        check_minimum(fitted, k, loss, States(states.logits[k::2], states.targets[k::2]),
                      center=1 / scale if name == 'cross_entropy' else 1.0)


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('kind', ['plain', 'noisy', 'two scales', 'three scales', 'mostly constant'])
def test_a_search_on_few_tokens_finds_the_minimum(name, kind, monkeypatch):
    """The minima of two folds are found even if the wide grid is evaluated on a fifth of the tokens."""
    monkeypatch.setattr(calibration, 'SEARCH_LOGITS', 0)
    loss, states = losses.make_loss(name, C), make_states(kind, 1.0, 5, n=5000)
    order = torch.randperm(5000)
    states = States(states.logits[order], states.targets[order])
    fitted = calibration.fit_calibration(loss, states, lambda i: i % 2)
    for k in range(2):
        check_minimum(fitted, k, loss, States(states.logits[k::2], states.targets[k::2]), center=1.0)


def check_minimum(fitted, k, loss, states, center):
    """Compare the fit of fold k, whose states are given, with a wide grid around `center` and one around the fit."""
    u, mix = fitted.inverse_temperature[k], fitted.mix[k]
    assert fitted.nats[k] == pytest.approx(nats_on_grid(loss, states, u, [mix])[0, 0], abs=2e-6)
    grid = center * np.concatenate([[0], np.geomspace(1e-3, 1e5, 67), np.geomspace(0.3, 3, 40)])
    mixes = np.concatenate([[0], np.geomspace(1e-6, 1, 40)])
    assert fitted.nats[k] <= np.nanmin(nats_on_grid(loss, states, grid, mixes)) + 1e-5
    near = nats_on_grid(loss, states, u * np.linspace(0.98, 1.02, 21), np.clip(mix * np.linspace(0.9, 1.1, 11), 0, 1))
    assert fitted.nats[k] <= near.min() + 1e-5


def test_known_temperature_and_mix_are_found():
    """Targets drawn from the calibrated family give back its parameters, a pair for each fold, in few passes."""
    torch.manual_seed(1)
    f = 3 * torch.randn(40_000, C)
    fold = np.arange(len(f)) % 2
    true = np.array([[0.5, 0.1], [1.5, 0.02]])  # u and mix of each fold
    u, mix = torch.from_numpy(true[fold]).float().T[:, :, None]
    y = torch.multinomial((1 - mix) * F.softmax(u * f, -1) + mix / C, 1)[:, 0]
    states = States(f, y)
    fitted = calibration.fit_calibration(losses.cross_entropy(C), states, lambda i: fold[i])
    np.testing.assert_allclose(fitted.inverse_temperature, true[:, 0], rtol=0.03)
    np.testing.assert_allclose(fitted.mix, true[:, 1], atol=0.01)
    assert fitted.converged and states.passes <= 5


def test_family_is_not_redundant():
    """For a softmax link, mix matters at u = 1, unlike a share of softmax."""
    states = make_states('noisy', 1.0, 0)
    nats = nats_on_grid(losses.cross_entropy(C), states, 1.0, [0.0, 0.25, 0.5])[0]
    assert np.ptp(nats) > 0.05
    fitted = calibration.fit_calibration(losses.cross_entropy(C), states)
    assert fitted.mix[0] == pytest.approx(0.25, abs=0.05) and fitted.inverse_temperature[0] == pytest.approx(1, abs=0.1)


def test_uninformative_and_damaged_logits():
    """Logits that predict nothing give the uniform distribution, exactly u = 0; not-finite ones end the fit."""
    y = torch.randint(C, (500,))
    for logits in (torch.zeros(500, C), torch.full((500, C), math.nan), F.one_hot((y + 1) % C, C).float()):
        fitted = calibration.fit_calibration(losses.cross_entropy(C), States(logits, y))
        assert fitted.inverse_temperature.tolist() == [0] and fitted.nats[0] == pytest.approx(math.log(C))


def test_no_token_costs_unboundedly():
    """Even if the fitted tokens are all predicted with certainty, another token costs at most log C + 14 nats."""
    y = torch.randint(C, (40,))
    fitted = calibration.fit_calibration(losses.cross_entropy(C), States(20 * F.one_hot(y, C).float(), y))
    assert 0 < fitted.nats[0] < 1e-4 and -math.log(fitted.mix[0] / C) < math.log(C) + 14


def test_a_cap_is_reported(monkeypatch):
    """If the cap on the passes ends the fit, it says so, and the best point that was evaluated is returned."""
    monkeypatch.setattr(calibration, 'MAX_PASSES', 1)
    loss, states = losses.cross_entropy(C), make_states('noisy', 1.0, 3)
    fitted = calibration.fit_calibration(loss, states)
    assert not fitted.converged
    assert fitted.nats[0] == pytest.approx(nats_on_grid(loss, states, fitted.inverse_temperature, fitted.mix)[0, 0],
                                           abs=2e-6)


@pytest.mark.parametrize('true_temperature', [0.05, 1.0, 30.0])
def test_softmax_temperature_is_the_minimum(true_temperature):
    """The temperature of softmax minimizes the nats, compared with scipy's scalar minimizer in float64."""
    from scipy.optimize import minimize_scalar
    logits = 3 * torch.randn(500, 20)
    y = torch.multinomial(F.softmax(logits / true_temperature, -1), 1)[:, 0]
    temperature, nats = calibration.fit_softmax_temperature(States(logits, y))
    expected = minimize_scalar(lambda log_u: F.cross_entropy(logits.double() * np.exp(log_u), y).item(),
                               bounds=(-6, 6), method='bounded', options={'xatol': 1e-9})
    assert nats == pytest.approx(expected.fun, abs=3e-6)
    if true_temperature < 10:  # there, the targets say little about it
        assert temperature == pytest.approx(np.exp(-expected.x), rel=3e-3)
