"""Write a trained model as a folder of Hugging Face's: config, safetensors, tokenizer, and a model card.

    python export.py --out_dir=out/tinystories_squentropy --to=exported
    python export.py --out_dir=out/tinystories_mse --to=exported --calibrate=True

AutoModelForCausalLM and AutoTokenizer of transformers read it: the same logits, the same tokens. They read
logits through softmax, which is the right link for cross-entropy only; --calibrate gives a model of another
loss the temperature at which softmax does best on val.bin, inside the final layer norm.
"""
from configurator import configure, fail

# -----------------------------------------------------------------------------
checkpoint = ''             # a checkpoint file; '' = that of out_dir
out_dir = ''                # a run: its best.pt, or else its ckpt.pt; '' = the newest under out/
to = ''                     # the folder to make
calibrate = False           # fold the temperature at which softmax does best into the final layer norm
dataset = ''                # whose val.bin is measured and fitted on; '' = that of the checkpoint, if it is here
figures = ''                # for the card: a file with what evaluate.py --json=True said; '' = measure now
# -----------------------------------------------------------------------------
configure(globals(), rules=[("to != ''", 'give the folder to make'),
                            ('not (checkpoint and out_dir)', 'give the one or the other')])
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import interrupts

interrupts.quiet('use a machine with more memory')

import torch

import bins
import checkpoint as checkpoints
import losses
import machine
import rundir
import scoring
from tokenizer import END_OF_TEXT, Tokenizer, letters

HERE = Path(__file__).resolve().parent


def hugging_face_model(model):
    """A GPT as transformers' GPT2LMHeadModel: weights transposed, zero biases where there are none."""
    c = model.config
    config = GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
        activation_function={'gelu': 'gelu', 'gelu_tanh': 'gelu_new'}[c.activation], resid_pdrop=c.dropout,
        embd_pdrop=c.dropout, attn_pdrop=c.dropout, bos_token_id=tokenizer.eot, eos_token_id=tokenizer.eot)
    theirs = GPT2LMHeadModel(config).eval()
    ours = model.state_dict()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            w = ours.get(name)
            if name.startswith(('transformer.wte', 'lm_head')):
                w = w[:c.vocab_size]
            elif name.startswith('transformer.h.') and p.dim() == 2:
                w = w.T
            p.copy_(torch.zeros_like(p) if w is None else w)
    return theirs


