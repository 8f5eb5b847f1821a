"""Read stories from files of several formats and from the Hugging Face hub.

All readers stream, so memory use does not grow with the size of the input.
"""
import codecs
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

HUB, REVISION = 'roneneldan/TinyStories', 'f54c09fd23315a6f9c86f9dc80f725de7d8f9c64'
BLOCK_SIZE, MAX_STORY_SIZE = 1 << 20, 16 << 20  # bytes
BOM, SEPARATOR = codecs.BOM_UTF8, b'<|endoftext|>'
OTHER_BOMS = {codecs.BOM_UTF32_LE: 'UTF-32', codecs.BOM_UTF32_BE: 'UTF-32',  # in this order: UTF-32-LE begins like
              codecs.BOM_UTF16_LE: 'UTF-16', codecs.BOM_UTF16_BE: 'UTF-16'}  # UTF-16-LE
SURROGATE = re.compile('[\ud800-\udfff]')  # an invalid UTF-8 byte (DC80 to DCFF), or a lone surrogate from JSON


class DataError(Exception):
    """An error in the data or in a path, explained in one line."""


class Source(NamedTuple):
    """Stories that can be read several times."""
    name: str  # for meta.json
    read: Callable  # () -> iterator of (story, position); position counts up to size
    size: int
    unit: str = ' stories'  # of position and size: ' stories', or 'B' for bytes of the file


# encodings --------------------------------------------------------------------

def check_encoding(path, head):
    """Raise DataError if a text file is UTF-16 or UTF-32. head: its first bytes."""
    encoding = next((encoding for bom, encoding in OTHER_BOMS.items() if head.startswith(bom)), None)
    if not encoding and head.count(0) > len(head) / 3:  # without a byte-order mark, half of ASCII text is NUL
        encoding = 'UTF-16LE' if head[1:2] == b'\0' else 'UTF-16BE'
    if encoding:
        command = f'iconv -f {encoding} -t UTF-8'
        command = f'gunzip -c {path} | {command}' if str(path).lower().endswith('.gz') else f'{command} {path}'
        raise DataError(f'{path} is {encoding}, not UTF-8; convert it: {command} > FILE')


def repair(text):
    """Make a string valid Unicode: surrogate-escaped bytes are decoded as UTF-8, lone surrogates become U+FFFD."""
    text = re.sub('[\ud800-\udc7f\udd00-\udfff]', '\ufffd', text)
    return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')


def read_text(path):
    """The text of a UTF-8 file, without its byte-order mark. Raises OSError, or DataError for another encoding."""
    data = Path(path).read_bytes()
    check_encoding(path, data[:256])
    return data.removeprefix(BOM).decode('utf-8', 'replace').replace('\r\n', '\n').replace('\r', '\n')


# file formats: each reader yields (story, bytes of the file read so far) ------

def read_txt(path, raw, file):
    rest, block = b'', file.read(BLOCK_SIZE).removeprefix(BOM)
    while block:
        *stories, rest = (rest + block).split(SEPARATOR)
        if len(rest) > MAX_STORY_SIZE:
            raise DataError(f'{path} has {len(rest) >> 20} MiB without {SEPARATOR.decode()}: '
                             'put this separator between stories')
        for story in stories:
            yield story.decode('utf-8', 'surrogateescape'), raw.tell()
        block = file.read(BLOCK_SIZE)
    if rest.strip():  # a separator at the end of the file is not followed by an empty story
        yield rest.decode('utf-8', 'surrogateescape'), raw.tell()


def read_json(path, raw, file):
    is_array = file.peek(99).removeprefix(BOM).lstrip().startswith(b'[')
    for location, record in (json_array if is_array else json_lines)(path, file):
        story = record.get('text', record.get('story')) if isinstance(record, dict) else None
        if not isinstance(story, str):
            raise DataError(f"{location}: no string under the key 'text' or 'story'")
        yield story, raw.tell()


def json_lines(path, file):
    for n, line in enumerate(iter(lambda: file.readline(MAX_STORY_SIZE + 1), b''), 1):
        if len(line) > MAX_STORY_SIZE:
            raise DataError(f'{path}, line {n}: longer than {MAX_STORY_SIZE >> 20} MiB; split this story')
        line = line.removeprefix(BOM) if n == 1 else line
        if line.strip():
            try:
                record = json.loads(line.decode('utf-8', 'surrogateescape'))
            except (ValueError, RecursionError) as e:
                raise DataError(f'{path}, line {n}: invalid JSON ({e}); fix this line') from None
            yield f'{path}, line {n}', record


