"""data/synthetic/grammar.py: the stories are reproducible, different, long enough and free of template errors."""
import collections
import random
import re
import string

import pytest

from data.synthetic import grammar


@pytest.fixture(scope='module')
def corpus():
    return list(grammar.generate_stories(1337, 24000))


@pytest.fixture(scope='module')
def sample(corpus):
    return corpus[::4]


@pytest.fixture(scope='module')
def text(sample):
    return '\n\n'.join(sample)


def context(text, i):
    return text[max(0, i - 60):i + 60]


def test_same_seed_same_stories(corpus):
    """the same seed gives the same stories, and a smaller count the first of them"""
    assert list(grammar.generate_stories(1337, 300)) == corpus[:300]


def test_other_seed_other_stories(corpus):
    """another seed gives other stories"""
    assert not set(grammar.generate_stories(1338, 300)) & set(corpus)


def test_stories_are_different(corpus):
    """24,000 stories are generated, and no two are equal"""
    assert len(corpus) == len(set(corpus)) == 24000


def test_length(corpus):
    """every story has 80 to 250 words"""
    lengths = [len(story.split()) for story in corpus]
    assert 80 <= min(lengths) and max(lengths) <= 250


def test_every_plot_has_a_good_length():
    """no plot is rejected often for its length"""
    rng = random.Random(1)
    for plot in grammar.PLOTS:
        accepted = 0
        for _ in range(100):
            story = grammar.Story(rng)
            plot(story)
            accepted += 80 <= len(story.text.split()) <= 250
        assert accepted >= 95, plot.__name__


def test_vocabulary(text):
    """at least 600 different words occur five times or more"""
    counts = collections.Counter(re.findall('[a-z]+', text.lower()))
    assert sum(n >= 5 for n in counts.values()) >= 600


@pytest.mark.parametrize('error, strings', [
    ('an unfilled choice or field', '[ ] { } | \\ * / = None'.split()),
    ('stray white space', ['  ', ' \n', '\n ', '\n\n\n', '\t', ' ,', ' .', ' !', ' ?', ' ;', ' :']),
    ('doubled punctuation', [a + q + b for a in '.,!?' for q in ('', '"') for b in '.,!?']),
    ('a before a vowel', [f'{a} {vowel}' for a in (' a', 'A') for vowel in 'aeiou']),
    ('an before a consonant', [f' an {c}' for c in string.ascii_lowercase if c not in 'aeiou'])])
def test_no_such_string(text, error, strings):
    """none of these strings occurs"""
    for s in strings:
        assert s not in text, f'{error}: {context(text, text.index(s))!r}'


@pytest.mark.parametrize('error, pattern', [
    ('not plain ASCII', r'[^\x20-\x7e\n]'),
    ('a single line end', r'[^\n]\n[^\n]'),
    ('no space after punctuation', r'[.,!?;:][A-Za-z]'),
    ('a sentence or speech that starts in lower case', r'[.!?]\s[a-z]|\."\s[a-z]|\s"[a-z]|\n[a-z]'),
    ('a capital within a sentence', r'[a-z,] (?:The|He|She|They|It|His|Her|There|But|Then|So|And|We|You)\b')])
def test_no_such_pattern(text, error, pattern):
    """none of these patterns occurs"""
    m = re.search(pattern, text)
    assert not m, f'{error}: {context(text, m.start())!r}'


def test_no_doubled_words(text):
    """no word follows itself"""
    words = text.split()
    assert not {(a, b) for a, b in zip(words, words[1:]) if a == b}


def test_quotes_are_closed(text):
    """paragraphs and speeches end in punctuation, and quotes are on the right side of a space"""
    for paragraph in text.split('\n\n'):
        assert paragraph[-1] in '.!?"', paragraph
        for i, part in enumerate(parts := paragraph.split('"')):
            if i % 2:
                assert part[0].isupper() and part[-1] in '.,!?', paragraph
            else:
                assert part == '' or i == 0 or part[0] in ' .', paragraph
                assert part == '' or i == len(parts) - 1 or part[-1] == ' ', paragraph
        assert len(parts) % 2, paragraph


def test_verb_after_a_speech(text):
    """a lower-case word after a speech is its verb"""
    verbs = {verb for mood in grammar.MOODS.values() for verb in mood[0].split()}
    assert set(re.findall(r'[!?,]" ([a-z]+)', text)) <= verbs


def test_no_sentence_twice_in_a_story(sample):
    """no long sentence occurs twice in a story"""
    for story in sample:
        sentences = re.findall(r'[^.!?"\s][^.!?"\n]{14,}[.!?]', story)
        counts = collections.Counter(s for s in sentences if s[0].isupper())
        assert len(counts) == sum(counts.values()), counts.most_common(1)


def test_everyone_is_introduced(sample):
    """at the first use of a name, the story says who it is"""
    names = {cast[role] for cast in grammar.CASTS for role in ('hero', 'friend')}
    for story in sample:
        for name in names & set(re.findall('[A-Z][a-z]+', story)):
            first = re.search(rf'(\w+) {name}\b|\b{name} was an? ', story)
            assert first and first[1] in (None, 'named', 'friend', 'of', 'was'), story
        for name in ('Mom', 'Dad', 'Grandma', 'Grandpa'):
            assert name not in story or name.lower() in story[:story.index(name)], story


def test_names_stay_the_same(sample):
    """a story has two names at most, and both are repeated"""
    names = {cast[role] for cast in grammar.CASTS for role in ('hero', 'friend')}
    for story in sample:
        counts = collections.Counter(word for word in re.findall('[A-Z][a-z]+', story) if word in names)
        assert len(counts) <= 2 and min(counts.values()) >= 2, story
