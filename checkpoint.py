"""Checkpoints: plain data only (so loading one runs no code), nanoGPT's keys, never half a file.

    model           nanoGPT's parameter names; rows of the vocabulary's padding are left out
    model_args      what nanoGPT's GPTConfig takes, and nothing else
    optimizer, iter_num, best_val_loss, config    as in nanoGPT
    activation      of the model: 'gelu' or 'gelu_tanh'
    tokenizer       Tokenizer.to_dict()
    loss            {'name': ..., 'numbers': those of losses.Family, or None for a loss outside the family}
    data            where the text came from, tokens and fingerprint of the bins
    machine         torch build, processor, threads, products and so on: what the last bits depend on
    scaler, progress    what else a resumed run needs: see train.py (best.pt has no optimizer and no scaler)
"""
import math
import os
import pickle
import pickletools
import re
import zipfile
from pathlib import Path

import torch

import foreign
import interrupts
import losses
from model import GPT, GPTConfig
from tokenizer import Tokenizer


KEYS = {'model': dict, 'model_args': dict, 'activation': str, 'tokenizer': dict, 'loss': dict, 'iter_num': int,
        'best_val_loss': float, 'config': dict, 'data': dict}
PLAIN = {'config': 1, 'machine': 1, 'progress': 2, 'data': 2, 'loss': 2, 'model_args': 2, 'tokenizer': 2}  # depths
# what the pickle of a checkpoint may name; weights_only would allow more, bytearrays of any size for one
GLOBALS = re.compile(r'collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage')
SIZES = 'block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd'


def save(checkpoint, path):
    """Write aside, flush, rename: a kill at any instant leaves the old file or the new one. Raises OSError."""
    aside = f'{path}.partial'
    try:
        with open(aside, 'wb') as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
        if os.name == 'posix':  # the new name survives a power cut too
            folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except BaseException as e:
        Path(aside).unlink(missing_ok=True)
        if isinstance(e, RuntimeError) and isinstance(e.__context__, OSError):
            raise e.__context__ from None  # torch hides what the disk said
        raise


def load(path):
    """The checkpoint at path as a dict of plain data, on the CPU: ours, or another's made like it (foreign.py).

    It may come from anybody: it runs no code, and takes no more memory than the file is long.
    Raises FileNotFoundError or ValueError with one clear line.
    """
    if foreign.is_hugging_face(path):
        return foreign.from_hugging_face(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'''there is no checkpoint {path or "''"}; train first, or give another''')
    try:
        check_archive(path)
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:
        if interrupts.no_memory(e):
            raise
        if not isinstance(e, pickle.UnpicklingError):
            reason = f'{type(e).__name__}: ' + str(e).split('\n')[0][:120]
            raise ValueError(f'{path} is no checkpoint of this project, or damaged ({reason}); give another') from None
        # weights_only refused it
        raise ValueError(f'{path} is no checkpoint of this project: damaged, or more than plain data; '
                         'give another') from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} is no checkpoint of this project: it holds a {type(checkpoint).__name__}; '
                         'give another')
    if foreign.is_nanogpt(checkpoint):
        try:
            checkpoint = foreign.from_nanogpt(checkpoint)
        except (ValueError, RuntimeError) as e:
            raise ValueError(f"{path} is no checkpoint of nanoGPT's: {' '.join(str(e).split())[:200]}; "
                             'give another') from None
    wrong = [key for key, kind in KEYS.items() if not isinstance(checkpoint.get(key), kind)]
    wrong += [key for key, depth in PLAIN.items() if not plain(checkpoint.get(key), depth)]
    if not wrong:
        data, dataset = checkpoint['data'], checkpoint['config'].get('dataset', '')
        wrong += ['iter_num'] * (not 0 <= checkpoint['iter_num'] < 2**40)
        wrong += ['best_val_loss'] * (not checkpoint['best_val_loss'] >= 0)  # nor a NaN
        wrong += ['config'] * (type(dataset) is not str)
        wrong += ['data'] * (type(data.get('source', '')) is not str or type(data.get('fingerprint', {})) is not dict)
    if wrong:
        raise ValueError(f"{path} is no checkpoint of this project: without a good {', '.join(dict.fromkeys(wrong))}; "
                         'give another')
    return checkpoint | {'path': str(path)}


