"""How a trained model writes: a character at a time, many texts at once.

generate() is the loop, sample_next() the choice of a character from the model's logits, Text what is known of a text
under way. A step costs as much as one token of each text, since the keys and values of the earlier tokens are kept. A
learned position ties them to their place in the window, so when a window is full, its later half moves to the front and
is read again; that happens once in many tokens, so the mean cost of a token is the same however long the text.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from model import GPT
from songci.cache import CacheSlice, KVCache
from songci.corpus.vocabulary import Vocabulary
from songci.forms.poems import BLANK, is_character
from songci.forms.writer import FormRules, FormWriter
from songci.training.checkpoint import Trained


@dataclass(frozen=True)
class Controls:
    """How a token is chosen; see sample_next()."""

    temperature: float = 0.8
    top_k: int | None = 200
    top_p: float | None = None
    repetition_penalty: float = 1.0


DEFAULT = Controls()
# Held to a form, the model repeats characters more often than poets do; the penalty mends that (docs/results.md).
FORM_CONTROLS = replace(DEFAULT, repetition_penalty=1.2)


class Step(NamedTuple):
    """What generate() has chosen in one step: a token for each of the R texts that were not done.

    logits: (R, V), the model's own; allowed: (R, V), True for the tokens that their forms allow, None without forms;
    ids: (R,).
    """

    texts: list["Text"]
    logits: Tensor
    allowed: Tensor | None
    ids: Tensor

    def record(self) -> None:
        """Adds to each text's `records`, see Text, what the model thought of the step."""
        log_probs = self.logits.float().log_softmax(-1)
        chosen = log_probs.gather(-1, self.ids[:, None]).flatten().tolist()
        kept, free = [0.0] * len(chosen), [True] * len(chosen)
        if self.allowed is not None:
            kept = log_probs.masked_fill(~self.allowed, -math.inf).logsumexp(-1).tolist()
            free = (self.allowed.sum(-1) > 1).tolist()
        for text, record in zip(self.texts, zip(chosen, kept, free, strict=True), strict=True):
            text.records.append(record)


@torch.inference_mode()
def generate(model: GPT, texts: list["Text"], controls: Controls = DEFAULT) -> Iterator[Step]:
    """Writes texts, all together, a token of each in a step, until all are done.

    What a text becomes does not depend on the texts beside it.
    """
    model.eval()
    cache = KVCache(model, len(texts))
    counts = penalisable(texts[0].vocabulary, model.device) if texts else None
    seen = torch.zeros(len(texts), model.config.vocab_size, dtype=torch.bool, device=model.device)
    for row, text in enumerate(texts):
        seen[row, text.prompt] = counts[text.prompt]
    while rows := [row for row, text in enumerate(texts) if not text.done]:
        writing = [texts[row] for row in rows]
        logits = next_logits(model, [text.context for text in writing], cache, rows)  # (R, V)
        allowed = allowed_tokens(writing, model.device)  # (R, V)
        within = logits if allowed is None else logits.masked_fill(~allowed, -math.inf)
        uniform = torch.tensor([text.uniform() for text in writing], dtype=torch.double)
        ids = sample_next(within, uniform, controls, seen[rows]).to(model.device)  # (R,)
        seen[rows, ids] = counts[ids]
        for text, token in zip(writing, ids.tolist(), strict=True):
            text.append(token)
        yield Step(writing, logits, allowed, ids)


