"""The folder of a training run: what is in it, and the model that it made, which is read without torch.

best.safetensors holds the weights of model.GPT and, in its metadata, what is needed to use them: any program that reads
safetensors can. A SHA-256 of all of it finds out a file that was damaged.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from songci.cli import UserError, atomic_write
from songci.corpus.vocabulary import Vocabulary, check_same_vocabulary, load_vocabulary

BEST = "best.safetensors"


@dataclass(frozen=True)
class Trained:
    """What a training run has made."""

    config: dict  # the fields of model.GPTConfig
    weights: dict[str, np.ndarray]  # model.GPT's state_dict in float32, without the head, which is the token embedding
    vocabulary: Vocabulary
    # The token ids of "\n+++" if it was trained on windows of poems, so that sampling begins a new window where they
    # occur; empty if its windows began anywhere
    title: tuple[int, ...] = ()
    data: str = ""  # the fingerprint() of what it was trained on
    measured: dict[str, float] = field(default_factory=dict)  # iteration and val_loss

    @property
    def max_seq_len(self) -> int:
        return self.config["max_seq_len"]

    @property
    def num_parameters(self) -> int:
        return sum(weight.size for weight in self.weights.values())


def run_folder(ckpt_path: str | Path) -> Path:
    """`ckpt_path` as a path. Raises UserError if it is a file, such as the best.safetensors in the folder."""
    folder = Path(ckpt_path)
    if folder.is_file():
        raise UserError(f"{ckpt_path} is a file: give the folder of the run, {folder.parent}")
    return folder


def save_trained(path: Path, trained: Trained) -> None:
    """Writes a model with all that is needed to use it, in one step."""
    from safetensors.numpy import save

    about = {key: value for key, value in asdict(trained).items() if key != "weights"}
    text = json.dumps(about, ensure_ascii=False, sort_keys=True)
    metadata = {"songci": text, "sha256": digest(text, trained.weights)}
    with atomic_write(path) as file:
        file.write(save(trained.weights, metadata))


def digest(about: str, weights: Mapping[str, np.ndarray]) -> str:
    """A SHA-256 of the metadata and the weights, their names, types and shapes."""
    found = hashlib.sha256(about.encode())
    for name, weight in sorted(weights.items()):
        found.update(f"{name} {weight.dtype} {weight.shape}".encode())
        found.update(np.ascontiguousarray(weight))
    return found.hexdigest()


def load_trained(ckpt_path: str | Path, data_root: str | Path | None = None) -> Trained:
    """The best model of a training run.

    data_root: the data folder that it is used with. Raises UserError if there is no model, if it is damaged, or if they
    do not belong together.
    """
    from safetensors import safe_open
    from safetensors.numpy import load

    prepared = None if data_root is None else load_vocabulary(data_root)
    path = run_folder(ckpt_path) / BEST
    if not path.is_file():
        if path.with_name("best.pt").is_file():
            raise UserError(f"the run in {ckpt_path} is of an earlier version, with best.pt: train it again")
        raise UserError(f"no model {path}: run train.py --ckpt_path {ckpt_path} first")
    try:
        weights = load(path.read_bytes())
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        if metadata["sha256"] != digest(metadata["songci"], weights):
            raise ValueError("its SHA-256 is another one")
        about = json.loads(metadata["songci"])
        about |= {"vocabulary": Vocabulary(**about["vocabulary"]), "title": tuple(about["title"])}
        weights = {name: weight.astype(np.float32, copy=False) for name, weight in weights.items()}
        trained = Trained(weights=weights, **about)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path} is damaged or not ours ({type(error).__name__}): train again") from None
    if prepared is not None:
        check_same_vocabulary(trained.vocabulary, ckpt_path, prepared, data_root)
        return Trained(**{**vars(trained), "vocabulary": prepared})  # which may know more names of tunes
    return trained


def check_same_data(trained: str, ckpt_path: str | Path, prepared: str, data_root: str | Path) -> None:
    """Raises UserError if the fingerprint of what a run was trained on is not that of the data set."""
    if trained and trained != prepared:
        changed = f"{ckpt_path} was trained on another text than {data_root} holds now"
        raise UserError(f"{changed}: give its --data_root, prepare that text again, or train again")


def perplexity(loss: float) -> float:
    """e^loss; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 709 else math.inf


def as_gpt(trained: Trained, device="cpu"):
    """The model as model.GPT on a torch device, ready to be used."""
    import torch

    from model import GPT, GPTConfig

    model = GPT(GPTConfig(**trained.config))
    weights = {name: torch.from_numpy(weight) for name, weight in trained.weights.items()}
    model.load_state_dict({**weights, "head.weight": weights["token_embedding.weight"]})
    return model.to(device).eval()
