"""What the poems of a run have in common: the forms, what the user asks for, and the masks of tokens."""

import copy
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from itertools import accumulate, chain

import numpy as np

from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.forms.draft import Draft, recut
from songci.forms.groups import apart
from songci.forms.poems import BLANK, MARKS, is_character, read_clauses
from songci.forms.refrains import always
from songci.forms.templates import Forms, own_form
from songci.forms.tones import EITHER, contrary, nearness, tone_of


class FormRules:
    """What the poems of a run have in common: the forms, what the user asks for, and the masks of tokens.

    acrostic: the characters that begin the sentences to be written, in order; or all clauses, if as many.
    rhyme: a character that the poem's longest group of rhymes is to rhyme with.
    template: the number of the template to be taken, from 1, the commonest; 0: any.
    Raises UserError if one of these cannot be kept, or if the forms do not belong to the vocabulary.
    """

    def __init__(self, forms: Forms, vocabulary: Vocabulary, acrostic: str = "", rhyme: str = "", template: int = 0):
        self.forms, self.vocabulary = forms, vocabulary
        self.acrostic, self.rhyme, self.template = acrostic, rhyme, template
        chars = vocabulary.chars
        # (V,) what each token is
        self._codes = np.array([ord(char) for char in chars])  # numpy takes the string "\0" for an empty one
        self._marks = np.array([MARKS.get(char, "") for char in chars])
        # (V, classes): whether it is of the class, and whether that is the one of its tone in which it rhymes most
        self._classes, self._best = np.zeros((2, len(chars), len(forms.class_tones)), bool)
        for i, char in enumerate(chars):
            best: dict[str, int] = {}
            for number in forms.classes.get(char, ()):
                self._classes[i, number] = True
                self._best[i, number] = best.setdefault(forms.class_tones[number], number) == number
        countable = np.array([is_character(char) and char != BLANK for char in chars])
        own = [tone_of(char, forms.level) for char in chars]
        self._toned = {tone: countable & [not contrary(tone, of_char) for of_char in own] for tone in "平仄中"}
        self.mask, self.rhyming, self.with_form = map(cache, (self.mask, self.rhyming, self.with_form))
        vocabulary.encode(acrostic)
        if not all(map(is_character, acrostic)):
            raise UserError(f"--acrostic {acrostic!r}: only characters can begin a sentence, no marks and no spaces")
        if not forms.tunes or not {*"+\n", *forms.classes, *"".join(forms.tunes)} <= set(chars):
            raise UserError(
                "--form: forms.json has no form, or is of another corpus: run prepare.py on one with +++titles"
            )
        if len(rhyme) > 1 or (rhyme and rhyme not in forms.classes):
            raise UserError(f"--rhyme {rhyme!r}: give one character that the poems of the corpus rhyme with")

    def exactly(self, chars: str) -> np.ndarray:
        """(V,) True for the tokens of these very characters, not for marks that count as the same."""
        return np.isin(self._codes, list(map(ord, chars)))

    def mask(self, mark: str, tone: str = EITHER) -> np.ndarray:
        """(V,) True for the tokens of a mark, or for characters of a tone if that is ""."""
        if mark:
            return (self._marks == mark) | (self._codes == ord(mark))
        return self._toned[tone]

    def rhyming(self, numbers: frozenset[int] | None, group_tone: str, tone: str) -> np.ndarray:
        """(V,) True for the characters of rhyme classes, or of any class of the group's tone, that have the tone.

        A character of several classes of one tone is written in the one where it rhymes most. If none has the tone,
        the tone gives way.
        """
        own = [i for i, of_class in enumerate(self.forms.class_tones) if not contrary(of_class, group_tone)]
        chosen = own if numbers is None else sorted(numbers)
        found = (self._best[:, chosen], self._classes[:, chosen], self._classes)
        in_class = next((some.any(1) for some in found if some.any()), self._classes.any(1))
        toned = in_class & self._toned[tone]
        return toned if toned.any() else in_class

    @cached_property
    def rhyme_shares(self) -> dict[int, float]:
        """{class: share of the groups of rhymes in the corpus that are of it}."""
        counts = Counter()
        for template in chain(*self.forms.tunes.values()):
            for of_letter in template.rhymes.values():
                counts.update(of_letter)
        return {number: count / counts.total() for number, count in counts.items()}

    def draw_rhymes(self, draft: Draft, uniform: Callable[[], float]) -> None:
        """Gives each group of rhymes one of the classes of its tone that it may have: as one of the poems has them all.

        Or, as if there were one poem more, or if none fits, each by itself: as often as the template's poems have it,
        or any, as often as the corpus has it; then two groups get two classes, and bound ones such as go together.
        """
        template = draft.template
        known = {classes: number for classes, number in template.joint.items() if self._fits(draft, classes)}
        for letter, number in zip(template.letters, weighted({**known, (): 1}, uniform()), strict=False):
            if number >= 0:
                draft.groups[letter] = frozenset({number})
        for letter in sorted(template.letters, key=lambda letter: (letter not in draft.groups, letter)):
            if len(draft.groups.get(letter, ())) != 1:
                self._draw_rhyme(draft, letter, uniform)

    def draw_refrains(self, draft: Draft, uniform: Callable[[], float]) -> None:
        """Each refrain of the template as often as its poems have it, and always if nearly all have.

        By one number for all of them: poets who repeat one of 一剪梅's clauses repeat the others.
        """
        template = draft.template
        fixed = always(template.refrains, template.support)
        point = uniform() * template.support if len(fixed) < len(template.refrains) else 0
        for refrain in template.refrains:
            if refrain in fixed or point < refrain.poems:
                draft.repeat(refrain)

    def _fits(self, draft: Draft, classes: tuple[int, ...]) -> bool:
        """Whether these classes, one a letter, are such as the groups may have, in tone and together."""
        template = draft.template
        for letter, number in zip(template.letters, classes, strict=True):
            own = draft.groups.get(letter, {number})
            if number >= 0 and not (number in own and self._in_tone(draft, letter, number)):
                return False
        return not apart(classes, template.joint, template.bound)

    def _in_tone(self, draft: Draft, letter: str, number: int) -> bool:
        return not contrary(draft.template.rhyme_tone(letter), self.forms.class_tones[number])

    def _draw_rhyme(self, draft: Draft, letter: str, uniform: Callable[[], float]) -> None:
        """Gives one group a class, by itself."""
        template, own = draft.template, draft.groups.get(letter)
        others = {other: of for other, of in draft.groups.items() if other != letter and len(of) == 1}
        at = template.letters.index(letter)
        tied = [template.letters[i + j - at] for i, j in template.bound if at in (i, j)]
        allowed = {
            number: template.rhymes[letter][number] + share
            for number, share in self.rhyme_shares.items()
            if self._in_tone(draft, letter, number)
            and (number in own if own else not any(number in of for of in others.values()))
        }
        kin = {n for n in allowed if all((*others[tie], n) in self.forms.kin for tie in tied if tie in others)}
        allowed = {number: weight for number, weight in allowed.items() if number in kin} or allowed
        if allowed:
            draft.groups[letter] = frozenset({weighted(allowed, uniform())})

    def settle(self, draft: Draft) -> bool:
        """Whether --acrostic and --rhyme can be kept in the draft, whose groups get the classes that they ask for."""
        template = draft.template
        if self.rhyme:
            letter, tones = template.longest_group, self.forms.class_tones
            tone = template.rhyme_tone(letter)
            own = [number for number in self.forms.classes[self.rhyme] if not contrary(tone, tones[number])]
            if not letter or not draft.join(letter, own):
                return False
        begins = draft.begins()
        if len(begins) < len(self.acrostic):
            begins = draft.begins(clauses=True)
            if len(begins) != len(self.acrostic):
                return False
        for char, i in zip(self.acrostic, begins, strict=False):
            letter = template.slots[i].rhyme
            if letter and not draft.join(letter, self.forms.classes.get(char, ())):  # a sentence of one character
                return False
            draft.given[i] = char
        return True

    @cached_property
    def titles(self) -> list[str]:
        """The title lines of the tunes of which some template can be had."""
        return [f"+++{tune}\n" for tune in self.forms.tunes if self.drafts(tune, "")]

    def with_form(self, tune: str, body: str) -> "FormRules":
        """These rules, to which a tune that the training split lacks has the form of the text that is given."""
        print(f"the training split has no poem of {tune}: it has the form of the text that is given", file=sys.stderr)
        rules = copy.copy(self)
        rules.forms = replace(self.forms, tunes={**self.forms.tunes, tune: [own_form(body)]}, unseen=frozenset())
        return rules

    def begun(self, tune: str) -> list[Draft]:
        """A poem of which nothing is written, in each template of the tune, or in the one that --template asks for."""
        templates = self.forms.templates(tune)
        chosen = templates[self.template - 1 : self.template] if self.template else templates
        return [Draft(template, self.forms.classes) for template in chosen]

    def recut(self, tune: str, body: str) -> list[Draft]:
        """As begun(), in the templates with the clauses of a text that is given, where that is cut otherwise."""
        clauses, drafts = read_clauses(body), []
        for draft in self.begun(tune) if clauses else []:
            template = recut(draft.template, clauses)
            if template is not None:
                doubtful = self.forms.doubtful(tune, draft.template)
                places = frozenset(i for i, end in enumerate(template.ends) if end in doubtful)
                drafts.append(Draft(template, self.forms.classes, places))
        return drafts

    def drafts(self, tune: str, body: str) -> list[Draft]:
        """The beginning of a poem in each of the tune's templates that fit it and what is asked for."""
        drafts = [draft for draft in self.begun(tune) if draft.lay(body) and self.settle(draft)]
        if not drafts:
            drafts = [draft for draft in self.recut(tune, body) if draft.lay(body) and self.settle(draft)]
        # What is rare or punctuated otherwise is taken if nothing else fits
        drafts = [draft for draft in drafts if draft.same_marks] or drafts
        drafts = [draft for draft in drafts if not self.forms.is_variant(tune, draft.template)] or drafts
        # Of several with the same clauses, what is given begins the one whose tones it keeps best
        text = "".join(clause.text for clause in read_clauses(body))
        near, best = [nearness(text, draft.template.tones, self.forms.level) for draft in drafts], {}
        for draft, own in zip(drafts, near, strict=True):
            best[draft.template.clauses] = max(own, best.get(draft.template.clauses, own))
        return [draft for draft, own in zip(drafts, near, strict=True) if own == best[draft.template.clauses]]


def weighted(weights: dict, uniform: float):
    """One of the keys, in proportion to its weight, by a number in [0, 1)."""
    point, bounds = uniform * sum(weights.values()), accumulate(weights.values())
    return next((key for key, bound in zip(weights, bounds, strict=True) if point < bound), [*weights][-1])
