"""Muon with AdamW against their equations in float64, their saved state, and the learning-rate schedule."""
import math
from contextlib import nullcontext

import pytest
import torch

from model import GPT, GPTConfig
from nanoloss import optim
from nanoloss.checkpoint import restore_optimizer


def model_and_gradients(steps=3):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=32))
    return model, [[torch.randn_like(p) for p in model.parameters()] for _ in range(steps)]


def train(model, optimizer, gradients, lr=0.01):
    for gradient in gradients:
        for group in optimizer.param_groups:
            group['lr'] = lr * group['lr_scale']
        for p, g in zip(model.parameters(), gradient, strict=True):
            p.grad = g.clone()
        optimizer.step()
        optimizer.zero_grad()


def make(model, name='muon', lr_scale=1.0, muon_beta2=0.0):
    return optim.make_optimizer(model, name, 0.02, 0.02 * lr_scale, 2.0, (0.9, 0.99), muon_beta2)


def orthogonalize(G):
    """Five Newton-Schulz steps with Jordan's coefficients, along the shorter side."""
    G = G.T if len(G) > G.size(1) else G
    X = G / G.norm()
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


@pytest.mark.parametrize('beta2', [0.0, 0.9])
def test_muon_matches_its_equations(beta2):
    """Block matrices take Muon's or NorMuon's steps (Nesterov momentum 0.95) with AdamW's RMS; other parameters take
    AdamW steps."""
    model, gradients = model_and_gradients()
    names = [name for name, _ in model.named_parameters()]
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    other, _ = model_and_gradients()
    train(other, make(other, 'adamw'), gradients)
    train(model, make(model, lr_scale=2.0, muon_beta2=beta2), gradients)
    for i, name in enumerate(names):
        ours = model.get_parameter(name).detach().double()
        if name.startswith('transformer.h.') and ours.dim() == 2:
            w, m, v = expected[name], torch.zeros_like(expected[name]), torch.zeros(len(ours), 1)
            for gradient in gradients:
                g = gradient[i].double()
                m = 0.95 * m + 0.05 * g
                update = orthogonalize(0.05 * g + 0.95 * m)
                update = update if update.shape == w.shape else update.T
                if beta2:
                    v = beta2 * v + (1 - beta2) * (update**2).mean(1, keepdim=True)
                    update = update / v.sqrt() * update.norm() / (update / v.sqrt()).norm()
                w = w * (1 - 0.02 * 2.0) - 0.02 * 0.2 * math.sqrt(max(w.shape)) * update
            moved = (w - expected[name]).norm()
            assert (ours - w).norm() < 0.03 * moved, name  # Muon computes in bfloat16
        else:
            assert torch.equal(model.get_parameter(name), other.get_parameter(name)), name


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def test_muon_matches_torch(device):
    """Batches of matrices of one shape take the same steps as torch.optim.Muon, which takes them one by one."""
    shapes = [(24, 8), (8, 8), (32, 8), (8, 32)] * 2
    ours, theirs = ([torch.randn(shape, device=device) for shape in shapes] for _ in range(2))
    for p, q in zip(ours, theirs, strict=True):
        q.copy_(p)
    a = optim.Muon([{'params': ours}], lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn='match_rms_adamw')
    before = [p.clone() for p in ours]
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, start in zip(ours, theirs, before, strict=True):
        assert (p - q).norm() < 0.02 * (q - start).norm()  # both compute in bfloat16


