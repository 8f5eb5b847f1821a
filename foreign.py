"""Checkpoints of others, as ours: nanoGPT's ckpt.pt, and GPT-2 as Hugging Face's transformers keeps it.

Both become the dict that checkpoint.py describes. Softmax is what they were trained with, so their loss
is cross-entropy.
"""
import json
import os
from pathlib import Path

import torch

from tokenizer import Tokenizer, from_letters

GPT2 = 'gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl'
NANOGPT_KEYS = {'model', 'optimizer', 'model_args', 'iter_num', 'best_val_loss', 'config'}
NANOGPT_ARGS = {'n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'vocab_size', 'dropout'}
ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}
# what GPT2Config must say for a model to be the GPT-2 of model.py
HUGGING_FACE = {'model_type': 'gpt2', 'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
                'add_cross_attention': False, 'layer_norm_epsilon': 1e-5, 'tie_word_embeddings': True}
TRANSPOSED = 'attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight'  # transformers' Conv1D


def is_nanogpt(checkpoint):
    """Whether a loaded dict is stock nanoGPT's: its keys, and none that only ours have."""
    return NANOGPT_KEYS <= checkpoint.keys() and not checkpoint.keys() & {'tokenizer', 'loss', 'activation', 'data'}


def from_nanogpt(theirs):
    """Our dict of nanoGPT's, with what a resumed run needs. Raises ValueError, naming what does not fit."""
    args, weights = theirs['model_args'], theirs['model']
    if type(args) is not dict or not isinstance(weights, dict) or not all(type(name) is str for name in weights):
        raise ValueError("no good 'model_args' or 'model'")
    if wrong := sorted(map(str, args.keys() ^ NANOGPT_ARGS)):
        missing = [name for name in wrong if name not in args]
        raise ValueError('model_args ' + (f'lacks {", ".join(missing)}' if missing else f'has {", ".join(wrong)}, '
                         "which nanoGPT's GPT does not take"))
    # torch.compile's prefix; the causal mask that old attention kept
    weights = {name.removeprefix('_orig_mod.'): w for name, w in weights.items() if not name.endswith('.attn.bias')}
    best, size = theirs['best_val_loss'], args['vocab_size']  # the loss is a tensor there
    optimizer = theirs['optimizer']
    if type(size) is int and type(optimizer) is dict and type(optimizer.get('state')) is dict:
        rows = -(-size // 64) * 64  # ours has whole tiles
        optimizer = {**optimizer, 'state': {i: {name: padded(x, rows) if i == 0 else x for name, x in moments.items()}
                                            for i, moments in optimizer['state'].items() if type(moments) is dict}}
    config = theirs['config'] if type(theirs['config']) is dict else {}
    gpt2 = type(size) is int and 50257 <= size <= 50304
    return {
        'model': weights, 'model_args': {name: args[name] for name in args if name != 'dropout'}, 'activation': 'gelu',
        'tokenizer': {'kind': 'gpt2', 'vocab_size': 50257} if gpt2 else {'kind': 'ids', 'vocab_size': size},
        'loss': {'name': 'cross_entropy', 'numbers': [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]}, 'data': {},
        'optimizer': optimizer, 'iter_num': theirs['iter_num'],
        'best_val_loss': float(best) if isinstance(best, (int, float, torch.Tensor)) else best,
        'config': {name: x for name, x in config.items() if type(x) in (str, int, float, bool)},
        'scaler': {}, 'machine': {},
        'progress': {'last_eval': -1, 'without_gain': 0, 'seconds': 0.0, 'wandb_run_id': ''}}


def padded(x, rows):
    """Moments (n, d) of the vocabulary with zeros below, (rows, d): what rows have that never had a gradient."""
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or len(x) > rows:
        return x
    return torch.nn.functional.pad(x, (0, 0, 0, rows - len(x)))


def is_hugging_face(path):
    return os.path.isdir(path) or path in GPT2 and not os.path.exists(path)


def from_hugging_face(path):
    """Our dict of a GPT-2 of transformers: a folder, or the name of one of OpenAI's four.

    Raises ValueError, naming what does not fit, or OSError where it cannot be had.
    """
    local = os.path.isdir(path)
    if local and not (Path(path) / 'config.json').is_file():
        raise ValueError(f'{path} is a folder without a config.json, so no model of Hugging Face; give a checkpoint '
                         'file, or such a folder')
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
        from transformers.utils import logging
    except ImportError:
        raise ValueError(f'{path} is read by the package transformers, which is not installed; '
                         'pip install transformers') from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = GPT2Config.get_config_dict(path)[0]
        check(config, path)
        model, info = GPT2LMHeadModel.from_pretrained(path, output_loading_info=True, dtype=torch.float32,
                                                      ignore_mismatched_sizes=True)
    except ValueError as e:
        if str(e).startswith(f'{path}: '):
            raise
        raise ValueError(f'{path}: {first_line(e)}; give another') from None
    except Exception as e:  # of transformers, safetensors, huggingface_hub, httpx
        if isinstance(e, MemoryError):
            raise
        way = 'give another' if local else 'it needs a network once; or give a folder'
        raise OSError(f'{path} cannot be had ({type(e).__name__}: {first_line(e)}); {way}') from None
    wrong = [f'{kind}: {", ".join(sorted(x if isinstance(x, str) else x[0] for x in info[key])[:4])}' for key, kind in (
        ('missing_keys', 'missing'), ('unexpected_keys', 'too many'), ('mismatched_keys', 'of another shape'))
        if info.get(key)]
    if wrong:
        raise ValueError(f'{path}: weights {"; ".join(wrong)}; give another')
    c = model.config
    return {
        'model': {name: w.T.contiguous() if name.endswith(TRANSPOSED) else w
                  for name, w in model.state_dict().items() if not name.endswith(('.attn.bias', '.attn.masked_bias'))},
        'model_args': {'n_layer': c.n_layer, 'n_head': c.n_head, 'n_embd': c.n_embd, 'block_size': c.n_positions,
                       'bias': True, 'vocab_size': c.vocab_size},
        'activation': ACTIVATIONS[c.activation_function], 'tokenizer': its_tokenizer(path, c.vocab_size),
        'loss': {'name': 'cross_entropy', 'numbers': [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]}, 'data': {}, 'config': {},
        'iter_num': 0, 'best_val_loss': float('inf'), 'path': path}


def check(config, path):
    """Raises ValueError where a config.json is not that of the GPT-2 of model.py."""
    from transformers import GPT2Config
    full = {**GPT2Config().to_dict(), **config}
    wrong = [f'{name} is {full.get(name)!r}, not {value!r}' for name, value in HUGGING_FACE.items()
             if full.get(name) != value]
    if full.get('n_inner') not in (None, 4 * full['n_embd']):
        wrong.append(f"n_inner is {full['n_inner']!r}, not 4 n_embd")
    if full['activation_function'] not in ACTIVATIONS:
        wrong.append(f"activation_function is {full['activation_function']!r}, not one of {', '.join(ACTIVATIONS)}")
    if wrong:
        raise ValueError(f'{path}: another architecture than GPT-2: {"; ".join(wrong[:4])}; give another')


def its_tokenizer(path, size):
    """Tokenizer.to_dict() of a model of `size` ids: of its tokenizer.json, if that is a byte-level BPE like ours."""
    gpt2, ids = {'kind': 'gpt2', 'vocab_size': 50257}, {'kind': 'ids', 'vocab_size': size}
    if (file := Path(path) / 'tokenizer.json').is_file() and file.stat().st_size < 2**25:
        try:
            known = json.loads(file.read_text(encoding='utf-8'))
            split, vocab = known['pre_tokenizer'], known['model']['vocab']
            if split['type'] != 'ByteLevel' or split['add_prefix_space'] or known['normalizer']:
                return ids
            entries = sorted(vocab, key=vocab.get)
            if [vocab[entry] for entry in entries] != list(range(len(entries))):
                return ids
            ranks = [from_letters(entry) for entry in entries if entry != '<|endoftext|>']
            if len(ranks) == 50256:
                return gpt2
            if ranks == [bytes([b]) for b in range(255)]:
                return Tokenizer('byte').to_dict()
            return Tokenizer('bpe', ranks).to_dict()
        except (ValueError, KeyError, TypeError, RecursionError):
            return ids
    return gpt2 if 50257 <= size <= 50304 else ids


def first_line(error):
    return (str(error).strip().splitlines() or [''])[0][:200]