def check_archive(path):
    """Raises ValueError or BadZipFile where the file is no uncompressed archive of tensors and plain data,
    as torch.save writes it, no longer inside than outside; before anything of it is unpickled."""
    with open(path, 'rb') as f:
        if f.read(4) != b'PK\3\4':  # torch.load reads other formats too
            raise ValueError('not an archive of torch.save')
    with zipfile.ZipFile(path) as z:
        entries = z.infolist()
        if any(entry.compress_type for entry in entries) or sum(e.file_size for e in entries) > os.path.getsize(path):
            raise ValueError('compressed entries, or entries that overlap')
        data, = (z.read(entry) for entry in entries if entry.filename.endswith('/data.pkl'))
    tuples, reused, last, here = set(), 0, '', 0  # tuples in tuples in tuples would take for ever to be hashed
    for opcode, value, _ in pickletools.genops(data):
        if opcode.name == 'GLOBAL' and not GLOBALS.fullmatch(value) or opcode.name in ('DUP', 'STACK_GLOBAL', 'INST'):
            raise pickle.UnpicklingError(value)
        if opcode.name in ('BINPUT', 'LONG_BINPUT', 'PUT', 'MEMOIZE'):
            here = here if opcode.name == 'MEMOIZE' else int(value)
            tuples |= {here} if last.startswith('TUPLE') else set()
            here += 1
        reused += opcode.name in ('BINGET', 'LONG_BINGET', 'GET') and int(value) in tuples
        last = opcode.name
    if reused > 32:
        raise ValueError('tuples within tuples')


def distinct_bytes(tensors):
    """Raises ValueError where tensors share memory, so that a small file would become large."""
    memory = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    if sum(x.numel() * x.element_size() for x in tensors) > sum(memory.values()):
        raise ValueError('weights that share memory')


def plain(x, depth):
    """Whether x is a string or a number, or dicts and lists of such, at most `depth` of them in each other."""
    if isinstance(x, (dict, list)):
        return depth > 0 and all(plain(y, depth - 1) for y in (x.values() if isinstance(x, dict) else x))
    return x is None or isinstance(x, (str, int, float))


def finite(model, optimizer):
    """Whether all weights and the optimizer's moments are finite."""
    state = [x for moments in optimizer.state.values() for x in moments.values()]
    weights = list(model.parameters())
    return bool(torch.stack([x.isfinite().all().to(weights[0].device) for x in [*weights, *state]]).all())


def describe(model, tokenizer, loss_name, loss):
    """The part of a checkpoint that sample.py and evaluate.py need."""
    weights = model.state_dict()
    vocabulary = weights['transformer.wte.weight'][:model.config.vocab_size].clone()
    weights['transformer.wte.weight'] = weights['lm_head.weight'] = vocabulary
    args = vars(model.config).copy()
    return {'model': weights, 'activation': args.pop('activation'), 'model_args': args,
            'tokenizer': tokenizer.to_dict(),
            'loss': {'name': loss_name, 'numbers': list(loss) if isinstance(loss, losses.Family) else None}}


def restore(checkpoint, device='cpu', dropout=0.0):
    """(model, tokenizer, loss) of a loaded checkpoint. Raises ValueError where its parts don't fit."""
    try:
        args = checkpoint['model_args'] | {'dropout': dropout, 'activation': checkpoint['activation']}
        for name in SIZES:
            if type(args[name]) is not int or not 0 < args[name] < 2**24:  # so no product of two overflows
                raise ValueError(f'{name}={args[name]!r}')
        model = build(GPTConfig(**args), checkpoint['model'])
        tokenizer = Tokenizer.from_dict(checkpoint['tokenizer'])
        # nanoGPT's models have 50,304 ids, of which GPT-2's encoding knows the first 50,257; others pad theirs too
        if tokenizer.vocab_size > model.config.vocab_size or \
                tokenizer.vocab_size < model.config.vocab_size and tokenizer.kind == 'ids':
            raise ValueError(f'{tokenizer.vocab_size} tokens, a model of {model.config.vocab_size}')
        name, numbers = checkpoint['loss']['name'], checkpoint['loss']['numbers']
        if numbers is None:
            loss = losses.make_loss(name, model.config.vocab_size)
        elif type(name) is str and len(numbers) in (6, 8) and all(map(math.isfinite, numbers)):
            loss = losses.Family(*map(float, numbers))  # six are older
        else:
            raise ValueError(f'a loss of the numbers {numbers}')
    except (KeyError, TypeError, RuntimeError, ArithmeticError, AttributeError, ValueError) as e:
        if interrupts.no_memory(e):
            raise
        reason = f'{type(e).__name__}: ' + ' '.join(str(e).split())[:700]
        path = checkpoint.get('path', 'the checkpoint')
        raise ValueError(f'{path}: its parts do not fit each other ({reason}); give another') from None
    return model.to(device), tokenizer, loss


