"""A small project with trained models, and what they read in it: for the tests of attention and notebook."""

from pathlib import Path

from conftest import ROOT, train_tiny

import prepare
from songci.attention.stats import Reading, read
from songci.runs import as_gpt, load_trained

POEM = (ROOT / "data/attnvis/rumengling.txt").read_text(encoding="utf-8")
DATA, RUN = "data/quansongci", "workdirs/quansongci"


def make_project(folder: Path, *flags: str) -> Path:
    """A small data set and tiny runs in `folder`: the default one, and one for each flag, such as no_pos."""
    (folder / DATA).mkdir(parents=True)
    (folder / DATA / "input.txt").write_text(POEM * 20, encoding="utf-8")
    prepare.prepare(folder / DATA)
    for run, *given in ((RUN,), *((f"{RUN}_{flag}", f"--{flag}") for flag in flags)):
        train_tiny(folder / DATA, folder / run, "--max_seq_len", 64, "--n_layer", 3, *given)
    return folder


def read_corpus(data_root: Path, ckpt_path: Path) -> Reading:
    """The first 14 characters of the corpus, with a title and a line end, as the model of conftest reads them."""
    text = (data_root / "input.txt").read_text(encoding="utf-8")
    trained = load_trained(ckpt_path)
    return read(as_gpt(trained), trained.vocabulary, text[:14], "small", trained.title)