def json_array(path, file):
    """Yield the items of one large array, with only a few of them in memory."""
    file, decode = io.TextIOWrapper(file, 'utf-8-sig', 'surrogateescape'), json.JSONDecoder().raw_decode
    rest, n = '', 0
    while len(rest) < MAX_STORY_SIZE and (block := file.read(BLOCK_SIZE)):
        rest, position = rest + block, 0
        while match := re.compile(r'\s*,\s*' if n else r'\s*\[\s*').match(rest, position):
            try:
                record, position = decode(rest, match.end())
            except (ValueError, RecursionError):
                break  # the next block may complete this item
            n += 1
            yield f'{path}, item {n}', record
        rest = rest[position:]
    if len(rest) >= MAX_STORY_SIZE:
        raise DataError(f'{path}, item {n + 1}: does not end within {MAX_STORY_SIZE >> 20} MiB; split this story, or '
                        'fix the JSON if it is invalid')
    if not re.fullmatch(r'\s*\]\s*' if n else r'\s*\[\s*\]\s*', rest):
        raise DataError(f'{path}, item {n + 1}: invalid JSON; fix this item')


def read_parquet(path, raw, file):
    import pyarrow.parquet
    try:
        table = pyarrow.parquet.ParquetFile(raw, buffer_size=BLOCK_SIZE, pre_buffer=False)
        names = table.schema_arrow.names
        column = next((name for name in ('text', 'story') if name in names), None)
        if not column:
            raise DataError(f"{path}: no column 'text' or 'story', only {', '.join(names)}")
        size, rows, n = path.stat().st_size, table.metadata.num_rows, 0
        for batch in table.iter_batches(256, columns=[column]):
            for story in batch.column(0).to_pylist():
                n += 1
                if not isinstance(story, str):
                    raise DataError(f'{path}, row {n}: column {column!r} does not hold a string')
                yield story, size * n // rows
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as e:  # pyarrow raises OSErrors of its own
        raise DataError(f'{path} is not a valid parquet file ({e}); download it again') from None


READERS = {'.txt': read_txt, '.txt.gz': read_txt, '.jsonl': read_json, '.jsonl.gz': read_json,
           '.json': read_json, '.json.gz': read_json, '.parquet': read_parquet}


def find_reader(path):
    suffix = next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)
    if not suffix:
        raise DataError(f'{path}: unknown file type; use one of {", ".join(READERS)}')
    return READERS[suffix]


def read_file(path):
    """Yield (story, bytes of the file read so far). Raises DataError for a file that is not valid."""
    with open(path, 'rb') as raw:
        file = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith('.gz') else raw
        reader = find_reader(path)
        try:
            if reader is not read_parquet:
                check_encoding(path, file.peek(256)[:256])
            yield from reader(path, raw, file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise DataError(f'{path} is not a valid gzip file ({e}); download it again') from None


# sources ----------------------------------------------------------------------

def load_files(**files):
    """{split: path or ''} -> {split: Source}, without the splits that have no file.

    Raises DataError for a file that cannot be opened, has an unknown type or is named twice.
    """
    paths = {split: Path(file) for split, file in files.items() if file}
    for path in paths.values():
        find_reader(path)
        try:
            open(path, 'rb').close()
        except OSError as e:
            raise DataError(f'cannot read {path} ({e.strerror}): pass a readable file') from None
    for a, b in itertools.combinations(paths.values(), 2):
        if os.path.samefile(a, b):
            raise DataError(f'{a} and {b} are the same file: pass different files for different splits')
    return {split: Source(f'file:{path.name}', partial(read_file, path), path.stat().st_size, 'B')
            for split, path in paths.items()}


def load_hub():
    """TinyStories from the hub: {'train': Source, 'test': Source}; test is the hub's validation split.

    Raises DataError if the hub or the dataset cannot be reached, OSError for an error of this machine.
    """
    print(f'loading {HUB} from the Hugging Face hub ...', flush=True)
    import datasets  # slow
    try:
        data = datasets.load_dataset(HUB, revision=REVISION)
    except Exception as e:  # OSError, or an error of httpx or datasets, often one wrapped in another
        chain = [e]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        if any(isinstance(x, (ConnectionError, TimeoutError)) or type(x).__module__.startswith('httpx')
               and type(x).__name__ != 'HTTPStatusError' for x in chain):
            raise DataError(f'cannot reach the Hugging Face hub ({e}): pass stories with --input=FILE, or run '
                             'data/synthetic/prepare.py, which needs no network') from None
        if any(isinstance(x, OSError) and x.errno for x in chain):  # such as a full disk
            raise
        raise DataError(f'the hub does not provide {HUB} at revision {REVISION[:7]} ({type(e).__name__}: {e}): '
                         'pass stories with --input=FILE') from None
    return {split: Source(f'{HUB}@{REVISION}', partial(read_rows, data[name]), len(data[name]))
            for split, name in (('train', 'train'), ('test', 'validation'))}


def read_rows(rows):
    stories = itertools.chain.from_iterable(batch['text'] for batch in rows.iter(batch_size=1000))
    return zip(stories, itertools.count(1))


def clean(stories, counts):
    """Normalize (story, position) pairs: line ends are \\n, no outer whitespace, valid Unicode; drop empty stories.

    counts: a Counter that gets 'stories', 'empty' and 'invalid' (with characters replaced by U+FFFD).
    """
    for story, position in stories:
        if not story.isascii() and SURROGATE.search(story):
            counts['invalid'] += 1
            story = repair(story)
        story = story.replace('\r\n', '\n').replace('\r', '\n').strip()
        counts['stories' if story else 'empty'] += 1
        if story:
            yield story, position
