# The default model, 4 layers of width 128, with cross-entropy.
out_dir = 'out/tinystories_{loss}'
loss = 'cross_entropy'
# the best of the settings that were tried (docs/performance.md)
optimizer = 'muon'
learning_rate = 8e-3
lr_schedule = 'linear'
muon_beta2 = 0.95
context_warmup = 0.25
