# Default search space of tune.py, the same for every loss. A list holds choices, a pair is a range, 'log' makes it
# logarithmic. The model size is fixed, because otherwise the search would compare sizes instead of losses.
learning_rate = (5e-4, 3e-2, 'log')
dropout = [0.0, 0.05, 0.1, 0.2]
warmup_iters = (max_iters // 100, max_iters // 4)
weight_decay = (0.01, 1.0, 'log')
grad_clip = (0.1, 10.0, 'log')

# constants of the loss; a space file can use the settings of the run
if loss == 'squentropy':
    squentropy_weight = (0.01, 3.0, 'log')
if loss == 'mse':
    mse_true_weight = (1.0, 100.0, 'log')
    mse_target = (1.0, 30.0, 'log')
