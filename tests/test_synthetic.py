"""The embedded corpus: reproducible, distinct, long enough, rich enough and mechanically clean."""
import collections
import importlib.util
import pathlib
import random
import re

import pytest

PATH = pathlib.Path(__file__).parents[1] / 'data' / 'tinystories' / 'synthetic.py'
spec = importlib.util.spec_from_file_location('synthetic', PATH)
synthetic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(synthetic)


@pytest.fixture(scope='module')
def corpus():
    return list(synthetic.stories())


def matches(pattern, corpus):
    """Up to three places, with what is around them, where the pattern is found."""
    found = []
    for story in corpus:
        for m in re.finditer(pattern, story):
            found.append(story[max(0, m.start() - 30):m.end() + 30])
            if len(found) == 3:
                return found
    return found


def test_same_seed_same_stories(corpus):
    """the same seed gives the same stories, and fewer of them are the beginning of the same list"""
    assert list(synthetic.stories(count=300)) == corpus[:300]
    assert list(synthetic.stories(seed=7, count=50)) == list(synthetic.stories(seed=7, count=50))


def test_other_seed_other_stories(corpus):
    """two seeds share no story among their first 300"""
    assert not set(synthetic.stories(seed=1338, count=300)) & set(corpus)


def test_default_call_is_distinct(corpus):
    """the default call gives 24,000 pairwise distinct stories"""
    assert len(corpus) == len(set(corpus)) == 24000


def test_length(corpus):
    """every story has 80 to 250 words"""
    lengths = [len(story.split()) for story in corpus]
    assert 80 <= min(lengths) and max(lengths) <= 250


def test_vocabulary(corpus):
    """at least 1,500 distinct words are told five times or more"""
    counts = collections.Counter(word for story in corpus for word in re.findall('[a-z]+', story.lower()))
    assert sum(n >= 5 for n in counts.values()) >= 1500


def test_every_plot_fits(corpus):
    """each plot by itself gives good lengths, so that none of them is rejected silently"""
    rng = random.Random(1)
    for plot in synthetic.PLOTS:
        good = 0
        for _ in range(100):
            tale = synthetic.cast(rng)
            plot(tale)
            good += 80 <= len(tale.text.split()) <= 250
        assert good >= 95, f'{plot.__name__}: only {good} of 100 stories have 80 to 250 words'


@pytest.mark.parametrize('what, pattern', [
    ('not plain ASCII', r'[^\x20-\x7e\n]'),
    ('a bracket or brace left over', r'[\[\]{}|\\*/=]'),
    ('two spaces, or a space at the end of a line', r'  | \n|\n | $|^ '),
    ('one or three line ends', r'\n\n\n|[^\n]\n[^\n]'),
    ('a space before punctuation', r' [,.!?;:]'),
    ('doubled punctuation', r'[.,!?;:]"?[.,!?;:]'),
    ('no space after punctuation', r'[.,!?;:][A-Za-z]'),
    ('the wrong one of a and an', r'\b[Aa](?: [aeiou]|n [^aeiou])'),
    ('a doubled word', r'\b([A-Za-z]+) \1\b'),
    ('a sentence that starts in lower case', r'[.!?]\s[a-z]|\."\s[a-z]|\s"[a-z]|\n[a-z]'),
    ('a capital in mid-sentence', r'[a-z,] (?:The|He|She|They|It|His|Her|There|But|Then|So|And|That|In|We|You)\b'),
    ('a speech that ends without punctuation', r'[a-z]"'),
    ('a story that does not end a sentence', r'[^.!?"]$')])
def test_mechanics(corpus, what, pattern):
    """nothing that a careful typist would not write"""
    assert not matches(pattern, corpus), what


def test_quotes_are_closed(corpus):
    """quotes are balanced in every paragraph, and open and close with the right side to the word"""
    for story in corpus:
        for paragraph in story.split('\n\n'):
            quotes = [m.start() for m in re.finditer('"', paragraph)]
            assert len(quotes) % 2 == 0, paragraph
            for i in quotes[0::2]:
                assert paragraph[i + 1].isalnum() and (i == 0 or paragraph[i - 1] == ' '), paragraph


def test_lower_case_after_a_speech_only_for_its_verb(corpus):
    """after a speech comes its verb, in lower case, or a new sentence"""
    verbs = {verb for mood in synthetic.MOODS.values() for verb in mood[0].split()} | {'called', 'told', 'thought', 'the'}
    followers = collections.Counter(word for story in corpus for word in re.findall(r'[!?,]" ([a-z]+)', story))
    assert set(followers) <= verbs, set(followers) - verbs


def test_no_sentence_twice_in_a_story(corpus):
    """no sentence of four or more words is told twice in one story"""
    for story in corpus:
        sentences = [s for s in re.split(r'(?<=[.!?])\s+|"', story) if len(s.split()) >= 4 and s.rstrip()[-1] in '.!?' and s[0] != ' ']
        assert len(sentences) == len(set(sentences)), collections.Counter(sentences).most_common(1)


def test_names_are_introduced(corpus):
    """one who gets thanked has been in the story before"""
    for story in corpus:
        for m in re.finditer(r'[Tt]hank you(?: so much)?, (\w+)', story):
            assert m[1] in story[:m.start()], story
