"""evaluate.py as a user runs it, against plain loops in float64, scikit-learn and enumeration; on untrained models."""
import itertools
import json
import math
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import check_refused, run
from test_scoring import TEXTS, tiny_model

import losses
from nanoloss import dataloader, link, statistics
from nanoloss.checkpoint import describe_model, save_checkpoint
from nanoloss.tokenizer import Tokenizer, train_bpe


def save(path, loss='cross_entropy', tokenizer=None, dataset='', train_tokens=0, data=None, **model_options):
    """Save an untrained model as a checkpoint; return the model."""
    tokenizer = tokenizer or Tokenizer('byte')
    model = tiny_model(tokenizer.vocab_size, **model_options)
    coefficients = losses.make_loss(loss, tokenizer.vocab_size)
    save_checkpoint({**describe_model(model, tokenizer, loss, coefficients), 'iter_num': 7, 'best_val_loss': 2.5,
                     'data': data or {}, 'config': {'dataset': str(dataset), 'train_tokens': train_tokens}}, path)
    return model


def write_data(folder, texts=TEXTS, tokenizer=None):
    """Write a data folder with the same stories as train, val and test."""
    tokenizer = tokenizer or Tokenizer('byte')
    folder.mkdir()
    tokens = tokenizer.encode_stories(texts)
    size = {'stories': len(texts), 'tokens': len(tokens), 'bytes': len(''.join(texts).encode()), 'sha256': ''}
    for split in ('train', 'val', 'test'):
        (folder / f'{split}.bin').write_bytes(tokens.tobytes())
    if tokenizer.kind == 'bpe':
        tokenizer.save(folder / 'tokenizer.json')
    (folder / 'meta.json').write_text(json.dumps(
        {'source': 'this test', 'tokenizer': tokenizer.kind, 'vocab_size': tokenizer.vocab_size,
         'dtype': tokenizer.dtype.name, 'eot': tokenizer.eot, 'splits': dict.fromkeys(('train', 'val', 'test'), size)}))
    return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('evaluate') / 'bytes')


def evaluate(*flags):
    status, out, err = run('evaluate.py', '--json=True', '--device=cpu', '--bootstrap=499', *flags)
    assert status == 0, err
    return json.loads(out)


def test_other_validation_stories(data, tmp_path):
    """A val.bin that is not that of the training is pointed out in one line, since it may hold training stories."""
    right = dataloader.fingerprint(dataloader.open_bin(data, 'val', dataloader.read_meta(data)))
    for fingerprint, lines in ((right, 0), ('x', 1)):
        save(tmp_path / 'm.pt', dataset=data, data={'fingerprint': {'val': fingerprint}})
        status, _, err = run('evaluate.py', f'--checkpoint={tmp_path}/m.pt', '--device=cpu', '--bootstrap=9')
        assert status == 0 and err.count('\n') == lines and ('m.pt' in err) == bool(lines), err


