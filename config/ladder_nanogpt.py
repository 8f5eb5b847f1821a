# nanoGPT's recipe at a small scale: the first row of docs/results.md#from-nanogpts-recipe-upwards.
out_dir = 'out/ladder_nanogpt'
n_layer = 3
n_embd = 96
max_iters = 612
learning_rate = 1e-3
min_lr = 1e-4
random_windows = True
