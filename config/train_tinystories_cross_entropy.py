# The default model, 4 layers of width 128, with cross-entropy.
out_dir = 'out/tinystories_{loss}'
loss = 'cross_entropy'
optimizer = 'muon'  # Muon and this learning rate were the best of those tried (docs/performance.md)
learning_rate = 8e-3
lr_schedule = 'linear'  # 0.06 nats better than the cosine after 800 iterations at 16e-3
