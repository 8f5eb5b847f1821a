# The setup of the original study (DSC 180B, UCSD 2024) as far as its report describes it: GPT-2's BPE, 20,000
# iterations, one GPU, and the hyperparameters it chose: 16 layers, dropout 0.1 and learning rate 6e-5, which is not in
# its grid (space_original_study.py). Batch size, context and schedule are our guess, in the style of nanoGPT.
# --loss=cross_entropy | mse | cross_entropy_plus_mse (its "squentropy") | squentropy (the published loss)
out_dir = 'out/original_study_{loss}'
dataset = 'tinystories/gpt2'

n_layer = 16
n_head = 12
n_embd = 768
block_size = 1024
dropout = 0.1

batch_size = 4
gradient_accumulation_steps = 10
max_iters = 20_000
optimizer = 'adamw'
learning_rate = 6e-5
min_lr = 6e-6
beta2 = 0.95
warmup_iters = 2000
eval_interval = 1000
eval_iters = 10
