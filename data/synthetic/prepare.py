"""
Prepare synthetic stories as token bins: train.bin, val.bin, test.bin and meta.json. Needs no network.

    python data/synthetic/prepare.py

grammar.py generates the stories. They are not TinyStories and are much easier to model: results on them say nothing
about TinyStories. A hash of each story decides its split.
"""
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from grammar import generate_stories
from nanoloss.paths import DATA
from nanoloss.prepare import prepare, progress_bar
from nanoloss.readers import Source

# stories ----------------------------------------------------------------------
stories = 24000  # number of stories
seed = 1337  # of the grammar
val_fraction = 0.02  # fraction of the stories that go to val.bin; another 0.02 go to test.bin
# tokens -----------------------------------------------------------------------
tokenizer = 'bpe'  # 'bpe' (learned from the training stories), 'gpt2' or 'byte'
vocab_size = 1536  # number of ids of a BPE, end-of-text included; enough for all words of the grammar
# output -----------------------------------------------------------------------
out_dir = ''  # default: data/synthetic/<tokenizer>
overwrite = False  # replace other data in out_dir
workers = 0  # processes; 0 = one per CPU, up to 8


def load(name):
    print(f'generating {stories:,} stories ...', flush=True)
    generated = []
    with progress_bar('generating', stories, ' stories') as bar:
        for n, story in enumerate(generate_stories(seed, stories), 1):
            generated.append((story, n))
            bar.update()
    return {'train': Source(name, partial(iter, generated), stories)}


if __name__ == '__main__':  # worker processes import this file too
    configure(globals(), rules=[
        "tokenizer in ('gpt2', 'bpe', 'byte')",
        'stories >= 1',
        'seed >= 0',
        ('0 < val_fraction < 0.9', 'val.bin and train.bin both need stories'),
        ('258 <= vocab_size <= 65536', 'a BPE has 256 bytes, end-of-text and at least one merge; ids have 16 bits'),
        ('workers >= 0', '0 = one per CPU'),
    ], applies=[("tokenizer == 'bpe'", 'vocab_size')])
    source = f'{stories:,} synthetic stories from a grammar, not TinyStories (seed {seed})'
    prepare(partial(load, source), source=source, out_dir=out_dir or DATA / 'synthetic' / tokenizer,
            tokenizer=tokenizer, vocab_size=vocab_size, val_fraction=val_fraction, test_fraction=0.02,
            overwrite=overwrite, workers=workers)
