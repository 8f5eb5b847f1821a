"""Studies of compare.py, as a user runs them."""
import json
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT, cold, run, settings_of
from scipy import stats
from test_study_report import made_up_run

from nanoloss.matmul import HAS_ONEDNN
from nanoloss.study_report import READOUTS

SHAPE = ['--n_layer=1', '--n_embd=16', '--n_head=2']
SMALL = [*SHAPE, '--block_size=32', '--eval_iters=1', '--batch_size=2', '--evaluations=2', '--budget=iters:4',
         '--num_samples=1', '--each=', '--name=s']


def matmul_of(folder):
    """The library that a run recorded."""
    return json.loads((folder / 'val.json').read_text())['environment']['matmul']


def compare(*flags, cwd):
    return run(ROOT / 'compare.py', *flags, cwd=cwd)


@pytest.mark.parametrize('flag, name', [
    ('--readout=best', 'readout'), ('--budget=hours:3', '--budget'), ('--budget=iters:nan', '--budget'),
    ('--nlayer=2', '--n_layer'), ('--seed=3', 'seed'), ('--losses=mse:seed=3', 'seed'),
    ('--losses=mse:mse_target', '--losses'), ('--losses=mse, mse', '--losses'),
    ('--losses=a=mse,a=cross_entropy', '--losses'), ('--losses=mse=cross_entropy,mse', '--losses'),
    ('--losses=a.b=mse', '--losses'), ('--name=x_{loss}', 'name'), ('--losses==mse', '--losses'), ('--losses=a=b=mse', '--losses'),
    ('--losses=mse:squentropy_weight=0.3', '--squentropy_weight'), ('--losses=mse,mse:dataset=x', 'dataset'),
    ('--init_from=resume', '--init_from'), ('--losses=mse:init_from=auto', '--init_from')])
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
    plan = json.loads((folder / 'plan.json').read_text())
    assert plan['matmul'] == matmul_of(folder / 'runs/squentropy-1') != 'auto'
    for settings in plan['settings'].values():
        del settings['muon_beta2']
    (folder / 'plan.json').write_text(json.dumps(plan))  # as if train.py had got this setting later
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
    for losses in 'squentropy', 'cross_entropy,mse_mse_target_5=mse,mse:mse_target=5':
        status, _, err = compare(*flags, f'--losses={losses}', cwd=tmp_path)
        assert status in (1, 2) and '--losses' in err and err.count('\n') == 1
    plan['settings']['mse:mse_target=5'] = plan['settings']['squentropy']
    (folder / 'plan.json').write_text(json.dumps(plan))
    status, _, err = compare(*flags, '--losses=cross_entropy,mse_mse_target_5=mse', cwd=tmp_path)
    assert status == 2 and 'mse_mse_target_5' in err and 'mse:mse_target=5' in err and err.count('\n') == 1


