"""The losses that are measured on the validation split: of its poems, and of the text as one stream."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from model import GPT
from songci.corpus.windows import IGNORE, ScoredWindows
from songci.runs import perplexity
from songci.training.batches import stack_windows

CHUNK_ROWS = 256  # of logits at a time: with all of a batch, most of the time goes into getting memory


def mean_loss(
    model: GPT,
    tokens: np.ndarray,
    windows: ScoredWindows,
    batchsize: int,
    done: Callable[[int], None] = lambda windows: None,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Mean loss in nats a character over the predictions that the windows of `tokens` score.

    Perplexity is e to the power of this. done(number of windows) is called after each batch; dtype: of the large
    products.
    """
    total, count, place = 0.0, 0, np.arange(model.config.max_seq_len)
    for i in range(0, len(windows), batchsize):
        batch = windows[i : i + batchsize]
        inputs, targets = stack_windows(tokens, batch.start, model.config.max_seq_len)
        outside = (place < batch.scored[:, None]) | (place >= batch.length[:, None])
        total += loss_sum(model, inputs, targets.masked_fill(torch.from_numpy(outside), IGNORE), dtype)
        count += int((~outside).sum())
        done(len(batch))
    return total / count


class Measures:
    """The validation split, read poem by poem and as one stream, and its losses in nats a character."""

    def __init__(self, tokens: np.ndarray, title: tuple[int, ...], seq_len: int, batchsize: int, dtype=torch.float32):
        self.tokens, self.batchsize, self.dtype = tokens, batchsize, dtype
        poems = ScoredWindows.of_poems(tokens, title, seq_len)
        self.windows = {"poem": poems} if len(poems) else {}
        self.windows["stream"] = ScoredWindows.of_stream(tokens, seq_len)

    def loss(self, name: str, model: GPT, max_windows: int) -> float:
        """The mean loss of "poem" or "stream" over max_windows windows, evenly spread, or all if there are fewer."""
        windows = self.windows[name]
        count = min(max_windows, len(windows))
        some = windows[np.arange(count) * len(windows) // count]
        return mean_loss(model, self.tokens, some, self.batchsize, dtype=self.dtype)

    def whole(self, model: GPT) -> dict[str, float]:
        """Both measures over the whole split, and their perplexities; those of poems are left out if there are none."""
        total, result = sum(map(len, self.windows.values())), {}
        with tqdm(total=total, desc="measuring the whole validation split", unit="window", disable=None) as bar:
            for name, windows in self.windows.items():
                loss = mean_loss(model, self.tokens, windows, self.batchsize, bar.update, self.dtype)
                result |= {f"{name}_val_loss": loss, f"{name}_perplexity": perplexity(loss)}
        return result


@torch.inference_mode()
def loss_sum(model: GPT, inputs: Tensor, targets: Tensor, dtype: torch.dtype) -> float:
    """The sum of the losses at the targets that count, without dropout."""
    training, targets, total = model.training, targets.to(model.device), 0.0
    counts = targets != IGNORE  # the head, half of the work, is for these only
    model.eval()
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        features = model.features(inputs.to(model.device))[0][counts]
        for rows, y in zip(features.split(CHUNK_ROWS), targets[counts].split(CHUNK_ROWS), strict=True):
            total += F.cross_entropy(model.head(rows).float(), y, reduction="sum").item()
    model.train(training)
    return total
