# The grid of the original study: 27 points. Three numbers of layers compare model sizes more than losses.
#   python tune.py --space=config/space_original_study.py --sampler=grid --iters=50 --batch_size=4 --loss=...
# With config/original_study_small.py add --min_lr=0: its min_lr exceeds the lowest learning rate here.
learning_rate = [6e-6, 6e-4, 6e-2]
dropout = [0.0, 0.1, 0.2]
n_layer = [8, 12, 16]