def sample_next(logits: Tensor, uniform: Tensor, controls: Controls, seen: Tensor | None = None) -> Tensor:
    """Chooses a token in each row of logits (B, V) by `uniform`, (B,) numbers in [0, 1) on the CPU; returns (B,) ids.

    1. The logits of characters that the text has already (`seen`, (B, V) booleans) are lowered by the repetition
       penalty: divided by it if positive, multiplied if negative (Keskar et al. 2019). Marks and line ends are not:
       every poem repeats them, and without them it would never end.
    2. All logits are divided by the temperature; 0 means the likeliest token, always.
    3. All but the top_k likeliest are dropped; of equal ones at the edge, some.
    4. Of these, all but the fewest whose probabilities reach top_p (Holtzman et al. 2020).
    5. The token is where the cumulated probability, from the likeliest on, passes `uniform`.
    """
    logits = penalised(logits, controls, seen)
    if controls.temperature == 0:
        return logits.argmax(dim=-1)
    # Sorted, so that steps 3 and 4 cut off the end. In double precision (on the CPU: not every device has it) and with
    # the largest at 0, so that no temperature, however small, gives infinities.
    k = min(controls.top_k or logits.size(-1), logits.size(-1))
    logits, ids = logits.topk(k, dim=-1)
    logits, ids = logits.cpu().double(), ids.cpu()
    cumulated = torch.softmax((logits - logits[:, :1]) / controls.temperature, dim=-1).cumsum(dim=-1)
    total = cumulated[:, -1:]
    if controls.top_p is not None:
        total = cumulated.gather(-1, (cumulated < controls.top_p * total).sum(-1, keepdim=True).clamp(max=k - 1))
    place = (cumulated <= uniform[:, None] * total).sum(-1, keepdim=True)
    return ids.gather(-1, place.clamp(max=k - 1)).squeeze(-1)


def penalisable(vocabulary: Vocabulary, device: torch.device) -> Tensor:
    """(V,) True for the tokens that the repetition penalty may lower: characters, no marks, line ends or symbols."""
    return torch.tensor([is_character(char) for char in vocabulary.chars], device=device)


def penalised(logits: Tensor, controls: Controls, seen: Tensor | None) -> Tensor:
    """Step 1 of sample_next()."""
    if seen is None or controls.repetition_penalty == 1.0:
        return logits
    factor = torch.where(logits > 0, 1 / controls.repetition_penalty, controls.repetition_penalty)
    return torch.where(seen, logits * factor, logits)


class Text:
    """A text that generate() writes.

    start: its beginning, with rules up to its first blank (□); prompt: the token ids of that; new: those that followed.
    It is done after max_new_tokens; with `poem`, also when the mark of another title line has been written; with rules,
    when it is a whole poem that keeps a form, and only then. seed: of its own random numbers.
    records: by Step.record(), for each new token the log of its probability, by the model itself (temperature 1,
    nothing dropped), that of all that the form allowed, and whether this was more than one token.
    """

    def __init__(
        self,
        trained: Trained,
        start: str,
        seed: int,
        max_new_tokens: int = 500,
        poem: bool = False,
        rules: FormRules | None = None,
    ):
        self.generator = torch.Generator().manual_seed(seed)
        self.numbers: list[float] = []
        self.form = None
        if rules:
            trained.vocabulary.encode(start.replace(BLANK, ""))
            self.form = FormWriter(rules, start, self.uniform)
            start = start.partition(BLANK)[0]  # the form knows what is given after it
        self.start, self.max_new_tokens, self.poem = start, max_new_tokens, poem
        self.vocabulary = trained.vocabulary
        self.prompt: list[int] = trained.vocabulary.encode(start).tolist()
        self.new: list[int] = []
        self.records: list[tuple[float, float, bool]] = []
        self.context = Context(trained.model.config.max_seq_len, trained.title, self.prompt)

    def uniform(self) -> float:
        """Its next random number in [0, 1)."""
        if not self.numbers:  # one by one, the calls would take longer than the model
            self.numbers = torch.rand(64, generator=self.generator, dtype=torch.double).tolist()
        return self.numbers.pop()

    def append(self, token: int) -> None:
        """Goes on with a token."""
        self.new.append(token)
        self.context.append(token)
        if self.form is not None:
            self.form.append(token)

    def sibling(self) -> "Text":
        """A copy with random numbers of its own."""
        other = copy.copy(self)
        other.generator = torch.Generator().manual_seed(int(self.uniform() * 2**53))
        other.numbers = []
        other.become(self)
        return other

    def become(self, other: "Text") -> None:
        """Takes over what another text has become; goes on with its own random numbers."""
        self.new, self.records, self.context = [*other.new], [*other.records], copy.copy(other.context)
        self.context.ids, self.context.tail = [*other.context.ids], [*other.context.tail]
        self.form = other.form.copy(self.uniform) if other.form else None

    @property
    def done(self) -> bool:
        if self.form is not None:
            return self.form.done
        return len(self.new) >= self.max_new_tokens or self.at_next_title

    @property
    def at_next_title(self) -> bool:
        """Whether it is to end with its poem, and does: the next title mark was written, all of it by the model."""
        title = self.context.title
        return self.poem and len(self.new) >= len(title) and tuple(self.context.tail) == title

    def __str__(self) -> str:
        """Its start and what followed; a finished poem ends with a line end, without the title mark after it."""
        new = self.vocabulary.decode(self.new)
        if self.form is not None or self.at_next_title:
            new = new.removesuffix("+++").rstrip("\n") + "\n"
        return self.start + new


