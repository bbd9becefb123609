"""How a trained model writes: a character at a time, many texts at once.

generate() is the loop, choose() the choice of a character from the model's logits, Text what is known of a text under
way. A learned position ties a token to its place in the window, so when a window is full, its later half moves to the
front and is read again; that happens once in many tokens, so the mean cost of a token is the same however long the
text.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from songci.forms.poems import BLANK, is_character
from songci.forms.writer import FormRules, FormWriter
from songci.runs import Trained


@dataclass(frozen=True)
class Controls:
    """How a token is chosen; see choose()."""

    temperature: float = 0.8
    top_k: int | None = 200
    top_p: float | None = None
    repetition_penalty: float = 1.0


DEFAULT = Controls()
# Held to a form, the model repeats characters more often than poets do; the penalty mends that (docs/results.md).
FORM_CONTROLS = replace(DEFAULT, repetition_penalty=1.2)


class Model(Protocol):
    """What gives the logits: the Decoder in numpy, or model.py on a device (sample.py)."""

    def with_cache(self, rows: int) -> "Model":
        """The model, ready for so many new texts."""

    def next_logits(model: Model, windows: list[Window], rows: list[int], vocab_size: int) -> np.ndarray:
    """The logits (R, V) of the token that follows each of the R windows, whose rows in the model's cache are given."""
    new = [len(window.ids) - window.cached for window in windows]
    # Ordinary steps, and windows that are read from their beginning
    groups = [i for i, n in enumerate(new) if n == 1], [i for i, n in enumerate(new) if n > 1]
    logits = np.full((len(windows), vocab_size), -np.inf, dtype=np.float32)
    for group in groups:
        if group:
            own = [windows[i] for i in group]
            part = model.next_logits([w.ids for w in own], [w.cached for w in own], [rows[i] for i in group])
            if len(group) == len(windows):
                logits = part
            else:
                logits[group] = part
    for row, window in enumerate(windows):
        window.cached = len(window.ids)
        if not window.ids:  # a window of poems begins with a title mark
            logits[row, window.title[1]] = 0.0
    return logits
