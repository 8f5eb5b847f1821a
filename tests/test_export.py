"""export.py: model directories that transformers loads, calibrated logits, and errors of one line."""
import contextlib
import io
import json
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, Started, run

import losses
from model import GPT, GPTConfig
from nanoloss.checkpoint import describe_model, load_checkpoint, restore_model, save_checkpoint
from nanoloss.tokenizer import Tokenizer

TOKENIZER = Tokenizer('byte')
METRICS = dict.fromkeys(['nats', 'perplexity', 'top1', 'brier', 'ece_mass'], 0.5)
METRICS = {'split': 'val', 'source': 'x', 'tokens': 9, 'loss': 'squentropy', 'iteration': 7,
           'readouts': {'link': METRICS}}


def make_run(folder, loss='squentropy', block_size=32, **changes):
    """A checkpoint with random weights in folder/best.pt, with a data set of nine stories in folder/data."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=block_size, vocab_size=256, n_layer=2, n_head=2, n_embd=16, bias=True)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        model.transformer.ln_f.weight *= 8
    write_data(folder / 'data', TOKENIZER.encode_stories(['Once upon a time. ' * 6, 'The end of it', 'A cat!'] * 3), 9)
    save_checkpoint({**describe_model(model, TOKENIZER, loss, losses.make_loss(loss, 256)), 'iter_num': 7,
                     'best_val_loss': 2.5, 'data': {'source': 'three stories'},
                     'config': {'dataset': str(folder / 'data')}, **changes}, folder / 'best.pt')
    return model


def write_data(folder, tokens, n_stories):
    folder.mkdir(exist_ok=True)
    for split in ('train', 'val'):
        tokens.tofile(folder / f'{split}.bin')
    n_bytes = int((tokens != TOKENIZER.eot).sum())
    counts = {'stories': n_stories, 'tokens': len(tokens), 'bytes': n_bytes, 'sha256': ''}
    (folder / 'meta.json').write_text(json.dumps({
        'source': 'three stories', 'tokenizer': 'byte', 'vocab_size': 256, 'dtype': 'uint8',
        'splits': {'train': counts, 'val': counts}}))


def export(folder, *flags):
    return run(ROOT / 'export.py', f'--checkpoint={folder}/best.pt', *flags, cwd=folder)


def test_export(tmp_path):
    """The exported directory has the checkpoint's logits, generates text, and has a model card with its metrics."""
    model = make_run(tmp_path)
    status, _, err = export(tmp_path, '--to=exported')
    assert status == 0, err
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'exported')
    x = torch.randint(0, 256, (2, 32))
    with torch.no_grad():
        assert torch.allclose(exported(x).logits, model.logits(model(x)), atol=1e-5)
    pipeline = transformers.pipeline('text-generation', str(tmp_path / 'exported'))
    text = pipeline('Once upon a time', max_new_tokens=10)[0]['generated_text']
    assert text.startswith('Once upon a time') and len(text) > 16
    card = (tmp_path / 'exported/README.md').read_text()
    assert all(text in card for text in ('squentropy', 'three stories', '| softmax |', '| link |', '| calibrated |'))
    restored, tokenizer, _ = restore_model(load_checkpoint(str(tmp_path / 'exported')))
    assert tokenizer.to_dict() == TOKENIZER.to_dict()
    with torch.no_grad():
        assert torch.allclose(restored.logits(restored(x)), model.logits(model(x)), atol=1e-5)


def test_metrics(tmp_path):
    """--metrics replaces the evaluation, also where the checkpoint's data is missing."""
    make_run(tmp_path, config={'dataset': 'nowhere'})
    (tmp_path / 'metrics.json').write_text(json.dumps(METRICS))
    status, _, err = export(tmp_path, '--to=exported', '--metrics=metrics.json')
    assert status == 0, err
    card = (tmp_path / 'exported/README.md').read_text()
    assert '| link | 0.5000 |' in card and '| softmax |' not in card


def sliding_window_logits(model, tokens):
    """(logits, targets) of every token, with the context that evaluate.py gives it: windows of 32 that slide by 16."""
    logits, targets = [], []
    for story in np.split(tokens, np.flatnonzero(tokens == 255) + 1)[:-1]:
        inputs = np.concatenate([[255], story])
        for i in range(len(story)):
            end = i if i < 32 else 32 + -(-(i - 31) // 16) * 16 - 1
            begin = max(0, min(end, len(story) - 1) - 31)
            with torch.no_grad():
                logits.append(model.logits(model(torch.from_numpy(inputs[begin:i + 1])[None]))[0, -1].double())
            targets.append(story[i])
    return torch.stack(logits), torch.tensor(np.array(targets))


@pytest.mark.parametrize('loss', ['mse', pytest.param('cross_entropy', marks=pytest.mark.slow)])
def test_calibrate(tmp_path, loss):
    """The folded temperature minimizes softmax's nats on val.bin, as a scan finds, and leaves the embedding unchanged.
    Without --calibrate, the default sampling temperature is scaled by it."""
    model = make_run(tmp_path, loss)
    story = [255]
    for _ in range(120):  # val.bin: text of the model itself at temperature 2.5
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([story[-32:]])))[0, -1]
        story.append(torch.multinomial((logits[:255] / 2.5).softmax(-1), 1).item())
    tokens = np.array([*story[1:61], 255, *story[61:], 255], np.uint8)
    write_data(tmp_path / 'data', tokens, 2)
    (tmp_path / 'metrics.json').write_text(json.dumps(METRICS | {'loss': loss}))
    status, _, err = export(tmp_path, '--to=calibrated', '--calibrate=True', '--metrics=metrics.json')
    assert status == 0, err
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'calibrated')
    assert torch.equal(exported.transformer.wte.weight.detach(), model.transformer.wte.weight[:256].detach())
    T = (model.transformer.ln_f.weight / exported.transformer.ln_f.weight)[0].item()
    logits, targets = sliding_window_logits(model, tokens.astype(np.int64))
    scan = {t: torch.nn.functional.cross_entropy(logits / t, targets).item() for t in np.geomspace(T / 3, T * 3, 201)}
    assert abs(min(scan, key=scan.get) / T - 1) < 0.03
    assert f'{T:.3g}'[:3] in (tmp_path / 'calibrated/README.md').read_text()

    def sampling_temperature(name):
        return json.loads((tmp_path / name / 'generation_config.json').read_text())['temperature']
    assert sampling_temperature('calibrated') == 0.8
    status, _, err = export(tmp_path, '--to=plain', '--metrics=metrics.json')
    assert status == 0, err
    assert sampling_temperature('plain') == pytest.approx(0.8 * T if loss == 'mse' else 0.8, rel=1e-3)


