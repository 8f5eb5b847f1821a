"""Save, load and resume checkpoints.

A checkpoint is a file written by torch.save that holds only tensors, dicts, lists, numbers and strings, so
torch.load(..., weights_only=True) can read it and loading it never runs code. Its keys:

    model           state dict with nanoGPT's parameter names, without the padding rows of the vocabulary
    model_args      the arguments of nanoGPT's GPTConfig, and nothing else
    optimizer, iter_num, best_val_loss, config    as in nanoGPT
    activation      'gelu' or 'gelu_tanh'
    tokenizer       Tokenizer.to_dict()
    loss            {'name': ..., 'coefficients': the values of losses.LossCoefficients, or None for a custom loss}
    data            source of the text, number of tokens and fingerprint of each split
    environment     processor, torch version, threads, world size, ...: what the last bits of a run depend on
    scaler          state dict of the GradScaler
    train_state     {'last_eval', 'evals_since_best', 'train_seconds', 'wandb_run_id'}

best.pt has neither optimizer nor scaler.
"""
import contextlib
import errno
import math
import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

import losses
from model import GPT, GPTConfig
from nanoloss import convert, dataloader, signals
from nanoloss.tokenizer import Tokenizer

KEYS = {'model': dict, 'model_args': dict, 'activation': str, 'tokenizer': dict, 'loss': dict, 'iter_num': int,
        'best_val_loss': float, 'config': dict, 'data': dict}
TRAIN_STATE = {'last_eval': int, 'evals_since_best': int, 'train_seconds': float}  # and wandb_run_id
TIED = 'transformer.wte.weight', 'lm_head.weight'

# The weights decide these settings, whatever a config file says.
SHAPE = 'n_layer', 'n_head', 'n_embd', 'bias', 'activation'
# A resumed run must keep these settings too. All others may change.
FIXED_SETTINGS = {'batch_size', 'gradient_accumulation_steps', 'seed', 'block_size', 'dropout', 'optimizer',
                  'muon_beta2', 'loss'}
FIXED_SETTINGS |= {setting for name in losses.LOSSES for setting in losses.loss_settings(name)}
UNREPORTED = {'init_from', 'out_dir', 'matmul', *SHAPE}  # the environment has the library in use, whatever chose it


def save_checkpoint(checkpoint, path):
    """Write a temporary file, flush it to disk and rename it, so path never holds a partial file. Raises OSError."""
    partial = f'{path}.partial'
    try:
        with open(partial, 'wb') as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
        if os.name == 'posix':  # the rename must survive a power failure too
            _sync_folder(os.path.dirname(path) or '.')
    except BaseException as e:
        Path(partial).unlink(missing_ok=True)
        if isinstance(e, RuntimeError) and isinstance(e.__context__, OSError):
            raise e.__context__ from None  # torch hides the OSError
        raise


def _sync_folder(path):
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # CIFS, VirtualBox and some FUSE file systems cannot do it
            raise
    finally:
        os.close(folder)


def load_checkpoint(path):
    """Read a checkpoint onto the CPU, without running any code from it.

    path: a file written by train.py or nanoGPT, a Hugging Face model directory, or the name of an OpenAI GPT-2
    model. Returns a dict with the keys listed above and 'path'. Raises FileNotFoundError or ValueError.
    """
    if convert.is_hugging_face(path):
        return convert.from_hugging_face(path)
    if os.path.isdir(path):
        found = next((f'such as {path}/{name}' for name in ('best.pt', 'ckpt.pt') if os.path.isfile(f'{path}/{name}')),
                     'or a Hugging Face model directory')
        raise FileNotFoundError(f'{path} is a directory without config.json; pass a checkpoint file, {found}')
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint at {str(path)!r}; train first, or pass a file written by train.py')
    with _one_line_error(f'{path} is not a valid checkpoint', 'pass a file written by train.py'):
        _check_archive(path)
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError(f'it holds a {type(checkpoint).__name__}, not a dict')
        if convert.is_nanogpt(checkpoint):
            checkpoint = convert.from_nanogpt(checkpoint)
        wrong = [key for key, kind in KEYS.items() if not isinstance(checkpoint.get(key), kind)]
        if not wrong:
            plain = all(isinstance(value, (str, int, float)) for value in checkpoint['config'].values())
            valid = {'iter_num': 0 <= checkpoint['iter_num'] < 2**53, 'best_val_loss': checkpoint['best_val_loss'] >= 0,
                     'config': plain and isinstance(checkpoint['config'].get('dataset', ''), str),
                     'data': isinstance(checkpoint['data'].get('fingerprint', {}), dict)}
            wrong = [key for key in valid if not valid[key]]
        if wrong:
            raise ValueError(f"missing or invalid keys: {', '.join(wrong)}")
    return checkpoint | {'path': str(path)}


