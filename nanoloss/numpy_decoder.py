"""The decoding step of engine.py in numpy, for a few sequences on a CPU.

With one token per sequence a step consists of many small operations. A call of numpy takes a fraction of the time of
one of torch, and its BLAS multiplies a vector by a matrix faster than torch's libraries (docs/performance.md).
Shapes: as in engine.py.
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from nanoloss.matmul import PackedLinear

# Measured on two cores (docs/performance.md). A large model reads its weights from memory in each step. For several
# sequences torch's packed weights are as fast, and more than two threads can read faster than numpy's one.
MAX_SEQUENCES = 16
LARGE = 2**22  # weights of the head
MAX_MULTIPLICATIONS = 2**20  # of a product with several rows; numpy's BLAS has a fast kernel for small ones only


def is_worthwhile(batch_size, device, dtype, head):
    """Return whether numpy decodes sequences on this device; `dtype` is that of products, `head` the head's weight."""
    if device != 'cpu' or dtype is not head.dtype or dtype not in (torch.float32, torch.float64):
        return False
    if head.numel() >= LARGE:
        return batch_size == 1 and torch.get_num_threads() <= 2
    return batch_size <= MAX_SEQUENCES


class Linear:
    """A linear layer for inputs of a fixed number of rows, with weight (out, in) and bias (out,) or None."""

    def __init__(self, weight, bias, rows):
        self.packed = self.bias = None
        if rows > 1 and rows * weight.numel() > MAX_MULTIPLICATIONS:
            self.packed = PackedLinear(weight, bias, rows, weight.dtype)
        else:  # transposed: one row times a matrix with few rows reads the matrix at the full speed of the memory
            self.weight = weight.T.contiguous().numpy()
            self.bias = None if bias is None else bias.numpy()

    def __call__(self, x):
        """Return the output (rows, out), a new array, for x (rows, in)."""
        if self.packed:
            return self.packed(torch.from_numpy(x)).numpy()
        y = np.dot(x, self.weight)
        if self.bias is not None:
            y += self.bias
        return y


def normalize(x, eps):
    """Layer-normalize x (rows, n), whose rows have mean 0, without weight and bias."""
    n = x.shape[1]
    if len(x) == 1:  # numpy takes several times as long for an array of one number as Python for a float
        return x * (float(np.dot(x[0], x[0])) / n + eps) ** -0.5
    return x / np.sqrt(np.vecdot(x, x)[:, None] / n + eps)


class CachedLayer(NamedTuple):
    """One block of the model, as decode_step() uses it."""
    kv: torch.Tensor      # (2, B, H, block_size, D)
    kv_array: np.ndarray  # the same memory
    keys: np.ndarray      # (B, H, D, block_size), a view of kv
    values: np.ndarray    # (B, H, block_size, D), a view of kv
    c_attn: Linear
    attn_proj: Linear
    c_fc: Linear
    mlp_proj: Linear


class KVCache:
    """Keys and values of B sequences, and copies of the weights.

    A layer norm ignores the mean of its input. So the mean is subtracted from everything that is added to the residual
    stream: from the weights once, from the embedding in each step. The layer norm's weight and bias are folded into
    the linear layer that follows, and the scale of attention into the weights of the queries.
    """

    def __init__(self, model, batch_size):
        """Allocate an empty cache of the dtype of the model."""
        c, wte = model.config, model.lm_head.weight

        def pack(layer, norm=None, scale=1.0, bias_scale=1.0, centred=False, rows=None):
            weight = layer.weight.detach()[:rows]
            bias = torch.zeros_like(weight[:, 0]) if layer.bias is None else layer.bias.detach()
            if centred:
                weight, bias = weight - weight.mean(0), bias - bias.mean()
            if norm and norm.bias is not None:
                bias = bias + weight @ norm.bias.detach()
            bias = bias * bias_scale
            weight = weight * (norm.weight.detach() * scale if norm else scale)
            return Linear(weight, bias if bias.any() else None, batch_size)

        self.length = 0  # number of tokens in the cache
        self.wte, self.wpe = wte.detach().numpy(), model.transformer.wpe.weight.detach().numpy()
        scale = 0.5 ** 0.5 if c.activation == 'gelu' else 1.0  # as in engine.py
        attention_scale = torch.ones(3 * c.n_embd, dtype=wte.dtype)
        attention_scale[:c.n_embd] = (c.n_embd // c.n_head) ** -0.5
        self.layers = []
        for block in model.transformer.h:
            kv = torch.empty(2, batch_size, c.n_head, c.block_size, c.n_embd // c.n_head, dtype=wte.dtype, device='cpu')
            keys, values = kv.numpy()
            self.layers.append(CachedLayer(
                kv, kv.numpy(), keys.swapaxes(2, 3), values,
                pack(block.attn.c_attn, block.ln_1, attention_scale[:, None], attention_scale),
                pack(block.attn.c_proj, centred=True),
                pack(block.mlp.c_fc, block.ln_2, scale, scale),
                pack(block.mlp.c_proj, scale=scale, centred=True)))
        self.lm_head = pack(model.lm_head, model.transformer.ln_f, rows=c.vocab_size)


@np.errstate(all='ignore')  # as torch: a model that overflows gives no warnings
def decode_step(model, ids, cache):
    """Append one token per sequence, ids (B,), to the cache and return the logits (B, C) that follow it.

    The result is that of engine.decode_step(), except for rounding. Raises ValueError if the cache is full.
    """
    c, B, length = model.config, len(ids), cache.length + 1
    if length > c.block_size:
        raise ValueError(f'{length} tokens exceed block_size={c.block_size}')
    x = cache.wte[ids.numpy()] + cache.wpe[length - 1]
    x -= np.add.reduce(x, axis=1, keepdims=True) / c.n_embd
    eps = model.transformer.ln_f.eps
    for layer in cache.layers:
        qkv = layer.c_attn(normalize(x, eps)).reshape(B, 3, c.n_head, -1)
        layer.kv_array[..., length - 1, :] = qkv[:, 1:].swapaxes(0, 1)
        scores = np.matmul(qkv[:, 0, :, None], layer.keys[..., :length])  # (B, H, 1, length)
        scores -= np.maximum.reduce(scores, axis=3, keepdims=True)
        np.exp(scores, out=scores)
        y = np.matmul(scores, layer.values[:, :, :length])
        y /= np.add.reduce(scores, axis=3, keepdims=True)
        x += layer.attn_proj(y.reshape(B, -1))
        z = layer.c_fc(normalize(x, eps))
        if c.activation == 'gelu':
            z *= torch.erf(torch.from_numpy(z)).numpy() + 1
        else:
            z = F.gelu(torch.from_numpy(z), approximate='tanh').numpy()
        x += layer.mlp_proj(z)
    cache.length = length
    return torch.from_numpy(cache.lm_head(normalize(x, eps)))
