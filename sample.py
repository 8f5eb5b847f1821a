"""Read stories that a trained model writes: those of the newest run under out/, or of --out_dir.

    python sample.py
    python sample.py --start="The little robot" --num_samples=3 --temperature=0.8
"""
from configurator import configure, fail, printable

# -----------------------------------------------------------------------------
checkpoint = ''          # a checkpoint file; '' = that of out_dir
out_dir = ''             # the run to read: its best.pt, or else its ckpt.pt; '' = the newest under out/
start = ''               # how the stories begin: text, or FILE:path of a text file; '' = a new story
num_samples = 3          # stories, made side by side
max_new_tokens = 500     # longest story, in tokens
temperature = 0.8        # below 1 safer, above 1 wilder, 0 = always the likeliest token
top_k = 200              # draw from the k likeliest tokens only; 0 = all
top_p = 0.9              # draw from the likeliest tokens that hold this share of probability; 1 = all
seed = 1337              # the same seed tells the same stories
device = 'auto'          # auto | cpu | cuda | cuda:1 | mps
dtype = 'auto'           # auto | float32 | bfloat16 | float16
# -----------------------------------------------------------------------------
configure(globals(), rules=[
    '1 <= num_samples <= 100_000', 'max_new_tokens >= 1', 'temperature >= 0', 'top_k >= 0', '0 < top_p <= 1',
    'seed >= 0', ("not (checkpoint and out_dir)", 'give the one or the other'),
    "dtype in ('auto', 'float32', 'bfloat16', 'float16')",
    "device == 'auto' or device.split(':')[0] in ('cpu', 'cuda', 'mps')",
])

import os
import sys

import interrupts

interrupts.quiet('lower --num_samples or --max_new_tokens')

import checkpoint as checkpoints
import machine
import processes
import rundir
import sampling

if processes.world > 1:
    fail(f'sample.py is one process, not {processes.world}; start it without torchrun', status=2)
try:
    if not checkpoint:
        out_dir = out_dir or str(rundir.newest())
        checkpoint = f'{out_dir}/best.pt' if os.path.exists(f'{out_dir}/best.pt') else f'{out_dir}/ckpt.pt'
    loaded = checkpoints.load(checkpoint)
    device, dtype, autocast, _ = machine.choose(device, dtype)
    model, tokenizer, loss = checkpoints.restore(loaded, device)
    if start.startswith('FILE:'):
        try:
            with open(start.removeprefix('FILE:'), encoding='utf-8', errors='replace') as f:
                start = f.read()
        except OSError as e:
            fail(f'--start={start} cannot be read: {e.strerror}; give a text file')
    if tokenizer.kind == 'ids':
        start = tokenizer.decode(tokenizer.encode(start))
    tokenizer.encode(start)  # fails here, and not in mid-story, where GPT-2's encoding can't be had
except (OSError, ValueError) as e:
    fail(e)
model.eval()
print(printable(f"{checkpoint}: {loaded['loss']['name']}, iteration {loaded['iter_num']:,}, validation "
                f"{loaded['best_val_loss']:.4f} nats a token; trained on {loaded['data'].get('source', '?')}"),
      file=sys.stderr)

# The stories come as one batch, and are printed one after the other: the first that has not ended
# yet as it is written, the others from their buffers when it is their turn.
waiting = [[] for _ in range(num_samples)]
turn = 0
CONTROLS = {c: '\ufffd' for c in [*range(32), *range(127, 160)] if chr(c) not in '\n\t'}  # no commands to the terminal


def show(piece):
    """Print a piece of the story whose turn it is; None ends it."""
    global turn
    if piece is None:
        turn += 1
        print('\n' + '-' * 79, flush=True)
        if turn < num_samples:
            print(start, end='')
            for later in waiting[turn]:
                show(later)
    else:
        print(piece.translate(CONTROLS), end='', flush=True)


print(start, end='', flush=True)
with autocast:
    for i, piece in sampling.stories(model, tokenizer, loss, start, num_samples, max_new_tokens, seed,
                                     temperature=temperature, top_k=top_k, top_p=top_p):
        if i == turn:
            show(piece)
        else:
            waiting[i].append(piece)
