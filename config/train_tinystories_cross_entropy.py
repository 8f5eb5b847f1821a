# The small model of train.py's defaults, with plain cross-entropy.
out_dir = 'out/tinystories_{loss}'
loss = 'cross_entropy'
