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
BOLD = {"weight": "bold", "family": fonts.BUNDLED}  # a Chinese font may lack it, and matplotlib would say so
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


def draw(model, obs: np.ndarray, show: str = "delta", missing: Set[str] = frozenset()):
    """The figure; `missing` holds the characters that no font has."""
    from matplotlib.figure import Figure

    states, symbols = (
        list(names) if missing.isdisjoint("".join(names)) else [f"{letter}{i + 1}" for i in range(len(names))]
        for names, letter in ((model.states, "S"), (model.symbols, "v"))
    )
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
    best, log_delta, psi = model.viterbi(obs)
    _edges(axes, model, obs, best)
    letter, values = {
        "delta": ("δ", np.exp(log_delta)),
        "alpha": ("α", np.exp(model.forward(obs))),
        "beta": ("β", np.exp(model.backward(obs))),
        "gamma": ("γ", model.posterior(obs)),
    }[show]
    for (t, i), value in np.ndenumerate(values):
        bold, back = best[t] == i, f"\nψ = S{psi[t, i] + 1}" if show == "delta" and t else ""
        box = {"fc": "#fff2cc", "lw": 2.5} if bold else {"fc": "white", "lw": 1}
        style = {**BOLD} if bold else {}
        style["bbox"] = {"boxstyle": "round,pad=0.45", "ec": "black", **box}
        axes.text(t, i, f"{letter} = {value:.4g}{back}", ha="center", va="center", fontsize=11, zorder=3, **style)
    return figure


def _edges(axes, model, obs: np.ndarray, path: np.ndarray) -> None:
    """Draws the possible edges into the nodes, labelled π·b or a·b."""
    n = len(model.states)
    for t, i, j in np.ndindex(len(obs), n, n):
        p, b = model.transmat[i, j] if t else model.startprob[j], model.emissionprob[j, obs[t]]
        if p * b == 0 or (t == 0 and i != j):  # into the first node of a row leads one edge
            continue
        best = path[t] == j and (t == 0 or path[t - 1] == i)
        x, y, rows = (t - 1, i, abs(i - j)) if t else (-ENTRY, j, 0)
        axes.plot([x, t], [y, j], **(BEST_EDGE if best else EDGE))
        if best or n <= ALL_LABELS_UP_TO:
            share = LABEL_AT[rows] if rows < len(LABEL_AT) else 0.5
            slope = math.degrees(math.atan2(SCALE[1] * (y - j), SCALE[0] * (t - x)))  # the y axis points down
            style = {**BOLD, "color": "#c00000"} if best else {"color": "#444444"}
            style |= {"bbox": {"boxstyle": "square,pad=0.12", "fc": "white", "ec": "none"}, "rotation": slope}
            at = x + share * (t - x), y + share * (j - y)
            axes.text(*at, f"{p:.4g}·{b:.4g}", ha="center", va="center", fontsize=9, zorder=2.5, **style)
