"""Train a small GPT with a loss of your choice.

    python train.py config/train_tinystories_squentropy.py
    python train.py config/train_tinystories_squentropy.py --loss=mse --learning_rate=3e-4
    torchrun --standalone --nproc_per_node=2 train.py config/train_tinystories_squentropy.py
"""
from configurator import configure, fail

# The settings of the small model; config files and flags override them.
# -----------------------------------------------------------------------------
# input and output
out_dir = 'out/{loss}'      # checkpoints and metrics.jsonl; {loss} stands for the loss's name
init_from = 'scratch'       # scratch | resume (from out_dir) | weights: a checkpoint file, ours or nanoGPT's; a
                            # folder of Hugging Face's; gpt2, gpt2-medium, gpt2-large or gpt2-xl
eval_interval = 250         # iterations between evaluations; each saves ckpt.pt, the best one best.pt
eval_iters = 20             # batches of val.bin in an evaluation, always the same ones
eval_only = False           # evaluate once and stop; writes nothing
keep_checkpoints = 0        # the last so many states are kept as ckpt-<iteration>.pt beside ckpt.pt
log_interval = 10           # iterations between log lines
sample_tokens = 60          # tokens of the model's own text shown at each evaluation; 0 = none
wandb_log = False           # log to Weights & Biases too (WANDB_MODE=offline needs no account)
wandb_project = 'tinystories' # where W&B files the run
wandb_run_name = ''         # '' = the name of out_dir
# -----------------------------------------------------------------------------
# data
dataset = 'tinystories/bpe' # a name under data/, or any folder with train.bin and val.bin
batch_size = 8              # windows in a micro-batch (torchrun's processes share an iteration's windows)
gradient_accumulation_steps = 1 # micro-batches in an iteration
block_size = 256            # tokens in a window, the longest context
train_tokens = 0            # the first so many tokens of train.bin are all there is; 0 = all of it
vocab_size = 0              # of bins without a tokenizer (nanoGPT's with a meta.pkl); 0 = as the data says
seed = 1337                 # of initialisation, data order, dropout and samples
# -----------------------------------------------------------------------------
# model
n_layer = 4                 # transformer blocks
n_head = 4                  # attention heads a block
n_embd = 128                # width
dropout = 0.0               # of embeddings, attention, and each block's two outputs
bias = False                # in linear layers and layer norms
activation = 'gelu'         # gelu (exact) | gelu_tanh (OpenAI's)
# -----------------------------------------------------------------------------
# loss
loss = 'cross_entropy'      # cross_entropy | mse | squentropy | cross_entropy_plus_mse | cross_entropy_plus_square |
                            # your own in losses.py
