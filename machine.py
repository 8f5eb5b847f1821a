"""Which device and floating-point type to use, and whether to compile: chosen by what the machine has."""
import ctypes
import importlib.util
import os
import platform
from contextlib import nullcontext

import torch

import products


def processor(device):
    """What the processor, or the GPU, calls itself."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    try:
        with open('/proc/cpuinfo') as f:
            name = next(line.partition(':')[2].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f'{name}, {os.cpu_count()} cores'


def choose(device='auto', dtype='auto', local_rank=None):
    """(device, dtype, autocast, reason): names, a context for the forward pass, why this choice.

    local_rank: of a process among those that torchrun started on this machine; each takes its own GPU.
    Raises ValueError where the device that is asked for is not there.
    """
    why_device = why_dtype = 'asked for'
    if device == 'auto':
        device, why_device = ('cuda', 'a CUDA GPU is there') if torch.cuda.is_available() else \
            ('mps', 'an Apple GPU is there') if torch.backends.mps.is_available() else ('cpu', 'no GPU is there')
    if local_rank and ':' in device:
        raise ValueError(f'--device={device} is one GPU for several processes; --device=cuda gives each its own')
    if device == 'cuda' and local_rank is not None:
        device = f'cuda:{local_rank}'
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).split('. ')[0].splitlines()[0][:150]
        raise ValueError(f'--device={device} cannot be used ({reason}); --device=auto takes what there is') from None
    kind = device.split(':')[0]
    if dtype == 'auto':
        if kind != 'cuda':
            dtype, why_dtype = 'float32', 'half precision is for CUDA GPUs'
        elif torch.cuda.is_bf16_supported(including_emulation=False):
            dtype, why_dtype = 'bfloat16', 'the GPU has it'
        else:
            dtype, why_dtype = 'float16', 'the GPU has no bfloat16'
    # float32 stays float32: TF32 is not turned on, since the square terms would lose their digits in it
    autocast = nullcontext() if dtype == 'float32' else torch.autocast(kind, getattr(torch, dtype))
    return device, dtype, autocast, f'{device} ({why_device}), {dtype} ({why_dtype})'


def choose_compile(compile, device):
    """(whether to torch.compile, why): compile is 'auto', 'True' or 'False'."""
    if compile != 'auto':
        return compile == 'True', 'asked for'
    if device.split(':')[0] != 'cuda':
        return False, 'it pays on CUDA GPUs'
    if not importlib.util.find_spec('triton') or torch.cuda.get_device_capability(device)[0] < 7:
        return False, 'that needs Triton and a GPU of compute capability 7'
    return True, 'a CUDA GPU is there'


def prepare(device, compiled=False):
    """Set this process up to work fast on a CPU; elsewhere nothing happens. Returns who makes its float32 products;
    those of a compiled model are torch's own."""
    if device.split(':')[0] != 'cpu':
        return 'torch'
    keep_memory()
    return 'torch' if compiled else products.take_over(vendor())


def vendor():
    """Of the CPU, as it names itself; '' where that is not known."""
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.partition(':')[2].strip() for line in f if line.startswith('vendor_id'))
    except (OSError, StopIteration):
        return platform.processor()  # on Windows it ends with the vendor's name


def keep_memory():
    """Let this process keep the memory that tensors leave for the next ones (glibc; elsewhere nothing happens).

    By default glibc gives large pieces back to the system at once, which clears every page of them
    when it hands them out again.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # another C library
        return
    if mallopt(-3, 2**30) or mallopt(-3, 2**25):  # M_MMAP_THRESHOLD, of reused pieces; older ones allow 32 MB
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much may lie free
