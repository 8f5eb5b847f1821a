"""Train a GPT on token bins with a loss of your choice.

    python train.py config/train_tinystories_squentropy.py
    python train.py config/train_tinystories_squentropy.py --loss=mse --learning_rate=3e-4
    torchrun --standalone --nproc_per_node=2 train.py config/train_tinystories_squentropy.py
"""
from configurator import configure, fail, fail_on, flag_names

# output ----------------------------------------------------------------------
out_dir = 'out/{loss}'      # checkpoints and metrics.jsonl; {loss} stands for the name of the loss
init_from = 'scratch'       # scratch | resume | auto (resume if possible) | a checkpoint file or Hugging Face directory
eval_interval = 250         # iterations between evaluations; each saves ckpt.pt, the best one also best.pt
eval_iters = 20             # batches of val.bin per evaluation, the same ones every time
eval_windows = 0            # instead: windows of val.bin per evaluation; 0 = eval_iters * batch_size
eval_only = False           # evaluate once and exit, writing nothing
keep_checkpoints = 0        # keep the last N checkpoints as ckpt-<iteration>.pt beside ckpt.pt
log_interval = 10           # iterations between log lines
sample_tokens = 60          # tokens of generated text to print at each evaluation; 0 = none
wandb_log = False           # log to Weights & Biases too (WANDB_MODE=offline needs no account)
wandb_project = 'tinystories' # project name in W&B
wandb_run_name = ''         # run name in W&B; '' = the name of out_dir
# data ------------------------------------------------------------------------
dataset = 'tinystories/bpe' # a name under data/, or any directory with train.bin and val.bin
batch_size = 8              # sequences per micro-batch, shared among torchrun's processes
gradient_accumulation_steps = 1 # micro-batches per iteration
block_size = 256            # tokens per sequence, the context length
train_tokens = 0            # use only the first N tokens of train.bin; 0 = all
context_warmup = 0.0        # fraction of lr_decay_iters with twice as many sequences of half the length
random_windows = False      # True: random positions, as in nanoGPT; False: each token once per epoch
vocab_size = 0              # size for data without a tokenizer (nanoGPT's with a meta.pkl); 0 = read from the data
seed = 1337                 # random seed for initialization, data order, dropout and samples
# model -----------------------------------------------------------------------
n_layer = 4                 # transformer blocks
n_head = 4                  # attention heads per block
n_embd = 128                # width
dropout = 0.0               # on embeddings, attention and the outputs of both halves of a block
bias = False                # in linear layers and layer norms
activation = 'gelu'         # gelu (exact) | gelu_tanh (the approximation in OpenAI's GPT-2)
# loss ------------------------------------------------------------------------
loss = 'cross_entropy'      # a name in losses.py: cross_entropy, mse, squentropy, cross_entropy_plus_{mse,square}
squentropy_weight = 1.0     # alpha, weight of the mean square of the wrong logits; 1 = as published
squentropy_target = 0.0     # target of the wrong logits; 0 = as published
squentropy_centred = False  # subtract the mean logit before squaring
squentropy_schedule = 'constant' # constant | linear, cosine, step (alpha decreases to 0) | rise (from 0)
squentropy_start = 0.0      # fraction of max_iters at which the schedule starts; alpha is 0 before
squentropy_end = 1.0        # fraction of max_iters at which the schedule ends
mse_true_weight = 1.0       # k, weight of the square of the true class; 1 = plain square loss
mse_target = 1.0            # M, target of the true logit
mse_end = 0.0               # fraction of max_iters at which cross-entropy takes over; 0 = never
label_smoothing = 0.0       # with cross_entropy: probability spread over all classes in the target
z_loss = 0.0                # with cross_entropy: weight of log^2 Z, the squared log partition function
# optimizer: linear warmup, then decay ----------------------------------------
optimizer = 'adamw'         # adamw | muon (for the matrices of the blocks; AdamW for the rest)
learning_rate = 4e-3        # peak learning rate, after warmup
muon_learning_rate = 0.0    # for Muon's matrices; 0 = learning_rate (updates are scaled to the size of AdamW's)
muon_beta2 = 0.0            # decay rate of NorMuon's per-row second moment; 0 = plain Muon
max_iters = 2000            # iterations in total
weight_decay = 0.1          # on matrices and embeddings
beta1 = 0.9                 # decay rate of AdamW's first moment
beta2 = 0.99                # decay rate of AdamW's second moment
grad_clip = 1.0             # maximum norm of the gradient; 0 = no clipping
decay_lr = True             # False: constant learning rate after warmup
warmup_iters = 100          # iterations of linear warmup
lr_schedule = 'cosine'      # shape of the decay: cosine | linear
lr_decay_iters = 0          # iteration at which the decay ends; 0 = max_iters
min_lr = 0.0                # learning rate at the end of the decay
patience = 0                # stop after N evaluations without improvement; 0 = never
min_delta = 0.0             # smallest improvement, in nats, that resets patience
# system ----------------------------------------------------------------------
device = 'auto'             # auto | cpu | cuda | cuda:1 | mps
dtype = 'auto'              # auto | float32 | bfloat16 | float16
matmul = 'auto'             # on a CPU, library for float32 matmul: auto (the faster one) | torch | onednn
compile = 'auto'            # auto (on CUDA) | True | False: torch.compile, which takes a minute to start
check_device = True         # before training on a GPU, compare a small model's gradients with those of the CPU
config = configure(globals(), rules=[
    ("out_dir != ''", 'pass a directory name'),
    'eval_interval >= 1', 'eval_iters >= 1', 'eval_windows >= 0', 'keep_checkpoints >= 0', 'log_interval >= 1',
    'sample_tokens >= 0',
    'batch_size >= 1', 'gradient_accumulation_steps >= 1', 'block_size >= 1', 'train_tokens >= 0',
    '0 <= context_warmup <= 1', ('context_warmup == 0 or block_size % 2 == 0', 'pass an even --block_size'),
    '0 <= vocab_size <= 65536', '0 <= seed < 2**32',
    '1 <= n_layer <= 10_000', 'n_embd >= n_head >= 1', 'n_embd % n_head == 0', '0 <= dropout < 1',
    "activation in ('gelu', 'gelu_tanh')",
    'squentropy_weight >= 0', "squentropy_schedule in ('constant', 'linear', 'cosine', 'step', 'rise')",
    '0 <= squentropy_start < squentropy_end <= 1',
    ("squentropy_end == 1 or squentropy_schedule != 'constant'", 'add --squentropy_schedule=linear'),
    'mse_true_weight > 0', 'mse_target > 0', '0 <= mse_end < 1', '0 <= label_smoothing < 1', 'z_loss >= 0',
    "optimizer in ('adamw', 'muon')", 'learning_rate > 0', 'muon_learning_rate >= 0', '0 <= muon_beta2 < 1',
    'max_iters >= 0', 'weight_decay >= 0', '0 <= beta1 < 1', '0 <= beta2 < 1', 'grad_clip >= 0', 'warmup_iters >= 0',
    "lr_schedule in ('cosine', 'linear')", 'lr_decay_iters >= 0', '0 <= min_lr <= learning_rate',
    'patience >= 0', 'min_delta >= 0',
    "device == 'auto' or device.split(':')[0] in ('cpu', 'cuda', 'mps')",
    "dtype in ('auto', 'float32', 'bfloat16', 'float16')", "matmul in ('auto', 'torch', 'onednn')",
    "compile in ('auto', 'True', 'False')",
], applies=[  # elsewhere, config files may set these without effect; flags may not
    ("loss in ('squentropy', 'cross_entropy_plus_square')", 'squentropy_weight'),
    ("loss == 'squentropy'", 'squentropy_target', 'squentropy_centred', 'squentropy_schedule', 'squentropy_start',
     'squentropy_end'),
    ("loss == 'mse'", 'mse_true_weight', 'mse_target', 'mse_end'),
    ("loss == 'cross_entropy'", 'label_smoothing', 'z_loss'),
    ("optimizer == 'muon'", 'muon_learning_rate', 'muon_beta2'),
    ("device in ('auto', 'cpu') and compile != 'True'", 'matmul'),
])

