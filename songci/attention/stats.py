"""What a trained model does with a text, in numbers: its attention, head by head, and its predictions.

h: heads, L: characters of the text, V: characters of the vocabulary. Layers and heads are counted from 0, as bertviz
counts them.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from model import GPT
from songci import fonts
from songci.cli import PACKAGE, UserError
from songci.corpus.vocabulary import Vocabulary, load_dataset
from songci.corpus.windows import ScoredWindows
from songci.forms.poems import is_character
from songci.forms.prompt import as_in_corpus
from songci.runs import BEST, as_gpt, load_trained
from songci.text import printable, read_text
from songci.training.measure import mean_loss

POEM = PACKAGE.parent / "data/attnvis/rumengling.txt"


@dataclass(frozen=True, repr=False)
class Reading:
    """A text that a model has read, in one window, and what the model made of it."""

    tokens: list[str]  # L labels of the characters, such as ↵ for a line end
    weights: list[Tensor]  # (1, h, L, L) per layer: row i is how character i looks at the characters 0 … i
    text: str  # what was read: one window at most
    ids: Tensor  # (1, L)
    logits: Tensor  # (L, V): row i scores the character after character i
    model: GPT
    vocabulary: Vocabulary
    name: str  # of the run
    note: str  # says so if the text was cut; otherwise empty
    title: tuple[int, ...] = ()  # as in runs.Trained

    @property
    def num_heads(self) -> int:
        return self.weights[0].size(1)

    def check(self, layers: Sequence[int] = (), heads: Sequence[int] | None = None) -> None:
        """Raises UserError for a layer or a head that the model lacks, and for no heads; None: all of them."""
        for layer in layers:
            if not 0 <= layer < len(self.weights):
                raise UserError(f"no layer {layer}: {self.name} has the layers 0 to {len(self.weights) - 1}")
        if heads is not None and not (heads and set(heads) <= set(range(self.num_heads))):
            raise UserError(f"heads {heads}: {self.name} has the heads 0 to {self.num_heads - 1}; name at least one")

    def __repr__(self) -> str:
        return f"{self.name}: {len(self.weights)} layers × {self.num_heads} heads, {len(self.text)} characters"


@torch.no_grad()  # not inference_mode: its tensors could not take part in later computations with gradients
def read(model: GPT, vocabulary: Vocabulary, text: str, name: str = "", title: tuple[int, ...] = ()) -> Reading:
    """Runs the model on the first window of `text`, by the explicit path, which returns the attention weights.

    Raises UserError if the text is empty or has characters that the vocabulary lacks.
    """
    if not text:
        raise UserError("the text is empty: give at least one character")
    n, window = len(text), model.config.max_seq_len
    cut = f"The text has {n} characters; the model sees {window} at a time: these are the first {window}."
    text, note = text[:window], cut if n > window else ""
    ids = torch.from_numpy(vocabulary.encode(text).astype("int64"))[None]
    logits, weights = model(ids, need_weights=True)
    tokens = [fonts.label(char) for char in text]
    return Reading(tokens, weights, text, ids, logits[0], model, vocabulary, name, note, title)


def example(data_root: str | Path) -> str:
    """李清照's 如梦令, or the beginning of the validation text of a corpus that lacks its characters."""
    vocabulary, _, tokens = load_dataset(data_root)
    poem = read_text(POEM)
    if set(poem) <= set(vocabulary.chars):
        return poem
    text = vocabulary.decode(tokens[:10_000].tolist())
    return text[text.find("\n+++") + 1 :][:64]  # from a title on, if there is one


def load(data_root: str | Path, ckpt_path: str | Path, text: str) -> Reading:
    """read() with the model of a run, of the text as_in_corpus().

    Raises UserError too if the run or its data set is missing or of another.
    """
    trained = load_trained(ckpt_path, data_root)
    text = as_in_corpus(text, trained.vocabulary)
    return read(as_gpt(trained), trained.vocabulary, text, printable(Path(ckpt_path).resolve().name), trained.title)


def load_existing(data_root: str | Path, ckpt_paths: list[str], text: str) -> list[Reading]:
    """load() for each of the runs that exists; prints how to make the others."""
    readings = []
    for path in ckpt_paths:
        if (Path(path) / BEST).is_file():
            readings.append(load(data_root, path, text))
        else:
            flag = next((f" --{flag}" for flag in ("no_pos", "no_res") if path.endswith(flag)), "")
            print(f"no run {path}: python train.py --ckpt_path {path}{flag} makes it")
    return readings


def top_predictions(reading: Reading, k: int = 5) -> tuple[list[str], np.ndarray]:
    """The k likeliest next characters at each position, the best first: L strings of k, and probabilities (L, k)."""
    probs, ids = torch.softmax(reading.logits, dim=-1).topk(min(k, reading.logits.size(-1)))
    return [reading.vocabulary.decode(row) for row in ids.tolist()], probs.numpy()


def character_losses(reading: Reading) -> np.ndarray:
    """(L,): -ln p of each character given those before it, in nats; NaN for the first, which nothing predicts."""
    losses = F.cross_entropy(reading.logits[:-1], reading.ids[0, 1:], reduction="none")
    return np.append(np.nan, losses.numpy())


