"""GPT-2 (Radford et al. 2019) in one file, with nanoGPT's parameter names.

forward() returns hidden states and logits() is a separate call, because some losses need no logits.
Shapes: B sequences, T tokens, C = n_embd, H heads of size D = C / H.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    block_size: int = 1024    # maximum context length, in tokens
    vocab_size: int = 50304   # the embedding is padded to a multiple of 64
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True         # in linear layers and layer norms
    activation: str = 'gelu'  # 'gelu' (exact) or 'gelu_tanh' (OpenAI's weights)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # query, key, value
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
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
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f'n_embd={config.n_embd} is not a multiple of n_head={config.n_head}')
        self.config = config
        padded_vocab_size = math.ceil(config.vocab_size / 64) * 64  # faster matmul on GPUs
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(padded_vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, padded_vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # weight tying
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Initialize as GPT-2 does: normal with std 0.02, scaled by 1/sqrt(2 n_layer) for the layers that write to
        the residual stream; biases are zero."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith('c_proj.weight')
                p.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)
            elif name.endswith('bias'):
                p.zero_()
        # the padding gets no gradient, so it stays zero, and checkpoints can omit it
        self.lm_head.weight[self.config.vocab_size:] = 0

    def forward(self, idx):
        """Return the hidden states (B, T, C) of token ids (B, T), after the final layer norm.

        Raises ValueError if T exceeds block_size.
        """
        T = idx.size(1)
        if T > self.config.block_size:
            raise ValueError(f'{T} tokens exceed block_size={self.config.block_size}')
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe.weight[:T])
        for block in self.transformer.h:
            x = block(x)
        return self.transformer.ln_f(x)

    def logits(self, hidden):
        """Return the logits (..., vocab_size) of hidden states (..., C), without those of the padding."""
        return self.lm_head(hidden)[..., :self.config.vocab_size]

    def num_params(self):
        """Return the number of parameters without position embeddings (as nanoGPT counts) and padding."""
        padding = self.lm_head.weight.size(0) - self.config.vocab_size
        excluded = self.transformer.wpe.weight.numel() + padding * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - excluded

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None):
        """Return the prompts idx (B, T) with sampled ids appended, (B, T + max_new_tokens).

        temperature must be positive; top_k=1 takes the most likely id. The context, cropped to block_size, goes
        through the model for every token. nanoloss/engine.py does the same with a key-value cache. Call model.eval()
        first.
        """
        for _ in range(max_new_tokens):
            hidden = self(idx[:, -self.config.block_size:])
            logits = self.logits(hidden[:, -1]) / temperature
            if top_k is not None:
                kth_largest = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
                logits = logits.masked_fill(logits < kth_largest, -torch.inf)
            idx = torch.cat([idx, torch.multinomial(F.softmax(logits, dim=-1), 1)], dim=1)
        return idx