# imports: only now, so that --help and mistakes in settings need not wait for torch
import math
import os
import sys

from nanoloss import signals
signals.install_excepthook('lower --batch_size and raise --gradient_accumulation_steps, or use a smaller model')
import numpy as np
import torch
from tqdm import tqdm

from losses import check_loss, loss_settings, make_loss, mean_loss, reported_scale
from model import GPT, GPTConfig
from nanoloss import dataloader, distributed, engine, link, optim, rng, statistics
from nanoloss.checkpoint import all_finite, describe_model, init_model, load_checkpoint, restore_optimizer
from nanoloss.device import (
    choose_compile, choose_device, compare_with_cpu, describe_environment, environment_changes, prepare_cpu)
from nanoloss.run_dir import RunDir
from nanoloss.train_state import Timer, TrainState

log_line = signals.log_line if distributed.is_master else lambda text: None
out_dir = out_dir.replace('{loss}', loss)

# device and data -------------------------------------------------------------
with fail_on(OSError, ValueError):
    make_loss(loss, 10)  # an unknown loss is reported before missing data
    local_batch_size, micro_steps = distributed.split_batch(batch_size, gradient_accumulation_steps)
    device, dtype, autocast, device_reason = choose_device(device, dtype, distributed.local_rank)
    use_compile, compile_reason = choose_compile(compile, device)
    data = dataloader.open_dataset(dataset, block_size, vocab_size, train_tokens)
    tokenizer = data.tokenizer
    custom_loss = check_loss(loss, tokenizer.vocab_size)
    if sample_tokens:
        tokenizer.encode('')  # GPT-2's encoding may need a download
