"""The processes of a run: those that torchrun starts, each with a share of every batch; without torchrun, one.

    torchrun --standalone --nproc_per_node=2 train.py config/train_tinystories_squentropy.py

Each collective call below must be made by all processes; with one process they cost nothing.
"""
import gc
import math
import os
import socket

import torch
import torch.distributed as dist

rank = int(os.environ.get('RANK', 0))              # number of this process
world = int(os.environ.get('WORLD_SIZE', 1))       # how many there are
local_rank = int(os.environ.get('LOCAL_RANK', 0))  # number of this process on its machine
first = rank == 0                                  # the one that writes and speaks
launched = 'TORCHELASTIC_RUN_ID' in os.environ     # by torchrun, perhaps as one process
launches = []                                      # the torchruns of all machines, which outlive their processes


def start(device):
    """Meet the other processes; device: name of the one that this process computes on."""
    if launched:
        on_gpu = device.startswith('cuda')
        if on_gpu:
            torch.cuda.set_device(device)
        # sums of figures and flags go through gloo on the CPU, so that no GPU waits for them
        backend, env, store = 'cpu:gloo,cuda:nccl' if on_gpu else 'gloo', os.environ, None
        if env.get('TORCHELASTIC_USE_AGENT_STORE') == 'True' and env['GROUP_WORLD_SIZE'] == '1':
            # torchrun's store outlives its restarts: without a fresh corner of it one may look for the dead
            # (github.com/pytorch/pytorch/issues/135712). Several machines don't agree on the count.
            store = dist.TCPStore(env['MASTER_ADDR'], int(env['MASTER_PORT']), is_master=False)
            store = dist.PrefixStore(f"start {env['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        names = [''] * world
        dist.all_gather_object(names, torchrun())
        launches.extend(sorted(set(names)))


def torchrun():
    """The torchrun that started this process; '' for none."""
    return f'{socket.gethostname()} {os.getppid()}' if launched else ''


def share(batch_size, gradient_accumulation_steps):
    """(batch_size, gradient_accumulation_steps) of one process, so that all together make the batch asked for.

    As far as they go, whole micro-batches are shared out: then dropout does not depend on the
    number of processes. Raises ValueError where that number does not divide the batch.
    """
    steps = math.gcd(gradient_accumulation_steps, world)
    if batch_size % (world // steps):
        raise ValueError(f'{world} processes cannot share batches of --batch_size={batch_size} x '
                         f'--gradient_accumulation_steps={gradient_accumulation_steps}; make one of them a multiple of '
                         f'{world}, or start another number of processes')
    return batch_size // (world // steps), gradient_accumulation_steps // steps


def wrap(model):
    """The model as all processes train it together: their gradients meet in its backward pass."""
    if not launched:
        return model
    device = next(model.parameters()).device
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == 'cuda' else None,
                                                     gradient_as_bucket_view=True)  # one copy less


def total(x):
    """The sum over all processes of a tensor on the CPU, the same bits in each. Raises RuntimeError if one has gone."""
    if world > 1:
        dist.all_reduce(x)
    return x


def agree(*flags):
    """The largest of each of these numbers over all processes, a list."""
    if world == 1:
        return list(flags)
    flags = torch.tensor(flags, dtype=torch.int64)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return flags.tolist()


def part():
    """Wait until all are here, and part: none is still at work when another one leaves."""
    if launched:
        agree(0)
        gc.collect()
        dist.destroy_process_group()
        gc.collect()  # gloo's threads must not outlive the interpreter: it would abort the process at its very end
