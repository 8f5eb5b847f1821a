"""The choice of device, dtype and compilation, and the check of a device."""
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import losses
from model import GPTConfig
from nanoloss import device

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a CUDA GPU')


@NO_CUDA
def test_auto():
    """Without a GPU, auto is float32 without autocast and without torch.compile."""
    name, dtype, autocast, _ = device.choose_device('auto', 'auto')
    expected = 'mps' if torch.backends.mps.is_available() else 'cpu'
    assert (name, dtype) == (expected, 'float32') and isinstance(autocast, nullcontext)
    assert device.choose_compile('auto', name)[0] is False


def test_requested():
    """A requested dtype is the dtype of a matrix product under the context; --compile=False is obeyed."""
    name, dtype, autocast, _ = device.choose_device('cpu', 'bfloat16')
    with autocast:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert (name, dtype) == ('cpu', 'bfloat16')
    assert device.choose_compile('False', 'cpu')[0] is False


@pytest.mark.parametrize('setting', ['auto', 'True'])
def test_compiler_that_does_not_work(setting, monkeypatch):
    """If a trivial function cannot be compiled, auto falls back with the reason, and True is one line that gives it."""
    def compile(function):
        def compiled(x):
            raise RuntimeError('InvalidCxxCompiler: none of\n g++, clang++') from FileNotFoundError('no compiler')
        return compiled
    monkeypatch.setattr(torch, 'compile', compile)
    monkeypatch.setattr(torch, 'ones', lambda *shape, device: None)
    if setting == 'auto':
        decision, reason = device.choose_compile('auto', 'cuda')
        assert decision is False and 'no compiler' in reason and '\n' not in reason
    else:
        with pytest.raises(ValueError, match='--compile') as e:
            device.choose_compile('True', 'cpu')
        assert 'no compiler' in str(e.value) and '\n' not in str(e.value)


@NO_CUDA
def test_gpu_that_pytorch_cannot_use(monkeypatch):
    """auto does not fall back to the CPU on a machine whose NVIDIA GPU PyTorch cannot use; --device=cpu does."""
    gpus = 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)'
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    monkeypatch.setattr(device.subprocess, 'run', lambda *args, **options: SimpleNamespace(stdout=gpus))
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(torch.backends.cuda, 'is_built', lambda: False)
    with pytest.raises(ValueError, match='--device=cpu'):
        device.choose_device('auto')
    assert device.choose_device('cpu')[0] == 'cpu'
    monkeypatch.setattr(torch.backends.cuda, 'is_built', lambda: True)

    def init():
        raise RuntimeError('The NVIDIA driver on your system is too old (found version 11040). Please update')
    monkeypatch.setattr(torch.cuda, 'init', init)
    with pytest.raises(ValueError, match='11040') as e:
        device.choose_device('auto')
    assert '\n' not in str(e.value)
    for hidden in ('', '-1'):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
        assert device.choose_device('auto')[0] == 'cpu'
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    gpus = 'NVIDIA-SMI has failed because it could not communicate with the driver'
    assert device.choose_device('auto')[0] == 'cpu'


LOSS = {'cross_entropy': losses.cross_entropy, 'mse': losses.mse, 'squentropy': losses.squentropy}
CONFIG = GPTConfig(block_size=64, vocab_size=5000, n_layer=6, n_head=2, n_embd=32, dropout=0.1)


@pytest.mark.parametrize('name', LOSS)
def test_device_that_computes_correctly(name):
    """bfloat16 on a CPU passes the check, whatever the loss."""
    for dtype in ('float32', 'bfloat16'):
        _, _, autocast, _ = device.choose_device('cpu', dtype)
        device.compare_with_cpu('cpu', dtype, autocast, CONFIG, LOSS[name])


