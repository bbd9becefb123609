"""Forward, backward and Viterbi over long sequences: blocks of the sequence side by side, in about √T steps of Python.

A recursion such as α_{t+1} = (α_t A) ∘ b(o_{t+1}) seems to need one step after the other. Here the T-1 steps are cut
into K blocks of L, and all blocks take their l-th step together, as the columns of one numpy array: L steps of Python
in all. What a block lacks is the vector that it starts from, the end of the block before it. There are two ways to get
it:

1. A guess: most chains soon forget where they came from. Each block is entered some steps early, from a vector of
   ones. Then all blocks run, and the end of each is compared with the guess for the next. If they differ, the ends are
   a better guess, and the blocks run once more. If they agree, the result is right, because a step never increases the
   distance between two vectors (Hilbert's projective metric; G. Birkhoff, "Extensions of Jentzsch's theorem", 1957. For
   Viterbi: S. Maleki et al., "Parallelizing dynamic programming through rank convergence", PPoPP 2014).
2. If the second guess fails too, products: first the N × N matrices of each block's steps are multiplied, all blocks
   at once, which is possible because the product is associative; then they hand the true start on from block to block.
   (With more than 48 states that is more work than it saves. Then the blocks run one after the other, the only case of
   one Python step per symbol.)

All this holds for matrix products with other sums and products: (+, ×) gives α and β, the same in logarithms gives them
where floats would underflow, and (max, +) gives δ. For (max, +) logarithms are whole numbers of a fine unit. They add
exactly in any order, so the guess is compared exactly, and what ties in truth ties here (see `FixedPoint`).
"""

import copy
import math

import numpy as np

WARM_UP = 64  # steps by which a guess enters a block early
PRODUCTS_UP_TO = 48  # states: a product takes N³ operations a step, N times as many as the sweep itself