def _check_archive(path):
    """Raise ValueError unless the file is an uncompressed zip archive whose entries fit into the size of the file."""
    with open(path, 'rb') as f:
        if f.read(4) != b'PK\3\4':  # torch.load reads older formats too
            raise ValueError('not a zip archive written by torch.save')
    with zipfile.ZipFile(path) as z:
        entries = z.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or \
            sum(entry.file_size for entry in entries) > os.path.getsize(path):
        raise ValueError('compressed or overlapping zip entries')


@contextlib.contextmanager
def _one_line_error(problem, advice):
    """Turn any error except out-of-memory into a ValueError: a damaged checkpoint can raise almost anything."""
    try:
        yield
    except Exception as e:
        if signals.is_out_of_memory(e):
            raise
        reason = ' '.join(str(e).split())[:500]
        if isinstance(e, pickle.UnpicklingError):  # torch's message advises turning the check off
            reason = 'it is damaged or contains more than tensors and plain data'
        elif not isinstance(e, ValueError):
            reason = f'{type(e).__name__}: {reason}'
        raise ValueError(f'{problem} ({reason}); {advice}') from None


def all_finite(model, optimizer):
    """Whether all weights and all tensors of the optimizer's state are finite."""
    weights = list(model.parameters())
    state = [x for moments in optimizer.state.values() for x in moments.values()]
    return bool(torch.stack([x.isfinite().all().to(weights[0].device) for x in [*weights, *state]]).all())


def describe_model(model, tokenizer, loss_name, loss):
    """The keys model, model_args, activation, tokenizer and loss: all that restore_model needs."""
    weights = model.state_dict()
    embedding = weights['transformer.wte.weight'][:model.config.vocab_size].clone()
    weights['transformer.wte.weight'] = weights['lm_head.weight'] = embedding
    args = vars(model.config).copy()
    coefficients = list(loss) if isinstance(loss, losses.LossCoefficients) else None
    return {'model': weights, 'activation': args.pop('activation'), 'model_args': args,
            'tokenizer': tokenizer.to_dict(), 'loss': {'name': loss_name, 'coefficients': coefficients}}


def restore_model(checkpoint, device='cpu', dropout=0.0):
    """(model, tokenizer, loss) of a loaded checkpoint. Raises ValueError if its parts do not fit together."""
    path, name = checkpoint.get('path', 'the checkpoint'), checkpoint['loss'].get('name')
    if checkpoint['loss'].get('coefficients') is None and isinstance(name, str) and name not in losses.CUSTOM_LOSSES:
        raise ValueError(f'{path} was trained with the loss {name!r}, which is not in CUSTOM_LOSSES; define it there')
    with _one_line_error(f'the parts of {path} do not fit together', 'pass a file written by train.py'):
        args = checkpoint['model_args'] | {'dropout': dropout, 'activation': checkpoint['activation']}
        for name in ('block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd'):
            if type(args[name]) is not int or not 0 < args[name] < 2**24:  # no product of two sizes overflows
                raise ValueError(f'{name}={args[name]!r}')
        model = _build_model(GPTConfig(**args), checkpoint['model'])
        tokenizer = Tokenizer.from_dict(checkpoint['tokenizer'])
        # the model may have more ids than a tokenizer with text: nanoGPT's have 50,304, GPT-2's encoding 50,257
        n_ids = model.config.vocab_size
        if tokenizer.vocab_size > n_ids or tokenizer.kind == 'ids' and tokenizer.vocab_size != n_ids:
            raise ValueError(f'the tokenizer has {tokenizer.vocab_size} ids, the model {n_ids}')
        name, coefficients = checkpoint['loss']['name'], checkpoint['loss']['coefficients']
        if coefficients is None:
            loss = losses.make_loss(name, n_ids)
        else:
            loss = losses.LossCoefficients(*map(float, coefficients))
            if len(coefficients) != len(loss) or not all(map(math.isfinite, loss)):
                raise ValueError(f'loss coefficients {coefficients}')
    return model.to(device), tokenizer, loss


