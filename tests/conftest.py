"""Where the real text and GPT-2's encoding lie, if they do; else the tests that need them skip."""
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
if (SHARED / 'tiktoken').is_dir():
    os.environ.setdefault('TIKTOKEN_CACHE_DIR', str(SHARED / 'tiktoken'))
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # no test waits for a network


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
