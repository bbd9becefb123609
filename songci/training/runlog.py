"""The folder of a training run: config.json, log.csv, and its curves, as a picture and for TensorBoard."""

import csv
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from songci.cli import UserError, atomic_write, only_process, remove_leftovers
from songci.corpus.vocabulary import read_sha256
from songci.runs import BEST, as_gpt, load_trained, perplexity

RUN_FILES = ["log.csv", "loss&perplexity.jpg", BEST, "last.pt", "result.json"]  # and config.json, forms.json
EVENTS = "events.out.tfevents.*"  # the names of TensorBoard's files

EVALUATION_FIELDS = [
    "iter",
    "lr",
    "train_loss",
    "train_perplexity",
    "val_loss",
    "val_perplexity",
    "grad_norm",
    "tokens_per_second",
]
WHOLE_FIELDS = ["poem_val_loss", "poem_perplexity", "stream_val_loss", "stream_perplexity"]  # at the end of a run
LOG_FIELDS = [*EVALUATION_FIELDS, *WHOLE_FIELDS]


@contextmanager
def own_folder(folder: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """Makes the run's folder, where no other can write in the meantime: by a lock, which ends with the process.

    Raises UserError if another run is at work there, or if one would be lost unasked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder, f"another training is at work in {folder}: give another --ckpt_path"):
        if any((folder / name).exists() for name in RUN_FILES) and not (resume or overwrite):
            raise UserError(f"{folder} holds a run already: go on with --resume, or start again with --overwrite")
        yield


def begin_folder(folder: Path, resume: bool, settings: dict, data_root: Path) -> None:
    """Writes config.json and, unless the run goes on, removes what an earlier one left.

    The half-written files of a run that was killed are removed in any case.
    """
    remove_leftovers(folder, [*RUN_FILES, "config.json", "forms.json"])
    with atomic_write(folder / "config.json", "w") as file:
        json.dump(settings | provenance(data_root), file, indent=2, ensure_ascii=False)
    if not resume:
        for name in [*RUN_FILES, "forms.json", "best.pt"]:  # and that of an earlier version
            (folder / name).unlink(missing_ok=True)
        for path in folder.glob(EVENTS):
            path.unlink()
    if (data_root / "forms.json").is_file():  # so that the run writes poems in form without its data
        with atomic_write(folder / "forms.json") as file:
            file.write((data_root / "forms.json").read_bytes())


def provenance(data_root: Path) -> dict:
    """What a result depends on besides the settings: the corpus, the code, and the versions of what it runs on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    found = {"versions": versions, "machine": platform.machine(), "threads": torch.get_num_threads()}
    if (data_root / "input.txt").is_file():
        found["corpus_sha256"] = read_sha256(data_root / "input.txt")
    here = ["git", "-C", str(Path(__file__).resolve().parent.parent.parent)]
    try:
        for key, command in (("git_commit", ["rev-parse", "HEAD"]), ("git_changes", ["status", "--porcelain", "-uno"])):
            done = subprocess.run([*here, *command], capture_output=True, timeout=10, check=True)
            found[key] = done.stdout.strip().decode() if key == "git_commit" else bool(done.stdout.strip())
    except (OSError, subprocess.SubprocessError):
        pass  # no git, or no repository
    return found


def log_line(row: dict) -> str:
    """A row of the log as a line for the terminal."""
    return (
        f"iter {row['iter']:6d} | loss {row['train_loss']:.4f} | val loss {row['val_loss']:.4f} | "
        f"perplexity {row['train_perplexity']:7.1f} | val perplexity {row['val_perplexity']:7.1f} | "
        f"norm {row['grad_norm']:.2f} | lr {row['lr']:.2e} | {row['tokens_per_second']:,.0f} tok/s"
    )


def write_log(path: Path, rows: list[dict]) -> None:
    """Writes the rows as log.csv, numbers with six digits; a field that a row lacks is an empty cell."""
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, LOG_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


@contextmanager
def warn_if_in_use(path: Path) -> Iterator[Path]:
    """Gives the path to write to; on Windows, a program that has it open forbids that: then a line on stderr says so.

    The next evaluation writes it again, with all that was missed.
    """
    try:
        yield path
    except PermissionError as error:
        print(f"{path} is not brought up to date, probably open in another program: {error.strerror}", file=sys.stderr)


def write_result(trainer) -> None:
    """Writes result.json: the losses over the whole validation split, and the cost of the run; prints what it says.

    best_val_loss and final_val_loss, those of best.safetensors and of last.pt, are measured on windows as in training,
    of poems or of the stream; the other losses are those of best.safetensors. Raises UserError if that is of another
    run.
    """
    own, trained = trainer.args.windows, load_trained(trainer.folder)
    if trained.config != asdict(trainer.model.config) or trained.vocabulary.chars != trainer.vocabulary.chars:
        raise UserError(f"{trainer.folder / BEST} is of another run than last.pt: start again with --overwrite")
    final = {name: value for name, value in trainer.rows[-1].items() if name in WHOLE_FIELDS}
    last_is_best = trained.measured["iteration"] == trainer.iteration
    best = final if last_is_best else trainer.measures.whole(as_gpt(trained, trainer.device))
    result = {"windows": own}
    for name, losses in (("best", best), ("final", final)):
        result |= {f"{name}_val_loss": losses[f"{own}_val_loss"], f"{name}_perplexity": losses[f"{own}_perplexity"]}
    speed = trainer.tokens / trainer.seconds
    result |= best | {"iters": trainer.iteration, "tokens": trainer.tokens, "seconds": trainer.seconds}
    result |= {"tokens_per_second": speed, "parameters": trainer.model.num_parameters()}
    with atomic_write(trainer.folder / "result.json", "w") as file:
        json.dump(result, file, indent=2)
    for measure in trainer.measures.windows:
        loss = result[f"{measure}_val_loss"]
        print(f"whole validation split, by {measure}: loss {loss:.4f}, perplexity {perplexity(loss):.2f}")
    print(f"{trainer.seconds:.0f} s of training, {speed:,.0f} tokens/s; see {trainer.folder}")


class TensorBoard:
    """The rows of the log as curves, in the run's folder, for `tensorboard --logdir`.

    Raises UserError at once if the package is not installed; writes nothing before the first row.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter  # here: few want it, and the core works without
        except ImportError as error:
            raise UserError(f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard") from None
        self.folder, self.new_writer, self.writer = folder, SummaryWriter, None

    def log(self, rows: list[dict]) -> None:
        """Logs the last row; the first time all of them, in place of what other processes have logged of this run."""
        if self.writer is None:
            self.writer = self.new_writer(str(self.folder), purge_step=rows[0]["iter"])
        else:
            rows = rows[-1:]
        for row in rows:
            for name, value in row.items():
                if name != "iter":
                    split, _, measure = name.rpartition("_")
                    tag = f"{measure}/{split}" if measure in ("loss", "perplexity") else name  # one kind together
                    self.writer.add_scalar(tag, value, row["iter"])
        self.writer.flush()
