"""The rhyme classes that are learned, beside 词林正韵's 19 部 (benchmarks/cilin.py), which nothing learns from.

python benchmarks/rhymes.py              the classes, how pure they are, and what --check says of people's rhymes
python benchmarks/rhymes.py --write      poems written with --rhyme: how many stay within one 部, and people's
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import songci  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
from cilin import of_most, parts, within_one

from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, read_splits
from songci.forms.check import check, rhyme_pairs
from songci.forms.poems import read_poems
from songci.forms.rules import FormRules
from songci.forms.templates import Forms
from songci.forms.tones import EITHER, tone_of
from songci.runs import load_trained
from songci.writing.generation import FORM_CONTROLS
from songci.writing.samples import Request, samples

RHYMES = {**dict.fromkeys("春情来花多", "浣溪沙"), **dict.fromkeys("月影", "蝶恋花")}  # and a tune of their tone


def groups(tune: str, body: str, forms: Forms) -> list[str]:
    """The rhyme characters of each group of a poem in a form that several have."""
    result = check(tune, body, forms)
    if not result.form or result.template.support < 2:
        return []
    return ["".join(char for _, char, _ in group) for group in result.rhymes.values()]


def by_part(forms: Forms) -> list[Counter]:
    """For each class how many of its characters are of each 部: of those with a single one, in their first class."""
    counts = [Counter() for _ in forms.class_tones]
    for char, (first, *_) in forms.classes.items():
        if len(own := parts(char)) == 1:
            counts[first].update(own)
    return counts


def purity(counts: list[Counter]) -> float:
    """The share of the characters that are of their class's commonest 部."""
    return sum(max(of.values()) for of in counts if of) / sum(of.total() for of in counts)


def tone_purity(forms: Forms) -> list[float]:
    """For each class the share of its tone among the characters of one tone that have it as their first."""
    found = [Counter() for _ in forms.class_tones]
    for char, (first, *_) in forms.classes.items():
        found[first][tone_of(char, forms.level)] += 1
    return [of[tone] / max(1, of.total() - of[EITHER]) for of, tone in zip(found, forms.class_tones, strict=True)]


def weighed(counts: list[Counter], forms: Forms, poems: list[tuple[str, str]]) -> float:
    """purity() by how often the characters rhyme."""
    times = Counter(char for tune, body in poems for group in groups(tune, body, forms) for char in group)
    right = total = 0
    for char, (first, *_) in forms.classes.items():
        if len(own := parts(char)) == 1:
            [(part, _)] = counts[first].most_common(1)
            right, total = right + times[char] * (part in own), total + times[char]
    return right / total


def flags(poems: list[tuple[str, str]], forms: Forms) -> dict[str, int]:
    """What --check says of the rhymes of poems in form, by whether 词林正韵 has the character with the most others."""
    found, pairs = Counter(), []
    for tune, body in poems:
        result = check(tune, body, forms)
        if not result.form or result.template.support < 2:
            continue
        pairs += rhyme_pairs(result, forms)
        for group in result.rhymes.values():
            most = of_most("".join(char for _, char, _ in group))
            for place, char, fits in group:
                of_char = {number for number, _ in parts(char)}
                says = "rhymes" if fits else "never heard" if place in result.unheard else "does not rhyme"
                found[says, "rightly" if fits == (most in of_char) else "falsely"] += 1
    print(f"{sum(pairs) / len(pairs):.1%} of {len(pairs):,} pairs of neighbouring rhymes are of one class")
    return {f"{says}, {right}": count for (says, right), count in sorted(found.items())}


def write(forms: Forms, data_root: str, ckpt_path: str, number: int, people: list[str]) -> None:
    """A line a rhyme: the share of the groups with the character that stay within one 部, people's and ours."""
    trained = load_trained(ckpt_path, data_root)
    print("| rhyme | tune | people | written |\n|---|---|---|---|")
    for char, tune in RHYMES.items():
        rules = FormRules(forms, trained.vocabulary, rhyme=char)
        texts = [
            s.text.partition("\n")[2]
            for s in samples(trained, Request(f"+++{tune}\n", number, controls=FORM_CONTROLS, rules=rules))
        ]
        own = [max(groups(tune, text, forms), key=len) for text in texts]
        theirs = [group for group in people if char in group and len(set(group)) > 2]
        shares = (sum(map(within_one, of)) / len(of) for of in (theirs, own))
        print(f"| {char} | {tune} |", *(f"{share:.0%} |" for share in shares), own[0], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT)
    parser.add_argument("--ckpt_path", default="workdirs/quansongci")
    parser.add_argument("--num_samples", type=int, default=10, help="poems with each rhyme")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    forms = Forms.load(args.data_root)
    training, held_out = (list(read_poems(split)) for split in read_splits(args.data_root))
    if args.write:
        people = [group for tune, body in training for group in groups(tune, body, forms)]
        return write(forms, args.data_root, args.ckpt_path, args.num_samples, people)
    counts, members = by_part(forms), defaultdict(list)
    for char, own in forms.classes.items():
        for number in own:
            members[number].append(char)
    print("| class | tone | characters | also | rhyming most | 部 of its characters with a single one | of its tone |")
    print("|---|---|---|---|---|---|---|")
    for number, (tone, of, pure) in enumerate(zip(forms.class_tones, counts, tone_purity(forms), strict=True)):
        first = [char for char in members[number] if forms.classes[char][0] == number]
        shares = "、".join(f"{part}{own} {n / of.total():.0%}" for (part, own), n in of.most_common(3))
        also = len(members[number]) - len(first)
        print(f"| {number + 1} | {tone} | {len(first)} | {also} | {''.join(first[:8])} | {shares} | {pure:.1%} |")
    print(f"\nof their class's commonest 部: {purity(counts):.1%} of the characters, ", end="")
    print(f"{weighed(counts, forms, training):.1%} of the rhymes of people's training poems")
    for name, poems in (("training", training), ("held out", held_out)):
        print(name, flags(poems, forms))
    return None


if __name__ == "__main__":
    main()