squentropy_weight = 1.0     # alpha, of the mean square of the wrong classes' logits; 1 = as published
squentropy_target = 0.0     # what the wrong classes' logits are drawn to; 0 = as published
squentropy_centred = False  # True: the square sees the logits less their mean
squentropy_schedule = 'constant' # of alpha: constant | linear | cosine | step, down to 0
squentropy_end = 1.0        # the share of max_iters at which the schedule comes to 0
mse_true_weight = 1.0       # k, weight of the true class's square; 1 = the plain square loss
mse_target = 1.0            # M, what the true class's logit is drawn to
mse_end = 0.0               # the share of max_iters at which cross-entropy takes over; 0 = never
label_smoothing = 0.0       # of cross-entropy: the share of the target that all classes get alike
z_loss = 0.0                # of cross-entropy: weight of log^2 of softmax's denominator
# -----------------------------------------------------------------------------
# optimizer, with linear warm-up and cosine decay
optimizer = 'adamw'         # adamw | muon (for the matrices of the blocks, with AdamW for the rest)
learning_rate = 4e-3        # at its peak
muon_learning_rate = 0.0    # of muon's matrices; 0 = learning_rate, of which muon makes steps as large as AdamW's
max_iters = 2000            # iterations in all
weight_decay = 0.1          # of matrices and embeddings
beta1 = 0.9                 # AdamW's decay of the mean gradient
beta2 = 0.99                # and of the mean squared gradient
grad_clip = 1.0             # largest norm of the whole gradient; 0 = no limit
decay_lr = True             # False: constant after warm-up
warmup_iters = 100          # iterations of linear warm-up
lr_decay_iters = 0          # where the cosine ends; 0 = max_iters
min_lr = 0.0                # learning rate from there on (of muon's matrices in proportion)
patience = 0                # stop after so many evaluations without improvement; 0 = never
min_delta = 0.0             # nats that count as an improvement for patience
# -----------------------------------------------------------------------------
# machine
device = 'auto'             # auto | cpu | cuda | cuda:1 | mps
dtype = 'auto'              # auto | float32 | bfloat16 | float16
compile = 'auto'            # auto | True | False: torch.compile, which takes a minute and pays on CUDA
# -----------------------------------------------------------------------------
config = configure(globals(), rules=[
    ("out_dir != ''", 'choose another'),
    'eval_interval >= 1', 'eval_iters >= 1', 'log_interval >= 1', 'keep_checkpoints >= 0', 'sample_tokens >= 0',
    'batch_size >= 1', 'gradient_accumulation_steps >= 1', 'block_size >= 1', 'train_tokens >= 0',
    '0 <= vocab_size <= 65536', '0 <= seed < 2**32', '1 <= n_layer <= 10_000', 'n_head >= 1', 'n_embd >= 1',
    'n_embd % n_head == 0', '0 <= dropout < 1', "activation in ('gelu', 'gelu_tanh')",
    'squentropy_weight >= 0', "squentropy_schedule in ('constant', 'linear', 'cosine', 'step')",
    '0 < squentropy_end <= 1', 'mse_true_weight > 0', 'mse_target > 0', '0 <= mse_end < 1', '0 <= label_smoothing < 1',
    'z_loss >= 0',
    ("loss == 'cross_entropy' or not label_smoothing and not z_loss", 'these two are of --loss=cross_entropy'),
    ("loss == 'squentropy' or squentropy_schedule == 'constant' and not squentropy_centred",
     'these two are of --loss=squentropy'),
    ("squentropy_end == 1 or squentropy_schedule in ('linear', 'cosine', 'step')", 'add --squentropy_schedule=linear'),
    ("loss == 'mse' or not mse_end", 'it is of --loss=mse'),
    "optimizer in ('adamw', 'muon')", 'learning_rate > 0', 'muon_learning_rate >= 0',
    ("optimizer == 'muon' or not muon_learning_rate", 'add --optimizer=muon'),
    'max_iters >= 0', 'weight_decay >= 0', '0 <= beta1 < 1', '0 <= beta2 < 1', 'grad_clip >= 0',
    'warmup_iters >= 0', 'lr_decay_iters >= 0', '0 <= min_lr <= learning_rate', 'patience >= 0', 'min_delta >= 0',
    "dtype in ('auto', 'float32', 'bfloat16', 'float16')", "compile in ('auto', 'True', 'False')",
    "device == 'auto' or device.split(':')[0] in ('cpu', 'cuda', 'mps')",
])
# -----------------------------------------------------------------------------
# setup (torch comes only now, so that --help and mistakes answer at once)
import math
import os
import sys
import time

import interrupts

interrupts.quiet('lower --batch_size and raise --gradient_accumulation_steps, or make the model smaller')

import torch
from tqdm import tqdm

import bins
import checkpoint
import losses
import machine
import optimizers
import processes
import rng
import rundir
import sampling
from model import GPT, GPTConfig
from tokenizer import Tokenizer

out_dir = out_dir.replace('{loss}', loss)
say = interrupts.say if processes.first else lambda text: None

# machine, data, tokenizer, loss
try:
    own_batch, micro_steps = processes.share(batch_size, gradient_accumulation_steps)  # of this process
    device, dtype, autocast, why = machine.choose(device, dtype, processes.local_rank if processes.launched else None)
    compiled, why_compiled = machine.choose_compile(compile, device)
    folder = bins.find(dataset)
    meta = bins.read_meta(folder, vocab_size)
    train_data = bins.open_bin(folder, 'train', meta, block_size, train_tokens)
    val_data = bins.open_bin(folder, 'val', meta, block_size)
    tokenizer = Tokenizer.of_data(folder, meta)
    criterion = losses.make_loss(loss, tokenizer.vocab_size, **config)
    if sample_tokens:
        tokenizer.encode('')  # GPT-2's encoding may be out of reach: say so now
except ConnectionError as e:
    fail(f'{e}; --sample_tokens=0 trains without it')
except (OSError, ValueError) as e:
    fail(e)
