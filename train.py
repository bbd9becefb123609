"""Trains a GPT on what prepare.py made, and draws its loss and perplexity while it learns.

Writes into CKPT_PATH:

  best.pt, last.pt      the model with the lowest validation loss, and the state to --resume from
  log.csv               a line an evaluation: loss, perplexity, learning rate, gradient norm, speed
  loss&perplexity.jpg   the same as curves, redrawn at every evaluation
  config.json           the settings of the run
  result.json           the losses over the whole validation split, and the cost of the run

Perplexity is e^loss: among how many equally likely characters the model is, on average, undecided.
"""

import csv
import json
import math
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cli import ArgumentParser, UserError, atomic_write, number, run
from model import GPT, PRESETS, GPTConfig, choose_device, load_checkpoint, save_checkpoint
from prepare import DEFAULT_DATA_ROOT, load_dataset
from windows import Windows, loss_function, perplexity, validation_loss

LOG_FIELDS = [
    "iter",
    "lr",
    "train_loss",
    "train_perplexity",
    "val_loss",
    "val_perplexity",
    "grad_norm",
    "tokens_per_second",
]
RUN_FILES = ["config.json", "log.csv", "loss&perplexity.jpg", "best.pt", "last.pt", "result.json"]


def make_optimizer(model: GPT, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); only matrices decay, not biases and norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=model.device.type in ("cpu", "cuda"))


