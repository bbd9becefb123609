"""How a text is cut into windows of max_seq_len tokens: for training, and for measuring the loss."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cli import UserError
from model import GPT


class Windows:
    """Training samples: windows of seq_len tokens and, as targets, the same shifted by one.

    Drawn without replacement: each epoch cuts the text anew, at a fresh offset, and goes through its windows in a fresh
    order. All is a function of the seed and the sample's number, so a resumed run needs no more than its iteration.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, seed: int):
        if len(tokens) <= seq_len:
            raise UserError(f"the training split has {len(tokens)} characters: too few for --max_seq_len {seq_len}")
        self.tokens, self.seq_len, self.seed = tokens, seq_len, seed
        self.per_epoch = max(1, (len(tokens) - seq_len) // seq_len)
        self.epoch, self.starts = -1, None

    def batch(self, iteration: int, batchsize: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (batchsize, seq_len) of the iteration, counted from 0."""
        samples = range(iteration * batchsize, (iteration + 1) * batchsize)
        return stack_windows(self.tokens, [self._start(sample) for sample in samples], self.seq_len)

    def _start(self, sample: int) -> int:
        epoch, place = divmod(sample, self.per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng((self.seed, epoch))
            slack = len(self.tokens) - 1 - self.per_epoch * self.seq_len
            offset = rng.integers(min(slack, self.seq_len - 1) + 1)
            self.starts = offset + self.seq_len * rng.permutation(self.per_epoch)
            self.epoch = epoch
        return int(self.starts[place])


def stack_windows(tokens: np.ndarray, starts: list[int], length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, length) from the places in `tokens`."""
    windows = np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int64)
    return torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, 1:])


@torch.inference_mode()
def validation_loss(model: GPT, tokens: np.ndarray, batchsize: int, max_windows: int | None = None) -> float:
    """Mean loss in nats a token over consecutive windows, each token once; or over max_windows of them, evenly spread.

    tokens: (n,) ids, n >= 2. Perplexity is e to the power of this.
    """
    model.eval()
    length = model.config.max_seq_len
    starts = list(range(0, len(tokens) - length, length))
    if max_windows is not None and max_windows < len(starts):
        starts = [starts[i * len(starts) // max_windows] for i in range(max_windows)]
        rest = []
    else:  # what is left after the last whole window
        rest = [(len(starts) * length, len(tokens) - 1 - len(starts) * length)]
    pieces = [(starts[i : i + batchsize], length) for i in range(0, len(starts), batchsize)]
    pieces += [([start], size) for start, size in rest if size > 0]
    total, count = 0.0, 0
    for piece, size in pieces:
        inputs, targets = (x.to(model.device) for x in stack_windows(tokens, piece, size))
        total += loss_function(model(inputs)[0], targets, reduction="sum").item()
        count += targets.numel()
    model.train()
    return total / count


def loss_function(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy of the logits (B, L, V) with the targets (B, L)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def perplexity(loss: float) -> float:
    """e^loss; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 709 else math.inf
