# About 30 M parameters with GPT-2's vocabulary, for one GPU. --loss=... chooses the loss.
out_dir = 'out/tinystories_30m_{loss}'
dataset = 'tinystories/gpt2'

n_layer = 6
n_head = 6
n_embd = 384
block_size = 512

batch_size = 64          # 32,768 tokens per iteration
max_iters = 20_000       # 655 M tokens, about 1.4 epochs of all of TinyStories
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 500
eval_interval = 1000
eval_iters = 50
