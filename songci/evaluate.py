"""The scoreboard of one or more training runs, beside poems by people.

  python -m songci.evaluate --samples 1000
  python -m songci.evaluate --ckpt_path workdirs/quansongci workdirs/quansongci_no_pos workdirs/quansongci_no_res

First the runs are compared: their losses in a table, their curves in one picture, a poem of each. Then poems are
scored, of three kinds and over the same tunes: human (held-out poems of the validation split), free (sampled with the
title given) and form (sampled with `--form`); see scores.py for what is scored.

With --out FILE.md, both are written into that file: the comparison between the lines `<!-- ablation -->` and
`<!-- /ablation -->`, the scores between `<!-- scores -->` and `<!-- /scores -->`, or at its end if it has no such
lines; the rest stays as it is. The picture and the scores as JSON go beside it.
"""

import json
import math
import os
import random
import shlex
import sys
import time
from pathlib import Path

from tqdm import tqdm

from songci.cli import ArgumentParser, UserError, atomic_write, check_writable, number, read_text, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT
from songci.forms.poems import read_poems
from songci.forms.scores import Poem, diversity, form_scores, han, novelty
from songci.forms.templates import Forms
from songci.forms.writer import FormRules
from songci.generation import (
    DEFAULT,
    FORM_CONTROLS,
    Text,
    canonical_title,
    generate,
    new_text,
    read_start,
    sample_seed,
    samples,
)
from songci.training.checkpoint import Trained, load_model
from songci.training.loss import perplexity
from songci.training.runlog import plot_curves, read_log

CURVES = ["train_loss", "val_loss", "train_perplexity", "val_perplexity"]
PICTURES = [".png", ".jpg", ".svg", ".pdf"]
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


def read_run(folder: Path) -> tuple[dict, list[dict]]:
    """The figures of a finished run, from result.json, and the rows of its log.csv. Raises UserError without these."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        rows = read_log(folder / "log.csv")
        result["train_loss"] = rows[-1]["train_loss"]
        if any(not {"iter", *CURVES} <= row.keys() for row in rows):
            raise ValueError("log.csv lacks columns")
        float(result["best_val_loss"])  # for model_scores()
        return {key: float(result.get(key, math.nan)) for key in RESULT_COLUMNS}, rows
    except FileNotFoundError as error:
        raise UserError(f"no finished run in {folder} ({error.filename}): run train.py --ckpt_path {folder}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"the run in {folder} is damaged ({error!r}): train again") from None


def markdown_table(results: dict[str, dict]) -> str:
    """{name of a run: its result} → a Markdown table, a line a run."""
    lines = ["| run | " + " | ".join(column.replace("_", " ") for column in RESULT_COLUMNS) + " |"]
    lines.append("|---" * (len(RESULT_COLUMNS) + 1) + "|")
    for name, result in results.items():
        values = [form.format(result[key]) for key, form in RESULT_COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def command_line() -> str:
    """The command that is running, as Markdown."""
    return f"```sh\n{shlex.join(['python', *sys.argv])}\n```"


def report(folders: list[Path], start: str, max_new_tokens: int, seed: int, picture: Path | None, link: str) -> str:
    """The comparison as Markdown; draws the curves into `picture`, to which the text links by `link`."""
    results, logs, poems = {}, {}, []
    for folder in folders:
        name = str(folder) if [other.name for other in folders].count(folder.name) > 1 else folder.name
        results[name], logs[name] = read_run(folder)
        trained = load_model(folder)
        [sample] = samples(trained, canonical_title(start, trained.vocabulary.aliases), 1, max_new_tokens, seed)
        poems.append(f"`{name}`:\n\n```\n{sample.text.strip()}\n```")
    parts = [command_line(), markdown_table(results)]
    if picture:
        plot_curves(logs, picture)
        parts.append(f"![loss and perplexity of {', '.join(logs)}]({link})")
    return "\n\n".join(parts + poems)


def held_out_poems(data_root: str, forms: Forms, count: int, seed: int) -> tuple[list[Poem], list[Poem]]:
    """`count` poems of the validation split, drawn at random from those with a known form, and the training poems."""
    text = read_text(Path(data_root) / "input.txt")
    cut = int(len(text) * 0.9)
    held_out = [poem for poem in read_poems(text[cut:].splitlines(keepends=True)) if poem[0] in forms.tunes]
    if not held_out:
        raise UserError(f"no poem of a known tune in the validation split of {data_root}: use --samples 0")
    random.Random(seed).shuffle(held_out)
    chosen = (held_out * -(-count // len(held_out)))[:count]  # over again if there are too few
    return chosen, list(read_poems(text[:cut].splitlines(keepends=True)))


def write_poems(trained: Trained, tunes: list[str], seed: int, rules: FormRules | None) -> list[Text]:
    """A poem of each of the tunes, sampled as sample.py does by default; held to a form if there are rules."""
    order = sorted(range(len(tunes)), key=lambda i: tunes[i])  # poems of a length together: they end at one time
    texts: dict[int, Text] = {}
    for first in tqdm(range(0, len(tunes), 100), desc="form" if rules else "free", unit="batch", disable=None):
        batch = {}
        for i in order[first : first + 100]:
            batch[i] = new_text(trained, f"+++{tunes[i]}\n", sample_seed(seed, i), rules)
        bound = sys.maxsize if rules else MAX_POEM
        controls = FORM_CONTROLS if rules else DEFAULT
        for _ in generate(trained.model, list(batch.values()), bound, controls, stop_at_title=rules is None):
            pass
        texts |= batch
    return [texts[i] for i in range(len(tunes))]


def model_scores(folder: Path, data_root: str) -> dict[str, float]:
    """The run's perplexity on the validation split, by its own measure, for a token and for a Han character."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    text = read_text(Path(data_root) / "input.txt")
    text = text[int(len(text) * 0.9) :]
    # The whole loss is charged to the Han characters, so that vocabularies and ways of writing can be compared
    share = len(han(text)) / len(text)
    loss = float(result["best_val_loss"])
    by_character = perplexity(loss / share) if share else math.nan
    return {"perplexity, a token": perplexity(loss), "perplexity, a Han character": by_character}


