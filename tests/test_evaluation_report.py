"""Tables, arrays and figures of small results made by hand."""
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from nanoloss import evaluation_report, statistics

READOUTS = ('softmax', 'link', 'calibrated')
METRICS = ('nats', 'perplexity', 'bits_per_byte', 'top1', 'top5', 'ece_width', 'ece_mass', 'brier')


def make_result(seed=0, **changes):
    generator = np.random.default_rng(seed)
    readouts = {name: {key: float(generator.random()) for key in METRICS} |
                {key: generator.random(2).tolist() for key in ('nats_interval', 'top1_interval')} for name in READOUTS}
    return {'checkpoint': f'out/{seed}/best.pt', 'loss': 'squentropy', 'iteration': 1234, 'data': 'data/tiny',
            'split': 'val', 'source': 'synthetic stories', 'tokenizer': 'bpe', 'vocab_size': 512, 'block_size': 64,
            'mode': 'stories', 'stride': 32, 'random_batches': None, 'stories': 38, 'tokens': 16882, 'bytes': 36133,
            'objective': 5.25, 'raw_link_sum': 0.875, 'raw_link_negative': -0.125, 'link_mix': 0.1,
            'calibration_temperature': [0.75, 1.25], 'calibration_mix': [0.0625, 0.125], 'readouts': readouts,
            **changes}


def cells(line):
    """The decimal numbers in a line of a table."""
    return [float(x) for x in re.findall(r'[-+]?\d+\.\d+', line)]


def test_table_has_every_number():
    """The table has each metric and interval of each readout, and the facts above it."""
    result = make_result()
    lines = evaluation_report.format_table(result, 999).splitlines()
    rows = [cells(line) for line in lines]
    for key in (*METRICS, 'nats_interval', 'top1_interval'):
        expected = np.ravel([readout[key] for readout in result['readouts'].values()])
        assert any(len(row) == len(expected) and np.allclose(row, expected, atol=6e-4) for row in rows), key
    text = '\n'.join(lines)
    for fact in ('out/0/best.pt', 'squentropy', '1,234', 'val.bin', 'data/tiny', 'synthetic stories', '38 stories',
                 '16,882', '512', '36,133', '5.25', '0.8750', '-0.1250', '0.750', '1.250', '999'):
        assert fact in text


def test_table_of_blocks_without_bytes():
    """Unknown values are shown as ?, random batches have a line, and control characters are not printed."""
    result = make_result(mode='blocks', stride=None, blocks=9, bytes=None, raw_link_sum=None, raw_link_negative=None,
                         random_batches=[1.5, 1.75], source='a\x1b[31m\nb', calibration_temperature=[1.0],
                         calibration_mix=[0.5])
    for readout in result['readouts'].values():
        readout['bits_per_byte'] = None
    text = evaluation_report.format_report(result, 999, random_batches=7, batch_size=4)
    assert text.count('?') >= 3 and '\x1b' not in text
    assert any('1.5000' in line and '1.7500' in line and '7' in line for line in text.splitlines())


def test_comparison_has_every_number():
    """The comparison has difference, interval and p of each readout, after the tables of both checkpoints."""
    a, b = make_result(0), make_result(1)
    difference = {'difference': -0.0625, 'interval': [-0.125, 0.25], 'p': 0.0312}
    a['compared'] = {'with': b['checkpoint'], 'paired_by': 'story', 'stories': 38, 'other': b,
                     'readouts': {name: {'nats': difference, 'top1': difference} for name in READOUTS}}
    text = evaluation_report.format_report(a, 999)
    assert evaluation_report.format_table(a, 999) in text and evaluation_report.format_table(b, 999) in text
    rows = [row for row in map(cells, evaluation_report.format_comparison(a, 999).splitlines()) if len(row) >= 4]
    assert [row[-4:] for row in rows] == [[-0.0625, -0.125, 0.25, 0.0312]] * 6
    assert json.loads(evaluation_report.format_json(a)) == a


def make_tokens(n, seed=0):
    """Random scores of n tokens, as evaluate.py has them."""
    generator = np.random.default_rng(seed)
    readouts = {name: {'nats': generator.exponential(size=n), 'confidence': generator.random(n),
                       'brier': generator.random(n), 'top1': generator.random(n) < 0.5} for name in READOUTS}
    return {'objective': generator.random(n), **readouts, 'position': np.arange(n) % 90 + 1}


def test_arrays_match_a_loop(tmp_path):
    """Sums per unit, calibration groups and nats by token frequency equal a plain loop's."""
    generator = np.random.default_rng(0)
    unit = np.repeat([-1, 0, 1, 2, 3], [1, 50, 7, 80, 62])
    scored, ids = unit >= 0, generator.integers(30, size=200)
    data = SimpleNamespace(tokens=ids, unit=unit, scored=scored, n_units=4,
                           sum_per_unit=lambda x: [x[unit[scored] == k].sum() for k in range(4)])
    train = generator.integers(40, size=3000) % 30
    figures = make_tokens(199)
    evaluation_report.save_arrays(tmp_path / 'a.npz', data, figures, train)
    arrays = np.load(tmp_path / 'a.npz')
    assert arrays['tokens'].tolist() == [50, 7, 80, 62]
    for i, name in enumerate(READOUTS):
        for key in ('nats', 'top1', 'brier'):
            expected = [sum(figures[name][key][unit[scored] == k]) for k in range(4)]
            np.testing.assert_allclose(arrays[key][i], expected, rtol=1e-9)
        count, confidence, accuracy = arrays['calibration'][i].T
        ece = count @ abs(confidence - accuracy) / 199
        assert ece == pytest.approx(statistics.ece(figures[name]['confidence'], figures[name]['top1'], mass=True))
    occurrences = [(train == token).sum() for token in ids[scored]]
    for low, count, *nats in arrays['frequency']:
        group = np.array([low <= x < 2 * low for x in occurrences])
        assert count == group.sum()
        np.testing.assert_allclose(nats, [figures[name]['nats'][group].sum() for name in READOUTS])
    assert arrays['frequency'][:, 1].sum() == 199


def test_figures_are_png_files(tmp_path):
    """Two PNG files are drawn for two checkpoints."""
    results, figures = [make_result(0), make_result(1)], [make_tokens(500, 0), make_tokens(300, 1)]
    evaluation_report.draw_figures(tmp_path, results, figures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['positions.png', 'reliability.png']
    assert all(path.read_bytes().startswith(b'\x89PNG') for path in tmp_path.iterdir())
