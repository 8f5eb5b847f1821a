"""The library behind the scripts: they import it, and it never imports a script."""
import os

# PyTorch's threads on Linux (GNU OpenMP) wait for each other by spinning, by default for milliseconds. If other programs
# use the cores, too, that wastes time: training beside two busy programs took 1.6 times as long (docs/performance.md).
os.environ.setdefault('GOMP_SPINCOUNT', '10000')  # read when torch is imported
