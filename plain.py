"""The plain way to do what this project does: the reference that bench.py measures against, and the
tests compare with. All logits at once, one-hot targets, no cache, AdamW as torch gives it.
"""
import torch
import torch.nn.functional as F


def loss(name, logits, targets):
    """The mean over tokens of a loss with its published constants: logits (N, C), targets (N,).

    MSE is the sum over classes, as it is trained here; cross_entropy_plus_mse is the original
    study's, whose square error is a mean over classes with the true one weighted by 65.
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
    raise ValueError(f'the plain way knows no {name!r}')


def trainer(model, name, learning_rate=1e-3, compiled=False):
    """A function (x, y[, learning_rate]) -> loss that makes one iteration: x, y (B, T) ids."""
    def forward(x, y):
        return loss(name, model.lm_head(model(x)).flatten(0, 1), y.flatten())
    if compiled:
        forward = torch.compile(forward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.1)

    def iteration(x, y, learning_rate=learning_rate):
        value = forward(x, y)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group['lr'] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value
    return iteration


@torch.no_grad()
def generate(model, idx, max_new_tokens, temperature=0.8, top_k=200):
    """Continue prompts idx (B, T): the whole window goes through the model for every token."""
    for _ in range(max_new_tokens):
        hidden = model(idx[:, -model.config.block_size:])
        logits = model.logits(hidden[:, -1]) / temperature
        kth = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
        p = F.softmax(logits.masked_fill(logits < kth, -torch.inf), dim=-1)
        idx = torch.cat([idx, torch.multinomial(p, 1)], dim=1)
    return idx
