# The original study at a scale that a CPU runs in minutes: its losses, optimizer and dropout, BPE tokens and a model of
# 0.7 M parameters. The learning rate of the study would leave this model untrained; 4e-3 is AdamW's best at this size.
from original_study import *
out_dir = 'out/original_study_small_{loss}'
dataset = 'tinystories/bpe'

n_layer = 3
n_head = 4
n_embd = 96
block_size = 256

batch_size = 8
gradient_accumulation_steps = 1
max_iters = 600
learning_rate = 4e-3
min_lr = 4e-4
warmup_iters = 60
