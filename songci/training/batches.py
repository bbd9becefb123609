"""The windows that a model is trained on, drawn anew in each epoch, and the batches of them."""

import numpy as np
import torch
from torch import Tensor

from songci.cli import UserError
from songci.corpus.windows import IGNORE, ScoredWindows, poem_spans

LATER_SHARE = 0.1  # the share of the poems' later windows that an epoch takes; see docs/results.md
LONGEST_POEM = 2000  # characters; what goes on for longer after a title is taken for a text without titles


def stack_windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, length) from the places in `tokens`; past the end of these, targets are IGNORE."""
    places = np.asarray(starts)[:, None] + np.arange(length + 1)
    windows = tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64)
    inputs, targets = windows[:, :-1], np.where(places[:, 1:] < len(tokens), windows[:, 1:], IGNORE)
    return torch.from_numpy(inputs.copy()), torch.from_numpy(targets)


class Windows:
    """Training samples, drawn without replacement, in a fresh order in each epoch.

    A stream, the whole text or a stretch of it, is cut into windows anew in each epoch, at a fresh offset. Of poems, an
    epoch takes all first windows and a share of the later ones, drawn anew, since every text begins with a first one.
    All is a function of the seed and the sample's number, so a resumed run needs no more than its iteration.

    title: the ids of the mark of a title line, for windows of poems; what stands before the first title, and what is
    longer than a poem can be, is a stream all the same. None: all is a stream.
    Raises UserError for a text shorter than a window.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, seed: int, title: tuple[int, ...] | None = None):
        if len(tokens) <= seq_len:
            raise UserError(f"the training split has {len(tokens)} characters: too few for --max_seq_len {seq_len}")
        self.tokens, self.seq_len, self.seed = tokens, seq_len, seed
        if title is None:
            self.first, self.later, self.streams = [], [], [(0, len(tokens))]
        else:
            starts, ends = poem_spans(tokens, title)
            long = ends - starts > max(LONGEST_POEM, 2 * seq_len)
            self.streams = [(0, starts[0])] if starts[0] > 0 else []
            self.streams += zip(starts[long] + seq_len, ends[long], strict=True)
            poems = ScoredWindows.of_spans(starts, np.where(long, starts + seq_len + 1, ends), seq_len)
            self.first, self.later = poems.start[poems.scored == 0], poems.start[poems.scored > 0]
        self.per_epoch = len(self._starts_of(0))
        self.epoch, self.starts = -1, None

    def batch(self, iteration: int, batchsize: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (batchsize, seq_len) of the iteration, counted from 0."""
        samples = range(iteration * batchsize, (iteration + 1) * batchsize)
        return stack_windows(self.tokens, np.array([self._start(sample) for sample in samples]), self.seq_len)

    def _start(self, sample: int) -> int:
        epoch, place = divmod(sample, self.per_epoch)
        if epoch != self.epoch:
            self.starts, self.epoch = self._starts_of(epoch), epoch
        return int(self.starts[place])

    def _starts_of(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        starts = [*self.first, *rng.permutation(self.later)[: round(LATER_SHARE * len(self.later))]]
        for begin, end in self.streams:
            end = min(end + self.seq_len, len(self.tokens))  # so that wherever the cuts fall, its end is seen too
            count = max(1, (end - begin - self.seq_len) // self.seq_len)
            slack = max(0, end - begin - 1 - count * self.seq_len)
            offset = rng.integers(min(slack, self.seq_len - 1) + 1)
            starts.extend(begin + offset + self.seq_len * np.arange(count))
        return rng.permutation(starts)

    def __str__(self) -> str:
        """Which windows an epoch takes, in words."""
        parts = []
        if len(self.first):
            later = f"{LATER_SHARE:.0%} of their {len(self.later):,} later ones (sampling needs the first most)"
            parts.append(f"the first window of each of {len(self.first):,} poems and {later}")
        if self.streams:
            parts.append(f"{sum(end - begin for begin, end in self.streams):,} characters without titles, cut anywhere")
        return f"an epoch: {'; '.join(parts)}"


class Batches:
    """The batches of training. For a GPU they are made one ahead and in pinned memory, so that it does not wait."""

    def __init__(self, windows: Windows, batchsize: int, device: torch.device):
        self.windows, self.batchsize, self.ahead = windows, batchsize, device.type == "cuda"
        self.made: tuple[int, tuple[Tensor, Tensor]] | None = None  # an iteration, and its batch

    def get(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (batchsize, seq_len)."""
        if self.made is not None and self.made[0] == iteration:
            return self.made[1]
        return self.windows.batch(iteration, self.batchsize)

    def prefetch(self, iteration: int) -> None:
        """Makes the batch of the iteration now, if it is for a GPU."""
        if self.ahead:
            inputs, targets = self.windows.batch(iteration, self.batchsize)
            if torch.cuda.is_available():
                inputs, targets = inputs.pin_memory(), targets.pin_memory()
            self.made = iteration, (inputs, targets)
