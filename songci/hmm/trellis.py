"""The trellis of a hidden Markov model: one row per state, one column per time, and the best path in bold."""

import io
import math
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np

from songci import fonts
from songci.cli import UserError, atomic_write
from songci.hmm.walkthrough import low, width

LARGEST = 24, 10  # times and states: more are not legible
LABEL_AT = 0.4, 0.3, 0.72, 0.62  # along an edge that crosses 0, 1, 2, 3 rows: there labels do not overlap
SCALE = 2.6, 1.9  # inches between times and between states
ENTRY = 0.75  # length of the edges that enter the first time, between times
ALL_LABELS_UP_TO = 4  # states: with more, only the edges of the best path have labels
EDGE, BEST_EDGE = {"color": "#888888", "lw": 1, "zorder": 1}, {"color": "#c00000", "lw": 3.5, "zorder": 1.5}


def plot(model, obs: Sequence[int], path: Path, show: str = "delta") -> None:
    """Draws the trellis of `obs` (T,) into `path`, a PNG, PDF or SVG by its suffix.

    The nodes show delta (with ψ), alpha, beta or gamma. The labels of the edges are a_ij·b_j(o), those of the first
    π_i·b_i(o_1). If no font has the characters of a name, numbers stand for the names (S1, v1). Raises UserError if
    there is too much to draw or the suffix is unknown, and if P(O|λ) = 0.
    """
    obs, (times, states) = model.check(obs), LARGEST
    if len(obs) > times or len(model.states) > states:
        size = f"{len(obs)} observations and {len(model.states)} states"
        raise UserError(f"--plot draws up to {times} observations and {states} states, not {size}: shorten --obs")
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise UserError(f"--plot {path}: the name must end in .png, .pdf or .svg")
    from matplotlib import rc_context  # only now: it takes half a second

    found = fonts.find("".join((*model.states, *model.symbols)))
    families = [fonts.BUNDLED, *(family for family in found.families if family != fonts.BUNDLED)]  # it has Greek
    with rc_context({"font.family": families, "svg.fonttype": "path", "text.parse_math": False}):
        figure, picture = draw(model, obs, show, found.missing), io.BytesIO()
        figure.savefig(picture, format=kind, dpi=150)
    with atomic_write(path) as file:
        file.write(picture.getvalue())


def _legible(names: Sequence[str], letter: str, missing: Set[str]) -> list[str]:
    """The names, or S1 S2 … if one of their characters is missing from all fonts."""
    if missing.isdisjoint("".join(names)):
        return list(names)
    return [f"{letter}{i}" for i in range(1, len(names) + 1)]


def draw(model, obs: np.ndarray, show: str = "delta", missing: Set[str] = frozenset()):
    """The figure; `missing` holds the characters that no font has."""
    from matplotlib.figure import Figure

    best, nodes = model.viterbi(obs)[0], _node_texts(model, obs, show)
    states, symbols = _legible(model.states, "S", missing), _legible(model.symbols, "v", missing)
    labels = [state if state == f"S{i}" else f"S{i} {state}" for i, state in enumerate(states, start=1)]
    left = ENTRY + 0.15 + max(map(width, labels)) * 0.12 / SCALE[0]
    x, y = (-left, len(obs) - 0.6), (len(model.states) - 0.55, -0.8)
    figure = Figure(figsize=(SCALE[0] * (x[1] - x[0]), SCALE[1] * (y[0] - y[1])))
    axes = figure.add_axes((0, 0, 1, 1), xlim=x, ylim=y)
    axes.axis("off")
    for i, label in enumerate(labels):
        axes.text(-ENTRY - 0.05, i, label, ha="right", va="center", fontsize=13)
    for t, o in enumerate(obs):
        axes.text(t, -0.6, f"o{low(t + 1)} = {symbols[o]}", ha="center", va="center", fontsize=13)
    _edges(axes, model, obs, best)
    for t, row in enumerate(nodes):
        for i, text in enumerate(row):
            bold = best[t] == i
            box = {"boxstyle": "round,pad=0.45", "ec": "black"}
            box |= {"fc": "#fff2cc", "lw": 2.5} if bold else {"fc": "white", "lw": 1}
            weight = "bold" if bold else "normal"
            axes.text(t, i, text, ha="center", va="center", fontsize=11, weight=weight, bbox=box, zorder=3)
    return figure


def _node_texts(model, obs: np.ndarray, show: str) -> list[list[str]]:
    """What the nodes show: a row for each time, with a text for each state."""
    if show == "delta":
        _, log_delta, psi = model.viterbi(obs)
        backs = [[f"\nψ = S{j + 1}" if t else "" for j in row] for t, row in enumerate(psi)]
        rows = zip(np.exp(log_delta), backs, strict=True)
        return [[f"δ = {x:.4g}{back}" for x, back in zip(*row, strict=True)] for row in rows]
    letter, table = {
        "alpha": ("α", lambda: np.exp(model.forward(obs))),
        "beta": ("β", lambda: np.exp(model.backward(obs))),
        "gamma": ("γ", lambda: model.posterior(obs)),
    }[show]
    return [[f"{letter} = {x:.4g}" for x in row] for row in table()]


def _edges(axes, model, obs: np.ndarray, path: np.ndarray) -> None:
    """Draws the possible edges into the nodes, labelled π·b or a·b."""
    n = len(model.states)
    for t, o in enumerate(obs):
        for i in range(n if t else 1):
            for j in range(n):
                p, b = model.transmat[i, j] if t else model.startprob[j], model.emissionprob[j, o]
                best = path[t] == j and (t == 0 or path[t - 1] == i)
                if p * b == 0:
                    continue
                start = (t - 1, i) if t else (-ENTRY, j)
                axes.plot([start[0], t], [start[1], j], **(BEST_EDGE if best else EDGE))
                if best or n <= ALL_LABELS_UP_TO:
                    _edge_label(axes, start, (t, j), f"{p:.4g}·{b:.4g}", best)


def _edge_label(axes, start: tuple, end: tuple, text: str, best: bool) -> None:
    share = LABEL_AT[abs(start[1] - end[1])] if abs(start[1] - end[1]) < len(LABEL_AT) else 0.5
    x, y = (start[k] + share * (end[k] - start[k]) for k in (0, 1))
    rise, run = SCALE[1] * (start[1] - end[1]), SCALE[0] * (end[0] - start[0])  # the y axis points down
    weight, color = ("bold", "#c00000") if best else ("normal", "#444444")
    box = {"boxstyle": "square,pad=0.12", "fc": "white", "ec": "none"}
    style = {"ha": "center", "va": "center", "fontsize": 9, "weight": weight, "color": color, "bbox": box}
    axes.text(x, y, text, rotation=math.degrees(math.atan2(rise, run)), zorder=2.5, **style)
