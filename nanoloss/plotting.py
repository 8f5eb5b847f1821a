"""Common style of the figures: README width, colors that color-blind readers can tell apart, files instead of windows.

This module imports matplotlib, so functions that draw import it when they are called.
"""
import matplotlib

matplotlib.use('Agg')  # writes files, needs no display
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter

WIDTH = 7.3  # inches: 800 pixels, about the width of a README on screen
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', 'black')  # Okabe & Ito 2008, without yellow
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
LINE_STYLES = ('-', '--', '-.', ':')
GRAY = '0.5'  # of reference lines and of points that do not count

plt.rcParams.update({'font.size': 9, 'axes.titlesize': 9, 'figure.titlesize': 9, 'savefig.dpi': 110, 'axes.grid': True,
                     'grid.alpha': 0.3, 'axes.axisbelow': True, 'figure.constrained_layout.use': True,
                     'lines.linewidth': 1.4, 'lines.markersize': 4.5})


def style(i):
    """Color, marker and line style of the i-th curve, as arguments of Axes.plot."""
    return {'color': COLORS[i % len(COLORS)], 'marker': MARKERS[i % len(MARKERS)],
            'linestyle': LINE_STYLES[i % len(LINE_STYLES)]}


def readout_style(i):
    """Style of the curve of the i-th of three readouts. Earlier curves are thicker, so they can be seen below later
    ones: for cross-entropy, softmax and link coincide."""
    return {**style(i), 'linewidth': (2.4, 1.6, 1)[i], 'markersize': (6, 4.5, 3)[i]}


def legend_below(figure, axis, title=None, max_columns=10):
    """Put the legend of an axis below the figure, in as many columns as fit."""
    handles, labels = axis.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))  # each label once
    fitting = 105 // (max(map(len, entries)) + 8)  # a line has about 105 characters
    columns = max(1, min(len(entries), fitting, max_columns))
    figure.legend(entries.values(), entries.keys(), loc='outside lower center', ncols=columns, title=title)


def label_tokens(axis, label):
    """Label the x axis of an axis that counts tokens, with ticks such as 500k and 1M."""
    axis.set_xlabel(label)
    axis.xaxis.set_major_formatter(EngFormatter(sep=''))


def separate_rows(axis, rows):
    """Separate the rows y = 0, 1, ... of an axis by lines, the first row at the top."""
    axis.grid(axis='y', visible=False)
    for y in range(1, rows):
        axis.axhline(y - 0.5, color=GRAY, linewidth=0.5)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.locator_params(axis='x', nbins=5)


def save(figure, path):
    figure.savefig(path)
    plt.close(figure)