@pytest.mark.parametrize('block_size,seeds', [
    (32, 6), (128, 6), pytest.param(256, 40, marks=pytest.mark.slow)])
def test_printed_command(tmp_path, monkeypatch, block_size, seeds):
    """The printed command writes a story with any seed."""
    make_run(tmp_path, block_size=block_size, config={})
    status, out, err = export(tmp_path, '--to=exported')
    assert status == 0, err
    python, flag, code = shlex.split(out.splitlines()[-1].partition(': ')[2])
    assert (python, flag) == ('python', '-c')
    monkeypatch.chdir(tmp_path)
    for seed in range(seeds):
        transformers.set_seed(seed)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, {})  # an IndexError if the story could be longer than the model's context
        assert printed.getvalue().startswith('Once upon a time')


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='finds the subprocess in /proc')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, number):
    """Ctrl-C or SIGTERM during the evaluation leaves neither a directory nor a running evaluate.py."""
    make_run(tmp_path, 'cross_entropy')
    write_data(tmp_path / 'data', TOKENIZER.encode_stories(['Once upon a time. ' * 6] * 9000), 9000)  # takes long
    before = sorted(tmp_path.rglob('*'))
    process = Started(ROOT / 'export.py', '--checkpoint=best.pt', '--to=exported', cwd=tmp_path)
    children = []
    while not children and not process.ended():
        time.sleep(0.01)
        children = [pid for path in Path(f'/proc/{process.pid}/task').glob('*/children')
                    for pid in path.read_text().split()]
    assert sorted(tmp_path.rglob('*')) != before
    time.sleep(0.5)  # Python handles a signal late if it arrives just before the main thread starts to wait
    process.send(number)
    status, out, err = process.finish(30)
    assert status == 128 + number and not out and 'Traceback' not in err and 'exported' in err.splitlines()[-1], err
    assert len(children) == 1 and not Path('/proc', *children).exists() and sorted(tmp_path.rglob('*')) == before


# errors -----------------------------------------------------------------------

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run beside files that are in the way. No test may change it."""
    folder = tmp_path_factory.mktemp('export')
    make_run(folder)
    contents = torch.load(folder / 'best.pt', weights_only=True)
    torch.save(contents | {'model_args': contents['model_args'] | {'n_head': 3}}, folder / 'unfit.pt')
    torch.save(contents | {'loss': {'name': 'mse', 'coefficients': [1e308] * 8}}, folder / 'large.pt')
    torch.save(contents | {'config': {}}, folder / 'no_data.pt')
    (folder / 'damaged.pt').write_bytes((folder / 'best.pt').read_bytes()[:-5000])
    (folder / 'full').mkdir()
    (folder / 'full/x').write_text('x')
    (folder / 'file').write_text('x')
    (folder / 'wrong.json').write_text('{"readouts": 1')
    (folder / 'other.json').write_text(json.dumps(METRICS | {'loss': 'mse'}))
    (folder / 'new.partial').mkdir()
    return folder


@pytest.mark.parametrize('flags,name', [
    ('', '--to='), ('--to=new --out_dir=run', 'out_dir'), ('--to=full', '--to=full'), ('--to=file', '--to=file'),
    ('--to=file/x', '--to=file/x'), ('--to=new --dataset=nowhere', '--dataset=nowhere'),
    ('--to=new --metrics=none', '--metrics=none'), ('--to=new --metrics=wrong.json', '--metrics=wrong.json'),
    ('--to=new --metrics=other.json', '--metrics=other.json'), ('--to=new --checkpoint=none.pt', 'none.pt'),
    ('--to=new --checkpoint=damaged.pt', 'damaged.pt'), ('--to=new --checkpoint=unfit.pt', 'unfit.pt'),
    ('--to=new --checkpoint=no_data.pt --calibrate=True', '--dataset='),
    pytest.param('--to=new --checkpoint=large.pt', 'large.pt', marks=pytest.mark.slow)])
def test_errors(folder, flags, name):
    """An export that fails is one line on stderr that names the flag or the file, and changes nothing."""
    before = sorted(folder.rglob('*'))
    status, _, err = export(folder, *flags.split())
    lines = [line for line in err.splitlines() if not line.startswith('running: ')]
    assert status in (1, 2) and len(lines) == 1 and lines[0].startswith('error: ') and name in lines[0], err
    assert sorted(folder.rglob('*')) == before
    assert (folder / 'full/x').read_text() == (folder / 'file').read_text() == 'x'
