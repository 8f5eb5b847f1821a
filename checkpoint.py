"""Checkpoints: plain data only (so loading one runs no code), nanoGPT's keys, never half a file.

    model           nanoGPT's parameter names; rows of the vocabulary's padding are left out
    model_args      what nanoGPT's GPTConfig takes, and nothing else
    optimizer, iter_num, best_val_loss, config    as in nanoGPT
    activation      of the model: 'gelu' or 'gelu_tanh'
    tokenizer       Tokenizer.to_dict()
    loss            {'name': ..., 'numbers': the six numbers, or None for a loss outside the family}
    data            where the text came from, tokens and SHA-256 of the bins
    machine         torch build, threads, device, dtype, compiled: what the last bits depend on
    scaler, progress    what else a resumed run needs: see train.py (best.pt has no optimizer and no scaler)
"""
import json
import os
import pickle
from pathlib import Path

import torch

import losses
from model import GPT, GPTConfig
from tokenizer import Tokenizer


KEYS = {'model': dict, 'model_args': dict, 'activation': str, 'tokenizer': dict, 'loss': dict, 'iter_num': int,
        'best_val_loss': float, 'config': dict, 'data': dict}


def save(checkpoint, path):
    """Write aside, flush, rename: a kill at any instant leaves the old file or the new one."""
    aside = f'{path}.partial'
    try:
        with open(aside, 'wb') as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def load(path):
    """The checkpoint at path as a dict of plain data, on the CPU.

    Raises FileNotFoundError or ValueError with one clear line.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no checkpoint {path}')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:  # weights_only refused it
        raise ValueError(f'{path} is no checkpoint of this project: damaged, or more than plain data') from None
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError) as e:
        reason = f'{type(e).__name__}: ' + str(e).split('\n')[0][:120]
        raise ValueError(f'{path} is no checkpoint of this project, or damaged ({reason})') from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} is no checkpoint of this project: it holds a {type(checkpoint).__name__}')
    wrong = [key for key, kind in KEYS.items() if not isinstance(checkpoint.get(key), kind)]
    if wrong:
        raise ValueError(f"{path} is no checkpoint of this project: without a good {', '.join(wrong)}")
    return checkpoint | {'path': str(path)}


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
        model = GPT(GPTConfig(**args))
        load_weights(model, checkpoint['model'])
        tokenizer = Tokenizer.from_dict(checkpoint['tokenizer'])
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ValueError(f'{tokenizer.vocab_size} tokens, a model of {model.config.vocab_size}')
        name, numbers = checkpoint['loss']['name'], checkpoint['loss']['numbers']
        loss = losses.Family(*map(float, numbers)) if numbers else losses.make_loss(name, tokenizer.vocab_size)
    except (KeyError, TypeError, RuntimeError, ArithmeticError, AttributeError, ValueError) as e:
        reason = f'{type(e).__name__}: ' + ' '.join(str(e).split())[:200]
        path = checkpoint.get('path', 'the checkpoint')
        raise ValueError(f'{path}: its parts do not fit each other ({reason})') from None
    return model.to(device), tokenizer, loss


def load_weights(model, weights):
    """Copy saved weights into the model; the vocabulary's padding stays zero."""
    rows, vocabulary = model.lm_head.weight.size(0), weights['transformer.wte.weight']
    if len(vocabulary) != model.config.vocab_size:
        raise ValueError(f'embeddings of {len(vocabulary)} tokens, a model of {model.config.vocab_size}')
    padded = torch.nn.functional.pad(vocabulary, (0, 0, 0, rows - len(vocabulary)))
    model.load_state_dict({**weights, 'transformer.wte.weight': padded, 'lm_head.weight': padded})


# Settings that make another run of a resumed one. The others may change while it goes on.
IDENTITY = {'batch_size', 'gradient_accumulation_steps', 'seed', 'n_layer', 'n_head', 'n_embd', 'block_size', 'bias',
            'activation', 'dropout', 'loss', 'squentropy_weight', 'squentropy_target', 'mse_true_weight', 'mse_target'}


def differences(checkpoint, config, data, machine):
    """What a run that resumes the checkpoint would change: two lists of 'name old -> new', those that
    are allowed, and those that would make it another run. Raises ValueError where it can't be resumed."""
    missing = [key for key in ('optimizer', 'scaler', 'progress', 'machine') if key not in checkpoint]
    if missing:
        raise ValueError(f"{checkpoint['path']} can't be resumed, it has no {', '.join(missing)}; "
                         f"begin a new run from its weights: --init_from={checkpoint['path']} --out_dir=...")
    old = checkpoint['config']
    differing = [name for name in old if name in config and config[name] != old[name]
               and name not in ('init_from', 'out_dir')]
    changed = [f'{name} {old[name]} -> {config[name]}' for name in differing if name not in IDENTITY]
    changed += [f'{name} {was} -> {machine[name]} (so not the same bits)'
                for name, was in checkpoint['machine'].items() if machine.get(name) != was]
    forbidden = [f'{name} {old[name]} -> {config[name]}' for name in differing if name in IDENTITY]
    if checkpoint['data'] != data:
        forbidden.append(f"data {checkpoint['data']['source']} -> {data['source']}, or another preparation of it")
    return changed, forbidden


def trim_metrics(path, iter_num, last_eval):
    """Leave out of metrics.jsonl what was logged after the checkpoint: the resumed run logs it again."""
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding='utf-8') as f:
        for line in f:
            try:
                entry = json.loads(line)
            except ValueError:  # a kill cut this line short
                continue
            if entry['iter'] <= (last_eval if 'val_nats' in entry else iter_num):
                kept.append(line)
    with open(f'{path}.partial', 'w', encoding='utf-8') as f:
        f.writelines(kept)
    os.replace(f'{path}.partial', path)


def newest(root='out'):
    """The folder under root whose checkpoint was written last. Raises FileNotFoundError."""
    found = [*Path(root).rglob('ckpt.pt'), *Path(root).rglob('best.pt')]
    if not found:
        raise FileNotFoundError(f'there is no checkpoint under {root}/; train first: '
                                'python train.py config/train_tinystories_squentropy.py')
    return max(found, key=lambda path: path.stat().st_mtime).parent


def set_aside(out_dir):
    """Move an earlier run's files from out_dir to out_dir.1 (or .2, ...); that folder, or None."""
    names = [name for name in ('ckpt.pt', 'best.pt', 'metrics.jsonl') if (Path(out_dir) / name).exists()]
    if not names:
        return None
    n = 1
    while (aside := Path(f'{os.path.normpath(out_dir)}.{n}')).exists():
        n += 1
    aside.mkdir()
    for name in names:
        os.rename(Path(out_dir) / name, aside / name)
    return aside
