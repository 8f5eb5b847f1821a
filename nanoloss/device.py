"""Device, dtype and torch.compile: choose what the hardware supports, and prepare the CPU."""
import ctypes
import importlib.util
import os
import platform
from contextlib import nullcontext

import torch

from nanoloss import matmul


def processor_name(device):
    """Return the name of the CPU with its number of cores, or of the GPU."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    name = cpuinfo('model name') or platform.processor() or platform.machine()
    return f'{name}, {os.cpu_count()} cores'


def cpuinfo(key):
    """Return the first value of a key in /proc/cpuinfo, or '' if there is none."""
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.partition(':')[2].strip() for line in f if line.startswith(key))
    except (OSError, StopIteration):
        return ''


def describe_environment(device, dtype, compiled, matmul_library, world_size):
    """Return a dict of everything that the last bits of a run depend on. It is stored in the checkpoints."""
    return {'processor': processor_name(device), 'torch': str(torch.__version__), 'device': device.split(':')[0],
            'dtype': dtype, 'threads': torch.get_num_threads(), 'compiled': compiled, 'matmul': matmul_library,
            'world_size': world_size}


def choose_device(device='auto', dtype='auto', local_rank=None):
    """Resolve 'auto' and check that the device works.

    Args:
        device: 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.
        dtype: 'auto', 'float32', 'bfloat16' or 'float16'.
        local_rank: rank of this process on its node under torchrun; each rank uses its own GPU.
    Returns:
        (device, dtype, autocast, reason): two names, the context manager of the forward pass, and why
        these were chosen.
    Raises ValueError if the requested device is not available.
    """
    device_reason = dtype_reason = 'requested'
    if device == 'auto':
        if torch.cuda.is_available():
            device, device_reason = 'cuda', 'a CUDA GPU is available'
        elif torch.backends.mps.is_available():
            device, device_reason = 'mps', 'an Apple GPU is available'
        else:
            device, device_reason = 'cpu', 'no GPU is available'
    if local_rank and ':' in device:
        raise ValueError(f'--device={device} is one GPU for several processes; --device=cuda gives each its own')
    if device == 'cuda' and local_rank is not None:
        device = f'cuda:{local_rank}'
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).split('. ')[0].splitlines()[0][:150]
        raise ValueError(f'--device={device} is not available ({reason}); use --device=auto') from None
    kind = device.split(':')[0]
    if dtype == 'auto':
        if kind != 'cuda':
            dtype, dtype_reason = 'float32', 'half precision is for CUDA GPUs'
        elif torch.cuda.is_bf16_supported(including_emulation=False):
            dtype, dtype_reason = 'bfloat16', 'the GPU supports it'
        else:
            dtype, dtype_reason = 'float16', 'the GPU does not support bfloat16'
    # float32 stays float32: TF32 stays off, because the quadratic terms would lose their digits in it
    autocast = nullcontext() if dtype == 'float32' else torch.autocast(kind, getattr(torch, dtype))
    return device, dtype, autocast, f'{device} ({device_reason}), {dtype} ({dtype_reason})'


def choose_compile(compile, device):
    """Return whether to use torch.compile, and why: (bool, str). compile: 'auto', 'True' or 'False'."""
    if compile != 'auto':
        return compile == 'True', 'requested'
    if device.split(':')[0] != 'cuda':
        return False, 'it pays off on CUDA GPUs only'
    if not importlib.util.find_spec('triton') or torch.cuda.get_device_capability(device)[0] < 7:
        return False, 'it needs Triton and a GPU of compute capability 7'
    return True, 'a CUDA GPU is available'


def prepare_cpu(device, compiled=False):
    """Set up memory allocation and matrix multiplication for speed on a CPU; does nothing on other devices.

    Returns the library of the float32 matrix products, 'torch' or 'oneDNN'. A compiled model uses torch's.
    """
    if device.split(':')[0] != 'cpu':
        return 'torch'
    keep_freed_memory()
    vendor = cpuinfo('vendor_id') or platform.processor()  # on Windows the latter ends with the vendor's name
    return 'torch' if compiled else matmul.use_onednn(vendor)


def keep_freed_memory():
    """Tell glibc to keep freed memory for later tensors; does nothing with another C library.

    By default glibc returns large blocks to the operating system, which zeroes every page
    when it maps them again.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # another C library
        return
    if mallopt(-3, 2**30) or mallopt(-3, 2**25):  # M_MMAP_THRESHOLD; older versions allow at most 32 MB
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much memory may stay free
