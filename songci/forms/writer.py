"""Holds sampling to the forms of tunes: at each step, the tokens with which a poem can still keep one of them.

What has been written leaves some templates of the tune possible, each with the rhyme classes that its groups have by
now; the model chooses among the characters and marks that one of these allows. A template that a choice rules out is
dropped, and what is allowed always leaves one: a poem never comes to a dead end.
"""

from collections import Counter
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.forms.poems import MARKS, is_character, tune_of
from songci.forms.templates import Forms, Template

ANY, RHYMING = "any character", "any with a rhyme class"  # kinds of tokens, beside characters and rhyme classes


class FormRules:
    """What the poems of a run have in common: the forms, what --acrostic and --rhyme ask, and the masks of tokens.

    acrostic: the characters that begin the sentences to be written, in order.
    rhyme: a character that the poem's longest group of rhymes is to rhyme with.
    Raises UserError if one of these cannot be kept, or if the forms do not belong to the vocabulary.
    """

    def __init__(self, forms: Forms, vocabulary: Vocabulary, acrostic: str = "", rhyme: str = ""):
        self.forms, self.vocabulary, self.acrostic = forms, vocabulary, acrostic
        # (V,) what each token is
        self._codes = np.array([ord(char) for char in vocabulary.chars])  # numpy takes the string "\0" for an empty one
        self._marks = np.array([MARKS.get(char, "") for char in vocabulary.chars])
        self._classes = np.array([forms.classes.get(char, -1) for char in vocabulary.chars])
        self._countable = np.array([char.isalnum() for char in vocabulary.chars])
        self._masks: dict[frozenset, Tensor] = {}
        vocabulary.encode(acrostic)
        if not all(map(is_character, acrostic)):
            raise UserError(f"--acrostic {acrostic!r}: only characters can begin a sentence, no marks and no spaces")
        if not forms.tunes or not {*"+\n", *forms.classes, *"".join(forms.tunes)} <= set(vocabulary.chars):
            raise UserError(
                "--form: forms.json has no form, or is of another corpus: run prepare.py on one with +++titles"
            )
        if len(rhyme) > 1 or (rhyme and rhyme not in forms.classes):
            raise UserError(f"--rhyme {rhyme!r}: give one character that the poems of the corpus rhyme with")
        self.rhyme_class = forms.classes[rhyme] if rhyme else None

    def exactly(self, chars: frozenset[str]) -> Tensor:
        """(V,) True for the tokens of these very characters, not for marks that count as the same."""
        return torch.from_numpy(np.isin(self._codes, list(map(ord, chars))))

    def mask(self, kinds: frozenset) -> Tensor:
        """(V,) True for the tokens of these kinds: ANY, RHYMING, the number of a rhyme class, a character or a mark."""
        if kinds not in self._masks:
            wanted = [kind for kind in kinds if isinstance(kind, str) and kind not in (ANY, RHYMING)]
            allowed = np.isin(self._codes, list(map(ord, wanted))) | np.isin(self._marks, wanted)
            allowed |= np.isin(self._classes, [kind for kind in kinds if isinstance(kind, int)])
            if ANY in kinds:
                allowed |= self._countable
            if RHYMING in kinds:
                allowed |= self._classes >= 0
            self._masks[kinds] = torch.from_numpy(allowed)
        return self._masks[kinds]

    def possible(self, template: Template, groups: dict[str, int], sentences: int) -> dict[str, int] | None:
        """{letter: rhyme class} of the template's groups once --acrostic and --rhyme are kept; None if they cannot be.

        groups: those that are settled so far; sentences: how many have been begun.
        """
        groups = dict(groups)
        if self.rhyme_class is not None:
            letters = Counter(template.scheme.replace("-", "")).most_common(1)  # the longest group, the first of equals
            if not letters or groups.setdefault(letters[0][0], self.rhyme_class) != self.rhyme_class:
                return None
        starts = [i for i in range(len(template.clauses)) if i == 0 or template.clauses[i - 1][1] == "。"]
        if len(starts) - sentences < len(self.acrostic):
            return None
        for char, i in zip(self.acrostic, starts[sentences:], strict=False):
            letter = template.rhyme_of[i].strip("-")
            if letter and template.clauses[i][0] == 1:  # begins the sentence, and is its rhyme
                own = self.forms.classes.get(char)
                if own is None or groups.setdefault(letter, own) != own:
                    return None
        return groups

    @cached_property
    def titles(self) -> list[str]:
        """The title lines of the tunes of which some template is possible."""
        return [
            f"+++{tune}\n"
            for tune, templates in self.forms.tunes.items()
            if any(self.possible(template, {}, 0) is not None for template in templates)
        ]


