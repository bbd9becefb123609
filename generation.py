"""How a trained model writes: a token at a time, with a cache of keys and values, many texts at once.

The cost of a step is that of one token for each text: the keys and values of the tokens before are remembered. A
learned position ties them to their place in the window, so when a window is full, its later part moves to the front and
is read in again; that happens once in many tokens, which keeps the mean cost of a token the same however long the text.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import GPT, GPTConfig

KEEP = 0.5  # share of a full window that is kept when it is a stream's; of a poem's it is half, as in training


class KVCache:
    """The keys and values of `batch` texts in every layer, with room for as many tokens as were needed so far.

    Not for max_seq_len from the start: without a position embedding, that may be any number.
    """

    def __init__(self, model: GPT, batch: int):
        c = model.config
        shape = (c.n_layer, batch, c.n_head, min(64, c.max_seq_len), c.n_embd // c.n_head)  # (layers, B, h, room, d)
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
    """The texts `rows` of a cache, of which the first `starts` tokens are in it and the next L are being read.

    rows, starts: lists of R numbers.
    """

    def __init__(self, cache: KVCache, rows: list[int], starts: list[int], L: int):
        device = cache.keys.device
        self.cache, self.size = cache, max(starts) + L  # S: tokens of the longest text with the new ones
        cache.reserve(self.size)
        self.rows = torch.tensor(rows, device=device)[:, None]
        self.read = slice(None) if len(rows) == cache.keys.size(1) else self.rows[:, 0]  # all of them: no copy
        # (R, L) the places of the new tokens in their windows
        self.positions = torch.tensor(starts, device=device)[:, None] + torch.arange(L, device=device)
        # (R, 1, L, S) True where a token must not look
        self.mask = torch.arange(self.size, device=device) > self.positions[:, None, :, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v (R, h, L, d) of the new tokens; returns those of all tokens (R, h, S, d)."""
        extended = []
        for store, new in ((self.cache.keys[layer], k), (self.cache.values[layer], v)):
            store[self.rows, :, self.positions] = new.transpose(1, 2).to(store.dtype)
            extended.append(store[self.read, :, : self.size].to(new.dtype))
        return extended[0], extended[1]


class Context:
    """The part of a growing text that the model sees, as it saw texts in training; at most max_seq_len tokens.

    Trained on windows of poems (config.title): from the newest title mark on; when the window is full, its older half
    is dropped. Trained on windows that begin anywhere: the same without titles, and `keep` says which share of a full
    window stays. exact: of a full window, only the oldest token is dropped.
    """

    def __init__(self, config: GPTConfig, prompt: list[int], keep: float = KEEP, exact: bool = False):
        size = config.max_seq_len
        kept = size // 2 + size % 2 if config.title else math.ceil(keep * size)
        self.kept = size - 1 if exact else min(max(kept, 1), size - 1)
        self.config, self.ids = config, []
        self.cached = 0  # how many of the ids a cache holds
        self.tail = list(config.title[:1])  # the newest tokens; a title line begins the text or follows a line end
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        title, size = self.config.title, self.config.max_seq_len
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
    """The logits (R, V) of the token that follows each of the contexts; these are the texts `rows` of the cache."""
    features = model.norm.weight.new_empty(len(contexts), model.config.n_embd)
    one_token = [i for i, context in enumerate(contexts) if len(context.ids) == context.cached + 1]
    others = [i for i, context in enumerate(contexts) if len(context.ids) != context.cached + 1]
    for group in (one_token, others):  # a step, and windows to be read in (again)
        if group:
            features[group] = read(model, [contexts[i] for i in group], cache, [rows[i] for i in group])
    logits = model.head(features)
    for row in (row for row, context in enumerate(contexts) if not context.ids):
        logits[row] = -math.inf  # each window of poems begins with a title mark
        logits[row, model.config.title[1]] = 0.0
    return logits


def read(model: GPT, contexts: list[Context], cache: KVCache, rows: list[int]) -> Tensor:
    """Reads the tokens that are not in the cache; returns the features (R, C) after the last token of each context."""
    new = [context.ids[context.cached :] for context in contexts]
    longest = max(1, max(map(len, new)))
    # What stands to the right of a context's end is never seen from it, so any padding will do
    U = torch.tensor([ids + [0] * (longest - len(ids)) for ids in new], device=model.device)
    features, _ = model.features(U, cache=CacheSlice(cache, rows, [c.cached for c in contexts], longest))
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
    """The k largest of each row of (B, V) in falling order, and their places, on the CPU."""
    if logits.device.type != "cpu" or k == logits.size(-1):
        top, ids = logits.topk(k, dim=-1)
        return top.cpu(), ids.cpu()
    # numpy's selection takes a tenth of the time of torch's (python benchmarks/sampling.py --part limit)
    ids = torch.from_numpy(np.argpartition(logits.float().numpy(), -k, axis=-1)[:, -k:])
    top, order = logits.gather(-1, ids).sort(dim=-1, descending=True)
    return top, ids.gather(-1, order)


