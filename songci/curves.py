"""The log of a training run, log.csv, and the curves of its losses as a picture."""

import csv
from pathlib import Path

from songci.cli import UserError, atomic_write
from songci.fonts import find


def read_log(path: Path) -> list[dict]:
    """The rows of a log.csv, as numbers; empty cells are left out. Raises UserError if it is damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def plot_curves(runs: dict[str, list[dict]], path: Path) -> None:
    """Draws loss and perplexity, training dashed and validation solid, of {name of a run: rows of its log}.

    The two are no quantity of one kind: training counts every target of its batches, also those of the next poem that a
    window runs on into, in the type of the products; validation counts each character of the poems once, in float32.
    """
    from matplotlib import rc_context  # here, for the import takes a while

    if all(map(str.isascii, runs)):
        _draw_curves(runs, path)
    else:
        fonts = find("".join(runs))
        with rc_context({"font.family": list(fonts.families)}):
            _draw_curves({fonts.shown(name): rows for name, rows in runs.items()}, path)


LABELS = {"train": "train (all targets of the batches)", "val": "validation (each character once)"}


def _draw_curves(runs: dict[str, list[dict]], path: Path) -> None:
    from matplotlib.figure import Figure  # not pyplot: no window system is touched

    # A fixed layout takes half the time of a constrained one, and training draws this at every evaluation
    figure = Figure(figsize=(11, 4.2), layout="constrained" if len(runs) > 1 else None)
    if len(runs) == 1:
        figure.subplots_adjust(left=0.06, right=0.99, bottom=0.12, top=0.92, wspace=0.2)
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "perplexity"), strict=True):
        for color, (name, rows) in enumerate(runs.items()):
            iters = [float(row["iter"]) for row in rows]
            for split, style in (("train", "--"), ("val", "-")):
                values = [float(row[f"{split}_{measure}"]) for row in rows]
                label = f"{name} {split}" if name else LABELS[split]
                one_run = "C0" if split == "train" else "C1"
                axes.plot(iters, values, style, color=f"C{color}" if name else one_run, label=label, marker=".")
        axes.set(xlabel="iteration", ylabel={"loss": "cross entropy (nats a character)"}.get(measure, measure))
        axes.set_title(measure)
        if measure == "perplexity":
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        if len(runs) == 1:
            axes.legend()
    if len(runs) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.lstrip("."), dpi=120)
