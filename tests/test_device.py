"""The choice of device, dtype and compilation."""
from contextlib import nullcontext

import pytest
import torch

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
    """A requested dtype is the dtype of a matrix product under the context; --compile=True or False is obeyed."""
    name, dtype, autocast, _ = device.choose_device('cpu', 'bfloat16')
    with autocast:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert (name, dtype) == ('cpu', 'bfloat16')
    assert [device.choose_compile(value, 'cpu')[0] for value in ('True', 'False')] == [True, False]


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


def test_prepare_cpu(monkeypatch):
    """oneDNN is used on a CPU by a model that is not compiled."""
    monkeypatch.setattr(device.matmul, 'use_onednn', lambda vendor: 'oneDNN')
    assert device.prepare_cpu('cpu') == 'oneDNN'
    assert device.prepare_cpu('cpu', compiled=True) == device.prepare_cpu('cuda:0') == 'torch'


def test_describe_environment():
    """The environment is plain data that JSON can hold and names the processor."""
    environment = device.describe_environment('cpu', 'float32', False, 'torch', 1)
    assert environment['device'] == 'cpu' and environment['processor'].endswith('cores')
    assert all(type(value) in (str, int, bool) for value in environment.values())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_cuda():
    """On a GPU, auto is CUDA in bfloat16 or float16, and each process of a node has its own GPU."""
    name, dtype, _, _ = device.choose_device('auto', 'auto')
    assert name == 'cuda' and dtype in ('bfloat16', 'float16')
    assert device.choose_device('cuda', local_rank=0)[0] == 'cuda:0'
    assert 'cores' not in device.processor_name('cuda')
