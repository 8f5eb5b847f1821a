"""The report of a study: paired differences and the table."""
import numpy as np
import pytest
from scipy import stats

from nanoloss import statistics, study_report

STORIES = np.array([3, 5, 8])  # tokens of each story


def made_up_run(generator):
    """JSON and arrays as evaluate.py writes them, with random figures that agree with each other."""
    sums = {key: generator.random((3, 3)) * STORIES for key in ('nats', 'top1', 'brier')}  # (readouts, stories)
    readouts = {name: {**{key: x[i].sum() / STORIES.sum() for key, x in sums.items()}, 'ece_mass': generator.random()}
                for i, name in enumerate(study_report.READOUTS)}
    arrays = {**sums, 'tokens': STORIES, 'calibration': generator.random((3, 15, 3)),
              'frequency': generator.random((4, 5)) + 1}
    return {'readouts': readouts, 'mode': 'stories', 'stories': 3, 'tokens': int(STORIES.sum()),
            'calibration_tokens': 9}, arrays


def test_paired_differences():
    """Differences are taken seed by seed, over the seeds of both arms, and tested by a paired t-test."""
    generator = np.random.default_rng(3)
    scores = {'a': {seed: made_up_run(generator) for seed in (1, 2, 3)},
              'b': {seed: made_up_run(generator) for seed in (1, 3, 4)}}
    found = study_report.paired_differences(scores, 'link')['b']
    assert found['seeds'] == 2
    for key, measure, readout, base_readout in (
            ('nats', 'nats', 'link', 'link'), ('ece_mass', 'ece_mass', 'link', 'link'),
            ('nats:softmax', 'nats', 'softmax', 'softmax'), ('nats:calibrated', 'nats', 'calibrated', 'calibrated'),
            ('nats_calibrated', 'nats', 'link', 'calibrated'), ('brier_calibrated', 'brier', 'link', 'calibrated'),
            ('ece_mass_calibrated', 'ece_mass', 'link', 'calibrated')):
        arm = [scores['b'][seed][0]['readouts'][readout][measure] for seed in (1, 3)]
        base = [scores['a'][seed][0]['readouts'][base_readout][measure] for seed in (1, 3)]
        assert found[key]['mean'] == pytest.approx(np.mean(arm) - np.mean(base))
        assert found[key]['p'] == pytest.approx(stats.ttest_rel(arm, base).pvalue)
    sums = np.stack([scores['b'][seed][1]['nats'][1] - scores['a'][seed][1]['nats'][1] for seed in (1, 3)])  # link
    assert found['nats']['crossed'] == pytest.approx(statistics.crossed_interval(sums, STORIES).tolist())
    assert 'crossed' not in found['ece_mass'] and 'flip' not in found['nats']


def test_shape_of_fine_tuned_models():
    """If the weights come from a checkpoint, the report does not claim the default shape."""
    settings = {arm: {'loss': arm, 'learning_rate': 4e-3} for arm in ('mse', 'squentropy')}
    lines = study_report.settings_section(settings)
    settings['mse']['init_from'] = 'm.pt'
    assert len(study_report.settings_section(settings)) == len(lines) + 1


def test_non_inferiority():
    """The upper bound in nats is stated, and whether it is below the margin."""
    found = {'seeds': 2, 'nats': statistics.paired_t([0.001, 0.003])}
    upper = found['nats']['upper99']
    lines = [study_report.difference_section('b minus a', found, {'readout': 'link', 'margin': m * upper}, 'stories')[-1]
             for m in (0.99, 1.01)]
    assert ['not' in line for line in lines] == [True, False] and all(f'{upper:+.4f}' in line for line in lines)


def test_sign_flips_from_eight_pairs():
    """With eight pairs the p-value of all 2^8 sign flips is reported next to the t-test's."""
    generator = np.random.default_rng(4)
    scores = {arm: {seed: made_up_run(generator) for seed in range(8)} for arm in 'ab'}
    found = study_report.paired_differences(scores, 'softmax')['b']['top1']
    d = [scores['b'][seed][0]['readouts']['softmax']['top1'] - scores['a'][seed][0]['readouts']['softmax']['top1']
         for seed in range(8)]
    exact = stats.permutation_test((d,), np.mean, permutation_type='samples', n_resamples=np.inf).pvalue
    assert found['flip'] == pytest.approx(exact, abs=0.01)


def test_table():
    """All arms are in the table with their means, also one whose runs all diverged."""
    generator = np.random.default_rng(5)
    scores = {'cross_entropy': {seed: made_up_run(generator) for seed in (1, 2)},
              'squentropy': {1: made_up_run(generator)}, 'mse': {}}
    logs = {arm: {seed: [{'iter': i, 'tokens': 64 * i, 'seconds': 2.0 * i, 'val_nats': 4 - 0.1 * i} for i in range(4)]
                  for seed in runs} for arm, runs in scores.items()}
    settings = {'max_iters': 3, 'batch_size': 2, 'gradient_accumulation_steps': 1, 'block_size': 32}
    plan = {'declared': {'readout': 'link', 'margin': 0.005}, 'seeds': [1, 2],
            'settings': {arm: {**settings, 'loss': arm, 'learning_rate': 0.125} for arm in scores}}
    differences = study_report.paired_differences(scores, 'link')
    about = study_report.describe_study(plan, scores, 'stories', '', 'val')
    assert '192' in about  # tokens per run
    diverged = {'cross_entropy': 0, 'squentropy': 1, 'mse': 2}
    table = study_report.format_table('title', about, plan, scores, logs, diverged, differences)
    rows = {line.split(' | ')[0][2:]: line.split(' | ') for line in table.splitlines() if line.startswith('| ')}
    for arm in ('cross_entropy', 'squentropy'):
        nats = [result['readouts']['link']['nats'] for result, _ in scores[arm].values()]
        assert rows[arm][2].startswith(f'{np.mean(nats):.4f}') and rows[arm][-1] == '6 |'
    assert '2 diverged' in rows['mse'][1] and '1 of 2' in rows['squentropy'][1] and rows['cross_entropy'][1] == '2'
    assert table.count('learning_rate=0.125') == 1 and all(f'loss={arm}' in table for arm in scores)
