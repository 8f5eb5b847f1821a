# The small model of train.py's defaults, 4 layers 128 wide, with plain cross-entropy.
out_dir = 'out/tinystories_{loss}'
loss = 'cross_entropy'
learning_rate = 4e-3
