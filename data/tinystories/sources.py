"""Where stories come from: files of several formats, the Hugging Face hub, the synthetic corpus.

Readers stream, so that memory stays small whatever the size of the input.
"""
import functools
import gzip
import io
import itertools
import json
import re
import zlib

HUB, REVISION = 'roneneldan/TinyStories', 'f54c09fd23315a6f9c86f9dc80f725de7d8f9c64'
BLOCK, LONGEST = 1 << 20, 16 << 20  # bytes read at a time; bytes of the longest story
BOM, SEPARATOR = b'\xef\xbb\xbf', b'<|endoftext|>'
LONE = re.compile('[\ud800-\udfff]')  # surrogates: here a byte that is no UTF-8 (DC80 to DCFF), or from JSON


class Mistake(Exception):
    """Something in the input that ends the run, in one line."""


# -----------------------------------------------------------------------------
# readers: each yields (story, how far), in bytes of the file or rows of the data set

def read_txt(path, raw, file):
    rest, block = b'', file.read(BLOCK).removeprefix(BOM)
    while block:
        *whole, rest = (rest + block).split(SEPARATOR)
        if len(rest) > LONGEST:
            raise Mistake(f'no {SEPARATOR.decode()} in {len(rest) >> 20} MiB of {path}: stories need one between them')
        for story in whole:
            yield story.decode('utf-8', 'surrogateescape'), raw.tell()
        block = file.read(BLOCK)
    if rest.strip():  # a separator at the end of the file leaves no empty story
        yield rest.decode('utf-8', 'surrogateescape'), raw.tell()


def read_json(path, raw, file):
    array = file.peek(99).removeprefix(BOM).lstrip().startswith(b'[')
    for where, record in (json_array if array else json_lines)(path, file):
        story = record.get('text', record.get('story')) if isinstance(record, dict) else None
        if not isinstance(story, str):
            raise Mistake(f"{where}: no string under 'text' or 'story'")
        yield story, raw.tell()


def json_lines(path, file):
    for n, line in enumerate(iter(lambda: file.readline(LONGEST), b''), 1):
        line = line.removeprefix(BOM) if n == 1 else line
        if line.strip():
            try:
                record = json.loads(line.decode('utf-8', 'surrogateescape'))
            except (ValueError, RecursionError) as e:
                raise Mistake(f'{path}, line {n}: not JSON ({e}); correct this line') from None
            yield f'{path}, line {n}', record


def json_array(path, file):
    """The items of one big array in turn, in memory for a few of them."""
    file, decode = io.TextIOWrapper(file, 'utf-8-sig', 'surrogateescape'), json.JSONDecoder().raw_decode
    rest, n = '', 0
    while len(rest) < LONGEST and (block := file.read(BLOCK)):
        rest, at = rest + block, 0
        while mark := re.compile(r'\s*,\s*' if n else r'\s*\[\s*').match(rest, at):
            try:
                record, at = decode(rest, mark.end())
            except (ValueError, RecursionError):
                break  # the end of this item is perhaps in the next block
            n += 1
            yield f'{path}, item {n}', record
        rest = rest[at:]
    if not re.fullmatch(r'\s*\]\s*' if n else r'\s*\[\s*\]\s*', rest):
        raise Mistake(f'{path}, item {n + 1}: not JSON; correct this item')


def read_parquet(path, raw, file):
    import pyarrow.parquet
    try:
        table = pyarrow.parquet.ParquetFile(raw, buffer_size=BLOCK, pre_buffer=False)
        column = next((name for name in ('text', 'story') if name in table.schema_arrow.names), None)
        if not column:
            raise Mistake(f"{path}: no column 'text' or 'story' among {', '.join(table.schema_arrow.names)}")
        size, rows, n = path.stat().st_size, table.metadata.num_rows, 0
        for batch in table.iter_batches(256, columns=[column]):
            for story in batch.column(0).to_pylist():
                n += 1
                if not isinstance(story, str):
                    raise Mistake(f'{path}, row {n}: no string in column {column!r}')
                yield story, size * n // rows
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as e:  # pyarrow has OSErrors of its own
        raise Mistake(f'{path}: damaged parquet ({e}); get it again') from None


READERS = {'.txt': read_txt, '.txt.gz': read_txt, '.jsonl': read_json, '.jsonl.gz': read_json,
           '.json': read_json, '.json.gz': read_json, '.parquet': read_parquet}


def reader_of(path):
    suffix = next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)
    if not suffix:
        raise Mistake(f'{path}: stories come in {", ".join(READERS)}, told apart by the suffix')
    return READERS[suffix]


def read_file(path):
    with open(path, 'rb') as raw:
        file = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith('.gz') else raw
        try:
            yield from reader_of(path)(path, raw, file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise Mistake(f'{path}: damaged gzip ({e}); get it again') from None


def read_rows(data):
    rows = itertools.chain.from_iterable(batch['text'] for batch in data.iter(batch_size=1000))
    return zip(rows, itertools.count(1))


@functools.cache  # slow to make, small to keep, and a bpe reads them twice
def synthetic_stories(count):
    from synthetic import stories
    from tqdm import tqdm
    print(f'making {count:,} synthetic stories ...', flush=True)
    made = tqdm(stories(count=count), 'making stories', count, disable=None, leave=False)
    return [(story, n) for n, story in enumerate(made, 1)]


def load_hub():
    print(f'asking the hub for {HUB} ...', flush=True)
    import datasets  # slow
    try:
        return datasets.load_dataset(HUB, revision=REVISION)
    except Exception as e:  # OSErrors, httpx's own and datasets' own, one wrapped in another
        chain = [e]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        if any(isinstance(x, (ConnectionError, TimeoutError)) or type(x).__module__.startswith('httpx')
               and type(x).__name__ != 'HTTPStatusError' for x in chain):
            raise Mistake(f'the hub could not be reached ({e}); two ways do without: '
                          '--input=FILE with stories of your own, or --source=synthetic') from None
        if any(isinstance(x, OSError) and x.errno for x in chain):  # a full disk, say
            raise
        raise Mistake(f'the hub was reached, but did not give {HUB} at {REVISION[:7]}: '
                      f'{type(e).__name__}: {e}; --input=FILE and --source=synthetic do without') from None


def clean(pairs, seen):
    """(story, how far) with line ends \\n, no outer whitespace, valid Unicode, none empty; seen counts."""
    for story, done in pairs:
        if not story.isascii() and LONE.search(story):
            seen['damaged'] += 1
            story = re.sub('[\ud800-\udc7f\udd00-\udfff]', '\ufffd', story)
            story = story.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
        story = story.replace('\r\n', '\n').replace('\r', '\n').strip()
        seen['stories' if story else 'empty'] += 1
        if story:
            yield story, done