class FormWriter:
    """A poem under way that keeps a form: for generation.generate(). `done`: it is complete."""

    def __init__(self, rules: FormRules, start: str):
        """start: its beginning, of any length, the title line first. Raises UserError if that fits no form."""
        self.rules, self.done = rules, False
        self.prefix = ""  # of the title line, while that is being written
        self.tune = None
        self.alive: list[tuple[Template, dict[str, int]]] = []  # what is possible, with the classes of its rhyme groups
        self.clause = self.place = self.sentences = self.begun = 0  # begun: sentences that `start` has begun
        self.paused = self.broken = False  # whether 、 or a line end was just written
        self.last = ""  # the newest character of a clause
        self.rhymed: list[int] = []  # the tokens that have ended a sentence with a rhyme
        self.clause_before = 0  # the clause that the newest character went into
        before, mark, line = start.rpartition("+++")
        if not mark or (before and not before.endswith("\n")):
            self.prefix = start.strip("\n")
            if self.prefix not in ("", "+", "++"):
                raise UserError("--form: --start has no title line; begin it with one, such as +++清平乐")
            if not rules.titles:
                raise UserError("--form: no tune has so many sentences, or this rhyme: shorten --acrostic")
            return
        title, newline, body = line.partition("\n")
        if not newline and title not in rules.forms.tunes and any(t.startswith(mark + title) for t in rules.titles):
            self.prefix = mark + title  # the beginning of a name
            return
        self.tune = tune_of(title)
        self._begin(body)
        if not newline:  # the model has only to end the line
            if max(map(title.rfind, "（(")) > max(map(title.rfind, "）)")):
                raise UserError(f"--form: the subtitle in --start is not closed: {title}")
            self.prefix = mark + title

    def _begin(self, body: str = "") -> None:
        """Begins the text of the poem, of which `body` is given."""
        self.alive = [(template, {}) for template in self.rules.forms.templates(self.tune)]
        for i, char in enumerate(body):
            before = self.alive
            self._write(char)
            if not self.alive:
                raise UserError(self._misfit(body[: i + 1], before, char))
        self.begun = self.sentences + (not self._at_sentence())
        possible = [(t, self.rules.possible(t, groups, self.begun)) for t, groups in self.alive]
        possible = [(t, groups) for t, groups in possible if groups is not None]
        if not possible:
            most = max(len(t.scheme) for t, _ in self.alive) - self.begun
            raise UserError(
                f"--form: {self.tune} has no template left with what is asked for: --acrostic has "
                f"{len(self.rules.acrostic)} characters, the longest has {most} sentences to write; "
                "or --rhyme contradicts the rhymes given"
            )
        self.alive = possible
        self._finish()

    def _misfit(self, written: str, before: list, char: str) -> str:
        """The error for a given text that fits no template; before: what it fitted until its last character."""
        due = Counter()
        for template, _ in before:
            if self.clause_before < len(template.clauses):
                length, mark = template.clauses[self.clause_before]
                due[f"{length}{mark}"] += template.support
            else:
                due["the end"] += template.support
        near = ", ".join(form for form, _ in due.most_common(5))
        why = f"clause {self.clause_before + 1} may be {near}"
        if is_character(char) and any(f"{self.place}{mark}" in due for mark in "。，"):
            why = f"{char} does not rhyme there"
        shown = written if len(written) <= 20 else "…" + written[-20:]
        return (
            f"--start: {shown!r} fits no template of {self.tune}: {why}; see python -m songci.forms --show {self.tune}"
        )

    def allowed(self) -> Tensor:
        """(V,) True for the tokens that may come next."""
        if self.tune is None:
            lines = [line for line in self.rules.titles if line.startswith(self.prefix)]
            return self.rules.exactly(frozenset(line[len(self.prefix)] for line in lines))
        if self.prefix:
            return self.rules.mask(frozenset("\n"))
        kinds = frozenset(kind for template, groups in self.alive for kind in self._kinds(template, groups))
        allowed = self.rules.mask(kinds)
        if self.rhymed and ANY not in kinds and not any(self.clause in t.repeats for t, _ in self.alive):
            fresh = allowed.clone()  # poets seldom rhyme a character with itself
            fresh[self.rhymed] = False
            return fresh if fresh.any() else allowed
        return allowed

    def _kinds(self, template: Template, groups: dict[str, int]) -> list:
        """The kinds of tokens that may come next in a template."""
        if self.clause == len(template.clauses) or self._break_due(template):
            return ["\n"]
        length, mark = template.clauses[self.clause]
        if self.place == length:
            return [mark]
        kinds = ["、"] if (self.clause, self.place) in template.pauses and not self.paused else []
        sentence = self.sentences - self.begun
        if self._at_sentence() and 0 <= sentence < len(self.rules.acrostic):
            return [self.rules.acrostic[sentence]]
        letter = template.rhyme_of[self.clause].strip("-")
        if letter and self.place + 1 == length:
            return [*kinds, groups.get(letter, RHYMING)]
        return [*kinds, ANY]

    def _at_sentence(self) -> bool:
        """Whether the next character begins a sentence."""
        return self.place == 0 and (self.clause == 0 or self.alive[0][0].clauses[self.clause - 1][1] == "。")

    def _break_due(self, template: Template) -> bool:
        """Whether a line end comes next in a template."""
        return self.place == 0 and not self.broken and self.clause - 1 in template.breaks

    def append(self, token: int) -> None:
        """Goes on with a token that is allowed."""
        char = self.rules.vocabulary.chars[token]
        if self.tune is not None and not self.prefix:
            self._write(char)
            self._finish()
        elif self.tune is not None:
            self.prefix = ""  # the line end
        else:
            self.prefix += char
            if char == "\n":
                self.tune, self.prefix = self.prefix.removeprefix("+++").rstrip("\n"), ""
                self._begin()

    def _write(self, char: str) -> None:
        """Takes a character of the poem's text, and drops the templates that it rules out."""
        self.clause_before, mark = self.clause, MARKS.get(char)
        if char == "\n":
            if self.place > 0:
                self.alive = []
            elif self.clause and not any(self._break_due(t) for t, _ in self.alive):
                self.done = any(self.clause == len(t.clauses) for t, _ in self.alive)
            self.broken = True
        elif mark == "、":
            self.paused = True
        elif mark:
            if mark == "。" and self.last in self.rules.forms.classes:
                self.rhymed.append(int(self.rules.vocabulary.encode(self.last)[0]))
            due = (self.place, mark)
            self.alive = [
                (t, g) for t, g in self.alive if self.clause < len(t.clauses) and t.clauses[self.clause] == due
            ]
            self.sentences += mark == "。"
            self.clause, self.place, self.paused, self.broken = self.clause + 1, 0, False, False
        elif is_character(char):
            advanced = [(t, self._advance(t, groups, char)) for t, groups in self.alive]
            self.alive = [(t, groups) for t, groups in advanced if groups is not None]
            self.place, self.paused, self.last = self.place + 1, False, char

    def _advance(self, template: Template, groups: dict[str, int], char: str) -> dict[str, int] | None:
        """The classes of the template's rhyme groups after one more character; None if it does not fit."""
        if self.clause == len(template.clauses) or self.place >= template.clauses[self.clause][0]:
            return None
        letter = template.rhyme_of[self.clause].strip("-")
        if not letter or self.place + 1 < template.clauses[self.clause][0]:
            return groups
        own = self.rules.forms.classes.get(char)
        if own is None or groups.get(letter, own) != own:
            return None
        return {**groups, letter: own}

    def _finish(self) -> None:
        """The poem is done if no template goes on."""
        self.done = self.done or all(self.clause == len(template.clauses) for template, _ in self.alive)
