"""nanoloss/readers.py: the same stories from every file format and the hub, and one-line errors."""
import collections
import gzip
import json
import random
import re
import shutil
import subprocess

import pytest
from conftest import run

from nanoloss.readers import HUB, REVISION, DataError, clean, load_files, read_file, read_text, repair

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


@pytest.mark.parametrize('bom, encoding', [('\ufeff', 'utf-16-le'), ('\ufeff', 'utf-16-be'), ('\ufeff', 'utf-32-le'),
                                           ('\ufeff', 'utf-32-be'), ('', 'utf-16-le'), ('', 'utf-16-be')])
@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl', 'a.json.gz'])
def test_other_encodings_are_refused(tmp_path, name, bom, encoding):
    """UTF-16 and UTF-32 are refused with the command that converts the file, which then has the right stories"""
    text = f'Größe {EOT} zwei' if name == 'a.txt' else '{"text": "Größe"}\n{"text": "zwei"}\n'
    data = (bom + text).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    with pytest.raises(DataError) as e:
        read(tmp_path / name)
    command = re.search('(iconv|gunzip).*', str(e.value))[0]
    assert name in command and '\n' not in str(e.value)
    if shutil.which('iconv') and shutil.which('gunzip'):
        new = tmp_path / ('new.txt' if name == 'a.txt' else 'new.json')
        subprocess.run(command.replace('FILE', str(new)), shell=True, check=True)
        assert read(new)[0] == ['Größe', 'zwei']


def test_read_text(tmp_path):
    """a text file has the same line ends and encodings as a file of stories"""
    (tmp_path / 'a').write_bytes(b'\xef\xbb\xbfOne\r\ntwo\rthree \xff\n')
    assert read_text(tmp_path / 'a') == 'One\ntwo\nthree \ufffd\n'
    (tmp_path / 'a').write_bytes('One'.encode('utf-16'))
    with pytest.raises(DataError, match='iconv'):
        read_text(tmp_path / 'a')


def test_repair():
    """UTF-8 bytes that Python could not decode are decoded, other surrogates are replaced, the rest is kept"""
    assert repair('Größe 🎉'.encode().decode('ascii', 'surrogateescape')) == 'Größe 🎉'
    assert repair('a\ud800b\udcff') == 'a\ufffdb\ufffd'


@pytest.mark.parametrize('name, start, end, location', [('a.jsonl', '{"text": "a"}\n{"text": "', '"}\n', 'line 2'),
                                                        ('a.json', '[{"text": "a"}, {"text": "', '"}]', 'item 2')])
def test_long_json_stories(tmp_path, name, start, end, location):
    """a JSON story of almost 16 MiB is read; a longer one is refused for its length"""
    for size, fits in ((16 << 20) - 99, True), (17 << 20, False):
        (tmp_path / name).write_text(start + 'x' * size + end)
        if fits:
            assert [len(story) for story in read(tmp_path / name)[0]] == [1, size]
        else:
            with pytest.raises(DataError, match=f'{name}, {location}.* 16 MiB'):
                read(tmp_path / name)


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

@pytest.fixture(scope='module')
def hub_files():
    """The files of a dataset on the hub, named like those of TinyStories."""
    pytest.importorskip('datasets')
    from hub_server import parquet_file
    stories = [f'Story {i}' for i in range(2500)]
    return {'data/train-00000-of-00002-2d5a1467fff1081b.parquet': parquet_file(stories[:1500]),
            'data/train-00001-of-00002-2d5a1467fff1081b.parquet': parquet_file(stories[1500:]),
            'data/validation-00000-of-00001-869c898b519ad725.parquet': parquet_file([f'Test {i}' for i in range(9)])}


def prepare_from_hub(folder, files, is_broken=False, **limits):
    """Run the default source of prepare.py against a hub on the loopback. Returns (exit status, stderr)."""
    from hub_server import serve
    with serve(HUB, REVISION, files, is_broken) as address:
        status, _, err = run('data/tinystories/prepare.py', '--tokenizer=byte', f'--out_dir={folder}/out',
                             HF_ENDPOINT=address, HF_HUB_OFFLINE='0', HF_HOME=str(folder / 'hf'), limits=limits)
    return status, err


def test_hub(hub_files, tmp_path):
    """the train split of the pinned revision is train and val, its validation split is test, in the hub's order"""
    status, err = prepare_from_hub(tmp_path, hub_files)
    assert status == 0, err
    stories = {split: (tmp_path / 'out' / f'{split}.bin').read_bytes().decode('utf-8', 'replace').split('\ufffd')[:-1]
               for split in ('train', 'val', 'test')}
    assert stories['test'] == [f'Test {i}' for i in range(9)]
    numbers = [[int(story.removeprefix('Story ')) for story in stories[split]] for split in ('train', 'val')]
    assert numbers == [sorted(part) for part in numbers] and sorted(sum(numbers, [])) == [*range(2500)]
    assert 20 < len(numbers[1]) < 90  # 2 %
    meta = json.loads((tmp_path / 'out/meta.json').read_text())
    assert meta['source'] == meta['splits']['test']['source'] == f'{HUB}@{REVISION}'


def test_hub_without_the_dataset(hub_files, tmp_path):
    """a hub that does not have the dataset is one line that names it and the other way"""
    status, err = prepare_from_hub(tmp_path, {})
    assert status == 1 and err.startswith('error: ') and err.count('\n') == 1, err
    assert HUB in err and '--input' in err and not (tmp_path / 'out').exists()


@pytest.mark.slow  # the client tries again and again
def test_hub_that_hangs_up(hub_files, tmp_path):
    """a connection that is lost during the download ends with the other ways to get stories, and leaves nothing"""
    status, err = prepare_from_hub(tmp_path, hub_files, is_broken=True)
    assert status == 1 and err.splitlines()[-1].startswith('error: ') and 'data/synthetic/prepare.py' in err
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_full_disk_during_the_download(hub_files, tmp_path):
    """an error of this machine is not reported as one of the hub"""
    status, err = prepare_from_hub(tmp_path, hub_files, RLIMIT_FSIZE=4096)
    last = err.splitlines()[-1]
    assert status == 1 and last.startswith('error: ') and 'data/synthetic' not in last and 'Traceback' not in err
    assert not (tmp_path / 'out').exists()
