"""Files of a compare.py study, and its plan: plan.json holds what was declared, which may grow but not change."""
import json
import os
from pathlib import Path

from configurator import fail
from nanoloss import launcher
from nanoloss.paths import ROOT

STUDIES = ROOT / 'docs/studies'


def read_json(path):
    """Return the content of a JSON file, {} if there is none. Exits if it is not valid JSON."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        fail(f'{path}: invalid JSON; restore or delete this file')


def read_study(name):
    """Return the declared readout and the runs of a study, {arm: {seed: {readout: metrics}}}.

    Args:
        name: of a study in docs/studies, or the path of a results.json. Exits if there is no such study.
    """
    path = next((path for path in (STUDIES / f'{name}.json', Path(name)) if path.is_file()), None)
    if not path:
        fail(f'{name}: no such study; pass a results.json of compare.py or one of {", ".join(known_studies())}',
             status=2)
    results = read_json(path)
    if 'runs' not in results or 'plan' not in results:
        fail(f'{path}: not written by compare.py; pass a results.json or one of {", ".join(known_studies())}',
             status=2)
    return results['plan']['declared']['readout'], {
        arm: {seed: result['readouts'] for seed, result in runs.items()}
        for arm, runs in results['runs'].items() if runs}  # all runs of an arm may have diverged


def known_studies():
    """Return the names of the studies in docs/studies that declare a readout."""
    return [path.stem for path in sorted(STUDIES.glob('*.json')) if '"declared"' in path.read_text()]


def write_text(path, text):
    """Write a file atomically."""
    partial = path.with_name(path.name + '.partial')
    partial.write_text(text, encoding='utf-8', errors='replace')  # surrogates of a path that is not UTF-8
    os.replace(partial, path)


def check_plan(path, plan, ignored=()):
    """Return the plan of earlier calls in plan.json, {} if there is none. Exits if `plan` is that of another study.

    Args:
        path, plan: as in merge_plan().
        ignored: names of settings that may differ.
    """
    if stored := read_json(path):
        old, new = fixed_parts(stored), fixed_parts(plan)
        changes = [f'{key} {old[key]} -> {value}' for key, value in new.items()
                   if old.get(key, value) != value and key.rpartition(': ')[2] not in ignored]
        if changes:
            fail(f'--name={path.parent.name} is a different study: {", ".join(changes[:5])}; pass another --name')
    return stored


def merge_plan(path, plan):
    """Merge a plan with that of earlier calls in plan.json, write it and return it.

    Arms, seeds and splits of the data are added. Exits if anything else differs, so that it is a different study.

    Args:
        path: of plan.json.
        plan: {'declared': {name: value}, 'settings': {arm: settings of train.py}, 'seeds': [...],
            'data': {split: fingerprint}, 'matmul': name}; the first arm is the baseline.
    """
    if stored := check_plan(path, plan):
        plan = {**plan, 'settings': stored['settings'] | plan['settings'], 'data': stored['data'] | plan['data'],
                'seeds': sorted({*stored['seeds'], *plan['seeds']})}
    write_text(path, json.dumps(plan, indent=1))
    return plan


def fixed_parts(plan):
    """Return what must not change while a study grows: {name: value}."""
    defaults, _, _ = launcher.train_settings()
    parts = {**plan['declared'], 'first of --losses': next(iter(plan['settings'])),
             **{f'{part}.bin': fingerprint for part, fingerprint in plan['data'].items()}}
    for arm, settings in plan['settings'].items():
        parts |= {f'{arm}: {key}': value for key, value in {**defaults, **settings}.items()}
    return parts
