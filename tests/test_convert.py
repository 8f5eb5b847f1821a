"""nanoGPT's and Hugging Face's checkpoints and data, in and out. The reference is GPT-2 of transformers."""
import json
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, check_refused, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import losses
from model import GPT, GPTConfig
from nanoloss import convert, dataloader, engine
from nanoloss.checkpoint import (crop_vocab, describe_model, init_model, load_checkpoint, match_dataset,
                                 restore_model)
from nanoloss.tokenizer import Tokenizer, bytes_to_unicode, train_bpe

TINY = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32', '--batch_size=4', '--eval_iters=1']


def hugging_face(vocab_size=65, activation='gelu', **changes):
    """A random GPT-2 of transformers with large weights and biases."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocab_size, n_positions=32, n_embd=16, n_layer=2, n_head=2,
                        activation_function=activation, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                        bos_token_id=0, eos_token_id=0, **changes)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.2 + ('ln' in name and name.endswith('weight')))
    return model


def to_nanogpt(name, x):
    """A weight of transformers, or its moments, in nanoGPT's layout."""
    return x.T.contiguous() if name.startswith('transformer.h.') and x.dim() == 2 else x.clone()


def nanogpt(model, prefix='', iter_num=0, optimizer=None):
    """The dict that nanoGPT would have saved for a model of transformers."""
    c = model.config
    weights = {prefix + name: to_nanogpt(name, p) for name, p in model.state_dict().items()}
    for layer in range(c.n_layer):  # as before flash attention
        weights[f'{prefix}transformer.h.{layer}.attn.bias'] = torch.ones(1, 1, c.n_positions, c.n_positions).tril()
    args = dict(n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, block_size=c.n_positions, bias=True,
                vocab_size=c.vocab_size, dropout=0.0)
    return {'model': weights, 'model_args': args, 'iter_num': iter_num, 'best_val_loss': torch.tensor(4.25),
            'optimizer': optimizer or {'state': {}, 'param_groups': []},
            'config': {'dataset': 'shakespeare_char', 'batch_size': 4, 'device': 'cuda', 'compile': True,
                       'gradient_accumulation_steps': 1, 'learning_rate': 1e-3, **args}}


@pytest.fixture
def ids(tmp_path):
    """nanoGPT's data with 65 ids, and a meta.pkl that must not be opened."""
    folder = tmp_path / 'shakespeare_char'
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(1, 4, 4000).cumsum() % 65
    for split in ('train', 'val'):
        tokens.astype('<u2').tofile(folder / f'{split}.bin')
    (folder / 'meta.pkl').write_bytes(b'c__builtin__\nexit\n(I3\ntR.')
    return folder


# nanoGPT ----------------------------------------------------------------------

@pytest.mark.parametrize('prefix', ['', '_orig_mod.'])
@pytest.mark.parametrize('vocab_size', [65, 50304])
def test_nanogpt_logits(tmp_path, prefix, vocab_size):
    """A nanoGPT checkpoint gives the logits of transformers, for all its ids."""
    reference = hugging_face(vocab_size)
    torch.save(nanogpt(reference, prefix), tmp_path / 'ckpt.pt')
    checkpoint = load_checkpoint(tmp_path / 'ckpt.pt')
    model, tokenizer, loss = restore_model(checkpoint)
    x = torch.randint(0, 65, (3, 32))
    with torch.no_grad():
        assert torch.allclose(model.logits(model(x)), reference(x).logits, atol=1e-5)
    assert tokenizer.kind == ('gpt2' if vocab_size == 50304 else 'ids') and loss == losses.cross_entropy(vocab_size)
    assert checkpoint['best_val_loss'] == 4.25


