# The small model of train.py's defaults, 4 layers 128 wide, with plain cross-entropy.
out_dir = 'out/tinystories_{loss}'
loss = 'cross_entropy'
optimizer = 'muon'  # this and the rate: README, "Sooner to the same loss"
learning_rate = 8e-3
