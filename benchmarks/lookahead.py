"""What look-ahead gains, and what it costs: poems of the commonest tunes, written with more and more particles.

price: nats a token at temperature 1, -ln of the probability that the model gave to all that the form allowed.
rhymes < 1 %: the share of the rhyming places at which this was less than 1 %.
line ends: the share of the sentences' last two characters that end a sentence somewhere in the training split: a
measure that the particles do not know. same rhyme: of two poems of a tune, how often both have the same main rhyme
class. Jaccard: of the bigrams of two poems of a tune. People: poems of the same tunes in the validation split.

  python benchmarks/lookahead.py --ckpt_path workdirs/quansongci
"""

import argparse
import math
import sys
import time
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, read_splits
from songci.evaluate import table
from songci.forms.check import check
from songci.forms.draft import Draft
from songci.forms.poems import read_clauses, read_poems
from songci.forms.rhymes import common_class
from songci.forms.rules import FormRules
from songci.forms.scores import diversity, han, mean
from songci.forms.templates import Forms
from songci.machine import seed_of
from songci.runs import Trained, load_trained
from songci.writing.decoder import Decoder
from songci.writing.generation import FORM_CONTROLS, Step, Text, next_logits
from songci.writing.samples import Request, complete


def line_ends(body: str) -> list[str]:
    """The last two characters of each sentence."""
    return [clause.text[-2:] for clause in read_clauses(body) if clause.mark == "。" and len(clause.text) > 1]


def main_rhyme(tune: str, body: str, forms: Forms) -> int | None:
    """The class of the poem's longest group of rhymes."""
    result = check(tune, body, forms)
    group = result.rhymes.get(result.template.longest_group, [])
    return common_class([char for _, char, fits in group if fits], forms.classes)


def rhyme_costs(text: Text, rules: FormRules) -> list[float]:
    """What the form kept, as a log, at each rhyming place of a finished poem."""
    draft, costs = Draft(text.form.draft.template, rules.forms.classes), []
    for token, record in zip(text.new, text.records, strict=True):
        char, at = rules.vocabulary.chars[token], draft.at
        draft.take(char)
        if draft.at > at and draft.template.slots[draft.at - 1].rhyme:
            costs.append(record.log_mass)
    return costs


def as_if_written(trained: Trained, poems: list[tuple[str, str]], rules: FormRules) -> list[Text]:
    """Poems by people, as far as they are in a form, as if the model had written them in it."""
    texts, bodies = [], []
    for tune, body in poems:
        if (result := check(tune, body, rules.forms)).form:
            own = FormRules(rules.forms, rules.vocabulary, template=result.number)
            text = Text(trained, f"+++{tune}\n", 1, rules=own)
            classes = {
                letter: common_class([char for _, char, fits in group if fits], rules.forms.classes)
                for letter, group in result.rhymes.items()
            }
            text.form.draft.groups = {letter: frozenset({of}) for letter, of in classes.items() if of is not None}
            texts.append(text)
            bodies.append(trained.vocabulary.encode(body.strip()).tolist())
    model = Decoder(trained.config, trained.weights).with_cache(len(texts))
    while rows := [i for i, text in enumerate(texts) if not text.done and len(text.new) < len(bodies[i])]:
        reading = [texts[i] for i in rows]
        ids = np.array([bodies[i][len(texts[i].new)] for i in rows])
        logits = next_logits(model, [text.window for text in reading], rows, len(trained.vocabulary))
        Step(reading, logits, logits, np.stack([text.form.allowed() for text in reading]), ids).record()
        for text, token in zip(reading, ids.tolist(), strict=True):
            text.append(token)
    return texts


def row(poems: dict[str, list[str]], texts: list[Text], rules: FormRules, ends: set[str], seconds: float) -> list[str]:
    bodies = [(tune, body) for tune, of_tune in poems.items() for body in of_tune]
    kept = [record.log_mass for text in texts for record in text.records]
    costs = [cost for text in texts for cost in rhyme_costs(text, rules)]
    pairs = [(tune, *pair) for tune, of_tune in poems.items() for pair in combinations(of_tune, 2)]
    grams = {body: {han(body)[i : i + 2] for i in range(len(han(body)) - 1)} for _, body in bodies}
    rhymes = {body: main_rhyme(tune, body, rules.forms) for tune, body in bodies}
    return [
        f"{-mean(kept):.3f}",
        f"{mean(cost < math.log(0.01) for cost in costs):.1%}",
        f"{mean(end in ends for _, body in bodies for end in line_ends(body)):.1%}",
        f"{diversity(bodies)['distinct-1 per poem']:.1%}",
        f"{mean(len(grams[a] & grams[b]) / len(grams[a] | grams[b]) for _, a, b in pairs):.4f}",
        f"{mean(rhymes[a] == rhymes[b] for _, a, b in pairs):.0%}",
        f"{seconds / len(bodies):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT)
    parser.add_argument("--ckpt_path", default="workdirs/quansongci")
    parser.add_argument("--tunes", type=int, default=12, metavar="N", help="the N commonest")
    parser.add_argument("--num_samples", type=int, default=20, help="poems of each tune")
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 4, 8, 16, 64])
    parser.add_argument("--show", action="store_true", help="print the poems too")
    args = parser.parse_args()
    forms, trained = Forms.load(args.data_root), load_trained(args.ckpt_path, args.data_root)
    rules = FormRules(forms, trained.vocabulary)
    training, held_out = (list(read_poems(part)) for part in read_splits(args.data_root))
    ends = {end for _, body in training for end in line_ends(body)}
    tunes = [tune for tune, _ in Counter(tune for tune, _ in training).most_common(args.tunes)]
    of_tunes = [poem for tune in tunes for poem in [p for p in held_out if p[0] == tune][: args.num_samples]]
    read, people = as_if_written(trained, of_tunes, rules), defaultdict(list)
    for text in read:
        people[text.start[3:-1]].append(str(text).partition("\n")[2])
    rows = {f"people, {len(read)} poems": row(people, read, rules, ends, float("nan"))}
    model = Decoder(trained.config, trained.weights)
    for particles in args.particles:
        request = Request("", rules=rules, controls=FORM_CONTROLS, particles=particles, with_likelihood=True)
        size = request.texts_at_once
        poems, texts, start = {}, [], time.perf_counter()
        for number, tune in enumerate(tunes):
            of_tune = [
                Text(trained, f"+++{tune}\n", seed_of(1, number, i), rules=rules) for i in range(args.num_samples)
            ]
            for i in range(0, args.num_samples, size):
                complete(model, of_tune[i : i + size], request)
            poems[tune] = [str(text).partition("\n")[2] for text in of_tune]
            texts += of_tune
        rows[f"{particles}"] = row(poems, texts, rules, ends, time.perf_counter() - start)
        if args.show:
            print("\n".join(f"{particles} {text}" for text in texts))
    names = ["price", "rhymes < 1 %", "line ends", "distinct-1", "Jaccard", "same rhyme", "s a poem"]
    print(table("particles", names, rows))


if __name__ == "__main__":
    main()
