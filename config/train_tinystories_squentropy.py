# As train_tinystories_cross_entropy.py, with squentropy and the values that tune.py found for it with Muon and
# cosine decay (docs/earlier_studies.md).
from train_tinystories_cross_entropy import *
loss = 'squentropy'
squentropy_weight = 0.083  # the published loss has 1
learning_rate = 16e-3
weight_decay = 0.03
grad_clip = 6.5