def allowed_tokens(texts: list[Text], device: torch.device) -> Tensor | None:
    """(R, V) True for the tokens that the form of each of R texts allows; None if no text has one."""
    if all(text.form is None for text in texts):
        return None
    return torch.stack([text.form.allowed() for text in texts]).to(device)


class Context:
    """The part of a growing text that the model sees, as it saw texts in training: `ids`, at most max_seq_len tokens.

    Trained on windows of poems, whose mark is `title`: from the newest mark on. When the window is full, its older half
    is dropped. cached: the number of ids that the cache holds.
    """

    def __init__(self, max_seq_len: int, title: tuple[int, ...], prompt: list[int]):
        self.max_seq_len, self.title = max_seq_len, title
        self.ids: list[int] = []
        self.cached = 0
        self.tail = list(title[:1])  # the newest tokens; a title line begins the text or follows a line end
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        """Adds the next token of the text, and moves the window on where training would."""
        title, size = self.title, self.max_seq_len
        if title:
            self.tail = [*self.tail, token][-len(title) :]
            if tuple(self.tail) == title:
                self.ids, self.cached = list(title[1:])[-size:], 0
                return
            if not self.ids and token == title[0]:
                return  # no window begins with a line end
        self.ids.append(token)
        if len(self.ids) > size:
            self.ids, self.cached = self.ids[max(1, size // 2) :], 0


def next_logits(model: GPT, contexts: list[Context], cache: KVCache, rows: list[int]) -> Tensor:
    """The logits (R, V) of the token that follows each of the R contexts, whose rows in the cache are `rows`."""
    features = model.norm.weight.new_empty(len(contexts), model.config.n_embd)
    one_token = [i for i, context in enumerate(contexts) if len(context.ids) == context.cached + 1]
    others = [i for i, context in enumerate(contexts) if len(context.ids) != context.cached + 1]
    for group in (one_token, others):  # an ordinary step, and windows to be read from their start
        if group:
            features[group] = read(model, [contexts[i] for i in group], cache, [rows[i] for i in group])
    logits = model.head(features)
    for row, context in enumerate(contexts):
        if not context.ids:
            logits[row] = -math.inf  # a window of poems begins with a title mark
            logits[row, context.title[1]] = 0.0
    return logits


def read(model: GPT, contexts: list[Context], cache: KVCache, rows: list[int]) -> Tensor:
    """Reads the tokens that are not in the cache; returns the features (R, C) after the last token of each context."""
    new = [context.ids[context.cached :] for context in contexts]
    longest = max(1, max(map(len, new)))
    # No position looks to its right, so any padding will do
    U = torch.tensor([ids + [0] * (longest - len(ids)) for ids in new], device=model.device)
    features = model.features(U, CacheSlice(cache, rows, [c.cached for c in contexts], longest))
    for context in contexts:
        context.cached = len(context.ids)
    if longest == 1:
        return features[:, 0]
    last = torch.tensor([max(len(ids), 1) - 1 for ids in new], device=model.device)
    return features[torch.arange(len(new), device=model.device), last]
