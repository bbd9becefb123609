"""How a model is saved and loaded, with its vocabulary."""

import io
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model import GPT, GPTConfig
from songci.cli import UserError, atomic_write
from songci.corpus.vocabulary import Vocabulary
from songci.corpus.windows import title_ids

MAX_SIZE = 1 << 21  # of anything in a configuration: more than Unicode has characters


def save_checkpoint(path: Path, model: GPT, vocabulary: Vocabulary, title: tuple[int, ...] = (), **extra) -> None:
    """Writes the model, with all that is needed to use it, in one step; `extra` are plain values and tensors."""
    buffer = io.BytesIO()  # torch.save into a file hides why a write fails
    checkpoint = {
        "config": asdict(model.config),
        "vocabulary": asdict(vocabulary),
        "title": list(title),
        "model": model.state_dict(),
        **extra,
    }
    torch.save(checkpoint, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


class _NoInitialisation(TorchFunctionMode):
    """Skips torch.nn.init's functions: on the meta device they import torch's compiler, which takes a second."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in (kwargs or {}) else args[0]
        return func(*args, **(kwargs or {}))


def _checked_config(fields: dict) -> GPTConfig:
    """The configuration in a checkpoint. Raises ValueError if no training can have made it."""
    config = GPTConfig(**fields)
    sizes = (config.vocab_size, config.max_seq_len, config.n_layer, config.n_head, config.n_embd)
    if not all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes):
        raise ValueError("its sizes are not valid")
    if type(config.dropout) not in (int, float) or not 0 <= config.dropout < 1:
        raise ValueError("its dropout is not valid")
    if type(config.no_pos) is not bool or type(config.no_res) is not bool:
        raise ValueError("no_pos and no_res are yes or no")
    return config


def _check_weights(weights: dict[str, Tensor], size: int) -> None:
    """Raises ValueError for weights that a file of `size` bytes cannot hold, and for infinite ones or NaN."""
    stored = {}  # by address: the head has the embedding's; one number may be shown as a matrix of any size
    for weight in weights.values():
        if type(weight) is not Tensor or weight.dtype != torch.float32 or not weight.is_contiguous():
            raise ValueError("its weights are of another kind")
        stored[weight.untyped_storage().data_ptr()] = weight.untyped_storage().nbytes()
    if sum(stored.values()) > size:
        raise ValueError("its weights are larger than the file")
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ValueError("its weights are not finite")


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> tuple[GPT, Vocabulary, dict]:
    """Reads what save_checkpoint() wrote: the model, its vocabulary, and the whole dictionary.

    Runs no code that a hostile file may hold. Raises UserError if the file is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: run train.py --ckpt_path {path.parent} first")
    file = path.open("rb")
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                raise ValueError("a part is damaged")
        file.seek(0)
        checkpoint = torch.load(file, map_location=device, weights_only=True)
        config, weights = _checked_config(checkpoint["config"]), checkpoint["model"]
        vocabulary = Vocabulary(**checkpoint["vocabulary"])
        if checkpoint["title"] not in ([], list(title_ids(vocabulary))):
            raise ValueError("its title mark is not valid")
        if len(vocabulary) != config.vocab_size or len(weights) < config.n_layer:
            raise ValueError("its parts do not belong together")
        _check_weights(weights, path.stat().st_size)
        with torch.device("meta"), _NoInitialisation():  # no memory before the weights are seen to fit
            model = GPT(config)
        model.load_state_dict(weights, assign=True)
        model.head.weight = model.token_embedding.weight
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"checkpoint {path} is damaged or not ours ({type(error).__name__}): train again") from None
    finally:
        file.close()
    return model, vocabulary, checkpoint


class Trained(NamedTuple):
    """What a training run has made.

    title: the token ids of "\n+++" if it was trained on windows of poems, so that sampling begins a new window where
    they occur; empty if its windows began anywhere.
    """

    model: GPT
    vocabulary: Vocabulary
    title: tuple[int, ...] = ()


def load_model(ckpt_path: str | Path, device: str | torch.device = "cpu") -> Trained:
    """The best model of a training run, ready to use. Raises UserError if there is none."""
    model, vocabulary, checkpoint = load_checkpoint(Path(ckpt_path) / "best.pt", device)
    return Trained(model.eval(), vocabulary, tuple(checkpoint["title"]))
