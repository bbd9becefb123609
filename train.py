"""Trains a GPT on what prepare.py made, and draws its loss and perplexity while it learns.

Writes into CKPT_PATH:

  best.pt, last.pt      the model with the lowest validation loss, and the state to --resume from
  log.csv               a line for each evaluation: loss, perplexity, learning rate, gradient norm, speed
  loss&perplexity.jpg   the same as curves, redrawn at every evaluation
  config.json           the settings of the run
  events.out.tfevents.* the log for TensorBoard, with --tensorboard
  result.json           the losses over the whole validation split, and the cost of the run

Perplexity is e^loss: the number of equally likely characters that would leave one as uncertain as the model is.

Several processes can train one model together, with the same result: torchrun --standalone --nproc_per_node=2 train.py
"""

import songci  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from model import GPT, PRESETS, GPTConfig
from songci.cli import ArgumentParser, Interrupted, UserError, deferred_signals, number, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, fingerprint, load_dataset
from songci.corpus.windows import IGNORE, Batches, ScoredWindows, Windows, title_ids, use_poem_windows
from songci.training.checkpoint import begin_with, resume, run_folder, save_checkpoint, save_last
from songci.training.device import choose_dtype, keep_large_blocks, seed_of, settle
from songci.training.loss import TrainingLoss, perplexity
from songci.training.measure import Measures
from songci.training.optim import make_optimizers, set_rates
from songci.training.parallel import Parallel, end_together
from songci.training.runlog import (
    TensorBoard,
    begin_folder,
    log_line,
    own_folder,
    plot_curves,
    write_log,
    write_result,
)
from songci.training.threads import considerate_threads


class Trainer:
    """One run: the model and all that changes while it trains, which checkpoint.py saves and restores."""

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
        poems = ScoredWindows.of_poems(train_tokens, title, args.max_seq_len)
        self.measures = Measures(val_tokens, title, args.max_seq_len, args.batchsize, self.dtype)
        by_poem = use_poem_windows(args.windows, len(poems), "poem" in self.measures.windows)
        # So that the files of the run tell what "auto" meant
        args.windows, args.dtype = "poem" if by_poem else "stream", str(self.dtype).removeprefix("torch.")
        windows = Windows(train_tokens, args.max_seq_len, args.seed, poems if by_poem else None)
        self.batches = Batches(windows, args.batchsize, self.device)
        torch.manual_seed(args.seed)
        self.title = title if by_poem else ()
        self.model = GPT(model_config(args, len(self.vocabulary))).to(self.device)
        if args.init_from:
            begin_with(self.model, args.init_from, args.data_root)
        self.loss = self.parallel.wrap(TrainingLoss(self.model, self.dtype, args.compile))
        # float16 has so small a range that gradients are scaled up; a step in which they overflow is skipped
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        rates = args.lr, args.muon_lr, args.weight_decay
        self.optimizers = make_optimizers(self.model, *rates, args.optimizer, self.dtype)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema)) if args.ema else None
        self.iteration = 0
        self.best_loss = math.inf
        self.seconds = 0.0  # of training alone, without evaluation
        self.rows: list[dict] = []  # log.csv
        self.recent: list[float] = []  # training losses since the last evaluation
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
        """Trains up to args.iters. On Ctrl-C or SIGTERM, ends the iteration, saves its state and raises Interrupted."""
        args, main, norm = self.args, self.parallel.main, 0.0
        quiet = None if main else True  # None: a bar on a terminal only
        bar = tqdm(total=args.iters, initial=self.iteration, desc="training", unit="it", disable=quiet)
        with bar, deferred_signals(self.note):
            while self.iteration < args.iters:
                loss, norm = self.iterate()
                bar.update()
                if self.iteration % 10 == 0:
                    speed = f"{self.tokens / self.seconds:,.0f} tokens/s"
                    bar.set_postfix_str(f"loss {loss:.3f}, perplexity {perplexity(loss):.0f}, {speed}")
                if main and (self.iteration % args.eval_interval == 0 or self.iteration == args.iters):
                    self.evaluate(norm, bar)
                if self.signal:
                    if main:
                        save_last(self)
                        bar.write(f"stopped at iteration {self.iteration}; go on with --resume", file=sys.stderr)
                    raise Interrupted(self.signal)

    def note(self, number: int) -> None:
        """Remembers a signal until the iteration ends."""
        self.signal = number

    @property
    def result_model(self) -> GPT:
        """What is measured and kept as best.pt: the moving average of the weights if --ema asks for it."""
        return self.model if self.average is None else self.average.module

    @property
    def tokens(self) -> int:
        """How many tokens the model has been trained on."""
        return self.iteration * self.args.batchsize * self.args.max_seq_len

    def evaluate(self, norm: float, bar: tqdm) -> None:
        """Measures, prints a line through the bar, logs, draws and saves."""
        val_loss = self.measures.loss(self.args.windows, self.result_model, self.args.eval_iters * self.args.batchsize)
        train_loss = sum(self.recent) / len(self.recent)
        row = {
            "iter": self.iteration,
            "lr": self.optimizers[0].param_groups[0]["lr"],
            "train_loss": train_loss,
            "train_perplexity": perplexity(train_loss),
            "val_loss": val_loss,
            "val_perplexity": perplexity(val_loss),
            "grad_norm": norm,
            "tokens_per_second": self.tokens / self.seconds,
        }
        bar.write(log_line(row))
        if self.iteration == self.args.iters:
            row.update(self.measures.whole(self.result_model))
        self.rows.append(row)
        if self.tensorboard is not None:
            self.tensorboard.add(row)
        self.recent = []
        if val_loss < self.best_loss:
            self.best_loss = val_loss
            best = {"data": self.data, "iteration": self.iteration, "val_loss": val_loss}
            save_checkpoint(self.folder / "best.pt", self.result_model, self.vocabulary, self.title, **best)
        save_last(self)
        write_log(self.folder / "log.csv", self.rows)
        plot_curves({"": self.rows}, self.folder / "loss&perplexity.jpg")


