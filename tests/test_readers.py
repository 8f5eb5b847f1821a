"""nanoloss/readers.py: the same stories from every file format and the hub, and one-line errors."""
import collections
import gzip
import json
import random
import sys
import types

import pytest

from nanoloss.readers import HUB, REVISION, DataError, clean, load_files, load_hub, read_file

EOT = '<|endoftext|>'


def make_stories(n, seed=0, words=60):
    rng = random.Random(seed)
    vocabulary = 'Once upon a time there was little dog cat who liked to play in the big park with Lily 🎉 café'.split()
    return [' '.join(rng.choices(vocabulary, k=rng.randint(5, words))) + f' {i}.' for i in range(n)]


def read(path):
    """The stories of a file after clean(), and its counts."""
    counts = collections.Counter()
    return [story for story, _ in clean(read_file(path), counts)], counts


def test_formats_agree(tmp_path):
    """the same stories come out of txt, jsonl, a JSON array, parquet and gz, under the keys text and story"""
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    stories = make_stories(5000, words=200)  # more than one block of the readers
    text = ''.join(f'{story}\n{EOT}\n' for story in stories).encode()
    assert len(text) > 2 << 20
    lines = ''.join(json.dumps({'id': i, 'story': s}, ensure_ascii=i % 2 == 0) + '\n' for i, s in enumerate(stories))
    (tmp_path / 'a.txt').write_bytes(text)
    (tmp_path / 'b.jsonl').write_text(lines, encoding='utf-8')
    (tmp_path / 'c.json').write_text(json.dumps([{'text': s, 'n': {'a': [1]}} for s in stories], indent=1))
    (tmp_path / 'd.json').write_text(lines, encoding='utf-8')
    for name in ('a.txt', 'b.jsonl', 'c.json'):
        (tmp_path / f'{name}.gz').write_bytes(gzip.compress((tmp_path / name).read_bytes(), 1))
    parquet.write_table(pyarrow.table({'x': range(5000), 'text': stories}), tmp_path / 'E.PARQUET')
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 8
    for path in paths:
        assert read(path)[0] == stories, path


def test_position_ends_at_the_size(tmp_path):
    """the position of a reader grows and ends at the size of the source"""
    for name, content in (('a.txt', f'one{EOT}two'), ('a.jsonl', '{"text": "one"}\n{"text": "two"}\n')):
        (tmp_path / name).write_text(content)
        source = load_files(train=tmp_path / name)['train']
        positions = [position for _, position in source.read()]
        assert positions == sorted(positions) and positions[-1] == source.size == len(content)


def test_cleaning_of_stories(tmp_path):
    """BOM, CRLF and outer whitespace are removed, empty stories are counted, other characters do not change"""
    stories = ['\ufeffOne\r\n\r\ntwo\rthree  \r\n', ' \r\n ',
               '\n\n  Two 🎉  e\u0301\x00 â€œhi\u200d ', '', 'Three\u2028', '|> <|endof|>']
    expected = ['One\n\ntwo\nthree', 'Two 🎉  e\u0301\x00 â€œhi\u200d', 'Three', '|> <|endof|>']
    records = [{'text': story.removeprefix('\ufeff')} for story in stories]
    (tmp_path / 'a.txt').write_bytes(EOT.join(stories).encode())
    (tmp_path / 'b.jsonl').write_bytes(b'\xef\xbb\xbf' + '\r\n'.join([*map(json.dumps, records), '', '']).encode())
    (tmp_path / 'c.json').write_bytes(b'\xef\xbb\xbf \n' + json.dumps(records).encode())
    for path in sorted(tmp_path.iterdir()):
        assert read(path) == (expected, {'stories': 4, 'empty': 2}), path


def test_separator_in_json_is_text(tmp_path):
    """<|endoftext|> in a JSON story does not end the story"""
    story = f'She read {EOT} aloud.{EOT}'
    (tmp_path / 'a.jsonl').write_text(json.dumps({'text': story}) + '\n')
    assert read(tmp_path / 'a.jsonl')[0] == [story]


@pytest.mark.parametrize('name, content, expected', [
    ('a.txt', b'caf\xe9 \xf0\x9f\x8e!<|endoftext|>fine \xef\xbf\xbd',
     [b'caf\xe9 \xf0\x9f\x8e!'.decode('utf-8', 'replace'), 'fine \ufffd']),
    ('b.jsonl', b'{"text": "caf\xe9 \\ud800!"}\n{"text": "fine \\ud83c\\udf89"}', ['caf\ufffd \ufffd!', 'fine 🎉']),
    ('c.json', b'[{"text": "caf\xe9 \\ud800!"}\n,{"text": "fine \\ud83c\\udf89"}\n]\n',
     ['caf\ufffd \ufffd!', 'fine 🎉'])])
