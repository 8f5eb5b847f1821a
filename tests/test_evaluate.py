"""evaluate.py against plain loops in float64, other libraries, and enumeration; on untrained and tiny models."""
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bins
import checkpoint
import losses
import metrics
import scoring
from conftest import run
from model import GPT, GPTConfig
from tokenizer import Tokenizer, train_bpe

TEXTS = ['Tom saw a cat.', 'x', '', 'The end of a very long story ' * 5, 'Once upon a time there was a dog.',
         'One', 'Two']


def tiny_model(vocab_size=256, block_size=16, scale=8.0, seed=0):
    """An untrained model whose logits spread enough for its probabilities to differ."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(block_size=block_size, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=16, bias=False))
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model.eval()


def save(path, loss='cross_entropy', tokenizer=None, dataset='', **shape):
    tokenizer = tokenizer or Tokenizer('byte')
    model = tiny_model(tokenizer.vocab_size, **shape)
    criterion = losses.make_loss(loss, tokenizer.vocab_size)
    checkpoint.save({**checkpoint.describe(model, tokenizer, loss, criterion), 'iter_num': 7, 'best_val_loss': 2.5, 'data': {},
                     'config': {'dataset': str(dataset)}}, path)
    return model


def write_data(folder, texts=TEXTS, tokenizer=None):
    """A data folder with the same stories as train, val and test."""
    tokenizer = tokenizer or Tokenizer('byte')
    folder.mkdir()
    tokens = tokenizer.encode_stories(texts)
    size = {'stories': len(texts), 'tokens': len(tokens), 'bytes': len(''.join(texts).encode()), 'sha256': ''}
    for split in ('train', 'val', 'test'):
        (folder / f'{split}.bin').write_bytes(tokens.tobytes())
    if tokenizer.kind == 'bpe':
        tokenizer.save(folder / 'tokenizer.json')
    (folder / 'meta.json').write_text(json.dumps(
        {'source': 'this test', 'synthetic': True, 'tokenizer': tokenizer.kind, 'vocab_size': tokenizer.vocab_size,
         'dtype': tokenizer.dtype.name, 'eot': tokenizer.eot, 'splits': dict.fromkeys(('train', 'val', 'test'), size)}))
    return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('evaluate') / 'bytes')


def evaluate(*flags):
    status, out, err = run('evaluate.py', '--json=True', '--device=cpu', '--bootstrap=499', *flags)
    assert status == 0, err
    return json.loads(out)


@torch.no_grad()
def token_by_token(model, tokens, eot, stride):
    """log softmax of each token's own logits in float64, from a context put together for that token alone: (N, C)."""
    model, out = model.double(), []
    story = []
    for token in tokens.tolist():
        place, story = len(story), [*story, token]
        window = max(0, -(-(place + 1 - model.config.block_size) // stride)) * stride  # where its window begins
        context = [eot, *story[:-1]][window:]
        out.append(F.log_softmax(model.logits(model(torch.tensor([context])))[0, -1], -1))
        if token == eot:
            story = []
    return torch.stack(out)


def test_perplexity_and_accuracy_are_plain_pytorchs(data, tmp_path):
    """A cross-entropy checkpoint's nats, accuracies, Brier score and ECE equal a loop over single tokens in float64
    and scikit-learn, in softmax and link reading alike."""
    from sklearn.metrics import brier_score_loss
    model = save(tmp_path / 'm.pt')
    found = evaluate(f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}', '--stride=5')
    tokens = np.fromfile(data / 'val.bin', np.uint8)
    log_p, y = token_by_token(model, tokens, 255, 5), torch.from_numpy(tokens).long()
    nats = F.nll_loss(log_p, y).item()
    first_five = log_p.topk(5).indices == y[:, None]
    brier = brier_score_loss(y.numpy(), log_p.exp().numpy(), labels=np.arange(256), scale_by_half=False)
    for name in ('softmax', 'link'):
        reading = found['readings'][name]
        assert math.isclose(reading['nats'], nats, rel_tol=1e-5)
        assert math.isclose(reading['perplexity'], math.exp(nats), rel_tol=1e-4)
        bits = nats * len(tokens) / math.log(2)
        assert math.isclose(reading['bits_per_byte'], bits / len(''.join(TEXTS)), rel_tol=1e-5)
        assert math.isclose(reading['top1'], first_five[:, 0].double().mean(), rel_tol=1e-9)
        assert math.isclose(reading['top5'], first_five.any(1).double().mean(), rel_tol=1e-9)
        assert math.isclose(reading['brier'], brier, rel_tol=1e-5)
        ece = sklearn_ece(log_p.exp().max(1)[0], first_five[:, 0], 'uniform')
        assert reading['ece_width'] == pytest.approx(ece, abs=1e-5)
    assert found['readings']['softmax'] == found['readings']['link']
    assert found['objective'] == pytest.approx(nats, rel=1e-5)
    assert found['raw_link_sum'] == pytest.approx(1) and found['raw_link_negative'] == 0
    assert (found['stories'], found['tokens'], found['bytes']) == (7, len(tokens), len(''.join(TEXTS)))
    assert found['synthetic'] is True and found['source'] == 'this test' and found['iteration'] == 7


def sklearn_ece(confidence, correct, strategy, bins=15):
    """ECE from scikit-learn's reliability curve and the sizes of its bins."""
    from sklearn.calibration import calibration_curve
    confidence, correct = np.asarray(confidence), np.asarray(correct)
    share, mean = calibration_curve(correct, confidence, n_bins=bins, strategy=strategy)
    edges = np.linspace(0, 1, bins + 1)
    edges = edges if strategy == 'uniform' else np.quantile(confidence, edges)
    counts = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=bins)
    return (counts[counts > 0] / len(confidence)) @ abs(share - mean)


@pytest.mark.parametrize('strategy', ['uniform', 'quantile'])
def test_ece_is_scikit_learns(strategy):
    """ECE in bins of equal width and of equal mass equals the one from scikit-learn's reliability curve."""
    generator = np.random.default_rng(0)
    confidence = generator.beta(2, 5, 3000)
    correct = generator.random(3000) < confidence + 0.2 * np.sin(40 * confidence)  # too sure here, too unsure there
    assert metrics.ece(confidence, correct, mass=strategy == 'quantile') == \
        pytest.approx(sklearn_ece(confidence, correct, strategy), abs=1e-12)
    level = 0.5 + 1e-9 * generator.standard_normal(100)  # the last digit does not choose the groups
    assert metrics.ece(level, np.arange(100) % 2, mass=True) == pytest.approx(0, abs=1e-8)
    assert metrics.ece(np.ones(9), np.ones(9)) == 0  # a confidence of exactly 1 has its bin


@pytest.mark.parametrize('loss', ['mse', 'squentropy'])
def test_three_readings_of_another_loss(loss):
    """nats, confidence, Brier score and ranks of every token are those of p = (1 - mix) link^(1/T) + mix softmax,
    written out in float64."""
    tokens, model, C = Tokenizer('byte').encode_stories(TEXTS), tiny_model(), 256
    criterion = losses.make_loss(loss, C)
    N = len(tokens)
    windows = bins.story_windows(bins.stories(tokens, 255), 16, 16)
    states = scoring.HiddenStates(model, tokens, windows, 255, batch_size=3)
    mix, temperature = np.linspace(0.1, 0.9, N), np.linspace(0.7, 1.8, N)
    found = scoring.measure(criterion, states, N, mix, temperature)
    logits = torch.zeros(N, C, dtype=torch.float64)
    for at, h, _ in states:
        logits[at] = (h @ states.weight.T).double()
    y, soft, link = torch.from_numpy(tokens).long(), logits.softmax(-1), losses.link(criterion, logits)
    powered = link ** (1 / torch.from_numpy(temperature)[:, None])
    d = torch.from_numpy(mix)[:, None]
    for name, p in {'softmax': soft, 'link': (1 - losses.MIX) * link + losses.MIX * soft,
                    'fitted': (1 - d) * powered / powered.sum(-1, keepdim=True) + d * soft}.items():
        f, p_y = found[name], p.gather(1, y[:, None])
        np.testing.assert_allclose(f['nats'], -p_y[:, 0].log(), rtol=1e-4)
        np.testing.assert_allclose(f['confidence'], p.max(1)[0], rtol=1e-4)
        np.testing.assert_allclose(f['brier'], (p - F.one_hot(y, C)).square().sum(1), rtol=1e-4)
        np.testing.assert_array_equal(f['rank'], (logits > logits.gather(1, y[:, None])).sum(1))
    above, below = losses.ratio(criterion, logits, soft)
    np.testing.assert_allclose(found['link_sum'], (above / below).sum(1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found['link_negative'], (above / below).clamp(max=0).sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('stride', [1, 5, 16])
def test_every_token_is_scored_once(stride):
    """With any stride each token of the split is scored exactly once, from the story's own tokens, and from at
    least block_size - stride of them where there are as many."""
    tokens = Tokenizer('byte').encode_stories(TEXTS)
    bounds = bins.stories(tokens, 255)
    assert [bytes(tokens[a:b - 1]).decode() for a, b in itertools.pairwise(bounds)] == TEXTS
    times = np.zeros(len(tokens), int)
    for start, length, scored in bins.story_windows(bounds, 16, stride):
        begin = bounds[bounds <= start][-1]
        assert length <= 16 and start + length <= bounds[bounds > start][0]
        times[start + length - scored:start + length] += 1
        if start > begin:
            assert length - scored >= 16 - stride
    assert (times == 1).all()
    blocks = bins.block_windows(len(tokens), 16)
    assert blocks[:, 2].sum() == len(tokens) - 1 and (np.diff(blocks[:, 0]) == 16).all()


def test_cut_off_split():
    """A split whose last story has no end-of-text keeps that story's tokens."""
    assert bins.stories(np.array([1, 9, 2, 3]), 9).tolist() == [0, 2, 4]
    assert bins.stories(np.array([1, 2]), 9).tolist() == [0, 2]


def test_blocks_are_train_pys_windows(data, tmp_path):
    """--blocks gives the nats of train.py's own evaluation of the same windows, and of its shorter last one."""
    model = save(tmp_path / 'm.pt', loss='squentropy')
    found = evaluate(f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}', '--blocks=True')
    tokens = np.fromfile(data / 'val.bin', np.uint8)
    starts = bins.val_windows(len(tokens), 16, 10**9)
    x, y = map(torch.from_numpy, bins.read_windows(tokens, starts, 16))
    rest = torch.from_numpy(tokens[starts[-1] + 16:].astype(np.int64))
    loss = losses.squentropy(256)
    with torch.no_grad():
        parts = [torch.stack(losses.score(loss, model(a), model.lm_head.weight, b, 256))
                 for a, b in ((x, y), (rest[None, :-1], rest[None, 1:]))]
    objective, nats = torch.cat(parts, 1).double().mean(1).tolist()
    assert found['tokens'] == len(tokens) - 1 and found['blocks'] == len(starts) + (len(rest) > 1)
    assert found['readings']['link']['nats'] == pytest.approx(nats, rel=1e-5)
    assert found['objective'] == pytest.approx(objective, rel=1e-5)


def test_figures_repeat(data, tmp_path):
    """The same command gives the same figures to the last digit, another batch size the same to float32's tolerance."""
    save(tmp_path / 'm.pt', loss='squentropy')
    flags = f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}'
    one, many, again = (evaluate(*flags, f'--batch_size={n}') for n in (1, 32, 32))
    assert many == again
    for name, reading in one['readings'].items():
        for key, value in reading.items():
            assert value == pytest.approx(many['readings'][name][key], rel=1e-4), (name, key)


@pytest.mark.parametrize('loss', ['cross_entropy', 'mse', 'squentropy'])
def test_batches_of_any_size(loss):
    """Every token's figures, and what is fitted, are the same in batches of 1 and of 32 windows, padding and all."""
    tokens, model, criterion = Tokenizer('byte').encode_stories(TEXTS), tiny_model(), losses.make_loss(loss, 256)
    windows, fold = bins.story_windows(bins.stories(tokens, 255), 16, 8), np.arange(len(tokens)) % 2
    figures = []
    for batch_size in (1, 32):
        states = scoring.HiddenStates(model, tokens, windows, 255, batch_size)
        T, mix = scoring.fit(criterion, states, fold)
        figures.append(scoring.measure(criterion, states, len(tokens), mix[fold], T[fold]))
        assert (figures[-1]['times'] == 1).all()
    for name in scoring.READINGS:
        for key in ('nats', 'confidence', 'brier'):
            np.testing.assert_allclose(figures[0][name][key], figures[1][name][key], rtol=1e-3, atol=1e-5)


def test_never_all_logits(monkeypatch):
    """No tensor of an evaluation holds more than a chunk of logits, whatever the batch; hidden states are made anew
    where they are too many to keep, with the same figures."""
    from test_losses import LargestTensor
    tokens, model = Tokenizer('byte').encode_stories(TEXTS), tiny_model(vocab_size=4096)
    monkeypatch.setattr(losses, 'chunk_rows', lambda C, device: 3)
    windows = bins.story_windows(bins.stories(tokens, 255), 16, 8)
    loss, fold = losses.squentropy(4096), np.zeros(len(tokens), np.int64)
    figures = []
    for keep in (2**31, 0):
        monkeypatch.setattr(scoring, 'KEEP', keep)
        states = scoring.HiddenStates(model, tokens, windows, 255, batch_size=64)
        with LargestTensor() as largest:
            T, mix = scoring.fit(loss, states, fold, max_passes=2)
            figures.append(scoring.measure(loss, states, len(tokens), mix[fold], T[fold]))
        assert largest.numel <= 16 * 4096 < len(tokens) * 4096 / 2  # the head's own matrix is 16 x 4096
        assert (states.kept is None or states.kept == []) == (keep == 0)
    np.testing.assert_array_equal(figures[0]['fitted']['nats'], figures[1]['fitted']['nats'])


@pytest.mark.parametrize('loss', ['cross_entropy', 'mse', 'squentropy'])
def test_fit_finds_the_minimum(loss):
    """No T and mix on a fine grid give fewer nats than the two that were fitted, in either fold."""
    tokens, model, C = Tokenizer('byte').encode_stories(TEXTS * 2), tiny_model(scale=4.0), 256
    criterion = losses.make_loss(loss, C)
    bounds = bins.stories(tokens, 255)
    states = scoring.HiddenStates(model, tokens, bins.story_windows(bounds, 16, 8), 255, 4)
    fold = np.repeat(np.arange(len(bounds) - 1) % 2, np.diff(bounds))
    T, mix = scoring.fit(criterion, states, fold)
    logits = torch.zeros(len(tokens), C, dtype=torch.float64)
    for at, h, _ in states:
        logits[at] = (h @ states.weight.T).double()
    y, soft = torch.from_numpy(tokens).long(), logits.softmax(-1)
    link = losses.link(criterion, logits)

    def mean_nats(here, T, mix):
        p = link[here] ** (1 / T)
        p = (1 - mix) * p / p.sum(-1, keepdim=True) + mix * soft[here]
        return -p.gather(1, y[here, None]).log().mean().item()
    for k in range(2):
        here = torch.from_numpy(fold == k)
        best = min(mean_nats(here, t, m) for t in np.geomspace(0.3, 3, 20) for m in np.linspace(0.001, 0.999, 20))
        assert mean_nats(here, T[k], mix[k]) <= best + 1e-5


def test_cross_fitting_never_sees_its_own_half(data, tmp_path):
    """On val.bin each half of the stories is read with what was fitted on the other; test.bin with all of val.bin."""
    save(tmp_path / 'm.pt')
    flags = f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}'
    val, test = evaluate(*flags), evaluate(*flags, '--split=test')
    assert len(val['fitted_temperature']) == 2 and len(test['fitted_temperature']) == 1
    assert test['readings']['link'] == val['readings']['link']
    # here test.bin is val.bin: two numbers fitted on all of it beat those fitted on halves and swapped
    assert test['readings']['fitted']['nats'] < val['readings']['fitted']['nats']


def test_bootstrap_is_that_of_a_plain_loop():
    """Intervals of a ratio agree with a plain loop of resamples, and hold the truth about as often as they say."""
    generator = np.random.default_rng(1)
    sizes = generator.integers(50, 300, 60)
    sums = sizes * (3 + 0.3 * generator.standard_normal(60))
    low, high = metrics.bootstrap(sums[:, None], sizes, 4000, seed=3)[0]
    plain = []
    for _ in range(4000):
        drawn = generator.integers(60, size=60)
        plain.append(sums[drawn].sum() / sizes[drawn].sum())
    np.testing.assert_allclose([low, high], np.quantile(plain, [0.025, 0.975]), atol=0.01)
    held = 0
    for seed in range(200):
        sizes = generator.integers(50, 300, 60)
        low, high = metrics.bootstrap((sizes * (3 + 0.3 * generator.standard_normal(60)))[:, None], sizes, 300, seed)[0]
        held += low < 3 < high
    assert 175 <= held <= 199


def test_sign_flip_is_the_enumeration():
    """With few units the p-value tends to the share of all 2^n sign patterns that are as far from zero."""
    d = np.array([[0.9, -0.2, 0.4, 0.5, -0.1, 0.3, 0.7, -0.6], [1.0] * 8]).T
    signs = np.array(list(itertools.product([1, -1], repeat=8)))
    exact = (abs(signs @ d) >= abs(d.sum(0)) - 1e-12).mean(0)
    np.testing.assert_allclose(metrics.sign_flip(d, 40000, seed=0), exact, atol=0.01)
    assert metrics.sign_flip(np.zeros((5, 1)), 99, seed=0) == 1  # no difference at all
    assert metrics.sign_flip(np.ones((50, 1)), 99, seed=0) == 1 / 100  # never less than 1 / (B + 1)


def test_compare_pairs_stories(data, tmp_path):
    """--compare gives the difference of the two results, a p-value near the exact one of 2^7 sign patterns, and
    exactly nothing for a checkpoint with itself."""
    a = save(tmp_path / 'a.pt', seed=1)
    b = save(tmp_path / 'b.pt', seed=2)
    flags = f'--checkpoint={tmp_path}/a.pt', f'--dataset={data}', '--stride=5', '--bootstrap=9999'
    found = evaluate(*flags, f'--compare={tmp_path}/b.pt')
    row = found['compared']['readings']['softmax']
    assert row['nats']['difference'] == pytest.approx(
        found['readings']['softmax']['nats'] - found['compared']['other']['readings']['softmax']['nats'], rel=1e-6)
    tokens = np.fromfile(data / 'val.bin', np.uint8)
    y = torch.from_numpy(tokens).long()[:, None]
    d = (token_by_token(b, tokens, 255, 5) - token_by_token(a, tokens, 255, 5)).gather(1, y)[:, 0].numpy()
    d = np.add.reduceat(d, bins.stories(tokens, 255)[:-1])
    signs = np.array(list(itertools.product([1, -1], repeat=7)))
    assert row['nats']['p'] == pytest.approx((abs(signs @ d) >= abs(d.sum()) - 1e-9).mean(), abs=0.03)
    low, high = row['nats']['interval']
    assert low < row['nats']['difference'] < high
    itself = evaluate(*flags, f'--compare={tmp_path}/a.pt')['compared']['readings']['fitted']['nats']
    assert itself == {'difference': 0, 'interval': [0, 0], 'p': 1}


def test_compare_across_tokenizers(data, tmp_path):
    """Checkpoints of two tokenizers compare in bits per byte only, on the same stories only."""
    bpe = train_bpe(TEXTS * 3, 270)
    other = write_data(tmp_path / 'bpe', tokenizer=bpe)
    save(tmp_path / 'a.pt', dataset=data)
    save(tmp_path / 'b.pt', dataset=other, tokenizer=bpe)
    flags = 'evaluate.py', f'--checkpoint={tmp_path}/a.pt', f'--compare={tmp_path}/b.pt', '--bootstrap=99'
    status, out, err = run(*flags)
    assert status == 1 and out == '' and len(err.splitlines()) == 1 and '--per_byte=True' in err
    status, out, err = run(*flags, '--per_byte=True', '--json=True')
    found = json.loads(out)
    for name, row in found['compared']['readings'].items():
        ours, theirs = (r['readings'][name]['bits_per_byte'] for r in (found, found['compared']['other']))
        assert row['bits_per_byte']['difference'] == pytest.approx(ours - theirs, rel=1e-6)
    fewer = write_data(tmp_path / 'fewer', TEXTS[:-1], tokenizer=bpe)
    save(tmp_path / 'b.pt', dataset=fewer, tokenizer=bpe)
    status, _, err = run(*flags, '--per_byte=True')
    assert status == 1 and len(err.splitlines()) == 1 and 'same stories' in err


def test_table_and_plots(data, tmp_path):
    """The table says split, source, context, and every figure of the JSON; --plots draws two PNGs."""
    save(tmp_path / 'm.pt', loss='mse')
    flags = f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}', '--bootstrap=499'
    found = evaluate(*flags)
    status, out, err = run('evaluate.py', *flags, f'--plots={tmp_path}/plots')
    assert status == 0, err
    for text in ('val.bin', 'this test', 'made-up', 'byte, 256 ids', 'scored once', '7 stories', 'cross-fitting'):
        assert text in out
    for reading in found['readings'].values():
        for key in ('nats', 'bits_per_byte', 'top1', 'top5', 'ece_width', 'ece_mass', 'brier'):
            assert f'{reading[key]:.4f}' in out, key
    for name in ('reliability.png', 'positions.png'):
        assert (tmp_path / 'plots' / name).read_bytes().startswith(b'\x89PNG')


