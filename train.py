"""Trains a GPT on what prepare.py made, and draws its loss and perplexity while it learns.

Writes into CKPT_PATH:

  best.safetensors      the model with the lowest validation loss; with forms.json, a copy, it writes poems anywhere
  last.pt               the state to --resume from
  log.csv               a line for each evaluation: loss, perplexity, learning rate, gradient norm, speed
  loss&perplexity.jpg   the same as curves, redrawn at every evaluation
  config.json           the settings of the run
  events.out.tfevents.* the log for TensorBoard, with --tensorboard
  result.json           the losses over the whole validation split, and the cost of the run

Perplexity is e^loss: the number of equally likely characters that would leave one as uncertain as the model is.

Several processes can train one model together: torchrun --standalone --nproc_per_node=2 train.py
"""

import songci  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from model import GPT
from songci.cli import Interrupted, UserError, deferred_signals, run
from songci.corpus.vocabulary import fingerprint, load_dataset
from songci.corpus.windows import IGNORE, poem_starts, title_ids, use_poem_windows
from songci.curves import plot_curves
from songci.machine import seed_of
from songci.runs import BEST, as_gpt, load_trained, perplexity, run_folder, save_trained
from songci.training.batches import Batches, Windows
from songci.training.checkpoint import begin_with, resume, save_last, trained_of
from songci.training.device import choose_dtype, keep_large_blocks, settle
from songci.training.flags import model_config, parse_args
from songci.training.loss import TrainingLoss
from songci.training.measure import Measures
from songci.training.optim import make_optimizers, moving_average, set_rates
from songci.training.parallel import Parallel, end_together
from songci.training.runlog import (
    TensorBoard,
    begin_folder,
    log_line,
    own_folder,
    warn_if_in_use,
    write_log,
    write_result,
)
from songci.training.threads import considerate_threads

SAVE_SECONDS = 180  # the state is saved so often, however rare evaluations are
PROGRESS = ("iteration", "best_loss", "seconds", "rows", "recent", "norm")  # what Trainer counts
MEASURED_BY = ("eval_iters", "dtype")  # settings that may change on --resume and change the validation loss