@torch.no_grad()
def token_log_probs(model, tokens, eot, stride):
    """log softmax in float64 of the logits of every token, from a context built for that token alone: (N, C)."""
    model, rows, story = model.double(), [], []
    for token in tokens.tolist():
        position, story = len(story), [*story, token]
        window = max(0, -(-(position + 1 - model.config.block_size) // stride)) * stride  # start of its window
        context = [eot, *story[:-1]][window:]
        rows.append(F.log_softmax(model.logits(model(torch.tensor([context])))[0, -1], -1))
        if token == eot:
            story = []
    return torch.stack(rows)


def test_metrics_are_those_of_plain_pytorch(data, tmp_path):
    """The metrics of a cross-entropy checkpoint equal a loop over single tokens in float64 and scikit-learn, and the
    link readout equals the softmax readout."""
    from sklearn.metrics import brier_score_loss
    model = save(tmp_path / 'm.pt', seed=5)
    result = evaluate(f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}', '--stride=5')
    tokens = np.fromfile(data / 'val.bin', np.uint8)
    log_p, y = token_log_probs(model, tokens, 255, 5), torch.from_numpy(tokens).long()
    nats = F.nll_loss(log_p, y).item()
    top5 = log_p.topk(5).indices == y[:, None]
    assert (log_p.topk(6).indices[:, 5] == y).any()  # just outside the top 5
    readout = result['readouts']['softmax']
    assert readout == result['readouts']['link']
    assert readout['nats'] == pytest.approx(nats, rel=1e-5)
    assert readout['perplexity'] == pytest.approx(math.exp(nats), rel=1e-4)
    bits = nats * len(tokens) / math.log(2)
    assert readout['bits_per_byte'] == pytest.approx(bits / len(''.join(TEXTS)), rel=1e-5)
    assert readout['top1'] == pytest.approx(top5[:, 0].double().mean().item())
    assert readout['top5'] == pytest.approx(top5.any(1).double().mean().item())
    assert readout['brier'] == pytest.approx(brier_score_loss(y.numpy(), log_p.exp().numpy(), labels=np.arange(256),
                                                              scale_by_half=False), rel=1e-5)
    for key in ('nats', 'top1'):
        low, high = readout[f'{key}_interval']
        assert low < readout[key] < high
    assert result['objective'] == pytest.approx(nats, rel=1e-5)
    assert result['raw_link_sum'] == pytest.approx(1) and result['raw_link_negative'] == 0
    assert (result['stories'], result['tokens'], result['bytes']) == (7, len(tokens), len(''.join(TEXTS)))
    assert result['source'] == 'this test' and result['iteration'] == 7


def test_ranks_are_those_of_the_logits(data, tmp_path):
    """Top-1 and top-5 are those of the logits also where the probabilities underflow."""
    model = save(tmp_path / 'm.pt', seed=5, scale=1e4)
    result = evaluate(f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}')
    tokens = np.fromfile(data / 'val.bin', np.uint8)
    log_p, y = token_log_probs(model, tokens, 255, 8), torch.from_numpy(tokens).long()
    top5 = log_p.topk(5).indices == y[:, None]
    assert (log_p[top5.any(1), y[top5.any(1)]] < -200).any()
    for readout in result['readouts'].values():
        assert readout['top1'] == pytest.approx(top5[:, 0].double().mean().item())
        assert readout['top5'] == pytest.approx(top5.any(1).double().mean().item())
    assert math.isfinite(result['readouts']['softmax']['perplexity'])


def test_blocks_are_the_windows_of_training(data, tmp_path):
    """--blocks gives the nats and the objective of training's own evaluation of the same windows and the last one."""
    model = save(tmp_path / 'm.pt', loss='squentropy')
    result = evaluate(f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}', '--blocks=True', '--random_batches=2',
                      '--batch_size=4')
    tokens = np.fromfile(data / 'val.bin', np.uint8)
    starts = dataloader.val_windows(len(tokens), 16, 10**9)
    x, y = dataloader.load_windows(tokens, starts, 16)
    rest = torch.from_numpy(tokens[starts[-1] + 16:].astype(np.int64))
    loss = losses.squentropy(256)
    with torch.no_grad():
        parts = [torch.stack(link.score_batch(loss, model(a), model.lm_head.weight, b, 256))
                 for a, b in ((x, y), (rest[None, :-1], rest[None, 1:]))]
    objective, nats = torch.cat(parts, 1).double().mean(1).tolist()
    assert result['tokens'] == len(tokens) - 1 and result['blocks'] == len(starts) + (len(rest) > 1)
    assert result['readouts']['link']['nats'] == pytest.approx(nats, rel=1e-5)
    assert result['objective'] == pytest.approx(objective, rel=1e-5)
    # random batches of training consist of full blocks
    with torch.no_grad():
        full = F.cross_entropy(model.logits(model(x)).mT, y, reduction='none').double().mean(1)
    expected = statistics.random_batches(full.numpy(), 2 * 4, 499, 1337)
    assert result['random_batches'] == pytest.approx(expected.tolist(), rel=1e-5)


def test_results_are_reproducible(data, tmp_path):
    """The same command gives identical results, another batch size the same ones to float32 precision."""
    save(tmp_path / 'm.pt', loss='squentropy')
    flags = f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}'
    first, second, other = (evaluate(*flags, f'--batch_size={n}') for n in (32, 32, 1))
    assert first == second
    for name, readout in first['readouts'].items():
        for key, value in readout.items():
            assert other['readouts'][name][key] == pytest.approx(value, rel=1e-4), (name, key)


