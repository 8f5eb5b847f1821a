"""Which device and which floating-point type to use, chosen by what the machine has."""
from contextlib import nullcontext

import torch


def choose(device='auto', dtype='auto'):
    """(device, dtype, autocast, reason): names, a context for the forward pass, why this device.

    Raises ValueError where the device that is asked for is not there.
    """
    reason = 'asked for'
    if device == 'auto':
        device, reason = ('cuda', 'a CUDA GPU is there') if torch.cuda.is_available() else \
            ('mps', 'an Apple GPU is there') if torch.backends.mps.is_available() else ('cpu', 'no GPU is there')
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f'--device={device} cannot be used here ({str(e).splitlines()[0]}); '
                         '--device=auto takes what there is') from None
    kind = device.split(':')[0]
    if dtype == 'auto':
        dtype = 'float32' if kind != 'cuda' else 'bfloat16' if torch.cuda.is_bf16_supported() else 'float16'
    # float32 stays float32: TF32 is not turned on, since the square terms would lose their digits in it
    autocast = nullcontext() if dtype == 'float32' else torch.autocast(kind, getattr(torch, dtype))
    return device, dtype, autocast, reason