def hugging_face_tokenizer(tokenizer, block_size):
    """A Tokenizer as transformers' PreTrainedTokenizerFast: the same ids, but that the text <|endoftext|> is one id."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast
    entries = [tokenizer.token_bytes(i) for i in range(tokenizer.eot)]
    known = set(entries)
    word = {entry: ''.join(letters()[b] for b in entry) for entry in entries}
    # like tiktoken, which merges whatever neighbours make an entry, the entry of lowest id first
    merges = [(word[entry[:i]], word[entry[i:]]) for entry in entries for i in range(1, len(entry))
              if entry[:i] in known and entry[i:] in known]
    fast = Fast(models.BPE({**{word[entry]: i for i, entry in enumerate(entries)}, END_OF_TEXT: tokenizer.eot}, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=tokenizer.kind != 'byte')
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT,
                                   model_max_length=block_size)


def val_states():
    """Hidden states of val.bin, each story from a fresh context; None where the data is not here."""
    name = dataset or loaded['config'].get('dataset', '')
    if not name or not dataset and not calibrate and not find(name):
        return None
    folder = bins.find(name)
    meta = bins.read_meta(folder, tokenizer.vocab_size if tokenizer.kind == 'ids' else 0)
    if Tokenizer.of_data(folder, meta).to_dict() != tokenizer.to_dict():
        raise ValueError(f'--dataset={name} has another tokenizer than {checkpoint}; give the data it was trained on')
    tokens, length = bins.open_bin(folder, 'val', meta), model.config.block_size
    windows = bins.block_windows(len(tokens), length) if tokenizer.eot is None else \
        bins.story_windows(bins.stories(tokens, tokenizer.eot), length, max(1, length // 2))
    return scoring.HiddenStates(model, tokens, windows, tokenizer.eot or 0, 16)


def find(name):
    try:
        return bins.find(name)
    except OSError:
        return None


def measured():
    """What evaluate.py says of the checkpoint on val.bin, a dict; {} where the data is not here."""
    try:
        if figures:
            result = json.loads(Path(figures).read_text(encoding='utf-8'))
            [r[key] + 0 for r in result['readings'].values() for key in COLUMNS]  # so that the card can be made
            was, is_ = [result[key] for key in ('loss', 'iteration')], [loaded['loss']['name'], loaded['iter_num']]
            if was != is_ or not all(result.get(key) for key in ('split', 'source', 'tokens')):
                raise ValueError(f'of {was[0]} at iteration {was[1]}, this is {is_[0]} at {is_[1]}')
            return result
        name = dataset or loaded['config'].get('dataset', '')
        if not name or not (dataset or find(name)):
            return {}
        flags = ['--json=True', f'--checkpoint={checkpoint}', f'--dataset={name}', f'--blocks={tokenizer.eot is None}']
        print('measuring: python evaluate.py ' + ' '.join(flags), file=sys.stderr)
        done = subprocess.run([sys.executable, str(HERE / 'evaluate.py'), *flags], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip().removeprefix('error: '))
        return json.loads(done.stdout)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        if figures:
            fail(f'--figures={figures} cannot be used ({type(e).__name__}: {e}); make it with: '
                 f'python evaluate.py --checkpoint={checkpoint} --json=True > FILE')
        fail(e)


COLUMNS = {'nats': 'nats a token', 'perplexity': 'perplexity', 'top1': 'top-1', 'brier': 'Brier', 'ece_mass': 'ECE'}
MEANING = {
    'softmax': 'Its logits are log-probabilities up to a constant: softmax is their link.',
    'own':
        '{name} is a loss of its own; here its logits are read through softmax. If it has another link, this folder '
        'does not hold it.',
    'other':
        '**Softmax is not the link of {name}.** The probabilities it was trained for come from its logits by another '
        'formula, which transformers does not know. softmax(logits) has the same order, but other probabilities.',
    'calibrated':
        'Softmax does best on val.bin at temperature {T:.4g}, which is folded into the final layer norm here: '
        '{nats:.4f} nats a token. So a sampling temperature of 1 means probabilities as good as softmax can make '
        'them, and the logits are those of the checkpoint divided by that temperature.',
    'fitted':
        'Softmax does best on val.bin at temperature {T:.4g} ({nats:.4f} nats a token). So where you would sample a '
        'model trained with cross-entropy at 0.8, sample this one at {cool:.3g}, as generation_config.json has it. '
        '(`export.py --calibrate=True` folds the temperature in.)',
    'unknown': 'Which temperature it wants when it is sampled through softmax was not measured.'}


def card(result):
    """The model card: what it is, what its logits mean, how good it is."""
    c, name, source = model.config, loaded['loss']['name'], loaded['data'].get('source', 'data without a name')
    kind = {'gpt2': "GPT-2's", 'bpe': 'a byte-level BPE', 'byte': 'bytes', 'ids': 'ids without a text'}[tokenizer.kind]
    means = ['own' if loaded['loss']['numbers'] is None else 'softmax' if losses.is_softmax(loss) else 'other']
    if temperature:
        means.append('calibrated' if calibrate else 'fitted')
    elif means != ['softmax']:
        means.append('unknown')
    text = f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, tinystories]
---
# A GPT-2 of {model.num_params() / 1e6:.1f} M parameters, trained with {name}

{c.n_layer} layers, {c.n_head} heads, {c.n_embd} wide, context {c.block_size}, {tokenizer.vocab_size:,} tokens ({kind}).
Iteration {loaded['iter_num']:,}, trained on {source}.

"""
    text += '\n\n'.join(MEANING[key] for key in means).format(
        name=name, T=temperature or 1, nats=fitted_nats or 0, cool=0.8 * (temperature or 1))
    if not result:
        return text + '\n\nNot measured: its data was not on the machine that wrote this.\n'
    text += f"\n\nMeasured by evaluate.py on {result['split']}.bin ({result['source']}), {result['tokens']:,} tokens"
    text += ', before calibration' * calibrate + ':\n\n| reading | ' + ' | '.join(COLUMNS.values()) + ' |\n'
    text += '|---' * (1 + len(COLUMNS)) + '|\n'
    for reading, r in result['readings'].items():
        text += f'| {reading} | ' + ' | '.join(f'{r[key]:.4f}' for key in COLUMNS) + ' |\n'
    return text


