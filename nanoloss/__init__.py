"""The library behind the scripts: they import it, and it never imports a script."""
import os

# before numpy is imported: with threads, the small products of numpy_decoder.py wait for each other on a busy machine
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
