"""Writes poems with a trained model.

The samples go to stdout, with a line of dashes between them and nothing else; what was loaded is told on stderr.

  python sample.py --start +++清平乐                        ten texts that begin with a 清平乐
  python sample.py --start "+++如梦令\\n昨夜雨疏风骤。"      a title and a first line; \\n is a line end
  python sample.py --start FILE:prompt.txt --seed 7         the prompt from a file; a seed repeats its samples
"""

import re
import sys
import time
from pathlib import Path

import torch

from cli import ArgumentParser, UserError, number, run
from device import choose_device
from model import GPT, generate, load_model
from prepare import DEFAULT_DATA_ROOT, Vocabulary, load_vocabulary

SEPARATOR = "-" * 15


def read_start(start: str) -> str:
    """The text that --start stands for: FILE:path is read, \\n typed in a shell is a line end."""
    if start.startswith("FILE:"):
        path = Path(start.removeprefix("FILE:"))
        try:
            start = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--start: cannot read {path} as UTF-8 text: {error}") from None
    else:
        start = start.replace("\\n", "\n")
    if not start:
        raise UserError('--start is empty: give at least one character, such as "\\n" or +++清平乐')
    return start


def canonical_title(start: str, aliases: dict[str, str]) -> str:
    """Puts the corpus's name of a tune for another name of it in a title line, and says so on stderr."""
    match = re.match(r"\+\+\+([^\n（(]+)", start)
    if match is None or match[1] not in aliases:
        return start
    print(f"{match[1]} is another name of {aliases[match[1]]}, which the corpus uses", file=sys.stderr)
    return f"+++{aliases[match[1]]}{start[match.end() :]}"


def sample_texts(
    model: GPT,
    vocabulary: Vocabulary,
    start: str,
    num_samples: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 0.8,
    top_k: int | None = 200,
    top_p: float | None = None,
) -> list[str]:
    """`num_samples` continuations of `start`, with `start` at their head. The same seed gives the same texts."""
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    generator = torch.Generator(model.device).manual_seed(seed)
    prompts = [vocabulary.encode(start).tolist()] * num_samples
    steps = list(generate(model, prompts, max_new_tokens, generator=generator, **sampling))
    if not steps:
        return [start] * num_samples
    return [start + vocabulary.decode(ids) for ids in torch.stack(steps, dim=1).tolist()]


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the folder of a run of train.py")
    parser.add_argument("--start", default="\n", help="the text to go on from, or FILE:path")
    parser.add_argument("--num_samples", type=number(int, 1), default=10, help="number of samples")
    parser.add_argument("--max_new_tokens", type=number(int, 0), default=500, help="characters to add to each")
    parser.add_argument(
        "--temperature", type=number(float, 0), default=0.8, help="0: always the likeliest; 1: as learned"
    )
    parser.add_argument("--top_k", type=number(int, 1), default=200, help="choose among so many likeliest only")
    parser.add_argument(
        "--top_p", type=number(float, 0, 1), help="choose among the likeliest that reach this probability"
    )
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=1, help="the same seed, the same samples")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to compute")
    return parser.parse_args(args)


def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    data_vocabulary = load_vocabulary(args.data_root)
    model, vocabulary = load_model(args.ckpt_path, device)
    if vocabulary.chars != data_vocabulary.chars:
        raise UserError(f"{args.ckpt_path} was trained on another vocabulary than that of {args.data_root}")
    start = canonical_title(read_start(args.start), data_vocabulary.aliases)
    vocabulary.encode(start)  # an unknown character is told before anything else
    print(f"{args.ckpt_path}: {model.num_parameters():,} parameters on {device}", file=sys.stderr)
    began = time.perf_counter()
    sampling = (args.temperature, args.top_k, args.top_p)
    texts = sample_texts(model, vocabulary, start, args.num_samples, args.max_new_tokens, args.seed, *sampling)
    print(f"\n{SEPARATOR}\n".join(texts))
    seconds = time.perf_counter() - began
    speed = args.num_samples * args.max_new_tokens / seconds
    print(f"{args.num_samples} samples in {seconds:.1f} s, {speed:,.0f} characters/s", file=sys.stderr)


if __name__ == "__main__":
    run(main)