class Trainer:
    """One run: the model and all that changes while it trains."""

    def __init__(self, args):
        self.args, self.folder = args, run_folder(args.ckpt_path)
        self.tensorboard = TensorBoard(self.folder) if args.tensorboard else None
        self.parallel = Parallel()
        if args.batchsize < self.parallel.world:
            raise UserError(f"--batchsize {args.batchsize} is less than the {self.parallel.world} processes")
        self.device = self.parallel.start(settle(args, self.folder))
        self.dtype = self.parallel.agree(choose_dtype(args.dtype, self.device), self.device)
        self.vocabulary, train_tokens, val_tokens = load_dataset(args.data_root)
        self.data = fingerprint(train_tokens, val_tokens)
        title = title_ids(self.vocabulary)
        self.measures = Measures(val_tokens, title, args.max_seq_len, args.batchsize, self.dtype)
        train_poems = len(poem_starts(train_tokens, title))
        by_poem = use_poem_windows(args.windows, train_poems, "poem" in self.measures.windows)
        # So that the files of the run tell what "auto" meant
        args.windows, args.dtype = "poem" if by_poem else "stream", str(self.dtype).removeprefix("torch.")
        self.windows = Windows(train_tokens, args.max_seq_len, args.seed, title if by_poem else None)
        self.batches = Batches(self.windows, args.batchsize, self.device)
        torch.manual_seed(args.seed)
        self.title = title if by_poem else ()
        self.model = GPT(model_config(args, len(self.vocabulary))).to(self.device)
        if args.init_from and not args.resume:
            begin_with(self.model, args.init_from, args.data_root)
        self.loss = self.parallel.wrap(TrainingLoss(self.model, self.dtype, args.compile))
        # float16 has so small a range that gradients are scaled up; a step in which they overflow is skipped
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        rates = args.lr, args.muon_lr, args.weight_decay
        self.optimizers = make_optimizers(self.model, *rates, args.optimizer, self.dtype)
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average(args.ema)) if args.ema else None
        self.iteration = 0
        self.best_loss = math.inf
        self.seconds = 0.0  # of training alone, without evaluation
        self.rows: list[dict] = []  # log.csv
        self.recent: list[float] = []  # training losses since the last evaluation
        self.norm = 0.0  # of the last gradient
        self.saved_at = time.monotonic()
        self.signal = 0  # the signal that asks to stop after this iteration, as this process or another got it

    def step(self) -> tuple[Tensor, Tensor]:
        """One training step: a batch, its loss, the gradient, and the weights a little way down it.

        Returns the loss in nats a character and the norm of the gradient.
        """
        loss = 0.0
        for inputs, targets, share in self.pieces():  # (B, L) token ids; one piece, unless --accum asks for more
            piece = share * self.loss(inputs, targets)  # forward: the mean of -ln p of the characters that come next
            self.scaler.scale(piece).backward()  # backward: the gradient of each weight
            loss += piece.detach()
        norm = self.clipped_norm()
        if not self.scaler.is_enabled() or norm.isfinite():  # a gradient that overflows float16 moves no weight at all
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)  # the weights move
        self.model.zero_grad(set_to_none=True)  # the next step begins anew
        return loss, norm

    def pieces(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """The batch of this iteration, or this process's part of it, in --accum pieces, with their shares of the loss.

        A piece counts by its number of targets. Between processes, gradients are averaged, after the last piece only.
        """
        batch = self.batches.get(self.iteration)
        pieces = list(zip(*(self.parallel.share(part, self.args.accum) for part in batch), strict=True))
        count = (batch[1] != IGNORE).sum().item()
        for i, (inputs, targets) in enumerate(pieces, start=1):
            share = (targets != IGNORE).sum().item() / count * self.parallel.world
            self.loss.require_backward_grad_sync = i == len(pieces)  # DistributedDataParallel's switch
            yield inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True), share
        self.batches.prefetch(self.iteration + 1)  # while a GPU computes

    def clipped_norm(self) -> Tensor:
        """Scales the gradient down to --grad_clip if it is longer; returns its norm before that."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.grad_clip or math.inf)

    def iterate(self) -> tuple[float, float]:
        """An iteration: a step, and what surrounds it. Raises UserError if loss or gradient are not finite."""
        start = time.perf_counter()
        set_rates(self.optimizers, self.iteration, self.args.iters, self.args.warmup_iters)
        if self.model.config.dropout:  # a function of the iteration, so that a resumed run drops the same
            torch.manual_seed(seed_of(self.args.seed, self.iteration, self.parallel.rank))
        loss, norm = (float(value) for value in self.step())
        loss, signals = self.parallel.total(loss / self.parallel.world, self.signal, device=self.device)
        self.signal = self.signal or (signal.SIGTERM if signals else 0)
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            kept = "; the last good checkpoint is last.pt" if (self.folder / "last.pt").exists() else ""
            where = f"at iteration {self.iteration} in {self.folder}"
            raise UserError(f"the loss is {loss}, its gradient's norm {norm} {where}: lower --lr and --muon_lr{kept}")
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.iteration += 1
        self.seconds += time.perf_counter() - start
        self.recent.append(loss)
        return loss, norm

    def train(self) -> None:
        """Trains up to args.iters. On Ctrl-C or SIGTERM, ends the iteration, saves its state and raises Interrupted.

        The state is saved before a measurement, which can be long, and every few minutes.
        """
        args, main = self.args, self.parallel.main
        quiet = None if main else True  # None: a bar on a terminal only
        bar = tqdm(total=args.iters, initial=self.iteration, desc="training", unit="it", disable=quiet)
        with bar, deferred_signals(self.note):
            if args.compile:
                self.compile()
            if main and self.evaluation_is_due:  # the run was killed while it measured
                self.evaluate(bar)
            while self.iteration < args.iters:
                loss, self.norm = self.iterate()
                bar.update()
                if self.iteration % 10 == 0:
                    speed = f"{self.tokens / self.seconds:,.0f} tokens/s"
                    bar.set_postfix_str(f"loss {loss:.3f}, perplexity {perplexity(loss):.0f}, {speed}")
                if main and (self.evaluation_is_due or time.monotonic() - self.saved_at > SAVE_SECONDS):
                    self.save()
                if main and self.evaluation_is_due:
                    self.evaluate(bar)
                if self.signal:
                    if main:
                        self.save()
                        bar.write(f"stopped at iteration {self.iteration}; go on with --resume", file=sys.stderr)
                    raise Interrupted(self.signal)

    def compile(self) -> None:
        """Has torch.compile do its work, which can take minutes, before the time of training is counted."""
        for inputs, targets, _ in self.pieces():
            self.loss(inputs, targets).backward()
        self.model.zero_grad(set_to_none=True)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether this iteration is one to be evaluated after, and has not been."""
        evaluated = self.rows[-1]["iter"] if self.rows else 0
        at_interval = self.iteration % self.args.eval_interval == 0
        return self.iteration > evaluated and (at_interval or self.iteration == self.args.iters)

    def save(self) -> None:
        """Writes last.pt."""
        save_last(self)
        self.saved_at = time.monotonic()

    def note(self, number: int) -> None:
        """Remembers a signal until the iteration ends."""
        self.signal = number

    @property
    def result_model(self) -> GPT:
        """What is measured and kept as best.safetensors: the moving average of the weights if --ema asks for it."""
        return self.model if self.average is None else self.average.module

    @property
    def tokens(self) -> int:
        """How many tokens the model has been trained on."""
        return self.iteration * self.args.batchsize * self.args.max_seq_len

    def evaluation_loss(self, model: GPT) -> float:
        """The validation loss of a model over the windows that every evaluation of this run takes."""
        return self.measures.loss(self.args.windows, model, self.args.eval_iters * self.args.batchsize)

    def evaluate(self, bar: tqdm) -> None:
        """Measures, prints a line through the bar, logs, draws, and saves the model if it is the best so far."""
        val_loss = self.evaluation_loss(self.result_model)
        train_loss = sum(self.recent) / len(self.recent)
        row = {
            "iter": self.iteration,
            "lr": self.optimizers[0].param_groups[0]["lr"],
            "train_loss": train_loss,
            "train_perplexity": perplexity(train_loss),
            "val_loss": val_loss,
            "val_perplexity": perplexity(val_loss),
            "grad_norm": self.norm,
            "tokens_per_second": self.tokens / self.seconds,
        }
        bar.write(log_line(row))
        if self.iteration == self.args.iters:
            row.update(self.measures.whole(self.result_model))
        self.rows.append(row)
        self.recent = []
        if val_loss < self.best_loss:
            self.save_best(val_loss)
        if self.iteration == self.args.iters:
            self.save()  # with the last row: the run is finished
        if self.tensorboard is not None:
            self.tensorboard.log(self.rows)
        with warn_if_in_use(self.folder / "log.csv") as path:
            write_log(path, self.rows)
        with warn_if_in_use(self.folder / "loss&perplexity.jpg") as path:
            plot_curves({"": self.rows}, path)

    def save_best(self, val_loss: float) -> None:
        """Writes the present model, of this validation loss, as best.safetensors."""
        self.best_loss = val_loss
        own = self.vocabulary, self.title, self.data
        best = trained_of(self.result_model, *own, iteration=self.iteration, val_loss=val_loss)
        save_trained(self.folder / BEST, best)

    def state_dict(self) -> dict:
        """All that changes while it trains, except the weights. Batches and dropout are functions of the iteration."""
        return {name: getattr(self, name) for name in PROGRESS} | {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes on from what state_dict() gave, with the weights under "model" and the settings under "args"."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for name in PROGRESS:
            setattr(self, name, state[name])
        if not self.parallel.main:
            return
        if self.rows and not (self.folder / BEST).exists():
            print(
                f"no {BEST} in {self.folder}: the model of iteration {self.iteration} takes its place", file=sys.stderr
            )
            self.save_best(self.evaluation_loss(self.result_model))
        elif self.rows and any(state["args"][name] != getattr(self.args, name) for name in MEASURED_BY):
            # Losses over other windows are not comparable: a lucky one over a few would never be beaten
            self.best_loss = self.evaluation_loss(as_gpt(load_trained(self.folder), self.device))


def main() -> None:
    args = parse_args(description=__doc__)
    keep_large_blocks()
    trainer = Trainer(args)
    parallel, folder = trainer.parallel, own_folder(trainer.folder, args.resume, args.overwrite)
    with end_together(parallel), parallel.in_main(folder, trainer.device):
        train_in(trainer)


def train_in(trainer: Trainer) -> None:
    """A whole run in its folder; of several processes, only the first writes and reports."""
    args, main = trainer.args, trainer.parallel.main
    considerate_threads(torch.get_num_threads())
    if args.resume:
        resume(trainer)
    if main:
        begin_folder(trainer.folder, args.resume, {**vars(args), "device": str(trainer.device)}, Path(args.data_root))
        given = {name: value for name, value in vars(args).items() if value is not None and value is not False}
        print(" ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items()))
        sizes = ", ".join(f"{name} {value}" for name, value in asdict(trainer.model.config).items())
        processes = f", {trainer.parallel.world} processes" if trainer.parallel.world > 1 else ""
        print(trainer.windows)
        print(f"{trainer.model.num_parameters():,} parameters on {trainer.device}{processes}, {trainer.dtype}: {sizes}")
    trainer.train()
    if main:
        write_result(trainer)


if __name__ == "__main__":
    run(main)
