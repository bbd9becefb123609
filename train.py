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

import json
import math
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from model import GPT, PRESETS, GPTConfig
from songci.cli import ArgumentParser, Interrupted, UserError, atomic_write, deferred_signals, number, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, load_dataset
from songci.corpus.windows import IGNORE, Batches, PoemWindows, Windows, title_ids, use_poem_windows
from songci.training.checkpoint import load_checkpoint, save_checkpoint
from songci.training.device import allow_tf32, check_compiler, choose_device, choose_dtype, keep_large_blocks, seed_of
from songci.training.loss import TrainingLoss, perplexity
from songci.training.measure import Measures
from songci.training.optim import make_optimizers, schedule
from songci.training.parallel import Parallel, accumulate, end_together
from songci.training.resume import resume, save_last
from songci.training.runlog import (
    WHOLE_FIELDS,
    TensorBoard,
    begin_folder,
    check_folder,
    log_line,
    plot_curves,
    write_log,
)


class Trainer:
    """One run: the model and all that changes while it trains. resume.py saves this state and restores it."""

    def __init__(self, args):
        self.args = args
        self.folder = Path(args.ckpt_path)
        self.tensorboard = TensorBoard(self.folder) if args.tensorboard else None
        self.parallel = Parallel()
        if args.batchsize < self.parallel.world:
            raise UserError(f"--batchsize {args.batchsize} is less than the {self.parallel.world} processes")
        self.device = self.parallel.start(choose_device(args.device))
        allow_tf32(self.device)
        if args.compile:
            check_compiler(self.device)
        self.auto_dtype = args.dtype == "auto"
        self.dtype = choose_dtype(args.dtype, self.device)
        if self.auto_dtype and self.parallel.total(self.dtype == torch.float32, device=self.device)[0]:
            self.dtype = torch.float32  # unless all processes measured bfloat16 to be faster
        self.vocabulary, train_tokens, val_tokens = load_dataset(args.data_root)
        title = title_ids(self.vocabulary)
        poems = PoemWindows.of(train_tokens, title, args.max_seq_len)
        self.measures = Measures(val_tokens, PoemWindows.of(val_tokens, title, args.max_seq_len), args.batchsize)
        self.by_poem = use_poem_windows(args.windows, len(poems), len(self.measures.poems))
        args.windows = "poem" if self.by_poem else "stream"  # so that the files of the run tell what "auto" meant
        args.dtype = str(self.dtype).removeprefix("torch.")
        windows = Windows(train_tokens, args.max_seq_len, args.seed, poems if self.by_poem else None)
        self.batches = Batches(windows, args.batchsize, self.device)
        torch.manual_seed(args.seed)
        self.title = title if self.by_poem else ()
        config = model_config(args, len(self.vocabulary))
        self.model = GPT(config).to(self.device)
        self.training_loss = TrainingLoss(self.model, self.dtype, args.compile)
        self.loss = self.parallel.wrap(self.training_loss)
        # float16 has so small a range that gradients are scaled up; a step in which they overflow is skipped
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.optimizers = make_optimizers(self.model, args.lr, args.muon_lr, args.weight_decay, args.optimizer)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema)) if args.ema else None
        self.iteration = 0
        self.best_loss = math.inf
        self.seconds = 0.0  # of training alone, without evaluation
        self.rows: list[dict] = []  # log.csv
        self.recent: list[float] = []  # training losses since the last evaluation
        self.signal = 0  # the signal that asks to stop after this iteration, as this process or another got it

    @property
    def result_model(self) -> GPT:
        """What is measured and kept as best.pt: the moving average of the weights if --ema asks for it."""
        return self.model if self.average is None else self.average.module

    @property
    def tokens(self) -> int:
        """How many tokens the model has been trained on."""
        return self.iteration * self.args.batchsize * self.args.max_seq_len

    def step(self) -> tuple[float, float]:
        """One iteration. Returns its loss and the norm of its gradient; raises UserError if one is not finite."""
        start = time.perf_counter()
        rate = schedule(self.iteration, self.args.iters, self.args.warmup_iters)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["base_lr"]
        if self.model.config.dropout:  # a function of the iteration, so that a resumed run drops the same
            torch.manual_seed(seed_of(self.args.seed, self.iteration, self.parallel.rank))
        value = self.backward(*self.batches.get(self.iteration))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.grad_clip or math.inf).item()
        value, signals = self.parallel.total(value, self.signal, device=self.device)
        self.signal = self.signal or (signal.SIGTERM if signals else 0)
        if not math.isfinite(value) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            kept = "; the last good checkpoint is last.pt" if (self.folder / "last.pt").exists() else ""
            where = f"at iteration {self.iteration} in {self.folder}"
            raise UserError(f"the loss is {value}, its gradient's norm {norm} {where}: lower --lr and --muon_lr{kept}")
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.iteration += 1
        self.seconds += time.perf_counter() - start
        self.recent.append(value)
        return value, norm

    def backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Adds the gradient of the mean loss of a batch (B, L), and returns this process's part of that loss.

        Each piece of the batch, of this process or another, counts by its number of targets.
        """
        world, count, parts = self.parallel.world, (targets != IGNORE).sum().item(), []
        pieces = list(zip(*(self.parallel.share(x, self.args.accum) for x in (inputs, targets)), strict=True))
        for i, (x, y) in enumerate(pieces):
            share = (y != IGNORE).sum().item() / count
            with accumulate(self.loss, last=i == len(pieces) - 1):
                loss = self.loss(x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True))
                self.scaler.scale(loss * (share * world)).backward()  # the processes' gradients are averaged
            parts.append(loss.detach() * share)
        self.batches.prefetch(self.iteration + 1)  # while a GPU computes
        return sum(part.item() for part in parts)

    def evaluate(self, norm: float) -> dict:
        """Measures, logs, draws and saves; returns the new row of the log."""
        windows = self.args.eval_iters * self.args.batchsize
        measure = self.measures.poem_loss if self.by_poem else self.measures.stream_loss
        val_loss = measure(self.result_model, windows)
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
        if self.iteration == self.args.iters:
            row.update(self.measures.whole(self.result_model))
        self.rows.append(row)
        if self.tensorboard is not None:
            self.tensorboard.add(row)
        self.recent = []
        if val_loss < self.best_loss:
            self.best_loss = val_loss
            best = {"iteration": self.iteration, "val_loss": val_loss}
            save_checkpoint(self.folder / "best.pt", self.result_model, self.vocabulary, self.title, **best)
        save_last(self)
        write_log(self.folder / "log.csv", self.rows)
        plot_curves({"": self.rows}, self.folder / "loss&perplexity.jpg")
        return row

    def result(self) -> dict:
        """The losses of best.pt and of last.pt over the whole validation split, and the cost of the run.

        best_val_loss and final_val_loss are measured on windows as in training, of poems or of the stream; the other
        losses are those of best.pt. Raises UserError if best.pt is of another run.
        """
        best_model, vocabulary, checkpoint = load_checkpoint(self.folder / "best.pt", self.device)
        if best_model.config != self.model.config or vocabulary.chars != self.vocabulary.chars:
            raise UserError(f"{self.folder / 'best.pt'} is of another run than last.pt: start again with --overwrite")
        final = {name: value for name, value in self.rows[-1].items() if name in WHOLE_FIELDS}
        best = final if checkpoint.get("iteration") == self.iteration else self.measures.whole(best_model)
        own = "poem" if self.by_poem else "stream"
        return {
            "windows": own,
            "best_val_loss": best[f"{own}_val_loss"],
            "best_perplexity": best[f"{own}_perplexity"],
            "final_val_loss": final[f"{own}_val_loss"],
            "final_perplexity": final[f"{own}_perplexity"],
            **best,
            "iters": self.iteration,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "parameters": self.model.num_parameters(),
        }

    def train(self) -> None:
        """Trains up to args.iters. On Ctrl-C or SIGTERM, ends the iteration, saves its state and raises Interrupted."""
        args, main = self.args, self.parallel.main
        quiet = None if main else True  # None: a bar on a terminal only
        bar = tqdm(total=args.iters, initial=self.iteration, desc="training", unit="it", disable=quiet)
        norm = 0.0
        with bar, deferred_signals(self.note):
            while self.iteration < args.iters:
                loss, norm = self.step()
                bar.update()
                if self.iteration % 10 == 0:
                    speed = self.tokens / self.seconds
                    bar.set_postfix_str(f"loss {loss:.3f}, perplexity {perplexity(loss):.0f}, {speed:,.0f} tokens/s")
                if main and (self.iteration % args.eval_interval == 0 or self.iteration == args.iters):
                    bar.write(log_line(self.evaluate(norm)))
                if self.signal:
                    if main:
                        save_last(self)
                        bar.write(f"stopped at iteration {self.iteration}; go on with --resume", file=sys.stderr)
                    raise Interrupted(self.signal)

    def note(self, number: int) -> None:
        """Remembers a signal until the iteration ends."""
        self.signal = number


def model_config(args, vocab_size: int) -> GPTConfig:
    """The preset that --model names, with what the other flags override."""
    sizes = {**PRESETS[args.model]}
    sizes.update({name: getattr(args, name) for name in sizes if getattr(args, name) is not None})
    try:
        return GPTConfig(vocab_size, args.max_seq_len, **sizes, no_pos=args.no_pos, no_res=args.no_res)
    except ValueError as error:
        raise UserError(str(error)) from None


MODEL_HELP = "sizes, which the next four flags override: " + "; ".join(
    f"{name}: {p['n_layer']} layers, {p['n_head']} heads, {p['n_embd']} channels, dropout {p['dropout']}"
    for name, p in PRESETS.items()
)
WINDOWS_HELP = "where samples begin: at title lines (poem), anywhere (stream); auto: poem if the text has +++ titles"
OPTIMIZER_HELP = "muon: Muon for the layers' matrices, AdamW for the rest; adamw: AdamW for all (then use --lr 0.003)"
EMA_HELP = "decay of an exponential moving average of the weights, which then is measured and kept; 0: no average"
ACCUM_HELP = "compute each batch in this many parts, one after another: the same result, in less memory"
DTYPE_HELP = "type of the large products; auto: bfloat16 on GPUs that have it and on CPUs that are faster with it"
POSITIVE, SIZE, RATE = number(int, 1, 10**9), number(int, 1, 10**6), number(float, 0, 1e6)


def parse_args(args=None):
    """The command line, or the words in `args`, as a namespace."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the folder for this run's files")
    parser.add_argument("--resume", action="store_true", help="go on with the run in CKPT_PATH")
    parser.add_argument("--overwrite", action="store_true", help="start afresh in CKPT_PATH; the run in it is lost")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to compute")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=1, help="of weights, windows and dropout")

    add_model_flags(parser.add_argument_group("model"))
    add_training_flags(parser.add_argument_group("training"))
    args = parser.parse_args(args)
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    return args


