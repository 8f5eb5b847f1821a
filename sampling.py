"""From a model's logits to text: the link reading, temperature, top-k, top-p, a stream for each sample."""
import codecs

import numpy as np
import torch

import losses
import rng


def chooser(loss, uniforms, temperature=1.0, top_k=0, top_p=1.0):
    """A function logits (B, C) -> ids (B,) for GPT.generate.

    Probabilities are the loss's link, then p^(1/temperature), then the top_k most likely (0: all),
    then the fewest that hold top_p of the mass; ties with the last of them stay too. uniforms:
    float32 (B, steps) in [0, 1), one for each draw. temperature 0 is greedy: the most likely.
    """
    draws = iter(uniforms.T)

    def choose(logits):
        if temperature < 1e-30:  # as good as 0, by which nothing can be divided
            return (logits if isinstance(loss, losses.Family) else losses.link(loss, logits)).argmax(-1)
        if losses.is_softmax(loss):
            p = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1)
        else:
            p = losses.link(loss, logits)
            p = (p / p.amax(-1, keepdim=True)) ** (1 / temperature)  # relative, so that none overflows
        p = keep(p.float().cpu().numpy(), top_k, top_p)  # numpy sorts values; torch would sort places too
        total = torch.from_numpy(p).cumsum(-1)
        # the first id whose cumulated probability exceeds the draw: never one of probability 0
        threshold = torch.from_numpy(next(draws))[:, None] * total[:, -1:]
        ids = torch.searchsorted(total, threshold, right=True).clamp_(max=p.shape[-1] - 1)
        return ids.squeeze(1).to(logits.device)

    return choose


def keep(p, top_k, top_p):
    """p (B, C) with zeros for all but the top_k largest, and of those all but the fewest that hold
    top_p of their sum."""
    C = p.shape[-1]
    if 0 < top_k < C:
        p = at_least(p, np.partition(p, C - top_k)[:, C - top_k])
    if top_p < 1:
        ascending = np.sort(p)
        total = ascending.cumsum(-1)
        dispensable = (total <= (1 - top_p) * total[:, -1:]).sum(-1)  # so many of the smallest
        p = at_least(p, np.take_along_axis(ascending, dispensable.clip(max=C - 1)[:, None], -1)[:, 0])
    return p


def at_least(p, least):
    """p (B, C) with zeros for what is below least (B,) of its row."""
    return np.where(p >= least[:, None], p, 0)


def stories(model, tokenizer, loss, prompt, num_samples, max_new_tokens, seed=1337, **how):
    """Continue the prompt num_samples times as one batch; yields (sample, text) as text comes.

    Each sample has its own random stream, a function of (seed, sample). A sample ends at the
    end-of-text id, yielding (sample, None); what is cut off at max_new_tokens ends so too. An empty
    prompt starts a new story. how: temperature, top_k, top_p.
    """
    device = model.lm_head.weight.device
    prompt = tokenizer.encode(prompt)
    if tokenizer.eot is not None or not prompt:  # where there is no end of text, id 0, as nanoGPT's samples begin
        prompt = [tokenizer.eot or 0, *prompt]
    idx = torch.tensor([prompt] * num_samples, device=device)
    uniforms = np.stack([rng.generator(rng.SAMPLE, seed, i).random(max_new_tokens, 'float32')
                         for i in range(num_samples)])
    partial = [codecs.getincrementaldecoder('utf-8')('replace') for _ in range(num_samples)]
    running = set(range(num_samples))
    choose = chooser(loss, uniforms, **how)
    # a model of nanoGPT's may have more ids than its tokenizer: those stand for nothing
    for ids in model.generate(idx, max_new_tokens, lambda logits: choose(logits[:, :tokenizer.vocab_size])):
        for i, token in enumerate(ids.tolist()):
            if i in running and token == tokenizer.eot:
                running.remove(i)
                yield i, partial[i].decode(b'', final=True)
                yield i, None
            elif i in running:
                yield i, partial[i].decode(tokenizer.token_bytes(token))
        if not running:
            return
    for i in sorted(running):
        yield i, partial[i].decode(b'', final=True)
        yield i, None
