"""Search spaces: which files are valid, what they mean, and that mistakes are reported with the name of the setting."""
import itertools

import pytest
from conftest import ROOT
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from configurator import read_settings
from nanoloss.search_space import describe, grid_points, read_space, starting_point

DEFAULTS, RULES, APPLIES = read_settings(ROOT / 'train.py')


def read(path, **settings):
    return read_space(str(path), {**DEFAULTS, **settings}, DEFAULTS, RULES, APPLIES)


@pytest.fixture
def write(tmp_path):
    """write(text) -> path of a space file with this text"""
    def write(text):
        (tmp_path / 'space.py').write_text(text)
        return tmp_path / 'space.py'
    return write


def test_distributions(write):
    """Lists, ranges and logarithmic ranges become distributions of the setting's type, in the order of the file."""
    text = ("import math\n_choices = [2, 4]\nn_layer = _choices\nlearning_rate = (1e-3, 1, 'log')\n"
            "warmup_iters = (0, max_iters // 4)\nif loss == 'mse':\n    mse_target = (math.e, 10.0)\n")
    space = read(write(text), max_iters=400, loss='mse')
    assert space == {
        'n_layer': CategoricalDistribution([2, 4]), 'learning_rate': FloatDistribution(1e-3, 1.0, log=True),
        'warmup_iters': IntDistribution(0, 100), 'mse_target': FloatDistribution(2.718281828459045, 10.0)}
    assert list(space) == ['n_layer', 'learning_rate', 'warmup_iters', 'mse_target']
    assert [*map(describe, space.values())] == ['2|4', '0.001 to 1 (log)', '0 to 100', '2.71828 to 10']


@pytest.mark.parametrize('text,name', [
    ('', 'space.py'),
    ('_x = 1\nfor i in range(3): pass', 'space.py'),
    ('learning_rat = (1e-4, 1e-1)', 'learning_rat'),
    ('learning_rate = 5e-4', 'learning_rate'),
    ('learning_rate = (1e-1, 1e-4)', 'learning_rate'),
    ('learning_rate = (0.0, 1e-1, "log")', 'learning_rate'),
    ('learning_rate = (1e-4, 1e-1, "lin")', 'learning_rate'),
    ('learning_rate = (1e-4,)', 'learning_rate'),
    ('learning_rate = (1e-4, float("inf"))', 'learning_rate'),
    ('n_layer = (1, 2.5)', 'n_layer'),
    ('loss = ("mse", "squentropy")', 'loss'),
    ('loss = []', 'loss'),
    ('dropout = [0.1, 0.1]', 'dropout'),
    ('dropout = [0.1, "no"]', 'dropout'),
    ('dropout = (0.0, 1.5)', 'dropout'),  # breaks a rule of train.py
    ('learning_rate = (1e-4, 1e-1)\nmin_lr = (0.0, 1e-3)', 'min_lr'),  # breaks one at some points of both
    ('n_embd = [64, 96]\nn_head = [4, 6]', 'n_head'),
    ('block_size = [128, 256]', 'block_size'),
    ('seed = (1, 9)', 'seed'),
    ('out_dir = ["a", "b"]', 'out_dir'),
    ('learning_rate = (', 'SyntaxError'),
    ('learning_rate = nothing', 'NameError'),
])
def test_bad_space(write, text, name):
    """A mistake gives one line with the flag and the name of the setting, however many values it concerns."""
    with pytest.raises(ValueError) as caught:
        read(write(text))
    [message] = caught.value.args
    assert '--space=' in message and name in message and '\n' not in message


def test_all_mistakes_at_once(write):
    """Each mistake has a line of its own; a file that does not exist is one mistake."""
    with pytest.raises(ValueError) as caught:
        read(write('learning_rat = (1e-4, 1e-1)\nseed = [1, 2]\ndropout = 0.1'))
    assert len(caught.value.args) == 3
    with pytest.raises(ValueError, match='config/space_default.py'):
        read('nowhere.py')


@pytest.mark.parametrize('text,settings,name', [
    ('squentropy_weight = (0.1, 1.0)', {'loss': 'mse'}, 'squentropy_weight'),
    ('mse_target = [1.0, 2.0]', {'loss': 'squentropy'}, 'mse_target'),
    ('muon_learning_rate = (1e-4, 1e-1)', {'optimizer': 'adamw'}, 'muon_learning_rate'),
    ('loss = ["mse", "squentropy"]\nsquentropy_weight = (0.1, 1.0)', {'loss': 'squentropy'}, 'squentropy_weight'),
    ('loss = ["mse", "squentropy"]', {'loss': 'mse', 'mse_target': 11.0}, 'mse_target'),
])
def test_settings_without_effect(write, text, settings, name):
    """A setting that has no effect in some of the trials is a mistake."""
    with pytest.raises(ValueError) as caught:
        read(write(text), **settings)
    [message] = caught.value.args
    assert '--space=' in message and name in message


def test_settings_with_effect(write):
    """A setting can be searched if it has an effect for every choice of the others."""
    text = 'loss = ["squentropy", "cross_entropy_plus_square"]\nsquentropy_weight = (0.1, 1.0)'
    assert list(read(write(text), loss='squentropy')) == ['loss', 'squentropy_weight']
    assert list(read(write('muon_learning_rate = (0.1, 1.0)'), optimizer='muon')) == ['muon_learning_rate']


def test_default_space():
    """Every loss is searched in the same ranges and in its own constants after them, so that the first draws agree."""
    spaces = {loss: read('config/space_default.py', loss=loss, max_iters=400)
              for loss in ('cross_entropy', 'squentropy', 'mse')}
    shared = ['learning_rate', 'dropout', 'warmup_iters', 'weight_decay', 'grad_clip']
    assert list(spaces['cross_entropy']) == shared
    assert list(spaces['squentropy']) == [*shared, 'squentropy_weight']
    assert list(spaces['mse']) == [*shared, 'mse_true_weight', 'mse_target']
    assert all(spaces[loss][name] == spaces['cross_entropy'][name] for loss in spaces for name in shared)


def test_grid_points(write):
    """A grid has every combination once; a range is refused with its name."""
    points = grid_points(read(write('n_layer = [1, 2]\ndropout = [0.0, 0.1, 0.2]')))
    assert [(p['n_layer'], p['dropout']) for p in points] == [*itertools.product([1, 2], [0.0, 0.1, 0.2])]
    points = grid_points(read('config/space_original_study.py'))
    assert len(points) == 27 and len({tuple(point.values()) for point in points}) == 27
    with pytest.raises(ValueError, match='learning_rate'):
        grid_points(read(write('n_layer = [1, 2]\nlearning_rate = (1e-3, 1e-2)')))


def test_starting_point(write):
    """The settings, clamped to the ranges, without those that are not among the choices."""
    space = read(write('learning_rate = (1e-3, 1e-2)\nwarmup_iters = (1, 9)\nn_layer = [1, 2]\ndropout = [0.0, 0.5]'))
    assert starting_point(space, {'learning_rate': 5e-3, 'warmup_iters': 100, 'n_layer': 4, 'dropout': 0.5}) == \
        {'learning_rate': 5e-3, 'warmup_iters': 9, 'dropout': 0.5}
