# The best recipe with cross-entropy of docs/results.md#from-nanogpts-recipe-upwards, its row "+ schedule".
out_dir = 'out/ladder_best'
n_layer = 2
n_embd = 96
max_iters = 724
optimizer = 'muon'
learning_rate = 24e-3
warmup_iters = 60
lr_schedule = 'linear'
muon_beta2 = 0.95
context_warmup = 0.25