@pytest.mark.cuda
@pytest.mark.parametrize('loss', ['cross_entropy', 'squentropy', 'mse'])
def test_cuda_agrees_with_the_cpu(loss, data, tmp_path):
    """A GPU and a CPU give the same figures in every readout."""
    save(tmp_path / 'best.pt', loss)
    flags = f'--checkpoint={tmp_path}/best.pt', f'--dataset={data}'
    cpu, cuda = evaluate(*flags), evaluate(*flags, '--device=cuda')
    for name, readout in cpu['readouts'].items():
        for key in ('nats', 'top1', 'brier', 'ece_width'):
            assert readout[key] == pytest.approx(cuda['readouts'][name][key], abs=1e-4), (name, key)


def test_cross_fitting(data, tmp_path):
    """Each half of val.bin is calibrated on the other half; test.bin on all of val.bin."""
    save(tmp_path / 'm.pt')
    flags = f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}'
    val, test = evaluate(*flags), evaluate(*flags, '--split=test')
    assert len(val['calibration_temperature']) == 2 and len(test['calibration_temperature']) == 1
    assert test['readouts']['link'] == val['readouts']['link']
    # test.bin equals val.bin here, and calibration on the scored tokens themselves is better
    assert test['readouts']['calibrated']['nats'] < val['readouts']['calibrated']['nats']


def test_compare_pairs_stories(data, tmp_path):
    """--compare gives the difference of the two results and a p-value near the exact one over 2^7 sign patterns; a
    checkpoint does not differ from itself."""
    a, b = save(tmp_path / 'a.pt', seed=1), save(tmp_path / 'b.pt', seed=2)
    flags = f'--checkpoint={tmp_path}/a.pt', f'--dataset={data}', '--stride=5', '--bootstrap=9999'
    result = evaluate(*flags, f'--compare={tmp_path}/b.pt')
    nats = result['compared']['readouts']['softmax']['nats']
    assert nats['difference'] == pytest.approx(result['readouts']['softmax']['nats'] -
                                               result['compared']['other']['readouts']['softmax']['nats'], rel=1e-6)
    tokens = np.fromfile(data / 'val.bin', np.uint8)
    y = torch.from_numpy(tokens).long()[:, None]
    d = (token_log_probs(b, tokens, 255, 5) - token_log_probs(a, tokens, 255, 5)).gather(1, y)[:, 0].numpy()
    d = np.add.reduceat(d, dataloader.story_bounds(tokens, 255)[:-1])
    signs = np.array(list(itertools.product([1, -1], repeat=7)))
    assert nats['p'] == pytest.approx((abs(signs @ d) >= abs(d.sum()) - 1e-9).mean(), abs=0.03)
    low, high = nats['interval']
    assert low < nats['difference'] < high
    same = evaluate(*flags, f'--compare={tmp_path}/a.pt')['compared']['readouts']['calibrated']
    assert same == dict.fromkeys(('nats', 'top1'), {'difference': 0, 'interval': [0, 0], 'p': 1})


def test_compare_across_tokenizers(data, tmp_path):
    """Two tokenizers are compared in bits per byte of the same stories; the nats of other stories are refused."""
    bpe = train_bpe(TEXTS * 3, 270)
    save(tmp_path / 'a.pt', dataset=data)
    save(tmp_path / 'b.pt', dataset=write_data(tmp_path / 'bpe', tokenizer=bpe), tokenizer=bpe)
    save(tmp_path / 'fewer.pt', dataset=write_data(tmp_path / 'fewer', TEXTS[:-1], bpe), tokenizer=bpe)
    save(tmp_path / 'other.pt', dataset=write_data(tmp_path / 'other', TEXTS[::-1]))
    result = evaluate(f'--checkpoint={tmp_path}/a.pt', f'--compare={tmp_path}/b.pt', '--per_byte=True')
    for name, readout in result['compared']['readouts'].items():
        a, b = (r['readouts'][name]['bits_per_byte'] for r in (result, result['compared']['other']))
        assert readout['bits_per_byte']['difference'] == pytest.approx(a - b, rel=1e-6)
    flags = '--checkpoint=a.pt --device=cpu'
    check_refused('evaluate.py', f'{flags} --compare=b.pt', 'a.pt', 'b.pt', '--per_byte=True', cwd=tmp_path)
    check_refused('evaluate.py', f'{flags} --compare=fewer.pt --per_byte=True', 'fewer', cwd=tmp_path)
    check_refused('evaluate.py', f'{flags} --compare=other.pt', f'{data}', 'other', cwd=tmp_path)


