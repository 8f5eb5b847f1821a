# The original study's grid: 27 points, of which three layer numbers compare sizes more than losses.
#   python tune.py --space=config/space_original_study.py --sampler=grid --iters=50 --batch_size=4 --loss=...
# with config/original_study*.py also --min_lr=0: theirs is above the smallest rate here.
learning_rate = [6e-6, 6e-4, 6e-2]
dropout = [0.0, 0.1, 0.2]
n_layer = [8, 12, 16]
