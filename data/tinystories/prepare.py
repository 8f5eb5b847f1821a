"""
Text to token bins: train.bin, val.bin and, where there is one, test.bin, with meta.json beside them.

    python data/tinystories/prepare.py                        TinyStories from the Hugging Face hub
    python data/tinystories/prepare.py --source=synthetic     a stand-in that needs no network
    python data/tinystories/prepare.py --input=stories.txt    any file of stories

val.bin is cut from the training stories by a hash of each story, so the same story always lands
in the same split. test.bin is the hub's validation split, or --test_input; of the synthetic
stories it is another 2 % by hash. A file is .txt (stories separated by <|endoftext|>), .jsonl or
.json (objects with a key text or story; .json may be one array), each perhaps .gz, or .parquet
(a column text or story). The files appear together at the end, or not at all; only a run that
is killed outright leaves a folder .partial-* of its own to delete.
"""
import collections
import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from configurator import configure, fail
from sources import (HUB, REVISION, SEPARATOR, Mistake, clean, load_hub, read_file, read_rows, reader_of,
                     synthetic_stories)
from tokenizer import Tokenizer, train_bpe

# -----------------------------------------------------------------------------
# stories
source = 'hub'  # 'hub' (roneneldan/TinyStories) or 'synthetic'; --input goes before it
input = ''  # file of training stories
val_input = ''  # file of validation stories; without it they are cut from the training stories
val_fraction = 0.02  # of the training stories, by hash
test_input = ''  # file of test stories
max_stories = 0  # use only the first so many training stories, val's included; 0 = all
# -----------------------------------------------------------------------------
# tokens
tokenizer = 'bpe'  # 'bpe' (learned from the training stories), 'gpt2' or 'byte'
vocab_size = 4096  # ids of a bpe, end of text included
bpe_megabytes = 100  # training text that a bpe is learned from, at some 5 MB/s; 0 = all
# -----------------------------------------------------------------------------
# output
out_dir = ''  # default: data/tinystories/<tokenizer>
overwrite = False  # True replaces data of another source in out_dir
workers = 0  # processes; 0 = one for each CPU, up to 8
# -----------------------------------------------------------------------------
if __name__ == '__main__':  # not in the worker processes, which import this file too
    configure(globals(), rules=[
        "source in ('hub', 'synthetic')",
        "tokenizer in ('gpt2', 'bpe', 'byte')",
        ("source == 'hub' or not input", '--input takes the place of --source'),
        ('input or not val_input', '--val_input belongs to --input, the training stories'),
        ('input or not test_input', '--test_input belongs to --input, the training stories'),
        ('val_fraction == 0.02 or not val_input', 'with --val_input nothing is cut from the training stories'),
        ('0 < val_fraction < 0.9', 'val.bin decides on checkpoints, so it needs stories'),
        ('258 <= vocab_size <= 65536', '256 bytes, one merge and end of text at least, 16 bits at most'),
        ("tokenizer == 'bpe' or vocab_size == 4096", 'gpt2 and byte come with a vocabulary'),
        ('max_stories >= 0', '0 = all'),
        ('bpe_megabytes >= 0', '0 = all'),
        ('workers >= 0', '0 = one for each CPU'),
    ])

FILES = 'train.bin', 'val.bin', 'test.bin', 'meta.json', 'tokenizer.json'  # train.bin: the folder is complete
SIGNALS = signal.SIGINT, signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)  # Windows has no SIGHUP
BLOCK = 1 << 20  # characters of a batch


# -----------------------------------------------------------------------------
# stories to tokens

def split_of(data, cut):
    """The split of a story, from its UTF-8. A cut is a list of (split, upper edge) over hashes in [0, 1)."""
    hashed = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')
    return next(split for split, edge in cut if hashed < edge * 2**64)


def batches(pairs):
    batch, size = [], 0
    for story, done in pairs:
        batch.append(story)
        size += len(story)
        if size >= BLOCK:
            yield batch, done
            batch, size = [], 0
    if batch:
        yield batch, done


def start_worker(plain):
    global tok
    tok = Tokenizer.from_dict(plain)
    if parent := multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all, and the main process cleans up
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # no orphans


def encode_batch(job):
    """(cut, stories, how far) -> {split: (stories, bytes of text, bytes of the bin)}, how far"""
    cut, stories, done = job
    parts = collections.defaultdict(list)
    sizes = collections.Counter()
    for story in stories:
        data = story.encode()
        split = split_of(data, cut)
        parts[split].append(story)
        sizes[split] += len(data)
    return {s: (len(part), sizes[s], tok.encode_stories(part).tobytes()) for s, part in parts.items()}, done


