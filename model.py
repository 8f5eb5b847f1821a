"""GPT-2 in one file, after Radford et al. 2019, with nanoGPT's parameter names.

The model makes hidden states; logits are a call of their own, so that a loss can do without them.
Shapes: B sequences, T tokens, n_embd the width, H heads of width D = n_embd / H.
"""
import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from products import Weight


@dataclass
class GPTConfig:
    block_size: int = 1024    # longest context, in tokens
    vocab_size: int = 50304   # token ids that exist; the embedding is padded to a multiple of 64
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True         # in linear layers and layer norms
    activation: str = 'gelu'  # exact (erf), or 'gelu_tanh', which OpenAI's weights want


class Cache:
    """What one more token of each of B sequences needs: keys and values of the tokens before it, and
    the weights of the layers in the order of their use, copies, laid out for products with B rows."""

    def __init__(self, model, batch_size, dtype):
        c, weight = model.config, model.lm_head.weight

        def layer(linear, scale=1.0, bias_scale=1.0):
            bias = None if linear.bias is None else linear.bias * bias_scale
            return Weight(linear.weight * scale, bias, batch_size, dtype)

        self.length = 0  # tokens held
        root = 0.5 ** 0.5 if c.activation == 'gelu' else 1.0  # exact: gelu(y) = (z + z erf z) / sqrt 2, z = y / sqrt 2
        self.layers = []
        for block in model.transformer.h:
            held = torch.empty(2, batch_size, c.n_head, c.block_size, c.n_embd // c.n_head, dtype=dtype,
                               device=weight.device)
            keys, values = held.flatten(1, 2)
            self.layers.append((held, keys.mT, values, block.ln_1, layer(block.attn.c_attn), layer(block.attn.c_proj),
                                block.ln_2, layer(block.mlp.c_fc, root, root), layer(block.mlp.c_proj, root)))
        self.head = Weight(weight[:c.vocab_size], None, batch_size, weight.dtype)

    def fill(self, layer, k, v):
        """Store k, v (B, H, T, D) of a layer's first T tokens."""
        self.layers[layer][0][..., :k.size(2), :] = torch.stack([k, v])


def norm(x, layer):
    """What the module layer, a LayerNorm, makes of x (B, n_embd)."""
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)


class CausalSelfAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.n_head, self.dropout, self.layer = config.n_head, config.dropout, layer
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # query, key, value
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache.fill(self.layer, k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True,
                                           dropout_p=self.dropout if self.training else 0.0)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.approximate = {'gelu': 'none', 'gelu_tanh': 'tanh'}[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate)))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x, cache=None):
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f'n_embd={config.n_embd} is not a multiple of n_head={config.n_head}')
        self.config = config
        rows = -(-config.vocab_size // 64) * 64  # whole tiles make the head's product faster on a GPU
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(rows, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, rows, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """GPT-2's: normal with standard deviation 0.02, biases zero, and the layers that write to
        the residual stream scaled down by the square root of how many of them there are."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith('c_proj.weight')
                p.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)
            elif name.endswith('bias'):
                p.zero_()
        # no loss gives the padding a gradient, so it stays zero, and a checkpoint can leave it out
        self.lm_head.weight[self.config.vocab_size:] = 0

    def forward(self, idx, cache=None):
        """Hidden states (B, T, n_embd) of token ids (B, T), after the final layer norm.

        A Cache takes them in, for step(), in place of what it held. Raises ValueError where block_size is exceeded.
        """
        T = idx.size(1)
        if T > self.config.block_size:
            raise ValueError(f'{T} tokens do not fit block_size={self.config.block_size}')
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe.weight[:T])
        for block in self.transformer.h:
            x = block(x, cache)
        if cache is not None:
            cache.length = T
        return self.transformer.ln_f(x)

    def step(self, ids, cache):
        """Logits (B, vocab_size) after one more token of each, ids (B,), which the Cache takes in.

        forward() and logits() once more, written out: at this size calling modules takes longer than
        the arithmetic. No autocast here: the Cache has the type of the products. Raises ValueError where
        the Cache is full.
        """
        c, past, B = self.config, cache.length, len(ids)
        if past >= c.block_size:
            raise ValueError(f'{past + 1} tokens do not fit block_size={c.block_size}')
        x = F.embedding(ids, self.transformer.wte.weight) + self.transformer.wpe.weight[past]
        scale = (c.n_embd // c.n_head) ** -0.5
        nothing = cache.layers[0][0].new_zeros(1, 1, 1)  # baddbmm scales on the way, and wants something to add
        for held, keys, values, ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj in cache.layers:
            qkv = c_attn(norm(x, ln_1)).view(B, 3, c.n_head, -1)
            held.select(3, past).copy_(qkv.transpose(0, 1).narrow(0, 1, 2))
            q = qkv.select(1, 0).reshape(B * c.n_head, 1, -1)
            scores = torch.baddbmm(nothing, q, keys.narrow(2, 0, past + 1), beta=0, alpha=scale)
            y = torch.bmm(scores.softmax(-1), values.narrow(1, 0, past + 1))
            x = attn_proj.added_to(x, y.view(B, -1))
            z = c_fc(norm(x, ln_2))
            z = torch.addcmul(z, z, z.erf()) if c.activation == 'gelu' else F.gelu(z, approximate='tanh')
            x = mlp_proj.added_to(x, z)
        cache.length = past + 1
        return cache.head(norm(x, self.transformer.ln_f))

    def logits(self, hidden):
        """Logits (..., vocab_size) of hidden states (..., n_embd); padding left out."""
        return self.lm_head(hidden)[..., :self.config.vocab_size]

    def num_params(self):
        """Parameters, without the position embeddings and the padding (nanoGPT's count)."""
        padding = self.lm_head.weight.size(0) - self.config.vocab_size
        left_out = self.transformer.wpe.weight.numel() + padding * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - left_out

    @torch.inference_mode()
    def generate(self, idx, max_new_tokens, choose, use_cache=True):
        """Continue the B prompts idx (B, T), yielding the next ids (B,), one step at a time.

        choose: logits (B, vocab_size) in the weights' own dtype -> ids (B,). When the window is full, the
        newest half of it is kept: positions are learned, so sliding by one would recompute
        everything at every token. But for rounding, the cache changes the time and not the tokens.
        """
        block_size, weight, device = self.config.block_size, self.lm_head.weight, idx.device.type
        dtype, as_it_is = weight.dtype, nullcontext()
        if torch.is_autocast_enabled(device):
            dtype, as_it_is = torch.get_autocast_dtype(device), torch.autocast(device, enabled=False)
        cache = Cache(self, len(idx), dtype) if use_cache else None
        window, fresh = idx, []  # fresh: ids since the window went through the model
        for _ in range(max_new_tokens):
            if cache and fresh and window.size(1) + len(fresh) <= block_size:
                with as_it_is:
                    logits = self.step(fresh[-1][:, 0], cache)
            else:
                window, fresh = torch.cat([window, *fresh], dim=1), []
                if window.size(1) > block_size:
                    window = window[:, -max(1, block_size // 2):]
                hidden = self(window, cache)[:, -1]
                with as_it_is:  # small differences of logits matter
                    logits = self.logits(hidden.to(weight.dtype))
            next_ids = choose(logits)
            yield next_ids
            fresh.append(next_ids[:, None])
