"""Export a checkpoint as a Hugging Face model directory: config, safetensors, tokenizer and model card.

    python export.py --out_dir=out/tinystories_squentropy --to=exported
    python export.py --out_dir=out/tinystories_mse --to=exported --calibrate=True

AutoModelForCausalLM and AutoTokenizer of transformers load it and compute the same logits and tokens. transformers
converts logits to probabilities with softmax, which is the right link for cross-entropy only. For other losses,
--calibrate divides the logits by the temperature at which softmax has the lowest loss on val.bin.
"""
from configurator import configure, fail, require

checkpoint = ''             # checkpoint file; '' = best.pt or else ckpt.pt of out_dir
out_dir = ''                # run directory; '' = the newest one under out/
to = ''                     # directory to create
calibrate = False           # fold the best softmax temperature on val.bin into the final layer norm
dataset = ''                # data set whose val.bin is used; '' = the data set of the checkpoint, if it exists
device = 'auto'             # auto | cpu | cuda | cuda:1 | mps: where evaluate.py scores the checkpoint
matmul = 'auto'             # library for float32 matmul, as in evaluate.py: auto | torch | onednn
metrics = ''                # output of evaluate.py --json=True, for the model card; '' = run evaluate.py
configure(globals(), rules=[("to != ''", 'pass the directory to create, --to=...'),
                            ('not (checkpoint and out_dir)', 'pass one of them'),
                            "device == 'auto' or device.split(':')[0] in ('cpu', 'cuda', 'mps')",
                            "matmul in ('auto', 'torch', 'onednn')"])
import json
import os
import shutil
import signal
import sys
import tempfile

from pathlib import Path

from nanoloss import signals

signals.install_excepthook('use a machine with more memory')

require('transformers', 'tokenizers')
import torch

from nanoloss import calibration, dataloader, launcher, scoring
from nanoloss.checkpoint import crop_vocab, load_checkpoint, match_dataset, restore_model
from nanoloss.convert import save_hugging_face_tokenizer, to_hugging_face_model
from nanoloss.device import prepare_cpu
from nanoloss.link import has_softmax_link
from nanoloss.run_dir import find_checkpoint

SIGNALS = signal.SIGINT, signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)  # Windows has no SIGHUP
COLUMNS = {'nats': 'nats per token', 'perplexity': 'perplexity', 'top1': 'top-1', 'brier': 'Brier', 'ece_mass': 'ECE'}


def find_data(loaded):
    """Name of the data set, or '' if the checkpoint's data set is not on this machine."""
    name = dataset or loaded['config'].get('dataset', '')
    if calibrate and not name:
        raise ValueError(f'--calibrate=True needs val.bin, but {checkpoint} does not name its data set; '
                         'pass --dataset=...')
    try:
        if name:
            dataloader.find_dataset(name)
        return name
    except OSError:
        if dataset or calibrate:
            raise
        return ''


def fit_temperature(model, tokenizer, name):
    """Fit the softmax temperature on val.bin. Returns (temperature, nats per token), or (None, None) without a fit."""
    folder, meta = match_dataset(checkpoint, tokenizer, name)
    stride = None if tokenizer.eot is None else max(1, model.config.block_size // 2)
    states = scoring.Split(model, dataloader.open_bin(folder, 'val', meta), tokenizer.eot, 16, stride).states
    temperature, nats = calibration.fit_softmax_temperature(states)
    if 1e-6 < temperature < 1e4:
        return temperature, nats
    if calibrate:
        raise ValueError(f'--calibrate=True found no temperature: {checkpoint} does not predict val.bin better than a '
                         'uniform distribution; omit --calibrate, or train longer')
    return None, None


def read_metrics_file(loaded):
    """Read the output of evaluate.py from --metrics, and check that it belongs to the checkpoint."""
    try:
        result = json.loads(Path(metrics).read_text(encoding='utf-8'))
        sum(row[key] for row in result['readouts'].values() for key in COLUMNS)  # all are there, and numbers
        found, expected = (result['loss'], result['iteration']), (loaded['loss']['name'], loaded['iter_num'])
        if found != expected or not all(result[key] for key in ('split', 'source', 'tokens')):
            raise ValueError(f'loss and iteration are {found}, expected {expected}')
        return result
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        fail(f'--metrics={metrics} could not be used ({type(e).__name__}: {e}); create it with: '
             f'python evaluate.py --checkpoint={checkpoint} --json=True > FILE')


def measure(tokenizer, name):
    """Run evaluate.py on val.bin and return its output, a dict."""
    flags = ['--json=True', '--bootstrap=99', f'--checkpoint={checkpoint}', f'--dataset={name}', f'--device={device}',
             f'--blocks={tokenizer.kind == "ids"}', *([f'--matmul={matmul}'] if matmul != 'auto' else [])]
    print('running: python evaluate.py ' + ' '.join(flags), file=sys.stderr)
    stdout, stderr, status = launcher.run_script('evaluate.py', flags)
    if status:
        fail(stderr.strip().removeprefix('error: '))
    if stderr.strip():  # warnings
        print(stderr.strip(), file=sys.stderr)
    return json.loads(stdout)


def model_card(loaded, model, tokenizer, loss, temperature, nats, result):
    """README.md of the model directory. result: output of evaluate.py, or None."""
    c, name, is_custom = model.config, loaded['loss']['name'], loaded['loss']['coefficients'] is None
    tokens = {'gpt2': "GPT-2's", 'bpe': 'byte-level BPE', 'byte': 'bytes', 'ids': 'ids without text'}[tokenizer.kind]
    if is_custom:
        link = f'{name} is a custom loss. If its link is not softmax, this directory does not include it.'
    elif has_softmax_link(loss):
        link = 'softmax(logits) are the probabilities that the model was trained for.'
    else:
        link = (f'**Softmax is not the link of {name}.** The loss trains probabilities that are another function of '
                'the logits, which transformers does not implement. softmax(logits) has the same order of tokens but '
                'other probabilities.')
    if calibrate:
        link += (f'\n\nThe logits are those of the checkpoint divided by {temperature:.4g}, the temperature at which '
                 f'softmax has the lowest loss on val.bin, {nats:.4f} nats per token. It is folded into the final '
                 'layer norm, so sampling at temperature 1 gives calibrated probabilities.')
    elif temperature:
        link += (f'\n\nSoftmax has the lowest loss on val.bin at temperature {temperature:.4g}, {nats:.4f} nats per '
                 'token. generation_config.json multiplies the usual sampling temperature 0.8 by it, to '
                 f'{0.8 * temperature:.3g}. (`export.py --calibrate=True` folds it into the weights.)')
    elif is_custom or not has_softmax_link(loss):
        link += '\n\nThe best softmax temperature was not measured.'
    table = 'Not evaluated: the data was not on the machine that exported the model.'
    if result:
        note = ', before calibration' if calibrate else ''
        rows = [['readout', *COLUMNS.values()], ['---'] * (1 + len(COLUMNS))]
        rows += [[readout, *(f'{row[key]:.4f}' for key in COLUMNS)]
                 for readout, row in result['readouts'].items()]
        table = '\n'.join([f"Evaluated by evaluate.py on {result['split']}.bin ({result['source']}), "
                           f"{result['tokens']:,} tokens{note}:", '', *(f"| {' | '.join(row)} |" for row in rows)])
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, tinystories]
---
# A GPT-2 with {model.num_params() / 1e6:.1f} M parameters, trained with {name}