@pytest.mark.slow
def test_fine_tuning(tiny_data, tmp_path):
    """With a learning rate of almost 0 a run has the nats of its seed's model that it started from, also when the
    speed was measured first. The weights decide the shape, mistakes leave no study behind, and a study is resumed
    without the weights."""
    flags = [*SMALL, f'--dataset={tiny_data}', '--losses=cross_entropy', '--num_samples=0', '--seeds=2', '--jobs=2']
    status, _, err = compare(*flags, cwd=tmp_path)
    assert status == 0, err
    flags = [*(flag for flag in flags if flag not in SHAPE), '--learning_rate=1e-9',
             '--init_from=results/s/runs/cross_entropy-{seed}/ckpt.pt']
    for wrong, name in ('--init_from={sead}.pt', '{sead}.pt'), ('--n_layer=2', 'n_layer'):
        status, _, err = compare(*flags, '--name=fine', wrong, cwd=tmp_path)
        assert status == 1 and name in err and err.count('\n') == 1 and not (tmp_path / 'results/fine').exists(), err
    for name, budget in ('timed', 'seconds:1'), ('fine', 'iters:4'):
        status, _, err = compare(*flags, f'--name={name}', f'--budget={budget}', cwd=tmp_path)
        assert status == 0, err
        base, fine = ([run['readouts']['softmax']['nats'] for run in results['runs']['cross_entropy'].values()]
                      for results in (json.loads((tmp_path / f'results/{study}/results.json').read_text())
                                      for study in ('s', name)))
        assert fine == pytest.approx(base, abs=1e-5) and abs(base[0] - base[1]) > 1e-3
    settings = json.loads((tmp_path / 'results/fine/plan.json').read_text())['settings']['cross_entropy']
    assert {f'--{name}={settings[name]}' for name in ('n_layer', 'n_embd', 'n_head')} == set(SHAPE)
    (tmp_path / 'results/fine/runs/cross_entropy-2/val.json').unlink()
    (tmp_path / 'results/s').rename(tmp_path / 'results/gone')
    status, _, err = compare(*flags, '--name=fine', cwd=tmp_path)
    assert status == 0, err


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
    written = {path: path.stat().st_mtime_ns for path in folder.glob('runs/*/*.*')}
    deleted = folder / 'runs/cross_entropy-1/ckpt.pt'  # to save space
    deleted.unlink()
    assert written.pop(deleted) and len(list(folder.glob('runs/*/ckpt.pt'))) == 1
    status, _, err = compare(*flags, '--seeds=2', '--jobs=2', cwd=tmp_path)
    assert status == 0, err
    assert all(path.stat().st_mtime_ns == time for path, time in written.items()) and not deleted.exists()
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
@pytest.mark.skipif(not HAS_ONEDNN, reason='PyTorch has no oneDNN for this processor')
def test_a_study_keeps_its_library(tiny_data, tmp_path):
    """Runs that join a study use the library of its plan, although their own choice for so small a model would be
    torch. Requesting another one is refused."""
    folder = tmp_path / 'results/s'
    flags = [*SMALL, f'--dataset={tiny_data}', '--losses=cross_entropy', '--num_samples=0']
    assert compare(*flags, '--seeds=1', cwd=tmp_path)[0] == 0
    plan = json.loads((folder / 'plan.json').read_text())
    (folder / 'plan.json').write_text(json.dumps(plan | {'matmul': 'onednn'}))
    assert compare(*flags, '--seeds=2', cwd=tmp_path)[0] == 0
    assert matmul_of(folder / 'runs/cross_entropy-2') == 'onednn'
    status, _, err = compare(*flags, '--matmul=torch', cwd=tmp_path)
    assert status == 1 and 'matmul' in err and err.count('\n') == 1


@pytest.mark.slow
def test_library_is_missing(tiny_data, tmp_path):
    """A machine without the library of a study rewrites its report, but starts no run."""
    folder = tmp_path / 'results/s'
    flags = [*SMALL, f'--dataset={tiny_data}', '--losses=cross_entropy', '--num_samples=0']
    assert compare(*flags, '--seeds=1', cwd=tmp_path)[0] == 0
    plan = json.loads((folder / 'plan.json').read_text())
    (folder / 'plan.json').write_text(json.dumps(plan | {'matmul': 'onednn'}))
    (folder / 'table.md').unlink()
    (tmp_path / 'sitecustomize.py').write_text('import platform\nplatform.machine = lambda: "without oneDNN"')

    def compare_without_onednn(seeds):
        return cold(ROOT / 'compare.py', *flags, f'--seeds={seeds}', cwd=tmp_path, PYTHONPATH=str(tmp_path))
    status, _, err = compare_without_onednn(1)
    assert status == 0 and (folder / 'table.md').exists(), err
    status, _, err = compare_without_onednn(2)
    assert status == 1 and '--matmul' in err and err.count('\n') == 1
    assert [path.name for path in (folder / 'runs').iterdir()] == ['cross_entropy-1']
    assert json.loads((folder / 'plan.json').read_text())['matmul'] == 'onednn'


@pytest.mark.slow
def test_equal_seconds(tiny_data, tmp_path):
    """With a budget of seconds each loss gets the iterations that its stored speed allows, also when it joins later.
    A refused study stores no speeds."""
    flags, folder = [*SMALL, f'--dataset={tiny_data}', '--seeds=1', '--budget=seconds:1'], tmp_path / 'results/s'
    for losses in ('cross_entropy', 'cross_entropy,mse'):
        status, _, err = compare(*flags, f'--losses={losses}', cwd=tmp_path)
        assert status == 0, err
        speeds = json.loads((folder / 'speeds.json').read_text())
        plan = json.loads((folder / 'plan.json').read_text())
        assert {arm: settings['max_iters'] for arm, settings in plan['settings'].items()} == {
            arm: int(speed) for arm, speed in speeds.items()} and list(speeds) == losses.split(',')
    status, _, err = compare(*flags, '--losses=cross_entropy,squentropy', '--margin=0.1', cwd=tmp_path)
    assert status == 1 and 'margin' in err and json.loads((folder / 'speeds.json').read_text()) == speeds


