"""Checkpoint conversion: nanoGPT's ckpt.pt to ours, and GPT-2 from and to Hugging Face transformers.

from_nanogpt and from_hugging_face return the dict that nanoloss.checkpoint describes. Their loss is cross-entropy,
which both were trained with. transformers is imported only by the functions that need it.
"""
import hashlib
import json
import os
from pathlib import Path

import torch

import losses
from nanoloss import signals
from nanoloss.tokenizer import END_OF_TEXT, Tokenizer, bytes_to_unicode, token_from_unicode

NANOGPT_KEYS = {'model', 'optimizer', 'model_args', 'iter_num', 'best_val_loss', 'config'}
NANOGPT_ARGS = {'n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'vocab_size', 'dropout'}
GPT2_NAMES = 'gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl'
GPT2_TOKENIZER = {'kind': 'gpt2', 'vocab_size': 50257}
# SHA-256 of the bytes of GPT-2's tokens 0 to 50,255, joined by newlines
GPT2_TOKENS_HASH = 'e424375bafc3e423128be739985d6bac4839b3014b9ed3f34c3b55f6d2b968d9'
TOKENIZER_FILES = 'tokenizer.json', 'vocab.json'  # the latter by GPT2Tokenizer
ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}
# GPT2Config values that model.py implements
REQUIRED_CONFIG = {'model_type': 'gpt2', 'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
                   'add_cross_attention': False, 'layer_norm_epsilon': 1e-5, 'tie_word_embeddings': True}
SIZES = 'vocab_size', 'n_positions', 'n_embd', 'n_layer', 'n_head'
# transformers' Conv1D stores these transposed
TRANSPOSED = 'attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight'


# nanoGPT ----------------------------------------------------------------------

def is_nanogpt(checkpoint):
    """Whether a loaded dict has nanoGPT's weights and none of the keys that only this project writes."""
    own_keys = {'tokenizer', 'loss', 'activation', 'data'}
    return {'model', 'model_args'} <= checkpoint.keys() and not checkpoint.keys() & own_keys


def from_nanogpt(loaded):
    """Convert a loaded nanoGPT checkpoint, with all that is needed to resume its run. Raises ValueError.

    A checkpoint that was stripped to share its weights becomes one without an optimizer.
    """
    is_whole = NANOGPT_KEYS <= loaded.keys()
    loaded = {'iter_num': 0, 'best_val_loss': float('inf'), 'config': {}} | loaded
    args, weights = loaded['model_args'], loaded['model']
    if not (isinstance(args, dict) and isinstance(weights, dict) and all(isinstance(name, str) for name in weights)):
        raise ValueError('model_args or model is not a dict of names')
    if args.keys() != NANOGPT_ARGS:
        difference = ', '.join(sorted(map(str, args.keys() ^ NANOGPT_ARGS)))
        raise ValueError(f"model_args differs from nanoGPT's GPTConfig in {difference}")
    vocab_size = args['vocab_size']
    if type(vocab_size) is not int or not 0 < vocab_size <= 65536:
        raise ValueError(f'model_args has vocab_size={vocab_size!r}, expected 1 to 65536')
    # torch.compile adds the prefix; attention without flash attention stores its causal mask
    weights = {name.removeprefix('_orig_mod.'): w for name, w in weights.items() if not name.endswith('.attn.bias')}
    if 'transformer.wte.weight' in weights:
        weights.setdefault('lm_head.weight', weights['transformer.wte.weight'])  # files of tied weights may omit it
    optimizer, best_val_loss = loaded['optimizer'] if is_whole else None, loaded['best_val_loss']
    if isinstance(optimizer, dict) and isinstance(optimizer.get('state'), dict):
        embedding = weights.get('transformer.wte.weight')  # parameter 0 of the optimizer
        state = {i: {key: _pad_moments(x, embedding) if i == 0 else x for key, x in moments.items()}
                 for i, moments in optimizer['state'].items() if isinstance(moments, dict)}
        optimizer = {**optimizer, 'state': state}
    config = loaded['config'] if isinstance(loaded['config'], dict) else {}
    return {
        'model': weights, 'model_args': {key: value for key, value in args.items() if key != 'dropout'},
        'activation': 'gelu',
        'tokenizer': GPT2_TOKENIZER if 50257 <= vocab_size <= 50304 else {'kind': 'ids', 'vocab_size': vocab_size},
        'loss': {'name': 'cross_entropy', 'coefficients': list(losses.cross_entropy(vocab_size))}, 'data': {},
        'optimizer': optimizer, 'iter_num': loaded['iter_num'],
        'best_val_loss': float(best_val_loss) if isinstance(best_val_loss, torch.Tensor) else best_val_loss,
        'config': {key: value for key, value in config.items() if isinstance(value, (str, int, float))},
        'scaler': {}, 'environment': {},
        'train_state': {'last_eval': -1, 'evals_since_best': 0, 'train_seconds': 0.0, 'wandb_run_id': ''}}


