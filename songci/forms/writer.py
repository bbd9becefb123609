"""Holds sampling to the forms of tunes: each poem has one template, and at each step the tokens that go on with it.

The template is drawn as poets chose: by the number of poems that have it, among those that fit what is given. From then
on it is a list of places, and the model chooses among what the next one allows: the mark that is due, or the characters
of its tone, and in a rhyming place of its group's rhyme class. Some token is always allowed, so no poem comes to a dead
end.
"""

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
from songci.forms.poems import BLANK, MARKS, is_character, read_clauses, split_title
from songci.forms.refrains import always
from songci.forms.templates import Forms, own_form
from songci.forms.tones import EITHER, NAMES, contrary, nearness, tone_of


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


class FormWriter:
    """A poem under way that keeps a form: for generation.generate(). `done`: it is complete."""

    def __init__(self, rules: FormRules, start: str, uniform: Callable[[], float]):
        """start: its beginning, of any length, the title line first; uniform: gives random numbers in [0, 1).

        Raises UserError if that fits no form.
        """
        self.rules, self.uniform, self.draft = rules, uniform, None
        self.prefix = ""  # of the title line, while that is being written
        self.outline = ""  # what has been written, with blanks for the characters that were not given
        before, mark, line = start.rpartition("+++")
        if not mark or (before and not before.endswith("\n")):
            self.prefix = start.strip("\n")
            if self.prefix not in ("", "+", "++"):
                raise UserError("--form: --start has no title line; begin it with one, such as +++清平乐")
            if not rules.titles:
                raise UserError(f"no tune has a form for {self._wishes()}")
            return
        title, newline, body = line.partition("\n")
        if not newline and title not in rules.forms.tunes and any(t.startswith(mark + title) for t in rules.titles):
            self.prefix = mark + title  # the beginning of a name
            return
        if BLANK in title:
            raise UserError(f"--start: the title +++{title} has a blank, which only the poem can have")
        self._begin(split_title(title)[0], body)
        if not newline:  # the model has only to end the line
            if max(map(title.rfind, "（(")) > max(map(title.rfind, "）)")):
                raise UserError(f"--form: the subtitle in --start is not closed: {title}")
            self.prefix = mark + title

    def _wishes(self) -> str:
        """What the user has asked for beside the tune."""
        rules = self.rules
        wishes = {"--template": rules.template, "--acrostic": rules.acrostic, "--rhyme": rules.rhyme}
        return " and ".join(f"{flag} {value}" for flag, value in wishes.items() if value)

    def _begin(self, tune: str, body: str) -> None:
        """Draws the template of a poem whose text begins with `body`."""
        if tune in self.rules.forms.unseen and read_clauses(body):
            self.rules = self.rules.with_form(tune, body)
        known, number = len(self.rules.forms.templates(tune)), self.rules.template
        if number > known:
            raise UserError(f"--template {number}: {tune} has {known}; see python -m songci.forms --show {tune}")
        drafts = self.rules.drafts(tune, body)
        if not drafts:
            raise UserError(self._misfit(tune, body))
        self.draft = weighted({draft: draft.template.support for draft in drafts}, self.uniform())
        self.rules.draw_rhymes(self.draft, self.uniform)
        self.rules.draw_refrains(self.draft, self.uniform)
        self.begun = self.draft.copy()

    def _misfit(self, tune: str, body: str) -> str:
        """The error if no template fits the text that is given, or what is asked for."""
        rules = self.rules
        tried = rules.begun(tune) + rules.recut(tune, body)
        for i, char in enumerate(body, start=1):
            left = [draft for draft in tried if draft.take(char)]
            if not left:
                return self._misfit_text(tune, body[:i], tried)
            tried = left
        most = max(len(draft.begins()) for draft in tried)
        if most < len(rules.acrostic):
            return self._misfit_acrostic(tune, tried)
        if rules.rhyme and not any(draft.groups for draft in tried):
            own = {NAMES.get(rules.forms.class_tones[number]) for number in rules.forms.classes[rules.rhyme]}
            kinds = {NAMES.get(draft.template.rhyme_tone(draft.template.longest_group)) for draft in tried} - {None}
            if None not in own and kinds and not own & kinds:
                of_char, due = (" or ".join(sorted(tones)) for tones in (own, kinds))
                return f"--rhyme {rules.rhyme}: it is {of_char}, and the rhymes of {tune} are {due}"
        given = " with the text that is given" if body.strip() else ""
        return f"no template of {tune} has {self._wishes()}{given}"

    def _misfit_acrostic(self, tune: str, tried: list[Draft]) -> str:
        """The error for an acrostic of more characters than there are sentences to write, and not one a clause."""
        acrostic = self.rules.acrostic
        usual = max(tried, key=lambda draft: draft.template.support)
        sentences, clauses = (max(len(draft.begins(all_of)) for draft in tried) for all_of in (False, True))
        length, mark = usual.template.clauses[0]
        draft = f"{acrostic[0]}{BLANK * (length - 1)}{mark}…"
        return (
            f"--acrostic has {len(acrostic)} characters; {tune} has {sentences} sentences to write, and {clauses} "
            f"clauses: give one a clause or at most one a sentence, or a draft in --start such as {draft}"
        )

    def _misfit_text(self, tune: str, written: str, tried: list[Draft]) -> str:
        """The error for a text whose last character fits none of the drafts that were left before it."""
        last = max(tried, key=lambda draft: draft.template.support)
        slots = last.template.slots
        number = slots[last.at].clause if not last.done else len(last.template.clauses)
        due = dict.fromkeys(
            "{}{}".format(*draft.template.clauses[number]) if number < len(draft.template.clauses) else "the end"
            for draft in sorted(tried, key=lambda draft: -draft.template.support)
        )
        why = f"clause {number + 1} may be {', '.join(list(due)[:5])}"
        if is_character(written[-1]) and not last.done and slots[last.at].mark == "":
            why = f"{written[-1]} does not rhyme there"
        shown = written if len(written) <= 20 else "…" + written[-20:]
        return f"--start: {shown!r} fits no template of {tune}: {why}; see python -m songci.forms --show {tune}"

    def copy(self, uniform: Callable[[], float]) -> "FormWriter":
        """The same poem, to go on otherwise."""
        other = copy.copy(self)
        other.uniform, other.draft = uniform, self.draft and self.draft.copy()
        return other

    def again(self) -> "FormWriter":
        """The same poem before anything of it was written, but for the rhymes: none of them is to be repeated."""
        other = self.copy(self.uniform)
        other.draft = self.begun.copy()
        other.draft.rhymed = self.draft.rhymed
        return other

    @property
    def titled(self) -> bool:
        """Whether the title line is complete, and with it the form is known."""
        return self.draft is not None and not self.prefix

    @property
    def place(self) -> int:
        """The number of slots filled; 0 as long as the form is not known."""
        return self.draft.at if self.draft else 0

    @property
    def at_clause_end(self) -> bool:
        """Whether a mark has just been written, or the line end that follows it."""
        return self.place > 0 and self.draft.template.slots[self.place - 1].mark != ""

    @property
    def done(self) -> bool:
        return self.titled and self.draft.done

    def allowed(self) -> np.ndarray:
        """(V,) True for the tokens that may come next."""
        rules, draft = self.rules, self.draft
        if draft is None:
            lines = [line for line in rules.titles if line.startswith(self.prefix)]
            return rules.exactly("".join(line[len(self.prefix)] for line in lines))
        if self.prefix:
            return rules.mask("\n")
        slot = draft.template.slots[draft.at]
        if draft.at in draft.pauses and not draft.paused:
            return rules.mask("、")
        if draft.at in draft.given:
            return rules.exactly(draft.given[draft.at])
        allowed = self._fitting(draft.at)
        if draft.at in draft.echoes:
            again = allowed & rules.exactly(draft.written[draft.echoes[draft.at]])
            if again.any():
                return again
        for echo in (echo for echo, first in draft.echoes.items() if first == draft.at):  # it must fit there, too
            both = allowed & self._fitting(echo)
            allowed = both if both.any() else allowed
        if slot.rhyme and draft.rhymed and slot.clause not in draft.template.repeats:
            fresh = allowed & ~rules.exactly(draft.rhymed)  # poets seldom rhyme a character with itself
            allowed = fresh if fresh.any() else allowed
        may_pause = slot.pause and not draft.paused and draft.at >= draft.laid
        return allowed | rules.mask("、") if may_pause else allowed

    def _fitting(self, at: int) -> np.ndarray:
        """(V,) True for the tokens that fit a slot: its mark, or the characters of its tone and its group's class."""
        template, slot = self.draft.template, self.draft.template.slots[at]
        if slot.rhyme:
            return self.rules.rhyming(self.draft.groups.get(slot.rhyme), template.rhyme_tone(slot.rhyme), slot.tone)
        return self.rules.mask(slot.mark, slot.tone)

    def append(self, token: int) -> None:
        """Goes on with a token that is allowed."""
        char = self.rules.vocabulary.chars[token]
        blank = self.titled and is_character(char) and self.draft.at not in self.draft.given
        self.outline += BLANK if blank else char
        if self.titled:
            self.draft.take(char)
        elif self.draft is not None:
            self.prefix = ""  # the line end
        else:
            self.prefix += char
            if char == "\n":
                tune, self.prefix = self.prefix.removeprefix("+++").rstrip("\n"), ""
                self._begin(tune, "")
