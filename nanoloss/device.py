"""Device, dtype and torch.compile: choose what the hardware supports, and prepare the CPU."""
import ctypes
import dataclasses
import os
import platform
import subprocess
from contextlib import nullcontext

import torch

from losses import mean_loss
from model import GPT, GPTConfig
from nanoloss import distributed, matmul


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


def describe_environment(device, dtype, compiled, matmul_library, world_size, custom_loss=''):
    """Return a dict of what a run depends on besides its settings and data. It is stored in the checkpoints.

    custom_loss: result of losses.check_loss.
    """
    return {'processor': processor_name(device), 'torch': str(torch.__version__), 'device': device.split(':')[0],
            'dtype': dtype, 'threads': torch.get_num_threads(), 'compiled': compiled, 'matmul': matmul_library,
            'world_size': world_size, 'custom loss': custom_loss}


def environment_changes(saved, environment):
    """Return a list of 'name old -> new' for every entry that differs from the saved environment."""
    return [f'{name} {old} -> {environment[name]}' + (' (results may differ in the last bits)' if name != 'custom loss'
                                                     else '')
            for name, old in saved.items() if name in environment and environment[name] != old]


def choose_device(device='auto', dtype='auto', local_rank=None):
    """Resolve 'auto' and check that the device works.

    Args:
        device: 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.
        dtype: 'auto', 'float32', 'bfloat16' or 'float16'.
        local_rank: rank of this process on its node under torchrun; each rank uses its own GPU.
    Returns:
        (device, dtype, autocast, reason): two names, the context manager of the forward pass, and why
        these were chosen.
    Raises ValueError if the requested device is not available, or if 'auto' finds a GPU that PyTorch cannot use.
    """
    device_reason = dtype_reason = 'requested'
    if device == 'auto':
        if torch.cuda.is_available():
            device, device_reason = 'cuda', 'a CUDA GPU is available'
        elif torch.backends.mps.is_available():
            device, device_reason = 'mps', 'an Apple GPU is available'
        elif problem := cuda_problem():
            raise ValueError(f'this machine has an NVIDIA GPU that PyTorch {torch.__version__} cannot use ({problem}); '
                             'update the driver or install another PyTorch build, or pass --device=cpu')
        else:
            device, device_reason = 'cpu', 'no GPU is available'
    if local_rank and ':' in device:
        raise ValueError(f'--device={device} is one GPU for several processes; --device=cuda gives each its own')
    if device == 'cuda' and local_rank is not None:
        device = f'cuda:{local_rank}'
    try:
        if device.startswith('cuda:') and torch.cuda.is_available():  # otherwise some calls use GPU 0
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as e:
        raise ValueError(f'--device={device} is not available ({first_sentence(e)}); use --device=auto') from None
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


def cuda_problem():
    """Return why PyTorch cannot use the NVIDIA GPU of this machine, in one line; '' if it has none or hides it."""
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1') or not lists_nvidia_gpu():
        return ''
    if not torch.backends.cuda.is_built():
        return 'this build has no CUDA support'
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as e:
        return first_sentence(e)
    return ''


