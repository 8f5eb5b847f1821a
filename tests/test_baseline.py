"""The baseline: its losses from their definitions, and training with it against training with this project's losses."""
import pytest
import torch

from losses import make_loss, mean_loss
from model import GPT, GPTConfig
from nanoloss import baseline

NAMES = ['cross_entropy', 'mse', 'squentropy', 'cross_entropy_plus_mse']


@pytest.mark.parametrize('name', NAMES)
def test_losses_from_their_definitions(name):
    """The loss of one token equals its formula, summed class by class."""
    C, y = 7, 3
    f = torch.randn(C, dtype=torch.float64)
    nll = -(f[y].exp() / f.exp().sum()).log()
    wrong = sum(f[j] ** 2 for j in range(C) if j != y)
    expected = {'cross_entropy': nll, 'mse': (f[y] - 1) ** 2 + wrong, 'squentropy': nll + wrong / (C - 1),
                'cross_entropy_plus_mse': nll + (65 * (f[y] - 1) ** 2 + wrong) / C}[name]
    torch.testing.assert_close(baseline.loss(name, f[None], torch.tensor([y])), expected)


def test_unknown_loss():
    """A loss that the baseline lacks is refused by name."""
    with pytest.raises(ValueError, match='focal'):
        baseline.loss('focal', torch.zeros(1, 2), torch.tensor([0]))


@pytest.mark.parametrize('name', NAMES)
def test_iterations_equal_the_baseline(name):
    """Three float64 iterations with losses.mean_loss() end in the weights of the baseline."""
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        models.append(GPT(GPTConfig(block_size=16, vocab_size=128, n_layer=2, n_head=2, n_embd=32)).double())
    ours, other = models
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    train_step = baseline.trainer(other, name)
    criterion = make_loss(name, 128)
    for _ in range(3):
        x, y = torch.randint(128, (2, 4, 16))
        loss = mean_loss(criterion, ours(x), ours.lm_head.weight, y, 128)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(train_step(x, y), loss, rtol=1e-12, atol=0)
    for a, b in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
