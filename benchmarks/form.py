"""Whether sampled poems keep their tunes as people do: a line a tune, or all tunes together.

"commonest" is the share of the poems in the tune's commonest form: of all of people's poems in the training split, also
those in forms that nobody else used, and of those sampled. In form, in rhyme and out of tone is as songci.forms --check
has it.

  python benchmarks/form.py                           the twenty commonest tunes, 300 poems each, held to their forms
  python benchmarks/form.py --free --num_samples 60   sampled freely, with the title given
  python benchmarks/form.py --every --num_samples 1   held to a form, in every tune that has one
  python benchmarks/form.py --speed                   characters a second, free and held to a form, in turn
  python benchmarks/form.py --control                 the tones learned from characters shuffled within their poems
"""

import argparse
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, read_splits
from songci.forms import tones
from songci.forms.check import Check, check
from songci.forms.poems import pattern, read_clauses, read_poems
from songci.forms.rules import FormRules
from songci.forms.scores import commonest
from songci.forms.templates import Forms
from songci.runs import load_trained
from songci.writing.generation import DEFAULT, FORM_CONTROLS
from songci.writing.samples import Request, Sample, samples


def row(name: str, people: str, checks: list[Check], forms: Forms, seconds: float) -> str:
    kept = [keeps for result in checks for *_, keeps in result.tones] or [False]
    toned = [not result.wrong for result in checks if result.tones] or [False]
    shares = [
        sum(result.form and commonest(result, forms) for result in checks) / len(checks),
        sum(result.form for result in checks) / len(checks),
        sum(result.rhyme for result in checks) / len(checks),
        sum(kept) / len(kept),
        sum(toned) / len(toned),
    ]
    return f"| {name} | {people} | {' | '.join(f'{share:.1%}' for share in shares)} | {seconds:.1f} |"


def rhyme_table(tunes: list[str], people: dict[str, list[Check]], ours: dict[str, list[Check]], forms: Forms) -> None:
    """The share of each rhyme class among the groups of rhymes, people's and ours, each tune counting the same."""
    shares = []
    for checks in (people, ours):
        total = Counter()
        for tune in tunes:
            classes = Counter(n for result in checks[tune] if result.form for n in result.classes.values() if n >= 0)
            total.update({number: count / classes.total() for number, count in classes.items()})
        shares.append({number: total[number] / total.total() for number in range(len(forms.class_tones))})
    print("\n| class | tone | people | written | difference, points |\n|---|---|---|---|---|")
    for number, tone in enumerate(forms.class_tones):
        chars = "".join([char for char, (first, *_) in forms.classes.items() if first == number][:4])
        theirs, own = (share[number] for share in shares)
        print(f"| {chars} | {tone} | {theirs:.1%} | {own:.1%} | {100 * (own - theirs):+.1f} |")


def joint_table(tunes: list[str], people: dict[str, list[Check]], ours: dict[str, list[Check]]) -> None:
    """Poems with several groups of rhymes: with a class twice, and, where a form binds them, with groups of one 部."""
    print("\n| tune | a class twice, people | written | groups together, people | written |\n|---|---|---|---|---|")
    for tune in tunes:
        twice, together = [], []
        for checks in (people[tune], ours[tune]):
            several = [result for result in checks if result.form and len(result.classes) > 1]
            twice.append([len(set(result.classes.values())) < len(result.classes) for result in several])
            together.append([not result.apart for result in several if result.template.bound])
        if twice[0]:
            cells = (f"{sum(found) / len(found):.1%} of {len(found)}" if found else "" for found in twice + together)
            print(f"| {tune} | {' | '.join(cells)} |")


