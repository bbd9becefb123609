"""How a trained model writes: a token at a time, with a cache of keys and values, many texts at once.

A step costs as much as one token of each text: the keys and values of the earlier tokens are remembered. A learned
position ties them to their place in the window, so when a window is full, its later part moves to the front and is read
again; that happens once in many tokens, so the mean cost of a token is the same however long the text.
"""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import GPT
from songci.cli import UserError, read_text
from songci.forms.writer import FormRules, FormWriter
from songci.training.checkpoint import Trained
from songci.training.device import seed_of

KEEP = 0.5  # share of a full window that is kept, for models of streams; for models of poems it is half, as in training


class KVCache:
    """The keys and values of `batch` texts in every layer, with room for as many tokens as were needed so far.

    It grows, since max_seq_len may be any number without a position embedding.
    keys, values: (layers, B, h, room, d).
    """

    def __init__(self, model: GPT, batch: int):
        c = model.config
        shape = (c.n_layer, batch, c.n_head, min(64, c.max_seq_len), c.n_embd // c.n_head)
        self.keys = torch.zeros(shape, device=model.device, dtype=model.norm.weight.dtype)
        self.values = torch.zeros_like(self.keys)
        self.max_seq_len = c.max_seq_len

    def reserve(self, length: int) -> None:
        """Makes room for `length` tokens, and for as many again, so that the cost of a token stays the same."""
        room = self.keys.size(-2)
        if length > room:
            more = min(max(length, 2 * room), self.max_seq_len) - room
            self.keys, self.values = (F.pad(store, (0, 0, 0, more)) for store in (self.keys, self.values))


class CacheSlice:
    """The part of a cache that belongs to some texts, while their next L tokens are read.

    rows, starts: for each of the R texts, its row in the cache, and the number of its tokens that are there already.
    """

    def __init__(self, cache: KVCache, rows: list[int], starts: list[int], L: int):
        device = cache.keys.device
        self.cache, self.size = cache, max(starts) + L  # S: tokens of the longest text with the new ones
        cache.reserve(self.size)
        self.rows = torch.tensor(rows, device=device)[:, None]
        self.read = slice(None) if len(rows) == cache.keys.size(1) else self.rows[:, 0]  # all of them: no copy
        # (R, L) the places of the new tokens in their windows
        self.positions = torch.tensor(starts, device=device)[:, None] + torch.arange(L, device=device)

    def __getitem__(self, layer: int):
        """extend() for a layer."""
        return partial(self.extend, layer)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v (R, h, L, d) of the new tokens; returns those of all tokens (R, h, S, d)."""
        extended = []
        for store, new in ((self.cache.keys[layer], k), (self.cache.values[layer], v)):
            store[self.rows, :, self.positions] = new.transpose(1, 2).to(store.dtype)
            extended.append(store[self.read, :, : self.size].to(new.dtype))
        return extended[0], extended[1]


class Context:
    """The part of a growing text that the model sees, as it saw texts in training; at most max_seq_len tokens.

    Trained on windows of poems, whose mark is `title`: from the newest mark on; when the window is full, its older half
    is dropped. Trained on windows that begin anywhere: the same without titles, and `keep` says which share of a full
    window stays. exact: of a full window, only the oldest token is dropped.
    """

    def __init__(
        self, max_seq_len: int, title: tuple[int, ...], prompt: list[int], keep: float = KEEP, exact: bool = False
    ):
        size = max_seq_len
        kept = size // 2 + size % 2 if title else math.ceil(keep * size)
        self.kept = size - 1 if exact else min(max(kept, 1), size - 1)
        self.max_seq_len, self.title, self.ids = max_seq_len, title, []
        self.cached = 0  # the number of ids that the cache holds
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
            self.ids, self.cached = self.ids[len(self.ids) - 1 - self.kept :], 0


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


@dataclass(frozen=True)
class Controls:
    """How a token is chosen, in this order; see sample_next()."""

    temperature: float = 0.8
    top_k: int | None = 200
    top_p: float | None = None
    repetition_penalty: float = 1.0


DEFAULT = Controls()


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of logits (B, V) in falling order, and their token ids, (B, k) each, on the CPU."""
    if logits.device.type != "cpu" or k == logits.size(-1):
        top, ids = logits.topk(k, dim=-1)
        return top.cpu(), ids.cpu()
    # numpy's selection takes a tenth of the time of torch's (python benchmarks/sampling.py --part limit)
    ids = torch.from_numpy(np.argpartition(logits.float().numpy(), -k, axis=-1)[:, -k:])
    top, order = logits.gather(-1, ids).sort(dim=-1, descending=True)
    return top, ids.gather(-1, order)


def sample_next(logits: Tensor, uniform: Tensor, controls: Controls, seen: Tensor | None = None) -> Tensor:
    """Chooses a token in each row of logits (B, V) by `uniform`, (B,) numbers in [0, 1) on the CPU; returns (B,) ids.

    1. The logits of tokens that the text has already (`seen`, (B, V) booleans) are lowered by the repetition penalty:
       divided by it if positive, multiplied if negative (Keskar et al. 2019).
    2. All logits are divided by the temperature; 0 means the likeliest token, always.
    3. All but the top_k likeliest are dropped; of equal ones at the edge, some.
    4. Of these, all but the fewest whose probabilities reach top_p (Holtzman et al. 2020).
    5. The token is where the cumulated probability, from the likeliest on, passes `uniform`.
    """
    if seen is not None and controls.repetition_penalty != 1.0:
        factor = torch.where(logits > 0, 1 / controls.repetition_penalty, controls.repetition_penalty)
        logits = torch.where(seen, logits * factor, logits)
    if controls.temperature == 0:
        return logits.argmax(dim=-1)
    # Sorted, so that steps 3 and 4 cut off the end. In double precision (on the CPU: not every device has it) and with
    # the largest at 0, so that no temperature, however small, gives infinities.
    k = min(controls.top_k or logits.size(-1), logits.size(-1))
    logits, ids = largest(logits, k)
    logits = logits.double()
    cumulated = torch.softmax((logits - logits[:, :1]) / controls.temperature, dim=-1).cumsum(dim=-1)
    total = cumulated[:, -1:]
    if controls.top_p is not None:
        total = cumulated.gather(-1, (cumulated < controls.top_p * total).sum(-1, keepdim=True).clamp(max=k - 1))
    place = (cumulated <= uniform[:, None] * total).sum(-1, keepdim=True)
    return ids.gather(-1, place.clamp(max=k - 1)).squeeze(-1)


class Constraint(Protocol):
    """What holds a text to some form. done: the text is complete."""

    done: bool

    def allowed(self) -> Tensor:
        """(V,) True for the tokens that may come next; at least one."""

    def append(self, token: int) -> None:
        """Goes on with a token that is allowed."""


class Text:
    """One of the texts that generate() writes: what the model sees of it, its own random numbers, its new tokens.

    prompt: token ids; new: those that followed. keep, exact: see Context.
    log_likelihood: of the new tokens, in nats, by the model itself: temperature 1, nothing dropped.
    free, free_log_likelihood: the number of new tokens at which there was a choice, and their log-likelihood.
    allowed_log_prob: the log of the probability that the model gave to all tokens that the constraint allowed, summed
    over the new tokens; 0 without a constraint.
    """

    def __init__(
        self,
        max_seq_len: int,
        title: tuple[int, ...],
        prompt: list[int],
        seed: int,
        keep: float = KEEP,
        exact: bool = False,
        constraint: Constraint | None = None,
    ):
        self.prompt = prompt
        self.constraint = constraint
        self.context = Context(max_seq_len, title, prompt, keep, exact)
        self.generator = torch.Generator().manual_seed(seed)
        self.numbers: list[float] = []
        self.new: list[int] = []
        self.log_likelihood = 0.0
        self.free = 0
        self.free_log_likelihood = 0.0
        self.allowed_log_prob = 0.0
        self.done = constraint is not None and constraint.done

    def uniform(self) -> float:
        """Its next random number in [0, 1)."""
        if not self.numbers:  # one by one, the calls would take longer than the model
            self.numbers = torch.rand(64, generator=self.generator, dtype=torch.double).tolist()
        return self.numbers.pop()

    def append(self, token: int, log_prob: float, free: bool, allowed_log_prob: float) -> None:
        """Adds a new token; log_prob: the model's, in nats; the rest: this token's part of the attributes so named."""
        self.context.append(token)
        self.new.append(token)
        self.log_likelihood += log_prob
        self.allowed_log_prob += allowed_log_prob
        if free:
            self.free += 1
            self.free_log_likelihood += log_prob
        if self.constraint is not None:
            self.constraint.append(token)
            self.done = self.constraint.done

    @property
    def mean_free_log_likelihood(self) -> float:
        """In nats, over the new tokens at which there was a choice; 0 if there were none."""
        return self.free_log_likelihood / max(1, self.free)

    def at_next_title(self) -> bool:
        """Whether its newest tokens are a title mark, all of it written by the model."""
        title = self.context.title
        return bool(title) and tuple(self.context.tail) == title and len(self.new) >= len(title)


@torch.inference_mode()
def generate(
    model: GPT,
    texts: list[Text],
    max_new_tokens: int,
    controls: Controls = DEFAULT,
    stop_at_title: bool = False,
) -> Iterator[list[int | None]]:
    """Continues texts, all together; yields the ids of the next tokens, a list as long as `texts`, until all are done.

    A text is done after max_new_tokens, when its constraint is, or, with stop_at_title, when the mark of another title
    line has been written; then its id is None. What a text becomes does not depend on the texts beside it.
    """
    model.eval()
    cache = KVCache(model, len(texts))
    seen = None
    if controls.repetition_penalty != 1.0:
        seen = torch.zeros(len(texts), model.config.vocab_size, dtype=torch.bool, device=model.device)
        for row, text in enumerate(texts):
            seen[row, text.prompt] = True
    for _ in range(max_new_tokens):
        rows = [row for row, text in enumerate(texts) if not text.done]
        if not rows:
            return
        logits = next_logits(model, [texts[row].context for row in rows], cache, rows)
        writing = [texts[row] for row in rows]
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        free, allowed_log_probs = [True] * len(rows), [0.0] * len(rows)
        if any(text.constraint is not None for text in writing):
            allowed = allowed_tokens(writing, logits)
            free = (allowed.sum(dim=-1) > 1).tolist()
            allowed_log_probs = log_probs.masked_fill(~allowed, -math.inf).logsumexp(-1).tolist()
            logits = logits.masked_fill(~allowed, -math.inf)
        uniform = torch.tensor([text.uniform() for text in writing], dtype=torch.double)
        ids = sample_next(logits, uniform, controls, None if seen is None else seen[rows]).to(model.device)
        if seen is not None:
            seen[rows, ids] = True
        token_log_probs = log_probs.gather(-1, ids[:, None]).flatten().tolist()
        step: list[int | None] = [None] * len(texts)
        for row, text, *new in zip(rows, writing, ids.tolist(), token_log_probs, free, allowed_log_probs, strict=True):
            text.append(*new)
            text.done = text.done or (stop_at_title and text.at_next_title())
            step[row] = text.new[-1]
        yield step


def allowed_tokens(texts: list[Text], logits: Tensor) -> Tensor:
    """(R, V) True for the tokens that each text's constraint allows; all of them without one."""
    everything = torch.ones(logits.size(-1), dtype=torch.bool)
    rows = [everything if text.constraint is None else text.constraint.allowed() for text in texts]
    return torch.stack(rows).to(logits.device)


# Held to a form, the model repeats characters more often than poets do; the penalty mends that (docs/results.md).
FORM_CONTROLS = replace(DEFAULT, repetition_penalty=1.2)


@dataclass(frozen=True)
class Sample:
    """A text that begins with the prompt; its number of new tokens, and their mean log-likelihood in nats."""

    text: str
    tokens: int
    mean_log_likelihood: float | None


def read_start(start: str) -> str:
    """The text that --start stands for: FILE:path is read, \\n typed in a shell is a line end.

    Raises UserError if it is empty or the file cannot be read.
    """
    if start.startswith("FILE:"):
        start = read_text(Path(start.removeprefix("FILE:")))
    else:
        start = start.replace("\\n", "\n")
    if not start:
        raise UserError('--start is empty: give at least one character, such as "\\n" or +++清平乐')
    return start


def canonical_title(start: str, aliases: dict[str, str]) -> str:
    """Replaces another name of a tune in a title line by the one that the corpus uses, and says so on stderr.

    aliases: {other name: the corpus's}.
    """
    match = re.match(r"\+\+\+([^\n（(]+)", start)
    if match is None or match[1] not in aliases:
        return start
    print(f"{match[1]} is another name of {aliases[match[1]]}, which the corpus uses", file=sys.stderr)
    return f"+++{aliases[match[1]]}{start[match.end() :]}"


def sample_seed(seed: int, index: int, attempt: int = 0) -> int:
    """The seed of an attempt at the sample `index` of a run: the same whatever the batch, and unlike any other's."""
    return seed_of(seed, index, attempt)


def new_text(trained: Trained, start: str, seed: int, rules: FormRules | None = None, **window) -> Text:
    """A text for generate() that begins with `start`; held to a form if there are rules. window: see samples()."""
    constraint = FormWriter(rules, start) if rules else None
    prompt = trained.vocabulary.encode(start).tolist()
    return Text(trained.model.config.max_seq_len, trained.title, prompt, seed, constraint=constraint, **window)


def samples(
    trained: Trained,
    start: str,
    num_samples: int,
    max_new_tokens: int,
    seed: int = 1,
    batch: int = 100,
    controls: Controls = DEFAULT,
    poems: bool = False,
    rules: FormRules | None = None,
    best_of: int = 1,
    **window,
) -> Iterator[Sample]:
    """`num_samples` continuations of `start`, `batch` texts at a time. The same seed gives the same texts.

    poems: each ends with its poem. rules: each is one poem that keeps a form, whatever max_new_tokens. best_of: each is
    the likeliest of this many, by the mean log-likelihood of the characters that the form left free.
    window: keep and exact of generation.Context.
    """
    best = None
    for first in range(0, num_samples * best_of, batch):
        tries = range(first, min(first + batch, num_samples * best_of))
        seeds = [sample_seed(seed, i // best_of, i % best_of) for i in tries]
        texts = [new_text(trained, start, own_seed, rules, **window) for own_seed in seeds]
        for _ in generate(
            trained.model, texts, sys.maxsize if rules else max_new_tokens, controls, stop_at_title=poems
        ):
            pass
        for i, text in zip(tries, texts, strict=True):
            if i % best_of == 0 or text.mean_free_log_likelihood > best.mean_free_log_likelihood:
                best = text
            if i % best_of == best_of - 1:
                new = trained.vocabulary.decode(best.new)
                mean = best.log_likelihood / len(new) if new else None
                if rules or (poems and best.done):
                    new = without_next_title(new)
                yield Sample(start + new, len(best.new), mean)


def without_next_title(text: str) -> str:
    """A finished poem without the title mark that follows it."""
    return text.removesuffix("+++").rstrip("\n") + "\n"
