"""Optimizers and the learning-rate schedule: AdamW, or Muon for the blocks' weight matrices with AdamW for the rest."""
import math

import torch

from nanoloss import distributed


def make_optimizer(model, name, learning_rate, muon_learning_rate, weight_decay, betas, muon_beta2=0.0):
    """Return the optimizer of a GPT. Weight decay applies to matrices and embeddings only.

    'muon' uses Muon for the weight matrices of the blocks. Embeddings, the tied head and vectors use AdamW.

    Args:
        name: 'adamw' or 'muon'.
        muon_learning_rate: of Muon's matrices; 0 = learning_rate.
        betas: of AdamW.
        muon_beta2: see Muon.
    Returns:
        an optimizer whose param groups have the key 'lr_scale': the group's learning rate divided by
        `learning_rate`.
    """
    matrices = [p for p in model.transformer.h.parameters() if p.dim() >= 2] if name == 'muon' else []
    muon_ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in muon_ids]
    groups = [{'params': [p for p in others if p.dim() >= 2], 'weight_decay': weight_decay, 'lr_scale': 1.0},
              {'params': [p for p in others if p.dim() < 2], 'weight_decay': 0.0, 'lr_scale': 1.0}]
    fused = others[0].device.type in ('cuda', 'cpu')
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)
    if not matrices:
        return adamw
    muon_learning_rate = muon_learning_rate or learning_rate
    muon = Muon([{'params': matrices, 'lr_scale': muon_learning_rate / learning_rate}], lr=muon_learning_rate,
                weight_decay=weight_decay, beta2=muon_beta2)
    return CombinedOptimizer(adamw, muon)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for matrices, with updates scaled to AdamW's RMS (Liu et
    al., arXiv 2502.16982).

    The same as torch.optim.Muon with adjust_lr_fn='match_rms_adamw', except that matrices of one shape are
    orthogonalized in one batch, which torchrun's processes share among themselves. Every process must call step().

    beta2 > 0 is NorMuon (Li et al., arXiv 2510.05491): each row of an update is divided by the root of an exponential
    moving average (decay rate beta2) of its mean square; then the update is rescaled to its original Frobenius norm.
    """

    def __init__(self, params, lr, weight_decay, momentum=0.95, beta2=0.0):
        super().__init__(params, {'lr': lr, 'weight_decay': weight_decay, 'momentum': momentum, 'beta2': beta2})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group['params']:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, matrices in by_shape.items():
                grads = [p.grad for p in matrices]
                for p in matrices:
                    if 'momentum_buffer' not in self.state[p]:
                        self.state[p]['momentum_buffer'] = torch.zeros_like(p)
                averages = [self.state[p]['momentum_buffer'] for p in matrices]
                torch._foreach_lerp_(averages, grads, 1 - group['momentum'])
                nesterov = torch.stack(torch._foreach_lerp(grads, averages, group['momentum']))
                mine = slice(distributed.rank, None, distributed.world_size)
                updates = torch.zeros_like(nesterov, dtype=torch.bfloat16)
                updates[mine] = orthogonalize(nesterov[mine])
                distributed.all_reduce_sum(updates)
                updates = updates.float()
                if group['beta2']:
                    updates = self._normalize_rows(matrices, updates, group['beta2'])
                torch._foreach_mul_(matrices, 1 - group['lr'] * group['weight_decay'])
                torch._foreach_add_(matrices, updates.unbind(), alpha=-0.2 * math.sqrt(max(shape)) * group['lr'])

    def _normalize_rows(self, matrices, updates, beta2):
        """Return the updates (k, m, n) of k matrices, their rows normalized by running mean squares."""
        mean_squares = updates.square().mean(dim=2, keepdim=True)
        for p, rows in zip(matrices, mean_squares):
            if 'row_moment' not in self.state[p]:
                self.state[p]['row_moment'] = torch.zeros_like(rows)
        moments = [self.state[p]['row_moment'] for p in matrices]
        torch._foreach_lerp_(moments, mean_squares.unbind(), 1 - beta2)
        normalized = updates / (torch.stack(moments).sqrt() + 1e-8)
        norm, new_norm = (x.norm(dim=(1, 2), keepdim=True) for x in (updates, normalized))
        return normalized * (norm / new_norm.clamp(min=1e-7))


def orthogonalize(G):
    """Return roughly U V' for each matrix U S V' of G (k, m, n), in bfloat16, by five Newton-Schulz iterations with
    the coefficients of Jordan 2024."""
    X = G.bfloat16()
    X = X.mT if G.size(1) > G.size(2) else X
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=-4.7750, alpha=2.0315)
        X = torch.baddbmm(X, B, X, beta=3.4445)
    return X.mT if G.size(1) > G.size(2) else X


class CombinedOptimizer:
    """Several optimizers behind the interface of one, as far as train.py, GradScaler and checkpoints need it."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

    @property
    def param_groups(self):
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self):
        return {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none=True):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self):
        """Return the state in the format of one optimizer: parameters are numbered consecutively over all groups."""
        combined, offset = {'state': {}, 'param_groups': []}, 0
        for optimizer in self.optimizers:
            own = optimizer.state_dict()
            combined['state'] |= {offset + i: state for i, state in own['state'].items()}
            for group in own['param_groups']:
                combined['param_groups'].append(group | {'params': [offset + i for i in group['params']]})
            offset += sum(len(group['params']) for group in optimizer.param_groups)
        return combined

    def load_state_dict(self, state_dict):
        """Load what state_dict() returned. Raises ValueError if the number of param groups differs."""
        groups, state = state_dict['param_groups'], state_dict['state']
        if len(groups) != len(self.param_groups):
            raise ValueError(f'found {len(groups)} parameter groups, expected {len(self.param_groups)}')
        for optimizer in self.optimizers:
            own, groups = groups[:len(optimizer.param_groups)], groups[len(optimizer.param_groups):]
            numbers = [i for group in own for i in group['params']]
            optimizer.load_state_dict({'state': {i: state[i] for i in numbers if i in state}, 'param_groups': own})


def learning_rate_at(iter_num, peak, minimum, warmup_iters, decay_end, schedule='cosine'):
    """Return the learning rate of an iteration, counted from 0.

    Linear warmup to `peak`, then 'cosine' or 'linear' decay to `minimum` at iteration `decay_end`, constant from
    there on. With decay_end = infinity the rate stays at the peak.
    """
    if iter_num < warmup_iters:
        return peak * (iter_num + 1) / (warmup_iters + 1)
    progress = min(1.0, (iter_num - warmup_iters) / max(1, decay_end - warmup_iters))
    remaining = 1 - progress if schedule == 'linear' else 0.5 * (1 + math.cos(math.pi * progress))
    return minimum + (peak - minimum) * remaining
