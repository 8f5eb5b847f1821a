"""Checkpoints: a round trip is exact, no code runs, and a damaged or unsuitable file gives one clear error."""
import copy
import errno
import os
import pickle
import stat
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from model import GPT, GPTConfig
from nanoloss import dataloader
from nanoloss.checkpoint import (all_finite, crop_vocab, describe_model, init_model, load_checkpoint, match_dataset,
                                 restore_model, restore_optimizer, save_checkpoint)
from nanoloss.optim import make_optimizer
from nanoloss.tokenizer import Tokenizer

SHAPE = {'block_size': 8, 'vocab_size': 256, 'n_layer': 1, 'n_head': 2, 'n_embd': 8, 'bias': True}
CONFIG = {**SHAPE, 'dataset': 'x', 'seed': 1, 'loss': 'squentropy', 'squentropy_weight': 1.0, 'optimizer': 'adamw',
          'dropout': 0.0, 'learning_rate': 1e-3, 'init_from': 'scratch', 'out_dir': 'a', 'batch_size': 4,
          'gradient_accumulation_steps': 1, 'muon_beta2': 0.0}
DATA = {'source': 'a test', 'tokens': {'train': 9}, 'fingerprint': {'train': 'abc'}}
ENVIRONMENT = {'torch': 'x', 'world_size': 1}
TRAIN_STATE = {'last_eval': 2, 'evals_since_best': 0, 'train_seconds': 1.5, 'wandb_run_id': ''}
TOKENIZER = Tokenizer('byte')
FEW = settings(max_examples=200, deadline=None, derandomize=True, database=None,
               suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.text(max_size=5)),
                    lambda inner: st.one_of(st.lists(inner, max_size=3),
                                            st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=5)


def make_model(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SHAPE, **changes}))


def new_optimizer(model, name='adamw'):
    return make_optimizer(model, name, 1e-3, 1e-3, 0.1, (0.9, 0.99))


def scaler():
    return torch.amp.GradScaler('cpu', enabled=False)


