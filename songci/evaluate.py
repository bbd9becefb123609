"""The scoreboard of one or more training runs, beside poems by people.

  python -m songci.evaluate --samples 1000
  python -m songci.evaluate --ckpt_path workdirs/quansongci workdirs/quansongci_no_pos workdirs/quansongci_no_res
  python -m songci.evaluate --out scores.json curves.png

First the runs are compared: their losses in a table, a poem of each. Then poems are scored, of three kinds and over the
same tunes: human (held-out poems of the validation split), free (sampled with the title given) and form (sampled with
`--form`); songci/forms/scores.py says what is scored.
"""

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from songci.cli import ArgumentParser, UserError, atomic_write, check_writable, number, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, fingerprint, load_dataset, read_splits
from songci.corpus.windows import ScoredWindows, title_ids
from songci.curves import plot_curves, read_log
from songci.forms.poems import read_poems
from songci.forms.prompt import as_in_corpus
from songci.forms.rules import FormRules
from songci.forms.scores import Poem, diversity, form_scores, han, mean, novelty
from songci.forms.templates import Forms
from songci.machine import seed_of
from songci.runs import Trained, check_same_data, load_trained, perplexity, run_folder
from songci.writing.decoder import Decoder
from songci.writing.generation import DEFAULT, FORM_CONTROLS, Text
from songci.writing.prompt import first_encodable, read_start
from songci.writing.samples import Request, complete, samples

CURVES = ["train_loss", "val_loss", "train_perplexity", "val_perplexity"]
PICTURES = [".png", ".jpg", ".svg", ".pdf"]
START = r"+++清平乐\n"
MAX_POEM = 400  # characters, a bound for free sampling: the longest tune has 240

RESULT_COLUMNS = {
    "train_loss": "{:.3f}",
    "poem_val_loss": "{:.3f}",
    "poem_perplexity": "{:.1f}",
    "stream_val_loss": "{:.3f}",
    "stream_perplexity": "{:.1f}",
    "iters": "{:.0f}",
    "seconds": "{:.0f}",
    "tokens_per_second": "{:,.0f}",
    "parameters": "{:,.0f}",
}


class Run(NamedTuple):
    """A finished run: its folder, its figures by RESULT_COLUMNS, its lowest validation loss, the rows of its log."""

    folder: Path
    result: dict[str, float]
    best_val_loss: float
    log: list[dict]


def read_run(folder: Path) -> Run:
    """Reads result.json and log.csv. Raises UserError if they are missing or damaged."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        log = read_log(folder / "log.csv")
        result["train_loss"] = log[-1]["train_loss"]
        if any(not {"iter", *CURVES} <= row.keys() for row in log):
            raise ValueError("log.csv lacks columns")
        figures = {key: float(result.get(key, math.nan)) for key in RESULT_COLUMNS}
        return Run(folder, figures, float(result["best_val_loss"]), log)
    except FileNotFoundError as error:
        raise UserError(f"no finished run in {folder} ({error.filename}): run train.py --ckpt_path {folder}") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"the run in {folder} is damaged ({error!r}): train again") from None


def table(corner: str, columns, rows: dict[str, list[str]]) -> str:
    """A Markdown table; rows: {name: cells}."""
    lines = [[corner, *columns], ["---"] * (len(columns) + 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def runs_table(runs: dict[str, Run]) -> str:
    """A line a run."""
    rows = {name: [form.format(one.result[key]) for key, form in RESULT_COLUMNS.items()] for name, one in runs.items()}
    return table("run", [key.replace("_", " ") for key in RESULT_COLUMNS], rows)


def draw_poems(val_text: str, forms: Forms, count: int, seed: int) -> list[Poem]:
    """`count` poems of the validation split, drawn at random from those with a known form, or all if there are fewer.

    None is drawn twice: a set in which poems come again would look less diverse than it is.
    """
    shared = {tune for tune, templates in forms.tunes.items() if templates[0].support > 1}
    held_out = [poem for poem in read_poems(val_text) if poem[0] in shared]
    random.Random(seed).shuffle(held_out)
    return held_out[:count]


def han_share(data_root: str | Path, seq_len: int, measure: str) -> float:
    """The share of Han characters among what a measure of the validation split, "poem" or "stream", predicts."""
    vocabulary, _, tokens = load_dataset(data_root)
    of_poems = ScoredWindows.of_poems(tokens, title_ids(vocabulary), seq_len)
    windows = of_poems if measure == "poem" else ScoredWindows.of_stream(tokens, seq_len)
    predicted = vocabulary.decode(windows.targets(tokens).tolist())
    return len(han(predicted)) / len(predicted)


def write_poems(
    trained: Trained, tunes: list[str], seed: int, rules: FormRules | None
) -> tuple[list[str], list[list[float]]]:
    """A poem of each of the tunes, as sample.py writes by default but without look-ahead, which takes twelve times as
    long; held to a form if there are rules.

    With rules also, for each token of each poem, the log of the probability that the model gave to all that the form
    allowed there.
    """
    texts = [Text(trained, f"+++{tune}\n", seed_of(seed, i, 0), MAX_POEM, True, rules) for i, tune in enumerate(tunes)]
    order = sorted(texts, key=lambda text: text.start)  # poems of a length together: they end at one time
    controls = FORM_CONTROLS if rules else DEFAULT
    model = Decoder(trained.config, trained.weights)
    request = Request("", rules=rules, controls=controls, with_likelihood=rules is not None)
    for first in tqdm(range(0, len(order), 100), desc="form" if rules else "free", unit="batch", disable=None):
        complete(model, order[first : first + 100], request)
    bodies = [str(text).removeprefix(text.start) for text in texts]
    return bodies, [[record.log_mass for record in text.records] for text in texts]


def scoreboard(
    runs: dict[str, Run],
    models: dict[str, Trained],
    human: list[Poem],
    data_root: str | Path,
    forms: Forms,
    seed: int,
) -> dict[str, dict[str, float]]:
    """{kind of poems: {score: value}}: human, and each run's free and form."""
    training = list(read_poems(read_splits(data_root)[0]))
    tunes = [tune for tune, _ in human]
    # One measure for all runs, also those that were trained on the other kind of windows
    measure = "poem" if all(one.result["poem_val_loss"] > 0 for one in runs.values()) else "stream"
    sets, scores = {"human": human}, {"human": {}}
    for run_name, one in runs.items():
        trained = models[run_name]
        for kind, rules in (("free", None), ("form", FormRules(forms, trained.vocabulary))):
            start = time.perf_counter()
            bodies, kept = write_poems(trained, tunes, seed, rules)
            name = f"{run_name}, {kind}"
            sets[name] = list(zip(tunes, bodies, strict=True))
            loss = one.result[f"{measure}_val_loss"]
            share = han_share(data_root, trained.max_seq_len, measure)
            scores[name] = {
                f"perplexity by {measure}, a token": perplexity(loss),
                # The Han characters bear all the loss, so that vocabularies and ways of writing can be compared
                f"perplexity by {measure}, a Han character": perplexity(loss / share) if share else math.nan,
                "seconds": time.perf_counter() - start,
            }
            if rules:
                scores[name]["price of the form, nats a token"] = -mean(log_prob for poem in kept for log_prob in poem)
                scores[name]["probability that the form kept"] = mean(math.exp(mean(poem)) for poem in kept)
    new = novelty(sets, training)
    for name, poems in sets.items():
        scores[name] |= {"tunes": float(len(set(tunes)))} | form_scores(poems, forms) | diversity(poems) | new[name]
    return scores


