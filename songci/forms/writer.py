"""Holds sampling to the forms of tunes: each poem has one template, and at each step the tokens that go on with it.

The template is drawn as poets chose: by the number of poems that have it, among those that fit what is given. From then
on it is a list of places, and the model chooses among what the next one allows: the mark that is due, or the characters
of its tone, and in a rhyming place of its group's rhyme class. Some token is always allowed, so no poem comes to a dead
end.
"""

import copy
from collections.abc import Callable

import numpy as np

from songci.cli import UserError
from songci.forms.draft import Draft
from songci.forms.poems import BLANK, is_character, read_clauses, split_title
from songci.forms.rules import FormRules, weighted
from songci.forms.tones import NAMES


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
