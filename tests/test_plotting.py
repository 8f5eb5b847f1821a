"""The common style of the figures."""
import itertools
import math
import subprocess
import sys

from conftest import ROOT
from matplotlib.colors import to_rgb

from nanoloss import plotting

# rows of the matrices of Viénot, Brettel & Mollon (1999), for linear RGB
SIMULATIONS = {'protanopia': (0.11238, 0.88762, 0.00401), 'deuteranopia': (0.29275, 0.70725, -0.02234)}


def seen(color, simulation):
    """sRGB of a color for a dichromat."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(color)]
    red, green, blue = SIMULATIONS[simulation]
    yellow = red * linear[0] + green * linear[1]
    mixed = [yellow, yellow, blue * (linear[0] - linear[1]) + linear[2]]
    return [12.92 * x if x <= 0.0031308 else 1.055 * min(x, 1) ** (1 / 2.4) - 0.055 for x in mixed]


def test_colors_differ_for_color_blind_readers():
    """All colors differ in a simulation of red-green color blindness."""
    for simulation in SIMULATIONS:
        for a, b in itertools.combinations(plotting.COLORS, 2):
            assert math.dist(seen(a, simulation), seen(b, simulation)) > 0.1, (a, b, simulation)


def test_styles_differ():
    """The first 28 curves have different styles."""
    assert len({tuple(plotting.style(i).values()) for i in range(28)}) == 28


def test_matplotlib_is_imported_late():
    """Modules that draw import matplotlib only when they draw, and then without a display."""
    code = ('import sys; from nanoloss import evaluation_report, search_report, study_report; '
            'sys.exit("matplotlib" in sys.modules)')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
    assert plotting.matplotlib.get_backend().lower() == 'agg'