def build(config, weights):
    """The model of these weights; the vocabulary's padding comes back as zeros.

    Every shape is compared with the config before the model takes any memory. Raises ValueError,
    naming a weight that is missing, is too many, or does not fit.
    """
    layers = {name.split('.')[2] for name in weights if name.startswith('transformer.h.')}
    if config.n_layer != len(layers):  # before a stranger's 10^9 layers are gone through
        raise ValueError(f'n_layer={config.n_layer}, but weights of {len(layers)} layers')
    with torch.device('meta'):  # shapes without memory
        model = GPT(config)
    shapes = {name: [*p.shape] for name, p in model.state_dict().items()}
    shapes['transformer.wte.weight'] = shapes['lm_head.weight'] = [config.vocab_size, config.n_embd]
    wrong = []
    for name in {**shapes, **weights}:
        w = weights.get(name)
        if not floats(w):
            found = 'missing' if w is None else 'no tensor of floats'
        elif name not in shapes or [*w.shape] != shapes[name] or not w.is_contiguous():
            found = f'of shape {[*w.shape]}'
        elif not w.float().isfinite().all():
            found = 'not finite'
        else:
            continue
        wrong.append(f"{name} is {found}, not {shapes.get(name, 'known')}")
    if wrong:
        raise ValueError(f'in a model of {config.n_layer} layers, {config.n_embd} wide, ' + '; '.join(wrong[:6])
                         + f'; and {len(wrong) - 6} more' * (len(wrong) > 6))
    distinct_bytes([w for name, w in weights.items() if name != 'lm_head.weight'])
    vocabulary = weights['transformer.wte.weight']
    padded = torch.nn.functional.pad(vocabulary, (0, 0, 0, model.lm_head.weight.size(0) - len(vocabulary)))
    weights = {name: w.float().clone() for name, w in weights.items()} | {'transformer.wte.weight': padded.float()}
    model.load_state_dict(weights | {'lm_head.weight': weights['transformer.wte.weight']}, assign=True)
    model.lm_head.weight = model.transformer.wte.weight  # tied
    return model


def floats(x):
    return type(x) is torch.Tensor and x.layout == torch.strided and not x.is_meta and x.is_floating_point()


# Settings that make another run of a resumed one. The others may change while it goes on.
IDENTITY = {'batch_size', 'gradient_accumulation_steps', 'seed', 'n_layer', 'n_head', 'n_embd', 'block_size', 'bias',
            'activation', 'dropout', 'optimizer', 'loss', 'squentropy_weight', 'squentropy_target',
            'squentropy_centred', 'squentropy_schedule', 'squentropy_end', 'mse_true_weight', 'mse_target', 'mse_end',
            'label_smoothing', 'z_loss'}


# Settings that older checkpoints do not have, as they were then.
LATER = {'squentropy_centred': False, 'squentropy_schedule': 'constant', 'squentropy_end': 1.0, 'mse_end': 0.0,
         'label_smoothing': 0.0, 'z_loss': 0.0}


def differences(checkpoint, config, data, machine):
    """What a run that resumes the checkpoint would change: two lists of 'name old -> new', those that
    are allowed, and those that would make it another run. Raises ValueError where it can't be resumed."""
    missing = [key for key in ('optimizer', 'scaler', 'progress', 'machine') if type(checkpoint.get(key)) is not dict]
    if missing:
        raise ValueError(f"{checkpoint['path']} can't be resumed, it has no {', '.join(missing)}; "
                         f"begin a new run from its weights: --init_from={checkpoint['path']} --out_dir=...")
    # the optimizer of old checkpoints; the loss of nanoGPT's
    old = {'optimizer': 'adamw', 'loss': checkpoint['loss'].get('name'), **LATER} | checkpoint['config']
    differing = [name for name in old if name in config and config[name] != old[name]
               and name not in ('init_from', 'out_dir')]
    changed = [f'{name} {old[name]} -> {config[name]}' for name in differing if name not in IDENTITY]
    before = {'products': 'torch'} | checkpoint['machine'] if checkpoint['machine'] else {}  # it was not said once
    changed += [f'{name} {was} -> {machine[name]} (so not the same bits)'
                for name, was in before.items() if name in machine and machine[name] != was]
    forbidden = [f'{name} {old[name]} -> {config[name]}' for name in differing if name in IDENTITY]
    if checkpoint['data'] and checkpoint['data'] != data:  # nanoGPT's don't say
        forbidden.append(f"data {checkpoint['data'].get('source')} -> {data['source']}, or another preparation of it")
    return changed, forbidden


