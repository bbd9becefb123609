"""How much better particles fill a draft than one text does: poems of the validation split, with blanks.

Of poems whose rhymes are of one class, as those of drafts have to be. Nats a given character: the mean -ln p of the
characters that were given and follow a blank, in the poem as it was filled; the fewer, the better the filling leads to
them. The first line is what the poems' own fillings give.

  python benchmarks/filling.py --ckpt_path workdirs/quansongci
"""

import argparse
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from lookahead import as_if_written

from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, read_splits
from songci.evaluate import draw_poems, table
from songci.forms.check import check
from songci.forms.poems import BLANK, is_character
from songci.forms.rules import FormRules
from songci.forms.scores import mean
from songci.forms.templates import Forms
from songci.machine import seed_of
from songci.runs import load_trained
from songci.writing.decoder import Decoder
from songci.writing.generation import FORM_CONTROLS, Text
from songci.writing.samples import Request, complete


def blanked(text: str) -> str:
    return "".join(BLANK if is_character(char) else char for char in text)


def at_random(body: str, rng: random.Random) -> str:
    """With 30 % of the characters blank."""
    return "".join(BLANK if is_character(char) and rng.random() < 0.3 else char for char in body)


def clauses(body: str, rng: random.Random) -> str:
    """With half of the clauses blank."""
    parts = re.findall(r"[^。，]*[。，]\n?", body)
    blank = set(rng.sample(range(len(parts)), max(1, len(parts) // 2)))
    return "".join(blanked(part) if i in blank else part for i, part in enumerate(parts))


def last(body: str, rng: random.Random) -> str:
    """With the last clause given alone."""
    *before, end = re.findall(r"[^。，]*[。，]\n?", body)
    return blanked("".join(before)) + end


WAYS = {"30 % of the characters blank": at_random, "half of the clauses blank": clauses, "the last clause given": last}


def given(text: Text, draft: str) -> list[float]:
    """ln p of each character that the draft gives after its first blank."""
    first, written = draft.index(BLANK), str(text).partition("\n")[2]
    offset = len(written.rstrip("\n")) - len(text.new)  # what stands in the prompt
    places = [i for i, char in enumerate(draft) if i > first and is_character(char) and char != BLANK]
    return [text.records[i - offset].log_prob for i in places]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT)
    parser.add_argument("--ckpt_path", default="workdirs/quansongci")
    parser.add_argument("--poems", type=int, default=200)
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 4, 16])
    args = parser.parse_args()
    forms, trained = Forms.load(args.data_root), load_trained(args.ckpt_path, args.data_root)
    rules = FormRules(forms, trained.vocabulary)
    held_out = draw_poems(read_splits(args.data_root)[1], forms, 10**4, 1)
    whole = [(tune, body.strip()) for tune, body in held_out if check(tune, body, forms).rhyme]
    poems = list(dict.fromkeys(whole))[: args.poems]
    drafts = {name: [way(body, random.Random(i)) for i, (_, body) in enumerate(poems)] for name, way in WAYS.items()}
    rows = {"people": []}
    read = as_if_written(trained, poems, rules)
    for name in WAYS:
        found = [
            p for text, draft in zip(read, drafts[name], strict=True) if BLANK in draft for p in given(text, draft)
        ]
        rows["people"].append(f"{-mean(found):.3f}")
    model = Decoder(trained.config, trained.weights)
    for particles in args.particles:
        request = Request("", rules=rules, controls=FORM_CONTROLS, particles=particles, with_likelihood=True)
        rows[str(particles)] = []
        for name in WAYS:
            found, size = [], request.texts_at_once
            for first in range(0, len(poems), size):
                some = [
                    (Text(trained, f"+++{tune}\n{draft}", seed_of(1, i, 0), rules=rules), draft)
                    for i, ((tune, _), draft) in enumerate(zip(poems, drafts[name], strict=True))
                    if first <= i < first + size and BLANK in draft
                ]
                complete(model, [text for text, _ in some], request)
                found += [p for text, draft in some for p in given(text, draft)]
            rows[str(particles)].append(f"{-mean(found):.3f}")
    print(table("particles", WAYS, rows))


if __name__ == "__main__":
    main()
