"""Fast text generation: key-value cache, packed weights, sampling and streaming.

Shapes: B sequences, T tokens, H heads of size D, C = vocab_size.
"""
import codecs
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from threadpoolctl import threadpool_limits

from losses import LossCoefficients
from nanoloss import numpy_decoder, rng
from nanoloss.link import has_softmax_link, link
from nanoloss.matmul import PackedLinear


class CachedLayer(NamedTuple):
    """One block of the model, as decode_step() uses it."""
    kv: torch.Tensor      # (2, B, H, block_size, D)
    keys: torch.Tensor    # (B * H, D, block_size), a view of kv
    values: torch.Tensor  # (B * H, block_size, D), a view of kv
    ln_1: nn.LayerNorm
    c_attn: PackedLinear
    attn_proj: PackedLinear
    ln_2: nn.LayerNorm
    c_fc: PackedLinear
    mlp_proj: PackedLinear


class KVCache:
    """Keys and values of B sequences, and copies of the weights, packed for products with B rows."""

    def __init__(self, model, batch_size, dtype):
        """Allocate an empty cache. dtype: of keys, values and matrix products; the logits keep the dtype of the model.
        """
        c, wte = model.config, model.lm_head.weight

        def pack(linear, weight_scale=1.0, bias_scale=1.0):
            bias = None if linear.bias is None else linear.bias * bias_scale
            return PackedLinear(linear.weight * weight_scale, bias, batch_size, dtype)

        self.length = 0  # number of tokens in the cache
        # gelu(y) = (z + z erf(z)) / sqrt(2) with z = y / sqrt(2): fold both factors into the weights
        scale = 0.5 ** 0.5 if c.activation == 'gelu' else 1.0
        self.layers = []
        for block in model.transformer.h:
            kv = torch.empty(2, batch_size, c.n_head, c.block_size, c.n_embd // c.n_head, dtype=dtype,
                             device=wte.device)
            keys, values = kv.flatten(1, 2)
            self.layers.append(CachedLayer(
                kv, keys.mT, values, block.ln_1, pack(block.attn.c_attn), pack(block.attn.c_proj),
                block.ln_2, pack(block.mlp.c_fc, scale, scale), pack(block.mlp.c_proj, scale)))
        self.lm_head = PackedLinear(wte[:c.vocab_size], None, batch_size, wte.dtype)


def prefill(model, idx, cache):
    """Run the model on the prompts idx (B, T) and replace the contents of the cache by their keys and values.

    Returns the hidden states (B, T, n_embd).
    """
    B, T = idx.shape
    outputs = []  # of c_attn, one per layer
    hooks = [block.attn.c_attn.register_forward_hook(lambda module, inputs, output: outputs.append(output))
             for block in model.transformer.h]
    try:
        hidden = model(idx)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, qkv in zip(cache.layers, outputs, strict=True):
        layer.kv[..., :T, :] = qkv.view(B, T, 3, model.config.n_head, -1).permute(2, 0, 3, 1, 4)[1:]
    cache.length = T
    return hidden


def layer_norm(x, module):
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias)


