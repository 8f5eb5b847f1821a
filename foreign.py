"""Checkpoints of others, as ours: nanoGPT's ckpt.pt, and GPT-2 as Hugging Face's transformers keeps it.

Both become the dict that checkpoint.py describes. Softmax is what they were trained with, so their loss
is cross-entropy.
"""
import hashlib
import json
import os
from pathlib import Path

import torch

from tokenizer import Tokenizer, from_letters

GPT2 = 'gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl'
# SHA-256 of the bytes of GPT-2's ids 0 to 50,255, a newline between them
GPT2_RANKS = 'e424375bafc3e423128be739985d6bac4839b3014b9ed3f34c3b55f6d2b968d9'
NANOGPT_KEYS = {'model', 'optimizer', 'model_args', 'iter_num', 'best_val_loss', 'config'}
NANOGPT_ARGS = {'n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'vocab_size', 'dropout'}
ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}
# what GPT2Config must say for a model to be the GPT-2 of model.py
HUGGING_FACE = {'model_type': 'gpt2', 'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
                'add_cross_attention': False, 'layer_norm_epsilon': 1e-5, 'tie_word_embeddings': True}
FIELDS = 'vocab_size', 'n_positions', 'n_embd', 'n_layer', 'n_head', 'activation_function'
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
    if type(args['vocab_size']) is not int or not 0 < args['vocab_size'] <= 65536:
        raise ValueError(f"model_args has vocab_size={args['vocab_size']!r}, not a number up to 65536")
    # torch.compile's prefix; the causal mask that old attention kept
    weights = {name.removeprefix('_orig_mod.'): w for name, w in weights.items() if not name.endswith('.attn.bias')}
    best, size = theirs['best_val_loss'], args['vocab_size']  # the loss is a tensor there
    optimizer = theirs['optimizer']
    if type(optimizer) is dict and type(optimizer.get('state')) is dict:
        vocabulary = weights.get('transformer.wte.weight')
        optimizer = {**optimizer, 'state': {
            i: {name: padded(x, vocabulary) if i == 0 else x for name, x in moments.items()}
            for i, moments in optimizer['state'].items() if type(moments) is dict}}
    config = theirs['config'] if type(theirs['config']) is dict else {}
    gpt2 = 50257 <= size <= 50304
    return {
        'model': weights, 'model_args': {name: args[name] for name in args if name != 'dropout'}, 'activation': 'gelu',
        'tokenizer': {'kind': 'gpt2', 'vocab_size': 50257} if gpt2 else {'kind': 'ids', 'vocab_size': size},
        'loss': {'name': 'cross_entropy', 'numbers': [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]}, 'data': {},
        'optimizer': optimizer, 'iter_num': theirs['iter_num'],
        'best_val_loss': float(best) if isinstance(best, (float, torch.Tensor)) else best,
        'config': {name: x for name, x in config.items() if type(x) in (str, int, float, bool)},
        'scaler': {}, 'machine': {},
        'progress': {'last_eval': -1, 'without_gain': 0, 'seconds': 0.0, 'wandb_run_id': ''}}


def padded(x, vocabulary):
    """Moments (n, d) of the vocabulary (n, d) with zeros below, up to a multiple of 64, as model.py pads it: what rows
    have that never had a gradient. Anything else as it is."""
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.shape != getattr(vocabulary, 'shape', None):
        return x
    return torch.nn.functional.pad(x, (0, 0, 0, -len(x) % 64))


def is_hugging_face(path):
    return os.path.isfile(os.path.join(path, 'config.json')) or path in GPT2 and not os.path.exists(path)