def encode_all(jobs, tok, processes):
    """encode_batch of every job, in order. One batch alone does not wait for processes to start."""
    head = list(itertools.islice(jobs, 2))
    jobs = itertools.chain(head, jobs)
    if processes == 1 or len(head) < 2:
        start_worker(tok.to_dict())
        yield from map(encode_batch, jobs)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'), start_worker, (tok.to_dict(),))
    waiting = collections.deque()
    mask = getattr(signal, 'pthread_sigmask', lambda *_: None)
    try:
        for job in jobs:
            mask(signal.SIG_BLOCK, [signal.SIGINT])  # a process that submit starts is born deaf to Ctrl-C
            waiting.append(pool.submit(encode_batch, job))
            mask(signal.SIG_UNBLOCK, [signal.SIGINT])
            if len(waiting) > 2 * processes:  # bounds the memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def progress(what, total=None, unit='B'):
    from tqdm import tqdm
    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, disable=None, leave=False)


# -----------------------------------------------------------------------------
# the run

def find_sources():
    """[(name, cut, function that reads it, its size)], the training stories first, and the size's unit"""
    cut = [('val', val_fraction), ('train', 1)]
    if input:
        cuts = [('train', 1)] if val_input else cut, [('val', 1)], [('test', 1)]
        files = [(Path(file), cut) for file, cut in zip((input, val_input, test_input), cuts) if file]
        return [(f'file:{path.name}', cut, functools.partial(read_file, path), path.stat().st_size)
                for path, cut in files], 'B'
    if source == 'synthetic':
        count = max_stories or 24000
        synthetic_stories(count)  # now, with a progress bar of their own
        return [(source_name(), [('val', val_fraction), ('test', val_fraction + 0.02), ('train', 1)],
                 functools.partial(synthetic_stories, count), count)], ' stories'
    data = load_hub()
    return [(source_name(), cut, functools.partial(read_rows, data[split]), len(data[split]))
            for split, cut in (('train', cut), ('validation', [('test', 1)]))], ' stories'


def source_name():
    return (f'file:{Path(input).name}' if input else
            'synthetic (seed 1337)' if source == 'synthetic' else f'{HUB}@{REVISION}')


def check_paths(out):
    """Ends the run where an input cannot be read, or where out holds something else."""
    files = [Path(file) for file in (input, val_input, test_input) if file]
    for path in files:
        reader_of(path)
        try:
            open(path, 'rb').close()
        except OSError as e:
            raise Mistake(f'{path} cannot be read ({e.strerror}): give another file') from None
    for a, b in itertools.combinations(files, 2):
        if os.path.samefile(a, b):
            raise Mistake(f'{a} and {b} are one file: training, validation and test stories must differ')
    there = [name for name in FILES if (out / name).exists()]
    if not there or overwrite:
        return
    try:
        meta = json.loads((out / 'meta.json').read_text(encoding='utf-8'))
        old, synthetic = meta['source'], meta['synthetic']
    except (OSError, ValueError, KeyError, TypeError):
        old = synthetic = None
    if old != source_name() and not synthetic:  # the synthetic stories are made again in seconds
        what = f'data from {old}' if old else f'{", ".join(there)} of unknown origin'
        raise Mistake(f'{out} holds {what}: give another --out_dir, '
                      f'or --overwrite=True to replace it by {source_name()}')
    print(f'{out} holds data from {old} already: it will be replaced')


@contextlib.contextmanager
def workspace(out):
    """A temporary folder inside out, gone afterwards; so is out where it was made in vain."""
    for folder in out.glob('.partial-*'):
        print(f'{folder}: from a run that still works or was killed; in the latter case delete it')
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    folder = None

    def clear():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()

    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(prefix='.partial-', dir=out)
        except OSError as e:
            raise Mistake(f'{out} cannot be used ({e.strerror}): give another --out_dir') from None
        yield Path(folder), clear
    finally:
        clear()


def learn_bpe(cut, read, size, clear):
    """A bpe of the first bpe_megabytes of what the cut leaves for training; size: about how many bytes there are."""
    def leave(number, _):  # at once: the library goes on learning after an exception in texts
        clear()
        os.write(2, f'error: {stopped(number)}\n'.encode())
        os._exit(128 + number)

    def texts():
        size = 0
        for story, _ in itertools.islice(clean(read(), collections.Counter()), max_stories or None):
            data = story.encode()
            if split_of(data, cut) == 'train':
                yield story
                bar.update(len(data))
                size += len(data)
                if size > bpe_megabytes * 1e6 > 0:
                    break
        bar.set_description('learning a bpe: text read, now merging')

    print(f'learning a bpe of {vocab_size:,} ids ...', flush=True)
    for number in SIGNALS:
        signal.signal(number, leave)
    with progress('learning a bpe', min(size, bpe_megabytes * 1e6 or size)) as bar:
        tok = train_bpe(texts(), vocab_size)
    for number in SIGNALS:
        signal.signal(number, stop)
    if tok.vocab_size < vocab_size:
        print(f'the stories gave {tok.vocab_size:,} ids, not {vocab_size:,}: too little text for more')
    return tok