def _build_model(config, weights):
    """A GPT with these weights; padding rows of the vocabulary become zeros.

    Shapes are compared before the model takes any memory. The errors name the weights that are missing, unexpected,
    of another shape or not finite.
    """
    n_layer = len({name.split('.')[2] for name in weights if name.startswith('transformer.h.')})
    if n_layer != config.n_layer:  # a huge n_layer would take forever below
        raise ValueError(f'n_layer={config.n_layer}, but the weights have {n_layer} layers')
    wrong = [name for name, w in weights.items() if not _is_valid(w)]
    if wrong:
        raise ValueError(f"no finite floating-point tensors: {', '.join(wrong[:6])}")
    for name in TIED:
        if weights[name].shape != (config.vocab_size, config.n_embd):
            raise ValueError(f'{name} has shape {list(weights[name].shape)}, but vocab_size={config.vocab_size} and '
                             f'n_embd={config.n_embd}')
    if not torch.equal(*(weights[name].float() for name in TIED)):
        raise ValueError(f'{TIED[1]} differs from {TIED[0]}, but model.py ties them')
    with torch.device('meta'), SkipInit():  # shapes without memory
        model = GPT(config)
    padding = model.lm_head.weight.size(0) - config.vocab_size
    embedding = torch.nn.functional.pad(weights[TIED[0]].float(), (0, 0, 0, padding))
    weights = {name: w.float().clone() for name, w in weights.items() if name not in TIED}
    weights |= dict.fromkeys(TIED, embedding)
    model.load_state_dict(weights, assign=True)
    model.lm_head.weight = model.transformer.wte.weight
    return model