def test_custom_losses_are_checked():
    """A custom loss may know the number of classes, and its gradient may be zero."""
    class_weights = torch.rand(CONFIG.vocab_size)

    def weighted(logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets, class_weights, reduction='none')
    for loss in (weighted, lambda logits, targets: 0 * logits[:, 0]):
        device.compare_with_cpu('cpu', 'float32', nullcontext(), CONFIG, lambda C: loss)


@pytest.mark.parametrize('wrong', ['gelu', 'layer_norm', 'nan'])
def test_device_that_computes_wrongly(wrong, monkeypatch):
    """A device whose GELU or layer norm is off by 3 %, or that returns NaN, is refused in one line."""
    factor = float('nan') if wrong == 'nan' else 1.03
    name = 'gelu' if wrong == 'nan' else wrong
    correct, calls = getattr(torch.nn.functional, name), []

    def from_the_second_run_on(x, *args, **options):
        calls.append(name)
        n_calls = 2 if name == 'gelu' else 5  # of the run on the CPU
        return correct(x, *args, **options) * (factor if len(calls) > n_calls else 1)
    monkeypatch.setattr(torch.nn.functional, name, from_the_second_run_on)
    with pytest.raises(ValueError, match='--device=cpu.*--check_device') as e:
        device.compare_with_cpu('cpu', 'float32', nullcontext(), CONFIG, losses.squentropy)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['cpu:x', pytest.param('cuda', marks=NO_CUDA), pytest.param('cuda:7', marks=NO_CUDA)])
def test_missing_device(name):
    """A device that is not available is a ValueError that names the flag."""
    with pytest.raises(ValueError, match=f'--device={name}') as e:
        device.choose_device(name)
    assert '\n' not in str(e.value)


def test_one_gpu_for_several_processes():
    """A numbered GPU is refused for all but the first process of a node."""
    with pytest.raises(ValueError, match='--device=cuda:1'):
        device.choose_device('cuda:1', local_rank=1)


HERE = {'processor': device.processor_name('cpu'), 'compiled': False}


@pytest.fixture
def used(monkeypatch):
    """The libraries that models were told to use. oneDNN is available and faster."""
    used = []
    monkeypatch.setattr(device.matmul, 'HAS_ONEDNN', True)
    monkeypatch.setattr(device.matmul, 'faster_library', lambda config, rows: 'onednn')
    monkeypatch.setattr(device.matmul, 'use', lambda library, model: used.append(library))
    return used


@pytest.mark.parametrize('library, recorded, expected', [
    ('torch', None, 'torch'), ('onednn', None, 'onednn'), ('auto', None, 'onednn'), ('auto', {}, 'onednn'),
    ('auto', HERE | {'matmul': 'torch'}, 'torch'), ('onednn', HERE | {'matmul': 'torch'}, 'onednn'),
    ('torch', HERE | {'matmul': 'onednn'}, 'torch'), ('auto', HERE | {'matmul': 'openblas'}, 'onednn'),
    ('auto', HERE | {'matmul': 'torch', 'compiled': True}, 'onednn'), ('auto', HERE, 'onednn'), ('auto', [], 'onednn'),
    ('auto', HERE | {'matmul': 'torch', 'processor': 'another'}, 'onednn')])
def test_prepare_cpu(used, library, recorded, expected):
    """The requested library is used; auto keeps that of a run on the same processor, otherwise it takes the faster."""
    model = SimpleNamespace(config=CONFIG)
    assert device.prepare_cpu('cpu', model, 64, library, recorded) == expected and used == [expected]
    assert device.prepare_cpu('cuda:0', model, 64, library, recorded) == 'torch' and used == [expected]



def test_no_onednn(used, monkeypatch):
    """Without oneDNN, requesting it is one line that names the flag, and a record of it does not count."""
    monkeypatch.setattr(device.matmul, 'HAS_ONEDNN', False)
    model = SimpleNamespace(config=CONFIG)
    with pytest.raises(ValueError, match='--matmul') as e:
        device.prepare_cpu('cpu', model, 64, 'onednn')
    assert '\n' not in str(e.value) and not used
    assert device.prepare_cpu('cpu', model, 64, 'auto', HERE | {'matmul': 'onednn'}) == 'torch'


