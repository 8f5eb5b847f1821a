"""sample.py as a user runs it, with the checkpoint of an untrained model."""
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, Started, check_refused, run

from losses import cross_entropy
from model import GPT, GPTConfig
from nanoloss.checkpoint import describe_model, save_checkpoint
from nanoloss.tokenizer import Tokenizer

LINE = '\n' + '-' * 79 + '\n'


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    """A folder with the ckpt.pt of a byte model, in which letters and end-of-text are more likely than other ids."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=32, vocab_size=256, n_layer=1, n_head=2, n_embd=16))
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = 40  # adds 40 * wte[:, 0] to the logits
        model.transformer.wte.weight[:, 0] = 0
        model.transformer.wte.weight[97:123, 0] = 0.2
        model.transformer.wte.weight[255, 0] = 0.15
    folder = tmp_path_factory.mktemp('run')
    save_checkpoint({**describe_model(model, Tokenizer('byte'), 'cross_entropy', cross_entropy(256)), 'iter_num': 7,
                     'best_val_loss': 5.5, 'config': {}, 'data': {'source': 'nothing'}}, folder / 'ckpt.pt')
    return folder


def sample(run_dir, *flags):
    status, out, err = run('sample.py', f'--out_dir={run_dir}', '--max_new_tokens=50', *flags)
    assert status == 0, err
    assert str(run_dir / 'ckpt.pt') in err and 'cross_entropy' in err and err.count('\n') == 1
    return out


def test_stories_depend_on_the_seed(run_dir):
    """The same seed gives the same stories, also alone; another seed gives others; each begins with the prompt."""
    a, b, c = (sample(run_dir, '--start=Once', f'--seed={seed}') for seed in (1, 1, 2))
    assert a == b != c
    stories = a.split(LINE)
    assert len(stories) == 4 and stories[3] == '' and all(story.startswith('Once') for story in stories[:3])
    assert len(set(stories)) == 4
    assert sample(run_dir, '--start=Once', '--seed=1', '--num_samples=1') == stories[0] + LINE


def test_greedy(run_dir):
    """Temperature 0 does not depend on the seed, and writes what the likeliest token alone does."""
    greedy = sample(run_dir, '--temperature=0', '--num_samples=1')
    for flag in ('--temperature=0', '--top_k=1', '--top_p=1e-9'):
        assert sample(run_dir, flag, '--num_samples=1', '--seed=9') == greedy


@pytest.mark.cuda
def test_cuda_writes_the_story_of_the_cpu(run_dir):
    """In float32 the likeliest story is the same on a GPU."""
    flags = '--temperature=0', '--num_samples=1', '--dtype=float32'
    assert sample(run_dir, *flags, '--device=cuda') == sample(run_dir, *flags, '--device=cpu')


def test_prompt_from_a_file(run_dir, tmp_path):
    """--start=FILE: reads the prompt from a file, with or without a byte-order mark."""
    outputs = []
    for content in (b'The l\xc3\xacttle ', b'\xef\xbb\xbfThe l\xc3\xacttle '):
        (tmp_path / 'prompt.txt').write_bytes(content)
        outputs.append(sample(run_dir, f'--start=FILE:{tmp_path}/prompt.txt'))
    assert outputs[0] == outputs[1] and outputs[0].startswith('The lìttle ')
    (tmp_path / 'prompt.txt').write_bytes('The little '.encode('utf-16'))
    check_refused('sample.py', [f'--out_dir={run_dir}', f'--start=FILE:{tmp_path}/prompt.txt'], 'prompt.txt', 'iconv',
                  cwd=tmp_path)


def test_other_encodings_of_the_terminal(run_dir):
    """A prompt is read as UTF-8 in a locale without it, and what the terminal cannot encode becomes one ?."""
    command = [sys.executable, ROOT / 'sample.py', f'--out_dir={run_dir}', '--start=Größe 🎉', '--max_new_tokens=20']
    env = {**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONIOENCODING': 'cp1252', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = sample(run_dir, '--start=Größe 🎉', '--max_new_tokens=20')
    assert done.stdout.decode('cp1252') == expected.encode('cp1252', 'replace').decode('cp1252')


def test_story_is_streamed(run_dir):
    """The first story appears while it is being generated."""
    process = Started('sample.py', f'--out_dir={run_dir}', '--start=Once', '--top_k=1', '--max_new_tokens=1000000')
    try:
        deadline = time.monotonic() + 60
        while len(process.output()) < 100 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.output().startswith('Once') and len(process.output()) >= 100 and not process.ended()
    finally:
        process.kill()


def test_best_checkpoint_is_preferred(run_dir, tmp_path):
    """best.pt is read if there is one, and --checkpoint reads any file."""
    for name in ('ckpt.pt', 'best.pt', 'other.pt'):
        (tmp_path / name).write_bytes((run_dir / 'ckpt.pt').read_bytes())
    for flag, name in ((f'--out_dir={tmp_path}', 'best.pt'), (f'--checkpoint={tmp_path}/other.pt', 'other.pt')):
        status, _, err = run('sample.py', flag, '--max_new_tokens=5')
        assert status == 0 and str(tmp_path / name) in err, err


@pytest.mark.parametrize('flags, name', [
    (['--out_dir=nowhere'], 'nowhere/ckpt.pt'), (['--temperature=-1'], 'temperature'), (['--top_q=1'], 'top_q'),
    (['--start=FILE:nowhere.txt'], 'nowhere.txt'), (['--device=cuda:77'], '--device=cuda:77'),
    (['--checkpoint=README.md', '--out_dir='], 'README.md'), (['--checkpoint=a.pt'], 'checkpoint'),
])
def test_errors(run_dir, flags, name):
    """An error gives one line that names the flag or the file, and status 1 or 2."""
    status, out, err = run('sample.py', f'--out_dir={run_dir}', *flags)
    assert status in (1, 2) and out == '' and err.startswith('error: ') and err.count('\n') == 1 and name in err


def test_torchrun_is_refused(run_dir):
    """Under torchrun with two processes, sample.py refuses to run."""
    env = dict(TORCHELASTIC_RUN_ID='1', RANK='0', WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT='1')
    status, out, err = run('sample.py', f'--out_dir={run_dir}', **env)
    assert status == 2 and out == '' and err.startswith('error: ') and 'torchrun' in err
