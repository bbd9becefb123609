"""How a text is cut into windows of max_seq_len tokens: for training, and for measuring the loss.

A *stream* window begins anywhere. A *poem* window begins at the title line of a poem and, for a poem that is longer,
at every multiple of half a window from there. So a learned position counts the characters of the poem; and sampling
goes on past the window in the same way, by dropping the older half.
"""

from dataclasses import dataclass

import numpy as np

from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary

TITLE = "\n+++"
IGNORE = -100  # a target that does not count, as in torch's own cross entropy


def title_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The token ids of a line end and the mark of a title line; empty if the vocabulary lacks them."""
    return tuple(vocabulary.encode(TITLE).tolist()) if set(TITLE) <= set(vocabulary.chars) else ()


def poem_starts(tokens: np.ndarray, title: tuple[int, ...]) -> np.ndarray:
    """The places (n,) in `tokens` where a title line begins."""
    if not title:
        return np.zeros(0, dtype=np.int64)
    newline, *mark = title
    starts = np.flatnonzero(tokens[: len(tokens) - len(mark) + 1] == mark[0])
    for i, token in enumerate(mark):
        starts = starts[tokens[starts + i] == token]
    return starts[(starts == 0) | (tokens[starts - 1] == newline)]


def poem_spans(tokens: np.ndarray, title: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where the poems begin, and where each ends: where the next one begins, or the tokens end."""
    starts = poem_starts(tokens, title)
    return starts, np.append(starts, len(tokens))[1:]


@dataclass(frozen=True)
class ScoredWindows:
    """Windows that a text is read in, and which of their predictions count, as arrays of the same length."""

    start: np.ndarray  # place of the first input
    scored: np.ndarray  # how many of its first predictions an earlier window of the poem has already made
    length: np.ndarray  # how many predictions belong to the poem or to the text; what comes after them is the next poem

    @classmethod
    def of_stream(cls, tokens: np.ndarray, seq_len: int) -> "ScoredWindows":
        """The text as one stream: windows one after another, each of the n >= 2 tokens predicted once."""
        start = np.arange(0, len(tokens) - 1, seq_len)
        return cls(start, np.zeros_like(start), np.minimum(seq_len, len(tokens) - 1 - start))

    @classmethod
    def of_poems(cls, tokens: np.ndarray, title: tuple[int, ...], seq_len: int) -> "ScoredWindows":
        """Of all the poems in (n,) ids, each character of them predicted once; title: as from title_ids()."""
        return cls.of_spans(*poem_spans(tokens, title), seq_len)

    @classmethod
    def of_spans(cls, starts: np.ndarray, ends: np.ndarray, seq_len: int) -> "ScoredWindows":
        """Of texts from `starts` to `ends`, as of_poems()."""
        half = max(1, seq_len // 2)
        # A window more for each half window of characters that the first has not predicted
        counts = 1 + np.maximum(0, -(-(ends - starts - 1 - seq_len) // half))
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, … within each poem
        start = np.repeat(starts, counts) + half * nth
        length = np.minimum(seq_len, np.repeat(ends, counts) - 1 - start)
        return cls(start, np.where(nth > 0, seq_len - half, 0), length)

    def targets(self, tokens: np.ndarray) -> np.ndarray:
        """The ids of `tokens` that the windows predict and score, one after another."""
        spans = zip(self.start + 1 + self.scored, self.start + 1 + self.length, strict=True)
        return np.concatenate([tokens[begin:end] for begin, end in spans])

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index) -> "ScoredWindows":
        return ScoredWindows(self.start[index], self.scored[index], self.length[index])


def use_poem_windows(wanted: str, train_poems: int, val_poems: int) -> bool:
    """Whether to train on windows of poems: --windows, or for auto whether both splits have poems.

    Raises UserError if it asks for poems and there are none.
    """
    if wanted == "poem" and not (train_poems and val_poems):
        raise UserError("--windows poem: this text does not have +++ titles in both splits; use --windows stream")
    return wanted != "stream" and train_poems > 0 and val_poems > 0