def refrain_table(forms: Forms, people: list[tuple[str, str]], written: Callable[[str], list[str]]) -> None:
    """The share of the poems of a form that have a refrain, people's and ours; forms of ten poems or more."""
    print("\n| tune | refrain | people | written |\n|---|---|---|---|")
    for tune, templates in forms.tunes.items():
        template = templates[0]
        if template.support < 10 or not template.refrains:
            continue
        kept = []
        for bodies in ([body for name, body in people if name == tune], written(tune)):
            found = [read_clauses(body) for body in bodies if check(tune, body, forms).template is template]
            texts = [[clause.text for clause in poem] for poem in found if pattern(poem) == template.clauses]
            kept.append([[refrain.kept(poem) for refrain in template.refrains] for poem in texts])
        for n, refrain in enumerate(template.refrains):
            shares = (f"{sum(poem[n] for poem in of)} of {len(of)}" for of in kept)
            which = (
                f"{refrain.clause + 1} of {refrain.of + 1}, {'last' if refrain.at_end else 'first'} {refrain.length}"
            )
            print(f"| {tune} | {which} | {' | '.join(shares)} |")


def control(poems: list[tuple[str, str]]) -> None:
    """Tones learned from the training poems, and from the same with the characters of each poem shuffled."""
    plain = [(tune, "".join(clause.text for clause in read_clauses(body))) for tune, body in poems]
    rng = random.Random(1)
    shuffled = [(tune, "".join(rng.sample(text, len(text)))) for tune, text in plain]
    print("| characters | places fixed | accepted |\n|---|---|---|")
    for name, texts in (("as they stand", plain), ("shuffled", shuffled)):
        level, variants = tones.explain(tones.by_form(texts))
        fixed = "".join(tone for of_form in tones.fixed(variants, level).values() for tone in of_form)
        accepted = "yes" if tones.learn_tones(texts)[0] else "no"
        print(f"| {name} | {1 - fixed.count(tones.EITHER) / len(fixed):.2%} | {accepted} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT)
    parser.add_argument("--ckpt_path", default="workdirs/quansongci")
    parser.add_argument("--commonest", type=int, default=20, metavar="N", help="the N commonest tunes of the corpus")
    parser.add_argument("--num_samples", type=int, default=300, help="poems of each tune")
    for flag in ("--free", "--every", "--speed", "--control"):
        parser.add_argument(flag, action="store_true")
    args = parser.parse_args()
    poems = list(read_poems(read_splits(args.data_root)[0]))
    if args.control:
        return control(poems)
    forms, trained = Forms.load(args.data_root), load_trained(args.ckpt_path, args.data_root)
    patterns = defaultdict(Counter)
    for tune, body in poems:
        patterns[tune][pattern(read_clauses(body))] += 1
    common = sorted(forms.tunes, key=lambda tune: -patterns[tune].total())
    tunes = common if args.every else common[: args.commonest]
    rules = FormRules(forms, trained.vocabulary)

    def written(tune: str, free: bool) -> list[Sample]:
        ways = {"controls": DEFAULT, "stop_at_poem_end": True} if free else {"controls": FORM_CONTROLS, "rules": rules}
        return list(samples(trained, Request(f"+++{tune}\n", args.num_samples, 400, **ways)))

    if args.speed:
        for _ in range(3):
            for free in (True, False):
                start = time.perf_counter()
                count = sum(sample.tokens for tune in tunes[:4] for sample in written(tune, free))
                print(
                    "free" if free else "form", f"{count / (time.perf_counter() - start):,.0f} characters/s", flush=True
                )
        return None
    print("| tune | commonest, people | commonest | in form | in rhyme | tones kept | no tone wrong | s |")
    print("|---|---|---|---|---|---|---|---|")
    ours, began = {}, time.perf_counter()
    for tune in tunes:
        start = time.perf_counter()
        checks = [check(tune, sample.text.partition("\n")[2], forms) for sample in written(tune, args.free)]
        ours[tune] = checks
        people = patterns[tune].most_common(1)[0][1] / patterns[tune].total()
        if not args.every:
            print(row(tune, f"{people:.1%}", checks, forms, time.perf_counter() - start), flush=True)
    total = [result for checks in ours.values() for result in checks]
    print(row(f"{len(tunes)} tunes, {len(total):,} poems", "", total, forms, time.perf_counter() - began))
    people = {tune: [check(tune, body, forms) for name, body in poems if name == tune] for tune in tunes}
    rhyme_table(tunes, people, ours, forms)
    joint_table(tunes, people, ours)
    refrain_table(forms, poems, lambda tune: [sample.text.partition("\n")[2] for sample in written(tune, args.free)])
    return None


if __name__ == "__main__":
    main()