def begin(checkpoint, resume, config, data, machine, tokenizer):
    """(model, changes) of a run that begins with a checkpoint's weights, or resumes it: see differences().

    Raises ValueError where the checkpoint does not fit the run.
    """
    path = checkpoint['path']
    changed, forbidden = differences(checkpoint, config, data, machine) if resume else ([], [])
    if forbidden:
        raise ValueError(f"{path} can't be resumed as another run: {', '.join(forbidden)}; resume with the same "
                         f'config, or begin a new run from its weights: --init_from={path} --out_dir=...')
    if not resume:
        checkpoint = cropped(checkpoint, tokenizer.vocab_size)
    model, its_tokenizer, _ = restore(checkpoint, dropout=config['dropout'])
    if its_tokenizer.to_dict() != tokenizer.to_dict():
        raise ValueError(f"{path} has another tokenizer ({its_tokenizer.kind}, {its_tokenizer.vocab_size} ids) than "
                         f"--dataset={config['dataset']} ({tokenizer.kind}, {tokenizer.vocab_size} ids); train on the "
                         'data it was made with')
    if config['block_size'] > model.config.block_size:
        raise ValueError(f"--block_size={config['block_size']} is more than the {model.config.block_size} of {path}; "
                         'ask for no more')
    return model, changed


def cropped(checkpoint, size):
    """The checkpoint with no more than `size` ids, since a new run's classes are those of its tokenizer."""
    args, weights = checkpoint['model_args'], checkpoint['model']
    both = {name: weights.get(name) for name in ('transformer.wte.weight', 'lm_head.weight')}
    if type(size) is not int or type(args.get('vocab_size')) is not int or not 0 < size < args['vocab_size'] or \
            not all(floats(w) and w.dim() == 2 for w in both.values()):
        return checkpoint  # restore() says what is wrong with it
    return checkpoint | {'model_args': args | {'vocab_size': size},
                         'model': weights | {name: w[:size].clone() for name, w in both.items()}}


def resume(checkpoint, optimizer, scaler):
    """Give the optimizer and the scaler their saved state; (iter_num, best_val_loss, progress).

    The groups' settings stay those of the optimizer, since they may change while a run goes on.
    Raises ValueError where the state does not fit the weights.
    """
    params = [p for group in optimizer.param_groups for p in group['params']]
    muon = {id(p) for group in optimizer.param_groups if 'momentum' in group for p in group['params']}
    settings = [{key: value for key, value in group.items() if key != 'params'} for group in optimizer.param_groups]
    progress = checkpoint['progress']
    try:
        state = checkpoint['optimizer']['state']
        if state and sorted(state) != list(range(len(params))):
            raise ValueError(f'the state of {len(state)} weights, not of {len(params)}')
        if checkpoint['iter_num'] and not (state or checkpoint['scaler']):
            raise ValueError('no state of any weight')
        numbers = [i for group in checkpoint['optimizer']['param_groups'] for i in group['params']]
        if numbers != list(range(len(params))):  # torch gives each weight the state of its number
            raise ValueError('parameter groups of other weights')
        for i, moments in state.items():
            p = params[i]
            shapes = {'momentum_buffer': p.shape} if id(p) in muon else \
                {'step': (), 'exp_avg': p.shape, 'exp_avg_sq': p.shape}
            if {name: m.shape for name, m in moments.items() if floats(m) and m.is_contiguous()} != shapes:
                raise ValueError(f'weight {i} has the shape {[*p.shape]}, its state another')
            if not all(m.isfinite().all() for m in moments.values()):
                raise ValueError(f'the state of weight {i} is not finite')
        distinct_bytes([m for moments in state.values() for m in moments.values()])
        optimizer.load_state_dict(checkpoint['optimizer'])
        if checkpoint['scaler']:
            scaler.load_state_dict(checkpoint['scaler'])
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)
        if [type(progress[key]) for key in ('last_eval', 'without_gain', 'seconds')] != [int, int, float] or \
                not math.isfinite(progress['seconds']) or \
                not re.fullmatch('[A-Za-z0-9_-]*', progress['wandb_run_id']):  # it becomes part of a folder's name
            raise ValueError(f'progress {progress}')
    except (KeyError, TypeError, RuntimeError, AttributeError, ValueError) as e:
        if interrupts.no_memory(e):
            raise
        reason = f'{type(e).__name__}: ' + ' '.join(str(e).split())[:200]
        raise ValueError(f"{checkpoint['path']} can't be resumed: its optimizer, scaler or progress is damaged "
                         f"({reason}); begin a new run from its weights: --init_from={checkpoint['path']} "
                         '--out_dir=...') from None
    return checkpoint['iter_num'], checkpoint['best_val_loss'], progress
