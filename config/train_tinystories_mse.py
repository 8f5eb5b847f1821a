# As train_tinystories_cross_entropy.py, with MSE and the values that tune.py found for it with Muon and cosine
# decay (docs/earlier_studies.md).
from train_tinystories_cross_entropy import *
loss = 'mse'
mse_true_weight = 17.3  # the plain square loss has 1 and 1
mse_target = 11.0
learning_rate = 7e-3
weight_decay = 0.02
grad_clip = 0.55