def test_rank_0_chooses_the_library(used, monkeypatch):
    """The other ranks time nothing and take what rank 0 chose."""
    for chosen in ('torch', 'onednn'):
        monkeypatch.setattr(device.distributed, 'is_master', False)
        monkeypatch.setattr(device.matmul, 'faster_library', None)
        monkeypatch.setattr(device.distributed, 'all_reduce_max',
                            lambda own, cannot, chosen=chosen: [max(own, chosen == 'onednn'), cannot])
        assert device.prepare_cpu('cpu', None, 64) == chosen


def test_library_of_study(used, monkeypatch):
    """A study keeps its library; runs on a GPU and compiled ones have none to choose."""
    settings = {**vars(CONFIG), 'batch_size': 2, 'device': 'cpu', 'compile': 'auto', 'matmul': 'auto'}
    assert device.library_of_study(settings, 100) == 'onednn'
    assert device.library_of_study(settings, 100, 'torch') == 'torch'
    assert device.library_of_study(settings, 100, 'auto') == 'onednn'  # the study began on a GPU
    assert device.library_of_study({**settings, 'matmul': 'torch'}, 100, 'onednn') == 'torch'
    for change in ({'device': 'cuda'}, {'compile': 'True'}):
        assert device.library_of_study({**settings, **change}, 100, 'onednn') == 'auto'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert device.library_of_study({**settings, 'device': 'auto'}, 100, 'onednn') == 'auto'


def test_study_without_its_library(used, monkeypatch):
    """A study whose library is missing is refused in one line, unless its runs do not use it."""
    monkeypatch.setattr(device.matmul, 'HAS_ONEDNN', False)
    settings = {**vars(CONFIG), 'batch_size': 2, 'device': 'cpu', 'compile': 'auto', 'matmul': 'auto'}
    for library, recorded in (('auto', 'onednn'), ('onednn', None), ('onednn', 'torch')):
        with pytest.raises(ValueError, match='--matmul') as e:
            device.library_of_study({**settings, 'matmul': library}, 100, recorded)
        assert '\n' not in str(e.value)
    assert device.library_of_study(settings, 100, 'torch') == 'torch'
    assert device.library_of_study({**settings, 'device': 'cuda'}, 100, 'onednn') == 'auto'


def test_environment_changes():
    """What differs is listed with both values; what one of the two lacks is not."""
    change, = device.environment_changes({'torch': 'x', 'threads': 2, 'old': 1}, {'torch': 'y', 'threads': 2, 'new': 1})
    assert all(text in change for text in ('torch', 'x', 'y'))


def test_describe_environment():
    """The environment is plain data that JSON can hold and names the processor."""
    environment = device.describe_environment('cpu', 'float32', False, 'torch', 1)
    assert environment['device'] == 'cpu' and environment['processor'].endswith('cores')
    assert all(type(value) in (str, int, bool) for value in environment.values())


@pytest.mark.cuda
def test_cuda():
    """On a GPU, auto is CUDA in bfloat16 or float16, and each process of a node has its own GPU."""
    name, dtype, _, _ = device.choose_device('auto', 'auto')
    assert name == 'cuda' and dtype in ('bfloat16', 'float16')
    assert device.choose_device('cuda', local_rank=0)[0] == 'cuda:0'
    assert 'cores' not in device.processor_name('cuda')
    assert device.choose_device('cuda:0')[0] == 'cuda:0' and torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match='--device=cuda:77'):
        device.choose_device('cuda:77')


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('name', LOSS)
def test_cuda_computes_correctly(name, dtype):
    """A GPU agrees with the CPU to the precision of each dtype."""
    _, _, autocast, _ = device.choose_device('cuda', dtype)
    device.compare_with_cpu('cuda', dtype, autocast, CONFIG, LOSS[name])
