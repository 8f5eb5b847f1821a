"""From a model's logits to text: the link reading, temperature, top-k, top-p, a stream for each sample."""
import codecs

import numpy as np
import torch

import losses
import rng


def chooser(loss, uniforms, temperature=1.0, top_k=0, top_p=1.0):
    """A function logits (B, C) -> ids (B,) for GPT.generate.

    Probabilities are the loss's link, then p^(1/temperature), then the top_k most likely (0: all),
    then the fewest that hold top_p of the mass. uniforms: float32 (B, steps) in [0, 1), one for each
    draw. temperature 0 is greedy: the most likely.
    """
    # a hair less, so that no product with a sum is rounded up to all of it
    draws = iter(torch.from_numpy(uniforms.T[..., None] * np.float32(1 - 2**-22)))

    def choose(logits):
        if temperature < 1e-30:  # as good as 0, by which nothing can be divided
            return (logits if isinstance(loss, losses.Family) else losses.link(loss, logits)).argmax(-1)
        x = logits.float() if losses.is_softmax(loss) else losses.link(loss, logits)
        x, ids = likeliest(x, top_k, in_order=top_p < 1)
        largest = x.amax(-1, keepdim=True)
        if losses.is_softmax(loss):  # of these alone, which renormalises them
            p = torch.softmax((x - largest) / temperature, dim=-1)
        else:
            p = (x / largest) ** (1 / temperature)  # relative, so that none overflows
        total = p.float().cpu().cumsum(-1)  # on a CPU it surely never falls
        if top_p < 1:  # the rest begins where that share is reached
            held = (total < top_p * total[:, -1:]).sum(-1, keepdim=True)
            total = total.minimum(total.gather(1, held))
        # the first whose cumulated probability exceeds the draw: never one of probability 0
        place = torch.searchsorted(total, next(draws) * total[:, -1:], right=True)
        place = place.clamp_(max=total.size(-1) - 1).to(logits.device)  # past the end are rows that are not finite
        return (place if ids is None else ids.gather(1, place)).squeeze(1)

    return choose


def likeliest(x, k, in_order):
    """The k largest (0: all) of each row of x (B, C) and their places, both (B, k), falling if in_order; places are
    None where all stay as they are."""
    C = x.size(-1)
    k = k if 0 < k < C else C
    if k == C and not in_order:
        return x, None
    if x.device.type != 'cpu':
        return x.topk(k)
    # numpy's, which is several times as fast as torch's; of the negative, since the zeros of a link come last so
    negative = -x.numpy()
    ids = np.argpartition(negative, k - 1)[:, :k] if k < C else np.argsort(negative)
    if in_order and k < C:
        ids = np.take_along_axis(ids, np.argsort(np.take_along_axis(negative, ids, 1)), 1)
    ids = torch.from_numpy(ids)
    return x.gather(1, ids), ids


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
