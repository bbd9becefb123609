"""last.pt, from which a run goes on as if never stopped, and what a run takes from another."""

import io
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from model import GPT, GPTConfig
from songci.cli import UserError, atomic_write
from songci.corpus.vocabulary import Vocabulary, check_same_vocabulary
from songci.runs import Trained, as_gpt, check_same_data, load_trained, run_folder

SAME_ON_RESUME = [  # flags that a run keeps to its end
    *("model", "n_layer", "n_head", "n_embd", "dropout", "no_pos", "no_res", "max_seq_len", "windows", "batchsize"),
    *("seed", "init_from", "optimizer", "lr", "muon_lr", "weight_decay", "warmup_iters", "grad_clip", "ema"),
]
THIS_TIME = ["ckpt_path", "resume", "overwrite", "compile"]  # flags that are not taken over from the run
SIZES = ["n_layer", "n_head", "n_embd", "no_pos", "no_res"]  # of a model whose weights another can begin with


def save_checkpoint(path: Path, model: GPT, vocabulary: Vocabulary, title: tuple[int, ...] = (), **extra) -> None:
    """Writes the model, with all that is needed to use it, in one step; `extra` are plain values and tensors.

    title: as in Trained.
    """
    own = {"config": asdict(model.config), "vocabulary": asdict(vocabulary), "title": list(title)}
    buffer = io.BytesIO()  # torch.save into a file hides why a write fails
    torch.save({**own, "model": model.state_dict(), **extra}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> tuple[GPT, Vocabulary, dict]:
    """Reads what save_checkpoint() wrote: the model, its vocabulary, and the whole dictionary.

    Runs no code that the file may hold. Raises UserError if it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: run train.py --ckpt_path {path.parent} first")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if archive.testzip() is not None:  # by the checksum of each part; torch does not look at these
                raise ValueError("a part is damaged")
            if any(part.external_attr for part in archive.infolist()):  # torch takes such a part for an empty folder
                raise ValueError("a part is marked as a folder")
        checkpoint = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        vocabulary = Vocabulary(**checkpoint["vocabulary"])
        model = GPT(GPTConfig(**checkpoint["config"])).to(device)
        if len(vocabulary) != model.config.vocab_size:
            raise ValueError("its parts do not belong together")
        model.load_state_dict(checkpoint["model"])
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"checkpoint {path} is damaged or not ours ({type(error).__name__}): train again") from None
    return model, vocabulary, checkpoint


def trained_of(model: GPT, vocabulary: Vocabulary, title: tuple[int, ...], data: str, **measured: float) -> Trained:
    """What best.safetensors is to hold of a model; measured: iteration and val_loss."""
    weights = {name: weight.float().cpu().numpy() for name, weight in model.state_dict().items()}
    del weights["head.weight"]  # it is the token embedding
    return Trained(asdict(model.config), weights, vocabulary, title, data, measured)


def begin_with(model: GPT, ckpt_path: str, data_root: str) -> None:
    """Gives the model the weights of the best model of another run.

    A shorter window takes the first positions; in a longer one, those that the other lacks stay as they were. Raises
    UserError if it is missing or damaged, or if sizes or vocabularies differ.
    """
    other = as_gpt(load_trained(ckpt_path, data_root), model.device)
    for name in SIZES:
        own, theirs = getattr(model.config, name), getattr(other.config, name)
        if own != theirs:
            raise UserError(f"--{name} {own} contradicts --init_from {ckpt_path}, which has {theirs}")
    weights = other.state_dict()
    if not model.config.no_pos:
        own = model.position_embedding.weight.detach()
        both = min(len(own), other.config.max_seq_len)
        weights["position_embedding.weight"] = torch.cat([other.position_embedding.weight[:both], own[both:]])
    model.load_state_dict(weights)


def save_last(trainer) -> None:
    """Writes the state of train.py's Trainer into last.pt."""
    state = trainer.state_dict() | {"data": trainer.data, "args": vars(trainer.args)}
    save_checkpoint(trainer.folder / "last.pt", trainer.model, trainer.vocabulary, trainer.title, **state)


def resumed_settings(args: Namespace, given: set[str]) -> Namespace:
    """The settings of the run in args.ckpt_path, as its last.pt has them, with what may change on the way.

    given: the names of the flags that the user gave. Raises UserError if there is no such run, if flags contradict it,
    or if it has reached --iters already.
    """
    path = run_folder(args.ckpt_path) / "last.pt"
    if not path.is_file():
        raise UserError(f"nothing to resume: no last.pt in {path.parent}; start without --resume")
    model, _, checkpoint = load_checkpoint(path)
    given = {name: value for name, value in vars(args).items() if name in given and value != "auto"}
    with resumable(path):
        run = {**checkpoint["args"], **asdict(model.config)}
        other = [name for name in SAME_ON_RESUME if name in given and given[name] != run[name]]
        settings = Namespace(**vars(args) | checkpoint["args"])
        iters, iteration = checkpoint["args"]["iters"], checkpoint["iteration"]
    if other:
        flags = " ".join(f"--{name} {given[name]}" for name in other)
        values = ", ".join(f"{name} {run[name]}" for name in other)
        verb, them = ("contradicts", "it") if len(other) == 1 else ("contradict", "them")
        raise UserError(f"{flags} {verb} {path}, which has {values}: leave {them} out")
    for name, value in vars(args).items():
        if name in THIS_TIME or (name in given and name not in SAME_ON_RESUME):
            setattr(settings, name, value)
    if settings.iters < iteration or settings.iters == iteration != iters:
        raise UserError(f"--iters {settings.iters}: {path} is at iteration {iteration} already; give more")
    return settings


def resume(trainer) -> None:
    """Restores the state in last.pt. Raises UserError if it is damaged, or is of another vocabulary or text."""
    path = trainer.folder / "last.pt"
    model, vocabulary, checkpoint = load_checkpoint(path, trainer.device)
    check_same_vocabulary(vocabulary, path, trainer.vocabulary, trainer.args.data_root)
    check_same_data(checkpoint.get("data", ""), path, trainer.data, trainer.args.data_root)
    with resumable(path):
        trainer.load_state_dict({**checkpoint, "model": model.state_dict()})


@contextmanager
def resumable(path: Path) -> Iterator[None]:
    """Raises UserError in place of the errors of a state that lacks something or does not fit."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be resumed from ({error!r}): start again with --overwrite") from None