def model_config(args, vocab_size: int) -> GPTConfig:
    """The preset that --model names, with what the other flags override."""
    sizes = {**PRESETS[args.model]}
    sizes.update({name: getattr(args, name) for name in sizes if getattr(args, name) is not None})
    try:
        return GPTConfig(vocab_size, args.max_seq_len, **sizes, no_pos=args.no_pos, no_res=args.no_res)
    except ValueError as error:
        raise UserError(f"--{error}") from None


RECIPES = {"poet": {"max_seq_len": 128, "iters": 10200}}  # what else a preset sets; see docs/results.md
MODEL_HELP = "sizes, which the next four flags override: " + "; ".join(
    f"{name}: {p['n_layer']} layers, {p['n_head']} heads, {p['n_embd']} channels, dropout {p['dropout']}"
    + "".join(f", --{flag} {value}" for flag, value in RECIPES.get(name, {}).items())
    for name, p in PRESETS.items()
)
WINDOWS_HELP = "where samples begin: at title lines (poem), anywhere (stream); auto: poem if the text has +++ titles"
OPTIMIZER_HELP = "muon: Muon for the layers' matrices, AdamW for the rest; adamw: AdamW for all (then use --lr 0.003)"
EMA_HELP = "decay of an exponential moving average of the weights, which then is measured and kept; 0: no average"
INIT_HELP = (
    "begin with the weights of the best.pt of another run, of the same sizes and vocabulary (prepare.py --vocabulary), "
    "and a fresh optimizer; a shorter window takes its first positions, in a longer one those that it lacks begin anew"
)
ACCUM_HELP = "compute each batch in this many parts, one after another: the same result, in less memory"
DTYPE_HELP = "type of the large products; auto: bfloat16 on GPUs that have it and on CPUs that are faster with it"
ITERS_HELP = "number of iterations; may be raised on --resume: the learning rates then fall to 0 at the new end"
POSITIVE, SIZE, RATE = number(int, 1, 10**9), number(int, 1, 10**6), number(float, 0, 1e6)
SHARE = number(float, 0, below=1)


