"""How many freely sampled poems have an attested form of their tune: the clause lengths and marks of a real poem.

A form is the list of (characters in a clause, 。 or ，); 、 does not count. The title line is given, the rest is free.

  python benchmarks/form.py                           six common tunes, 60 poems of each
  python benchmarks/form.py --commonest 20            the twenty commonest tunes
  python benchmarks/form.py --form --num_samples 3    held to a form, in every tune that has one: form and rhyme checked
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from songci.cli import read_text
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT
from songci.forms.check import check
from songci.forms.poems import pattern, read_clauses, read_poems
from songci.forms.templates import Forms
from songci.forms.writer import FormRules
from songci.generation import FORM_CONTROLS, samples
from songci.training.checkpoint import Trained, load_model

TUNES = ["清平乐", "浣溪沙", "菩萨蛮", "如梦令", "蝶恋花", "水调歌头"]


def attested_forms(data_root: str) -> dict[str, Counter]:
    """{tune: {form: number of poems}} of the whole corpus; for a form, see poems.pattern()."""
    forms = defaultdict(Counter)
    for tune, body in read_poems(read_text(Path(data_root) / "input.txt").splitlines(keepends=True)):
        forms[tune][pattern(read_clauses(body))] += 1
    return forms


def every_tune(trained: Trained, learned: Forms, num_samples: int) -> None:
    """Samples held to a form: how many keep form and rhyme, and the time of one long poem."""
    rules, good, total, start = FormRules(learned, trained.vocabulary), 0, 0, time.perf_counter()
    for tune in learned.tunes:
        for sample in samples(trained, f"+++{tune}\n", num_samples, 0, rules=rules, controls=FORM_CONTROLS):
            good += check(tune, sample.text.partition("\n")[2], learned).rhyme
            total += 1
    seconds = time.perf_counter() - start
    print(f"{len(learned.tunes)} tunes: {good} of {total} poems in form and in rhyme, in {seconds:.0f} s")
    start = time.perf_counter()
    [sample] = samples(trained, "+++水调歌头\n", 1, 0, rules=rules, controls=FORM_CONTROLS)
    print(f"one 水调歌头 of {sample.tokens} characters: {time.perf_counter() - start:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT)
    parser.add_argument("--ckpt_path", default="workdirs/quansongci")
    parser.add_argument("--num_samples", type=int, default=60, help="poems of each tune")
    parser.add_argument(
        "--commonest", type=int, help="the N commonest tunes of the corpus instead of the six", metavar="N"
    )
    parser.add_argument("--max_new_tokens", type=int, default=200)
    parser.add_argument("--form", action="store_true", help="hold the poems to the forms of forms.json, and check them")
    args = parser.parse_args()
    forms = attested_forms(args.data_root)
    tunes = TUNES
    if args.commonest:
        tunes = sorted(forms, key=lambda tune: -forms[tune].total())[: args.commonest]
    trained = load_model(args.ckpt_path, torch.device("cpu"))
    if args.form:
        every_tune(trained, Forms.load(args.data_root), args.num_samples)
        return
    print("| tune | poems in an attested form | share |\n|---|---|---|")
    good = 0
    for tune in tunes:
        start = f"+++{tune}\n"
        made = samples(trained, start, args.num_samples, args.max_new_tokens, poem=True)
        fitting = sum(pattern(read_clauses(sample.text.removeprefix(start))) in forms[tune] for sample in made)
        good += fitting
        print(f"| {tune} | {fitting} of {args.num_samples} | {fitting / args.num_samples:.0%} |", flush=True)
    total = len(tunes) * args.num_samples
    print(f"| all | {good} of {total} | {good / total:.0%} |")


if __name__ == "__main__":
    main()
