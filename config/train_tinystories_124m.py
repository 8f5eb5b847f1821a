# GPT-2 small: 124 M parameters, 20,000 iterations. original_study.py has the 16 layers that the original study chose.
# --loss=... chooses the loss; cross_entropy_plus_mse is the one that the study called squentropy.
from train_tinystories_30m import *
out_dir = 'out/tinystories_124m_{loss}'

n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024

batch_size = 16
gradient_accumulation_steps = 2  # 32,768 tokens per iteration
learning_rate = 6e-4
min_lr = 6e-5