tokens_per_iter = gradient_accumulation_steps * batch_size * block_size
val_starts = dataloader.val_windows(len(data.val), block_size, eval_windows or eval_iters * batch_size)
val_batches = [val_starts[i:i + local_batch_size] for i in range(0, len(val_starts), local_batch_size)]
distributed.init(device)

# model, optimizer and state --------------------------------------------------
run_dir, state, checkpoint, changes = None, TrainState(), {}, []
if init_from == 'auto':  # rank 0 decides for all
    found = distributed.all_reduce_max(distributed.is_master and os.path.exists(f'{out_dir}/ckpt.pt'))[0]
    init_from = 'resume' if found else 'scratch'
with fail_on(OSError, ValueError):
    if init_from == 'scratch':
        torch.manual_seed(rng.torch_seed(rng.INIT, seed))
        raw_model = GPT(GPTConfig(block_size=block_size, vocab_size=tokenizer.vocab_size, n_layer=n_layer,
                                  n_head=n_head, n_embd=n_embd, dropout=dropout, bias=bias, activation=activation))
    else:
        path = f'{out_dir}/ckpt.pt' if init_from == 'resume' else init_from
        if init_from == 'resume' and os.path.exists(path) and distributed.is_master and not eval_only:
            run_dir = RunDir(out_dir)  # locks it, so that nobody replaces the checkpoint while it is read
        checkpoint = load_checkpoint(path)
        raw_model, changes = init_model(checkpoint, init_from == 'resume', config, flag_names(), data)
    saved_environment = checkpoint['environment'] if init_from == 'resume' else {}
    library = prepare_cpu(device, raw_model, local_batch_size * block_size, 'torch' if use_compile else matmul,
                          saved_environment)
    environment = describe_environment(device, dtype, use_compile, library, distributed.world_size, custom_loss)
    if changes := changes + environment_changes(saved_environment, environment):
        log_line(f"changed since this run was saved: {', '.join(changes)}")
    raw_model.to(device)
    if check_device and device != 'cpu':
        compare_with_cpu(device, dtype, autocast, raw_model.config, lambda C: make_loss(loss, C, **config))
    model = torch.compile(raw_model, dynamic=False) if use_compile else raw_model
    opt = optim.make_optimizer(raw_model, optimizer, learning_rate, muon_learning_rate, weight_decay, (beta1, beta2),
                               muon_beta2)
    scaler = torch.amp.GradScaler(device.split(':')[0], enabled=dtype == 'float16')
    if init_from == 'resume':
        state = TrainState(**restore_optimizer(checkpoint, opt, scaler))
    checkpoint.clear()  # frees its memory
decay_end = (lr_decay_iters or max_iters) if decay_lr else math.inf
C = raw_model.config.vocab_size  # more than the tokenizer's if nanoGPT's padded checkpoint is resumed


# helpers ---------------------------------------------------------------------
def loss_at(iter_num):
    """The loss of an iteration; schedules change its coefficients."""
    return make_loss(loss, C, progress=max(0, iter_num) / max(1, max_iters), **config)


