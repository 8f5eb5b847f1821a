"""From a model's logits to text: the link reading, temperature, top-k, top-p, a stream for each sample."""
import codecs

import torch

import losses
import rng


def chooser(loss, uniforms, temperature=1.0, top_k=0, top_p=1.0):
    """A function logits (B, C) -> ids (B,) for GPT.generate.

    Probabilities are the loss's link, then p^(1/temperature), then the top_k most likely (0: all),
    then the fewest that hold top_p of the mass. uniforms: (B, steps) in [0, 1), one for each draw.
    temperature 0 is greedy: the most likely.
    """
    draws = iter(uniforms.unbind(1))

    def choose(logits):
        if temperature == 0 and isinstance(loss, losses.Family):
            return logits.argmax(-1)  # the link keeps their order
        p = losses.link(loss, logits)
        if temperature == 0:
            return p.argmax(-1)
        p, ids = p.sort(dim=-1, descending=True, stable=True)
        p = (p / p[:, :1]) ** (1 / temperature)  # relative to the most likely, so that none overflows
        if top_k:
            p[:, top_k:] = 0
        total = p.cumsum(-1)
        if top_p < 1:
            p[total - p >= top_p * total[:, -1:]] = 0  # those whose forerunners hold enough already
            total = p.cumsum(-1)
        # the first id whose cumulated probability exceeds the draw: never one of probability 0
        threshold = next(draws).to(total)[:, None] * total[:, -1:]
        place = torch.searchsorted(total, threshold, right=True).clamp_(max=p.size(-1) - 1)
        return ids.gather(1, place).squeeze(1)

    return choose


def stories(model, tokenizer, loss, prompt, num_samples, max_new_tokens, seed=1337, **how):
    """Continue the prompt num_samples times as one batch; yields (sample, text) as text comes.

    Each sample has its own random stream, a function of (seed, sample). A sample ends at the
    end-of-text id, yielding (sample, None); what is cut off at max_new_tokens ends so too. An empty
    prompt starts a new story. how: temperature, top_k, top_p.
    """
    device = model.lm_head.weight.device
    idx = torch.tensor([[tokenizer.eot, *tokenizer.encode(prompt)]] * num_samples, device=device)
    uniforms = torch.stack([torch.from_numpy(rng.generator(rng.SAMPLE, seed, i).random(max_new_tokens, 'float32'))
                            for i in range(num_samples)]).to(device)
    partial = [codecs.getincrementaldecoder('utf-8')('replace') for _ in range(num_samples)]
    running = set(range(num_samples))
    for ids in model.generate(idx, max_new_tokens, chooser(loss, uniforms, **how)):
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
