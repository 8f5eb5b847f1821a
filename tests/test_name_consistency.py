"""dev/name_consistency.py on stories whose names are known."""
import re

import torch
from conftest import ROOT, run


def test_counts(tmp_path):
    """Names of val.bin after the first sentence, and those of them that had occurred before, are counted as by hand."""
    stories = ["One day, Lily met Tom's dog. It was big. The dog liked Lily.", 'He saw Tom. Then a bird came. Red.'] * 4
    (tmp_path / 'train.txt').write_text('<|endoftext|>\n'.join(stories + ['It was red. Then they met Anna.'] * 2))
    # known: Lily, Tom; new: Tom. Anna is capitalized twice only, "Red" also occurs in lower case
    val = ['A girl, Lily, ran. "Lily!" said Tom. Red Anna ran.', 'It was Tom. He saw Tom.']
    (tmp_path / 'val.txt').write_text('<|endoftext|>\n'.join(val))
    status, _, err = run(ROOT / 'data/tinystories/prepare.py', f'--input={tmp_path}/train.txt', '--tokenizer=byte',
                         f'--val_input={tmp_path}/val.txt', f'--out_dir={tmp_path}/data')
    assert status == 0, err
    status, _, err = run(ROOT / 'train.py', f'--dataset={tmp_path}/data', f'--out_dir={tmp_path}/out', '--max_iters=0',
                         '--n_layer=1', '--n_embd=16', '--n_head=2', '--block_size=16', '--eval_iters=1',
                         '--batch_size=1', '--sample_tokens=0')
    assert status == 0, err
    status, out, err = run(ROOT / 'dev/name_consistency.py', f'--out_dir={tmp_path}/out', '--num_samples=2',
                           '--max_new_tokens=20', '--show=1')
    assert status == 0 and re.search(r'\b2 names in the training text, such as Lily, Tom\b', out), err
    assert re.search(r'val\.bin +2 stories, +3 names after the first sentence, +66\.7% .* in 50% of', out), out


    weights = torch.load(tmp_path / 'out/ckpt.pt', weights_only=True)
    torch.save(weights | {'config': {}}, tmp_path / 'no_data.pt')
    status, _, err = run(ROOT / 'dev/name_consistency.py', f'--checkpoint={tmp_path}/no_data.pt')
    assert status == 1 and 'no_data.pt' in err and err.count('\n') == 1  # the data set is not known


def test_mistakes(tmp_path):
    """A missing checkpoint is named in one line."""
    status, out, err = run(ROOT / 'dev/name_consistency.py', f'--checkpoint={tmp_path}/no.pt', cwd=tmp_path)
    assert status == 1 and 'no.pt' in err and err.count('\n') == 1 and not out