device_type = device.split(':')[0]
products_by = machine.prepare(device, compiled)
processes.start(device)
scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')
data = {'source': meta['source'] if meta else 'bins without meta.json, taken as GPT-2 tokens',
        'tokens': {'train': len(train_data), 'val': len(val_data)},
        'fingerprint': {'train': bins.fingerprint(train_data), 'val': bins.fingerprint(val_data)}}
build = {'processor': machine.processor(device), 'torch': str(torch.__version__), 'device': device_type,
         'dtype': dtype, 'threads': torch.get_num_threads(), 'compiled': compiled, 'products': products_by,
         'processes': processes.world}  # what the last bits of a run depend on
val_starts = bins.val_windows(len(val_data), block_size, eval_iters * batch_size)
decay_end = (lr_decay_iters or max_iters) if decay_lr else math.inf
tokens_per_iter = gradient_accumulation_steps * batch_size * block_size

# model: new, or from a checkpoint
again = rundir.restarted(out_dir)
if again == 2:
    init_from = 'resume'
resume = init_from == 'resume'
here = None  # the run's folder, where this is the process that writes
if init_from == 'scratch':
    torch.manual_seed(rng.torch_seed(rng.INIT, seed))
    raw_model = GPT(GPTConfig(block_size=block_size, vocab_size=tokenizer.vocab_size, n_layer=n_layer, n_head=n_head,
                              n_embd=n_embd, dropout=dropout, bias=bias, activation=activation))
else:
    path = f'{out_dir}/ckpt.pt' if resume else init_from
    try:
        if resume and processes.first and not eval_only and os.path.exists(path):
            here = rundir.RunDir(out_dir)  # from here on nobody else writes the checkpoint that is read now
        start = checkpoint.load(path)
        raw_model, changed = checkpoint.begin(start, resume, config, data, build, tokenizer)
    except (OSError, ValueError) as e:
        fail(e)
    if changed:
        say(f"changed since this run was saved: {', '.join(changed)}")
C = raw_model.config.vocab_size


def criterion_at(it):
    """The loss of iteration it. C is not tokenizer.vocab_size where a run of nanoGPT's is resumed, with ids that
    stand for nothing."""
    return losses.make_loss(loss, C, progress=max(0, it) / max(1, max_iters), **config)


raw_model.to(device)
local_model = torch.compile(raw_model) if compiled else raw_model

optimizer = optimizers.make(raw_model, optimizer, learning_rate, muon_learning_rate or learning_rate, weight_decay,
                            (beta1, beta2))

# where it begins, or goes on
iter_num, best_val_loss = 0, float('inf')
progress = {'last_eval': -1,      # iteration of the last evaluation
            'without_gain': 0,    # evaluations since the last improvement
            'seconds': 0.0,       # of training without evaluations, over all starts
            'wandb_run_id': ''}
if resume:
    try:
        iter_num, best_val_loss, progress = checkpoint.resume(start, optimizer, scaler)
    except ValueError as e:
        fail(e)
start = None  # free the memory


def read(tokens, starts):
    """Inputs and targets (B, block_size) on the device; from pinned memory the copy runs beside the GPU's work."""
    pair = map(torch.from_numpy, bins.read_windows(bins.unchanged(tokens), starts, block_size))
    if device_type == 'cuda':
        return [x.pin_memory().to(device, non_blocking=True) for x in pair]
    return [x.to(device) for x in pair]


def train_batch(it, micro_step):
    """This process's part of an iteration: micro-batches are numbered over all steps, processes and iterations."""
    number = (it * micro_steps + micro_step) * processes.world + processes.rank
    return read(train_data, bins.train_windows(len(train_data), block_size, seed, number * own_batch, own_batch))


@torch.no_grad()
def evaluate():
    """Means a token over the fixed windows of val.bin: (training objective as reported, nats through the link)."""
    local_model.eval()
    batches = range(0, len(val_starts), batch_size)
    sums = torch.zeros(len(batches), 2, dtype=torch.float64)  # summed at the end, whoever made them
    for i in range(processes.rank, len(batches), processes.world):
        x, y = read(val_data, val_starts[batches[i]:batches[i] + batch_size])
        with autocast:
            hidden = local_model(x)
        scores = losses.score(criterion, hidden, raw_model.lm_head.weight, y, C)
        sums[i] = torch.stack(scores).cpu().double().sum(1)
    local_model.train()
    objective, nats = (processes.total(sums).sum(0) / (len(val_starts) * block_size)).tolist()
    return objective * losses.reported_scale(criterion, C), nats


