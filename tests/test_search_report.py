"""The report of a search: tables, figure and best.py of an Optuna study in memory."""
import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from nanoloss.search_report import describe_outcome, describe_values, final_nats, finished_trials, write_report

SPACE = {'learning_rate': FloatDistribution(1e-3, 1e-1, log=True), 'dropout': CategoricalDistribution([0.0, 0.1])}


@pytest.fixture
def study():
    """Five completed trials (number 1 the best), a pruned one, a diverged one, a failed one."""
    study = optuna.create_study()
    study.set_user_attr('description', 'mse with adamw, trials of 8 iterations')
    study.set_user_attr('search', {'settings': {'loss': 'mse', 'n_layer': 2, 'n_head': 4, 'dropout': 0.1, 'seed': 7}})

    def add(learning_rate, dropout, value, state=TrialState.COMPLETE, **attrs):
        values = {2: 9.0} if state is TrialState.PRUNED else {}
        study.add_trial(create_trial(state=state, params={'learning_rate': learning_rate, 'dropout': dropout},
                                     distributions=SPACE, value=value, intermediate_values=values,
                                     user_attrs={'iters': 8, 'seconds': 1.5, **attrs}))

    add(2e-3, 0.0, 4.0)
    add(1e-2, 0.0, 3.25)
    add(2e-2, 0.1, 3.75, TrialState.PRUNED)
    add(9e-2, 0.1, 5.545, diverged=True)
    add(3e-2, 0.1, None, TrialState.FAIL)
    add(1e-2, 0.1, 3.5)
    add(4e-3, 0.1, 3.75)
    add(5e-3, 0.0, 3.6)
    return study


def rows(text, heading):
    """The table under a heading of a Markdown text, without the line below its header."""
    lines = text.partition(f'## {heading}')[2].split('\n\n')[1].strip().splitlines()
    cells = [line.strip('| ').split(' | ') for line in lines]
    return [cells[0], *cells[2:]]


def test_trials(study):
    """Failed trials are left out; pruned and diverged ones are never the best."""
    trials = finished_trials(study)
    assert [t.number for t in trials] == [0, 1, 2, 3, 5, 6, 7]
    assert [final_nats(t) for t in trials] == [4.0, 3.25, math.inf, math.inf, 3.5, 3.75, 3.6]
    assert describe_outcome(trials[1]) == '3.2500' and describe_outcome(trials[3]) == 'diverged'
    assert describe_values(trials[1]) == 'learning_rate 0.01, dropout 0'


def test_write_report(study, tmp_path):
    """The tables rank all finished trials, best.py holds the settings of the best one, and the figure is an image."""
    lines = write_report(study, tmp_path)
    text = (tmp_path / 'table.md').read_text()
    counts, best_of = rows(text, 'Best of')
    assert counts[1:] == ['1', '2', '4', '7'] and best_of[1:] == ['4.0000', '3.2500', '3.2500', '3.2500']
    header, *ranked = rows(text, 'Trials')
    assert header[2:4] == ['learning_rate', 'dropout'] and ranked[0] == ['1', '3.2500', '0.01', '0', '8', '2']
    assert [row[0] for row in ranked[:5]] == ['1', '5', '7', '6', '0'] and {row[0] for row in ranked[5:]} == {'2', '3'}
    names, shares = rows(text, 'Importance')
    assert set(names) == set(SPACE) and sum(map(float, shares)) == pytest.approx(1, abs=0.02)
    best = {}
    exec((tmp_path / 'best.py').read_text(), best)
    assert {name: best[name] for name in ('loss', 'n_layer', 'learning_rate', 'dropout')} == \
        {'loss': 'mse', 'n_layer': 2, 'learning_rate': 0.01, 'dropout': 0.0}
    assert (tmp_path / 'search.png').read_bytes()[:4] == b'\x89PNG'
    assert any('best.py' in line for line in lines) and not any('\n' in line for line in lines)
    assert 'n_layer=2' in text and 'n_head' not in best  # only settings that are not the defaults
    assert 'dropout=' not in text and '--seed=8' in lines[-1]  # what was searched is not common to all trials


def test_nothing_to_report(tmp_path):
    """Without a completed trial there is an error that names the study, and no file."""
    study = optuna.create_study()
    with pytest.raises(ValueError, match='--study='):
        write_report(study, tmp_path)
    study.add_trial(create_trial(params={'dropout': 0.1}, distributions={'dropout': SPACE['dropout']}, value=5.5,
                                 user_attrs={'diverged': True}))
    with pytest.raises(ValueError, match='--study='):
        write_report(study, tmp_path)
    assert not any(tmp_path.iterdir())
