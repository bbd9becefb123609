"""The keys and values of the tokens that a model has read, so that a step of sampling costs one token of each text."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model import GPT


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

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Copies what is known of the texts in some rows into other rows."""
        for store in (self.keys, self.values):
            store[:, targets] = store[:, sources]


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