def sample_next(logits: Tensor, uniform: Tensor, controls: Controls, seen: Tensor | None = None) -> Tensor:
    """Chooses a token in each row of logits (B, V) by a number `uniform` (B,) in [0, 1), on the CPU; returns (B,) ids.

    1. The logits of tokens that the text has already (`seen`, (B, V) booleans) lose by the repetition penalty: divided
       by it if positive, multiplied if negative (Keskar et al. 2019).
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
    """What holds a text to some form: the tokens allowed next, and whether it is complete."""

    done: bool

    def allowed(self) -> Tensor:
        """(V,) True for the tokens that may come next; at least one."""

    def append(self, token: int) -> None: ...


class Text:
    """One of the texts that generate() writes: what the model sees of it, its own random numbers, its new tokens.

    keep, exact: see Context.
    """

    def __init__(
        self,
        config: GPTConfig,
        prompt: list[int],
        seed: int,
        keep: float = KEEP,
        exact: bool = False,
        constraint: Constraint | None = None,
    ):
        self.prompt = prompt
        self.constraint = constraint
        self.context = Context(config, prompt, keep, exact)
        self.generator = torch.Generator().manual_seed(seed)
        self.numbers: list[float] = []
        self.new: list[int] = []
        self.log_likelihood = 0.0  # of the new tokens, in nats, as the model gives it: temperature 1, nothing dropped
        self.free = 0  # new tokens at which there was a choice, and their part of the log-likelihood
        self.free_log_likelihood = 0.0
        self.kept = 0.0  # log of the probability that the constraint left to the tokens it allowed, summed
        self.done = constraint is not None and constraint.done

    def uniform(self) -> float:
        """Its next random number in [0, 1)."""
        if not self.numbers:  # one by one, the calls would take longer than the model
            self.numbers = torch.rand(64, generator=self.generator, dtype=torch.double).tolist()
        return self.numbers.pop()

    def append(self, token: int, log_likelihood: float, free: bool = True, kept: float = 0.0) -> None:
        self.context.append(token)
        self.new.append(token)
        self.log_likelihood += log_likelihood
        self.kept += kept
        if free:
            self.free += 1
            self.free_log_likelihood += log_likelihood
        if self.constraint is not None:
            self.constraint.append(token)
            self.done = self.constraint.done

    @property
    def mean_free_log_likelihood(self) -> float:
        """In nats, over the new tokens at which there was a choice; 0 if there were none."""
        return self.free_log_likelihood / max(1, self.free)

    def at_next_title(self) -> bool:
        """Whether it has just come to the title mark of a poem that follows the first."""
        title = self.context.config.title
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
        choices = kept = None
        if any(text.constraint is not None for text in writing):
            allowed = allowed_tokens(writing, logits)
            choices = allowed.sum(dim=-1).tolist()
            kept = log_probs.masked_fill(~allowed, -math.inf).logsumexp(-1).tolist()
            logits = logits.masked_fill(~allowed, -math.inf)
        uniform = torch.tensor([text.uniform() for text in writing], dtype=torch.double)
        ids = sample_next(logits, uniform, controls, None if seen is None else seen[rows]).to(model.device)
        if seen is not None:
            seen[rows, ids] = True
        gains = log_probs.gather(-1, ids[:, None]).flatten().tolist()
        step: list[int | None] = [None] * len(texts)
        for i, (row, text, token) in enumerate(zip(rows, writing, ids.tolist(), strict=True)):
            text.append(token, gains[i], choices is None or choices[i] > 1, 0.0 if kept is None else kept[i])
            text.done = text.done or (stop_at_title and text.at_next_title())
            step[row] = token
        yield step


def allowed_tokens(texts: list[Text], logits: Tensor) -> Tensor:
    """(R, V) True for the tokens that each text's constraint allows; all of them without one."""
    everything = torch.ones(logits.size(-1), dtype=torch.bool)
    rows = [everything if text.constraint is None else text.constraint.allowed() for text in texts]
    return torch.stack(rows).to(logits.device)
