"""Trains a GPT on what prepare.py made, and draws its loss and perplexity while it learns.

Writes into CKPT_PATH:

  best.pt, last.pt      the model with the lowest validation loss, and the state to --resume from
  log.csv               a line an evaluation: loss, perplexity, learning rate, gradient norm, speed
  loss&perplexity.jpg   the same as curves, redrawn at every evaluation
  config.json           the settings of the run
  result.json           the losses over the whole validation split, and the cost of the run

Perplexity is e^loss: among how many equally likely characters the model is, on average, undecided.
"""

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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from cli import ArgumentParser, UserError, atomic_write, number, run
from device import choose_device, choose_dtype, keep_large_blocks
from loss import head_loss, perplexity
from model import GPT, PRESETS, GPTConfig, load_checkpoint, save_checkpoint
from optim import make_optimizers, schedule
from prepare import DEFAULT_DATA_ROOT, load_dataset
from runlog import LOG_FIELDS, log_line, plot_curves, write_log
from windows import PoemWindows, Windows, poem_loss, stream_loss, title_ids, use_poem_windows

SAME_ON_RESUME = [  # flags, and fields of the model's configuration
    *("n_layer", "n_head", "n_embd", "dropout", "no_pos", "no_res", "max_seq_len", "windows", "batchsize", "seed"),
    *("optimizer", "lr", "muon_lr", "weight_decay", "warmup_iters", "grad_clip", "ema"),
]
RUN_FILES = ["config.json", "log.csv", "loss&perplexity.jpg", "best.pt", "last.pt", "result.json"]


