"""The processes of a run: those that torchrun starts, each with a share of every batch; without torchrun, one.

    torchrun --standalone --nproc_per_node=2 train.py config/train_tinystories_squentropy.py

Each collective call below must be made by all processes; with one process they cost nothing.
"""
import gc
import math
import os
import socket
import uuid

import torch
import torch.distributed as dist

# by torchrun, perhaps as one process; what MPI or SLURM set is not taken for it
launched = {'TORCHELASTIC_RUN_ID', 'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'} <= os.environ.keys()
env = os.environ if launched else {}
rank = int(env.get('RANK', 0))              # number of this process
world = int(env.get('WORLD_SIZE', 1))       # how many there are
local_rank = int(env.get('LOCAL_RANK', 0))  # number of this process on its machine
first = rank == 0                           # the one that writes and speaks
launch = ''                                 # which torchrun it was; the same after its restarts


def start(device):
    """Meet the other processes; device: name of the one that this process computes on."""
    global launch
    if not launched:
        return
    backend, store = 'gloo', None
    if device.startswith('cuda'):
        torch.cuda.set_device(device)
        backend = 'cpu:gloo,cuda:nccl'  # sums of figures and flags go by the CPU, so that no GPU waits for them
    token = f"{env['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {os.getppid()}"
    if env.get('TORCHELASTIC_USE_AGENT_STORE') == 'True':  # a store that lives as long as torchrun
        store = dist.TCPStore(env['MASTER_ADDR'], int(env['MASTER_PORT']), is_master=False)
        token = store.compare_set('launch', '', str(uuid.uuid4())).decode()
        # After a restart one might find the dead in it, without a fresh corner for each start
        # (github.com/pytorch/pytorch/issues/135712). Several machines don't agree on the count.
        again = env['TORCHELASTIC_RESTART_COUNT'] if env.get('GROUP_WORLD_SIZE') == '1' else 'any'
        store = dist.PrefixStore(f'start {again}', store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    tokens = [token]
    dist.broadcast_object_list(tokens, src=0, device=torch.device('cpu'))
    launch = tokens[0]


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