def learning_rate(iteration: int, args) -> float:
    """Linear warm-up to args.lr, then a cosine down to a tenth of it at the last iteration."""
    if iteration < args.warmup_iters:
        return args.lr * (iteration + 1) / args.warmup_iters
    progress = (iteration - args.warmup_iters) / max(1, args.iters - args.warmup_iters)
    return args.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Trainer:
    """One run: the model and all that changes while it trains. Its state goes into last.pt and comes from there."""

    def __init__(self, args):
        self.args = args
        self.folder = Path(args.ckpt_path)
        self.device = choose_device(args.device)
        self.vocabulary, train_tokens, self.val_tokens = load_dataset(args.data_root)
        self.windows = Windows(train_tokens, args.max_seq_len, args.seed)
        torch.manual_seed(args.seed)
        self.model = GPT(model_config(args, len(self.vocabulary))).to(self.device)
        self.optimizer = make_optimizer(self.model, args.lr, args.weight_decay)
        self.iteration = 0
        self.best_loss = math.inf
        self.seconds = 0.0  # of training alone, without evaluation
        self.rows: list[dict] = []  # log.csv
        self.recent: list[float] = []  # training losses since the last evaluation

    def resume(self) -> None:
        """Takes up the state in last.pt. Raises UserError if it is not of the same settings or the same corpus."""
        path = self.folder / "last.pt"
        model, vocabulary, checkpoint = load_checkpoint(path, self.device)
        if vocabulary.chars != self.vocabulary.chars:
            raise UserError(f"{path} was trained on another vocabulary than that of {self.args.data_root}")
        for name, value in checkpoint["args"].items():
            if name in SAME_ON_RESUME and value != getattr(self.args, name):
                raise UserError(f"--{name} {getattr(self.args, name)} contradicts {path}, which has {value}")
        self.model.load_state_dict(model.state_dict())
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        torch.set_rng_state(checkpoint["rng"].cpu())
        for name in ("iteration", "best_loss", "seconds", "rows", "recent"):
            setattr(self, name, checkpoint[name])

    def save(self, name: str, **extra) -> None:
        save_checkpoint(self.folder / name, self.model, self.vocabulary, iteration=self.iteration, **extra)

    def save_last(self) -> None:
        self.save(
            "last.pt",
            optimizer=self.optimizer.state_dict(),
            rng=torch.get_rng_state(),
            args=vars(self.args),
            best_loss=self.best_loss,
            seconds=self.seconds,
            rows=self.rows,
            recent=self.recent,
        )

    def step(self) -> tuple[float, float]:
        """One iteration; returns its loss and the norm of its gradient. Raises UserError if the loss is not finite."""
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.iteration, self.args)
        inputs, targets = (x.to(self.device) for x in self.windows.batch(self.iteration, self.args.batchsize))
        loss = loss_function(self.model(inputs)[0], targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.grad_clip).item()
        value = loss.item()
        if not math.isfinite(value) or not math.isfinite(norm):
            raise UserError(
                f"the loss is {value}, its gradient's norm {norm} at iteration {self.iteration}: lower --lr; "
                f"the last good checkpoint is in {self.folder}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.iteration += 1
        self.seconds += time.perf_counter() - start
        self.recent.append(value)
        return value, norm

    def evaluate(self, norm: float) -> dict:
        """Measures, logs, draws and saves; returns the new row of the log."""
        val_loss = validation_loss(
            self.model, self.val_tokens, self.args.batchsize, self.args.eval_iters * self.args.batchsize
        )
        train_loss = sum(self.recent) / len(self.recent)
        tokens = self.args.batchsize * self.args.max_seq_len
        row = {
            "iter": self.iteration,
            "lr": learning_rate(self.iteration - 1, self.args),
            "train_loss": train_loss,
            "train_perplexity": perplexity(train_loss),
            "val_loss": val_loss,
            "val_perplexity": perplexity(val_loss),
            "grad_norm": norm,
            "tokens_per_second": tokens * self.iteration / self.seconds,
        }
        self.rows.append(row)
        self.recent = []
        if val_loss < self.best_loss:
            self.best_loss = val_loss
            self.save("best.pt", val_loss=val_loss)
        self.save_last()
        write_log(self.folder / "log.csv", self.rows)
        plot_curves({"": self.rows}, self.folder / "loss&perplexity.jpg")
        return row

    def result(self) -> dict:
        """The losses over the whole validation split, and the cost of the run."""
        final = validation_loss(self.model, self.val_tokens, self.args.batchsize)
        best_model, _, checkpoint = load_checkpoint(self.folder / "best.pt", self.device)
        best = final
        if checkpoint["iteration"] != self.iteration:
            best = validation_loss(best_model, self.val_tokens, self.args.batchsize)
        tokens = self.iteration * self.args.batchsize * self.args.max_seq_len
        return {
            "best_val_loss": best,
            "best_perplexity": perplexity(best),
            "final_val_loss": final,
            "final_perplexity": perplexity(final),
            "iters": self.iteration,
            "tokens": tokens,
            "seconds": self.seconds,
            "tokens_per_second": tokens / self.seconds,
            "parameters": self.model.num_parameters(),
        }

    def train(self) -> None:
        """Runs from the present iteration to args.iters; Ctrl-C ends it after an iteration, with its state saved."""
        args = self.args
        bar = tqdm(total=args.iters, initial=self.iteration, desc="training", unit="it", disable=None)
        norm = 0.0
        with bar, deferred_interrupt() as interrupted:
            while self.iteration < args.iters:
                loss, norm = self.step()
                bar.update()
                if self.iteration % 10 == 0:
                    speed = args.batchsize * args.max_seq_len * self.iteration / self.seconds
                    bar.set_postfix_str(f"loss {loss:.3f}, perplexity {perplexity(loss):.0f}, {speed:,.0f} tokens/s")
                if self.iteration % args.eval_interval == 0 or self.iteration == args.iters:
                    bar.write(log_line(self.evaluate(norm)))
                if interrupted:
                    self.save_last()
                    bar.write(f"stopped at iteration {self.iteration}; go on with --resume", file=sys.stderr)
                    raise KeyboardInterrupt


SAME_ON_RESUME = [
    "model",
    "n_layer",
    "n_head",
    "n_embd",
    "dropout",
    "no_pos",
    "no_res",
    "max_seq_len",
    "batchsize",
    "seed",
]


@contextmanager
def deferred_interrupt() -> Iterator[list]:
    """Ctrl-C fills the list that this yields, so that the iteration under way can end; a second one ends it all."""
    signals = []

    def note(number, frame):
        signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, previous)


def log_line(row: dict) -> str:
    return (
        f"iter {row['iter']:6d} | loss {row['train_loss']:.4f} | val loss {row['val_loss']:.4f} | "
        f"perplexity {row['train_perplexity']:7.1f} | val perplexity {row['val_perplexity']:7.1f} | "
        f"norm {row['grad_norm']:.2f} | lr {row['lr']:.2e} | {row['tokens_per_second']:,.0f} tok/s"
    )