def show_sample():
    raw_model.eval()
    with autocast:
        pieces = sampling.stories(raw_model, tokenizer, criterion, '', 1, sample_tokens, seed=seed, top_p=0.9)
        text = ''.join(piece for _, piece in pieces if piece)
    raw_model.train()
    say('    ' + ' '.join(text.split()))


def save(best=False):
    """Write ckpt.pt, or best.pt, which has no optimizer."""
    if here:
        state = {} if best else {'optimizer': optimizer.state_dict(), 'scaler': scaler.state_dict()}
        here.save({**checkpoint.describe(raw_model, tokenizer, loss, criterion), 'iter_num': iter_num,
                   'best_val_loss': best_val_loss, 'config': config, 'data': data, 'machine': build,
                   'progress': progress, **state}, best, 0 if best else keep_checkpoints)


def log(**values):
    if here:
        here.log(iter=iter_num, tokens=iter_num * tokens_per_iter, seconds=round(progress['seconds'], 3), **values)


def count_seconds():
    """Add to progress what training took since the last call; evaluations set t_last anew."""
    global t_last
    if device_type == 'cuda':
        torch.cuda.synchronize()
    now = time.perf_counter()
    progress['seconds'] += now - t_last
    t_last = now


def perplexity(nats):
    return math.exp(min(nats, 700))


# -----------------------------------------------------------------------------
# say what will run
criterion = criterion_at(iter_num - 1)  # evaluations read the model as what it was last trained with
say(f"data: {folder}, {len(train_data):,} training tokens, {data['source']}")
if meta and meta['synthetic']:
    say('      NOTE: synthetic stories of a grammar, not TinyStories; figures on them say nothing about TinyStories')
shape = raw_model.config
say(f'model: {shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, context {shape.block_size}, '
    f'{shape.vocab_size:,} ids, {raw_model.num_params():,} parameters, from {init_from}')
say(f'loss: {loss}, ' + (str(criterion) if isinstance(criterion, losses.Family) else 'from losses.OWN'))
say(f'run: {max_iters:,} iterations of {tokens_per_iter:,} tokens = '
    f'{max_iters * tokens_per_iter / len(train_data):.2f} epochs; into {out_dir}')
say(f"machine: {why}, {torch.get_num_threads()} threads, {'compiled' if compiled else 'not compiled'} ({why_compiled})"
    + f', products by {products_by}' * (products_by != 'torch')
    + f', {processes.world} processes' * (processes.world > 1))

if eval_only:
    objective, nats = evaluate()
    say(f'iter {iter_num}: val loss {objective:.4f}, nats {nats:.4f} a token, perplexity {perplexity(nats):.3f}')
    processes.part()
    sys.exit(None if math.isfinite(objective + nats) else 1)

# the folder: claimed; an earlier run in it is moved aside, or continued
try:
    here = here or (rundir.RunDir(out_dir) if processes.first else None)
    if here and wandb_log:
        progress['wandb_run_id'] = here.watch(wandb_project, wandb_run_name, progress['wandb_run_id'],
                                              {**config, **vars(shape), 'data': data})
    for moved in here.begin(resume or again, iter_num, progress['last_eval']) if here else ():
        say(moved)
except OSError as e:
    fail(e)
interrupts.listen()

# -----------------------------------------------------------------------------
# training loop
t_last = time.perf_counter()
first_seconds = last_seconds = progress['seconds']
first_iter = last_log = iter_num
model = processes.wrap(local_model)
eval_seconds = []
bar = tqdm(total=max_iters, initial=iter_num, unit='it', disable=None if here else True, leave=False,
           dynamic_ncols=True)
