# The default model, 4 layers of width 128, with cross-entropy.
out_dir = 'out/tinystories_{loss}'
loss = 'cross_entropy'
optimizer = 'muon'  # Muon and this learning rate were the fastest of those tried (README, "Sooner to the same loss")
learning_rate = 8e-3