def from_hugging_face(path):
    """Our dict of a GPT-2 of transformers: a folder, or the name of one of OpenAI's four.

    Raises ValueError, naming what does not fit, or OSError where it cannot be had.
    """
    local = os.path.isdir(path)
    if local and (Path(path) / 'adapter_config.json').exists():
        raise ValueError(f'{path} holds an adapter, not a whole model; give a folder with the whole')
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
        config = check(config, path)
        if local:
            same_size(path, config)
        # nothing else of a stranger's config: some of it names code
        model, info = GPT2LMHeadModel.from_pretrained(
            path, config=GPT2Config(**{name: config[name] for name in FIELDS}), output_loading_info=True,
            dtype=torch.float32, attn_implementation='sdpa', use_safetensors=True, ignore_mismatched_sizes=True)
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
    """All fields of a config.json. Raises ValueError where it is not that of the GPT-2 of model.py."""
    from transformers import GPT2Config
    full = {**GPT2Config().to_dict(), **config}
    wrong = [f'{name} is {full.get(name)!r}, not {value!r}' for name, value in HUGGING_FACE.items()
             if full.get(name) != value]
    if full.get('n_inner') is not None and full['n_inner'] != 4 * full['n_embd']:
        wrong.append(f"n_inner is {full['n_inner']!r}, not 4 n_embd")
    if full['activation_function'] not in ACTIVATIONS:
        wrong.append(f"activation_function is {full['activation_function']!r}, not one of {', '.join(ACTIVATIONS)}")
    wrong += [f'{name} is {full[name]!r}, not a whole number' for name in FIELDS[:-1] if type(full[name]) is not int]
    wrong += [f'{name} is given' for name in ('quantization_config', 'auto_map') if full.get(name)]
    if wrong:
        raise ValueError(f'{path}: another architecture than GPT-2: {"; ".join(wrong[:4])}; give another')
    return full


def its_tokenizer(path, size):
    """Tokenizer.to_dict() of a model of `size` ids: of the tokenizer.json in its folder where that is a byte-level BPE
    like ours, with end of text last; of OpenAI's names GPT-2's; else ids whose text is not known."""
    ids = {'kind': 'ids', 'vocab_size': size}
    if path in GPT2 and not os.path.isdir(path):
        return {'kind': 'gpt2', 'vocab_size': 50257}
    file = Path(path) / 'tokenizer.json'
    older = not file.is_file()  # GPT2Tokenizer's own files
    file = Path(path) / 'vocab.json' if older else file
    if not file.is_file() or file.stat().st_size > 2**25:
        return ids
    try:
        known = json.loads(file.read_text(encoding='utf-8'))
        if older:
            known = {'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False}, 'normalizer': None,
                     'model': {'type': 'BPE', 'vocab': known}}
        split, model = known['pre_tokenizer'], known['model']
        if model['type'] != 'BPE' or split['type'] != 'ByteLevel' or split['add_prefix_space'] or known['normalizer']:
            return ids
        entries = sorted(model['vocab'], key=model['vocab'].get)
        if [model['vocab'][entry] for entry in entries] != list(range(len(entries))) or len(entries) > size or \
                entries[-1] != '<|endoftext|>':
            return ids
        ranks = [from_letters(entry) for entry in entries[:-1]]
        if hashlib.sha256(b'\n'.join(ranks)).hexdigest() == GPT2_RANKS:
            return {'kind': 'gpt2', 'vocab_size': 50257}
        if ranks == [bytes([b]) for b in range(255)]:
            return Tokenizer('byte').to_dict()
        return Tokenizer('bpe', ranks).to_dict()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return ids


def same_size(path, config):
    """Raises ValueError where the weights of a folder are not of the config's shape, by the headers of its files:
    before transformers takes the memory that a stranger's config.json asks for."""
    shapes = {}
    for file in sorted(Path(path).glob('*.safetensors')):
        with open(file, 'rb') as f:
            length = int.from_bytes(f.read(8), 'little')
            header = json.loads(f.read(length)) if length < file.stat().st_size else {}
        shapes |= {name.removeprefix('transformer.'): x['shape'] for name, x in header.items() if 'shape' in x}
    layers = len({name.split('.')[1] for name in shapes if name.startswith('h.')})
    wrong = [f'n_layer is {config["n_layer"]}, the file has {layers} layers'] * (config['n_layer'] != layers)
    rows = {'wte.weight': config['vocab_size'], 'wpe.weight': config['n_positions']}
    wrong += [f'{name} is of shape {shapes.get(name)}, not {[n, config["n_embd"]]}' for name, n in rows.items()
              if shapes.get(name) != [n, config['n_embd']]]
    if wrong:
        raise ValueError(f'{path}: {"; ".join(wrong)}; give another')


def first_line(error):
    return (str(error).strip().splitlines() or [''])[0][:200]