end = ''
x, y = train_batch(iter_num, 0)
while True:
    lr = optimizers.learning_rate(iter_num, learning_rate, min_lr, warmup_iters, decay_end)
    for group in optimizer.param_groups:
        group['lr'] = lr * group['share']

    # evaluate and save
    if (iter_num % eval_interval == 0 or iter_num >= max_iters) and iter_num != progress['last_eval']:
        count_seconds()
        objective, nats = evaluate()
        if not (math.isfinite(objective + nats) and checkpoint.finite(raw_model, optimizer)):
            end = f'at iteration {iter_num} the validation loss is {objective}, {nats} nats, or the optimizer overflows'
            break
        better = nats < best_val_loss
        progress['without_gain'] = 0 if nats < best_val_loss - min_delta else progress['without_gain'] + 1
        progress['last_eval'] = iter_num
        best_val_loss = min(best_val_loss, nats)
        log(val_loss=objective, val_nats=nats, val_perplexity=perplexity(nats), best_val_loss=best_val_loss)
        say(f'iter {iter_num}: val loss {objective:.4f}, nats {nats:.4f} a token, '
            f'perplexity {perplexity(nats):.3f}' + ', the best so far' * better)
        if sample_tokens and here:
            show_sample()
        if better:
            save(best=True)
        save()
        eval_seconds.append(time.perf_counter() - t_last)
        t_last += eval_seconds[-1]
    stop, asked = processes.agree(interrupts.stop, interrupts.save)
    if iter_num >= max_iters:
        break
    if patience and progress['without_gain'] >= patience:
        say(f'stopping early: {patience} evaluations without improvement')
        break
    if stop or asked:
        if not checkpoint.finite(raw_model, optimizer):
            end = f'weights or the optimizer are not finite at iteration {iter_num}'
            break
        if progress['last_eval'] != iter_num:
            count_seconds()
            save()
        if stop:
            break
        interrupts.save = False
        say(f'saved at iteration {iter_num}, as SIGUSR1 asked')

    criterion = criterion_at(iter_num)
    # forward and backward; the next batch is read while a GPU is at work
    total = torch.zeros((), device=device)
    for micro_step in range(micro_steps):
        model.require_backward_grad_sync = micro_step == micro_steps - 1  # gradients meet once an iteration
        if dropout:
            number = micro_step * processes.world + processes.rank  # of the micro-batch in this iteration
            torch.manual_seed(rng.torch_seed(rng.DROPOUT, seed, iter_num, number))
        with autocast:
            micro_loss = losses.mean_loss(criterion, model(x), raw_model.lm_head.weight, y, C)
            micro_loss = micro_loss / micro_steps
        total += micro_loss.detach()
        x, y = train_batch(iter_num, micro_step + 1)
        scaler.scale(micro_loss).backward()
    if grad_clip:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    bar.update()

    # log
    if iter_num % log_interval == 0 or iter_num in (1, max_iters):
        mean = processes.total(total.cpu()).item() / processes.world * losses.reported_scale(criterion, C)
        if not math.isfinite(mean):
            end = f'the loss is {mean} at iteration {iter_num}'
            break
        count_seconds()
        seconds, n = max(progress['seconds'] - last_seconds, 1e-9), iter_num - last_log
        rate = n * tokens_per_iter / seconds
        left = (progress['seconds'] - first_seconds) / (iter_num - first_iter) * (max_iters - iter_num)
        if eval_seconds:
            left += sum(eval_seconds) / len(eval_seconds) * math.ceil((max_iters - iter_num) / eval_interval)
        say(f'iter {iter_num}: loss {mean:.4f}, time {1000 * seconds / n:.2f}ms, lr {lr:.2e}, {rate:,.0f} tok/s, '
            f'{tqdm.format_interval(left)} left')
        log(loss=mean, lr=lr, tokens_per_second=rate)
        last_seconds, last_log = progress['seconds'], iter_num
bar.close()

# -----------------------------------------------------------------------------
# the end
if here:
    here.end(failed=bool(end))
model = None  # its gradients' buffers end before the process group does
processes.part()
if end and not here:
    sys.exit(3)
if end:
    kept = f'the last good checkpoint is in {out_dir}' if progress['last_eval'] >= 0 else 'no checkpoint was saved'
    fail(f'{end}; {kept}; lower --learning_rate (it was {lr:.2e}) or --grad_clip', status=3)
if stop and iter_num < max_iters:
    say(f'stopped and saved at iteration {iter_num}; to go on: the same command with --init_from=resume')
    sys.exit(128 + stop)
say(f'done: best validation {best_val_loss:.4f} nats a token (perplexity {perplexity(best_val_loss):.3f}), '
    f'{iter_num * tokens_per_iter:,} tokens' + ' of synthetic stories' * bool(meta and meta['synthetic']) +
    f', {tqdm.format_interval(progress["seconds"])} of training')
say(f'read a story: python sample.py --out_dir={out_dir}')
