"""Studies of compare.py, as a user runs them."""
import json
import re

import numpy as np
import pytest
from conftest import ROOT, cold, run
from scipy import stats

from nanoloss.study_report import READOUTS

SMALL = ['--n_layer=1', '--n_embd=16', '--n_head=2', '--block_size=32', '--eval_iters=1', '--batch_size=2',
         '--evaluations=2', '--budget=iters:4', '--bootstrap=99', '--num_samples=1', '--each=', '--name=s']


def compare(*flags, cwd):
    return run(ROOT / 'compare.py', *flags, cwd=cwd)


@pytest.mark.parametrize('flag, name', [
    ('--readout=best', 'readout'), ('--budget=hours:3', '--budget'), ('--budget=iters:nan', '--budget'),
    ('--nlayer=2', '--n_layer'), ('--seed=3', 'seed'), ('--losses=mse:seed=3', 'seed'),
    ('--losses=mse:mse_target', '--losses'), ('--losses=mse, mse', '--losses'),
    ('--losses=a=mse,a=cross_entropy', '--losses'), ('--losses=mse=cross_entropy,mse', '--losses'),
    ('--losses=a.b=mse', '--losses'), ('--losses==mse', '--losses'), ('--losses=a=b=mse', '--losses'),
    ('--losses=mse:squentropy_weight=0.3', '--squentropy_weight'), ('--losses=mse,mse:dataset=x', 'dataset')])
def test_mistakes_answer_before_torch(tmp_path, flag, name):
    """One line with the name of the flag, status 2, and no import of torch."""
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    status, out, err = cold(ROOT / 'compare.py', '--each=', flag, cwd=tmp_path, PYTHONPATH=tmp_path)
    assert status == 2 and name in err and err.count('\n') == 1 and not out, err
    assert not (tmp_path / 'results').exists()


def test_help_answers_before_torch(tmp_path):
    """--help lists the settings of compare.py."""
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    status, out, err = cold(ROOT / 'compare.py', '--losses=mse', '--help', cwd=tmp_path, PYTHONPATH=tmp_path)
    assert status == 0 and '--readout=link' in out and not err


def test_other_mistakes(tiny_data, tmp_path):
    """An unknown loss, a config file or data that do not exist, a damaged plan: one line with its name."""
    (tmp_path / 'results/damaged').mkdir(parents=True)
    (tmp_path / 'results/damaged/plan.json').write_text('{')
    (tmp_path / 'results/file').write_text('')
    for flags, name in ((['--losses=mse,nothing'], 'nothing'), (['--losses=nothing', '--each=no_{loss}.py'], 'nothing'),
                        (['--losses=mse', '--each=no_{loss}.py'], 'no_mse.py'), (['--dataset=nowhere'], 'nowhere'),
                        (['--name=damaged'], 'plan.json'), (['--name=file'], '--name')):
        status, _, err = compare(*SMALL, f'--dataset={tiny_data}', *flags, cwd=tmp_path)
        assert status in (1, 2) and name in err and err.count('\n') == 1, (flags, err)
    assert not list((tmp_path / 'results').glob('*/runs/*'))


def test_a_small_study(tiny_data, tmp_path):
    """The same study with fewer losses trains nothing and reports all runs, the arrays of a run agree with its JSON,
    and another baseline is refused."""
    flags, folder = [*SMALL, f'--dataset={tiny_data}', '--seeds=1', '--num_samples=0'], tmp_path / 'results/s'
    status, _, err = compare(*flags, '--losses=cross_entropy,squentropy', cwd=tmp_path)
    assert status == 0, err
    written = {path: path.stat().st_mtime_ns for path in folder.glob('runs/*/ckpt.pt')}
    status, _, err = compare(*flags, '--losses=cross_entropy', '--jobs=2', cwd=tmp_path)
    assert status == 0 and written == {path: path.stat().st_mtime_ns for path in folder.glob('runs/*/ckpt.pt')}, err
    assert list(json.loads((folder / 'results.json').read_text())['runs']) == ['cross_entropy', 'squentropy']
    assert '| squentropy | 1 |' in (folder / 'table.md').read_text()
    result = json.loads((folder / 'runs/squentropy-1/val.json').read_text())
    arrays, tokens = np.load(folder / 'runs/squentropy-1/val.npz'), result['tokens']
    assert arrays['tokens'].sum() == tokens == arrays['frequency'][:, 1].sum()
    for i, readout in enumerate(READOUTS):
        for key in ('nats', 'top1', 'brier'):
            assert arrays[key][i].sum() / tokens == pytest.approx(result['readouts'][readout][key], rel=1e-5)
        count, confidence, correct = arrays['calibration'][i].T
        ece = count @ abs(confidence - correct) / tokens
        assert ece == pytest.approx(result['readouts'][readout]['ece_mass'], rel=1e-5)
        assert arrays['frequency'][:, 2 + i].sum() == pytest.approx(arrays['nats'][i].sum(), rel=1e-5)
    status, _, err = compare(*flags, '--losses=squentropy', cwd=tmp_path)
    assert status == 1 and '--losses' in err and err.count('\n') == 1