def add_model_flags(group) -> None:
    group.add_argument("--model", default="mini", choices=PRESETS, help=MODEL_HELP)
    group.add_argument("--n_layer", type=SIZE, help="number of transformer layers")
    group.add_argument("--n_head", type=SIZE, help="number of attention heads h in a layer")
    group.add_argument("--n_embd", type=SIZE, help="number of feature channels C, a multiple of h")
    group.add_argument("--dropout", type=number(float, 0, below=1), help="probability that an activation is dropped")
    group.add_argument("--max_seq_len", type=SIZE, default=64, help="length L of the sequences")
    group.add_argument("--no_pos", action="store_true", help="leave out the position embedding")
    group.add_argument("--no_res", action="store_true", help="leave out the residual connections")


def add_training_flags(group) -> None:
    group.add_argument(
        "--iters",
        type=POSITIVE,
        default=2000,
        help="number of iterations; may be raised on --resume: the learning rates then fall to 0 at the new end",
    )
    group.add_argument("--batchsize", type=SIZE, default=16, help="sequences in a batch, B")
    group.add_argument("--accum", type=SIZE, default=1, help=ACCUM_HELP)
    group.add_argument("--windows", default="auto", choices=["auto", "poem", "stream"], help=WINDOWS_HELP)
    group.add_argument("--optimizer", default="muon", choices=["adamw", "muon"], help=OPTIMIZER_HELP)
    group.add_argument("--lr", type=RATE, default=0.01, help="AdamW's highest learning rate")
    group.add_argument("--muon_lr", type=RATE, default=0.008, help="Muon's highest learning rate")
    group.add_argument("--warmup_iters", type=number(int, 0), default=100, help="iterations of linear warm-up")
    group.add_argument("--weight_decay", type=RATE, default=0.1, help="weight decay of the matrices")
    group.add_argument("--grad_clip", type=RATE, default=1.0, help="clip the gradient at this norm; 0: never")
    group.add_argument("--ema", type=number(float, 0, below=1), default=0.0, help=EMA_HELP)
    group.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help=DTYPE_HELP)
    group.add_argument("--compile", action="store_true", help="torch.compile the model: slow to start, then faster")
    group.add_argument("--eval_interval", type=POSITIVE, default=100, help="iterations between evaluations")
    group.add_argument("--eval_iters", type=POSITIVE, default=10, help="batches of validation text per evaluation")
    group.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard, into CKPT_PATH")


def main() -> None:
    args = parse_args()
    keep_large_blocks()
    trainer = Trainer(args)
    with end_together(trainer.parallel):
        train_in(trainer)


def train_in(trainer: Trainer) -> None:
    """A whole run in its folder; of several processes, only the first writes and reports."""
    args, main = trainer.args, trainer.parallel.main
    if main:
        check_folder(trainer.folder, args.resume, args.overwrite)
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
        report(trainer)


def report(trainer: Trainer) -> None:
    """Writes result.json and prints what it says."""
    result = trainer.result()
    with atomic_write(trainer.folder / "result.json", "w") as file:
        json.dump(result, file, indent=2)
    for measure in [name for name in ("poem", "stream") if f"{name}_val_loss" in result]:
        loss = result[f"{measure}_val_loss"]
        print(f"whole validation split, by {measure}: loss {loss:.4f}, perplexity {perplexity(loss):.2f}")
    print(f"{result['seconds']:.0f} s of training, {result['tokens_per_second']:,.0f} tokens/s; see {trainer.folder}")


if __name__ == "__main__":
    run(main)
