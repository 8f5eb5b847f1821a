"""Encode stories as token bins: train.bin, val.bin, test.bin, meta.json and, for a BPE, tokenizer.json.

A story's hash decides its split, so a story always lands in the same split. Worker processes encode batches of
stories. All files are written to a temporary folder .partial-* and renamed at the end, so an error or a signal leaves
the old data unchanged. Only SIGKILL can leave the temporary folder behind.
"""
import collections
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from configurator import fail, require
from nanoloss.launcher import count_cpus
from nanoloss.paths import DATA
from nanoloss.readers import SEPARATOR, DataError, clean
from nanoloss.tokenizer import Tokenizer, train_bpe

# renamed in reverse order: the dataset is complete once train.bin exists
FILES = 'train.bin', 'val.bin', 'test.bin', 'meta.json', 'tokenizer.json'
SIGNALS = signal.SIGINT, signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)  # Windows has no SIGHUP
BATCH_SIZE = 1 << 20  # characters


# splits and batches -----------------------------------------------------------

def story_split(data, edges):
    """The split of a story. data: its UTF-8. edges: [(split, upper edge)], in order, for hashes in [0, 1)."""
    story_hash = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')
    return next(split for split, edge in edges if story_hash < edge * 2**64)


def split_edges(sources, val_fraction, test_fraction):
    """{source: edges} for story_split: val and test are cut from the train source unless they have a source."""
    edges = {split: [(split, 1)] for split in sources}
    upper = 0 if 'val' in sources else val_fraction
    if test_fraction and 'test' not in sources:
        edges['train'].insert(0, ('test', upper + test_fraction))
    if 'val' not in sources:
        edges['train'].insert(0, ('val', upper))
    return edges


def make_batches(stories):
    """(story, position) pairs -> (list of stories, position after the last), about BATCH_SIZE characters each."""
    batch, size = [], 0
    for story, position in stories:
        batch.append(story)
        size += len(story)
        if size >= BATCH_SIZE:
            yield batch, position
            batch, size = [], 0
    if batch:
        yield batch, position


# worker processes -------------------------------------------------------------

def start_worker(tokenizer_dict):
    global worker_tokenizer
    worker_tokenizer = Tokenizer.from_dict(tokenizer_dict)
    if parent := multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main process cleans up
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # do not outlive it


def encode_batch(job):
    """(edges, stories, position) -> {split: (number of stories, bytes of text, content of the bin)}, position"""
    edges, stories, position = job
    parts = collections.defaultdict(list)
    sizes = collections.Counter()
    for story in stories:
        data = story.encode()
        split = story_split(data, edges)
        parts[split].append(story)
        sizes[split] += len(data)
    encoded = {split: (len(part), sizes[split], worker_tokenizer.encode_stories(part).tobytes())
               for split, part in parts.items()}
    return encoded, position


def encode_batches(jobs, tokenizer, workers):
    """Yield encode_batch(job) for all jobs, in order. A single job is encoded without starting processes."""
    head = list(itertools.islice(jobs, 2))
    jobs = itertools.chain(head, jobs)
    if workers == 1 or len(head) < 2:
        start_worker(tokenizer.to_dict())
        yield from map(encode_batch, jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), start_worker, (tokenizer.to_dict(),))
    pending = collections.deque()
    set_mask = getattr(signal, 'pthread_sigmask', lambda *_: None)  # Windows has none
    try:
        for job in jobs:
            set_mask(signal.SIG_BLOCK, [signal.SIGINT])  # a process started by submit inherits the mask
            pending.append(pool.submit(encode_batch, job))
            set_mask(signal.SIG_UNBLOCK, [signal.SIGINT])
            if len(pending) > 2 * workers:  # bounds the memory use
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)



def progress_bar(label, total, unit='B'):
    from tqdm import tqdm
    return tqdm(desc=label, total=total, unit=unit, unit_scale=True, disable=None, leave=False)


# the output folder ------------------------------------------------------------

def check_out_dir(out, source, tokenizer, splits=None):
    """Raise DataError if out holds other data.

    source, tokenizer: of the new data. splits: of its meta.json, once they are known.
    """
    existing = [name for name in FILES if (out / name).exists()]
    if not existing:
        return
    try:
        old = json.loads((out / 'meta.json').read_text(encoding='utf-8'))
        content = f'data from {old["source"]} (tokenizer {old["tokenizer"]})'
        hashes = {split: old['splits'][split]['sha256'] for split in old['splits']}
        same = (old['source'], old['tokenizer']) == (source, tokenizer)
    except (OSError, ValueError, KeyError, TypeError):
        content, hashes, same = f'{", ".join(existing)} from an unknown source', {}, False
    if splits and hashes != {split: info['sha256'] for split, info in splits.items()}:
        content, same = f'other {content}', False
    if not same:
        raise DataError(f'{out} holds {content}: pass another --out_dir, or --overwrite=True to replace it with data '
                        f'from {source} (tokenizer {tokenizer})')