def prepare(out):
    began = time.time()
    with workspace(out) as (folder, clear):
        sources, unit = find_sources()
        if tokenizer == 'bpe':
            _, cut, read, size = sources[0]
            tok = learn_bpe(cut, read, size if unit == 'B' else 900 * size, clear)  # 900 bytes a story
            tok.save(folder / 'tokenizer.json')
        else:
            tok = Tokenizer(tokenizer)
            tok.encode('')  # gpt2 without network: say so now

        seen = collections.Counter()

        def jobs():
            before = 0
            for n, (_, cut, read, size) in enumerate(sources):
                stories = itertools.islice(clean(read(), seen), max_stories or None if n == 0 else None)
                for batch, done in batches(stories):
                    yield cut, batch, before + done
                before += size

        splits = {split: {'stories': 0, 'tokens': 0, 'bytes': 0, 'sha256': hashlib.sha256(), 'source': name}
                  for split in ('train', 'val', 'test') for name, cut, _, _ in sources if split in dict(cut)}
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        print('encoding ...', flush=True)
        started, tokens = time.time(), 0
        with contextlib.ExitStack() as stack:
            bins = {split: stack.enter_context(open(folder / f'{split}.bin', 'wb')) for split in splits}
            bar = stack.enter_context(progress('encoding', sum(size for *_, size in sources), unit))
            encoded = encode_all(jobs(), tok, workers or min(cpus, 8))
            for parts, done in stack.enter_context(contextlib.closing(encoded)):
                for split, (stories, size, data) in parts.items():
                    bins[split].write(data)
                    s = splits[split]
                    s['sha256'].update(data)
                    s['stories'] += stories
                    s['tokens'] += len(data) // tok.dtype.itemsize
                    s['bytes'] += size
                    tokens += len(data) // tok.dtype.itemsize
                bar.set_postfix_str(f'{tokens / (time.time() - started) / 1e6:.2f} M tokens/s', refresh=False)
                bar.update(done - bar.n)
            for f in bins.values():
                f.flush()
                os.fsync(f.fileno())

        for split, s in splits.items():
            s['sha256'] = s['sha256'].hexdigest()
            if not s['stories']:
                way = 'raise --val_fraction, or give --val_input or' if split == 'val' else 'give'
                raise Mistake(f'{split}.bin would be empty: all inputs gave {seen["stories"]} stories '
                              f'(in a .txt {SEPARATOR.decode()} stands between two); {way} more stories')
        meta = {'format': 1, 'source': source_name(), 'synthetic': not input and source == 'synthetic',
                'tokenizer': tok.kind, 'vocab_size': tok.vocab_size, 'dtype': tok.dtype.name, 'eot': tok.eot,
                'val_fraction': 0.0 if val_input else val_fraction, 'max_stories': max_stories, 'splits': splits}
        (folder / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n', encoding='utf-8')

        for number in SIGNALS:  # nothing may cut the next moment in two
            signal.signal(number, signal.SIG_IGN)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        for name in reversed(FILES):
            if (folder / name).exists():
                os.replace(folder / name, out / name)

    if seen['empty']:
        print(f'{seen["empty"]:,} empty stories left out')
    if seen['damaged']:
        print(f'{seen["damaged"]:,} stories with invalid UTF-8 or lone surrogates: U+FFFD in their place')
    for split, s in splits.items():
        print(f'{split:>5}: {s["stories"]:>9,} stories {s["tokens"]:>13,} tokens '
              f'{s["bytes"] / s["tokens"]:.2f} bytes a token')
    if meta['synthetic']:
        print('NOTE: synthetic stories of a grammar, not TinyStories')
    seconds = time.time() - began
    print(f'{seconds:.1f} s, {tokens / (time.time() - started):,.0f} tokens/s; now in {out}')
    data = HERE.parent
    dataset = out.relative_to(data).as_posix() if out.is_relative_to(data) else out
    print(f'next: python train.py --dataset={dataset}')


def stop(number, _):
    raise KeyboardInterrupt(number)


def stopped(number):
    return f'stopped by {signal.Signals(number).name}; nothing was written'


def main():
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    out = Path(out_dir).resolve() if out_dir else HERE / tokenizer
    try:
        check_paths(out)
        prepare(out)
    except KeyboardInterrupt as e:
        fail(stopped(e.args[0]), status=128 + e.args[0])
    except ModuleNotFoundError as e:
        fail(f'{e.name} is needed for this: pip install {e.name}')
    except BrokenProcessPool:
        fail('a worker process died, perhaps for lack of memory: try --workers=1; nothing was written')
    except (Mistake, OSError) as e:
        fail(f'{e}; nothing was written')


if __name__ == '__main__':
    main()
