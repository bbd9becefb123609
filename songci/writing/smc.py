"""Poems that see their rhyme coming: sequential Monte Carlo (Lew et al. 2023, "SMC steering", arXiv 2306.03081).

A mask at the end of a line comes too late: if the characters before it lead nowhere that rhymes, it leaves a choice
among improbable ones. So several particles write the same poem, each with choices of its own, and carry a weight: the
product, over its places, of the probability that all that the form allows had there. A line that leads to its rhyme
keeps its weight, one that does not loses it. At the end of a clause, if a few particles have most of the weight, they
are resampled: those with much weight go on several times, those with little end. When the poem is complete, one is
drawn by weight.

With N particles that is a draw from p(poem | form) as N → ∞. p is the model as it is sampled, with its repetition
penalty, temperature, top-k and top-p: a character that these drop has no probability, and a poem that needs it no
weight beside one that does not. Only where nothing that the form allows is left (step 5 of choose()), the likeliest
allowed character stands in, with the probability that it had before top-k. docs/theory.md says why this is so.
"""

from collections.abc import Iterator

import numpy as np

from songci.writing import generation
from songci.writing.generation import Controls, Model, Step, Text, write_next

PARTICLES = 16  # by default; docs/results.md has what fewer do
ESS_THRESHOLD = 0.5  # of the particles: below this effective sample size they are resampled


class ParticleGroup:
    """The particles that write one poem, in step with each other by the slots of its template.

    texts: theirs, of which the first gets the poem; rows: theirs in the cache; log_weights: (N,) since they were last
    resampled. While the model still writes the title, which decides the form, there is one text only.
    """

    def __init__(self, text: Text, rows: range):
        self.texts, self.rows = [text], rows
        self.log_weights = np.zeros(len(rows))

    def writing(self) -> list[int]:
        """The particles that write next: those that are behind, for 、 stands between two slots."""
        places = [text.form.place for text in self.texts]
        return [i for i, place in enumerate(places) if place == min(places) and not self.texts[i].done]

    def resample(self) -> list[tuple[int, int]]:
        """Which particle becomes a copy of which other now, as pairs (source, target)."""
        first = self.texts[0]
        if len(self.texts) < len(self.rows):
            if not first.form.titled:
                return []
            self.texts += [first.fork() for _ in self.rows[1:]]
            self.log_weights[:] = 0  # all begin alike
            return [(0, i) for i in range(1, len(self.rows))]
        if not all(text.form.place == first.form.place for text in self.texts) or not first.form.at_clause_end:
            return []
        weights = self.weights()
        if 1 / (weights**2).sum() >= ESS_THRESHOLD * len(weights):
            return []
        # Systematic resampling: of N evenly spaced points, a particle gets those that fall into its weight
        points = (first.rng.random() + np.arange(len(weights))) / len(weights)
        drawn = np.minimum(np.searchsorted(weights.cumsum(), points), len(weights) - 1)
        counts = np.bincount(drawn, minlength=len(weights))
        more = np.repeat(np.arange(len(counts)), np.maximum(counts - 1, 0))
        pairs = list(zip(more.tolist(), np.flatnonzero(counts == 0).tolist(), strict=True))
        for source, target in pairs:
            self.texts[target].copy_state_from(self.texts[source])
        self.log_weights[:] = 0
        return pairs

    def weights(self) -> np.ndarray:
        """(N,) in proportion, their sum 1."""
        weights = np.exp(self.log_weights - self.log_weights.max())
        return weights / weights.sum()

    def select_final(self) -> None:
        """Gives the first text the poem of one particle, drawn by weight."""
        point, bounds = self.texts[0].rng.random(), self.weights().cumsum()
        self.texts[0].copy_state_from(self.texts[min(np.searchsorted(bounds, point), len(bounds) - 1)])


def generate(model: Model, texts: list[Text], controls: Controls, particles: int) -> Iterator[Step]:
    """Writes texts that keep a form, as generation.generate() does, with so many particles for each."""
    if particles == 1 or controls.temperature == 0:  # of the likeliest characters there is one poem only
        yield from generation.generate(model, texts, controls)
        return
    model = model.with_cache(len(texts) * particles)
    groups = [ParticleGroup(text, range(i * particles, (i + 1) * particles)) for i, text in enumerate(texts)]
    while True:
        pairs = [(group.rows[a], group.rows[b]) for group in groups for a, b in group.resample()]
        if pairs:
            model.copy(*zip(*pairs, strict=True))
        turns = [(group, i) for group in groups for i in group.writing()]
        if not turns:
            break
        writing, rows = [group.texts[i] for group, i in turns], [group.rows[i] for group, i in turns]
        step, log_mass = write_next(model, writing, rows, controls)
        for (group, i), mass in zip(turns, log_mass, strict=True):
            group.log_weights[i] += mass
        yield step
    for group in groups:
        group.select_final()
