"""Generate stories from a checkpoint, by default of the newest run under out/.

    python sample.py
    python sample.py --start="The little robot" --num_samples=3 --temperature=0.8
"""
from configurator import configure, fail, fail_on, printable

checkpoint = ''          # checkpoint file; '' = best.pt or ckpt.pt of out_dir
out_dir = ''             # folder of a run; '' = the newest under out/
start = ''               # beginning of the stories: text, or FILE:path of a text file; '' = a new story
num_samples = 3          # number of stories, generated as one batch
max_new_tokens = 500     # maximum length of a story, in tokens
temperature = 0.8        # < 1 = less random, > 1 = more random, 0 = always the most likely token
top_k = 200              # sample from the k most likely tokens; 0 = all
top_p = 0.9              # sample from the most likely tokens that hold this share of the probability; 1 = all
seed = 1337              # random seed of the sampling
device = 'auto'          # auto | cpu | cuda | cuda:1 | mps
dtype = 'auto'           # auto | float32 | bfloat16 | float16
configure(globals(), rules=[
    '1 <= num_samples <= 100_000', 'max_new_tokens >= 1', 'temperature >= 0', 'top_k >= 0', '0 < top_p <= 1',
    'seed >= 0', ('not (checkpoint and out_dir)', 'omit one of them'),
    "dtype in ('auto', 'float32', 'bfloat16', 'float16')",
    "device == 'auto' or device.split(':')[0] in ('cpu', 'cuda', 'mps')",
])

import gc
import os
import sys

gc.disable()  # during the imports; the garbage collector takes a tenth of their time

from nanoloss import signals

signals.install_excepthook('lower --num_samples or --max_new_tokens')

from nanoloss import distributed
from nanoloss.checkpoint import load_checkpoint, restore_model
from nanoloss.device import choose_device
from nanoloss.engine import generate_stories
from nanoloss.readers import DataError, read_text, repair
from nanoloss.run_dir import find_checkpoint

gc.enable()
if distributed.world_size > 1:
    fail(f'sample.py runs in one process, found {distributed.world_size}; start it without torchrun', status=2)
with fail_on(OSError, ValueError):
    path = find_checkpoint(checkpoint, out_dir)
    loaded = load_checkpoint(path)
    device, dtype, autocast, _ = choose_device(device, dtype)
    model, tokenizer, loss = restore_model(loaded, device)
    if start.startswith('FILE:'):
        try:
            start = read_text(os.path.expanduser(start.removeprefix('FILE:')))
        except OSError as e:
            fail(f'--start={start} could not be read ({e.strerror}); pass FILE: and the path of a text file')
        except DataError as e:
            fail(f'--start: {e}')
    start = repair(start)  # a locale without UTF-8 leaves surrogates in the arguments
    prompt_ids = tokenizer.encode(start)  # fails now if GPT-2's encoding could not be loaded
    if tokenizer.kind == 'ids':
        start = tokenizer.decode(prompt_ids)
model.eval()
print(printable(f"{path}: {loaded['loss']['name']}, iteration {loaded['iter_num']:,}, validation "
                f"{loaded['best_val_loss']:.4f} nats per token, trained on {loaded['data'].get('source', '?')}"),
      file=sys.stderr)
if loaded['iter_num'] == 0 and path.endswith('best.pt') and os.path.exists(path.replace('best.pt', 'ckpt.pt')):
    print(f'note: this model is untrained; --checkpoint={path.replace("best.pt", "ckpt.pt")} is newer', file=sys.stderr)

# control characters except newline and tab must not reach the terminal
CONTROL_CHARACTERS = {code: '\ufffd' for code in [*range(32), *range(127, 160)] if chr(code) not in '\n\t'}

# The stories are generated as one batch and printed one after another: the first is streamed, and the text of the
# others is buffered until their turn.
buffers = [[] for _ in range(num_samples)]
current = 0
print(start, end='', flush=True)
with autocast:
    for i, piece in generate_stories(model, tokenizer, loss, start, num_samples, max_new_tokens, seed,
                                     temperature=temperature, top_k=top_k, top_p=top_p):
        buffers[i].append(piece)
        while current < num_samples and buffers[current]:
            text = buffers[current].pop(0)
            if text is not None:
                print(text.translate(CONTROL_CHARACTERS), end='', flush=True)
                continue
            print('\n' + '-' * 79, flush=True)  # None ends a story
            current += 1
            if current < num_samples:
                print(start, end='', flush=True)