class Blocks:
    """The steps 1 … T-1 of `obs` (T,) as K blocks of L; the last may be shorter, and stands still after its end.

    `symbols` (L, K) holds o_t for step l of block k, where t = 1 + kL + l. `last` is the number of steps of the last
    block, `count` is K, `length` is L.
    """

    def __init__(self, obs: np.ndarray, num_states: int):
        self.obs, steps = obs, len(obs) - 1
        # About √T blocks, but so few that an array with N² numbers for each still fits into the processor's cache
        wanted = min(round(1.5 * math.sqrt(steps)), max(16, 2**17 // num_states**2))
        self.length = -(-steps // max(1, wanted))
        self.count = -(-steps // self.length) if steps else 1
        self.last = steps - (self.count - 1) * self.length
        symbols = np.zeros(self.count * self.length, dtype=np.intp)
        symbols[:steps] = obs[1:]
        self.symbols = np.ascontiguousarray(symbols.reshape(self.count, self.length).T)

    def in_time(self, table: np.ndarray, first=None) -> np.ndarray:
        """A table (L, N, K) of steps → (T-1, N) in the order of time, or (T, N) with `first` as the row before."""
        _, n, _ = table.shape
        rows, skip = len(self.obs) - 1, 0 if first is None else 1
        result = np.empty((self.count * self.length + skip, n), dtype=table.dtype)
        result[skip:].reshape(self.count, self.length, n)[...] = table.transpose(2, 0, 1)
        if skip:
            result[0] = first
        return result[: rows + skip]


# One sweep through all blocks, side by side.


class Sweep:
    """A recursion over `blocks` with the sums and products of `algebra`, one of those in semirings.py.

    `forward` is v ← (A^T v) ∘ b(o), for α and δ; `backward` is v ← A (b(o) ∘ v), for β.
    """

    def __init__(self, algebra, blocks: Blocks):
        self.algebra, self.blocks, self._products = algebra, blocks, None

    def forward(self, v, first_step=0, table=None, norms=None, psi=None):
        """From v (N, K) at the starts of the blocks → at their ends, scaled, and the logarithm of the scale.

        `table` (L, N, K), `psi` (L, N, K) and `norms` (L, K) are filled with the value after each step, ψ, and the
        logarithm of the scale so far.
        """
        algebra, blocks = self.algebra, self.blocks
        v, norm = algebra.scale(v)
        for step in range(first_step, blocks.length):
            new = algebra.times(algebra.at, v, None if psi is None else psi[step])
            new = algebra.emit(new, blocks.symbols[step])
            if step >= blocks.last:
                new[:, -1] = v[:, -1]
                if psi is not None:
                    psi[step, :, -1] = np.arange(len(v))
            v = new
            if step % algebra.stride == 0:
                v, shift = algebra.scale(v)
                norm = norm + shift
            if table is not None:
                table[step], norms[step] = v, norm
        v, shift = algebra.scale(v)
        return v, norm + shift

    def backward(self, v, steps=None, table=None, norms=None):
        """From v (N, K) at the ends of the blocks → at their starts. `table` gets what each step begins with."""
        algebra, blocks = self.algebra, self.blocks
        v, norm = algebra.scale(v)
        for step in reversed(range(blocks.length if steps is None else steps)):
            if table is not None:
                table[step], norms[step] = v, norm
            new = algebra.times(algebra.a, algebra.emit(v, blocks.symbols[step]))
            if step >= blocks.last:
                new[:, -1] = v[:, -1]
            v = new
            if step % algebra.stride == 0:
                v, shift = algebra.scale(v)
                norm = norm + shift
        v, shift = algebra.scale(v)
        return v, norm + shift

    def run(self, first, backward=False, **tables):
        """The sweep with the right start of every block; `first` (N, 1) is that of the first, or backward of the last.

        Returns the ends of the blocks (N, K), scaled; the logarithms of their scales (K,); and for each block the sum
        of those of `first` and of all blocks before it (K,). Fills the tables.
        """
        sweep, count = self.backward if backward else self.forward, self.blocks.count
        first, norm = self.algebra.scale(first)
        inner, outer = (slice(1, None), slice(None, -1)) if backward else (slice(None, -1), slice(1, None))
        starts = self._guess(first, backward)
        ends, norms = sweep(starts, **tables)
        for better in self._from_ends, self._exact:
            if self.algebra.same(ends[:, inner], starts[:, outer]):
                break
            starts = better(first, backward, ends)
            ends, norms = sweep(starts, **tables)
        before = np.zeros(count)
        before[outer] = np.cumsum(norms[::-1])[:-1][::-1] if backward else np.cumsum(norms)[:-1]
        return ends, norms, before + norm

    def _guess(self, first, backward):
        """Starts (N, K) from a few steps of the block before."""
        ones, length = np.full((len(first), self.blocks.count), self.algebra.one), self.blocks.length
        if self.blocks.count == 1:
            return first
        if backward:
            return self._from_ends(first, backward, self.backward(ones, steps=min(WARM_UP, length))[0])
        return self._from_ends(first, backward, self.forward(ones, first_step=max(0, length - WARM_UP))[0])

    def _from_ends(self, first, backward, ends):
        """Starts (N, K): the ends of the blocks before."""
        return np.hstack([ends[:, 1:], first] if backward else [first, ends[:, :-1]])

    def _exact(self, first, backward, ends):
        """The right starts (N, K), by the products of each block's matrices."""
        algebra, n, count = self.algebra, len(first), self.blocks.count
        if n > PRODUCTS_UP_TO:
            return self._one_by_one(first, backward)
        if self._products is None:  # P[i, j, k]: from state j to state i in block k, one scale per block
            unit = np.where(np.eye(n, dtype=bool), algebra.one, algebra.zero)
            self._products = self._multiply(np.repeat(unit, count, axis=1).reshape(n, n, count))
        starts = [first]
        for k in self._order(backward):
            matrix = self._products[:, :, k].T if backward else self._products[:, :, k]
            starts.append(algebra.scale(algebra.times(matrix, starts[-1]))[0])
        return np.hstack(starts[::-1] if backward else starts)

    def _one_by_one(self, first, backward):
        """The right starts (N, K), by running one block after the other."""
        starts = [first]
        for k in self._order(backward):
            block = copy.copy(self.blocks)
            block.symbols, block.count = self.blocks.symbols[:, k : k + 1], 1
            block.last = self.blocks.last if k == self.blocks.count - 1 else block.length
            alone = Sweep(self.algebra, block)
            starts.append((alone.backward if backward else alone.forward)(starts[-1])[0])
        return np.hstack(starts[::-1] if backward else starts)

    def _order(self, backward):
        """The blocks that hand their end on, in that order."""
        return range(self.blocks.count - 1, 0, -1) if backward else range(self.blocks.count - 1)

    def _multiply(self, product):
        """The products (N, N, K) of the matrices of each block's steps; `product` is the identity."""
        algebra, blocks = self.algebra, self.blocks
        n, _, count = product.shape
        for step in range(blocks.length):
            flat = algebra.times(algebra.at, product.reshape(n, n * count))
            new = algebra.emit(flat, np.tile(blocks.symbols[step], n)).reshape(n, n, count)
            if step >= blocks.last:
                new[..., -1] = product[..., -1]
            product = new
            if step % algebra.stride == 0:
                product = _scale_blocks(algebra, product)
        return _scale_blocks(algebra, product)


def follow(maps: np.ndarray, first: int, backward: bool = False) -> np.ndarray:
    """The states (L, K) that the maps (L, N, K) lead to from the state `first`; maps[l, i, k] is the state after i.

    All blocks are followed side by side, from all N states; then the end of one block selects the state in the next.
    With `backward` the walk begins at the end of the last block, and maps[l, i, k] is the state before i.
    """
    length, n, count = maps.shape
    if not length:
        return np.empty((0, count), dtype=maps.dtype)
    columns, reached = np.arange(count), np.empty(maps.shape, dtype=maps.dtype)
    at = np.arange(n)[:, None] * count + columns  # index of (state, block) in a map
    order, blocks = range(length), range(count)
    if backward:
        order, blocks = order[::-1], blocks[::-1]
    for step in order:
        maps[step].ravel().take(at, out=reached[step], mode="clip")
        at = np.multiply(reached[step], count, dtype=np.intp)
        at += columns
    starts, ends = np.empty(count, dtype=np.intp), reached[order[-1]].tolist()
    for k in blocks:
        starts[k], first = first, ends[first][k]
    return reached[:, starts, columns]


def _scale_blocks(algebra, product):
    n, _, count = product.shape
    return algebra.scale(product.reshape(n * n, count))[0].reshape(n, n, count)