def scoreboard(folders: list[Path], data_root: str, count: int, seed: int) -> dict[str, dict[str, float]]:
    """{kind of poems: {score: value}}: human, and each run's free and form."""
    forms = Forms.load(data_root)
    human, training = held_out_poems(data_root, forms, count, seed)
    tunes = [tune for tune, _ in human]
    sets, scores = {"human": human}, {"human": {}}
    for folder in folders:
        trained = load_model(folder)
        vocabulary = trained.vocabulary
        for kind in ("free", "form"):
            name = f"{folder.name}, {kind}"
            start = time.perf_counter()
            texts = write_poems(trained, tunes, seed, FormRules(forms, vocabulary) if kind == "form" else None)
            seconds = time.perf_counter() - start
            bodies = [vocabulary.decode(text.new) for text in texts]
            sets[name] = list(zip(tunes, bodies, strict=True))
            scores[name] = model_scores(folder, data_root) | {"seconds": seconds}
            if kind == "form":
                tokens = sum(len(text.new) for text in texts)
                means = [math.exp(text.allowed_log_prob / len(text.new)) for text in texts]
                scores[name]["price of the form, nats a token"] = -sum(text.allowed_log_prob for text in texts) / tokens
                scores[name]["probability that the form kept"] = sum(means) / len(means)
    new = novelty(sets, training)
    for name, poems in sets.items():
        scores[name] |= {"tunes": float(len(set(tunes)))} | form_scores(poems, forms) | diversity(poems) | new[name]
    return scores


def scores_table(scores: dict[str, dict[str, float]]) -> str:
    """A Markdown table, a line a score, a column a kind of poems; shares in percent."""
    rows = dict.fromkeys(key for kind in reversed(scores.values()) for key in kind)  # the form's column has them all
    lines = ["| score | " + " | ".join(scores) + " |", "|---" * (len(scores) + 1) + "|"]
    for row in rows:
        plain = row.startswith(("perplexity", "seconds", "longest", "price", "tunes"))
        values = [kind.get(row, math.nan) for kind in scores.values()]
        cells = ["" if math.isnan(v) else f"{v:.3g}" if plain else f"{v:.1%}" for v in values]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_section(path: Path, name: str, text: str) -> None:
    """Puts text between the marker lines of that name in a Markdown file, or at its end if it has none.

    Raises UserError if the file is not UTF-8 text.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{begin}\n{text}\n{end}"
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError:
        raise UserError(f"--out {path} is not UTF-8 text: name another file") from None
    before, _, rest = old.partition(begin)
    _, found, after = rest.partition(end)
    with atomic_write(path, "w") as file:
        file.write(before + section + after if found else f"{old}\n{section}\n".lstrip())


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--ckpt_path", nargs="+", default=["workdirs/quansongci"], help="the folders of the runs")
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--samples", type=number(int, 0, 10**6), default=200, help="poems of each kind; 0: no scores")
    parser.add_argument("--out", help="a Markdown file for the report; the picture and the JSON get its name")
    parser.add_argument("--picture", help="another file for the picture of the curves")
    parser.add_argument("--start", default=r"+++清平乐\n", help="the beginning of each run's poem")
    parser.add_argument(
        "--max_new_tokens", type=number(int, 0), default=120, help="characters to add to each run's poem"
    )
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=1, help="the same seed, the same poems")
    return parser.parse_args(args)


def outputs(args) -> tuple[Path | None, Path | None]:
    """The files for the report and for the picture. Raises UserError if they cannot be written."""
    out = Path(args.out) if args.out else None
    if out and out.suffix in [".json", *PICTURES]:  # the names of what goes beside it
        raise UserError(f"--out {out}: name a Markdown file, such as {out.stem}.md")
    picture = Path(args.picture) if args.picture else out and out.with_suffix(".png")
    if picture and picture.suffix not in PICTURES:
        raise UserError(f"--picture {picture}: its name must end in {', '.join(PICTURES)}")
    for flag, path in (("--out", out), ("--picture", picture)):
        if path:
            check_writable(flag, path)
    return out, picture


def main() -> None:
    args = parse_args()
    out, picture = outputs(args)
    link = Path(os.path.relpath(picture, out.parent if out else ".")).as_posix() if picture else ""
    folders, start = [Path(path) for path in args.ckpt_path], read_start(args.start)
    text = report(folders, start, args.max_new_tokens, args.seed, picture, link)
    print(text)
    sections = {"ablation": text}
    if args.samples:
        scores = scoreboard(folders, args.data_root, args.samples, args.seed)
        sections["scores"] = f"{command_line()}\n\n{scores_table(scores)}"
        print(f"\n{args.samples} poems of each kind\n\n{scores_table(scores)}")
    if out:
        for name, section in sections.items():
            write_section(out, name, section)
        if args.samples:
            with atomic_write(out.with_suffix(".json"), "w") as file:
                json.dump(scores, file, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    run(main)