def write_log(path: Path, rows: list[dict]) -> None:
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, LOG_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def plot_curves(runs: dict[str, list[dict]], path: Path) -> None:
    """Draws loss and perplexity, training dashed and validation solid, of {name of a run: rows of its log}."""
    from matplotlib.figure import Figure  # not pyplot: no window system is touched; and here, for it takes a while

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "perplexity"), strict=True):
        for color, (name, rows) in enumerate(runs.items()):
            iters = [float(row["iter"]) for row in rows]
            for split, style in (("train", "--"), ("val", "-")):
                values = [float(row[f"{split}_{measure}"]) for row in rows]
                label = f"{name} {split}" if name else {"train": "train", "val": "validation"}[split]
                one_run = "C0" if split == "train" else "C1"
                axes.plot(iters, values, style, color=f"C{color}" if name else one_run, label=label, marker=".")
        axes.set(xlabel="iteration", ylabel={"loss": "cross entropy (nats a character)"}.get(measure, measure))
        axes.set_title(measure)
        if measure == "perplexity":
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.lstrip("."), dpi=120)


def model_config(args, vocab_size: int) -> GPTConfig:
    """The preset that --model names, with what the other flags override."""
    sizes = {**PRESETS[args.model]}
    sizes.update({name: getattr(args, name) for name in sizes if getattr(args, name) is not None})
    return GPTConfig(vocab_size, args.max_seq_len, **sizes, no_pos=args.no_pos, no_res=args.no_res)


def prepare_folder(args) -> None:
    """Makes the run's folder, or makes sure that the run in it may go on or may go."""
    folder = Path(args.ckpt_path)
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if args.resume and "last.pt" not in found:
        raise UserError(f"nothing to resume: no last.pt in {folder}")
    if found and not (args.resume or args.overwrite):
        raise UserError(f"{folder} holds a run already: go on with --resume, or start again with --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "config.json", "w") as file:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        json.dump({**vars(args), "versions": versions}, file, indent=2, ensure_ascii=False)
    if not args.resume:
        for name in found:
            if name != "config.json":
                (folder / name).unlink()


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    positive = number(int, 1)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the folder for this run's files")
    parser.add_argument("--resume", action="store_true", help="go on with the run in CKPT_PATH")
    parser.add_argument("--overwrite", action="store_true", help="start anew in CKPT_PATH, the run in it is lost")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to compute")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=1, help="of weights, windows and dropout")

    group = parser.add_argument_group("model")
    group.add_argument("--model", default="mini", choices=PRESETS, help="sizes by name, the next four override them")
    group.add_argument("--n_layer", type=positive, help="number of transformer layers")
    group.add_argument("--n_head", type=positive, help="number of attention heads h in a layer")
    group.add_argument("--n_embd", type=positive, help="feature channels C, a multiple of the heads")
    group.add_argument("--dropout", type=number(float, 0, below=1), help="share of activations dropped in training")
    group.add_argument("--max_seq_len", type=positive, default=64, help="length L of the sequences")
    group.add_argument("--no_pos", action="store_true", help="leave out the position embedding")
    group.add_argument("--no_res", action="store_true", help="leave out the residual connections")

    group = parser.add_argument_group("training")
    group.add_argument("--iters", type=positive, default=2000, help="number of iterations")
    group.add_argument("--batchsize", type=positive, default=16, help="sequences B in an iteration")
    group.add_argument("--lr", type=number(float, 0), default=1e-3, help="learning rate at its highest")
    group.add_argument("--warmup_iters", type=number(int, 0), default=100, help="iterations of linear warm-up")
    group.add_argument("--weight_decay", type=number(float, 0), default=0.1, help="of the weight matrices")
    group.add_argument("--grad_clip", type=number(float, 0), default=1.0, help="largest norm of the gradient")
    group.add_argument("--eval_interval", type=positive, default=100, help="iterations between evaluations")
    group.add_argument("--eval_iters", type=positive, default=20, help="batches of validation text in an evaluation")
    args = parser.parse_args(args)
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    return args


def main() -> None:
    args = parse_args()
    trainer = Trainer(args)
    prepare_folder(args)
    if args.resume:
        trainer.resume()
    print(" ".join(f"--{name} {value}" for name, value in vars(args).items() if value not in (None, False)))
    sizes = ", ".join(f"{name} {value}" for name, value in asdict(trainer.model.config).items())
    print(f"{trainer.model.num_parameters():,} parameters on {trainer.device}: {sizes}")
    trainer.train()
    result = trainer.result()
    with atomic_write(trainer.folder / "result.json", "w") as file:
        json.dump(result, file, indent=2)
    print(f"whole validation split: loss {result['final_val_loss']:.4f}, perplexity {result['final_perplexity']:.2f}")
    print(f"{result['seconds']:.0f} s of training, {result['tokens_per_second']:,.0f} tokens/s; see {trainer.folder}")


if __name__ == "__main__":
    run(main)