def test_invalid_utf8_is_replaced_and_counted(tmp_path, name, content, expected):
    """invalid UTF-8 and lone surrogates of JSON become U+FFFD, and these stories are counted"""
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == (expected, {'stories': 2, 'invalid': 1})


@pytest.mark.parametrize('name, content, location', [
    ('a.jsonl', b'{"text": "a"}\n{"text": oops}\n', 'line 2'),
    ('a.jsonl', b'{"text": "a"}\n\n{"txt": "a"}\n', 'line 3'),
    ('a.jsonl', b'{"text": 5}\n', 'line 1'),
    ('a.jsonl', b'{"text": "a"}\nnull\n', 'line 2'),
    ('a.json', b'[{"text": "a"}, {"story": null}]', 'item 2'),
    ('a.json', b'[{"text": "a"}, {"text": "b"', 'item 2'),
    ('a.json', b'[{"text": "a"} {"text": "b"}]', 'item 2'),
    ('a.json', b'[{"text": "a"}] x', 'item 2'),
    ('a.txt', b'x' * (17 << 20), EOT),
    ('a.csv', b'text\na\n', '.jsonl'),
    ('a.txt.gz', b'no gzip', 'gzip'),
    ('a.txt.gz', gzip.compress(b'abcdefgh' * 99, mtime=0)[:-9], 'gzip'),
    ('a.parquet', b'no parquet', 'parquet'),
])
def test_invalid_file(tmp_path, name, content, location):
    """an invalid file raises one line with its path and the location of the error"""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as e:
        read(tmp_path / name)
    assert name in str(e.value) and location in str(e.value)


def test_invalid_parquet_columns(tmp_path):
    """a parquet file without a column of strings raises one line with the column"""
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    for column, values in (('body', ['a']), ('text', [1]), ('story', ['a', None])):
        parquet.write_table(pyarrow.table({column: values}), tmp_path / 'a.parquet')
        with pytest.raises(DataError, match=f'a.parquet.*{column}'):
            read(tmp_path / 'a.parquet')


def test_files_that_cannot_be_used(tmp_path):
    """missing files, folders, unknown types and the same file twice are rejected before anything is read"""
    (tmp_path / 'a.txt').write_text('a')
    (tmp_path / 'link.txt').symlink_to(tmp_path / 'a.txt')
    (tmp_path / 'folder.txt').mkdir()
    for files, name in (({'train': 'none.txt'}, 'none.txt'), ({'train': 'folder.txt'}, 'folder.txt'),
                        ({'train': 'a.txt', 'val': 'none.txt'}, 'none.txt'), ({'train': 'a.txt.zip'}, 'a.txt.zip'),
                        ({'train': 'a.txt', 'test': 'link.txt'}, 'link.txt')):
        with pytest.raises(DataError, match=name):
            load_files(**{split: str(tmp_path / file) for split, file in files.items()})


# the hub ----------------------------------------------------------------------

class Rows(list):
    """The part of datasets.Dataset that is used."""

    def iter(self, batch_size):
        for i in range(0, len(self), batch_size):
            yield {'text': self[i:i + batch_size]}


@pytest.fixture
def fake_hub(monkeypatch):
    def install(load_dataset):
        monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=load_dataset))
    return install


def test_hub(fake_hub):
    """the train split is train, the validation split is test, both at the pinned revision; they can be read twice"""
    data = {'train': Rows(f'Story {i}' for i in range(2500)), 'validation': Rows(f'Test {i}' for i in range(9))}
    fake_hub(lambda name, revision: data if (name, revision) == (HUB, REVISION) else None)
    sources = load_hub()
    assert {split: list(source.read()) for split, source in sources.items()} == {
        'train': [(f'Story {i}', i + 1) for i in range(2500)], 'test': [(f'Test {i}', i + 1) for i in range(9)]}
    assert len(list(sources['train'].read())) == sources['train'].size == 2500
    assert {source.name for source in sources.values()} == {f'{HUB}@{REVISION}'}


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize('error, expected, flag', [
    (ConnectionError('no route'), DataError, 'data/synthetic/prepare.py'),
    (chained(RuntimeError('generation'), TimeoutError('slow')), DataError, 'data/synthetic/prepare.py'),
    (FileNotFoundError('no such dataset'), DataError, '--input'),
    (OSError(28, 'No space left on device'), OSError, 'No space left')])
def test_hub_errors(fake_hub, error, expected, flag):
    """no network, a missing dataset and a full disk raise different errors"""
    def load_dataset(name, revision):
        raise error
    fake_hub(load_dataset)
    with pytest.raises(expected, match=flag):
        load_hub()
