"""GPT-2 in one file, after Radford et al. 2019, with nanoGPT's parameter names.

The model makes hidden states; logits are a call of their own, so that a loss can do without them.
Shapes: B sequences, T tokens, n_embd the width, H heads of width D = n_embd / H.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


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
    """Keys and values of the tokens seen so far, one pair of (B, H, block_size, D) a layer."""

    def __init__(self, config, batch_size, device, dtype):
        shape = (config.n_layer, 2, batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.memory = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0  # tokens held

    def append(self, layer, k, v):
        """Store k, v (B, H, T, D) of a layer's new tokens; returns those of all tokens so far."""
        end = self.length + k.size(2)
        keys, values = self.memory[layer]
        keys[:, :, self.length:end], values[:, :, self.length:end] = k, v
        return keys[:, :, :end], values[:, :, :end]


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
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(self.layer, k, v)
        mask = None
        if past and T > 1:  # several new tokens after a past: each sees the past and its own predecessors
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=past == 0,
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

        With a Cache, idx holds only the tokens that it has not seen yet, and it takes them in.
        Raises ValueError where the tokens are more than block_size.
        """
        past = cache.length if cache is not None else 0
        T = idx.size(1)
        if past + T > self.config.block_size:
            raise ValueError(f'{past + T} tokens do not fit block_size={self.config.block_size}')
        x = self.transformer.wte(idx) + self.transformer.wpe.weight[past:past + T]
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            x = block(x, cache)
        if cache is not None:
            cache.length += T
        return self.transformer.ln_f(x)

    def logits(self, hidden):
        """Logits (..., vocab_size) of hidden states (..., n_embd); padding left out."""
        return self.lm_head(hidden)[..., :self.config.vocab_size]

    def num_params(self):
        """Parameters, without the position embeddings and the padding (nanoGPT's count)."""
        padding = self.lm_head.weight.size(0) - self.config.vocab_size
        left_out = self.transformer.wpe.weight.numel() + padding * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - left_out

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, choose, use_cache=True):
        """Continue the B prompts idx (B, T), yielding the next ids (B,), one step at a time.

        choose: logits (B, vocab_size) in the weights' own dtype -> ids (B,). When the window is full, the
        newest half of it is kept: positions are learned, so sliding by one would recompute
        everything at every token. The cache changes the time, not the tokens.
        """
        block_size = self.config.block_size
        weight = self.lm_head.weight
        window, cache = idx, None
        for _ in range(max_new_tokens):
            if window.size(1) > block_size:
                window, cache = window[:, -max(1, block_size // 2):], None
            if not use_cache:
                hidden = self(window)
            elif cache is None:
                dtype = torch.get_autocast_dtype(idx.device.type) \
                    if torch.is_autocast_enabled(idx.device.type) else weight.dtype
                cache = Cache(self.config, len(idx), idx.device, dtype)
                hidden = self(window, cache)
            else:
                hidden = self(window[:, -1:], cache)
            with torch.autocast(idx.device.type, enabled=False):  # small differences of logits matter
                next_ids = choose(self.logits(hidden[:, -1].to(weight.dtype)))
            yield next_ids
            window = torch.cat([window, next_ids[:, None]], dim=1)