@contextlib.contextmanager
def workspace(out):
    """Yield a temporary folder inside out and a function that deletes it, and any folder created for it."""
    for folder in out.glob('.partial-*'):
        print(f'{folder} exists: another run is active, or was killed; if it was killed, delete this folder')
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    folder = None

    def clear():
        ignore_signals()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            for parent in created:
                parent.rmdir()

    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(prefix='.partial-', dir=out)
        except OSError as e:
            raise DataError(f'cannot write to {out} ({e.strerror}): pass another --out_dir') from None
        yield Path(folder), clear
    finally:
        clear()


def publish(folder, out):
    """Replace the files in out with those in folder; train.bin is removed first and appears last."""
    ignore_signals()
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for name in reversed(FILES):
        if (folder / name).exists():
            os.replace(folder / name, out / name)


# signals ----------------------------------------------------------------------

def raise_interrupt(number, _):
    raise KeyboardInterrupt(number)


def ignore_signals():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupt_message(number):
    return f'interrupted by {signal.Signals(number).name}; no data was written'


# the two passes over the stories ----------------------------------------------

def learn_bpe(source, edges, vocab_size, megabytes, max_stories, clear):
    """Learn a BPE from the first megabytes of training text (0 = all).

    clear: called before a signal ends the process. train_bpe cannot be interrupted, so it runs in a thread, and the
    main thread receives the signals.
    """
    def exit_now(number, _):
        clear()
        os.write(2, f'error: {interrupt_message(number)}\n'.encode())
        os._exit(128 + number)

    def texts():
        size = 0
        for story, _ in itertools.islice(clean(source.read(), collections.Counter()), max_stories or None):
            data = story.encode()
            if story_split(data, edges) == 'train':
                yield story
                bar.update(len(data))
                size += len(data)
                if size > megabytes * 1e6 > 0:
                    break
        bar.set_description('learning a BPE: merging')

    print(f'learning a BPE with {vocab_size:,} ids ...', flush=True)
    numbers = [number for number in SIGNALS if signal.getsignal(number) == raise_interrupt]
    for number in numbers:
        signal.signal(number, exit_now)
    size = source.size if source.unit == 'B' else 900 * source.size  # a story has about 900 bytes
    with progress_bar('learning a BPE', min(size, megabytes * 1e6 or size)) as bar, ThreadPoolExecutor(1) as pool:
        future = pool.submit(train_bpe, texts(), vocab_size)
        while wait([future], timeout=0.2).not_done:  # with a timeout, because Windows does not interrupt it
            pass
    bpe = future.result()
    for number in numbers:
        signal.signal(number, raise_interrupt)
    if bpe.vocab_size < vocab_size:
        print(f'the BPE has {bpe.vocab_size:,} ids instead of {vocab_size:,}: there is too little text for more')
    return bpe


def write_bins(folder, sources, edges, tokenizer, max_stories, workers):
    """Encode all sources into folder/<split>.bin.

    Returns the splits of meta.json, {split: {stories, tokens, bytes, sha256, source}}, the counts of clean(), and
    the tokens per second. Raises DataError if a split is empty.
    """
    counts = collections.Counter()

    def jobs():
        offset = 0
        for split, source in sources.items():
            limit = max_stories if split == 'train' and max_stories else None
            for batch, position in make_batches(itertools.islice(clean(source.read(), counts), limit)):
                yield edges[split], batch, offset + position
            offset += source.size

    splits = {split: {'stories': 0, 'tokens': 0, 'bytes': 0, 'sha256': hashlib.sha256(), 'source': source.name}
              for split in ('train', 'val', 'test') for name, source in sources.items() if split in dict(edges[name])}
    print('encoding ...', flush=True)
    start, tokens = time.time(), 0
    with contextlib.ExitStack() as stack:
        bins = {split: stack.enter_context(open(folder / f'{split}.bin', 'wb')) for split in splits}
        total = sum(source.size for source in sources.values())
        bar = stack.enter_context(progress_bar('encoding', total, sources['train'].unit))
        encoded = encode_batches(jobs(), tokenizer, workers or min(count_cpus(), 8))
        for parts, position in stack.enter_context(contextlib.closing(encoded)):
            for split, (stories, size, data) in parts.items():
                bins[split].write(data)
                split_info = splits[split]
                split_info['sha256'].update(data)
                split_info['stories'] += stories
                split_info['tokens'] += len(data) // tokenizer.dtype.itemsize
                split_info['bytes'] += size
                tokens += len(data) // tokenizer.dtype.itemsize
            bar.set_postfix_str(f'{tokens / (time.time() - start) / 1e6:.2f} M tokens/s', refresh=False)
            bar.update(position - bar.n)
        for file in bins.values():
            file.flush()
            os.fsync(file.fileno())

    for split, split_info in splits.items():
        split_info['sha256'] = split_info['sha256'].hexdigest()
        if not split_info['stories']:
            option = 'raise --val_fraction or add stories' if split == 'val' else 'add stories'
            raise DataError(f'{split}.bin would be empty: the input has {counts["stories"]} stories '
                            f'(in .txt files, {SEPARATOR.decode()} separates stories); {option}')
    return splits, counts, tokens / (time.time() - start)


