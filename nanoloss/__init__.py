"""The library behind the scripts: they import it, and it never imports a script."""
import os

# GNU OpenMP threads (PyTorch on Linux) spin for milliseconds before they sleep, which slows everything down when other
# programs share the cores: see docs/performance.md. The variable is read when torch is imported.
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '10000')
