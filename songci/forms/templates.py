"""What the tunes (词牌) demand: their templates and the rhyme classes, and the file forms.json that keeps them."""

import difflib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from songci.cli import UserError, atomic_write


@dataclass(frozen=True)
class Template:
    """A form of a tune.

    clauses: (number of characters, "。" or "，") of each; support: poems that have it.
    scheme: a letter for each clause that ends with 。, the same for those that rhyme, "-" for one without a rhyme.
    pauses: (clause, characters before it) where some poem has 、; breaks: clauses after which most begin a new line.
    repeats: clauses with 。 whose last character is an earlier one's in a good part of the poems, as in a refrain.
    """

    clauses: tuple[tuple[int, str], ...]
    support: int
    scheme: str
    pauses: frozenset[tuple[int, int]] = frozenset()
    breaks: frozenset[int] = frozenset()
    repeats: frozenset[int] = frozenset()

    @cached_property
    def rhyme_of(self) -> list[str]:
        """The letter of each clause; "" for one that ends with ，."""
        letters = iter(self.scheme)
        return [next(letters) if mark == "。" else "" for _, mark in self.clauses]


@dataclass(frozen=True)
class Forms:
    """The templates of each tune, commonest first, and the rhyme class of each character that was seen to rhyme."""

    tunes: dict[str, list[Template]] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)

    def templates(self, tune: str) -> list[Template]:
        """Raises UserError if no form of the tune is known, with the names that were perhaps meant."""
        if tune not in self.tunes:
            close = difflib.get_close_matches(tune, self.tunes, n=3, cutoff=0.5)
            hint = f"; near names: {', '.join(close)}" if close else ""
            raise UserError(f"no form is known of the tune {tune!r}{hint}")
        return self.tunes[tune]

    def save(self, path: Path) -> None:
        """Writes forms.json."""
        by_class = defaultdict(list)
        for char, number in self.classes.items():
            by_class[number].append(char)
        content = {
            "tunes": {tune: [_to_json(t) for t in templates] for tune, templates in self.tunes.items()},
            "rhyme_classes": ["".join(by_class[number]) for number in sorted(by_class)],
        }
        with atomic_write(path, "w") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)

    @classmethod
    def load(cls, data_root: str | Path) -> "Forms":
        """Reads DATA_ROOT/forms.json. Raises UserError if it is missing or damaged."""
        path = Path(data_root) / "forms.json"
        if not path.is_file():
            raise UserError(f"no forms.json in {data_root}: run prepare.py --data_root {data_root}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tunes = {tune: [_from_json(**fields) for fields in found] for tune, found in content["tunes"].items()}
            classes = {char: i for i, chars in enumerate(content["rhyme_classes"]) for char in chars}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = f"{path} is damaged ({type(error).__name__}): run prepare.py --data_root {data_root}"
            raise UserError(message) from None
        return cls(tunes, classes)


def _to_json(template: Template) -> dict:
    """form: the clauses as "4。5，"."""
    return {
        "form": "".join(f"{length}{mark}" for length, mark in template.clauses),
        "support": template.support,
        "scheme": template.scheme,
        "pauses": sorted(template.pauses),
        "breaks": sorted(template.breaks),
        "repeats": sorted(template.repeats),
    }


def _from_json(form: str, support: int, scheme: str, pauses: list, breaks: list, repeats: list) -> Template:
    """The inverse of _to_json(). Raises ValueError or TypeError for what that never writes."""
    clauses = tuple((int(length), mark) for length, mark in re.findall(r"(\d+)([。，])", form))
    if not clauses or len(scheme) != form.count("。"):
        raise ValueError("not a template")
    return Template(clauses, support, scheme, frozenset(map(tuple, pauses)), frozenset(breaks), frozenset(repeats))
