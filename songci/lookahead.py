"""Poems that see their rhyme coming: sequential Monte Carlo (Lew et al. 2023, "SMC steering", arXiv 2306.03081).

A mask at the end of a line comes too late: if the characters before it lead nowhere that rhymes, it leaves a choice
among improbable ones. So several *particles* write the same poem, each with choices of its own, and carry a weight:
the product, over its places, of the probability that the model gave to all that the form allowed there. A line that
leads to its rhyme keeps its weight, one that does not loses it. At the end of a clause, if a few of them have most of
the weight, all are drawn anew by weight: the heavy ones go on several times, the light ones end. When the poem is
complete, one is drawn by weight. With N particles that is a draw from p(poem | form) as N → ∞, p being the model as it
is sampled, with its temperature and repetition penalty; docs/theory.md says why.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from model import GPT
from songci import generation
from songci.cache import KVCache
from songci.generation import Controls, Step, Text, allowed_tokens, next_logits, penalisable, penalised, sample_next

PARTICLES = 16  # by default; docs/results.md has what fewer do
EFFECTIVE = 0.5  # of the particles: below this effective number, they are drawn anew


class Swarm:
    """The particles that write one poem; they are in the same place of its form, or about to be.

    texts: theirs, of which the first gets the poem; rows: theirs in the cache; log_weights: (N,) since they were last
    drawn anew. While the model still writes the title, which decides the form, there is one text only.
    """

    def __init__(self, text: Text, rows: range):
        self.texts, self.rows = [text], rows
        self.log_weights = np.zeros(len(rows))

    def writing(self) -> list[int]:
        """The particles that write next: those that are behind, for 、 stands between two places of the form."""
        places = [text.form.place for text in self.texts]
        return [i for i, place in enumerate(places) if place == min(places) and not self.texts[i].done]

    def copies(self) -> list[tuple[int, int]]:
        """Which particle becomes a copy of which other now, as pairs (from, to)."""
        first = self.texts[0]
        if len(self.texts) < len(self.rows):
            if not first.form.titled:
                return []
            self.texts += [first.sibling() for _ in self.rows[1:]]
            return [(0, i) for i in range(1, len(self.rows))]
        if not all(text.form.place == first.form.place for text in self.texts) or not first.form.at_clause_end:
            return []
        weights = self.weights()
        if 1 / (weights**2).sum() >= EFFECTIVE * len(weights):
            return []
        # Systematic resampling: of N evenly spaced points, a particle gets those that fall into its weight
        points = (first.uniform() + np.arange(len(weights))) / len(weights)
        drawn = np.minimum(np.searchsorted(weights.cumsum(), points), len(weights) - 1)
        counts = np.bincount(drawn, minlength=len(weights))
        more = np.repeat(np.arange(len(counts)), np.maximum(counts - 1, 0))
        pairs = list(zip(more.tolist(), np.flatnonzero(counts == 0).tolist(), strict=True))
        for source, target in pairs:
            self.texts[target].become(self.texts[source])
        self.log_weights[:] = 0
        return pairs

    def weights(self) -> np.ndarray:
        """(N,) in proportion, their sum 1."""
        weights = np.exp(self.log_weights - self.log_weights.max())
        return weights / weights.sum()

    def draw(self) -> None:
        """Gives the first text the poem of one particle, drawn by weight."""
        point, bounds = self.texts[0].uniform(), self.weights().cumsum()
        self.texts[0].become(self.texts[min(np.searchsorted(bounds, point), len(bounds) - 1)])


@torch.inference_mode()
def generate(model: GPT, texts: list[Text], controls: Controls, particles: int) -> Iterator[Step]:
    """Writes texts that keep a form, as generation.generate() does, with so many particles for each."""
    if particles == 1 or controls.temperature == 0:  # of the likeliest characters there is one poem only
        yield from generation.generate(model, texts, controls)
        return
    model.eval()
    swarms = [Swarm(text, range(i * particles, (i + 1) * particles)) for i, text in enumerate(texts)]
    cache = KVCache(model, len(texts) * particles)
    counts = penalisable(texts[0].vocabulary, model.device)
    seen = torch.zeros(len(texts) * particles, model.config.vocab_size, dtype=torch.bool, device=model.device)
    for swarm in swarms:
        seen[swarm.rows.start, swarm.texts[0].prompt] = counts[swarm.texts[0].prompt]
    while True:
        pairs = [(swarm.rows[a], swarm.rows[b]) for swarm in swarms for a, b in swarm.copies()]
        if pairs:
            sources, targets = (torch.tensor(rows, device=model.device) for rows in zip(*pairs, strict=True))
            cache.copy(sources, targets)
            seen[targets] = seen[sources]
        turns = [(swarm, i) for swarm in swarms for i in swarm.writing()]
        if not turns:
            break
        writing, rows = [swarm.texts[i] for swarm, i in turns], [swarm.rows[i] for swarm, i in turns]
        logits = next_logits(model, [text.context for text in writing], cache, rows)  # (R, V)
        allowed = allowed_tokens(writing, model.device)
        tempered = penalised(logits, controls, seen[rows]) / controls.temperature
        within = tempered.masked_fill(~allowed, -math.inf)
        kept = (within.double().logsumexp(-1) - tempered.double().logsumexp(-1)).tolist()
        uniform = torch.tensor([text.uniform() for text in writing], dtype=torch.double)
        ids = sample_next(within, uniform, Controls(1.0, controls.top_k, controls.top_p)).to(model.device)
        seen[rows, ids] = counts[ids]
        for (swarm, i), token, log_mass in zip(turns, ids.tolist(), kept, strict=True):
            swarm.texts[i].append(token)
            swarm.log_weights[i] += log_mass
        yield Step(writing, logits, allowed, ids)
    for swarm in swarms:
        swarm.draw()
