"""Where does the model look? The attention weights on a text, as one HTML page that opens in any browser.

The page holds bertviz's interactive views, and still pictures of the weights, the predictions and what each head does.
It needs no network and no Jupyter. The heatmaps of all heads are also written beside it, as a PNG of the same name.

  python -m songci.attention --text data/attnvis/rumengling.txt --out workdirs/quansongci/attention.html

attnvis.ipynb shows the same in Jupyter, and compares several runs.
"""

from pathlib import Path

from songci.attention import plots
from songci.attention.page import EXPLAINED, offline_page
from songci.attention.stats import Reading, example, load
from songci.cli import ArgumentParser, UserError, atomic_write, check_writable, number, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT
from songci.text import read_text


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the folder of a run of train.py")
    parser.add_argument("--text", help=TEXT_HELP)
    parser.add_argument("--out", help="the page to write, .html (default: attention.html in CKPT_PATH)")
    windows = "windows of validation text to measure the loss on when a head is switched off"
    parser.add_argument("--num_windows", type=number(int, 1), default=32, help=windows)
    return parser.parse_args(args)


TEXT_HELP = (
    "the file with the text to look at, whose marks and traditional characters are read as sample.py reads --start; if "
    "left out, data/attnvis/rumengling.txt, or the beginning of the validation text of a corpus that lacks its "
    "characters"
)


def output_paths(args) -> tuple[Path, Path]:
    """Where the page and the picture beside it go. Raises UserError, before any work, if they cannot go there."""
    out = Path(args.ckpt_path) / "attention.html" if args.out is None else Path(args.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {args.out!r}: the output is a web page: give it a name that ends in .html")
    picture = out.with_suffix(".png")
    for path in (out, picture):
        if args.out is not None or path.is_dir():  # else load() tells of a run that is missing
            check_writable("--out", path)
    return out, picture


def draw(reading: Reading, data_root: str | Path, num_windows: int) -> dict[str, list[bytes]]:
    """The still pictures of the page, as PNGs, under their titles from EXPLAINED."""
    heatmaps = [plots.heatmaps(reading, layer=layer) for layer in range(len(reading.weights))]
    others = [draw(reading) for draw in (plots.predictions, plots.losses, plots.statistics)]
    others += [plots.ablation(reading, data_root=data_root, num_windows=num_windows), plots.lens(reading)]
    figures = [heatmaps, *([figure] for figure in others)]
    _head_view, _model_view, *titles = EXPLAINED
    return {title: [figure.png() for figure in row] for title, row in zip(titles, figures, strict=True)}


def main() -> None:
    args = parse_args()
    out, picture = output_paths(args)
    text = example(args.data_root) if args.text is None else read_text(args.text)
    reading = load(args.data_root, args.ckpt_path, text)
    if reading.note:
        print(reading.note)
    content = offline_page(reading, draw(reading, args.data_root, args.num_windows)).encode()
    all_heads = plots.heatmaps(reading, layer=None).png(dpi=110)
    for path, written in ((picture, all_heads), (out, content)):
        with atomic_write(path) as file:
            file.write(written)
    print(f"{out}: {reading}\n{picture}: the heatmaps of all heads")


if __name__ == "__main__":
    run(main)
