"""Checkpoints, weights and data of others, in and out; transformers' own GPT-2 is the reference throughout."""
import json

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, SHARED, run

import bins
import checkpoint
import foreign
import losses
import sampling
import scoring
from model import GPT, GPTConfig
from tokenizer import Tokenizer, letters, train_bpe

from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

ODD = ['', ' ', '\n\n  x', 'naïve café — “quoted” 日本語 🙂 \u200d', 'a' * 300, "it's 12,345.67!", 'é\x00\x7f\t', 'ab ' * 40]
TINY = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32', '--batch_size=4', '--eval_iters=1']


def hugging_face(size=65, activation='gelu', seed=0, **more):
    """A random GPT-2 of transformers whose weights are large enough to matter, biases too."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=size, n_positions=32, n_embd=16, n_layer=2, n_head=2, activation_function=activation,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, **more)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.2 + ('ln' in name and name.endswith('weight')))
    return model


def turned(name, x):
    """transformers' weight (or moment) as nanoGPT lays it out."""
    return x.T.contiguous() if name.startswith('transformer.h.') and x.dim() == 2 else x.clone()


def nanogpt(model, prefix='', iter_num=0, optimizer=None, **config):
    """The dict that stock nanoGPT would have saved of this model."""
    c = model.config
    weights = {prefix + name: turned(name, p) for name, p in model.state_dict().items()}
    for layer in range(c.n_layer):  # as it was before flash attention
        weights[f'{prefix}transformer.h.{layer}.attn.bias'] = torch.ones(1, 1, c.n_positions, c.n_positions).tril()
    args = dict(n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, block_size=c.n_positions, bias=True,
                vocab_size=c.vocab_size, dropout=0.0)
    return {'model': weights, 'model_args': args, 'iter_num': iter_num, 'best_val_loss': torch.tensor(4.25),
            'optimizer': optimizer or {'state': {}, 'param_groups': []},
            'config': {'dataset': 'shakespeare_char', 'batch_size': 4, 'block_size': c.n_positions, 'device': 'cuda',
                       'compile': True, 'gradient_accumulation_steps': 1, 'learning_rate': 1e-3, **args, **config}}


@pytest.fixture
def ids(tmp_path):
    """nanoGPT's data of 65 ids, with a meta.pkl that must not be opened."""
    folder = tmp_path / 'shakespeare_char'
    folder.mkdir()
    steps = np.random.default_rng(0).integers(1, 4, 4000).cumsum() % 65
    for split in ('train', 'val'):
        steps.astype('<u2').tofile(folder / f'{split}.bin')
    (folder / 'meta.pkl').write_bytes(b'c__builtin__\nexit\n(I3\ntR.')
    return folder


@pytest.mark.parametrize('prefix', ['', '_orig_mod.'])
@pytest.mark.parametrize('size', [65, 50304])
def test_nanogpt_logits(tmp_path, prefix, size):
    """A checkpoint of nanoGPT's gives transformers' logits, for all its ids."""
    reference = hugging_face(size)
    torch.save(nanogpt(reference, prefix), tmp_path / 'ckpt.pt')
    loaded = checkpoint.load(tmp_path / 'ckpt.pt')
    model, tokenizer, loss = checkpoint.restore(loaded)
    x = torch.randint(0, 65, (3, 32))
    with torch.no_grad():
        assert torch.allclose(model.logits(model(x)), reference(x).logits, atol=1e-5)
    assert tokenizer.kind == ('gpt2' if size == 50304 else 'ids') and loss == losses.cross_entropy(size)
    assert loaded['best_val_loss'] == 4.25


