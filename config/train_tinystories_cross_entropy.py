# The default model, 4 layers of width 128, with cross-entropy.
out_dir = 'out/tinystories_{loss}'
loss = 'cross_entropy'
# These improved runs of 400 to 900 iterations at 16e-3 (docs/training_recipe.md); not tested at 8e-3 and 2,000 of them
optimizer = 'muon'
learning_rate = 8e-3
lr_schedule = 'linear'
muon_beta2 = 0.95
context_warmup = 0.25