class SkipInit(TorchFunctionMode):
    """Skip the random initialization of weights: on the meta device its first call imports torch._dynamo, which takes
    as long as importing torch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ('normal_', 'uniform_', 'kaiming_uniform_'):  # of torch.nn.init or torch.Tensor
            return args[0] if args else kwargs['tensor']
        return func(*args, **kwargs or {})


def _is_valid(x):
    # an expanded tensor, which is not contiguous, can be larger than the file
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or not x.is_contiguous():
        return False
    return bool(x.sum().isfinite() or x.isfinite().all())  # a finite sum needs one pass instead of five


def init_model(checkpoint, resume, config, flags, data):
    """The model of a run that starts from a checkpoint's weights, or that resumes the checkpoint's run.

    config, data: settings and dataloader.Dataset of the run that starts now. The settings of the model's shape are set
    to those of the weights.
    flags: names of the settings that were given on the command line.

    Returns (model, changes), where changes is a list of 'name old -> new' of the settings that a resumed run changes.
    Raises ValueError if the checkpoint does not fit the run.
    """
    path, changes = checkpoint['path'], []
    if not resume and checkpoint['tokenizer'] == data.tokenizer.to_dict():
        checkpoint = crop_vocab(checkpoint, data.tokenizer.vocab_size)
    model, tokenizer, _ = restore_model(checkpoint, dropout=config['dropout'])
    check_tokenizer(path, tokenizer, config['dataset'], data.tokenizer)
    if config['block_size'] > model.config.block_size:
        raise ValueError(f"--block_size={config['block_size']} exceeds the block_size={model.config.block_size} of "
                         f'{path}; pass --block_size={model.config.block_size} or less')
    shape = {name: getattr(model.config, name) for name in SHAPE}
    other_shape = [f'{name} {shape[name]} -> {config[name]}' for name in SHAPE
                   if name in flags and config[name] != shape[name]]
    config.update(shape)
    if resume:
        changes = _find_changes(checkpoint, config, other_shape, data.info)
    elif other_shape:
        raise ValueError(f"{path} cannot start a run of another shape: {', '.join(other_shape)}; omit these flags, or "
                         'train from scratch')
    return model, changes


def check_tokenizer(path, tokenizer, dataset, data_tokenizer):
    """Raise ValueError unless the tokenizer of the checkpoint at path is that of the data set."""
    if tokenizer.to_dict() == data_tokenizer.to_dict():
        return
    found = f'--dataset={dataset} ({data_tokenizer.kind}, {data_tokenizer.vocab_size} ids)'
    if data_tokenizer.kind != 'ids' and convert.lacks_tokenizer(path):
        raise ValueError(f'{path} has no tokenizer.json, so its ids cannot be compared with those of {found}; '
                         "copy the model's tokenizer.json into it")
    raise ValueError(f'{path} has another tokenizer ({tokenizer.kind}, {tokenizer.vocab_size} ids) than {found}; '
                     'pass the data set that it was trained on')


def match_dataset(path, tokenizer, dataset):
    """(folder, meta) of the data set, see dataloader, that the checkpoint at path is evaluated on.

    Raises OSError or ValueError if there is no such data set, or if it has another tokenizer.
    """
    folder = dataloader.find_dataset(dataset)
    is_described = tokenizer.kind != 'ids' or dataloader.is_described(folder)
    meta = dataloader.read_meta(folder, 0 if is_described else tokenizer.vocab_size)
    check_tokenizer(path, tokenizer, dataset, Tokenizer.for_dataset(folder, meta))
    return folder, meta


def _find_changes(checkpoint, config, refused, data):
    path = checkpoint['path']
    missing = [key for key in ('optimizer', 'scaler', 'train_state', 'environment')
               if not isinstance(checkpoint.get(key), dict) or key == 'optimizer' and not checkpoint[key]]
    if missing:
        raise ValueError(f"{path} cannot be resumed: it has no {', '.join(missing)}; to start a new run from its "
                         f'weights: --init_from={path} --out_dir=...')
    # what runs of nanoGPT used, whose configs lack these settings; it does not record the data
    saved = {'optimizer': 'adamw', 'lr_schedule': 'cosine', 'random_windows': not checkpoint['data'],
             'context_warmup': 0.0, 'loss': checkpoint['loss'].get('name')} | checkpoint['config']
    changes, refused = [], [*refused]
    for name, old in saved.items():
        if name in config and config[name] != old and name not in UNREPORTED:
            (refused if name in FIXED_SETTINGS else changes).append(f'{name} {old} -> {config[name]}')
    if checkpoint['data'] and checkpoint['data'] != data:
        refused.append(f"data {checkpoint['data'].get('source')} -> {data['source']} (or the same text prepared again)")
    if refused:
        raise ValueError(f"{path} cannot be resumed with other settings: {', '.join(refused)}; resume with the old "
                         f'values, or start a new run from its weights: --init_from={path} --out_dir=...')
    return changes


def crop_vocab(checkpoint, size):
    """Return the checkpoint with at most size ids, so that a new run has no class without a token."""
    args, weights = checkpoint['model_args'], checkpoint['model']
    try:
        if size >= args['vocab_size']:
            return checkpoint
        tied = {name: weights[name][:size].clone() for name in TIED}
    except (KeyError, TypeError, AttributeError, IndexError):
        return checkpoint  # restore_model reports what is wrong
    return checkpoint | {'model_args': args | {'vocab_size': size}, 'model': weights | tied}


def restore_optimizer(checkpoint, optimizer, scaler):
    """Load the saved state into the optimizer and the GradScaler. Returns the fields of TrainState as a dict.

    The optimizer keeps the settings of its groups, which may change during a run. Raises ValueError if the state does
    not fit the weights.
    """
    path, train_state = checkpoint['path'], checkpoint['train_state']
    with _one_line_error(f'{path} cannot be resumed: its optimizer, scaler or train_state is invalid',
                         f'to start a new run from its weights: --init_from={path} --out_dir=...'):
        saved, groups = checkpoint['optimizer'], optimizer.state_dict()['param_groups']
        if [group['params'] for group in saved['param_groups']] != [group['params'] for group in groups]:
            raise ValueError('other parameter groups')
        optimizer.load_state_dict({'state': saved['state'], 'param_groups': groups})
        state = optimizer.state
        if saved['state'] or checkpoint['iter_num'] and not checkpoint['scaler']:  # a scaler can skip all iterations
            for group, p in [(group, p) for group in optimizer.param_groups for p in group['params']]:
                expected = {'step': (), 'exp_avg': p.shape, 'exp_avg_sq': p.shape}
                if 'momentum' in group:  # Muon
                    expected = {'momentum_buffer': p.shape}
                    if group['beta2']:
                        expected['row_moment'] = (p.size(0), 1)
                if {name: x.shape for name, x in state.get(p, {}).items() if _is_valid(x)} != expected:
                    raise ValueError(f'state of a parameter of shape {list(p.shape)}: other shapes, or not finite')
        if checkpoint['scaler']:
            scaler.load_state_dict(checkpoint['scaler'])
        if any(type(train_state[key]) is not kind for key, kind in TRAIN_STATE.items()) or \
                not 0 <= train_state['train_seconds'] < math.inf:
            raise ValueError(f'train_state {train_state}')
    return {'iter_num': checkpoint['iter_num'], 'best_val_loss': checkpoint['best_val_loss'],
            **{key: train_state[key] for key in TRAIN_STATE},
            'wandb_run_id': str(train_state.get('wandb_run_id') or '')}  # start_wandb() checks it