def test_no_id_without_a_text(tmp_path):
    """What nanoGPT's model has beyond its tokenizer is never sampled, and no class of a new run."""
    reference = hugging_face(50304)
    with torch.no_grad():
        reference.lm_head.weight[50257:] *= 30  # the likeliest by far
    torch.save(nanogpt(reference), tmp_path / 'ckpt.pt')
    loaded = checkpoint.load(tmp_path / 'ckpt.pt')
    model, tokenizer, loss = checkpoint.restore(loaded)

    class Seen(Tokenizer):
        def encode(self, text):
            return [1, 2]

        def token_bytes(self, id):
            assert id < 50257
            return b'x'
    assert ''.join(text for _, text in sampling.stories(model, Seen('gpt2'), loss, '', 2, 20) if text)
    new, _, _ = checkpoint.restore(checkpoint.cropped(loaded, tokenizer.vocab_size))
    assert new.config.vocab_size == 50257
    assert torch.equal(new.lm_head.weight[:50257], model.lm_head.weight[:50257])


def test_nanogpt_resumes(ids, tmp_path):
    """A run of nanoGPT's goes on as it would have there: transformers' model with torch's AdamW, on the same windows."""
    reference = hugging_face()
    named = [(name, p) for name, p in reference.named_parameters()]
    groups = [{'params': [p for _, p in named if p.dim() >= 2], 'weight_decay': 0.1},
              {'params': [p for _, p in named if p.dim() < 2], 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    data = np.fromfile(ids / 'train.bin', '<u2')
    torch.set_num_threads(1)

    def step(it):
        x, y = map(torch.from_numpy, bins.read_windows(data, bins.train_windows(len(data), 32, 7, it * 4, 4), 32))
        loss = torch.nn.functional.cross_entropy(reference(x).logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    for it in range(3):
        step(it)
    state = optimizer.state_dict()
    order = [name for size in (2, 1) for name, p in named if (p.dim() >= 2) == (size == 2)]
    state = {**state, 'state': {i: {key: turned(order[i], x) if x.dim() else x.clone() for key, x in moments.items()}
                                for i, moments in state['state'].items()}}
    (tmp_path / 'run').mkdir()
    torch.save(nanogpt(reference, iter_num=3, optimizer=state), tmp_path / 'run/ckpt.pt')
    flags = ['--vocab_size=65', '--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=32', '--bias=True',
             '--batch_size=4', '--eval_iters=1', f'--dataset={ids}', '--out_dir=run', '--seed=7', '--decay_lr=False',
             '--warmup_iters=0', '--learning_rate=1e-3', '--beta2=0.95', '--max_iters=6', '--log_interval=1']
    for loss in ('mse', 'squentropy'):
        status, _, err = run(ROOT / 'train.py', *flags, '--init_from=resume', f'--loss={loss}', cwd=tmp_path)
        assert status == 1 and f'loss cross_entropy -> {loss}' in err and err.count('\n') == 1, err
    status, out, err = run(ROOT / 'train.py', *flags, '--init_from=resume', cwd=tmp_path)
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    ours = {line['iter']: line['loss'] for line in lines if 'loss' in line}
    theirs = {it + 1: step(it) for it in range(3, 6)}
    assert ours.keys() == theirs.keys() and all(abs(ours[it] - theirs[it]) < 1e-5 for it in ours), (ours, theirs)


def test_data_without_a_tokenizer(ids, tmp_path):
    """nanoGPT's bins with a meta.pkl train, sample and are scored as ids, once their number is given."""
    flags = [*TINY, f'--dataset={ids}', '--out_dir=run', '--max_iters=2']
    status, _, err = run(ROOT / 'train.py', *flags, cwd=tmp_path)
    assert status == 1 and 'meta.pkl is not opened' in err and '--vocab_size=' in err and err.count('\n') == 1, err
    status, _, err = run(ROOT / 'train.py', *flags, '--vocab_size=64', cwd=tmp_path)
    assert status == 1 and 'id 64' in err and err.count('\n') == 1, err
    status, _, err = run(ROOT / 'train.py', *flags, '--vocab_size=65', cwd=tmp_path)
    assert status == 0, err
    status, out, err = run(ROOT / 'sample.py', '--out_dir=run', '--num_samples=1', '--max_new_tokens=5', '--start=3 4',
                           cwd=tmp_path)
    assert status == 0 and [int(word) < 65 for word in out.replace('-', '').split()] == [True] * 7, (out, err)
    status, _, err = run(ROOT / 'sample.py', '--out_dir=run', '--start=Once', cwd=tmp_path)
    assert status == 1 and 'write ids below 65' in err and err.count('\n') == 1, err
    status, _, err = run(ROOT / 'evaluate.py', '--out_dir=run', cwd=tmp_path)
    assert status == 1 and '--blocks=True' in err and err.count('\n') == 1, err
    status, out, err = run(ROOT / 'evaluate.py', '--out_dir=run', '--blocks=True', '--bootstrap=9', cwd=tmp_path)
    assert status == 0 and 'nats a token' in out, err
    status, _, err = run(ROOT / 'export.py', '--out_dir=run', '--to=there', cwd=tmp_path)
    assert status == 0 and not (tmp_path / 'there/tokenizer.json').exists(), err


@pytest.mark.parametrize('activation', ['gelu', 'gelu_new'])
def test_greedy_text(tmp_path, activation):
    """A folder of transformers' writes, when greedy, what transformers itself writes."""
    reference = hugging_face(activation=activation)
    reference.save_pretrained(tmp_path / 'there')
    model, tokenizer, loss = checkpoint.restore(checkpoint.load(str(tmp_path / 'there')))
    prompt = torch.tensor([[5, 1, 7]])
    theirs = reference.generate(prompt, do_sample=False, max_new_tokens=25, eos_token_id=None, pad_token_id=0)[0, 3:]
    choose = sampling.chooser(loss, np.zeros((1, 25), np.float32), temperature=0)
    assert [int(i) for i in model.generate(prompt, 25, choose)] == theirs.tolist()
    assert tokenizer.kind == 'ids'


def test_new_run_from_a_folder(ids, tmp_path):
    """Weights of transformers begin a run with any loss; the first evaluation is of those weights."""
    reference = hugging_face(activation='gelu_new')
    reference.save_pretrained(tmp_path / 'there')
    status, out, err = run(ROOT / 'train.py', *TINY, f'--dataset={ids}', '--vocab_size=65', '--init_from=there',
                           '--out_dir=run', '--max_iters=2', '--log_interval=1', cwd=tmp_path)
    assert status == 0, err
    data = np.fromfile(ids / 'val.bin', '<u2')
    x, y = map(torch.from_numpy, bins.read_windows(data, bins.val_windows(len(data), 32, 4), 32))
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(reference(x).logits.flatten(0, 1), y.flatten()).item()
    first = json.loads((tmp_path / 'run/metrics.jsonl').read_text().splitlines()[0])
    assert first['iter'] == 0 and abs(first['val_loss'] - nats) < 1e-4
    status, out, err = run(ROOT / 'train.py', *TINY, f'--dataset={ids}', '--vocab_size=65', '--init_from=there',
                           '--out_dir=mse', '--max_iters=2', '--loss=mse', cwd=tmp_path)
    assert status == 0 and 'from there' in out, err


def trained(folder, tokenizer, loss='squentropy', activation='gelu', bias=False, spread=8.0):
    """A checkpoint of ours in folder/best.pt, of random weights, with data of three stories."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=32, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=16, bias=bias,
                          activation=activation)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        model.lm_head.weight[tokenizer.vocab_size:] = 0
        model.transformer.ln_f.weight *= spread
    (folder / 'data').mkdir(exist_ok=True)
    tokens = tokenizer.encode_stories(['Once upon a time. ' * 6, 'The end of it', 'A cat! And a dog.'] * 3)
    splits = {split: {'stories': 9, 'tokens': len(tokens), 'bytes': 100, 'sha256': ''} for split in ('train', 'val')}
    for split in splits:
        (folder / f'data/{split}.bin').write_bytes(tokens.tobytes())
    if tokenizer.kind == 'bpe':
        tokenizer.save(folder / 'data/tokenizer.json')
    (folder / 'data/meta.json').write_text(json.dumps({
        'source': 'three stories', 'synthetic': True, 'tokenizer': tokenizer.kind, 'vocab_size': tokenizer.vocab_size,
        'dtype': tokenizer.dtype.name, 'splits': splits}))
    criterion = losses.make_loss(loss, tokenizer.vocab_size)
    checkpoint.save({**checkpoint.describe(model, tokenizer, loss, criterion), 'iter_num': 7, 'best_val_loss': 2.5,
                     'data': {'source': 'three stories'}, 'config': {'dataset': str(folder / 'data')}}, folder / 'best.pt')
    return model


def texts(count):
    import sys
    sys.path.insert(0, str(ROOT / 'data/tinystories'))
    import synthetic
    return list(synthetic.stories(count=count))


@pytest.mark.parametrize('kind', ['byte', 'bpe', pytest.param('gpt2', marks=pytest.mark.slow)])
def test_export(tmp_path, kind):
    """What is exported gives the same logits and the same ids in transformers, tells a story, and comes back."""
    stories = texts(1000)
    if kind == 'gpt2' and not (SHARED / 'tiktoken').is_dir():
        pytest.skip("GPT-2's encoding is not at hand")
    tokenizer = train_bpe(stories[:300], 700) if kind == 'bpe' else Tokenizer(kind)
    ours = trained(tmp_path, tokenizer, activation='gelu_tanh' if kind == 'bpe' else 'gelu', bias=kind == 'byte')
    if kind != 'byte':  # that one is measured
        reading = dict.fromkeys(['nats', 'perplexity', 'top1', 'brier', 'ece_mass'], 0.5)
        (tmp_path / 'f.json').write_text(json.dumps({'split': 'val', 'source': 'x', 'tokens': 9, 'loss': 'squentropy',
                                                      'iteration': 7, 'readings': {'link': reading}}))
    status, out, err = run(ROOT / 'export.py', f'--checkpoint={tmp_path}/best.pt', '--to=there',
                           f'--figures={"f.json" if kind != "byte" else ""}', cwd=tmp_path)
    assert status == 0, err
    there = tmp_path / 'there'
    theirs, their_tokenizer = AutoModelForCausalLM.from_pretrained(there), AutoTokenizer.from_pretrained(there)
    x = torch.randint(0, tokenizer.vocab_size, (2, 32))
    with torch.no_grad():
        logits = theirs.eval()(x).logits
        assert logits.shape[-1] == tokenizer.vocab_size
        assert torch.allclose(logits, ours.logits(ours(x)), atol=1e-5)
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    for text in [*stories, *ODD]:
        found = their_tokenizer(text)['input_ids']
        assert found == tokenizer.encode(text), text
    assert their_tokenizer.decode(tokenizer.encode(stories[0])) == stories[0]
    assert their_tokenizer.eos_token_id == theirs.config.eos_token_id == tokenizer.eot
    told = transformers.pipeline('text-generation', str(there))('Once upon a time', max_new_tokens=10)[0]['generated_text']
    assert told.startswith('Once upon a time') and len(told) > 16
    card = (there / 'README.md').read_text()
    assert 'Softmax is not the link of squentropy' in card and 'three stories' in card and '| link | ' in card
    back, its_tokenizer, _ = checkpoint.restore(checkpoint.load(str(there)))
    assert its_tokenizer.to_dict() == tokenizer.to_dict()
    with torch.no_grad():
        assert torch.allclose(back.logits(back(x)), logits, atol=1e-5)


@pytest.mark.parametrize('loss', ['mse', pytest.param('cross_entropy', marks=pytest.mark.slow)])
def test_calibrate(tmp_path, loss):
    """The folded temperature is the one at which softmax has the fewest nats on val.bin (a scan says so), the
    embeddings stay, and without --calibrate the sampling temperature says the same."""
    ours = trained(tmp_path, Tokenizer('byte'), loss)
    story = [255]
    for _ in range(120):  # val.bin becomes what the model itself says at temperature 2.5
        with torch.no_grad():
            logits = ours.logits(ours(torch.tensor([story[-32:]])))[0, -1]
        story.append(torch.multinomial((logits[:255] / 2.5).softmax(-1), 1).item())
    tokens = np.array([*story[1:61], 255, *story[61:], 255], np.uint8)
    (tmp_path / 'data/val.bin').write_bytes(tokens.tobytes())
    meta = json.loads((tmp_path / 'data/meta.json').read_text())
    meta['splits']['val'] = {'stories': 2, 'tokens': len(tokens), 'bytes': 120, 'sha256': ''}
    (tmp_path / 'data/meta.json').write_text(json.dumps(meta))
    flags = [f'--checkpoint={tmp_path}/best.pt', f'--dataset={tmp_path}/data']
    status, _, err = run(ROOT / 'export.py', *flags, '--to=there', '--calibrate=True', cwd=tmp_path)
    assert status == 0, err
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / 'there')
    assert torch.equal(theirs.transformer.wte.weight.detach(), ours.transformer.wte.weight[:256].detach())
    T = (ours.transformer.ln_f.weight / theirs.transformer.ln_f.weight)[0].item()
    tokens = np.fromfile(tmp_path / 'data/val.bin', np.uint8).astype(np.int64)
    logits, targets = [], []
    for story in np.split(tokens, np.flatnonzero(tokens == 255) + 1)[:-1]:
        fed = np.concatenate([[255], story])
        for i in range(len(story)):  # every token with what evaluate.py lets it see: windows of 32 that slide by 16
            end = i if i < 32 else 32 + -(-(i - 31) // 16) * 16 - 1
            end = min(end, len(story) - 1)
            begin = max(0, end - 31)
            with torch.no_grad():
                logits.append(ours.logits(ours(torch.from_numpy(fed[begin:i + 1])[None]))[0, -1].double())
            targets.append(story[i])
    logits, targets = torch.stack(logits), torch.tensor(np.array(targets))
    scan = {t: torch.nn.functional.cross_entropy(logits / t, targets).item() for t in np.geomspace(T / 3, T * 3, 201)}
    assert abs(min(scan, key=scan.get) / T - 1) < 0.03
    card = (tmp_path / 'there/README.md').read_text()
    assert f'{T:.3g}'[:3] in card and 'folded' in card
    assert json.loads((tmp_path / 'there/generation_config.json').read_text())['temperature'] == 0.8
    status, _, err = run(ROOT / 'export.py', *flags, '--to=plain', cwd=tmp_path)
    assert status == 0, err
    said = json.loads((tmp_path / 'plain/generation_config.json').read_text())['temperature']
    assert said == pytest.approx(0.8 * T if loss == 'mse' else 0.8, rel=1e-3)


@pytest.mark.parametrize('peak,spread', [(30.0, 1.0), (0.15, 0.003), (4.0, 1.0)])
def test_temperature(peak, spread):
    """The fitted temperature is a scan's, also where Newton's method alone would leap beyond it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 1000, generator=generator) * spread
    y = torch.randint(1000, (400,), generator=generator)
    right = torch.rand(400, generator=generator) < 0.6
    seen = torch.where(right, y, torch.randint(1000, (400,), generator=generator))
    logits[torch.arange(400), seen] += peak

    class States:
        weight, about = torch.eye(1000), ''

        def __iter__(self):
            yield None, logits, y
    T, nats = scoring.softmax_temperature(States())
    scan = {t: torch.nn.functional.cross_entropy(logits.double() / t, y).item() for t in np.geomspace(1e-3, 100, 1001)}
    best = min(scan, key=scan.get)
    assert abs(T / best - 1) < 0.01 and abs(nats - scan[best]) < 1e-4


def test_tokenizers_that_are_not_ours(tmp_path):
    """Ids are a text's only where the folder's tokenizer gives them so: with end of text first, or as many entries as
    GPT-2 but others, they are not taken for ours."""
    bpe = train_bpe(['the cat and the dog, the cat'], 270)
    made = export_tokenizer(bpe)
    made['model']['vocab'] = {entry: (i + 1) % bpe.vocab_size for entry, i in made['model']['vocab'].items()}
    (tmp_path / 'tokenizer.json').write_text(json.dumps(made))
    assert foreign.its_tokenizer(str(tmp_path), bpe.vocab_size)['kind'] == 'ids'
    entries = [chr(256 + i % 68) + chr(0x21 + i // 68 % 90) + chr(0x21 + i // 6120) for i in range(50256)]
    made['model']['vocab'] = {entry: i for i, entry in enumerate([*entries, '<|endoftext|>'])}
    (tmp_path / 'tokenizer.json').write_text(json.dumps(made))
    assert foreign.its_tokenizer(str(tmp_path), 50257)['kind'] != 'gpt2'
    (tmp_path / 'tokenizer.json').write_text(json.dumps(made | {'model': [1]}))
    assert foreign.its_tokenizer(str(tmp_path), 50257)['kind'] == 'ids'


def export_tokenizer(bpe):
    return {'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False}, 'normalizer': None, 'model': {
        'type': 'BPE', 'vocab': {**{''.join(letters()[b] for b in rank): i for i, rank in enumerate(bpe.ranks)},
                                 '<|endoftext|>': bpe.eot}}}


def test_no_more_memory_than_the_file(tmp_path):
    """A small file that claims a large vocabulary or context is refused before it takes memory."""
    made = nanogpt(hugging_face())
    made['model_args']['vocab_size'] = 60000
    made['optimizer'] = {'state': {0: {'step': torch.tensor(1.0), 'exp_avg': torch.zeros(1, 10**6)}}, 'param_groups': []}
    torch.save(made, tmp_path / 'x.pt')
    loaded = checkpoint.load(tmp_path / 'x.pt')
    assert loaded['optimizer']['state'][0]['exp_avg'].numel() == 10**6
    hugging_face().save_pretrained(tmp_path / 'there')
    config = json.loads((tmp_path / 'there/config.json').read_text())
    for change in ({'n_positions': 10**12}, {'n_layer': 10**9}, {'vocab_size': 10**12}):
        (tmp_path / 'there/config.json').write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=next(iter(change))[:1]):
            checkpoint.load(str(tmp_path / 'there'))
    for name in ('quantization_config', 'auto_map'):
        (tmp_path / 'there/config.json').write_text(json.dumps(config | {name: {'x': 'y'}}))
        with pytest.raises(ValueError, match=f'{name} is given'):
            checkpoint.load(str(tmp_path / 'there'))


def test_bad_targets(tmp_path):
    """An export that cannot be made is one line, and nothing is overwritten."""
    trained(tmp_path, Tokenizer('byte'), 'cross_entropy')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/x').write_text('mine')
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'wrong.json').write_text('{"readings": 1')
    (tmp_path / 'other.json').write_text('{"readings": {}, "loss": "mse", "iteration": 7}')
    (tmp_path / 'new.partial').mkdir()
    base = [f'--checkpoint={tmp_path}/best.pt']
    for flags, says in (([], 'give the folder to make'), (['--to=full'], '--to=full is there already'),
                        (['--to=file'], '--to=file is there already'), (['--to=file/x'], '--to=file/x cannot be made'),
                        (['--to=new', '--dataset=nowhere'], 'nowhere'), (['--to=new', '--figures=none'], '--figures=none'),
                        (['--to=new', '--figures=wrong.json'], '--figures=wrong.json'),
                        (['--to=new', '--figures=other.json'], 'of mse at iteration 7'),
                        (['--to=new', '--checkpoint=none.pt'], 'no checkpoint none.pt')):
        status, _, err = run(ROOT / 'export.py', *base, *flags, cwd=tmp_path)
        assert status in (1, 2) and says in err and err.count('\n') == 1, (flags, err)
    assert (tmp_path / 'full/x').read_text() == (tmp_path / 'file').read_text() == 'mine'
    assert [path.name for path in tmp_path.glob('new*')] == ['new.partial']


def without(name):
    return lambda d: d['model'].pop(name)


BAD = [
    (without('transformer.h.1.ln_2.weight'), 'transformer.h.1.ln_2.weight is missing'),
    (lambda d: d['model'].update({'transformer.extra': torch.zeros(3)}), 'transformer.extra is of shape [3], not known'),
    (lambda d: d['model'].update({'transformer.ln_f.weight': torch.zeros(8)}), 'ln_f.weight is of shape [8], not [16]'),
    (lambda d: (without('transformer.h.0.mlp.c_fc.bias')(d), without('transformer.ln_f.bias')(d)),
     'mlp.c_fc.bias is missing'),
    (lambda d: d['model_args'].pop('n_head'), 'model_args lacks n_head'),
    (lambda d: d['model_args'].update(rope=True), 'model_args has rope'),
    (lambda d: d['model_args'].update(vocab_size=70), 'wte.weight is of shape [65, 16], not [70, 16]'),
    (lambda d: d['model_args'].update(n_layer=3), 'n_layer=3, but weights of 2 layers'),
    (lambda d: d.update(best_val_loss=torch.zeros(2)), "no checkpoint"),
    (lambda d: d.update(model=[1]), "no good 'model_args' or 'model'"),
    (lambda d: d.update(iter_num='3'), 'without a good iter_num'),
]


@pytest.mark.parametrize('damage,says', BAD)
def test_bad_nanogpt(tmp_path, damage, says):
    """A checkpoint like nanoGPT's that is not: one line that names what is missing, too much or does not fit."""
    made = nanogpt(hugging_face())
    damage(made)
    torch.save(made, tmp_path / 'x.pt')
    with pytest.raises(ValueError) as e:
        checkpoint.restore(checkpoint.load(tmp_path / 'x.pt'))
    assert says in str(e.value) and 'x.pt' in str(e.value) and '\n' not in str(e.value), e.value


CONFIGS = [({'activation_function': 'relu'}, 'activation_function'), ({'n_inner': 48}, 'n_inner'),
           ({'scale_attn_by_inverse_layer_idx': True}, 'scale_attn'), ({'layer_norm_epsilon': 1e-6}, 'layer_norm_epsilon'),
           ({'model_type': 'llama'}, 'model_type'), ({'n_embd': 32}, 'wte.weight is of shape [65, 16], not [65, 32]')]


@pytest.mark.parametrize('change,says', CONFIGS)
def test_bad_folder(tmp_path, change, says):
    """A folder of Hugging Face's with another architecture is refused in one line that names the difference."""
    hugging_face().save_pretrained(tmp_path / 'there')
    config = json.loads((tmp_path / 'there/config.json').read_text())
    (tmp_path / 'there/config.json').write_text(json.dumps(config | change))
    with pytest.raises((ValueError, OSError)) as e:
        checkpoint.load(str(tmp_path / 'there'))
    assert says in str(e.value) and 'there' in str(e.value) and '\n' not in str(e.value), e.value


def test_not_to_be_had(tmp_path, monkeypatch):
    """Without a network, or without transformers, or in a folder of something else: one line each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='no checkpoint empty'):
        checkpoint.load('empty')
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'nothing'))
    with pytest.raises(OSError, match='gpt2 cannot be had.*network') as e:
        checkpoint.load('gpt2')
    assert '\n' not in str(e.value)
    monkeypatch.setitem(__import__('sys').modules, 'transformers', None)
    with pytest.raises(ValueError, match='pip install transformers'):
        checkpoint.load('gpt2')
    hugging_folder = tmp_path / 'there'
    hugging_folder.mkdir()
    (hugging_folder / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='pip install transformers'):
        foreign.from_hugging_face(str(hugging_folder))


def test_stock_nanogpt_reads_ours():
    """Nothing that nanoGPT's GPTConfig does not take is in model_args, and weights have its names and shapes."""
    model = GPT(GPTConfig(block_size=8, vocab_size=100, n_layer=1, n_head=1, n_embd=4, bias=True))
    plain = checkpoint.describe(model, Tokenizer('ids', size=100), 'mse', losses.mse(100))
    assert set(plain['model_args']) == foreign.NANOGPT_ARGS
    c = GPT2Config(vocab_size=100, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    theirs = {name: list(turned(name, p).shape) for name, p in GPT2LMHeadModel(c).state_dict().items()}
    assert {name: list(p.shape) for name, p in plain['model'].items()} == theirs
