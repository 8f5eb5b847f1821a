"""Data-parallel training under torchrun; without torchrun, a single process.

    torchrun --standalone --nproc_per_node=2 train.py config/train_tinystories_squentropy.py

Every rank must make each collective call. With one process these calls do nothing.
"""
import gc
import math
import os

import torch
import torch.distributed as dist

# Only torchrun sets all of these; the RANK and WORLD_SIZE of MPI or SLURM alone are ignored.
launched = {'TORCHELASTIC_RUN_ID', 'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'} <= os.environ.keys()
env = os.environ if launched else {}
rank = int(env.get('RANK', 0))
world_size = int(env.get('WORLD_SIZE', 1))
local_rank = int(env.get('LOCAL_RANK', 0)) if launched else None  # rank within this node
is_master = rank == 0  # the only rank that writes files and prints


def init(device):
    """Initialize the process group. device: name of the device that this rank computes on."""
    if not launched:
        return
    backend, store = 'gloo', None
    if device.startswith('cuda'):
        torch.cuda.set_device(device)
        backend = 'cpu:gloo,cuda:nccl'  # metrics and flags are reduced on the CPU, so that no GPU waits for them
    if env.get('TORCHELASTIC_USE_AGENT_STORE') == 'True' and env.get('GROUP_WORLD_SIZE') == '1':
        # torchrun keeps one store across its restarts. Without a prefix per restart, the new processes read the
        # addresses of the dead ones and hang (github.com/pytorch/pytorch/issues/135712). With several nodes the
        # restart counts may differ between nodes, so they use the store as it is.
        store = dist.TCPStore(env['MASTER_ADDR'], int(env['MASTER_PORT']), is_master=False)
        store = dist.PrefixStore(f"restart {env['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def split_batch(batch_size, gradient_accumulation_steps):
    """Return (batch_size, gradient_accumulation_steps) of one rank; all ranks together process the global batch.

    Whole micro-batches are distributed first, because dropout then does not depend on the world size.
    Raises ValueError if the world size does not divide the global batch.
    """
    step_shards = math.gcd(gradient_accumulation_steps, world_size)
    batch_shards = world_size // step_shards  # number of ranks that share one micro-batch
    if batch_size % batch_shards:
        raise ValueError(f'{world_size} processes cannot split --batch_size={batch_size} x '
                         f'--gradient_accumulation_steps={gradient_accumulation_steps}; make one of them a multiple of '
                         f'{world_size}, or start another number of processes')
    return batch_size // batch_shards, gradient_accumulation_steps // step_shards


def wrap_model(model):
    """Wrap a model in DistributedDataParallel, which averages the gradients over all ranks in the backward pass."""
    if not launched:
        return model
    device = next(model.parameters()).device
    device_ids = [device] if device.type == 'cuda' else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


def all_reduce_sum(x):
    """Sum a tensor over all ranks, in place, and return it. Every rank gets the same bits.

    Raises RuntimeError if another rank has exited.
    """
    if world_size > 1:
        dist.all_reduce(x)
    return x


def all_reduce_max(*flags):
    """Return a list with the maximum of each of these integers over all ranks."""
    if world_size == 1:
        return list(flags)
    maximum = torch.tensor(flags, dtype=torch.int64)
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return maximum.tolist()


def shutdown():
    """Barrier, then destroy the process group, so that no rank exits while another one still communicates."""
    if launched:
        all_reduce_max(0)
        dist.destroy_process_group()
        gc.collect()  # without it, about one gloo process in twenty aborted at interpreter exit (PyTorch 2.13, DDP)
