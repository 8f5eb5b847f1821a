# As train_tinystories_cross_entropy.py, but for the loss and its learning rate.
from train_tinystories_cross_entropy import *
loss = 'squentropy'
learning_rate = 16e-3