class Trainer:
    """One run: the model and all that changes while it trains. Its state goes into last.pt and comes from there."""

    def __init__(self, args):
        self.args = args
        self.folder = Path(args.ckpt_path)
        self.device = choose_device(args.device)
        self.dtype = choose_dtype(args.dtype, self.device)
        self.auto_dtype = args.dtype == "auto"
        self.vocabulary, train_tokens, self.val_tokens = load_dataset(args.data_root)
        title = title_ids(self.vocabulary)
        poems = PoemWindows.of(train_tokens, title, args.max_seq_len)
        self.val_poems = PoemWindows.of(self.val_tokens, title, args.max_seq_len)
        self.by_poem = use_poem_windows(args.windows, len(poems), len(self.val_poems))
        args.windows = "poem" if self.by_poem else "stream"  # so that the files of the run tell what "auto" was
        args.dtype = str(self.dtype).removeprefix("torch.")
        self.windows = Windows(train_tokens, args.max_seq_len, args.seed, poems if self.by_poem else None)
        torch.manual_seed(args.seed)
        config = model_config(args, len(self.vocabulary), title if self.by_poem else ())
        self.model = GPT(config).to(self.device)
        self.optimizers = make_optimizers(self.model, args.lr, args.muon_lr, args.weight_decay, args.optimizer)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema)) if args.ema else None
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
        try:
            before = {**checkpoint["args"], **asdict(model.config)}
            wanted = {**vars(self.args), **asdict(self.model.config)}
            for name in SAME_ON_RESUME:
                if before[name] != wanted[name]:
                    raise UserError(f"--{name} {wanted[name]} contradicts {path}, which has {before[name]}")
            for name in ("iteration", "best_loss", "seconds", "rows", "recent"):
                setattr(self, name, checkpoint[name])
            self.load_state(model, checkpoint)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path} cannot be resumed from ({error!r}): start again with --overwrite") from None
        finished = bool(self.rows) and "stream_val_loss" in self.rows[-1]
        if self.args.iters < self.iteration or (self.args.iters == self.iteration and not finished):
            raise UserError(f"--iters {self.args.iters}: {path} is at iteration {self.iteration} already; give more")

    def load_state(self, model: GPT, checkpoint: dict) -> None:
        """Puts weights, optimisers, random state and number type back as they were in the checkpoint."""
        self.model.load_state_dict(model.state_dict())
        if self.average is not None:
            self.average.load_state_dict(checkpoint["average"])
        for optimizer, state in zip(self.optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(checkpoint["rng"].cpu())
        if self.auto_dtype:  # the measurement might come out otherwise this time
            self.args.dtype = checkpoint["args"]["dtype"]
            self.dtype = choose_dtype(self.args.dtype, self.device)

    @property
    def result_model(self) -> GPT:
        """What is measured and kept as best.pt: the moving average of the weights if --ema asks for it."""
        return self.model if self.average is None else self.average.module

    def save_last(self) -> None:
        save_checkpoint(
            self.folder / "last.pt",
            self.model,
            self.vocabulary,
            iteration=self.iteration,
            average=None if self.average is None else self.average.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
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
        rate = schedule(self.iteration, self.args.iters, self.args.warmup_iters)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["base_lr"]
        inputs, targets = (x.to(self.device) for x in self.windows.batch(self.iteration, self.args.batchsize))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features, _ = self.model.features(inputs)
        loss = head_loss(features, self.model.head.weight, targets, self.dtype)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.grad_clip or math.inf).item()
        value = loss.item()
        if not math.isfinite(value) or not math.isfinite(norm):
            kept = "; the last good checkpoint is last.pt" if (self.folder / "last.pt").exists() else ""
            where = f"at iteration {self.iteration} in {self.folder}"
            raise UserError(f"the loss is {value}, its gradient's norm {norm} {where}: lower --lr and --muon_lr{kept}")
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.iteration += 1
        self.seconds += time.perf_counter() - start
        self.recent.append(value)
        return value, norm

    def evaluate(self, norm: float) -> dict:
        """Measures, logs, draws and saves; returns the new row of the log."""
        windows = self.args.eval_iters * self.args.batchsize
        val_loss = (self.poem_loss if self.by_poem else self.stream_loss)(self.result_model, windows)
        train_loss = sum(self.recent) / len(self.recent)
        tokens = self.args.batchsize * self.args.max_seq_len
        row = {
            "iter": self.iteration,
            "lr": self.optimizers[0].param_groups[0]["lr"],
            "train_loss": train_loss,
            "train_perplexity": perplexity(train_loss),
            "val_loss": val_loss,
            "val_perplexity": perplexity(val_loss),
            "grad_norm": norm,
            "tokens_per_second": tokens * self.iteration / self.seconds,
        }
        if self.iteration == self.args.iters:
            row.update(self.whole_losses(self.result_model))
        self.rows.append(row)
        self.recent = []
        if val_loss < self.best_loss:
            self.best_loss = val_loss
            best = {"iteration": self.iteration, "val_loss": val_loss}
            save_checkpoint(self.folder / "best.pt", self.result_model, self.vocabulary, **best)
        self.save_last()
        write_log(self.folder / "log.csv", self.rows)
        plot_curves({"": self.rows}, self.folder / "loss&perplexity.jpg")
        return row

    def poem_loss(self, model: GPT, max_windows: int | None = None) -> float:
        """Mean loss of the validation split's poems, or of max_windows windows evenly spread over them."""
        poems, count = self.val_poems, min(max_windows or len(self.val_poems), len(self.val_poems))
        return poem_loss(model, self.val_tokens, poems[np.arange(count) * len(poems) // count], self.args.batchsize)

    def stream_loss(self, model: GPT, max_windows: int | None = None) -> float:
        return stream_loss(model, self.val_tokens, self.args.batchsize, max_windows)

    def whole_losses(self, model: GPT) -> dict[str, float]:
        """Both measures over the whole validation split; that of poems is empty for a text without titles."""
        stream = self.stream_loss(model)
        measures = {"stream_val_loss": stream, "stream_perplexity": perplexity(stream)}
        if len(self.val_poems):
            poem = self.poem_loss(model)
            measures |= {"poem_val_loss": poem, "poem_perplexity": perplexity(poem)}
        return measures

    def result(self) -> dict:
        """The losses over the whole validation split, and the cost of the run. best.pt is measured, and last.pt.

        val_loss without more is the measure that the run trains for: of poems, or of the stream.
        """
        best_model, _, checkpoint = load_checkpoint(self.folder / "best.pt", self.device)
        final = {name: value for name, value in self.rows[-1].items() if name in LOG_FIELDS[-4:]}
        best = final if checkpoint["iteration"] == self.iteration else self.whole_losses(best_model)
        own = "poem" if self.by_poem else "stream"
        tokens = self.iteration * self.args.batchsize * self.args.max_seq_len
        return {
            "windows": own,
            "best_val_loss": best[f"{own}_val_loss"],
            "best_perplexity": best[f"{own}_perplexity"],
            "final_val_loss": final[f"{own}_val_loss"],
            "final_perplexity": final[f"{own}_perplexity"],
            **best,
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


def model_config(args, vocab_size: int, title: tuple[int, ...] = ()) -> GPTConfig:
    """The preset that --model names, with what the other flags override."""
    sizes = {**PRESETS[args.model]}
    sizes.update({name: getattr(args, name) for name in sizes if getattr(args, name) is not None})
    return GPTConfig(vocab_size, args.max_seq_len, **sizes, no_pos=args.no_pos, no_res=args.no_res, title=title)


def check_folder(args) -> None:
    """Raises UserError if --ckpt_path holds a run that was not asked for, or none where one was."""
    folder = Path(args.ckpt_path)
    found = [name for name in RUN_FILES if name != "config.json" and (folder / name).exists()]
    if args.resume and "last.pt" not in found:
        raise UserError(f"nothing to resume: no last.pt in {folder}")
    if found and not (args.resume or args.overwrite):
        raise UserError(f"{folder} holds a run already: go on with --resume, or start again with --overwrite")


def begin_folder(args) -> None:
    """Makes the run's folder, writes config.json and, unless the run goes on, removes what an earlier one has left."""
    folder = Path(args.ckpt_path)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "config.json", "w") as file:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        json.dump({**vars(args), "versions": versions}, file, indent=2, ensure_ascii=False)
    if not args.resume:
        for name in RUN_FILES:
            if name != "config.json":
                (folder / name).unlink(missing_ok=True)


WINDOWS_HELP = "where samples begin: at title lines (poem), anywhere (stream); auto: poem if the text has +++ titles"
OPTIMIZER_HELP = "muon: Muon for the layers' matrices, AdamW for the rest; adamw: AdamW for all (then use --lr 0.003)"
EMA_HELP = "measure and keep a moving average of the weights that forgets 1-EMA of itself at each iteration; 0: none"
DTYPE_HELP = "type of the large products; auto: bfloat16 where a short measurement finds it faster"


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    positive, size, rate = number(int, 1, 10**9), number(int, 1, 10**6), number(float, 0, 1e6)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the folder for this run's files")
    parser.add_argument("--resume", action="store_true", help="go on with the run in CKPT_PATH")
    parser.add_argument("--overwrite", action="store_true", help="start anew in CKPT_PATH, the run in it is lost")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to compute")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=1, help="of weights, windows and dropout")

    group = parser.add_argument_group("model")
    group.add_argument("--model", default="mini", choices=PRESETS, help="sizes by name, the next four override them")
    group.add_argument("--n_layer", type=size, help="number of transformer layers")
    group.add_argument("--n_head", type=size, help="number of attention heads h in a layer")
    group.add_argument("--n_embd", type=size, help="feature channels C, a multiple of the heads")
    group.add_argument("--dropout", type=number(float, 0, below=1), help="share of activations dropped in training")
    group.add_argument("--max_seq_len", type=size, default=64, help="length L of the sequences")
    group.add_argument("--no_pos", action="store_true", help="leave out the position embedding")
    group.add_argument("--no_res", action="store_true", help="leave out the residual connections")

    group = parser.add_argument_group("training")
    group.add_argument(
        "--iters",
        type=positive,
        default=2000,
        help="number of iterations; may be raised on --resume, the rates then fall to 0 at the new end",
    )
    group.add_argument("--batchsize", type=size, default=16, help="sequences B in an iteration")
    group.add_argument("--windows", default="auto", choices=["auto", "poem", "stream"], help=WINDOWS_HELP)
    group.add_argument("--optimizer", default="muon", choices=["adamw", "muon"], help=OPTIMIZER_HELP)
    group.add_argument("--lr", type=rate, default=0.01, help="AdamW's learning rate at its highest")
    group.add_argument("--muon_lr", type=rate, default=0.008, help="Muon's learning rate at its highest")
    group.add_argument("--warmup_iters", type=number(int, 0), default=100, help="iterations of linear warm-up")
    group.add_argument("--weight_decay", type=rate, default=0.1, help="of the weight matrices")
    group.add_argument("--grad_clip", type=rate, default=1.0, help="largest norm of the gradient; 0: any")
    group.add_argument("--ema", type=number(float, 0, below=1), default=0.0, help=EMA_HELP)
    group.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help=DTYPE_HELP)
    group.add_argument("--eval_interval", type=positive, default=100, help="iterations between evaluations")
    group.add_argument("--eval_iters", type=positive, default=10, help="batches of validation text in an evaluation")
    args = parser.parse_args(args)
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    return args


def main() -> None:
    args = parse_args()
    keep_large_blocks()
    trainer = Trainer(args)
    check_folder(args)
    if args.resume:
        trainer.resume()
    begin_folder(args)
    given = {name: value for name, value in vars(args).items() if value is not None and value is not False}
    print(" ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items()))
    sizes = ", ".join(f"{name} {value}" for name, value in asdict(trainer.model.config).items())
    print(f"{trainer.model.num_parameters():,} parameters on {trainer.device}, {trainer.dtype}: {sizes}")
    trainer.train()
    result = trainer.result()
    with atomic_write(trainer.folder / "result.json", "w") as file:
        json.dump(result, file, indent=2)
    for measure in [name for name in ("poem", "stream") if f"{name}_val_loss" in result]:
        loss = result[f"{measure}_val_loss"]
        print(f"whole validation split, by {measure}: loss {loss:.4f}, perplexity {perplexity(loss):.2f}")
    print(f"{result['seconds']:.0f} s of training, {result['tokens_per_second']:,.0f} tokens/s; see {trainer.folder}")


if __name__ == "__main__":
    run(main)
