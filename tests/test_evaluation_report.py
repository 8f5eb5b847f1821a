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
                         random_batches=[1.5, 1.75], source='a\x1b[31m\nb', calibration_temperature=[None],
                         calibration_mix=[0.5])
    for readout in result['readouts'].values():
        readout['bits_per_byte'] = None
    text = evaluation_report.format_report(result, 999, random_batches=7, batch_size=4)
    assert text.count('?') >= 3 and '\x1b' not in text and 'None' not in text
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


def make_totals(n_units, seed=0):
    """Made-up scoring.Totals of units of 20 tokens with 30 different ids."""
    generator, n = np.random.default_rng(seed), 20 * n_units
    counts = generator.integers(0, 9, 1001)
    accuracy, ids = generator.integers(0, 2, 1001).astype(float), generator.integers(0, 9, (1, 30))
    return SimpleNamespace(
        tokens=n, counts=np.full(n_units, 20.0), sums={key: generator.random((3, n_units)) for key in
                                                       ('nats', 'top1', 'top5', 'brier')},
        confidences=np.zeros(3), calibration_counts=lambda i: (np.linspace(0, 1, 1001), accuracy, counts),
        by_id=np.concatenate([ids, ids * generator.random((3, 30))]),
        by_position=np.concatenate([generator.integers(1, 9, (1, 90)), generator.random((3, 90))]))


def test_arrays_match_a_loop(tmp_path):
    """Sums per unit are passed on, calibration groups give the ECE, and nats by token frequency equal a loop's."""
    totals = make_totals(50)
    train = np.random.default_rng(1).integers(40, size=3000) % 30
    evaluation_report.save_arrays(tmp_path / 'a.npz', totals, train)
    arrays = np.load(tmp_path / 'a.npz')
    assert arrays['tokens'].tolist() == [20] * 50
    for key in ('nats', 'top1', 'brier'):
        np.testing.assert_array_equal(arrays[key], totals.sums[key])
    for i in range(3):
        count, confidence, accuracy = arrays['calibration'][i].T
        ece = count @ abs(confidence - accuracy) / count.sum()
        assert ece == pytest.approx(statistics.ece(*totals.calibration_counts(i), mass=True))
    occurrences = np.array([(train == token).sum() for token in range(30)])
    for low, *row in arrays['frequency']:
        group = [low <= x < 2 * low for x in occurrences]
        np.testing.assert_allclose(row, totals.by_id[:, group].sum(1))
    assert arrays['frequency'][:, 1].sum() == totals.by_id[0].sum()


def test_figures_are_png_files(tmp_path):
    """Two PNG files are drawn for two checkpoints."""
    evaluation_report.draw_figures(tmp_path, [make_result(0), make_result(1)], [make_totals(9, 0), make_totals(5, 1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['positions.png', 'reliability.png']
    assert all(path.read_bytes().startswith(b'\x89PNG') for path in tmp_path.iterdir())
