"""Measure whether the characters of sampled stories keep their names.

    python dev/name_consistency.py --out_dir=out/synthetic

Prints the share of names after the first sentence that have occurred before in the same story, for stories sampled at
the default settings of sample.py, and for stories of val.bin, which are the reference: a story may introduce somebody
later. A name is a word that the training text capitalizes within sentences, and never writes in lower case.
"""
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configurator import configure, fail

checkpoint = ''         # checkpoint file; '' = best.pt or ckpt.pt of out_dir
out_dir = ''            # folder of a run; '' = the newest under out/
num_samples = 100       # sampled stories, and at most as many of val.bin
max_new_tokens = 500    # maximum length of a story, in tokens
seed = 1337             # random seed of the sampling
show = 0                # print the first N sampled stories, with the new names marked
configure(globals(), rules=['num_samples >= 1', 'max_new_tokens >= 1', 'seed >= 0', 'show >= 0',
                            ('not (checkpoint and out_dir)', 'omit one of them')])
import re

import numpy as np

from nanoloss import signals

signals.install_excepthook('lower --num_samples')

from nanoloss import dataloader, engine
from nanoloss.checkpoint import load_checkpoint, match_dataset, restore_model
from nanoloss.run_dir import find_checkpoint

TEXT_TOKENS = 2**20  # of train.bin, from which the names are collected
MIN_COUNT = 3
SENTENCE_END = re.compile(r'(?<=[.!?])["\u201d]?\s+')
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def words(sentence):
    """Return the words of a sentence, without a possessive 's."""
    return [word.removesuffix("'s") for word in WORD.findall(sentence)]


def collect_names(text):
    """Return the words that are capitalized within sentences at least MIN_COUNT times, and never in lower case."""
    inside, lower = Counter(), set()
    for sentence in SENTENCE_END.split(text):
        found = re.sub(r'["\u201c]\s*[A-Z]', lambda match: match[0].lower(), sentence)  # the beginning of a quotation
        inside.update(word for word in words(found)[1:] if word.istitle() and len(word) > 1)
        lower.update(word for word in words(sentence) if word.islower())
    return {word for word, count in inside.items() if count >= MIN_COUNT and word.lower() not in lower}


def count_names(story, names):
    """Return (names after the first sentence, those of them that have occurred before, the story with marks)."""
    total = known = 0
    seen, marked = set(), []
    for number, sentence in enumerate(SENTENCE_END.split(story.strip())):
        for word in words(sentence):
            if word not in names:
                continue
            if number:
                total, known = total + 1, known + (word in seen)
                if word not in seen:
                    sentence = re.sub(rf'\b{word}\b', f'[{word}]', sentence, count=1)
            seen.add(word)
        marked.append(sentence)
    return total, known, ' '.join(marked)


def report(kind, stories, names):
    """Print the figures of some stories; return the stories with marks."""
    total, known, marked = zip(*(count_names(story, names) for story in stories), strict=True)
    total, known = np.array(total), np.array(known)
    share = known.sum() / max(1, total.sum())
    print(f'{kind:10} {len(stories):6,} stories, {total.sum():6,} names after the first sentence, {share:6.1%} of them '
          f'introduced before; no new name in {(total == known).mean():.0%} of the stories')
    return marked


try:
    path = find_checkpoint(checkpoint, out_dir)
    loaded = load_checkpoint(path)
    model, tokenizer, loss = restore_model(loaded, 'cpu')
    if 'dataset' not in loaded['config']:
        fail(f'{path} does not record its data set; pass a checkpoint of train.py')
    folder, meta = match_dataset(path, tokenizer, loaded['config']['dataset'])
    if tokenizer.kind == 'ids':
        fail(f'{path} was trained on ids without a text; pass a checkpoint with a tokenizer')
    train, val = (dataloader.open_bin(folder, split, meta) for split in ('train', 'val'))
except (OSError, ValueError) as e:
    fail(e)
names = collect_names(tokenizer.decode(train[:TEXT_TOKENS].tolist()).replace('<|endoftext|>', '\n'))
bounds = dataloader.story_bounds(val, tokenizer.eot)
real = [tokenizer.decode(val[a:b - 1].tolist()) for a, b in zip(bounds[:num_samples], bounds[1:], strict=False)]
sampled = [''] * num_samples
for i, piece in engine.generate_stories(model.eval(), tokenizer, loss, '', num_samples, max_new_tokens, seed,
                                        temperature=0.8, top_k=200, top_p=0.9):
    sampled[i] += piece or ''
print(f'{path}: {len(names):,} names in the training text, such as {", ".join(sorted(names)[:8])}')
report('val.bin', real, names)
for story in report('sampled', sampled, names)[:show]:
    print(f'\n{story}')