@pytest.mark.slow
def test_names(tiny_data, tmp_path):
    """Names are used in folders, plan, results and table, which lists what they stand for; giving the name of a
    finished run to another loss is refused."""
    flags, folder = [*SMALL, f'--dataset={tiny_data}', '--seeds=1', '--num_samples=0'], tmp_path / 'results/s'
    status, _, err = compare(*flags, '--losses=mse,s-q_2=squentropy:squentropy_weight=0.1', cwd=tmp_path)
    assert status == 0, err
    assert sorted(path.name for path in folder.glob('runs/*')) == ['mse-1', 's-q_2-1']
    plan = json.loads((folder / 'plan.json').read_text())
    assert plan['settings']['s-q_2']['loss'] == 'squentropy' and plan['settings']['s-q_2']['squentropy_weight'] == 0.1
    assert list(json.loads((folder / 'results.json').read_text())['runs']) == ['mse', 's-q_2']
    settings = (folder / 'table.md').read_text().partition('## Settings')[2]
    assert re.search(r'^- s-q_2: .*squentropy.*squentropy_weight=0\.1$', settings, re.MULTILINE)
    status, _, err = compare(*flags, '--losses=mse,s-q_2=cross_entropy', cwd=tmp_path)
    assert status == 1 and 's-q_2' in err and err.count('\n') == 1


@pytest.mark.slow
def test_a_study(tiny_data, tmp_path):
    """Seeds added later keep the runs that are there, all runs are reported, and what changes a study is refused."""
    losses = ['cross_entropy', 'squentropy:squentropy_weight=0.1']
    flags, folder = [*SMALL, f'--dataset={tiny_data}', f'--losses={",".join(losses)}'], tmp_path / 'results/s'
    status, _, err = compare(*flags, '--seeds=1', cwd=tmp_path)
    assert status == 0, err
    written = {path: path.stat().st_mtime_ns for path in folder.glob('runs/*/ckpt.pt')}
    assert len(written) == 2
    status, _, err = compare(*flags, '--seeds=2', '--jobs=2', cwd=tmp_path)
    assert status == 0, err
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert len(list(folder.glob('runs/*'))) == 4
    results = json.loads((folder / 'results.json').read_text())
    d = [results['runs'][losses[1]][seed]['readouts']['link']['nats'] -
         results['runs'][losses[0]][seed]['readouts']['link']['nats'] for seed in '12']
    found = results['differences'][losses[1]]['nats']
    assert found['mean'] == pytest.approx(np.mean(d)) and found['p'] == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert f'{np.mean(d):+.4f}' in (folder / 'table.md').read_text()
    assert (folder / 'stories.md').read_text().count('One day') == 2
    for name in ('differences', 'curves', 'calibration', 'frequency'):
        assert (folder / f'{name}.png').stat().st_size > 5_000
    for more, name in (('--budget=iters:5', 'max_iters'), ('--readout=softmax', 'readout'), ('--n_embd=8', 'n_embd')):
        status, _, err = compare(*flags, more, cwd=tmp_path)
        assert status == 1 and name in err and err.count('\n') == 1, (more, err)


@pytest.mark.slow
def test_equal_seconds(tiny_data, tmp_path):
    """With a budget of seconds each loss gets the iterations that its stored speed allows, also when it joins later."""
    flags, folder = [*SMALL, f'--dataset={tiny_data}', '--seeds=1', '--budget=seconds:1'], tmp_path / 'results/s'
    for losses in ('cross_entropy', 'cross_entropy,mse'):
        status, _, err = compare(*flags, f'--losses={losses}', cwd=tmp_path)
        assert status == 0, err
        speeds = json.loads((folder / 'speeds.json').read_text())
        plan = json.loads((folder / 'plan.json').read_text())
        assert {arm: settings['max_iters'] for arm, settings in plan['settings'].items()} == {
            arm: int(speed) for arm, speed in speeds.items()} and list(speeds) == losses.split(',')
