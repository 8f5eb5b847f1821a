"""A plain PyTorch baseline: all logits at once, one-hot targets, torch's AdamW.

bench.py measures this project against it, and the tests compare results with it.
"""
import torch
import torch.nn.functional as F


def loss(name, logits, targets):
    """Return the mean loss of logits (N, C) and targets (N,), with the published constants.

    mse sums over the classes, as in losses.py. cross_entropy_plus_mse is the loss of the original study's code: its
    squared error is a mean over the classes, with a weight of 65 for the true class.
    """
    C = logits.size(-1)
    if name == 'cross_entropy':
        return F.cross_entropy(logits, targets)
    one_hot = F.one_hot(targets, C).to(logits.dtype)
    if name == 'mse':
        return ((logits - one_hot) ** 2).sum(-1).mean()
    if name == 'squentropy':
        return F.cross_entropy(logits, targets) + ((logits * (1 - one_hot)) ** 2).sum(-1).mean() / (C - 1)
    if name == 'cross_entropy_plus_mse':
        return F.cross_entropy(logits, targets) + ((1 + 64 * one_hot) * (logits - one_hot) ** 2).mean()
    raise ValueError(f'the baseline has no loss {name!r}')


def trainer(model, name, learning_rate=1e-3, compiled=False):
    """Return a function (x, y, learning_rate) -> loss that runs one iteration on token ids x and y (B, T).

    name: a loss of loss(), or 'linear_cross_entropy' for PyTorch's own without full logits (2.13), in chunks of 512.
    """
    def forward(x, y):
        if name == 'linear_cross_entropy':
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512)
            return F.linear_cross_entropy(model(x).flatten(0, 1), model.lm_head.weight, y.flatten(), options=options)
        return loss(name, model.lm_head(model(x)).flatten(0, 1), y.flatten())
    if compiled:
        forward = torch.compile(forward, dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.1,
                                  fused=True if next(model.parameters()).is_cuda else None)  # as in nanoGPT

    def iteration(x, y, learning_rate=learning_rate):
        mean_loss = forward(x, y)
        mean_loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group['lr'] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return mean_loss
    return iteration