TRAIN = """
import json
from pathlib import Path
if learning_rate > 1:
    raise SystemExit(3)
folder = Path(out_dir)
folder.mkdir(parents=True, exist_ok=True)
(folder / 'init_from').write_text(init_from)
(folder / 'ckpt.pt').write_text('state')
with open(folder / 'metrics.jsonl', 'w') as f:
    for i in range(3):
        f.write(json.dumps({'iter': i, 'tokens': i, 'seconds': i, 'loss': 1.0, 'val_nats': 3.0, 'seed': seed,
                            'windows': eval_windows}) + '\\n')
"""
EVALUATE = """
import shutil
from pathlib import Path
shutil.copy('made_up.npz', arrays)
Path(arrays).with_name('device').write_text(device)
print(Path('made_up.json').read_text().replace('MODE', 'blocks' if blocks else 'stories'))
"""


@pytest.fixture
def repo(tmp_path):
    """A copy of compare.py with stand-ins for train.py, which logs its seed, and for evaluate.py, and with ids without
    a tokenizer as data."""
    for path in [ROOT / name for name in ('compare.py', 'configurator.py', 'losses.py', 'model.py')]:
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / 'nanoloss', tmp_path / 'nanoloss', ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / 'train.py').write_text(settings_of('train.py') + TRAIN)
    (tmp_path / 'evaluate.py').write_text(settings_of('evaluate.py') + EVALUATE)
    result, arrays = made_up_run(np.random.default_rng(0))
    (tmp_path / 'made_up.json').write_text(json.dumps({**result, 'mode': 'MODE', 'blocks': 3, 'block_size': 32}))
    np.savez(tmp_path / 'made_up.npz', **arrays)
    (tmp_path / 'ids').mkdir()
    for name in ('train', 'val'):
        np.arange(1000, dtype='<u2').tofile(tmp_path / f'ids/{name}.bin')
    return tmp_path


IDS = ['--name=s', '--each=', '--dataset=ids', '--vocab_size=1000', '--block_size=32', '--max_iters=2',
       '--matmul=torch']


def test_seeds_and_blocks(repo):
    """Each run gets the seed of its name, the same for all losses, and evaluates the same windows. Data without a
    tokenizer is scored in blocks, which all output says; all losses have the same blocks."""
    status, out, err = run(repo / 'compare.py', *IDS, '--losses=mse,a=mse:block_size=16', cwd=repo)
    assert status == 2 and 'block_size' in err and err.count('\n') == 1 and not (repo / 'results').exists(), err
    status, out, err = run(repo / 'compare.py', *IDS, '--losses=mse,a=mse:batch_size=3', '--seeds=2', '--first_seed=7',
                           '--budget=tokens:1024', cwd=repo)
    assert status == 0 and err == '', err
    plan = json.loads((repo / 'results/s/plan.json').read_text())
    assert {arm: settings['max_iters'] for arm, settings in plan['settings'].items()} == {'mse': 4, 'a': 11}
    folder = repo / 'results/s'
    logs = {path.parent.name: path.read_text() for path in folder.glob('runs/*/metrics.jsonl')}
    seeds = {name: {json.loads(line)['seed'] for line in log.splitlines()} for name, log in logs.items()}
    assert {json.loads(line)['windows'] for log in logs.values() for line in log.splitlines()} == {160}
    assert seeds == {'mse-7': {7}, 'mse-8': {8}, 'a-7': {7}, 'a-8': {8}}
    for text in (out, (folder / 'table.md').read_text(), (folder / 'results.json').read_text()):
        assert '3 blocks of 32 tokens' in text
    assert not (folder / 'stories.md').exists() and (folder / 'frequency.png').exists()
    status, out, err = run(repo / 'compare.py', *IDS, '--losses=mse,b=mse', '--block_size=16', cwd=repo)
    assert status == 1 and 'block_size' in err and err.count('\n') == 1, err


def test_arms_on_different_devices(repo):
    """Each run is evaluated on the device of its arm, and only arms that take --matmul get the library."""
    status, _, err = run(repo / 'compare.py', *IDS[:-1], '--losses=a=mse:device=cpu,b=mse:compile=True', '--seeds=1',
                         cwd=repo)
    assert status == 0 and err == '', err
    assert [(repo / f'results/s/runs/{name}-1/device').read_text() for name in 'ab'] == ['cpu', 'auto']