def test_table_arrays_and_plots(data, tmp_path):
    """One run prints the table of a custom data folder and writes the arrays and two PNG files. Frequencies are those
    of the tokens that the model was trained on."""
    save(tmp_path / 'm.pt', loss='mse', train_tokens=100)
    status, out, err = run('evaluate.py', f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}', '--bootstrap=99',
                           f'--plots={tmp_path}/plots', f'--arrays={tmp_path}/m.npz')
    assert status == 0, err
    assert 'this test' in out and 'softmax' in out and 'calibrated' in out
    arrays, scored = np.load(tmp_path / 'm.npz'), np.fromfile(data / 'val.bin', np.uint8).tolist()
    assert arrays['tokens'].sum() == len(scored)
    occurrences = Counter(np.fromfile(data / 'train.bin', np.uint8)[:100].tolist())
    groups = Counter(2 ** int(math.log2(max(1, occurrences[token]))) for token in scored)
    assert {low: n for low, n in arrays['frequency'][:, :2].tolist() if n} == groups
    for name in ('reliability.png', 'positions.png'):
        assert (tmp_path / 'plots' / name).read_bytes().startswith(b'\x89PNG')


@pytest.fixture
def folder(data, tmp_path):
    """A folder with a checkpoint m.pt and its data, to damage."""
    shutil.copytree(data, tmp_path / 'data')
    save(tmp_path / 'm.pt', dataset='data')
    return tmp_path


def truncate_checkpoint(folder):
    (folder / 'm.pt').write_bytes((folder / 'm.pt').read_bytes()[:3000])


def diverge(folder):
    save(folder / 'm.pt', dataset='data', scale=1e38)


def forget_dataset(folder):
    save(folder / 'm.pt')


def replace_tokenizer(folder):
    shutil.rmtree(folder / 'data')
    write_data(folder / 'data', tokenizer=train_bpe(TEXTS * 3, 270))


def forget_tokenizer(folder):
    save(folder / 'm.pt', dataset='data', tokenizer=Tokenizer('ids', size=256))
    (folder / 'data/meta.json').unlink()


def replace_meta(folder):
    (folder / 'data/meta.json').unlink()
    (folder / 'data/meta.pkl').write_bytes(pickle.dumps({}))


@pytest.mark.parametrize('damage,flags,name', [
    (None, '--checkpoint=none.pt', 'none.pt'),
    (truncate_checkpoint, '', 'm.pt'),
    (diverge, '', 'm.pt'),
    (forget_dataset, '', '--dataset'),
    (replace_tokenizer, '', 'data'),
    (forget_tokenizer, '', '--blocks=True'),
    (lambda folder: (folder / 'data/val.bin').write_bytes(b''), '', 'val.bin'),
    (lambda folder: (folder / 'data/test.bin').unlink(), '--split=test', 'test.bin'),
    (lambda folder: (folder / 'data/meta.json').write_text('{"source": '), '', 'meta.json'),
    (replace_meta, '', 'meta.pkl'),
    (None, '--stride=17', '--stride=17'),
    (None, '--out_dir=x', 'out_dir'),
    (None, '--plots=m.pt', '--plots=m.pt'),
    (None, '--arrays=none/a.npz', '--arrays=none/a.npz'),
], ids=lambda x: getattr(x, '__name__', x))
def test_refused(folder, damage, flags, name):
    """A wrong checkpoint, data set or output is one line that names it, and nothing is written."""
    if damage:
        damage(folder)
    flags = flags if '--checkpoint' in flags else f'--checkpoint=m.pt {flags}'
    check_refused('evaluate.py', f'{flags} --bootstrap=9 --device=cpu', name, cwd=folder)
