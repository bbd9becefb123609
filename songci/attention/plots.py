"""Still pictures of what stats.py computes: they can be seen where no JavaScript runs, as on a code host.

Each function returns a Picture, which a notebook shows and whose png() is a file. Those that take *readings draw
several runs in one picture.
"""

import io
import math
import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure  # not pyplot, which would look for a display
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from songci import fonts
from songci.attention import stats
from songci.attention.stats import STATISTICS, Reading
from songci.forms.check import check
from songci.forms.poems import read_poems
from songci.forms.templates import Forms
from songci.forms.tones import EITHER, LEVEL, OBLIQUE, tone_of

DPI = 80
ROW = 24  # characters of the text in a row


class Picture(Figure):
    """Panels in rows and columns, in fonts that have their characters; a notebook displays it as it is.

    width, height: of a panel, in inches; bar: the width of a colour bar beside them all; more: characters that will be
    drawn beside those of the readings.
    """

    def __init__(self, readings: Sequence[Reading], rows: int, columns: int, width, height, bar=0.0, more: str = ""):
        super().__init__(figsize=(columns * width + bar, rows * height), layout="constrained")
        self.readings, self.panels = readings, list(self.subplots(rows, columns, squeeze=False).flat)
        chars = "".join(reading.text + reading.name for reading in readings) + more
        self.fonts = fonts.find("".join(map(fonts.label, chars)))

    def savefig(self, *args, **kwargs) -> None:
        """Figure's own, with these fonts."""
        for text in self.findobj(Text):
            text.set_family(self.fonts.families)
        super().savefig(*args, **kwargs)

    def label(self, char: str) -> str:
        return self.fonts.shown(fonts.label(char))

    def title(self, axes: Axes, reading: Reading, text: str, between: str = "\n", **style) -> None:
        """Writes the text above a panel, after the name of the run if there are several runs."""
        axes.set_title(f"{reading.name}{between}{text}".rstrip() if len(self.readings) > 1 else text, **style)

    def board(self, axes: Axes, left: float, right: float, bottom: float) -> None:
        """Makes a panel for unit squares, from `left` to `right` and from 0 down to `bottom`."""
        axes.set(xlim=(left, right), ylim=(bottom, 0), aspect="equal")
        axes.set_axis_off()

    def cell(self, axes: Axes, x: float, y: float, char: str, shade=0.0, note="", framed=False, colors="Blues") -> None:
        """A unit square with a character; shade: 0 to 1; note: in small type, below; framed: the character follows."""
        face, edge = matplotlib.colormaps[colors](0.85 * shade), "crimson" if framed else "none"
        axes.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, facecolor=face, edgecolor=edge, lw=1.5))
        label = self.label(char)
        style = {"ha": "center", "color": "white" if shade > 0.6 else "black"}
        size, middle = 11 if len(label) <= 2 else 5, y + (0.38 if note else 0.5)
        label = label.replace("U+", "U+\n")  # on two lines, or it would not fit
        axes.text(x + 0.5, middle, label, va="center_baseline", fontsize=size, **style)
        axes.text(x + 0.5, y + 0.79, note, va="center", fontsize=6, **style)

    def matrix(self, axes: Axes, values: np.ndarray, colors: str, low: float, high: float, form: str) -> None:
        """Draws values, (layers, heads), with the number in each cell."""
        axes.imshow(values, cmap=colors, vmin=low / 0.85, vmax=high / 0.85, aspect="auto")
        for (layer, head), value in np.ndenumerate(values):
            color = "white" if (abs(value) if low < 0 else value) > 0.6 * high else "black"
            axes.text(head, layer, form.format(value), ha="center", va="center", fontsize=8, color=color)
        axes.set(xticks=range(values.shape[1]), yticks=range(values.shape[0]))
        axes.set_xlabel("head", fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
        axes.tick_params(length=0, labelsize=8)

    def png(self, dpi: int = DPI) -> bytes:
        """The picture as a PNG file with 256 colours, a third of the size of one with all."""
        from PIL import Image

        buffer, small = io.BytesIO(), io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi)
        Image.open(buffer).convert("RGB").quantize(256).save(small, format="png", optimize=True)
        return small.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        return "<picture>"


