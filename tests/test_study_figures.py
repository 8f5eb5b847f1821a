"""The figures of a study."""
import numpy as np
import pytest
from test_study_report import made_up_run

from nanoloss import study_figures, study_report


@pytest.mark.parametrize('arms', [['a'], ['a', 'b', 'c']])
def test_all_figures_are_drawn(tmp_path, arms):
    """Every figure is a file, also if all runs of an arm diverged; differences need two arms."""
    generator = np.random.default_rng(5)
    scores = {arm: {seed: made_up_run(generator) for seed in (1, 2)[:2 - i]} for i, arm in enumerate(arms)}
    logs = {arm: {seed: [{'iter': i, 'tokens': 64 * i, 'seconds': 2.0 * i, 'val_nats': 4 - 0.1 * i} for i in range(4)]
                  for seed in runs} for arm, runs in scores.items()}
    differences = study_report.paired_differences(scores, 'link')
    study_figures.draw_figures(tmp_path, '-test', scores, logs, differences, 'link')
    names = ('calibration', 'curves', *(['differences'] if len(arms) > 1 else []), 'frequency')
    assert sorted(path.name for path in tmp_path.glob('*.png') if path.stat().st_size > 5_000) == [
        f'{name}-test.png' for name in names]