def _pad_moments(x, embedding):
    """Pad AdamW's moments of the embedding (vocab_size, n_embd) with zero rows to a multiple of 64, as model.py pads
    the embedding. Returns anything else unchanged."""
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.shape != getattr(embedding, 'shape', None):
        return x
    return torch.nn.functional.pad(x, (0, 0, 0, -len(x) % 64))


# from Hugging Face transformers -----------------------------------------------

def is_hugging_face(path):
    """Whether path is a model directory of transformers, or the name of an OpenAI GPT-2 and no local file."""
    return os.path.isfile(os.path.join(path, 'config.json')) or path in GPT2_NAMES and not os.path.exists(path)


def lacks_tokenizer(path):
    """Whether path is a model directory of transformers without a file that names its tokens."""
    return os.path.isdir(path) and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES)


def from_hugging_face(path):
    """Convert a GPT-2 of transformers: a model directory, or the name of one of OpenAI's four models.

    Raises ValueError if the model is not a GPT-2 that model.py implements, OSError if it could not be loaded.
    """
    is_local = os.path.isdir(path)
    if is_local and (Path(path) / 'adapter_config.json').exists():
        raise ValueError(f'{path} holds an adapter; pass the directory of a complete model')
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
        from transformers.utils import logging
    except ImportError:
        raise ValueError(f'loading {path} requires transformers, which is not installed; '
                         'pip install transformers') from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = {**GPT2Config().to_dict(), **GPT2Config.get_config_dict(path)[0]}
        _check_config(config)
        if is_local:
            _check_weights(path, config)
        # no other field of the config: some of them name code to run
        fields = {name: config[name] for name in (*SIZES, 'activation_function')}
        model, info = GPT2LMHeadModel.from_pretrained(
            path, config=GPT2Config(**fields), output_loading_info=True, dtype=torch.float32,
            attn_implementation='sdpa', use_safetensors=True, ignore_mismatched_sizes=True)
        for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
            if info.get(key):
                names = sorted(entry if isinstance(entry, str) else entry[0] for entry in info[key])
                raise ValueError(f"{key.replace('_', ' ')}: {', '.join(names[:4])}")
    except ValueError as e:
        raise ValueError(f'{path} is not a supported GPT-2 ({signals.first_line(e)}); pass another model') from None
    except Exception as e:  # raised by transformers, safetensors, huggingface_hub or httpx
        if signals.is_out_of_memory(e):
            raise
        advice = 'pass another model' if is_local else 'check the network, or pass a local model directory'
        raise OSError(f'{path} could not be loaded ({type(e).__name__}: {signals.first_line(e)}); {advice}') from None
    weights = {name: w.T.contiguous() if name.endswith(TRANSPOSED) else w for name, w in model.state_dict().items()
               if not name.endswith(('.attn.bias', '.attn.masked_bias'))}
    return {
        'model': weights,
        'model_args': {'n_layer': config['n_layer'], 'n_head': config['n_head'], 'n_embd': config['n_embd'],
                       'block_size': config['n_positions'], 'bias': True, 'vocab_size': config['vocab_size']},
        'activation': ACTIVATIONS[config['activation_function']],
        'tokenizer': _find_tokenizer(path, config['vocab_size']),
        'loss': {'name': 'cross_entropy', 'coefficients': list(losses.cross_entropy(config['vocab_size']))},
        'data': {}, 'config': {}, 'iter_num': 0, 'best_val_loss': float('inf'), 'path': path}


def _check_config(config):
    """Raise ValueError if a config.json, with GPT2Config's defaults, describes another model than model.py's."""
    wrong = [f'{name} is {config.get(name)!r}, expected {value!r}' for name, value in REQUIRED_CONFIG.items()
             if config.get(name) != value]
    wrong += [f'{name} is {config[name]!r}, expected an int' for name in SIZES if type(config[name]) is not int]
    if config.get('n_inner') is not None and config['n_inner'] != 4 * config['n_embd']:
        wrong.append(f"n_inner is {config['n_inner']!r}, expected 4 n_embd")
    if config['activation_function'] not in ACTIVATIONS:
        wrong.append(f"activation_function is {config['activation_function']!r}, expected {' or '.join(ACTIVATIONS)}")
    wrong += [f'{name} is not supported' for name in ('quantization_config', 'auto_map') if config.get(name)]
    if wrong:
        raise ValueError('; '.join(wrong[:4]))