def test_diverged_and_resumed_runs(repo):
    """A run that diverges is counted and not repeated; one that was not evaluated resumes from its checkpoint."""
    flags, runs = [*IDS, '--losses=mse,b=mse:learning_rate=2', '--seeds=1'], repo / 'results/s/runs'
    for first in ('scratch', 'resume'):
        status, _, err = run(repo / 'compare.py', *flags, cwd=repo)
        assert status == 0 and err == '', err
        assert json.loads((repo / 'results/s/results.json').read_text())['runs']['b'] == {}
        assert '1 diverged' in (repo / 'results/s/table.md').read_text()
        assert (runs / 'mse-1/init_from').read_text() == first
        (runs / 'mse-1/val.json').unlink()
        (repo / 'train.py').write_text((repo / 'train.py').read_text().replace('> 1:', '> 9:'))


def test_stories_of_the_first_finished_seed(repo, tiny_data):
    """Stories come from the first seed that all losses have finished, on whichever split it was scored. The report of
    test.bin does not replace that of val.bin."""
    (repo / 'sample.py').write_text(settings_of('sample.py') + '\nprint(checkpoint)')
    flags = ['--name=s', '--each=', f'--dataset={tiny_data}', '--max_iters=2', '--matmul=torch',
             '--seeds=1']
    tables = []
    for more, seed in (('--losses=mse', 1), ('--losses=mse --first_seed=2 --split=test', 1),
                       ('--losses=mse,b=mse --first_seed=3', 3)):
        status, _, err = run(repo / 'compare.py', *flags, *more.split(), cwd=repo)
        assert status == 0 and err == '', err
        text = (repo / 'results/s/stories.md').read_text()
        assert f'runs/mse-{seed}/ckpt.pt' in text and text.count('ckpt.pt') == (2 if 'b=mse' in more else 1)
        tables.append((repo / 'results/s/table.md').read_text())
    assert tables[0] == tables[1] and (repo / 'results/s/table-test.md').exists()


@pytest.mark.slow
def test_a_study_of_ids(tiny_data, tmp_path):
    """With the real train.py and evaluate.py, runs of the same seed start alike and are scored in blocks."""
    folder, data = tmp_path / 'results/s', tmp_path / 'ids'
    data.mkdir()
    for name in ('train', 'val'):
        np.fromfile(tiny_data / f'{name}.bin', 'u1')[:2000].astype('<u2').tofile(data / f'{name}.bin')
    flags = [*SMALL, f'--dataset={data}', '--vocab_size=256', '--seeds=2', '--losses=mse,a=mse:grad_clip=2']
    status, _, err = compare(*flags, cwd=tmp_path)
    assert status == 0 and err == '', err
    results = json.loads((folder / 'results.json').read_text())
    assert {run['mode'] for runs in results['runs'].values() for run in runs.values()} == {'blocks'}
    assert results['differences']['a']['nats']['crossed']
    untrained = {path.parent.name: json.loads(path.read_text().splitlines()[0])['val_nats']
                 for path in folder.glob('runs/*/metrics.jsonl')}
    assert untrained['mse-1'] == untrained['a-1'] != untrained['mse-2'] == untrained['a-2']


@pytest.mark.slow
def test_change_of_a_custom_loss(tiny_data, tmp_path):
    """A study is refused after the function of a custom loss has changed."""
    shutil.copytree(ROOT, tmp_path / 'copy', ignore=shutil.ignore_patterns('.*', 'out', 'results', 'data', 'docs'))
    path = tmp_path / 'copy/losses.py'
    code = path.read_text() + "\n\nCUSTOM_LOSSES['own'] = lambda f, y: FACTOR * F.cross_entropy(f, y, reduction='none')\n"
    for factor, expected in (2.0, 0), (3.0, 1), (2.0, 0):
        path.write_text(code.replace('FACTOR', str(factor)))
        status, _, err = cold(tmp_path / 'copy/compare.py', *SMALL, f'--dataset={tiny_data}', '--losses=mse,own',
                              '--seeds=1', '--num_samples=0', cwd=tmp_path)
        assert status == expected and (not expected or 'custom loss' in err and err.count('\n') == 1), err