{c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, context {c.block_size}, {tokenizer.vocab_size:,} ids ({tokens}).
Iteration {loaded['iter_num']:,}, trained on {loaded['data'].get('source', 'unnamed data')}.

{link}

{table}
"""


def save_model(folder, model, tokenizer, temperature):
    """Write config, weights, generation settings and tokenizer. temperature: of softmax, or None."""
    from transformers import GenerationConfig  # imported only now, because it takes seconds
    from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    exported = to_hugging_face_model(model, tokenizer)
    sampling_temperature = 0.8
    if calibrate:
        with torch.no_grad():
            exported.transformer.ln_f.weight /= temperature
            exported.transformer.ln_f.bias /= temperature
    elif temperature:
        sampling_temperature *= temperature
    exported.generation_config = GenerationConfig(
        do_sample=True, temperature=round(sampling_temperature, 6), top_k=200, top_p=0.9,
        max_length=model.config.block_size,  # prompt included: GPT-2 has no positions beyond it
        bos_token_id=tokenizer.eot, eos_token_id=tokenizer.eot, pad_token_id=tokenizer.eot)
    exported.save_pretrained(folder)
    if tokenizer.kind != 'ids':
        save_hugging_face_tokenizer(tokenizer, model.config.block_size, folder)


def raise_interrupt(number, _):
    for other in SIGNALS:  # nothing interrupts the cleanup
        signal.signal(other, signal.SIG_IGN)
    launcher.stop_all()
    raise KeyboardInterrupt(number)


target = Path(to)
if target.exists() and (not target.is_dir() or any(target.iterdir())):
    fail(f'--to={to} exists and is not an empty directory; pass another one, or delete it')
for number in SIGNALS:
    if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
        signal.signal(number, raise_interrupt)

partial = None
try:
    target.absolute().parent.mkdir(parents=True, exist_ok=True)  # before the evaluation, which may take long
    partial = Path(tempfile.mkdtemp(prefix=f'{target.name}.', dir=target.absolute().parent))
    partial.chmod(0o755)
    checkpoint = find_checkpoint(checkpoint, out_dir)
    loaded = load_checkpoint(checkpoint)
    model, tokenizer, loss = restore_model(crop_vocab(loaded, loaded['tokenizer'].get('vocab_size')))
    prepare_cpu('cpu', model, 16 * model.config.block_size, matmul, loaded.get('environment'))
    name = find_data(loaded)
    result = read_metrics_file(loaded) if metrics else None
    temperature, nats = None, None
    if name and (calibrate or not has_softmax_link(loss)):
        temperature, nats = fit_temperature(model, tokenizer, name)
    if name and not metrics:
        result = measure(tokenizer, name)
    save_model(partial, model, tokenizer, temperature)
    card = model_card(loaded, model, tokenizer, loss, temperature, nats, result)
    (partial / 'README.md').write_text(card, encoding='utf-8')
    if target.exists():
        target.rmdir()
    os.rename(partial, target)
except (OSError, ValueError) as e:
    fail(f'--to={to} could not be written ({e.strerror}); free some space, or pass another directory'
         if isinstance(e, OSError) and e.errno else e)
except KeyboardInterrupt as e:
    fail(f'interrupted by {signal.Signals(e.args[0]).name}; {to} was not created', status=128 + e.args[0])
finally:
    if partial:
        shutil.rmtree(partial, ignore_errors=True)
print(f'{target}: ' + ', '.join(sorted(path.name for path in target.iterdir())))
if tokenizer.kind == 'ids':
    print('no tokenizer: the model was trained on ids without one')
else:
    print("read a story: python -c \"from transformers import pipeline; print(pipeline('text-generation', "
          f"'{target.as_posix()}')('Once upon a time')[0]['generated_text'])\"")