def lists_nvidia_gpu():
    """Whether NVIDIA's driver lists a GPU. Its tools can be installed on a machine without one."""
    try:
        return 'GPU' in subprocess.run(['nvidia-smi', '-L'], capture_output=True, encoding='utf-8',
                                       errors='replace', timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def first_sentence(error):
    return (str(error) or type(error).__name__).split('. ')[0].splitlines()[0][:150]


def choose_compile(compile, device):
    """Decide whether to use torch.compile, after compiling a trivial function: Triton needs a C compiler.

    compile: 'auto', 'True' or 'False'. Returns (decision, reason). Raises ValueError if 'True' does not work.
    """
    if compile == 'False':
        return False, 'requested'
    if compile == 'auto' and device.split(':')[0] != 'cuda':
        return False, 'it pays off on CUDA GPUs only'
    try:
        torch.compile(lambda x: (x * x).sum())(torch.ones(64, device=device)).item()
    except Exception as e:  # many exception types: no compiler, no Python headers, no Triton, an old GPU
        reason = f'it does not work here: {compile_error(e)}'
        if compile == 'auto':
            return False, reason
        raise ValueError(f'--compile=True: {reason}; use --compile=False') from None
    return True, 'requested' if compile == 'True' else 'it pays off on CUDA GPUs'


def compile_error(error):
    """Return the line of a torch.compile error that names the cause."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    return next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def compare_with_cpu(device, dtype, autocast, config, loss):
    """Compare a loss and its gradients on a device with those of the CPU in float32, for a small GPT.

    Some devices and drivers return wrong results without an error (PyTorch issue #109457 is one of Apple's). The check
    takes less than a second, so it cannot find those that appear with large inputs only.

    Args:
        device, dtype, autocast: what choose_device() returned.
        config: GPTConfig of the run; the check has two of its layers and 64 tokens.
        loss: function of C that returns the loss, see losses.make_loss().
    Raises ValueError if they differ by more than the dtype explains.
    """
    config = dataclasses.replace(config, n_layer=min(2, config.n_layer), block_size=min(32, config.block_size),
                                 dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    model = GPT(config)
    tokens = torch.randint(config.vocab_size, (2, 2, config.block_size), generator=generator)

    def loss_and_gradients(device, context):
        model.to(device).zero_grad()
        x, y = tokens.to(device)
        with context:
            mean = mean_loss(loss(config.vocab_size), model(x), model.lm_head.weight, y, config.vocab_size)
        mean.backward()
        return mean.item(), torch.cat([p.grad.flatten() for p in model.parameters()]).cpu()

    expected_loss, expected = loss_and_gradients('cpu', nullcontext())
    found_loss, found = loss_and_gradients(device, autocast)
    tolerance = {'float32': 1e-3, 'float16': 0.03, 'bfloat16': 0.1}[dtype]
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-6))
    if not (error < tolerance and abs(found_loss - expected_loss) <= tolerance * abs(expected_loss)):  # false for NaN
        raise ValueError(f'--device={device} computes wrongly in {dtype}: a loss of {found_loss:.6g} instead of '
                         f'{expected_loss:.6g}, and gradients with a relative error of {error:.2g}; update PyTorch and '
                         'the driver, use --device=cpu, or skip this check with --check_device=False')


def prepare_cpu(device, model, rows, library='auto', recorded=None):
    """Set up memory allocation and matrix multiplication for speed on a CPU; does nothing on other devices.

    Every rank must call this; rank 0 decides for all.

    Args:
        model: the GPT whose layers will use the library.
        rows: tokens per batch of this rank.
        library: of the float32 matrix products: 'torch', 'onednn', or 'auto' for the faster one.
        recorded: describe_environment() of an earlier run. On the same processor, 'auto' keeps its library.
    Returns 'torch' or 'onednn'. Raises ValueError if the requested library is not available.
    """
    if device.split(':')[0] != 'cpu':
        return 'torch'
    keep_freed_memory()
    check_library(library)
    if library == 'auto' and distributed.is_master:
        library = recorded_library(recorded) or matmul.faster_library(model.config, rows)
    use_onednn, missing = distributed.all_reduce_max(int(library == 'onednn'), int(not matmul.HAS_ONEDNN))
    library = 'onednn' if use_onednn and not missing else 'torch'
    matmul.use(library, model)
    return library


def check_library(library, hint='use --matmul=torch'):
    """Raise ValueError, with a hint at what to do, if the matmul library is not available."""
    if library == 'onednn' and not matmul.HAS_ONEDNN:
        raise ValueError(f'--matmul=onednn: this build of PyTorch has no oneDNN for this processor; {hint}')


def recorded_library(environment):
    """Return the library in describe_environment() of an earlier run if it can be used again, otherwise None."""
    if isinstance(environment, dict) and environment.get('processor') == processor_name('cpu') and \
            not environment.get('compiled'):
        return environment['matmul'] if environment.get('matmul') in ('torch', 'onednn') else None


def library_of_study(settings, vocab_size, recorded=None):
    """Return the --matmul of all runs of a study, which should not differ in their library. 'auto' if there is no CPU
    run to decide for.

    Args:
        settings: of train.py, for one of the runs.
        recorded: what was returned when the study started. None or 'auto': not chosen yet, for example if all runs so
            far used a GPU.
    Raises ValueError if a CPU run is to use a library that is not available.
    """
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = settings['device'] == 'cpu' or settings['device'] == 'auto' and not has_gpu
    if settings['compile'] == 'True' or not on_cpu:
        return settings['matmul']
    if settings['matmul'] != 'auto':
        check_library(settings['matmul'])
        return settings['matmul']
    if recorded in ('torch', 'onednn'):
        check_library(recorded, 'this study started with it, so continue it on a machine with oneDNN, or start another '
                                'study with --matmul=torch')
        return recorded
    shape = {name: settings[name] for name in ('block_size', 'n_layer', 'n_head', 'n_embd')}
    return matmul.faster_library(GPTConfig(vocab_size=vocab_size, **shape),
                                 settings['batch_size'] * settings['block_size'])


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
