from train_tinystories_cross_entropy import *
loss = 'squentropy'
