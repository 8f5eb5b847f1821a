"""The plain way of plain.py, on all logits with one-hot targets, is the same training; bench.py runs."""
import json

import pytest
import torch

import losses
import plain
import sampling
from conftest import run
from model import GPT, GPTConfig


def small(**changes):
    torch.manual_seed(1)
    return GPT(GPTConfig(**{**dict(block_size=16, vocab_size=128, n_layer=2, n_head=2, n_embd=32), **changes}))


@pytest.mark.parametrize('name', ['cross_entropy', 'mse', 'squentropy', 'cross_entropy_plus_mse'])
def test_iterations_are_the_plain_ones(name):
    """Three iterations with our heads end in the weights of the plain way, in float64."""
    ours, other = small().double(), small().double()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    step = plain.trainer(other, name)
    criterion = losses.make_loss(name, 128)
    for _ in range(3):
        x, y = torch.randint(128, (2, 4, 16))
        value = losses.mean_loss(criterion, ours(x), ours.lm_head.weight, y, 128)
        value.backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(step(x, y), value, rtol=1e-12, atol=0)
    for a, b in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_greedy_text_is_the_plain_one():
    """With top_k=1 the cache gives the plain way's tokens, as long as the window is not full."""
    model, idx = small().eval(), torch.tensor([[5], [7]])
    choose = sampling.chooser(losses.make_loss('cross_entropy', 128), torch.rand(2, 15).numpy(), temperature=0)
    ours = torch.stack([idx[:, 0], *model.generate(idx, 15, choose)], dim=1)
    assert torch.equal(ours, plain.generate(model, idx, 15, top_k=1))


def test_bench():
    """bench.py measures both of a pair, and says what it takes where it is asked for what it has not."""
    status, out, err = run('bench.py', 'sample', '--only=1 story, 4,096', '--rounds=1', '--seconds=0.01', '--json=True')
    assert status == 0, err
    row, = json.loads(out)['rows']
    assert row['ours'] > 0 and row['other'] > 0 and row['ratio'] > 1 and row['ours_bytes'] > 2**25
    for task in ([], ['heds'], ['sample', '--rounds=0']):
        status, _, err = run('bench.py', *task)
        assert status == 2 and err.startswith('error: ') and err.count('\n') == 1
