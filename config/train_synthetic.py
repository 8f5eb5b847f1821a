# The first run: squentropy on synthetic stories from data/synthetic, which need no download. They are not TinyStories.
from train_tinystories_squentropy import *
out_dir = 'out/synthetic'
dataset = 'synthetic/bpe'
max_iters = 1200  # enough for the grammar
muon_beta2 = context_warmup = 0.0  # off: the example in README.md was trained without them