try:
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils import logging
except ImportError:
    fail('export.py writes with the package transformers, which is not installed; pip install transformers')
logging.set_verbosity_error()
logging.disable_progress_bar()
target = Path(to)
if target.exists() and (not target.is_dir() or any(target.iterdir())):
    fail(f'--to={to} is there already, and not empty; choose another, or delete it')
try:
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    # now, since measuring may take long
    aside = Path(tempfile.mkdtemp(prefix=f'{target.name}.', dir=target.absolute().parent))
    aside.chmod(0o755)
except OSError as e:
    fail(f'--to={to} cannot be made ({e.strerror}); choose another')

try:
    if not checkpoint:
        out_dir = out_dir or str(rundir.newest())
        checkpoint = f'{out_dir}/best.pt' if os.path.exists(f'{out_dir}/best.pt') else f'{out_dir}/ckpt.pt'
    if dataset:
        bins.find(dataset)
    machine.prepare('cpu')
    loaded = checkpoints.load(checkpoint)
    model, tokenizer, loss = checkpoints.restore(checkpoints.cropped(loaded, loaded['tokenizer'].get('vocab_size')))
    temperature, fitted_nats = None, None
    states = None if losses.is_softmax(loss) and not calibrate else val_states()
    if calibrate and states is None:
        raise ValueError(f'--calibrate=True fits on val.bin, and {checkpoint} does not say of which data; '
                         'give --dataset=...')
    if states is not None:
        temperature, fitted_nats = scoring.softmax_temperature(states)
        if not 1e-6 < temperature < 1e4:  # the best it could do is to say nothing
            if calibrate:
                raise ValueError(f'--calibrate=True finds no temperature: {checkpoint} does not predict val.bin better '
                                 'than a uniform guess; leave the flag away, or train longer')
            temperature = None
    result = measured()
    theirs = hugging_face_model(model)
    if calibrate:
        with torch.no_grad():
            theirs.transformer.ln_f.weight /= temperature
            theirs.transformer.ln_f.bias /= temperature
    how = 0.8 * temperature if temperature and not calibrate else 0.8
    theirs.generation_config = GenerationConfig(
        do_sample=True, temperature=round(how, 6), top_k=200, top_p=0.9,
        max_new_tokens=min(500, model.config.block_size),
        bos_token_id=tokenizer.eot, eos_token_id=tokenizer.eot, pad_token_id=tokenizer.eot)
    theirs.save_pretrained(aside)
    if tokenizer.kind != 'ids':
        hugging_face_tokenizer(tokenizer, model.config.block_size).save_pretrained(aside)
    (aside / 'README.md').write_text(card(result), encoding='utf-8')
    if target.exists():
        target.rmdir()
    os.rename(aside, target)
except (OSError, ValueError) as e:
    fail(f'{e}' if isinstance(e, ValueError) or not e.errno else
         f'--to={to} cannot be written ({e.strerror}); make room, or choose another')
finally:
    shutil.rmtree(aside, ignore_errors=True)
print(f'{target}: ' + ', '.join(sorted(path.name for path in target.iterdir())))
if tokenizer.kind == 'ids':
    print('no tokenizer: the run was trained on ids that came without one')
else:
    print(f"read a story: python -c \"from transformers import pipeline; print(pipeline('text-generation', '{target}')"
          "('Once upon a time')[0]['generated_text'])\"")