def test_ids_without_text_are_not_sampled(tmp_path):
    """Ids that a nanoGPT model has beyond its tokenizer are never sampled, and are no classes of a new run."""
    reference = hugging_face(50304)
    with torch.no_grad():
        reference.lm_head.weight[50257:] *= 30  # by far the most likely
    torch.save(nanogpt(reference), tmp_path / 'ckpt.pt')
    checkpoint = load_checkpoint(tmp_path / 'ckpt.pt')
    model, tokenizer, loss = restore_model(checkpoint)

    class CheckedTokenizer(Tokenizer):
        def encode(self, text):
            return [1, 2]

        def token_bytes(self, id):
            assert id < 50257
            return b'x'
    pieces = engine.generate_stories(model, CheckedTokenizer('gpt2'), loss, '', 2, 20)
    assert any(text for _, text in pieces)
    cropped, _, _ = restore_model(crop_vocab(checkpoint, tokenizer.vocab_size))
    assert cropped.config.vocab_size == 50257
    assert torch.equal(cropped.lm_head.weight[:50257], model.lm_head.weight[:50257])


def test_nanogpt_resumes(ids, tmp_path):
    """A nanoGPT run is resumed exactly: transformers' model and torch's AdamW train to the same losses."""
    reference = hugging_face()
    named = list(reference.named_parameters())
    groups = [{'params': [p for _, p in named if p.dim() >= 2], 'weight_decay': 0.1},
              {'params': [p for _, p in named if p.dim() < 2], 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    data = np.fromfile(ids / 'train.bin', '<u2')

    def step(it):
        windows = dataloader.train_windows(len(data), 32, 7, it * 4, 4)
        x, y = dataloader.load_windows(data, windows, 32)
        loss = torch.nn.functional.cross_entropy(reference(x).logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    for it in range(3):
        step(it)
    order = [name for name, p in named if p.dim() >= 2] + [name for name, p in named if p.dim() < 2]
    saved = optimizer.state_dict()
    saved['state'] = {i: {key: to_nanogpt(order[i], x) if x.dim() else x.clone() for key, x in moments.items()}
                      for i, moments in saved['state'].items()}
    (tmp_path / 'run').mkdir()
    torch.save(nanogpt(reference, iter_num=3, optimizer=saved), tmp_path / 'run/ckpt.pt')
    flags = ['--vocab_size=65', '--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=32', '--bias=True',
             '--batch_size=4', '--eval_iters=1', f'--dataset={ids}', '--out_dir=run', '--seed=7', '--decay_lr=False',
             '--warmup_iters=0', '--learning_rate=1e-3', '--beta2=0.95', '--max_iters=6', '--log_interval=1',
             '--init_from=resume']
    status, _, err = run(ROOT / 'train.py', *flags, '--loss=mse', cwd=tmp_path)
    assert status == 1 and 'run/ckpt.pt' in err and 'mse' in err and err.count('\n') == 1, err
    status, _, err = run(ROOT / 'train.py', *flags, cwd=tmp_path)
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    found = {line['iter']: line['loss'] for line in lines if 'loss' in line}
    assert found == pytest.approx({it + 1: step(it) for it in range(3, 6)}, abs=1e-5)


def test_data_without_a_tokenizer(ids, tmp_path):
    """nanoGPT's bins with a meta.pkl can be trained on, sampled, evaluated and exported as ids, given --vocab_size."""
    flags = [*TINY, f'--dataset={ids}', '--out_dir=run', '--max_iters=2']
    status, _, err = run(ROOT / 'train.py', *flags, cwd=tmp_path)
    assert status == 1 and 'meta.pkl' in err and '--vocab_size=' in err and err.count('\n') == 1, err
    status, _, err = run(ROOT / 'train.py', *flags, '--vocab_size=65', cwd=tmp_path)
    assert status == 0, err
    status, out, err = run(ROOT / 'sample.py', '--out_dir=run', '--num_samples=1', '--max_new_tokens=5', '--start=3 4',
                           cwd=tmp_path)
    assert status == 0 and [int(word) < 65 for word in out.replace('-', '').split()] == [True] * 7, (out, err)
    status, _, err = run(ROOT / 'evaluate.py', '--out_dir=run', cwd=tmp_path)
    assert status == 1 and '--blocks=True' in err and err.count('\n') == 1, err
    status, _, err = run(ROOT / 'export.py', '--out_dir=run', '--to=exported', cwd=tmp_path)  # runs evaluate.py
    assert status == 0 and not (tmp_path / 'exported/tokenizer.json').exists(), err
    assert '| softmax |' in (tmp_path / 'exported/README.md').read_text()


def test_nanogpt_reads_our_checkpoints():
    """model_args holds only arguments of nanoGPT's GPTConfig; weights have nanoGPT's names and shapes."""
    model = GPT(GPTConfig(block_size=8, vocab_size=100, n_layer=1, n_head=1, n_embd=4, bias=True))
    described = describe_model(model, Tokenizer('ids', size=100), 'mse', losses.mse(100))
    assert set(described['model_args']) == convert.NANOGPT_ARGS
    config = GPT2Config(vocab_size=100, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    expected = {name: to_nanogpt(name, p).shape for name, p in GPT2LMHeadModel(config).state_dict().items()}
    assert {name: p.shape for name, p in described['model'].items()} == expected


@pytest.mark.parametrize('kept', [convert.NANOGPT_KEYS - {'optimizer'}, {'model', 'model_args'}], ids=len)
def test_stripped_nanogpt(ids, tmp_path, kept):
    """A checkpoint that was stripped to share its weights is read, and starts a run, but cannot be resumed."""
    reference = hugging_face()
    (tmp_path / 'run').mkdir()
    stripped = {key: value for key, value in nanogpt(reference).items() if key in kept}
    if len(kept) == 2:
        del stripped['model']['lm_head.weight']  # it is tied
    torch.save(stripped, tmp_path / 'run/ckpt.pt')
    model, _, _ = restore_model(load_checkpoint(tmp_path / 'run/ckpt.pt'))
    x = torch.randint(0, 65, (3, 32))
    with torch.no_grad():
        assert torch.allclose(model.logits(model(x)), reference(x).logits, atol=1e-5)
    flags = ['--block_size=32', '--batch_size=4', '--eval_iters=1', f'--dataset={ids}', '--vocab_size=65',
             '--max_iters=1']
    status, _, err = run(ROOT / 'train.py', *flags, '--init_from=run/ckpt.pt', '--out_dir=other', cwd=tmp_path)
    assert status == 0, err
    check_refused('train.py', [*flags, '--init_from=resume', '--out_dir=run'], 'run/ckpt.pt', 'optimizer',
                  '--init_from=', cwd=tmp_path)


def remove(name):
    return lambda d: d['model'].pop(name)


BAD_NANOGPT = [
    (remove('transformer.h.1.ln_2.weight'), 'transformer.h.1.ln_2.weight'),
    (remove('transformer.h.0.mlp.c_fc.bias'), 'transformer.h.0.mlp.c_fc.bias'),
    (lambda d: d['model'].update({'transformer.extra': torch.zeros(3)}), 'transformer.extra'),
    (lambda d: d['model'].update({'transformer.ln_f.weight': torch.zeros(8)}), 'transformer.ln_f.weight'),
    (lambda d: d['model'].update({'lm_head.weight': torch.zeros(65, 16)}), 'lm_head.weight'),
    (lambda d: d['model_args'].pop('n_head'), 'n_head'),
    (lambda d: d['model_args'].update(rope=True), 'rope'),
    (lambda d: d['model_args'].update(vocab_size=70), 'vocab_size=70'),
    (lambda d: d['model_args'].update(vocab_size=10**6), 'vocab_size=1000000'),
    (lambda d: d['model_args'].update(n_layer=3), 'n_layer=3'),
    (lambda d: d.update(best_val_loss=torch.zeros(2)), ''),
    (lambda d: d.update(model=[1]), 'model'),
    (lambda d: d.update(iter_num='3'), 'iter_num'),
]


@pytest.mark.parametrize('damage,name', BAD_NANOGPT)
def test_invalid_nanogpt(tmp_path, damage, name):
    """A nanoGPT checkpoint that is damaged or of another model gives one line with the file and the part."""
    contents = nanogpt(hugging_face())
    damage(contents)
    torch.save(contents, tmp_path / 'x.pt')
    with pytest.raises(ValueError) as e:
        restore_model(load_checkpoint(tmp_path / 'x.pt'))
    assert name in str(e.value) and 'x.pt' in str(e.value) and '\n' not in str(e.value), e.value


# from Hugging Face ------------------------------------------------------------

@pytest.mark.parametrize('activation', ['gelu', 'gelu_new'])
def test_greedy_text(tmp_path, activation):
    """A model directory of transformers generates greedily what transformers generates."""
    reference = hugging_face(activation=activation)
    reference.save_pretrained(tmp_path / 'hf')
    model, tokenizer, loss = restore_model(load_checkpoint(str(tmp_path / 'hf')))
    prompt = torch.tensor([[5, 1, 7]])
    expected = reference.generate(prompt, do_sample=False, max_new_tokens=25, eos_token_id=None, pad_token_id=0)[0, 3:]
    sampler = engine.make_sampler(loss, np.zeros((1, 25), np.float32), temperature=0)
    assert [int(i) for i in engine.generate(model, prompt, 25, sampler)] == expected.tolist()
    assert tokenizer.kind == 'ids'


def test_new_run_from_a_directory(ids, tmp_path):
    """Weights of transformers start a run with any loss; the first evaluation is of those weights."""
    reference = hugging_face(activation='gelu_new')
    reference.save_pretrained(tmp_path / 'hf')
    flags = ['--block_size=32', '--batch_size=4', '--eval_iters=1', f'--dataset={ids}', '--vocab_size=65',
             '--init_from=hf', '--max_iters=1']
    status, _, err = run(ROOT / 'train.py', *flags, '--out_dir=run', cwd=tmp_path)
    assert status == 0, err
    data = np.fromfile(ids / 'val.bin', '<u2')
    x, y = dataloader.load_windows(data, dataloader.val_windows(len(data), 32, 4), 32)
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(reference(x).logits.flatten(0, 1), y.flatten()).item()
    first = json.loads((tmp_path / 'run/metrics.jsonl').read_text().splitlines()[0])
    assert first['iter'] == 0 and abs(first['val_loss'] - nats) < 1e-4
    status, _, err = run(ROOT / 'train.py', *flags, '--out_dir=mse', '--loss=mse', cwd=tmp_path)
    assert status == 0, err


def tokenizer_json(vocab):
    return {'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False}, 'normalizer': None,
            'model': {'type': 'BPE', 'vocab': vocab}}


def test_tokenizers_of_other_models(tmp_path):
    """A tokenizer.json is used only if it gives this project's ids; otherwise the ids have no text."""
    def kind(contents, vocab_size):
        (tmp_path / 'tokenizer.json').write_text(json.dumps(contents))
        return convert._find_tokenizer(str(tmp_path), vocab_size)['kind']
    bpe = train_bpe(['the cat and the dog, the cat'], 270)
    vocab = {''.join(bytes_to_unicode()[b] for b in rank): i for i, rank in enumerate(bpe.ranks)}
    vocab['<|endoftext|>'] = bpe.eot
    assert kind(tokenizer_json(vocab), bpe.vocab_size) == 'bpe'
    rotated = {token: (i + 1) % bpe.vocab_size for token, i in vocab.items()}
    assert kind(tokenizer_json(rotated), bpe.vocab_size) == 'ids'
    other = [chr(256 + i % 68) + chr(0x21 + i // 68 % 90) + chr(0x21 + i // 6120) for i in range(50256)]
    assert kind(tokenizer_json({token: i for i, token in enumerate([*other, '<|endoftext|>'])}), 50257) != 'gpt2'
    assert kind(tokenizer_json(vocab) | {'model': [1]}, 50257) == 'ids'


CONFIGS = [('activation_function', 'relu'), ('n_inner', 48), ('scale_attn_by_inverse_layer_idx', True),
           ('layer_norm_epsilon', 1e-6), ('model_type', 'llama'), ('n_embd', '16'), ('quantization_config', {'x': 'y'}),
           ('auto_map', {'x': 'y'}), ('n_layer', 10**9)]
SHAPES = [('n_embd', 32, 'wte.weight'), ('n_positions', 10**12, 'wpe.weight'), ('vocab_size', 10**12, 'wte.weight')]


@pytest.mark.parametrize('key,value,name', [(key, value, key) for key, value in CONFIGS] + SHAPES)
def test_unsupported_directory(tmp_path, key, value, name):
    """Another architecture, or a config that does not fit the weights, is refused before it takes memory."""
    hugging_face().save_pretrained(tmp_path / 'hf')
    config = json.loads((tmp_path / 'hf/config.json').read_text())
    (tmp_path / 'hf/config.json').write_text(json.dumps(config | {key: value}))
    with pytest.raises((ValueError, OSError)) as e:
        load_checkpoint(str(tmp_path / 'hf'))
    assert name in str(e.value) and 'hf' in str(e.value) and '\n' not in str(e.value), e.value


def rewrite_head(folder):
    weights = load_file(folder / 'model.safetensors')
    save_file(weights | {'lm_head.weight': weights['transformer.wte.weight'] * 2}, folder / 'model.safetensors')


def list_missing_shard(folder):
    (folder / 'model.safetensors').rename(folder / 'model-00001-of-00002.safetensors')
    shards = {'transformer.wte.weight': 'model-00001-of-00002.safetensors',
              'transformer.wpe.weight': 'model-00002-of-00002.safetensors'}
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': shards}))


INCOMPLETE = {
    'no weights': (lambda folder: (folder / 'model.safetensors').unlink(), 'model.safetensors'),
    'older format': (lambda folder: (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin'),
                     'model.safetensors'),
    'no second shard': (list_missing_shard, 'model-00002-of-00002.safetensors'),
    'pointer of Git LFS': (lambda folder: (folder / 'model.safetensors').write_text(
        'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n'), 'model.safetensors'),
    'head of its own': (rewrite_head, 'lm_head.weight'),
}


@pytest.mark.parametrize('damage,name', INCOMPLETE.values(), ids=INCOMPLETE)
def test_incomplete_directory(tmp_path, damage, name):
    """A missing file is named, and so is a head that is not the embedding."""
    hugging_face().save_pretrained(tmp_path / 'hf')
    damage(tmp_path / 'hf')
    with pytest.raises((ValueError, OSError)) as e:
        restore_model(load_checkpoint(str(tmp_path / 'hf')))
    assert name in str(e.value) and 'hf' in str(e.value) and '\n' not in str(e.value), e.value


@pytest.mark.parametrize('vocab_size', [200, 256, 300])
def test_directory_without_tokenizer(tiny_data, tmp_path, vocab_size):
    """A model directory without tokenizer files cannot be used with text; the missing file is named."""
    hugging_face(vocab_size).save_pretrained(tmp_path / 'hf')
    checkpoint, data = load_checkpoint(str(tmp_path / 'hf')), dataloader.open_dataset(str(tiny_data), 32)
    config = {'dataset': str(tiny_data), 'block_size': 32, 'dropout': 0.0}
    for use in (lambda: init_model(checkpoint, False, config, set(), data),
                lambda: match_dataset(checkpoint['path'], restore_model(checkpoint)[1], str(tiny_data))):
        with pytest.raises(ValueError) as e:
            use()
        assert all(name in str(e.value) for name in ('hf', 'tokenizer.json', str(tiny_data)))
        assert '\n' not in str(e.value)


def test_not_loadable(tmp_path, monkeypatch):
    """Without a network or without transformers, and for an adapter, there is one error with the name."""
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'empty'))
    with pytest.raises(OSError) as e:
        load_checkpoint('gpt2')
    assert 'gpt2' in str(e.value) and '\n' not in str(e.value)
    (tmp_path / 'hf').mkdir()
    (tmp_path / 'hf/config.json').write_text('{}')
    (tmp_path / 'hf/adapter_config.json').write_text('{}')
    with pytest.raises(ValueError) as e:
        load_checkpoint(str(tmp_path / 'hf'))
    assert 'hf' in str(e.value) and '\n' not in str(e.value)
    (tmp_path / 'hf/adapter_config.json').unlink()
    monkeypatch.setitem(sys.modules, 'transformers', None)
    for path in ('gpt2', str(tmp_path / 'hf')):
        with pytest.raises(ValueError) as e:
            load_checkpoint(path)
        assert path in str(e.value) and 'pip install transformers' in str(e.value)


# to Hugging Face --------------------------------------------------------------

ODD_TEXTS = ['', ' ', '\n\n  x', 'naïve café — “quoted” 日本語 🙂 \u200d', 'a' * 300, "it's 12,345.67!",
             'é\x00\x7f\t', 'ab ' * 40]


@pytest.fixture(scope='module')
def stories():
    sys.path.insert(0, str(ROOT / 'data/synthetic'))
    from grammar import generate_stories
    sys.path.pop(0)
    return list(generate_stories(0, 300))


@pytest.mark.parametrize('kind', ['byte', 'bpe', pytest.param('gpt2', marks=pytest.mark.slow)])
def test_to_hugging_face(tmp_path, stories, kind):
    """A converted model gives the same logits and ids in transformers, and converts back to the same model."""
    tokenizer = train_bpe(stories, 700) if kind == 'bpe' else Tokenizer(kind)
    try:
        tokenizer.encode('')
    except ConnectionError as e:
        pytest.skip(str(e))
    model = GPT(GPTConfig(block_size=32, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=16,
                          bias=kind == 'byte', activation='gelu_tanh' if kind == 'bpe' else 'gelu')).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    convert.to_hugging_face_model(model, tokenizer).save_pretrained(tmp_path)
    convert.save_hugging_face_tokenizer(tokenizer, 32, tmp_path)
    exported, exported_tokenizer = (auto.from_pretrained(tmp_path) for auto in (AutoModelForCausalLM, AutoTokenizer))
    x = torch.randint(0, tokenizer.vocab_size, (2, 32))
    with torch.no_grad():
        logits = exported.eval()(x).logits
        assert torch.allclose(logits, model.logits(model(x)), atol=1e-5)
    assert logits.shape[-1] == tokenizer.vocab_size
    assert exported.lm_head.weight is exported.transformer.wte.weight
    for text in [*stories, *ODD_TEXTS]:
        assert exported_tokenizer(text)['input_ids'] == tokenizer.encode(text), text
    for text in [stories[0], *ODD_TEXTS]:
        assert exported_tokenizer.decode(tokenizer.encode(text)) == text
    saved = json.loads((tmp_path / 'tokenizer_config.json').read_text())
    assert saved['tokenizer_class'] == 'PreTrainedTokenizerFast'  # in transformers 4 and 5
    assert exported_tokenizer.model_max_length == 32 and exported_tokenizer.bos_token_id == tokenizer.eot
    assert exported_tokenizer.eos_token_id == exported.config.eos_token_id == tokenizer.eot
    restored, restored_tokenizer, _ = restore_model(load_checkpoint(str(tmp_path)))
    assert restored_tokenizer.to_dict() == tokenizer.to_dict()
    with torch.no_grad():
        assert torch.allclose(restored.logits(restored(x)), logits, atol=1e-5)
