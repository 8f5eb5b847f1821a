"""What changes during training besides weights and optimizer, and the clock of a run."""
import contextlib
import math
import time
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm


@dataclass
class TrainState:
    iter_num: int = 0
    best_val_loss: float = math.inf  # nats per token
    last_eval: int = -1              # iteration of the last evaluation
    evals_since_best: int = 0        # evaluations without an improvement, for early stopping
    train_seconds: float = 0.0       # without evaluations, over all starts of the run
    wandb_run_id: str = ''

    def record_eval(self, nats, min_delta):
        """Count an evaluation at this iteration. Return whether it is the best so far."""
        improved = nats < self.best_val_loss - min_delta
        self.evals_since_best = 0 if improved else self.evals_since_best + 1
        self.last_eval = self.iter_num
        is_best = nats < self.best_val_loss
        self.best_val_loss = min(self.best_val_loss, nats)
        return is_best

    def to_dict(self):
        """The part of a checkpoint that restore_optimizer() reads: nanoGPT's two keys and a dict of our own."""
        state = asdict(self)
        return {'iter_num': state.pop('iter_num'), 'best_val_loss': state.pop('best_val_loss'), 'train_state': state}


class Timer:
    """Adds the seconds that training takes to state.train_seconds, and estimates how long it will take."""

    def __init__(self, state, device):
        self.state = state
        synchronize = {'cuda': torch.cuda.synchronize, 'mps': torch.mps.synchronize}
        self.synchronize = synchronize.get(device.split(':')[0], lambda: None)
        self.eval_seconds = []
        self.first = self.last_lap = (state.iter_num, state.train_seconds)
        self.mark = time.perf_counter()

    def update(self):
        """Bring state.train_seconds up to date."""
        self.synchronize()
        now = time.perf_counter()
        self.state.train_seconds += now - self.mark
        self.mark = now

    @contextlib.contextmanager
    def pause(self):
        """Time spent in this context, an evaluation, is not training time."""
        self.update()
        yield
        now = time.perf_counter()
        self.eval_seconds.append(now - self.mark)
        self.mark = now

    def lap(self):
        """Return the seconds per iteration since the last call."""
        self.update()
        iter_num, seconds = self.last_lap
        self.last_lap = (self.state.iter_num, self.state.train_seconds)
        return max(self.state.train_seconds - seconds, 1e-9) / (self.state.iter_num - iter_num)

    def time_left(self, max_iters, eval_interval):
        """Return the estimated time until max_iters, evaluations included, as [H:]MM:SS."""
        remaining = max_iters - self.state.iter_num
        iter_num, seconds = self.first
        left = (self.state.train_seconds - seconds) / (self.state.iter_num - iter_num) * remaining
        if self.eval_seconds:
            mean = sum(self.eval_seconds) / len(self.eval_seconds)
            left += mean * math.ceil(remaining / eval_interval)
        return tqdm.format_interval(left)
