"""Where the real text and GPT-2's encoding lie, if they do; else the tests that need them skip."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
if (SHARED / 'tiktoken').is_dir():
    os.environ.setdefault('TIKTOKEN_CACHE_DIR', str(SHARED / 'tiktoken'))
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # no test waits for a network
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def run(*command, cwd=ROOT, timeout=120, **env):
    """A script of the project as a user runs it: (exit status, stdout, stderr), without colours or threads' noise."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True,
                          timeout=timeout, env={'OMP_NUM_THREADS': '1', **os.environ, **env}, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
    """300 synthetic stories as bytes: a data folder that a small model learns something of in seconds."""
    folder = tmp_path_factory.mktemp('data') / 'bytes'
    status, _, err = run('data/tinystories/prepare.py', '--source=synthetic', '--tokenizer=byte', '--max_stories=300',
                         '--val_fraction=0.1', f'--out_dir={folder}')
    assert status == 0, err
    return folder
