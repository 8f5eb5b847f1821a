"""AdamW, or Muon for the matrices of the blocks with AdamW for the rest; the schedule of their learning rate."""
import math

import torch


def make(model, name, learning_rate, muon_learning_rate, weight_decay, betas):
    """The optimizer of a GPT: name 'adamw', or 'muon'. Weight decay is for matrices and embeddings.

    muon: Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for the matrices of the blocks, scaled so
    that its updates are as large as AdamW's (Liu et al., arXiv 2502.16982); embeddings, the tied head
    and vectors stay with AdamW. Each group has 'share', what its learning rate is of `learning_rate`.
    """
    hidden = [p for p in model.transformer.h.parameters() if p.dim() >= 2] if name == 'muon' else []
    taken = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in taken]
    groups = [{'params': [p for p in others if p.dim() >= 2], 'weight_decay': weight_decay, 'share': 1.0},
              {'params': [p for p in others if p.dim() < 2], 'weight_decay': 0.0, 'share': 1.0}]
    fused = others[0].device.type in ('cuda', 'cpu')
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)
    if not hidden:
        return adamw
    share = muon_learning_rate / learning_rate
    return Together(adamw, torch.optim.Muon([{'params': hidden, 'share': share}], lr=muon_learning_rate,
                                            weight_decay=weight_decay, adjust_lr_fn='match_rms_adamw'))


class Together:
    """Several optimizers as one, as far as train.py, a GradScaler and checkpoints need it."""

    def __init__(self, *parts):
        self.parts = parts

    @property
    def param_groups(self):
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self):
        return {p: state for part in self.parts for p, state in part.state.items()}

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none=True):
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self):
        """As that of one optimizer: parameters numbered through all groups."""
        whole, first = {'state': {}, 'param_groups': []}, 0
        for part in self.parts:
            own = part.state_dict()
            whole['state'] |= {first + i: state for i, state in own['state'].items()}
            for group in own['param_groups']:
                whole['param_groups'].append(group | {'params': [first + i for i in group['params']]})
            first += sum(len(group['params']) for group in part.param_groups)
        return whole

    def load_state_dict(self, whole):
        """Takes what state_dict() gave. Raises ValueError where its groups are not like the own ones."""
        groups = whole['param_groups']
        if len(groups) != len(self.param_groups):
            raise ValueError(f'{len(groups)} parameter groups, not {len(self.param_groups)}')
        for part in self.parts:
            own, groups = groups[:len(part.param_groups)], groups[len(part.param_groups):]
            numbers = [i for group in own for i in group['params']]
            part.load_state_dict({'state': {i: whole['state'][i] for i in numbers if i in whole['state']},
                                  'param_groups': own})


def learning_rate(it, peak, least, warmup_iters, end):
    """Of iteration it, from 0 on: a straight line up to peak, then half a cosine down to `least` at
    iteration `end`, which it keeps. end = infinity: it keeps the peak."""
    if it < warmup_iters:
        return peak * (it + 1) / (warmup_iters + 1)
    done = min(1.0, (it - warmup_iters) / max(1, end - warmup_iters))
    return least + (peak - least) * 0.5 * (1 + math.cos(math.pi * done))