def checked_bins(folder, splits, tokenizer):
    """What dataloader.largest_id() looks up in meta.json: {name: [dtype, size, time, largest id]} of the bins.

    The largest id is end-of-text, which every bin holds.
    """
    stats = {f'{split}.bin': os.stat(folder / f'{split}.bin') for split in splits}
    return {name: [tokenizer.dtype.name, s.st_size, s.st_mtime_ns, tokenizer.eot] for name, s in stats.items()}


def prepare(load, source, out_dir, tokenizer, vocab_size=4096, bpe_megabytes=100, max_stories=0, val_fraction=0.02,
            test_fraction=0.0, overwrite=False, workers=0):
    """Prepare a dataset in out_dir: what a data/*/prepare.py does after it has read its settings.

    load: a function that returns {split: Source}. 'train' is required; without 'val', val_fraction of its stories
        become val, and if test_fraction is not 0, test_fraction of its stories become test.
    source: where the stories come from, for meta.json. Other data in out_dir is replaced only with overwrite.
    tokenizer: 'bpe' (learned from the training stories), 'gpt2' or 'byte'.
    max_stories: use only the first max_stories of the train source (0 = all).
    workers: number of processes (0 = one per CPU, up to 8).

    Exits with status 1 and one line on stderr for an error, and with 128 + number for a signal.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, raise_interrupt)
    out = Path(out_dir).resolve()
    start = time.time()
    try:
        require(*{'bpe': ['tokenizers', 'tiktoken'], 'gpt2': ['tiktoken'], 'byte': []}[tokenizer])
        if not overwrite:
            check_out_dir(out, source, tokenizer)
        with workspace(out) as (folder, clear):
            sources = load()
            edges = split_edges(sources, val_fraction, test_fraction)
            if tokenizer == 'bpe':
                encoder = learn_bpe(sources['train'], edges['train'], vocab_size, bpe_megabytes, max_stories, clear)
                encoder.save(folder / 'tokenizer.json')
            else:
                encoder = Tokenizer(tokenizer)
                encoder.encode('')  # fails now if gpt2 cannot be downloaded
            splits, counts, rate = write_bins(folder, sources, edges, encoder, max_stories, workers)
            if not overwrite:
                check_out_dir(out, source, tokenizer, splits)
            meta = {'format': 1, 'source': source, 'tokenizer': encoder.kind, 'vocab_size': encoder.vocab_size,
                    'dtype': encoder.dtype.name, 'eot': encoder.eot,
                    'val_fraction': 0.0 if 'val' in sources else val_fraction, 'max_stories': max_stories,
                    'splits': splits, 'checked': checked_bins(folder, splits, encoder)}
            (folder / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n', encoding='utf-8')
            publish(folder, out)
    except KeyboardInterrupt as e:
        fail(interrupt_message(e.args[0]), status=128 + e.args[0])
    except BrokenProcessPool:
        fail('a worker process died, perhaps out of memory: try --workers=1; no data was written')
    except (DataError, OSError) as e:
        fail(f'{e}; no data was written')

    if counts['empty']:
        print(f'dropped {counts["empty"]:,} empty stories')
    if counts['invalid']:
        print(f'replaced invalid UTF-8 or lone surrogates with U+FFFD in {counts["invalid"]:,} stories')
    for split, split_info in splits.items():
        print(f'{split:>5}: {split_info["stories"]:>9,} stories {split_info["tokens"]:>13,} tokens '
              f'{split_info["bytes"] / split_info["tokens"]:.2f} bytes per token')
    if splits['val']['stories'] < 100:
        print(f'note: {splits["val"]["stories"]} stories in val.bin are few for evaluation and tuning; raise '
              '--val_fraction or add stories')
    print(f'wrote {out} in {time.time() - start:.1f} s ({rate:,.0f} tokens/s); source: {source}')
    print(f'next: python train.py --dataset={out.relative_to(DATA).as_posix() if out.is_relative_to(DATA) else out}')