def make_checkpoint(model=None, optimizer='adamw'):
    """The contents of ckpt.pt after two iterations."""
    model = model or make_model()
    optimizer = new_optimizer(model, optimizer)
    for _ in range(2):
        model(torch.arange(8)[None]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {**describe_model(model, TOKENIZER, 'squentropy', losses.squentropy(256)), 'iter_num': 2,
            'best_val_loss': 2.5, 'config': CONFIG, 'data': DATA, 'environment': ENVIRONMENT,
            'optimizer': optimizer.state_dict(), 'scaler': {}, 'train_state': TRAIN_STATE}


@pytest.fixture
def path(tmp_path):
    """A valid checkpoint file."""
    save_checkpoint(make_checkpoint(), tmp_path / 'ckpt.pt')
    return tmp_path / 'ckpt.pt'


def start(checkpoint, resume, config=CONFIG, flags=(), info=DATA, tokenizer=TOKENIZER):
    """(model, changes) of a run, and the config as the run records it."""
    config = dict(config)
    data = SimpleNamespace(info=info, tokenizer=tokenizer)
    return *init_model(checkpoint, resume, config, flags, data), config


def resume(path, config=CONFIG, data=DATA, optimizer='adamw'):
    """(model, optimizer, train state, changes) of a resumed run."""
    checkpoint = load_checkpoint(path)
    model, changes, _ = start(checkpoint, True, config, (), data)
    optimizer = new_optimizer(model, optimizer)
    return model, optimizer, restore_optimizer(checkpoint, optimizer, scaler()), changes


# save and load ----------------------------------------------------------------

def test_round_trip(tmp_path):
    """A restored model has the weights, the tokenizer and the loss coefficients that were saved."""
    model = make_model(activation='gelu_tanh', bias=False)
    save_checkpoint(make_checkpoint(model), tmp_path / 'ckpt.pt')
    restored, tokenizer, loss = restore_model(load_checkpoint(tmp_path / 'ckpt.pt'))
    for a, b in zip(model.state_dict().values(), restored.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert restored.lm_head.weight is restored.transformer.wte.weight
    assert restored.config == model.config and tokenizer.kind == 'byte' and loss == losses.squentropy(256)
    assert os.listdir(tmp_path) == ['ckpt.pt']


def test_restored_weights_are_not_initialized_first():
    """Restoring a model draws no random numbers, not even on the meta device, where that imports torch._dynamo."""
    operations = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operations.append(str(func))
            return func(*args, **kwargs or {})
    checkpoint, before = make_checkpoint(), torch.get_rng_state()
    with Recorder():
        restore_model(checkpoint)
    assert operations and not [name for name in operations if 'normal' in name or 'uniform' in name]
    assert torch.equal(torch.get_rng_state(), before)


def test_large_weights_are_valid():
    """Finite weights whose sum overflows are valid."""
    checkpoint = make_checkpoint()
    weights = checkpoint['model']['transformer.wpe.weight'].fill_(3e38)
    model, _, _ = restore_model(checkpoint)
    assert not weights.sum().isfinite() and torch.equal(model.transformer.wpe.weight, weights)


def test_custom_loss(path, monkeypatch):
    """A custom loss is stored by name alone."""
    def custom(logits, targets):
        return logits[:, 0]
    monkeypatch.setitem(losses.CUSTOM_LOSSES, 'custom', custom)
    checkpoint = load_checkpoint(path) | describe_model(make_model(), TOKENIZER, 'custom', custom)
    assert checkpoint['loss'] == {'name': 'custom', 'coefficients': None} and restore_model(checkpoint)[2] is custom
    del losses.CUSTOM_LOSSES['custom']
    with pytest.raises(ValueError, match="'custom'.*CUSTOM_LOSSES"):
        restore_model(checkpoint)


def test_padding_is_not_saved():
    """The file holds vocab_size rows, model_args only what nanoGPT's GPTConfig takes; padding is restored as zeros."""
    model = make_model(vocab_size=70)
    described = describe_model(model, Tokenizer('ids', size=70), 'mse', losses.mse(70))
    assert set(described['model_args']) == {*SHAPE, 'dropout'}
    assert described['model']['transformer.wte.weight'].shape == described['model']['lm_head.weight'].shape == (70, 8)
    restored, _, _ = restore_model(described)
    assert torch.equal(restored.lm_head.weight, model.lm_head.weight) and restored.lm_head.weight.shape == (128, 8)


def test_crop_vocab():
    """A cropped checkpoint has the first ids of the model; a larger size changes nothing."""
    checkpoint = describe_model(make_model(vocab_size=300), TOKENIZER, 'mse', losses.mse(300))
    cropped, _, _ = restore_model(crop_vocab(checkpoint, 256))
    assert torch.equal(cropped.lm_head.weight, checkpoint['model']['lm_head.weight'][:256])
    assert crop_vocab(checkpoint, 301) == checkpoint


def test_failed_save_leaves_the_old_file(path):
    """If saving fails half-way, the old checkpoint stays and no other file is left."""
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save_checkpoint({'model': torch.zeros(10), 'bad': lambda: 0}, path)
    assert path.read_bytes() == before and os.listdir(path.parent) == ['ckpt.pt']


@pytest.mark.parametrize('fails,number,raises', [
    ('folder', errno.EINVAL, False), ('folder', errno.ENOTSUP, False), ('folder', errno.EIO, True),
    ('file', errno.EINVAL, True), ('file', errno.ENOTSUP, True)])
@pytest.mark.skipif(os.name != 'posix', reason='only POSIX opens directories')
def test_fsync_of_a_folder(path, monkeypatch, fails, number, raises):
    """A file system that cannot flush a directory (CIFS) still gets checkpoints; other errors are not ignored."""
    fsync, synced = os.fsync, []

    def fake_fsync(fd):
        kind = 'folder' if stat.S_ISDIR(os.fstat(fd).st_mode) else 'file'
        synced.append(kind)
        if kind == fails:
            raise OSError(number, os.strerror(number))
        fsync(fd)
    monkeypatch.setattr(os, 'fsync', fake_fsync)
    if raises:
        with pytest.raises(OSError) as e:
            save_checkpoint({'iter_num': 3}, path)
        assert e.value.errno == number
    else:
        save_checkpoint({'iter_num': 3}, path)
        assert torch.load(path) == {'iter_num': 3}
    assert fails in synced and os.listdir(path.parent) == ['ckpt.pt']


def test_all_finite():
    """A single NaN in the weights or in the optimizer's state is found."""
    model = make_model()
    optimizer = new_optimizer(model)
    model(torch.arange(8)[None]).sum().backward()
    optimizer.step()
    assert all_finite(model, optimizer)
    moment = optimizer.state[model.lm_head.weight]['exp_avg']
    moment[0, 0] = torch.nan
    assert not all_finite(model, optimizer)
    moment[0, 0] = 0
    model.transformer.ln_f.weight.data[0] = torch.inf
    assert not all_finite(model, optimizer)


# files that are not a valid checkpoint ----------------------------------------

class Bomb:
    """Unpickling it creates a directory."""
    def __reduce__(self):
        return os.mkdir, ('bomb',)


def edit(change):
    """A damage: change the contents of the file, a dict."""
    def damage(path):
        contents = torch.load(path, weights_only=True)
        change(contents)
        torch.save(contents, path)
    return damage


def rezip(compression, extra):
    """A damage: write the zip entries again, with another one of 16 MB."""
    def damage(path):
        with zipfile.ZipFile(path) as z:
            entries = {entry.filename: z.read(entry) for entry in z.infolist()}
        with zipfile.ZipFile(path, 'w', compression=compression) as z:
            for name, content in (entries | {'archive/data/99': bytes(extra)}).items():
                z.writestr(name, content)
    return damage


def overlap_entries(path):
    """List the largest zip entry under fifty names."""
    with zipfile.ZipFile(path, 'a') as z:
        largest = max(z.infolist(), key=lambda entry: entry.file_size)
        for i in range(50):
            entry = copy.copy(largest)
            entry.filename = f'archive/data/{100 + i}'
            z.filelist.append(entry)
        z.writestr('archive/end', b'')


def append_to_legacy_file(path):
    """Append a valid archive, which zipfile finds, to a file in torch's old format."""
    archive = path.read_bytes()
    torch.save({'model': {}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + archive)


def set_keys(**values):
    return edit(lambda c: c.update(values))


FILES = {
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('not a checkpoint'),
    'truncated': lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    'half': lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
    'pickle': lambda path: path.write_bytes(pickle.dumps({'model': 1}, 2)),
    'pickle with code': lambda path: path.write_bytes(pickle.dumps(Bomb(), 2)),
    'checkpoint with code': set_keys(loss=Bomb()),
    'another zip file': lambda path: zipfile.ZipFile(path, 'w').writestr('a.txt', 'b'),
    'compressed': rezip(zipfile.ZIP_DEFLATED, 2**24),
    'overlapping entries': overlap_entries,
    'old format': append_to_legacy_file,
    'list': lambda path: torch.save([1, 2], path),
    'other dict': lambda path: torch.save({'state_dict': {}}, path),
}


@pytest.mark.parametrize('damage', FILES.values(), ids=FILES)
def test_invalid_file(path, monkeypatch, damage):
    """A file that is not a checkpoint gives a ValueError of one line with its name, and runs no code."""
    monkeypatch.chdir(path.parent)
    damage(path)
    with pytest.raises(ValueError) as e:
        load_checkpoint('ckpt.pt')
    assert 'ckpt.pt' in str(e.value) and '\n' not in str(e.value) and os.listdir() == ['ckpt.pt']


def test_uncompressed_copy_is_valid(path):
    """The counterpart of the damages above: the same entries in another uncompressed zip file still load."""
    rezip(zipfile.ZIP_STORED, 3)(path)
    assert restore_model(load_checkpoint(path))


@pytest.mark.parametrize('make', [lambda path: None, lambda path: path.mkdir()], ids=['missing', 'directory'])
def test_missing_file(tmp_path, make):
    """A path without a file gives a FileNotFoundError with the path."""
    make(tmp_path / 'none.pt')
    with pytest.raises(FileNotFoundError) as e:
        load_checkpoint(tmp_path / 'none.pt')
    assert 'none.pt' in str(e.value) and '\n' not in str(e.value)


KEYS = {
    'missing': (edit(lambda c: [c.pop(key) for key in ('tokenizer', 'loss')]), ['tokenizer', 'loss']),
    'of other types': (set_keys(iter_num='3', config=[]), ['iter_num', 'config']),
    'iter_num negative': (set_keys(iter_num=-1), ['iter_num']),
    'best_val_loss NaN': (set_keys(best_val_loss=float('nan')), ['best_val_loss']),
    'best_val_loss negative': (set_keys(best_val_loss=-1.0), ['best_val_loss']),
    'dataset a number': (edit(lambda c: c['config'].update(dataset=5)), ['config']),
    'fingerprint a number': (edit(lambda c: c['data'].update(fingerprint=5)), ['data']),
}


@pytest.mark.parametrize('damage,names', KEYS.values(), ids=KEYS)
def test_invalid_keys(path, damage, names):
    """Missing keys and keys with invalid values are named."""
    damage(path)
    with pytest.raises(ValueError) as e:
        load_checkpoint(path)
    assert all(name in str(e.value) for name in ['ckpt.pt', *names]) and '\n' not in str(e.value)


def set_size(name, value):
    return edit(lambda c: c['model_args'].update({name: value})), name


def set_weight(tensor, name='transformer.wpe.weight'):
    return edit(lambda c: c['model'].update({name: tensor})), str(name)


def expand_all(c):
    """Weights that fit together, of 10^11 numbers in a small file: each is one number, repeated."""
    c['model_args'] |= {'n_embd': 2 * 10**5, 'n_head': 2}
    with torch.device('meta'):
        shapes = GPT(GPTConfig(**c['model_args'])).state_dict()
    c['model'] = {name: torch.zeros(1).expand(p.shape) for name, p in shapes.items()}


def set_loss(**values):
    return edit(lambda c: c['loss'].update(values)), 'loss'


def set_tokenizer(**values):
    return edit(lambda c: c['tokenizer'].update(values)), ''


PARTS = {
    **{f'n_layer={value}': set_size('n_layer', value) for value in (10**9, 0, -1, True, '1')},
    **{f'n_embd={value}': set_size('n_embd', value) for value in (10**9, -8, 8.0, 16, 10**20)},
    **{f'n_head={value}': set_size('n_head', value) for value in (0, -2, 1.0, 3, None)},
    **{f'vocab_size={value}': set_size('vocab_size', value) for value in (10**12, -256, 300)},
    **{f'block_size={value}': set_size('block_size', value) for value in (10**12, -8, float('nan'))},
    'n_head missing': (edit(lambda c: c['model_args'].pop('n_head')), 'n_head'),
    'another argument': (edit(lambda c: c['model_args'].update(n_expert=8)), 'n_expert'),
    'activation': (set_keys(activation='relu'), 'relu'),
    'all weights expanded': (edit(expand_all), 'transformer.wte.weight'),
    'weight of another shape': set_weight(torch.zeros(7, 8)),
    'embedding of another shape': set_weight(torch.zeros(3, 8), 'transformer.wte.weight'),
    'weight expanded': set_weight(torch.zeros(1).expand(8, 8)),
    'weight of 10^12 numbers': set_weight(torch.zeros(1).expand(10**6, 10**6)),
    'weight of integers': set_weight(torch.zeros(8, 8, dtype=torch.int64)),
    'weight a string': set_weight('x'),
    'weight NaN': set_weight(torch.full((8, 8), float('nan'))),
    'weight infinite': set_weight(torch.full((8, 8), float('inf'))),
    'weight missing': (edit(lambda c: c['model'].pop('transformer.ln_f.weight')), 'transformer.ln_f.weight'),
    'head of its own': set_weight(torch.zeros(256, 8), 'lm_head.weight'),
    'unexpected weight': set_weight(torch.zeros(3), 'other.weight'),
    'layer too many': set_weight(torch.zeros(8), 'transformer.h.1.ln_1.weight')[:1] + ('n_layer',),
    'weight with a number as name': (edit(lambda c: c['model'].update({5: torch.zeros(3)})), ''),
    'unknown loss': set_loss(name='nosuch', coefficients=None),
    'loss coefficients NaN': set_loss(coefficients=[float('nan')] * 8),
    'six loss coefficients': set_loss(coefficients=[1.0] * 6),
    'nine loss coefficients': set_loss(coefficients=[1.0] * 9)[:1] + ('',),
    'loss coefficients text': set_loss(coefficients=['a'] * 8)[:1] + ('',),
    'loss coefficients too large': set_loss(coefficients=[10**400] * 8)[:1] + ('',),
    'tokenizer of another vocabulary': set_tokenizer(kind='gpt2', vocab_size=50257),
    'tokenizer of fewer ids': set_tokenizer(kind='ids', vocab_size=255),
    'tokenizer damaged': set_tokenizer(kind='bpe', ranks=['a']),
    'tokenizer a path': set_tokenizer(kind='../../x'),
}


@pytest.mark.parametrize('damage,name', PARTS.values(), ids=PARTS)
def test_parts_that_do_not_fit(path, damage, name):
    """Parts that contradict each other give a ValueError of one line with the name of the file and of the part."""
    damage(path)
    with pytest.raises(ValueError) as e:
        restore_model(load_checkpoint(path))
    assert 'ckpt.pt' in str(e.value) and name in str(e.value) and '\n' not in str(e.value)


# a new run from the weights of a checkpoint, and a resumed run ----------------

def test_new_run(path):
    """A new run takes the weights and its own settings, and reports no changes."""
    config = CONFIG | {'loss': 'mse', 'seed': 5, 'dropout': 0.25, 'block_size': 4}
    model, changes, _ = start(load_checkpoint(path), False, config, (), {'source': 'other'})
    assert changes == [] and model.config.dropout == 0.25 and model.config.block_size == 8
    assert torch.equal(model.lm_head.weight, load_checkpoint(path)['model']['lm_head.weight'])


@pytest.mark.parametrize('resumed', [False, True])
@pytest.mark.parametrize('config,tokenizer,name', [(CONFIG | {'block_size': 9}, TOKENIZER, '--block_size=9'),
                                                   (CONFIG, Tokenizer('ids', size=256), '--dataset=x')])
def test_unsuitable_for_the_run(path, resumed, config, tokenizer, name):
    """A longer context or another tokenizer than the checkpoint's is refused."""
    checkpoint = load_checkpoint(path)
    checkpoint['config']['block_size'] = config['block_size']
    with pytest.raises(ValueError) as e:
        start(checkpoint, resumed, config, tokenizer=tokenizer)
    assert 'ckpt.pt' in str(e.value) and name in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('resumed', [False, True])
def test_shape(path, resumed):
    """The run records the shape of the weights. Another one is refused by name if a flag sets it, but a config file or
    a default yields to the weights, even where an earlier checkpoint recorded it."""
    checkpoint = load_checkpoint(path)
    shape = {'n_layer': 7, 'n_head': 4, 'n_embd': 16, 'bias': False, 'activation': 'gelu_tanh'}
    for recorded in ({}, {'n_layer': 7}):
        checkpoint['config'] |= recorded
        model, changes, config = start(checkpoint, resumed, CONFIG | shape, {'seed'})
        found = {name: getattr(model.config, name) for name in shape}
        assert found == {'n_layer': 1, 'n_head': 2, 'n_embd': 8, 'bias': True, 'activation': 'gelu'} and changes == []
        assert config == CONFIG | found
    assert start(checkpoint, resumed, CONFIG | found, {*shape})[1] == []
    for name in shape:
        with pytest.raises(ValueError) as e:
            start(checkpoint, resumed, CONFIG | shape, {name})
        assert [other for other in shape if f'{other} ' in str(e.value)] == [name]
        assert 'ckpt.pt' in str(e.value) and '\n' not in str(e.value)


def test_other_tokenizer_of_more_ids(path):
    """A data set with fewer ids than the checkpoint has another tokenizer; the checkpoint is not damaged."""
    tokenizer = Tokenizer('ids', size=100)
    with pytest.raises(ValueError, match='--dataset=x'):
        start(load_checkpoint(path), False, tokenizer=tokenizer)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_resume(tmp_path, optimizer):
    """A resumed run continues with the saved weights, moments and train state; the optimizer keeps its own settings."""
    checkpoint = make_checkpoint(optimizer=optimizer)
    config = CONFIG | {'optimizer': optimizer}
    save_checkpoint(checkpoint | {'config': config}, tmp_path / 'ckpt.pt')
    model, restored, state, changes = resume(tmp_path / 'ckpt.pt', config, optimizer=optimizer)
    assert state == {'iter_num': 2, 'best_val_loss': 2.5, **TRAIN_STATE} and changes == []
    saved, found = checkpoint['optimizer'], restored.state_dict()
    assert saved['param_groups'] == found['param_groups'] and saved['state'].keys() == found['state'].keys()
    for i, moments in saved['state'].items():
        assert all(torch.equal(moments[key], found['state'][i][key]) for key in moments)
    other = make_optimizer(model, optimizer, 5e-3, 5e-3, 0.3, (0.8, 0.9))
    own = [{key: value for key, value in group.items() if key != 'params'} for group in other.param_groups]
    restore_optimizer(load_checkpoint(tmp_path / 'ckpt.pt'), other, scaler())
    assert own == [{key: value for key, value in group.items() if key != 'params'} for group in other.param_groups]


def test_changes_of_a_resumed_run(path):
    """Changed settings are listed with both values; init_from and out_dir are not."""
    config = CONFIG | {'learning_rate': 2e-3, 'init_from': 'auto', 'out_dir': 'b', 'new_setting': 1}
    *_, (change,) = resume(path, config)
    assert all(text in change for text in ('learning_rate', '0.001', '0.002'))


def test_schedule_of_nanogpt(path):
    """A run whose config lacks lr_schedule used the cosine: another schedule is listed as a change, the cosine not."""
    *_, (change,) = resume(path, CONFIG | {'lr_schedule': 'linear'})
    assert 'lr_schedule' in change and 'cosine' in change
    assert resume(path, CONFIG | {'lr_schedule': 'cosine', 'random_windows': False})[-1] == []
    *_, (change,) = resume(path, CONFIG | {'random_windows': True})
    assert 'random_windows' in change
    edit(lambda c: c.update(data={}))(path)  # nanoGPT does not record the data, and draws windows at random
    assert resume(path, CONFIG | {'random_windows': True}, {})[-1] == []
    *_, (change,) = resume(path, CONFIG | {'random_windows': False}, {})
    assert 'random_windows' in change


@pytest.mark.parametrize('config,data,name', [
    ({'loss': 'mse'}, DATA, 'loss'), ({'dropout': 0.1}, DATA, 'dropout'), ({'seed': 2}, DATA, 'seed'),
    ({'squentropy_weight': 0.5}, DATA, 'squentropy_weight'), ({'optimizer': 'muon'}, DATA, 'optimizer'),
    ({'batch_size': 8}, DATA, 'batch_size'), ({'block_size': 4}, DATA, 'block_size'),
    ({'gradient_accumulation_steps': 2}, DATA, 'gradient_accumulation_steps'),
    ({'muon_beta2': 0.9}, DATA, 'muon_beta2'),
    ({}, DATA | {'fingerprint': {'train': '0'}}, 'data')])
def test_resume_as_another_run(path, config, data, name):
    """A checkpoint cannot be resumed with another loss, dropout, seed, optimizer, batch or data set."""
    with pytest.raises(ValueError) as e:
        resume(path, CONFIG | config, data)
    assert all(text in str(e.value) for text in ('ckpt.pt', name, '--init_from=')) and '\n' not in str(e.value)


def set_moments(change):
    """A damage: change the moments of each parameter, a dict."""
    return edit(lambda c: [change(moments) for moments in c['optimizer']['state'].values()])


def set_train_state(**values):
    return edit(lambda c: c['train_state'].update(values))


RESUME = {
    **{f'no {key}': (edit(lambda c, key=key: c.pop(key)), key)
       for key in ('optimizer', 'scaler', 'train_state', 'environment')},
    'optimizer a number': (set_keys(optimizer=5), 'optimizer'),
    'optimizer empty': (edit(lambda c: c['optimizer'].clear()), 'optimizer'),
    'no parameter groups': (edit(lambda c: c['optimizer'].pop('param_groups')), 'param_groups'),
    'one parameter group': (edit(lambda c: c['optimizer']['param_groups'].pop()), 'optimizer'),
    'other parameters': (edit(lambda c: c['optimizer']['param_groups'][0]['params'].reverse()), 'optimizer'),
    'moments of some parameters': (edit(lambda c: c['optimizer']['state'].pop(0)), 'optimizer'),
    'no moments': (edit(lambda c: c['optimizer']['state'].clear()), 'optimizer'),
    'moments of other shapes': (set_moments(lambda m: m.update(exp_avg=torch.zeros(3))), 'optimizer'),
    'moments scalar': (set_moments(lambda m: m.update(exp_avg=torch.tensor(0.0))), 'optimizer'),
    'moments missing': (set_moments(lambda m: m.pop('exp_avg_sq')), 'optimizer'),
    'moments expanded': (set_moments(lambda m: m.update(exp_avg=m['exp_avg'].flatten()[:1].expand(m['exp_avg'].shape))),
                         'optimizer'),
    'moments NaN': (set_moments(lambda m: m['exp_avg_sq'].fill_(torch.nan)), 'optimizer'),
    'moments text': (set_moments(lambda m: m.update(exp_avg='x')), 'optimizer'),
    'train_state empty': (edit(lambda c: c['train_state'].clear()), 'last_eval'),
    'train_state of floats': (set_train_state(last_eval=1.5), 'last_eval'),
    'train_seconds NaN': (set_train_state(train_seconds=float('nan')), 'train_seconds'),
    'train_seconds infinite': (set_train_state(train_seconds=float('inf')), 'train_seconds'),
}


@pytest.mark.parametrize('damage,name', RESUME.values(), ids=RESUME)
def test_cannot_be_resumed(path, damage, name):
    """Valid weights with invalid state of the run: the error says so, and how to start a new run from the weights."""
    damage(path)
    assert restore_model(load_checkpoint(path))
    with pytest.raises(ValueError) as e:
        resume(path)
    assert all(text in str(e.value) for text in ('ckpt.pt', name, '--init_from=')) and '\n' not in str(e.value)


WANDB_IDS = {'exp.v1': 'exp.v1', '../../x': '../../x', 'x' * 1000: 'x' * 1000, 5: '5', None: ''}


@pytest.mark.parametrize('saved', WANDB_IDS)
def test_wandb_run_id_costs_no_optimizer(path, saved):
    """Whatever the id of the W&B run is, the run can be resumed; RunDir.start_wandb judges the id."""
    set_train_state(wandb_run_id=saved)(path)
    _, optimizer, state, _ = resume(path)
    assert optimizer.state and state == {'iter_num': 2, 'best_val_loss': 2.5, **TRAIN_STATE,
                                         'wandb_run_id': WANDB_IDS[saved]}


def test_no_wandb_run_id(path):
    """A checkpoint without a W&B id resumes with an empty one."""
    edit(lambda c: c['train_state'].pop('wandb_run_id'))(path)
    assert resume(path)[2]['wandb_run_id'] == ''


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_resume_on_another_kind_of_device(monkeypatch, optimizer):
    """A state saved where AdamW is not fused resumes as a fused one: step moves to the device of its weight, and
    continuing gives the same weights."""
    model, gradient = make_model(), torch.Generator().manual_seed(1)

    def train(model, optimizer, seed):
        gradient.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=gradient)
        optimizer.step()

    def set_fused(optimizer, fused):
        for group in optimizer.param_groups:
            if 'fused' in group:
                group['fused'] = fused
    plain = new_optimizer(model, optimizer)
    set_fused(plain, False)
    train(model, plain, 1)
    saved = copy.deepcopy({'path': 'x.pt', 'iter_num': 1, 'best_val_loss': 1.0, 'scaler': {},
                           'train_state': TRAIN_STATE, 'optimizer': plain.state_dict()})
    assert not any(group.get('fused') for group in saved['optimizer']['param_groups'])
    resumed = copy.deepcopy(model)
    fused = new_optimizer(resumed, optimizer)
    restore_optimizer(saved, fused, scaler())
    assert fused.param_groups[0]['fused'] is True
    train(model, plain, 2)
    train(resumed, fused, 2)
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)

    with torch.device('meta'):  # the only second device that every machine has
        elsewhere = new_optimizer(make_model(), optimizer)
    set_fused(elsewhere, True)
    monkeypatch.setattr('nanoloss.checkpoint._is_valid', lambda x: True)  # meta tensors have no values to check
    restore_optimizer(saved, elsewhere, scaler())
    assert {x.device.type for moments in elsewhere.state.values() for x in moments.values()} == {'meta'}


# random damage ----------------------------------------------------------------

def try_to_restore(path):
    """Load and restore: a model that runs, or an error of one line with the path."""
    try:
        model, tokenizer, loss = restore_model(load_checkpoint(path))
    except (OSError, ValueError) as e:
        assert len(str(e).splitlines()) == 1 and str(path) in str(e)
        return None
    assert tokenizer.vocab_size == model.config.vocab_size and isinstance(loss, losses.LossCoefficients)
    assert all(p.isfinite().all() for p in model.parameters())
    assert model(torch.zeros(1, model.config.block_size, dtype=torch.int64)).isfinite().all()
    return model


def small_checkpoint():
    model = make_model(block_size=4, n_head=1, n_embd=4, bias=False)
    return describe_model(model, TOKENIZER, 'mse', losses.mse(256)) | {
        'iter_num': 3, 'best_val_loss': 2.5, 'config': {'dataset': 'x'}, 'data': DATA}


def flip_bytes(data, content):
    """Change some bytes, and sometimes cut the rest off."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    length = len(content)
    if data.draw(st.integers(0, 4)) == 0:
        length = data.draw(st.integers(0, len(content)))
    return bytes(content[:length])


@pytest.mark.filterwarnings('ignore')
def test_flipped_bytes(tmp_path):
    """A checkpoint with flipped bytes, anywhere or in its pickle, or cut off, gives a model that runs or one line."""
    path = tmp_path / 'a.pt'
    torch.save(small_checkpoint(), path)
    whole = path.read_bytes()
    begin = whole.index(b'data.pkl')
    end = whole.index(b'PK\x03\x04', begin)
    assert try_to_restore(path)

    @FEW
    @given(st.data())
    def check(data):
        if data.draw(st.booleans()):
            path.write_bytes(whole[:begin] + flip_bytes(data, whole[begin:end]) + whole[end:])
        else:
            path.write_bytes(flip_bytes(data, whole))
        try_to_restore(path)
    check()


@pytest.mark.filterwarnings('ignore')
def test_random_parts(tmp_path):
    """A checkpoint with any value in place of one of its parts gives a model that runs or one line."""
    whole, path = small_checkpoint(), tmp_path / 'a.pt'
    tensors = [torch.zeros(4), torch.zeros(4, 4), torch.zeros(1).expand(10**5, 10**5)]

    @FEW
    @given(st.sampled_from([*whole]), st.data())
    def check(key, data):
        value = whole[key]
        if isinstance(value, dict) and data.draw(st.integers(0, 4)):
            part = data.draw(st.sampled_from([*value, 'x']))
            value = {**value, part: data.draw(st.one_of(JSON, st.sampled_from([*tensors, 2**31, -1, 0, 64])))}
        else:
            value = data.draw(JSON)
        torch.save(whole | {key: value}, path)
        try_to_restore(path)
    check()


def test_dataset_of_bins_without_a_tokenizer(tmp_path):
    """Bins of ids are opened with the checkpoint's vocabulary, also after their largest id was written to meta.json."""
    for split in ('train', 'val'):
        np.arange(90, dtype='<u2').tofile(tmp_path / f'{split}.bin')
        os.utime(tmp_path / f'{split}.bin', (0, 0))  # old enough for its largest id to be remembered
    for _ in range(2):
        _, meta = match_dataset('ckpt.pt', Tokenizer('ids', size=100), str(tmp_path))
        assert meta['vocab_size'] == 100 and meta['tokenizer'] == 'ids'
        dataloader.open_bin(tmp_path, 'val', meta)
        assert (tmp_path / 'meta.json').exists()