def scores_table(scores: dict[str, dict[str, float]]) -> str:
    """A line a score, a column a kind of poems; shares in percent."""
    rows = {}
    for row in dict.fromkeys(key for kind in reversed(scores.values()) for key in kind):  # the form's column has all
        plain = row.startswith(("perplexity", "seconds", "longest", "price", "tunes"))
        values = [kind.get(row, math.nan) for kind in scores.values()]
        rows[row] = ["" if math.isnan(value) else f"{value:.3g}" if plain else f"{value:.1%}" for value in values]
    return table("score", scores, rows)


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--ckpt_path", nargs="+", default=["workdirs/quansongci"], help="the folders of the runs")
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--samples", type=number(int, 0, 10**6), default=200, help=SAMPLES_HELP)
    parser.add_argument("--out", nargs="+", default=[], metavar="FILE", help=OUT_HELP)
    parser.add_argument("--start", default=START, help="the beginning of each run's poem")
    parser.add_argument(
        "--max_new_tokens", type=number(int, 0), default=120, help="characters to add to each run's poem"
    )
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=1, help="the same seed, the same poems")
    args = parser.parse_args(args)
    args.out = [Path(name) for name in args.out]
    for path in args.out:
        if path.suffix not in [".json", *PICTURES]:
            parser.error(f"--out {path}: its name must end in .json, {', '.join(PICTURES)}")
        if path.suffix == ".json" and not args.samples:
            parser.error(f"--out {path}: there are no scores with --samples 0")
        check_writable("--out", path)
    return args


SAMPLES_HELP = "poems of each kind, at most as many as the validation split has of known tunes; 0: no scores"
OUT_HELP = "also write the scores into a .json file, the curves of the losses into a picture (.png, .jpg, .svg, .pdf)"


def main() -> None:
    args = parse_args()
    folders, start = [run_folder(path) for path in args.ckpt_path], read_start(args.start)
    same = len({folder.name for folder in folders}) < len(folders)
    runs = {str(folder) if same else folder.name: read_run(folder) for folder in folders}
    data_root = args.data_root if args.samples else None
    models = {name: load_trained(one.folder, data_root) for name, one in runs.items()}
    if args.samples:
        prepared = fingerprint(*load_dataset(args.data_root)[1:])
        for name, trained in models.items():
            check_same_data(trained.data, runs[name].folder, prepared, args.data_root)
        forms = Forms.load(args.data_root)
        human = draw_poems(read_splits(args.data_root)[1], forms, args.samples, args.seed)
    print(runs_table(runs))
    for name, trained in models.items():
        own = first_encodable(trained.vocabulary, start) if args.start == START else start
        request = Request(as_in_corpus(own, trained.vocabulary), 1, args.max_new_tokens, seed=args.seed)
        [poem] = samples(trained, request)
        print(f"\n`{name}`:\n\n```\n{poem.text.strip()}\n```")
    for path in args.out:
        if path.suffix in PICTURES:
            plot_curves({name: one.log for name, one in runs.items()}, path)
    if args.samples and not human:
        print("no poem of a known tune in the validation split, so there are no scores", file=sys.stderr)
    elif args.samples:
        scores = scoreboard(runs, models, human, args.data_root, forms, args.seed)
        fewer = ", as many as the validation split has of known tunes" if len(human) < args.samples else ""
        print(f"\n{len(human):,} poems of each kind{fewer}\n\n{scores_table(scores)}")
        for path in args.out:
            if path.suffix == ".json":
                with atomic_write(path, "w") as file:
                    json.dump(scores, file, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    run(main)