def get_batch(iter_num, micro_step):
    """This rank's share of a micro-batch; the windows are numbered over all iterations, steps and ranks."""
    step = iter_num * micro_steps + micro_step  # may be the first one of the next iteration
    number = step * distributed.world_size + distributed.rank
    starts = dataloader.train_windows(len(data.train), block_size, seed, number * local_batch_size, local_batch_size,
                                      random_windows)
    x, y = dataloader.load_windows(data.train, starts, block_size, device)
    if step // micro_steps < context_warmup * (lr_decay_iters or max_iters):
        return x.reshape(-1, block_size // 2), y.reshape(-1, block_size // 2)
    return x, y


@torch.no_grad()
def estimate_loss(loss_fn):
    """Return means over the fixed windows of val.bin: (training objective, nats per token through the link)."""
    dataloader.check_unchanged(data.train, data.val)
    model.eval()
    sums = torch.zeros(len(val_batches), 2, dtype=torch.float64)  # one row per batch, whichever rank computes it
    for i in range(distributed.rank, len(val_batches), distributed.world_size):
        starts = np.resize(val_batches[i], local_batch_size)  # fills the last batch, so that only one shape is compiled
        x, y = dataloader.load_windows(data.val, starts, block_size, device)
        with autocast:
            hidden = model(x)
        n = len(val_batches[i])
        scores = link.score_batch(loss_fn, hidden[:n], raw_model.lm_head.weight, y[:n], C)
        sums[i] = torch.stack(scores).cpu().double().sum(1)
    model.train()
    objective, nats = (distributed.all_reduce_sum(sums).sum(0) / (len(val_starts) * block_size)).tolist()
    return objective * reported_scale(loss_fn, C), nats


def save_checkpoint(loss_fn, is_best=False):
    """Write ckpt.pt; for the best evaluation so far also best.pt, which has no optimizer."""
    contents = {**describe_model(raw_model, tokenizer, loss, loss_fn), **state.to_dict(), 'config': config,
                'data': data.info, 'environment': environment}
    if is_best:
        run_dir.save('best.pt', contents)
    contents |= {'optimizer': opt.state_dict(), 'scaler': scaler.state_dict()}
    run_dir.save('ckpt.pt', contents, keep_checkpoints)


# header ----------------------------------------------------------------------
loss_fn = loss_at(state.iter_num - 1)  # an evaluation uses the loss that was trained last
log_line(f'data: {data.folder}, {len(data.train):,} training tokens from {data.info["source"]}')
log_line(f'model: {raw_model.config}, {raw_model.num_params():,} parameters, init from {init_from}')
constants = ', '.join(f'{name}={config[name]}' for name in loss_settings(loss))
log_line(f"loss: {loss} ({constants or ('custom' if custom_loss else 'no settings')})")
epochs = max_iters * tokens_per_iter / len(data.train)
log_line(f'run: {max_iters:,} iterations x {tokens_per_iter:,} tokens = {epochs:.2f} epochs, starting at iteration '
         f'{state.iter_num:,}, output in {out_dir}')
log_line(f"device: {device_reason}, {torch.get_num_threads()} threads, {distributed.world_size} processes, matmul by "
         f"{library}, {'compiled' if use_compile else 'not compiled'} ({compile_reason})")
if eval_only:
    objective, nats = estimate_loss(loss_fn)
    log_line(f'iter {state.iter_num}: val loss {objective:.4f}, {nats:.4f} nats per token, '
             f'perplexity {statistics.perplexity(nats):.3f}')
    distributed.shutdown()
    sys.exit(0 if math.isfinite(objective + nats) else 1)

# output directory and signals ------------------------------------------------
distributed.all_reduce_max(0)  # rank 0 may move the checkpoint that others still read
if distributed.is_master:
    run_dir = run_dir or RunDir(out_dir)
    if wandb_log:
        state.wandb_run_id = run_dir.start_wandb(wandb_project, wandb_run_name, state.wandb_run_id,
                                                 {**config, **vars(raw_model.config), 'data': data.info})
    run_dir.start_metrics(init_from == 'resume', state, tokens_per_iter)
signals.install_handlers()

# training loop ---------------------------------------------------------------
train_model = distributed.wrap_model(model)
timer = Timer(state, device)
progress_bar = tqdm(total=max_iters, initial=state.iter_num, disable=None if run_dir else True, leave=False)
failure = ''
x, y = get_batch(state.iter_num, 0)
while True:
    # 1. learning rate
    lr = optim.learning_rate_at(state.iter_num, learning_rate, min_lr, warmup_iters, decay_end, lr_schedule)
    for group in opt.param_groups:
        group['lr'] = lr * group['lr_scale']

    # 2. evaluate, log, save
    if (state.iter_num % eval_interval == 0 or state.iter_num >= max_iters) and state.iter_num != state.last_eval:
        with timer.pause():
            objective, nats = estimate_loss(loss_fn)
            if not (math.isfinite(objective + nats) and all_finite(raw_model, opt)):
                failure = f'at iteration {state.iter_num} the validation loss ({objective}) or a weight is not finite'
                break
            is_best = state.record_eval(nats, min_delta)
            if run_dir:
                run_dir.log(state, val_loss=objective, val_nats=nats, val_perplexity=statistics.perplexity(nats),
                            best_val_loss=state.best_val_loss)
                save_checkpoint(loss_fn, is_best)
            log_line(f'iter {state.iter_num}: val loss {objective:.4f}, {nats:.4f} nats per token, '
                     f"perplexity {statistics.perplexity(nats):.3f}{', best so far' if is_best else ''}")
            if sample_tokens and run_dir:
                with autocast:
                    log_line('    ' + engine.generate_text(raw_model, tokenizer, loss_fn, sample_tokens, seed))

    # 3. stop?
    stop_signal, save_requested = distributed.all_reduce_max(signals.stop_signal, signals.save_requested)
    if state.iter_num >= max_iters:
        break
    if patience and state.evals_since_best >= patience:
        log_line(f'early stop: {patience} evaluations without improvement')
        break
    if (stop_signal or save_requested) and not all_finite(raw_model, opt):
        failure = f'at iteration {state.iter_num} a weight or the optimizer state is not finite'
        break
    if (stop_signal or save_requested) and state.last_eval != state.iter_num:
        timer.update()
        if run_dir:
            save_checkpoint(loss_fn)
    if stop_signal:
        break
    if save_requested:
        signals.save_requested = False
        log_line(f'saved at iteration {state.iter_num} on SIGUSR1')

    # 4. forward and backward; the next batch is loaded while a GPU computes
    loss_fn = loss_at(state.iter_num)
    loss_sum = torch.zeros((), device=device)
    for micro_step in range(micro_steps):
        train_model.require_backward_grad_sync = micro_step == micro_steps - 1  # all-reduce once per iteration
        if dropout:
            number = micro_step * distributed.world_size + distributed.rank
            torch.manual_seed(rng.torch_seed(rng.DROPOUT, seed, state.iter_num, number))
        with autocast:
            micro_loss = mean_loss(loss_fn, train_model(x), raw_model.lm_head.weight, y, C, use_compile) / micro_steps
        loss_sum += micro_loss.detach()
        x, y = get_batch(state.iter_num, micro_step + 1)
        scaler.scale(micro_loss).backward()

    # 5. clip and step
    if grad_clip:
        scaler.unscale_(opt)
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip)
    scaler.step(opt)
    scaler.update()
    opt.zero_grad(set_to_none=True)
    state.iter_num += 1
    progress_bar.update()

    # 6. log
    if state.iter_num % log_interval == 0 or state.iter_num in (1, max_iters):
        mean = distributed.all_reduce_sum(loss_sum.cpu()).item() / distributed.world_size * reported_scale(loss_fn, C)
        if not math.isfinite(mean):
            failure = f'at iteration {state.iter_num} the loss is {mean}'
            break
        seconds = timer.lap()
        log_line(f'iter {state.iter_num}: loss {mean:.4f}, time {1000 * seconds:.2f}ms, lr {lr:.2e}, '
                 f'{tokens_per_iter / seconds:,.0f} tok/s, {timer.time_left(max_iters, eval_interval)} left')
        if run_dir:
            run_dir.log(state, loss=mean, lr=lr, tokens_per_second=tokens_per_iter / seconds)

# exit ------------------------------------------------------------------------
progress_bar.close()
if run_dir:
    run_dir.finish(failed=bool(failure))
del train_model  # DDP's buffers must be freed before the process group
distributed.shutdown()
if failure:
    saved = f'the last good checkpoint is in {out_dir}' if state.last_eval >= 0 else 'no checkpoint was saved'
    clip = f'or --grad_clip={grad_clip:g}' if grad_clip else 'or pass --grad_clip=1'
    fail(f'{failure}; {saved}; lower --learning_rate={learning_rate:g}, {clip}', status=3)
if stop_signal and state.iter_num < max_iters:
    log_line(f'stopped and saved at iteration {state.iter_num}; --init_from=resume continues')
    sys.exit(128 + stop_signal)
log_line(f'done: at best {state.best_val_loss:.4f} validation nats per token, {state.iter_num * tokens_per_iter:,} '
         f'tokens, {tqdm.format_interval(state.train_seconds)} of training')
log_line(f'read a story: python sample.py --out_dir={out_dir}')