def _check_weights(path, config):
    """Raise ValueError if a directory lacks a safetensors file, or if their headers contradict its config.json.

    transformers would take as much memory as config.json asks for.
    """
    names, index = ['model.safetensors'], Path(path) / 'model.safetensors.index.json'
    if index.is_file() and not (Path(path) / names[0]).is_file():
        names = sorted({*json.loads(index.read_text(encoding='utf-8'))['weight_map'].values()})
    for name in names:
        if not (Path(path) / name).is_file():
            raise ValueError(f'it has no {name}, which save_pretrained() of transformers writes')
    shapes = {}
    for file in sorted(Path(path).glob('*.safetensors')):
        with open(file, 'rb') as f:
            length = int.from_bytes(f.read(8), 'little')
            if length > file.stat().st_size:  # as in a pointer of Git LFS
                raise ValueError(f'{file.name} is not a safetensors file')
            header = json.loads(f.read(length))
        shapes |= {name.removeprefix('transformer.'): entry['shape'] for name, entry in header.items()
                   if 'shape' in entry}
    n_layer = len({name.split('.')[1] for name in shapes if name.startswith('h.')})
    if n_layer != config['n_layer']:
        raise ValueError(f"n_layer is {config['n_layer']}, but the weights have {n_layer} layers")
    for name, rows in (('wte.weight', config['vocab_size']), ('wpe.weight', config['n_positions'])):
        if shapes.get(name) != [rows, config['n_embd']]:
            raise ValueError(f"{name} has shape {shapes.get(name)}, expected {[rows, config['n_embd']]}")


def _find_tokenizer(path, vocab_size):
    """Tokenizer.to_dict() of a transformers model with vocab_size ids.

    GPT-2's for OpenAI's models; that of tokenizer.json or vocab.json if it is a byte-level BPE with end-of-text as
    its last token; otherwise ids without text.
    """
    unknown = {'kind': 'ids', 'vocab_size': vocab_size}
    if path in GPT2_NAMES and not os.path.isdir(path):
        return GPT2_TOKENIZER
    file, older_file = (Path(path) / name for name in TOKENIZER_FILES)
    if not file.is_file():
        file = older_file
    if not file.is_file() or file.stat().st_size > 2**25:
        return unknown
    try:
        contents = json.loads(file.read_text(encoding='utf-8'))
        if file == older_file:
            vocab = contents
        else:
            split, bpe = contents['pre_tokenizer'], contents['model']
            if bpe['type'] != 'BPE' or split['type'] != 'ByteLevel' or split['add_prefix_space'] or \
                    contents['normalizer']:
                return unknown
            vocab = bpe['vocab']
        entries = sorted(vocab, key=vocab.get)
        if [vocab[entry] for entry in entries] != list(range(len(entries))) or len(entries) > vocab_size or \
                entries[-1] != END_OF_TEXT:
            return unknown
        tokens = [token_from_unicode(entry) for entry in entries[:-1]]
        if hashlib.sha256(b'\n'.join(tokens)).hexdigest() == GPT2_TOKENS_HASH:
            return GPT2_TOKENIZER
        if tokens == [bytes([b]) for b in range(255)]:
            return Tokenizer('byte').to_dict()
        return Tokenizer('bpe', tokens).to_dict()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return unknown



# to Hugging Face transformers -------------------------------------------------

def to_hugging_face_model(model, tokenizer):
    """Convert a GPT to a GPT2LMHeadModel. It always has biases: zero where the GPT has none."""
    from transformers import GPT2Config, GPT2LMHeadModel
    c, weights = model.config, model.state_dict()
    converted = GPT2LMHeadModel(GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
        activation_function={'gelu': 'gelu', 'gelu_tanh': 'gelu_new'}[c.activation], resid_pdrop=c.dropout,
        embd_pdrop=c.dropout, attn_pdrop=c.dropout, bos_token_id=tokenizer.eot, eos_token_id=tokenizer.eot)).eval()
    with torch.no_grad():
        for name, p in converted.named_parameters():
            if name not in weights:
                p.zero_()
            elif name.endswith(TRANSPOSED):
                p.copy_(weights[name].T)
            else:
                p.copy_(weights[name][:len(p)])  # without the padding rows of the vocabulary
    return converted


def save_hugging_face_tokenizer(tokenizer, block_size, folder):
    """Write the tokenizer.json and tokenizer_config.json of a Tokenizer for transformers.

    AutoTokenizer gives the same ids, except that it encodes the text <|endoftext|> as one id.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer
    to_unicode = bytes_to_unicode()
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.eot)]
    text = {token: ''.join(to_unicode[b] for b in token) for token in tokens}
    # like tiktoken, which merges any two neighbors that form a token, the token with the lowest id first
    merges = [(text[token[:i]], text[token[i:]]) for token in tokens for i in range(1, len(token))
              if token[:i] in text and token[i:] in text]
    vocab = {text[token]: i for i, token in enumerate(tokens)} | {END_OF_TEXT: tokenizer.eot}
    fast = FastTokenizer(models.BPE(vocab, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=tokenizer.kind != 'byte')
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    (Path(folder) / 'tokenizer.json').write_text(fast.to_str(pretty=True), encoding='utf-8')
    # save_pretrained() of transformers 5 would name a class that transformers 4 does not have
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': END_OF_TEXT, 'eos_token': END_OF_TEXT,
              'model_max_length': block_size, 'clean_up_tokenization_spaces': False}
    (Path(folder) / 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
