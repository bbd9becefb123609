"""The losses that are measured on the validation split: of its poems, and of the text as one stream."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import GPT
from songci.corpus.windows import IGNORE, PoemWindows, stack_windows
from songci.training.loss import perplexity


def poem_loss(model: GPT, tokens: np.ndarray, windows: PoemWindows, batchsize: int) -> float:
    """Mean loss in nats a character of the poems, each character predicted once."""
    total, count = 0.0, 0
    for i in range(0, len(windows), batchsize):
        batch = windows[i : i + batchsize]
        inputs, targets = stack_windows(tokens, batch.start, model.config.max_seq_len)
        place = np.arange(model.config.max_seq_len)
        outside = (place < batch.scored[:, None]) | (place >= batch.length[:, None])
        total += loss_sum(model, inputs, targets.masked_fill(torch.from_numpy(outside), IGNORE))
        count += int((~outside).sum())
    return total / count


def stream_loss(model: GPT, tokens: np.ndarray, batchsize: int, max_windows: int | None = None) -> float:
    """Mean loss in nats a token over consecutive windows, each token once; or over max_windows of them, evenly spread.

    tokens: (n,) ids, n >= 2. Perplexity is e to the power of this.
    """
    length = model.config.max_seq_len
    starts = np.arange(0, len(tokens) - 1, length)
    if max_windows is not None and max_windows < len(starts):
        starts = starts[np.arange(max_windows) * len(starts) // max_windows]
    total, count = 0.0, 0
    for i in range(0, len(starts), batchsize):
        inputs, targets = stack_windows(tokens, starts[i : i + batchsize], length)
        total += loss_sum(model, inputs, targets)
        count += int((targets != IGNORE).sum())
    return total / count


@dataclass(frozen=True)
class Measures:
    """The validation split, and the losses that are measured on it, in nats a character."""

    tokens: np.ndarray
    poems: PoemWindows
    batchsize: int

    def poem_loss(self, model: GPT, max_windows: int | None = None) -> float:
        """Mean loss of the poems, or of max_windows windows evenly spread over them."""
        total = len(self.poems)
        count = min(max_windows or total, total)
        return poem_loss(model, self.tokens, self.poems[np.arange(count) * total // count], self.batchsize)

    def stream_loss(self, model: GPT, max_windows: int | None = None) -> float:
        """Mean loss of the stream, or of max_windows windows evenly spread over it."""
        return stream_loss(model, self.tokens, self.batchsize, max_windows)

    def whole(self, model: GPT) -> dict[str, float]:
        """Both measures over the whole split, and their perplexities; those of poems are left out if there are none."""
        losses = {"stream": self.stream_loss(model)}
        if len(self.poems):
            losses["poem"] = self.poem_loss(model)
        named = {f"{name}_val_loss": loss for name, loss in losses.items()}
        return named | {f"{name}_perplexity": perplexity(loss) for name, loss in losses.items()}


@torch.inference_mode()
def loss_sum(model: GPT, inputs: Tensor, targets: Tensor) -> float:
    """The sum of the losses at the targets that count, without dropout."""
    training = model.training
    model.eval()
    features, _ = model.features(inputs.to(model.device))
    model.train(training)
    targets = targets.to(model.device)
    counts = targets != IGNORE  # the head, half of the work, is for these only
    return F.cross_entropy(model.head(features[counts]).float(), targets[counts], reduction="sum").item()