def heatmaps(*readings: Reading, layer: int | None = 0, heads: list[int] | None = None, labels: bool = True) -> Picture:
    """A heatmap for each of the heads of a layer (None: of all): row i shows how character i divides its weight of 1.

    The upper triangle is empty: no character looks at a later one. labels: the characters beside rows and columns.
    Raises UserError for a layer or a head that a model lacks.
    """
    maps = []
    for reading in readings:
        layers = range(len(reading.weights)) if layer is None else [layer]
        reading.check(layers, heads)
        maps += [(reading, i, head) for i in layers for head in heads or range(reading.num_heads)]
    of_a_layer = len(heads or range(readings[0].num_heads))
    columns = of_a_layer if len(maps) > of_a_layer else math.ceil(math.sqrt(of_a_layer))
    side = max(2.2, 0.8 + 0.14 * max(len(reading.text) for reading in readings)) if labels else 2.2
    figure = Picture(readings, math.ceil(len(maps) / columns), columns, side, side + 0.2, bar=0.6)
    for axes in figure.panels[len(maps) :]:
        axes.set_axis_off()
    for axes, (reading, i, head) in zip(figure.panels, maps, strict=False):
        weights = reading.weights[i][0, head].numpy()
        later = np.triu(np.ones_like(weights), 1) > 0
        # The square root, on one scale for all heads: a weight that is shared among twenty can still be seen
        image = axes.imshow(np.ma.masked_where(later, weights), cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        figure.title(axes, reading, f"layer {i}, head {head}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        marks = [figure.label(char) for char in reading.text] if labels else []
        axes.set_xticks(range(len(marks)), marks, fontsize=8, rotation=90 * any(len(mark) > 1 for mark in marks))
        axes.set_yticks(range(len(marks)), marks, fontsize=8)
        axes.tick_params(length=0, pad=2)
    figure.colorbar(image, ax=figure.panels, label="attention weight", aspect=40, shrink=0.6)
    return figure


def predictions(reading: Reading, k: int = 5) -> Picture:
    """The k likeliest next characters at each position, darker for likelier; a frame marks the one that follows."""
    best, probs = stats.top_predictions(reading, k)
    length, k = probs.shape
    columns = min(4, math.ceil(length / 6))
    rows = math.ceil(length / columns)
    figure = Picture([reading], 1, columns, 0.42 * (k + 2.5), 0.2 + 0.42 * rows, more="".join(best))
    for axes in figure.panels:
        figure.board(axes, -2.2, k, rows)
    for i in range(length):
        axes, y = figure.panels[i // rows], i % rows
        figure.cell(axes, -1.9, y, reading.text[i])
        axes.text(-0.45, y + 0.5, "→", ha="center", va="center", color="gray")
        for rank, (char, p) in enumerate(zip(best[i], probs[i], strict=True)):
            figure.cell(axes, rank, y, char, p, f"{p:.0%}", framed=char == reading.text[i + 1 : i + 2])
    return figure


def losses(*readings: Reading) -> Picture:
    """The text with each character coloured by its loss: pale if it was expected, dark if it was a surprise."""
    values = [stats.character_losses(reading) for reading in readings]
    top = max(1.0, *(value[1:].max(initial=0) for value in values))
    height = max(len(lines(reading.text)) for reading in readings)
    figure = Picture(readings, len(readings), 1, 0.42 * ROW, 0.45 + 0.42 * height, bar=1.2)
    for axes, reading, value in zip(figure.panels, readings, values, strict=True):
        figure.board(axes, 0, ROW, height)
        mean = f"{value[1:].mean():.2f} nats a character" if len(value) > 1 else "nothing to predict"
        figure.title(axes, reading, mean, ": ", fontsize=10, loc="left")
        for y, row in enumerate(lines(reading.text)):
            for x, i in enumerate(row):
                shade, note = (value[i] / top, f"{value[i]:.1f}") if i > 0 else (0, "–")
                figure.cell(axes, x, y, reading.text[i], shade, note, colors="Reds")
    figure.colorbar(ScalarMappable(Normalize(0, top), "Reds"), ax=figure.panels, label="loss (nats)", aspect=12)
    return figure


SHADES = {LEVEL: 0.12, OBLIQUE: 0.45, EITHER: 0.0}  # of the characters' tones
SIGNS = {LEVEL: "○", OBLIQUE: "●", EITHER: "◎"}  # of the places'
GAP = 0.6  # between stanzas, in the width of a character


def tones(reading: Reading, data_root: str | Path) -> Picture:
    """The text's poem, a sentence a row, coloured by its tones; above each character the tone that its place asks for.

    Pale is level, dark oblique, white neither for certain; a frame marks a character out of tone. Rhymes have the
    letter of their group, with a ✗ if they do not fit.
    """
    forms = Forms.load(data_root)
    tune, body = next(read_poems(reading.text), ("", reading.text))
    result = check(tune, body, forms)
    clauses = result.clauses
    title, breaks, due = "no form is known of this text's tune", frozenset(), iter("")
    if result.template is not None:
        title = f"{tune}: template {result.number} of {result.template.support} poems"
        title, due = (title, iter(result.template.tones)) if result.form else (f"{title}, out of form", due)
        breaks = result.template.breaks
    rhymes = {place: letter + "✗" * (not ok) for letter, group in result.rhymes.items() for place, _, ok in group}
    wrong = {(i, n) for i, n, _ in result.wrong}
    ends = [0, *(i for i, clause in enumerate(clauses, start=1) if clause.mark == "。"), len(clauses)]
    width = max([8, *(sum(len(clause.text) + 1 for clause in clauses[a:b]) for a, b in pairwise(ends))])
    height = 1.5 * max(1, sum(clause.mark == "。" for clause in clauses)) + GAP * len(breaks)
    figure = Picture([reading], 1, 1, 0.42 * width, 0.4 + 0.42 * height, more="✗".join(SIGNS.values()))
    [axes] = figure.panels
    figure.board(axes, 0, width, height)
    axes.set_title(title, fontsize=10)
    x, y = 0, 0.0
    for i, clause in enumerate(clauses):
        for n, char in enumerate(clause.text):
            axes.text(x + 0.5, y + 0.25, SIGNS.get(next(due, ""), ""), ha="center", va="center", fontsize=8)
            shade = SHADES[tone_of(char, forms.level)]
            figure.cell(axes, x, y + 0.45, char, shade, framed=(i, n) in wrong, colors="Oranges")
            x += 1
        figure.cell(axes, x, y + 0.45, clause.mark or " ", note=rhymes.get(i, ""), colors="Oranges")
        x, y = (0, y + 1.5 + GAP * (i in breaks)) if clause.mark == "。" else (x + 1, y)
    return figure


def lines(text: str) -> list[range]:
    """The positions of a text in rows of at most ROW; the end of a line ends its row."""
    return [range(*row.span()) for row in re.finditer(rf".{{0,{ROW - 1}}}\n|.{{1,{ROW}}}", text)]


def matrices(readings: Sequence[Reading], rows: int, columns: int) -> Picture:
    """A picture for matrices (layers, heads)."""
    layers = max(len(reading.weights) for reading in readings)
    heads = max(4, *(reading.num_heads for reading in readings))
    return Picture(readings, rows, columns, 0.6 + 0.6 * heads, 0.9 + 0.4 * layers)


def statistics(*readings: Reading) -> Picture:
    """Four matrices (layers, heads) for each run: what stats.head_statistics() says of each head."""
    values = [stats.head_statistics(reading.weights, reading.text) for reading in readings]
    uniform = stats.uniform_statistics(readings[0].text)
    figure = matrices(readings, len(readings), len(STATISTICS))
    for column, (name, mean) in enumerate(zip(STATISTICS, uniform, strict=True)):
        highest = np.nanmax([mean, *(value[column].max() for value in values), 1e-3])
        for axes, reading, value in zip(figure.panels[column :: len(STATISTICS)], readings, values, strict=True):
            figure.matrix(axes, value[column], "Blues", 0, highest, "{:.2f}")
            figure.title(axes, reading, f"{name}\n(uniform: {mean:.2f})", fontsize=9)
    return figure


def ablation(*readings: Reading, data_root: str | Path | None = None, num_windows: int = 32) -> Picture:
    """How much the loss rises when one head is switched off: a matrix (layers, heads), in nats a character.

    The loss is measured on `num_windows` windows of the validation text in data_root; without a data_root, on the text
    that was read. Raises UserError if data_root is not a prepared data set.
    """
    figure = matrices(readings, 1, len(readings))
    for axes, reading in zip(figure.panels, readings, strict=True):
        loss = partial(stats.text_loss, reading)
        if data_root is not None:
            loss = stats.validation_loss(data_root, reading.model, reading.title, num_windows)
        whole, rises = stats.head_ablation(reading.model, loss)
        highest = max(1e-3, np.nanmax(np.abs(rises)))  # a scale for each run: their magnitudes differ widely
        figure.matrix(axes, rises, "RdBu_r", -highest, highest, "{:+.3f}")
        figure.title(axes, reading, f"rise of the loss\nfrom {whole:.3f}", fontsize=9)
    return figure


def lens(*readings: Reading) -> Picture:
    """The logit lens: the likeliest next character after the embeddings and after each layer, darker for likelier.

    A frame marks the one that follows; beside each row stands the loss of a model that ended there.
    """
    results = [stats.logit_lens(reading) for reading in readings]
    depth = max(len(best) for best, _, _ in results)
    parts = [  # of a text in one line, ROW characters at a time
        (reading, row, result)
        for reading, result in zip(readings, results, strict=True)
        for row in lines(reading.text.replace("\n", " "))
    ]
    predicted = "".join("".join(best) for best, _, _ in results)
    figure = Picture(readings, len(parts), 1, 0.36 * (ROW + 6), 0.36 * (depth + 1) + 0.4, more=predicted)
    for axes, (reading, row, (best, probs, losses)) in zip(figure.panels, parts, strict=True):
        figure.board(axes, -6, ROW, depth + 1)
        if row.start == 0:
            figure.title(axes, reading, "", fontsize=10, loc="left")
        names = ["embeddings", *(f"layer {i}" for i in range(len(best) - 1))]
        names = ["text", *(f"{name}, loss {loss:.2f}" for name, loss in zip(names, losses, strict=True))]
        for up, name in enumerate(names):  # from the bottom: the text, and what each depth predicts to follow
            y = len(best) - up
            axes.text(-0.3, y + 0.5, name, ha="right", va="center", fontsize=8)
            for x, i in enumerate(row):
                char, p = (best[up - 1][i], probs[up - 1, i]) if up else (reading.text[i], 0)
                figure.cell(axes, x, y, char, p, framed=up > 0 and char == reading.text[i + 1 : i + 2])
    return figure
