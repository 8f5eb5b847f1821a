"""The state and the clock of a training run, against a simulated clock."""
import math

import pytest

from nanoloss import train_state
from nanoloss.train_state import Timer, TrainState


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves by hand: clock[0] is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(train_state.time, 'perf_counter', lambda: now[0])
    return now


def test_record_eval():
    """best_val_loss is the minimum; patience counts evaluations that improve it by no more than min_delta."""
    state, best, patience = TrainState(), [], []
    for iter_num, nats in enumerate([3.0, 2.9, 2.5, 2.6, 2.45]):
        state.iter_num = iter_num
        best.append(state.record_eval(nats, min_delta=0.2))
        patience.append(state.evals_since_best)
    assert best == [True, True, True, False, True] and state.best_val_loss == 2.45 and state.last_eval == 4
    assert patience == [0, 1, 0, 1, 2]


def test_to_dict_has_every_field():
    """A checkpoint keeps each field once: nanoGPT's two keys at the top, the others in train_state."""
    contents = TrainState(iter_num=7, best_val_loss=2.5, train_seconds=3.0, wandb_run_id='x').to_dict()
    inner = contents.pop('train_state')
    assert contents == {'iter_num': 7, 'best_val_loss': 2.5}
    assert TrainState(**contents, **inner) == TrainState(7, 2.5, -1, 0, 3.0, 'x')
    assert TrainState().best_val_loss == math.inf


def test_pauses_are_not_training_time(clock):
    """train_seconds grows by the time outside of pauses, also in a run that resumes with some seconds."""
    state = TrainState(iter_num=10, train_seconds=50.0)
    timer = Timer(state, 'cpu')
    clock[0] += 4
    with timer.pause():
        clock[0] += 1000
    clock[0] += 2
    state.iter_num = 13
    assert timer.lap() == 6 / 3 and state.train_seconds == 56
    clock[0] += 5
    state.iter_num = 14
    assert timer.lap() == 5


def test_time_left(clock):
    """The estimate is the pace of this start times the iterations left, plus the evaluations left."""
    state = TrainState(iter_num=100, train_seconds=1e6)  # earlier starts were slower and do not count
    timer = Timer(state, 'cpu')
    with timer.pause():
        clock[0] += 8
    clock[0] += 20
    state.iter_num = 110
    timer.update()
    # 90 iterations at 2 s, and evaluations at 150 and 200 of 8 s
    assert timer.time_left(max_iters=200, eval_interval=50) == '03:16'
