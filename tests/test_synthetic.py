"""The embedded corpus: reproducible, distinct, long enough, rich enough and mechanically clean."""
import collections
import importlib.util
import pathlib
import random
import re
import string

import pytest

PATH = pathlib.Path(__file__).parents[1] / 'data' / 'tinystories' / 'synthetic.py'
spec = importlib.util.spec_from_file_location('synthetic', PATH)
synthetic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(synthetic)


@pytest.fixture(scope='module')
def corpus():
    return list(synthetic.stories())


@pytest.fixture(scope='module')
def text(corpus):
    return '\n\n'.join(corpus)


def around(text, i):
    return text[max(0, i - 60):i + 60]


def test_same_seed_same_stories(corpus):
    """the same seed gives the same stories, and fewer of them are the beginning of the same list"""
    assert list(synthetic.stories(count=300)) == corpus[:300]
    assert list(synthetic.stories(seed=7, count=50)) == list(synthetic.stories(seed=7, count=50))


def test_other_seed_other_stories(corpus):
    """another seed gives other stories"""
    assert not set(synthetic.stories(seed=1338, count=300)) & set(corpus)


def test_default_call_is_distinct(corpus):
    """the default call gives 24,000 pairwise distinct stories"""
    assert len(corpus) == len(set(corpus)) == 24000


def test_length(corpus):
    """every story has 80 to 250 words"""
    lengths = [len(story.split()) for story in corpus]
    assert 80 <= min(lengths) and max(lengths) <= 250


def test_every_plot_fits():
    """each plot by itself gives good lengths, so that none is drawn again and again"""
    rng = random.Random(1)
    for plot in synthetic.PLOTS:
        good = 0
        for _ in range(100):
            tale = synthetic.cast(rng)
            plot(tale)
            good += 80 <= len(tale.text.split()) <= 250
        assert good >= 95, f'{plot.__name__}: only {good} of 100 stories have 80 to 250 words'


def test_vocabulary(text):
    """at least 1,500 distinct words are told five times or more"""
    counts = collections.Counter()
    for token, n in collections.Counter(text.lower().split()).items():
        for word in re.findall('[a-z]+', token):
            counts[word] += n
    assert sum(n >= 5 for n in counts.values()) >= 1500


@pytest.mark.parametrize('what, strings', [
    ('a choice or a field that was not filled', '[ ] { } | \\ * / = None'.split()),
    ('stray white space', ['  ', ' \n', '\n ', '\n\n\n', '\t', ' ,', ' .', ' !', ' ?', ' ;', ' :']),
    ('doubled punctuation', [a + q + b for a in '.,!?' for q in ('', '"') for b in '.,!?']),
    ('a before a vowel', [f'{a} {vowel}' for a in (' a', 'A') for vowel in 'aeiou']),
    ('an before a consonant', [f' an {c}' for c in string.ascii_lowercase if c not in 'aeiou'])])
def test_never_told(text, what, strings):
    """none of these strings occurs"""
    for s in strings:
        assert s not in text, f'{what}: {around(text, text.index(s))!r}'


@pytest.mark.parametrize('what, pattern', [
    ('not plain ASCII', r'[^\x20-\x7e\n]'),
    ('a single line end', r'[^\n]\n[^\n]'),
    ('no space after punctuation', r'[.,!?;:][A-Za-z]'),
    ('a sentence or speech that starts in lower case', r'[.!?]\s[a-z]|\."\s[a-z]|\s"[a-z]|\n[a-z]'),
    ('a capital in mid-sentence', r'[a-z,] (?:The|He|She|They|It|His|Her|There|But|Then|So|And|We|You)\b')])
def test_never_matched(text, what, pattern):
    """none of these patterns occurs"""
    m = re.search(pattern, text)
    assert not m, f'{what}: {around(text, m.start())!r}'


def test_no_doubled_words(text):
    """no word follows itself"""
    words = text.split()
    doubled = {(a, b) for a, b in zip(words, words[1:]) if a == b}
    assert not doubled, doubled


def test_quotes_are_closed(text):
    """paragraphs and speeches end in punctuation; each quote stands on the right side of its space"""
    for paragraph in text.split('\n\n'):
        assert paragraph[-1] in '.!?"', paragraph
        for i, part in enumerate(parts := paragraph.split('"')):
            if i % 2:
                assert part[0].isupper() and part[-1] in '.,!?', paragraph
            else:
                assert part == '' or i == 0 or part[0] in ' .', paragraph
                assert part == '' or i == len(parts) - 1 or part[-1] == ' ', paragraph
        assert len(parts) % 2, paragraph


def test_lower_case_after_a_speech_is_its_verb(text):
    """after a speech comes its verb, in lower case, or a new sentence"""
    verbs = {verb for mood in synthetic.MOODS.values() for verb in mood[0].split()}
    followers = set(re.findall(r'[!?,]" ([a-z]+)', text))
    assert followers <= verbs | {'called', 'told', 'thought', 'the'}, followers - verbs


def test_no_sentence_twice_in_a_story(corpus):
    """no sentence of some length is told twice in one story"""
    for story in corpus:
        sentences = re.findall(r'[^.!?"\s][^.!?"\n]{14,}[.!?]', story)
        told = collections.Counter(s for s in sentences if s[0].isupper())
        assert len(told) == sum(told.values()), told.most_common(1)


def test_everyone_is_introduced(corpus):
    """the first time that a name is told, the story says who that is; grown-ups likewise"""
    names = set(synthetic.BOYS + synthetic.GIRLS + synthetic.HE_PETS + synthetic.SHE_PETS)
    for story in corpus[::4]:
        for name in names & set(re.findall('[A-Z][a-z]+', story)):
            first = re.search(rf'(\w+) {name}\b|\b{name} was an? ', story)
            assert first and first[1] in (None, 'named', 'called', 'friend', 'of', 'was', 'knew'), story
        for name in ('Mom', 'Dad', 'Grandma', 'Grandpa', 'Aunt', 'Uncle'):
            assert name not in story or name.lower() in story[:story.index(name)], story
