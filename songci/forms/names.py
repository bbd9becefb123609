"""Names of tunes in a corpus: misprinted ones, and which of two names a poem has rightly."""

from collections import Counter, defaultdict

from songci.forms.poems import pattern, read_clauses

COMMON = 10  # poems of a tune from which on its name is known
RARER = 3  # times as rare must a misprint be
SAME = 1 / 3  # of its poems must have clauses as long as those of some poem of the tune
LONG = 5  # characters of a name that no other tune's will resemble by chance


def named(poems: list[tuple[str, str, str]]) -> tuple[list[tuple[str, str]], dict[str, str], dict[str, Counter]]:
    """Poems (other name or "", tune, text) → (tune, text), {other name: tune}, {what was put right: {how: poems}}.

    Of the two names that of the tune is taken if the poems are in its form, else the other one.
    """
    wrong = misprints([(tune, text) for _, tune, text in poems])
    notes = {"misprinted names of tunes": Counter(f"{tune} → {wrong[tune]}" for _, tune, _ in poems if tune in wrong)}
    poems = [(wrong.get(name, name), wrong.get(tune, tune), text) for name, tune, text in poems]
    apart = misfiled(poems)
    moved = Counter(f"{name}, not {tune}" for name, tune, _ in poems if (name, tune) in apart)
    notes["names of their own, being in other forms than the tune where they are filed"] = moved
    titled, others = [], defaultdict(Counter)
    for name, tune, text in poems:
        own, other = (name, tune) if (name, tune) in apart else (tune, name)
        titled.append((own, text))
        others[other][own] += 1
    tunes = {tune for tune, _ in titled} | {""}  # a name that is also a tune of its own (渔父) stays that tune
    aliases = {name: counts.most_common(1)[0][0] for name, counts in sorted(others.items()) if name not in tunes}
    return titled, aliases, notes


def misprints(poems: list[tuple[str, str]]) -> dict[str, str]:
    """{misprinted name: the tune's name} for (tune, text) pairs.

    A misprint differs in one character from the name of a commoner tune, and a third of its poems or more have clauses
    of the same lengths as poems of that tune.
    """
    lengths = defaultdict(list)  # of the clauses of each poem
    for tune, text in poems:
        lengths[tune].append(_lengths(text))
    common = sorted((t for t in lengths if len(lengths[t]) >= COMMON), key=lambda tune: -len(lengths[tune]))
    found = {}
    for name, own in lengths.items():
        for tune in common:
            alike = len(name) == len(tune) > 2 and sum(a != b for a, b in zip(name, tune, strict=True)) == 1
            if alike and RARER * len(own) <= len(lengths[tune]):
                same = sum(form in lengths[tune] for form in own)
                if len(name) >= LONG or same >= SAME * len(own):
                    found.setdefault(name, tune)
    return found


def misfiled(poems: list[tuple[str, str, str]]) -> set[tuple[str, str]]:
    """The (other name, tune) of poems that are in another form than the tune: a table for named().

    A third of the poems of a name have clauses, or sentences, as long as those of some poem that has the tune's name
    alone, or they are misfiled; if no poem has it alone, of one that has it beside a third name.
    """
    forms: dict[str, dict[str, list[set]]] = defaultdict(lambda: defaultdict(list))
    for name, tune, text in poems:
        sentences = tuple(sum(_lengths(sentence)) for sentence in text.split("。"))
        forms[tune][name].append({_lengths(text), ("sentences", *sentences)})
    found = set()
    for tune, of_name in forms.items():
        for name in of_name.keys() - {""}:
            others = [""] if "" in of_name else of_name.keys() - {name}
            known = set().union(*(form for other in others for form in of_name[other]))
            same = sum(not known.isdisjoint(form) for form in of_name[name])
            if same < SAME * len(of_name[name]):
                found.add((name, tune))
    return found


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(length for length, _ in pattern(read_clauses(text)))