def decode_step(model, ids, cache):
    """Append one token per sequence, ids (B,), to the cache and return the logits (B, C) that follow it.

    The model's forward pass, written out: with one token per sequence, calling the modules takes longer than the
    arithmetic. Autocast must be disabled. Raises ValueError if the cache is full.
    """
    c, B, position = model.config, len(ids), cache.length
    if position >= c.block_size:
        raise ValueError(f'{position + 1} tokens exceed block_size={c.block_size}')
    x = F.embedding(ids, model.transformer.wte.weight) + model.transformer.wpe.weight[position]
    scale = (c.n_embd // c.n_head) ** -0.5
    unused = cache.layers[0].kv.new_zeros(1, 1, 1)  # baddbmm multiplies and scales in one call, but needs a summand
    for layer in cache.layers:
        qkv = layer.c_attn(layer_norm(x, layer.ln_1)).view(B, 3, c.n_head, -1)
        layer.kv.select(3, position).copy_(qkv.transpose(0, 1).narrow(0, 1, 2))
        q = qkv.select(1, 0).reshape(B * c.n_head, 1, -1)
        scores = torch.baddbmm(unused, q, layer.keys.narrow(2, 0, position + 1), beta=0, alpha=scale)
        y = torch.bmm(scores.softmax(-1), layer.values.narrow(1, 0, position + 1))
        x = layer.attn_proj.add_to(x, y.view(B, -1))
        z = layer.c_fc(layer_norm(x, layer.ln_2))
        z = torch.addcmul(z, z, z.erf()) if c.activation == 'gelu' else F.gelu(z, approximate='tanh')
        x = layer.mlp_proj.add_to(x, z)
    cache.length = position + 1
    return cache.lm_head(layer_norm(x, model.transformer.ln_f))


@torch.inference_mode()
def generate(model, idx, max_new_tokens, choose, use_cache=True):
    """Continue the prompts idx (B, T) and yield the next ids (B,), one step at a time.

    When the context window is full, only its newest half is kept: position embeddings are learned, so sliding the
    window by one token would invalidate the cache at every token. The tokens do not depend on use_cache, except for
    rounding.

    Args:
        choose: function of the logits (B, C), in the dtype of the weights, that returns ids (B,).
    """
    block_size, weight, device = model.config.block_size, model.lm_head.weight, idx.device.type
    dtype, no_autocast = weight.dtype, nullcontext()
    if torch.is_autocast_enabled(device):
        dtype, no_autocast = torch.get_autocast_dtype(device), torch.autocast(device, enabled=False)
    cache, step = None, decode_step
    if use_cache and numpy_decoder.is_worthwhile(len(idx), device, dtype, weight):
        cache, step = numpy_decoder.KVCache(model, len(idx)), numpy_decoder.decode_step
    elif use_cache:
        cache = KVCache(model, len(idx), dtype)
    context, new_ids = idx, []  # new_ids: those since the last pass of the context through the model
    # threads of numpy's BLAS would wait for each other in every small product on a busy machine
    with threadpool_limits(1, 'blas') if step is numpy_decoder.decode_step else nullcontext():
        for _ in range(max_new_tokens):
            if cache and new_ids and context.size(1) + len(new_ids) <= block_size:
                with no_autocast:
                    logits = step(model, new_ids[-1], cache)
            else:
                context, new_ids = torch.cat([context, *(ids[:, None] for ids in new_ids)], dim=1), []
                if context.size(1) > block_size:
                    context = context[:, -max(1, block_size // 2):]
                hidden = prefill(model, context, cache) if cache else model(context)
                with no_autocast:  # half precision would round away differences between logits
                    logits = model.logits(hidden[:, -1].to(weight.dtype))
            next_ids = choose(logits)
            yield next_ids
            new_ids.append(next_ids)


def make_sampler(loss, uniforms, temperature=1.0, top_k=0, top_p=1.0):
    """Return a function logits (B, C) -> ids (B,) that samples one token per sequence.

    The probabilities are those of the loss's link, raised to the power 1 / temperature. top_k keeps the k most likely
    tokens, then top_p keeps the fewest tokens whose share of the remaining probability is at least top_p.

    Args:
        uniforms: float32 array (B, steps) of random numbers in [0, 1), one per token to sample.
        temperature: 0 selects the most likely token.
        top_k: 0 keeps all tokens.
        top_p: 1 keeps all tokens.
    """
    draws = iter(uniforms.T[..., None])
    rows = np.arange(len(uniforms))

    def sample(logits):
        if temperature < 1e-30:  # division by it would overflow
            # every link of a loss with coefficients preserves the order of the logits
            scores = logits if isinstance(loss, LossCoefficients) else link(loss, logits)
            return scores.argmax(-1)
        x = logits.float() if has_softmax_link(loss) else link(loss, logits)
        x, ids = select_top(x, top_k, in_order=top_p < 1)
        largest = x.max(-1, keepdims=True)
        if has_softmax_link(loss):
            p = np.exp((x - largest) / temperature)
        else:
            p = (x / largest) ** (1 / temperature)  # dividing first avoids overflow
        cumulative = p.cumsum(-1, dtype='float64')
        total = cumulative[:, -1:]
        if top_p < 1:
            last = (cumulative < top_p * total).sum(-1)  # index of the last token to keep
            total = cumulative[rows, last, None]
        # the first token whose cumulative probability exceeds the draw: never one of probability 0
        index = (cumulative <= next(draws) * total).sum(-1)
        return torch.from_numpy(index if ids is None else ids[rows, index]).to(logits.device)

    return np.errstate(all='ignore')(sample)  # logits that are not finite give no warnings


def select_top(x, k, in_order):
    """Return the k largest values of each row of x (B, C) and their indices, both numpy arrays (B, k).

    k = 0 selects all. The values are in descending order if in_order or if k < C. The indices are None if nothing was
    moved.
    """
    C = x.size(-1)
    k = k if 0 < k < C else C
    if k == C and not in_order:
        return x.cpu().numpy(), None
    if x.device.type != 'cpu':
        values, ids = x.topk(k)
        return values.cpu().numpy(), ids.cpu().numpy()
    x = x.numpy()
    ids = np.array([largest_ids(row, k) for row in x])
    return x[np.arange(len(x))[:, None], ids], ids


def largest_ids(row, k):
    """Return the indices of the k largest values of row (C,), the largest first; much faster than torch.topk."""
    depth = len(row) // (4 * k)
    if depth > 1:  # the k-th largest of the maxima of disjoint groups is a lower bound of the k-th largest value
        maxima = row[:len(row) // depth * depth].reshape(depth, -1).max(0)
        ids = np.flatnonzero(row >= np.partition(maxima, -k)[-k])
        if len(ids) >= k:  # false with NaN
            return ids[np.argsort(-row[ids])[:k]]
    return np.argsort(-row)[:k]


def generate_stories(model, tokenizer, loss, prompt, num_samples, max_new_tokens, seed=1337, **sampling):
    """Continue the prompt num_samples times as one batch; yield (sample, text) as the text is generated.

    Each sample has its own random stream, a function of (seed, sample). At the end-of-text id, or after
    max_new_tokens, a sample ends with (sample, None). An empty prompt starts a new story.

    Args:
        sampling: temperature, top_k and top_p of make_sampler().
    """
    prompt_ids = tokenizer.encode(prompt)
    if tokenizer.eot is not None or not prompt_ids:  # without an end-of-text id, start with id 0 as nanoGPT does
        prompt_ids = [tokenizer.eot or 0, *prompt_ids]
    idx = torch.tensor([prompt_ids] * num_samples, device=model.lm_head.weight.device)
    uniforms = np.stack([rng.generator(rng.SAMPLE, seed, i).random(max_new_tokens, 'float32')
                         for i in range(num_samples)])
    sample = make_sampler(loss, uniforms, **sampling)
    decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in range(num_samples)]
    running = set(range(num_samples))
    # nanoGPT pads its vocabulary: do not sample ids that the tokenizer does not have
    for ids in generate(model, idx, max_new_tokens, lambda logits: sample(logits[:, :tokenizer.vocab_size])):
        for i, token in enumerate(ids.tolist()):
            if i in running and token == tokenizer.eot:
                running.remove(i)
                yield i, decoders[i].decode(b'', final=True)
                yield i, None
            elif i in running:
                yield i, decoders[i].decode(tokenizer.token_bytes(token))
        if not running:
            return
    for i in sorted(running):
        yield i, decoders[i].decode(b'', final=True)
        yield i, None


def generate_text(model, tokenizer, loss, max_new_tokens, seed):
    """Return one new story on one line, at temperature 1 and top_p 0.9. The model's training mode is restored."""
    was_training = model.training
    model.eval()
    pieces = generate_stories(model, tokenizer, loss, '', 1, max_new_tokens, seed=seed, top_p=0.9)
    text = ''.join(piece for _, piece in pieces if piece)
    model.train(was_training)
    return ' '.join(text.split())