def test_bad_input(data, tmp_path):
    """A missing or damaged checkpoint, bins of another tokenizer, an empty split, a stride too long: one line each."""
    save(tmp_path / 'm.pt')
    (tmp_path / 'damaged.pt').write_bytes((tmp_path / 'm.pt').read_bytes()[:3000])
    other = write_data(tmp_path / 'bpe', tokenizer=train_bpe(TEXTS * 3, 270))
    empty = write_data(tmp_path / 'empty')
    (empty / 'val.bin').write_bytes(b'')
    m, d = f'--checkpoint={tmp_path}/m.pt', f'--dataset={data}'
    for flags, text in {
            (f'--checkpoint={tmp_path}/none.pt', d): 'there is no checkpoint',
            (f'--checkpoint={tmp_path}/damaged.pt', d): 'damaged',
            (m, f'--dataset={other}'): 'another tokenizer (byte, 256 ids)',
            (m, f'--dataset={empty}'): 'has 0 bytes',
            (m,): 'give --dataset=',
            (m, d, '--stride=17'): '--stride=17 is more than the block_size=16',
            (m, d, '--out_dir=x'): 'give the one or the other',
            (m, d, '--per_byte=True'): '--compare=FILE'}.items():
        status, out, err = run('evaluate.py', *flags)
        assert status in (1, 2) and out == '' and len(err.splitlines()) == 1 and text in err, (flags, err)
