"""
Prepare TinyStories, or any stories in a file, as token bins: train.bin, val.bin, test.bin and meta.json.

    python data/tinystories/prepare.py                        TinyStories from the Hugging Face hub
    python data/tinystories/prepare.py --input=stories.txt    stories in a file

A hash of each training story decides whether it goes to train.bin or val.bin. test.bin is the hub's validation
split, or --test_input. Supported files: .txt (stories separated by <|endoftext|>), .jsonl and .json (objects with a
key "text" or "story"; .json may hold one array), all of them also as .gz, and .parquet (a column "text" or "story").
"""
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from nanoloss.paths import DATA
from nanoloss.prepare import prepare
from nanoloss.readers import HUB, REVISION, load_files, load_hub

# stories ----------------------------------------------------------------------
input = ''  # file of training stories; '' = the Hugging Face hub
val_input = ''  # file of validation stories; '' = take them from the training stories
val_fraction = 0.02  # fraction of the training stories that go to val.bin
test_input = ''  # file of test stories
max_stories = 0  # use only the first N training stories, validation stories included; 0 = all
# tokens -----------------------------------------------------------------------
tokenizer = 'bpe'  # 'bpe' (learned from the training stories), 'gpt2' or 'byte'
vocab_size = 4096  # number of ids of a BPE, end-of-text included
bpe_megabytes = 100  # MB of training text that a BPE is learned from, at about 5 MB/s; 0 = all
# output -----------------------------------------------------------------------
out_dir = ''  # default: data/tinystories/<tokenizer>
overwrite = False  # replace other data in out_dir
workers = 0  # processes; 0 = one per CPU, up to 8
if __name__ == '__main__':  # worker processes import this file too
    configure(globals(), rules=[
        "tokenizer in ('gpt2', 'bpe', 'byte')",
        ('0 < val_fraction < 0.9', 'val.bin and train.bin both need stories'),
        ('258 <= vocab_size <= 65536', 'a BPE has 256 bytes, end-of-text and at least one merge; ids have 16 bits'),
        ('max_stories >= 0', '0 = all'),
        ('bpe_megabytes >= 0', '0 = all'),
        ('workers >= 0', '0 = one per CPU'),
    ], applies=[
        ("input != ''", 'val_input', 'test_input'),
        ("val_input == ''", 'val_fraction'),
        ("tokenizer == 'bpe'", 'vocab_size', 'bpe_megabytes'),
    ])
    prepare(partial(load_files, train=input, val=val_input, test=test_input) if input else load_hub,
            source=f'file:{Path(input).name}' if input else f'{HUB}@{REVISION}',
            out_dir=out_dir or DATA / 'tinystories' / tokenizer, tokenizer=tokenizer, vocab_size=vocab_size,
            bpe_megabytes=bpe_megabytes, max_stories=max_stories, val_fraction=val_fraction, overwrite=overwrite,
            workers=workers)
