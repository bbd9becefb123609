"""The GPT of model.py in numpy, for writing: the same steps and notation, a token of each text at a time.

No position looks at a later one, so what a layer has computed of the earlier tokens stays right when a token follows.
Of these, attention needs the keys and values only: they are kept in a cache, and a step costs one token of each text
(docs/theory.md). R: the texts of a step, L: their new tokens, S: all their tokens so far; the rest as in model.py.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np

from songci.machine import set_blas_threads

EPS = 1e-5  # of LayerNorm, as in torch
MULTIPLE = 16  # S, which is twice this or more, and the columns of a weight are rounded up to a multiple; see product()
CHUNK = 128  # inputs of a product at a time


class Decoder:
    """A GPT that writes.

    config: the fields of model.GPTConfig; weights: model.GPT's state_dict as arrays of float32.
    """

    def __init__(self, config: Mapping, weights: Mapping[str, np.ndarray]):
        self.config = config
        self.embedding = weights["token_embedding.weight"]  # (V, C)
        self.positions = None if config["no_pos"] else weights["position_embedding.weight"]  # (max_seq_len, C)
        self.layers = [Layer(config, weights, f"layers.{i}.") for i in range(config["n_layer"])]
        self.norm = weights["norm.weight"], weights["norm.bias"]
        self.head = padded(self.embedding.T)  # (C, V), tied

    def with_cache(self, rows: int) -> "Decoder":
        """The same model with an empty cache for so many texts: keys and values (layers, B, h, room, d)."""
        other, c = copy.copy(self), self.config
        set_blas_threads(c["n_embd"])
        shape = (2, c["n_layer"], rows, c["n_head"], 4 * MULTIPLE, c["n_embd"] // c["n_head"])
        other.keys, other.values = np.zeros(shape, dtype=np.float32)
        other.used = 0  # of the room
        return other

    def next_logits(self, windows: Sequence[Sequence[int]], cached: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """The logits (R, V) of the token that follows each of the R windows of token ids, at least one in each.

        cached: how many ids of each are in the cache; rows: their places there.
        """
        new = [window[start:] for window, start in zip(windows, cached, strict=True)]
        longest = max(map(len, new))
        U = np.zeros((len(new), longest), dtype=np.int64)  # no position looks to its right: any padding will do
        for row, ids in zip(U, new, strict=True):
            row[: len(ids)] = ids
        features = self.features(U, np.asarray(cached), np.asarray(rows))
        last = features[np.arange(len(new)), [len(ids) - 1 for ids in new]]  # (R, C)
        return product(last, self.head)[:, : len(self.embedding)]

    def features(self, U: np.ndarray, starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The handout's steps 1 to 5 and the norm: (R, L) ids, which come after `starts` others, -> (R, L, C)."""
        # Step 1: the positions of the new tokens
        P = starts[:, None] + np.arange(U.shape[1])  # (R, L)
        S = max(2, -(-(P.max() + 1) // MULTIPLE)) * MULTIPLE
        self.reserve(S)
        self.used = max(self.used, S)
        # Step 2, 3: embeddings
        x = self.embedding[U]  # (R, L, C)
        if self.positions is not None:
            x = x + self.positions[np.minimum(P, len(self.positions) - 1)]  # the padding may go beyond the window
        # Step 4: the mask, -∞ where a position must not look
        M = np.where(np.arange(S) > P[:, :, None], np.float32(-np.inf), np.float32(0))[:, None]  # (R, 1, L, S)
        # Step 5: the layers
        for i, layer in enumerate(self.layers):
            x = layer(x, M, self.keys[i], self.values[i], rows, P)
        return layer_norm(x, *self.norm)

    def reserve(self, length: int) -> None:
        """Makes room for `length` tokens, and for as many again, so that the mean cost of a token stays the same."""
        room = self.keys.shape[-2]
        if length > room:
            more = [(0, 0)] * 3 + [(0, max(length, 2 * room) - room), (0, 0)]
            self.keys, self.values = np.pad(self.keys, more), np.pad(self.values, more)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies what is known of the texts in some rows into other rows."""
        sources, targets = list(sources), list(targets)
        for store in (self.keys, self.values):
            store[:, targets, :, : self.used] = store[:, sources, :, : self.used]


class Layer:
    """model.TransformerLayer: attention and feed-forward, each behind a LayerNorm."""

    def __init__(self, config: Mapping, weights: Mapping[str, np.ndarray], name: str):
        def linear(*parts: str) -> tuple[np.ndarray, np.ndarray]:
            """Linear layers side by side, as one: their weight (in, out) and bias (out,)."""
            both = [np.concatenate([weights[f"{name}{part}.{kind}"] for part in parts]) for kind in ("weight", "bias")]
            return padded(both[0].T), both[1]

        def norm(part: str) -> tuple[np.ndarray, np.ndarray]:
            return weights[f"{name}{part}.weight"], weights[f"{name}{part}.bias"]

        self.n_head, self.no_res = config["n_head"], config["no_res"]
        self.attention_norm, self.feed_forward_norm = norm("attention_norm"), norm("feed_forward_norm")
        self.query_key_value = linear("attention.query", "attention.key", "attention.value")
        self.out = linear("attention.out")
        self.up, self.down = linear("feed_forward.up"), linear("feed_forward.down")

    def __call__(self, x, M, keys, values, rows, P) -> np.ndarray:
        """x: (R, L, C) -> (R, L, C). keys, values: (B, h, room, d), of which `rows` (R,) and P (R, L) are x's."""
        attended = self.attention(layer_norm(x, *self.attention_norm), M, keys, values, rows, P)
        x = attended if self.no_res else x + attended
        hidden = gelu(affine(layer_norm(x, *self.feed_forward_norm), *self.up))
        transformed = affine(hidden, *self.down)
        return transformed if self.no_res else x + transformed

    def attention(self, x, M, keys, values, rows, P) -> np.ndarray:
        """model.MultiHeadAttention, which looks at the tokens in the cache too."""
        R, L, C = x.shape
        h, d, S = self.n_head, C // self.n_head, M.shape[-1]
        # Step 1, 2: queries, keys and values, in heads
        q, k, v = affine(x, *self.query_key_value).reshape(R, L, 3, h, d).transpose(2, 0, 1, 3, 4)  # (R, L, h, d)
        keys[rows[:, None], :, P] = k
        values[rows[:, None], :, P] = v
        every = slice(None) if len(rows) == len(keys) else rows  # all of them: no copy
        k, v = keys[every, :, :S], values[every, :, :S]  # (R, h, S, d)
        # Step 3: q kᵀ / √d + M, softmax over the keys, and the mean of the values by these weights
        q = q.transpose(0, 2, 1, 3) / np.float32(math.sqrt(d))
        if L == 1:
            q = np.concatenate([q, q], axis=2)  # see product()
        scores = q @ k.transpose(0, 1, 3, 2)  # (R, h, L, S)
        scores += M
        scores -= scores.max(-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        # In one order, whatever S is: numpy adds long rows otherwise than short ones
        total = weights.reshape(*weights.shape[:-1], -1, MULTIPLE).sum(-2).sum(-1, keepdims=True)
        out = sum(weights[..., s : s + CHUNK] @ v[:, :, s : s + CHUNK] for s in range(0, S, CHUNK))
        out = (out / total)[:, :, :L]  # (R, h, L, d)
        # Step 4, 5: the heads side by side, and the output layer
        return affine(out.transpose(0, 2, 1, 3).reshape(R, L, C), *self.out)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """torch.nn.LayerNorm over the last dimension."""
    C = np.float32(x.shape[-1])
    x = x - x.sum(-1, keepdims=True) / C
    variance = np.square(x).sum(-1, keepdims=True) / C
    return x / np.sqrt(variance + np.float32(EPS)) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU by tanh, as GPT-2 has it (Hendrycks & Gimpel 2016)."""
    return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)))


def affine(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """torch.nn.Linear with a weight (in, out): (R, L, in) -> (R, L, out)."""
    R, L, _ = x.shape
    return (product(x.reshape(R * L, -1), weight)[:, : len(bias)] + bias).reshape(R, L, -1)


def padded(weight: np.ndarray) -> np.ndarray:
    """(in, out) with columns of zeros up to a multiple, for product()."""
    return np.ascontiguousarray(np.pad(weight, [(0, 0), (0, -weight.shape[1] % MULTIPLE)]))


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x @ weight, (N, in) @ (in, out), in which a row is the same to the last bit whatever the number of rows.

    So it is on processors with AVX-512; OpenBLAS's kernels for AVX2 round a row by its place, too.

    OpenBLAS, which numpy comes with, computes one row by other steps than several, cuts many inputs into blocks if
    there are many rows, and has steps of its own for the columns that are left over in a small product: sums in another
    order are rounded otherwise. So one row is doubled, the blocks are ours, and weights are padded().
    """
    rows = np.concatenate([x, x]) if len(x) == 1 else x
    total = rows[:, :CHUNK] @ weight[:CHUNK]
    for start in range(CHUNK, len(weight), CHUNK):
        total += rows[:, start : start + CHUNK] @ weight[start : start + CHUNK]
    return total[: len(x)]