def parse_args(args=None):
    """The command line, or the words in `args`, as a namespace."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument_group("the handout's flags").add_argument
    add("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    add("--ckpt_path", default="workdirs/quansongci", help="the folder for this run's files")
    add("--batchsize", type=SIZE, default=16, help="sequences in a batch, B")
    add("--iters", type=POSITIVE, default=2000, help=ITERS_HELP)
    add("--max_seq_len", type=SIZE, default=64, help="length L of the sequences")
    add("--no_pos", action="store_true", help="leave out the position embedding")
    add("--no_res", action="store_true", help="leave out the residual connections")

    add = parser.add_argument_group("the run").add_argument
    add("--resume", action="store_true", help="go on with the run in CKPT_PATH")
    add("--overwrite", action="store_true", help="start afresh in CKPT_PATH; the run in it is lost")
    add("--init_from", metavar="CKPT_PATH", help=INIT_HELP)
    add("--seed", type=number(int, 0, 2**63 - 1), default=1, help="of weights, windows and dropout")
    add("--eval_interval", type=POSITIVE, default=100, help="iterations between evaluations")
    add("--eval_iters", type=POSITIVE, default=10, help="batches of validation text per evaluation")
    add("--tensorboard", action="store_true", help="also log for TensorBoard, into CKPT_PATH")
    add("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to compute")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help=DTYPE_HELP)
    add("--compile", action="store_true", help="torch.compile the model: slow to start, then faster")
    add("--accum", type=SIZE, default=1, help=ACCUM_HELP)

    add = parser.add_argument_group("model").add_argument
    add("--model", default="mini", choices=PRESETS, help=MODEL_HELP)
    add("--n_layer", type=SIZE, help="number of transformer layers")
    add("--n_head", type=SIZE, help="number of attention heads h in a layer")
    add("--n_embd", type=SIZE, help="number of feature channels C, a multiple of h")
    add("--dropout", type=SHARE, help="probability that an activation is dropped")

    add = parser.add_argument_group("learning").add_argument
    add("--windows", default="auto", choices=["auto", "poem", "stream"], help=WINDOWS_HELP)
    add("--optimizer", default="muon", choices=["adamw", "muon"], help=OPTIMIZER_HELP)
    add("--lr", type=RATE, default=0.01, help="AdamW's highest learning rate")
    add("--muon_lr", type=RATE, default=0.008, help="Muon's highest learning rate")
    add("--warmup_iters", type=number(int, 0), default=100, help="iterations of linear warm-up")
    add("--weight_decay", type=RATE, default=0.1, help="weight decay of the matrices")
    add("--grad_clip", type=RATE, default=1.0, help="clip the gradient at this norm; 0: never")
    add("--ema", type=SHARE, default=0.0, help=EMA_HELP)
    parser.set_defaults(**RECIPES.get(parser.parse_args(args).model, {}))
    args = parser.parse_args(args)
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    if args.resume and args.init_from:
        parser.error("--resume goes on with the weights of the run itself: leave out --init_from")
    return args


def main() -> None:
    args = parse_args()
    keep_large_blocks()
    trainer = Trainer(args)
    alone = own_folder(trainer.folder, args.resume, args.overwrite) if trainer.parallel.main else nullcontext()
    with end_together(trainer.parallel), alone:
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
        print(f"{trainer.model.num_parameters():,} parameters on {trainer.device}{processes}, {trainer.dtype}: {sizes}")
    trainer.train()
    if main:
        write_result(trainer)


if __name__ == "__main__":
    run(main)
