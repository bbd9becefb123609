"""How well a trained model foretells poems of your own: loss and perplexity of each, a line a poem.

  python -m songci.perplexity --text poems.txt
  python -m songci.perplexity --text poems.txt --format jsonl      for other programs

Poems begin with a title line, such as +++清平乐; in a file without any, an empty line stands between them. Perplexity
is e^loss, the number of equally likely characters that would leave one as uncertain as the model is. Every character
counts but the first, of title and marks too, in the window in which sampling would choose it: as in training's figure.
"""

import re
import sys
from typing import NamedTuple

import numpy as np

from songci.cli import ArgumentParser, UserError, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, Vocabulary
from songci.corpus.windows import ScoredWindows
from songci.forms.prompt import as_in_corpus
from songci.runs import as_gpt, load_trained, perplexity
from songci.text import read_text, to_json
from songci.training.measure import mean_loss


class Measured(NamedTuple):
    """A poem, and what the model makes of it."""

    name: str  # its first line
    characters: int  # that are foretold
    loss: float | None  # in nats a character; None for a poem with characters that the vocabulary lacks
    perplexity: float | None
    unknown: str  # these characters


def poems_in(text: str) -> list[str]:
    """The poems of a text, as in the corpus: from a title line to the next, with the empty line at its end.

    What stands before the first title is one more; in a text without titles, each paragraph.
    """
    titled = re.search(r"(?m)^\+\+\+", text)
    parts = re.split(r"(?m)^(?=\+\+\+)" if titled else r"\n\s*\n", text)
    return [part.strip("\n") + "\n\n" if titled else part.strip("\n") for part in parts if part.strip()]


def measured(model, vocabulary: Vocabulary, poem: str) -> Measured:
    """Loss and perplexity of a poem."""
    name = poem.lstrip().split("\n")[0]
    unknown = "".join(dict.fromkeys(char for char in poem if char not in set(vocabulary.chars)))
    if unknown or len(poem) < 2:
        return Measured(name, max(0, len(poem) - 1), None, None, unknown)
    windows = ScoredWindows.of_spans(np.array([0]), np.array([len(poem)]), model.config.max_seq_len)
    loss = mean_loss(model, vocabulary.encode(poem), windows, 64)
    return Measured(name, len(poem) - 1, loss, perplexity(loss), "")


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--text", required=True, metavar="FILE", help="the poems")
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the folder of a run of train.py")
    parser.add_argument("--format", default="text", choices=["text", "jsonl"], help="jsonl: a line of JSON a poem")
    return parser.parse_args(args)


def main() -> None:
    args = parse_args()
    trained = load_trained(args.ckpt_path, args.data_root)
    model = as_gpt(trained)
    poems = poems_in(as_in_corpus(read_text(args.text), trained.vocabulary))
    if not poems:
        raise UserError(f"--text {args.text}: there is no poem in it")
    if args.format == "text":
        print(f"{'perplexity':>10} {'loss':>6} characters  poem")
    known = []
    for number, poem in enumerate(poems, start=1):
        found = measured(model, trained.vocabulary, poem)
        if found.loss is not None:
            known.append(found)
        elif found.unknown:
            names = ", ".join(f"{char!r} (U+{ord(char):04X})" for char in found.unknown[:10])
            print(f"poem {number}, {found.name}: not in the vocabulary: {names}", file=sys.stderr)
        if args.format == "jsonl":
            print(to_json({"poem": number, **found._asdict()}), flush=True)
        else:
            print(line(found), flush=True)
    count = sum(found.characters for found in known)
    if args.format == "text" and len(known) > 1:
        loss = sum(found.loss * found.characters for found in known) / count
        print(line(Measured(f"all {len(known)} of them", count, loss, perplexity(loss), "")))


def line(found: Measured) -> str:
    """A poem as a line of the table; a dash for what is not known."""
    numbers = f"{'–':>10} {'–':>6}" if found.loss is None else f"{found.perplexity:10.1f} {found.loss:6.3f}"
    return f"{numbers} {found.characters:10}  {found.name}"


if __name__ == "__main__":
    run(main)