@pytest.mark.parametrize('name, beta2', [('adamw', 0.0), ('muon', 0.0), ('muon', 0.95)])
def test_state_dict(name, beta2):
    """Saving, loading and continuing gives the same bits as never stopping; another optimizer's state is refused."""
    (whole, gradients), (a, _), (b, _) = (model_and_gradients(4) for _ in range(3))
    train(whole, make(whole, name, muon_beta2=beta2), gradients)
    first = make(a, name, muon_beta2=beta2)
    train(a, first, gradients[:2])
    state = first.state_dict()
    assert sorted(state['state']) == sorted(i for g in state['param_groups'] for i in g['params']) == \
        list(range(len(list(a.parameters()))))
    b.load_state_dict(a.state_dict())
    second = make(b, name, muon_beta2=beta2)
    second.load_state_dict(state)
    train(b, second, gradients[2:])
    for p, q in zip(whole.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(ValueError):
        make(b, 'adamw' if name == 'muon' else 'muon').load_state_dict(state)


DAMAGE = {
    'of other weights': lambda saved: saved['param_groups'][2]['params'].reverse(),
    'of too few weights': lambda saved: saved['param_groups'][2]['params'].pop(),
    'without one weight': lambda saved: saved['state'].pop(max(saved['state'])),
    'empty': lambda saved: saved['state'].clear(),
    'of another shape': lambda saved: saved['state'][max(saved['state'])].update(momentum_buffer=torch.zeros(2, 2)),
    "AdamW's for Muon": lambda saved: saved['state'].update({max(saved['state']): saved['state'][0]}),
    'not finite': lambda saved: saved['state'][max(saved['state'])]['momentum_buffer'].fill_(torch.nan),
}


@pytest.mark.parametrize('damage', [None, *DAMAGE])
def test_damaged_state_is_refused(damage):
    """A resumed run loads only a complete, finite state of its own weights; anything else is one ValueError."""
    model, gradients = model_and_gradients()
    optimizer = make(model)
    train(model, optimizer, gradients)
    saved = {'path': 'x.pt', 'optimizer': optimizer.state_dict(), 'scaler': {}, 'iter_num': 3, 'best_val_loss': 1.0,
             'train_state': {'last_eval': 3, 'evals_since_best': 0, 'train_seconds': 1.0, 'wandb_run_id': ''}}
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    if damage is None:
        assert restore_optimizer(saved, make(model), scaler)['iter_num'] == 3
        return
    DAMAGE[damage](saved['optimizer'])
    with pytest.raises(ValueError, match='x.pt') as e:
        restore_optimizer(saved, make(model), scaler)
    assert '\n' not in str(e.value)


def test_state_of_another_beta2():
    """Muon's state cannot be loaded as NorMuon's, nor the other way round."""
    for saved_beta2, beta2 in ((0.0, 0.95), (0.95, 0.0)):
        model, gradients = model_and_gradients()
        optimizer = make(model, muon_beta2=saved_beta2)
        train(model, optimizer, gradients)
        saved = {'path': 'x.pt', 'optimizer': optimizer.state_dict(), 'scaler': {}, 'iter_num': 3, 'best_val_loss': 1.0,
                 'train_state': {'last_eval': 3, 'evals_since_best': 0, 'train_seconds': 1.0, 'wandb_run_id': ''}}
        for other_beta2, is_valid in ((saved_beta2, True), (beta2, False)):
            with nullcontext() if is_valid else pytest.raises(ValueError, match='x.pt'):
                restore_optimizer(saved, make(model, muon_beta2=other_beta2),
                                  torch.amp.GradScaler('cpu', enabled=False))


def test_normuon_without_gradient():
    """Zero gradients, and rows without one, give finite updates."""
    p = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = optim.Muon([p], lr=0.1, weight_decay=0.0, beta2=0.9)
    for rows in (0, 2):
        p.grad = torch.zeros(4, 3)
        p.grad[:rows] = torch.randn(rows, 3)
        optimizer.step()
        assert p.isfinite().all() and (p[rows:] == 1).all()


@pytest.mark.parametrize('name', ['cosine', 'linear'])
def test_learning_rate(name):
    """torch's linear warmup and decay, chained; then the minimum, or the peak without decay."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 11, total_iters=10)
    decay = {'cosine': torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=0.1),
             'linear': torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=90)}[name]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], milestones=[10])
    for i in range(101):
        assert optim.learning_rate_at(i, 0.5, 0.1, 10, 100, name) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert all(optim.learning_rate_at(i, 0.5, 0.1, 10, 100, name) == pytest.approx(0.1) for i in (101, 150, 190, 10**6))
    assert optim.learning_rate_at(10**6, 0.5, 0.1, 10, math.inf, name) == 0.5