@torch.inference_mode()
def text_loss(reading: Reading, logits: Tensor | None = None) -> float:
    """The mean loss of the text in nats, by its model in its present state or by logits (L, V); NaN if L = 1."""
    logits = reading.model(reading.ids)[0][0] if logits is None else logits
    return F.cross_entropy(logits[:-1], reading.ids[0, 1:]).item()


STATISTICS = ("entropy (nats)", "mean distance", "weight: previous character", "weight: same place, previous clause")


def head_statistics(weights: list[Tensor], text: str) -> np.ndarray:
    """(4, layers, h): what STATISTICS names, each a mean over the characters of `text` for which it is defined.

    weights: (1, h, L, L) per layer. Entropy: -Σ_j w_ij ln w_ij, 0 for a head that looks at one character only.
    Distance: Σ_j w_ij (i - j). Previous character: w_i,i-1. These three from the second character on, as the first has
    no choice. Same place, previous clause: w_ij for the pairs of same_places(). NaN if there is nothing to average.
    """
    w = torch.stack([layer[0] for layer in weights]).double()  # (layers, h, L, L)
    length = w.size(-1)
    position = torch.arange(length)
    entropy = -torch.special.xlogy(w, w).sum(-1)[..., 1:].mean(-1)
    distance = (w * (position[:, None] - position)).sum(-1)[..., 1:].mean(-1)
    previous = w[..., position[1:], position[:-1]].mean(-1)
    pairs = same_places(text)
    clause = w[..., [i for i, _ in pairs], [j for _, j in pairs]].mean(-1)
    return torch.stack([entropy, distance, previous, clause]).numpy()


def uniform_statistics(text: str) -> np.ndarray:
    """(4,): the same for a head that looks equally at all characters up to its own: the baseline."""
    weights = torch.ones(len(text), len(text)).tril()
    return head_statistics([(weights / weights.sum(-1, keepdim=True))[None, None]], text)[:, 0, 0]


def same_places(text: str) -> list[tuple[int, int]]:
    """Pairs (i, j): j stands as far into the previous clause as i stands into its own; titles do not count."""
    lines = (range(*line.span()) for line in re.finditer("[^\n]+", text) if not line[0].startswith("+++"))
    runs = (run for line in lines for within, run in groupby(line, lambda i: is_character(text[i])) if within)
    clauses = map(list, runs)
    return [pair for before, clause in pairwise(clauses) for pair in zip(clause, before, strict=False)]


def without_head(model: GPT, layer: int, head: int) -> RemovableHandle:
    """Within `with`, one head is off: its output is set to zero before W^O mixes the heads (Michel et al. 2019)."""
    d = model.config.n_embd // model.config.n_head

    def silence(_, inputs):
        x = inputs[0].clone()  # (B, L, C), the outputs of the heads side by side
        x[..., head * d : (head + 1) * d] = 0
        return (x,)

    return model.layers[layer].attention.out.register_forward_pre_hook(silence)


def head_ablation(model: GPT, loss: Callable[[], float]) -> tuple[float, np.ndarray]:
    """The loss of the whole model, and (layers, h): how much it rises when each head is switched off.

    loss: computes the loss of the model in its present state, as text_loss() and validation_loss() do.
    """
    whole = loss()
    rises = np.zeros((model.config.n_layer, model.config.n_head))
    for layer, head in tqdm(list(np.ndindex(rises.shape)), desc="heads", leave=False, disable=None):
        with without_head(model, layer, head):
            rises[layer, head] = loss() - whole
    return whole, rises


def validation_loss(data_root: str | Path, model: GPT, title: tuple[int, ...], num_windows: int) -> Callable[[], float]:
    """A function that computes the model's loss, in nats a character, on windows spread over the validation text.

    Raises UserError if data_root is not a prepared data set.
    """
    _, _, tokens = load_dataset(data_root)
    windows = ScoredWindows.of_poems(tokens, title, model.config.max_seq_len)
    windows = windows if len(windows) else ScoredWindows.of_stream(tokens, model.config.max_seq_len)
    first = windows[windows.scored == 0]  # of each poem, the window with the title
    chosen = first[np.unique(np.arange(num_windows) * len(first) // num_windows)]
    return lambda: mean_loss(model, tokens, chosen, batchsize=16)


@torch.inference_mode()
def logit_lens(reading: Reading) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What the model would predict if it ended early (nostalgebraist 2020, "interpreting GPT: the logit lens").

    The last LayerNorm and the output layer are applied to the embeddings and to the output of each layer.
    Returns layers + 1 strings, of the likeliest next character at each of the L positions; their probabilities
    (layers + 1, L); and the mean loss of the text, (layers + 1,), in nats a character. The last is the model itself.
    """
    states, model = [], reading.model
    with ExitStack() as hooks:
        for module in (*model.layers, model.norm):
            hooks.enter_context(module.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])))
        model(reading.ids)
    logits = [model.head(model.norm(state))[0] for state in states]  # layers + 1 of (L, V)
    probs, ids = torch.stack([torch.softmax(row, dim=-1) for row in logits]).max(-1)
    losses = np.array([text_loss(reading, row) for row in logits])
    return [reading.vocabulary.decode(row) for row in ids.tolist()], probs.numpy(), losses
