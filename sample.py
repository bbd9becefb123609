"""Writes poems with a trained model.

The samples go to stdout, with a line of dashes between them and nothing else; what was loaded is reported on stderr.

  python sample.py --start +++清平乐                        ten texts that begin with a 清平乐
  python sample.py --start "+++如梦令\\n昨夜雨疏风骤。"      a title and a first line; \\n is a line end
  python sample.py --start FILE:prompt.txt --seed 7         the prompt from a file; the same seed, the same samples
  python sample.py --stop_at_poem_end --num_samples 1       one poem, written before your eyes
  python sample.py --form --start +++清平乐                 whole poems in the tune's form, rhyme and tones
  python sample.py --acrostic 春夏秋冬 --rhyme 东           poems whose sentences begin so, and that rhyme so
  python sample.py --start "+++浣溪沙\\n□□□□□□春。"             □: a character to be written, the others stay
  python sample.py --form --best_of 10                      for each sample, the likeliest of ten
  python sample.py --form --particles 64                    poems that see their rhymes still better coming
  python sample.py --format jsonl --num_samples 10000       a line of JSON for each sample, for other programs

A character is chosen in this order: repetition penalty, temperature, top-k, top-p, what the form allows.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from songci.cli import ArgumentParser, UserError, number, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT
from songci.forms.check import check
from songci.forms.poems import BLANK, read_poems, split_title
from songci.forms.prompt import as_in_corpus
from songci.forms.rules import FormRules
from songci.forms.templates import Forms
from songci.machine import choose_device, may_have_gpu, seed_of
from songci.runs import Trained, as_gpt, load_trained, run_folder
from songci.text import to_json
from songci.writing.decoder import Decoder
from songci.writing.generation import DEFAULT, FORM_CONTROLS, Controls, Model, Text, generate
from songci.writing.prompt import first_encodable, read_start
from songci.writing.samples import Request, Sample, samples
from songci.writing.smc import PARTICLES

SEPARATOR = "-" * 15


class PlainModel:
    """model.py, asked for the next character as the assignment does it: the whole window, of which the last position
    counts. It has no cache; a GPU is fast enough without one."""

    def __init__(self, trained: Trained, device):
        self.model = as_gpt(trained, device)

    def with_cache(self, rows: int) -> "PlainModel":
        return self

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """There is nothing to copy."""

    def next_logits(self, windows: Sequence[list[int]], cached: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """The logits (R, V) of the token that follows each of R windows of token ids."""
        import torch  # here: on a CPU, poems are written without it

        last = [len(ids) - 1 for ids in windows]
        U = torch.tensor([[*ids, *[0] * (max(last) + 1 - len(ids))] for ids in windows], device=self.model.device)
        with torch.inference_mode():
            features, _ = self.model.features(U)  # (R, L, C); no position looks at the padding to its right
            return self.model.head(features[range(len(last)), last]).float().cpu().numpy()


def verdict(text: str, forms: Forms | None) -> dict:
    """What is known of the first poem in a text; None where nothing is.

    template: the number of its best template in songci.forms --show; tone: the share of the fixed places that it keeps.
    """
    tune, body = next(read_poems(text), (None, ""))
    title = next((line for line in text.split("\n") if line.startswith("+++")), "")
    found = {"tune": tune, "subject": split_title(title)[1] or None}
    if tune is None or forms is None:
        return found | dict.fromkeys(("template", "form", "rhyme", "tone"))
    result = check(tune, body, forms)
    return found | {"template": result.number, "form": result.form, "rhyme": result.rhyme, "tone": result.tone}


def json_line(sample: Sample, prompt: str, seed: int, index: int, forms: Forms | None) -> str:
    """A sample of a run as JSON, with what makes it again and what is known of its form."""
    fields = {"prompt": prompt, "text": sample.text, "seed": seed, "sample": index, "tokens": sample.tokens}
    fields |= {"mean_log_likelihood": sample.mean_log_likelihood, "draft": sample.draft}
    fields |= verdict(sample.text, forms)
    if sample.alternatives:
        fields["alternatives"] = [place._asdict() for place in sample.alternatives]
    return to_json(fields)


def stream(model: Model, text: Text, controls: Controls) -> None:
    """Prints one sample as it is made."""
    held = ""  # line ends and title marks wait: they are not printed if the poem ends with them
    print(text.start, end="", flush=True)
    for step in generate(model, [text], controls):
        held += text.vocabulary.decode(step.ids.tolist())
        if not text.stop_at_poem_end or held.strip("\n+"):
            print(held, end="", flush=True)
            held = ""
    print("" if text.at_next_title else held)


def parse_args(words=None):
    parser = ArgumentParser(__doc__)
    positive = number(int, 1)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the folder of a run of train.py")
    parser.add_argument("--start", default=r"\n", help=START_HELP)
    parser.add_argument("--num_samples", type=positive, default=10, help="number of samples")
    parser.add_argument("--max_new_tokens", type=number(int, 0), default=500, help="characters to add to each sample")
    parser.add_argument("--stop_at_poem_end", action="store_true", help="end each sample when its poem ends")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=1, help="the same seed, the same samples")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help=DEVICE_HELP)

    group = parser.add_argument_group("poems that keep their tune")
    group.add_argument("--form", action="store_true", help=FORM_HELP)
    group.add_argument("--acrostic", default="", metavar="春夏秋冬", help=ACROSTIC_HELP)
    group.add_argument("--rhyme", default="", metavar="东", help=RHYME_HELP)
    group.add_argument("--template", type=positive, metavar="N", help=TEMPLATE_HELP)
    group.add_argument("--particles", type=positive, metavar="N", help=PARTICLES_HELP)
    group.add_argument("--best_of", type=positive, default=1, help=BEST_OF_HELP)

    group = parser.add_argument_group("how a character is chosen")
    group.add_argument("--temperature", type=number(float, 0), default=DEFAULT.temperature, help=TEMPERATURE_HELP)
    group.add_argument("--top_k", type=positive, default=DEFAULT.top_k, help=TOP_K_HELP)
    group.add_argument("--top_p", type=number(float, 0, 1), help=TOP_P_HELP)
    group.add_argument("--repetition_penalty", type=number(float, 1, 1e6), help=PENALTY_HELP)

    group = parser.add_argument_group("how samples are made and shown")
    group.add_argument("--batch", type=positive, default=100, help="samples made at once; bounds the memory")
    group.add_argument("--stream", action="store_true", help="one sample after another, each character as it is made")
    group.add_argument("--alternatives", type=number(int, 0), default=0, metavar="N", help=ALTERNATIVES_HELP)
    group.add_argument("--format", default="text", choices=["text", "jsonl"], help="jsonl: a line of JSON a sample")
    args = parser.parse_args(words)
    ahead = args.particles is not None and args.particles > 1
    for other, given in (("format jsonl", args.format == "jsonl"), ("best_of", args.best_of > 1), ("particles", ahead)):
        if args.stream and given:
            parser.error(f"--stream and --{other} exclude each other")
    if args.alternatives and args.format != "jsonl":
        parser.error("--alternatives is for --format jsonl")
    args.data_given = "data_root" in parser.given(words)
    args.start = read_start(args.start)
    wishes = args.acrostic, args.rhyme, args.template, args.alternatives, BLANK in args.start
    args.form = args.form or ahead or any(wishes)
    if args.particles is None:
        args.particles = PARTICLES if args.form and not args.stream else 1
    return args


DEVICE_HELP = "cpu, cuda, mps: with model.py and torch; auto: so on a GPU, and on a CPU in numpy, which is faster"
START_HELP = (
    "the text to continue, or FILE:path to read it from a file; □ in a poem is a character to be written, and all else "
    "stays as it is (implies --form)"
)
FORM_HELP = (
    "each sample is one whole poem, of any length, in a form of its tune, as often in each as poets chose it, with its "
    "rhymes, tones and stanzas; without a title in --start, the model chooses a tune"
)
ACROSTIC_HELP = (
    "the characters that begin the sentences to be written, in order, or all clauses, if there are as many (藏头); "
    "implies --form"
)
RHYME_HELP = "a character that the poems are to rhyme with; implies --form"
TEMPLATE_HELP = "the form to take, by its number in songci.forms --show; if left out, as poets chose; implies --form"
PARTICLES_HELP = (
    "so many write each poem together, and of those that lead to their rhymes more go on; 1: without looking ahead, as "
    f"with --stream; if left out, {PARTICLES} with --form; implies --form"
)
BEST_OF_HELP = (
    "make this many of each sample and print the likeliest, "
    "by the mean log-likelihood of the characters that the form left free"
)
ALTERNATIVES_HELP = (
    "with jsonl, for each character that was written so many others that keep the form, with their probabilities by "
    "what stands before and the rest of the sentence; implies --form"
)
TEMPERATURE_HELP = "0: always the likeliest character; 1: the probabilities as learned"
TOP_K_HELP = "choose among this many of the likeliest characters"
TOP_P_HELP = "choose among the likeliest characters that together reach this probability; if left out, all"
PENALTY_HELP = (
    "against the repetition of characters, not of marks and line ends; 1: none; "
    f"if left out, {FORM_CONTROLS.repetition_penalty} with --form, else 1"
)


def load(args) -> tuple[Trained, Model]:
    """What training has made, and what gives its logits. Raises UserError if it cannot do what is asked for."""
    if not args.data_given and not Path(args.data_root).exists():
        args.data_root = None  # the run knows enough
    device = None
    if args.device != "auto" or may_have_gpu():
        device = choose_device(args.device)
    trained = load_trained(args.ckpt_path, args.data_root)
    if args.stop_at_poem_end and not trained.title:
        raise UserError(f"--stop_at_poem_end: the model in {args.ckpt_path} was not trained on windows of poems")
    numpy = device is None or (args.device == "auto" and device.type == "cpu")
    return trained, Decoder(trained.config, trained.weights) if numpy else PlainModel(trained, device)


def warn_of_long_tune(start: str, forms: Forms, window: int) -> None:
    """Says on stderr if the model will have lost sight of the title before the poem ends, so that no form can hold."""
    tune, _ = next(read_poems(start), (None, ""))
    templates = forms.tunes.get(tune, [])
    length = sum(templates[0].lengths) if templates else 0
    if length > window:
        sees = f"{tune} has {length} characters, of which the model sees {window} at a time"
        print(f"{sees}: it will lose the form, which --form keeps", file=sys.stderr)


def main() -> None:
    args = parse_args()
    trained, model = load(args)
    vocabulary = trained.vocabulary
    if args.start == "\n":
        args.start = first_encodable(vocabulary, args.start)
    start, acrostic, rhyme = (as_in_corpus(x, vocabulary) for x in (args.start, args.acrostic, args.rhyme))
    if BLANK in start and BLANK in vocabulary.chars:
        print(f"{BLANK} in --start is a character to be written, though the corpus has it as one", file=sys.stderr)
    forms_of = run_folder(args.ckpt_path) if args.data_root is None else Path(args.data_root)
    forms = Forms.load(forms_of) if args.form or (forms_of / "forms.json").is_file() else None
    rules = FormRules(forms, vocabulary, acrostic, rhyme, args.template or 0) if args.form else None
    if forms and not rules:
        warn_of_long_tune(start, forms, trained.max_seq_len)
    Text(trained, start, args.seed, rules=rules)  # an unknown character, or no form for it, is reported before all else
    where = "cpu" if isinstance(model, Decoder) else model.model.device
    print(f"{args.ckpt_path}: {trained.num_parameters:,} parameters on {where}", file=sys.stderr)
    usual = FORM_CONTROLS if args.form else DEFAULT
    penalty = usual.repetition_penalty if args.repetition_penalty is None else args.repetition_penalty
    request = Request(
        start,
        args.num_samples,
        args.max_new_tokens,
        args.stop_at_poem_end,
        rules,
        Controls(args.temperature, args.top_k, args.top_p, penalty),
        args.seed,
        args.batch,
        args.particles,
        args.best_of,
        with_likelihood=args.format == "jsonl",
        num_alternatives=args.alternatives,
    )
    alone = args.num_samples == args.best_of == args.particles == 1 and sys.stdout.isatty()
    if args.format == "text" and (args.stream or alone):
        for i in range(args.num_samples):
            if i > 0:
                print(SEPARATOR)
            seed = seed_of(args.seed, i, 0)
            stream(
                model, Text(trained, start, seed, args.max_new_tokens, args.stop_at_poem_end, rules), request.controls
            )
        return
    began, tokens = time.perf_counter(), 0
    for i, sample in enumerate(samples(trained, request, model)):
        tokens += sample.tokens
        if args.format == "jsonl":
            print(json_line(sample, start, args.seed, i, forms), flush=True)
        else:
            print(sample.text if i == 0 else f"{SEPARATOR}\n{sample.text}", flush=True)
    speed, plural = tokens / (time.perf_counter() - began), "s" if args.num_samples > 1 else ""
    print(f"{args.num_samples} sample{plural}, {tokens:,} characters, {speed:,.0f} a second", file=sys.stderr)


if __name__ == "__main__":
    run(main)
