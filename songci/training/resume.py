"""last.pt: everything that an interrupted run needs to go on as if it had never stopped."""

import math
from dataclasses import asdict
from itertools import pairwise

from model import GPT
from songci.cli import UserError
from songci.corpus.vocabulary import check_same_vocabulary
from songci.training.checkpoint import load_checkpoint, save_checkpoint
from songci.training.device import choose_dtype
from songci.training.optim import load_state
from songci.training.runlog import EVALUATION_FIELDS, LOG_FIELDS, WHOLE_FIELDS

SAME_ON_RESUME = [  # flags, and fields of the model's configuration
    *("n_layer", "n_head", "n_embd", "dropout", "no_pos", "no_res", "max_seq_len", "windows", "batchsize", "seed"),
    *("optimizer", "lr", "muon_lr", "weight_decay", "warmup_iters", "grad_clip", "ema"),
]
PROGRESS = ["iteration", "best_loss", "seconds", "rows", "recent"]  # attributes of train.py's Trainer


def save_last(trainer) -> None:
    """Writes the trainer's state into last.pt. Batches and dropout are functions of the iteration: none is kept."""
    save_checkpoint(
        trainer.folder / "last.pt",
        trainer.model,
        trainer.vocabulary,
        trainer.title,
        average=None if trainer.average is None else trainer.average.state_dict(),
        optimizers=[optimizer.state_dict() for optimizer in trainer.optimizers],
        scaler=trainer.scaler.state_dict(),
        args=vars(trainer.args),
        **{name: getattr(trainer, name) for name in PROGRESS},
    )


def resume(trainer) -> None:
    """Restores the state in last.pt.

    Raises UserError if it is damaged, has other settings or another vocabulary, or has reached --iters already.
    """
    path, args = trainer.folder / "last.pt", trainer.args
    model, vocabulary, checkpoint = load_checkpoint(path, trainer.device)
    check_same_vocabulary(vocabulary, path, trainer.vocabulary, args.data_root)
    try:
        before = {**checkpoint["args"], **asdict(model.config)}
        wanted = {**vars(args), **asdict(trainer.model.config)}
        for name in SAME_ON_RESUME:
            if type(before[name]) is not type(wanted[name]):
                raise ValueError(f"it has no valid {name}")
            if before[name] != wanted[name]:
                raise UserError(f"--{name} {wanted[name]} contradicts {path}, which has {before[name]}")
        check_progress(checkpoint)
        for name in PROGRESS:
            setattr(trainer, name, checkpoint[name])
        restore(trainer, model, checkpoint)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be resumed from ({error!r}): start again with --overwrite") from None
    last = trainer.rows[-1] if trainer.rows else {"iter": 0}
    needed = {*WHOLE_FIELDS} if trainer.by_poem else {"stream_val_loss", "stream_perplexity"}
    finished = last["iter"] == trainer.iteration and needed <= last.keys()
    if args.iters < trainer.iteration or (args.iters == trainer.iteration and not finished):
        raise UserError(f"--iters {args.iters}: {path} is at iteration {trainer.iteration} already; give more")


def restore(trainer, model: GPT, checkpoint: dict) -> None:
    """Puts weights, optimisers and dtype back as they were in the checkpoint. Raises ValueError if they do not fit."""
    trainer.model.load_state_dict(model.state_dict())
    if trainer.average is not None:
        trainer.average.load_state_dict(checkpoint["average"])
        if not all(value.isfinite().all() for value in trainer.average.parameters()):
            raise ValueError("its average is not finite")
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizers"], strict=True):
        load_state(optimizer, state, trainer.iteration)
    trainer.scaler.load_state_dict(checkpoint["scaler"])
    if trainer.auto_dtype:  # the measurement might come out differently this time
        trainer.args.dtype = checkpoint["args"]["dtype"]
        if trainer.args.dtype not in ("float32", "bfloat16"):
            raise ValueError("it has no valid dtype")
        trainer.dtype = trainer.training_loss.dtype = choose_dtype(trainer.args.dtype, trainer.device)


def check_progress(checkpoint: dict) -> None:
    """Raises ValueError for progress that no run can have made, and for a log that it cannot have written by then."""
    iteration, seconds, recent = (checkpoint[name] for name in ("iteration", "seconds", "recent"))
    if type(iteration) is not int or not 0 < iteration <= 10**9:
        raise ValueError("it has no valid iteration")
    if type(seconds) is not float or not 0 < seconds < math.inf:
        raise ValueError("it has no valid seconds")
    if type(checkpoint["best_loss"]) is not float or math.isnan(checkpoint["best_loss"]):
        raise ValueError("it has no valid best loss")
    if type(recent) is not list or not all(type(loss) is float and math.isfinite(loss) for loss in recent):
        raise ValueError("it has no valid recent losses")
    rows, needed = checkpoint["rows"], set(EVALUATION_FIELDS)
    if type(rows) is not list or not all(type(row) is dict and needed <= row.keys() <= set(LOG_FIELDS) for row in rows):
        raise ValueError("its rows are not a log")
    if any(type(value) is not float for row in rows for name, value in row.items() if name != "iter"):
        raise ValueError("its log holds something other than numbers")
    iters = [0, *(row["iter"] for row in rows), iteration + 1]
    if not all(type(i) is int for i in iters) or not all(a < b for a, b in pairwise(iters)):
        raise ValueError("its log is out of order")
