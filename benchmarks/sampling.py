"""How fast texts are written: tokens a second and peak memory, of several ways in turns, each in its own process.

  ours           songci/writing: all texts together, in numpy, with a cache of keys and values
  before         the same in torch, as it was in commit 87a965d, of which git makes a copy in a temporary folder
  transformers   generate() of a GPT2LMHeadModel of the same size with its cache, in pieces as long as the window,
                 since it cannot go past it
  plain loop     one text after another, the whole window through model.py for each token, no cache

What the texts say does not matter, so the weights are fresh, except where poems keep their form. A ratio is the median
of the rounds' ratios.

  python benchmarks/sampling.py                       mini, small and the poet's sizes; 1, 10, 100 texts of 500 tokens
  python benchmarks/sampling.py --part form           ten 清平乐 in form, by 16 particles each
  python benchmarks/sampling.py --part process        sample.py from its start to its end, for one poem
  python benchmarks/sampling.py --part length         the cost of a token in a text of 10,000
  python benchmarks/sampling.py --part limit          where the time of a step goes
"""

import argparse
import io
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# torch is imported in functions alone: the process that writes with numpy is measured without it
import numpy as np

from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, Vocabulary
from songci.forms.rules import FormRules
from songci.forms.templates import Forms
from songci.runs import BEST, Trained, as_gpt, load_trained, save_trained
from songci.writing.decoder import Decoder
from songci.writing.generation import DEFAULT, FORM_CONTROLS, Text, choose, generate, next_logits
from songci.writing.samples import Request, samples
from songci.writing.smc import PARTICLES

ROOT = Path(__file__).resolve().parent.parent
VOCAB_SIZE = 5916
SEQ_LEN = {"mini": 64, "small": 64, "poet": 128}
EARLIER = "87a965d"

Write = Callable[[int, int], int]  # texts, tokens of each -> tokens written


def make_run(folder: Path, preset: str = "") -> None:
    """Fills a folder with what both builds read: a model with fresh weights, or the one that is there."""
    import torch

    from model import GPT, PRESETS, GPTConfig
    from songci.training.checkpoint import trained_of

    if preset:
        torch.manual_seed(0)
        model = GPT(GPTConfig(VOCAB_SIZE, SEQ_LEN[preset], **PRESETS[preset]))
        vocabulary = Vocabulary("".join(map(chr, range(0x4E00, 0x4E00 + VOCAB_SIZE))))
        save_trained(folder / BEST, trained_of(model, vocabulary, (), ""))
    trained = load_trained(folder)
    # As the earlier build has it
    vocabulary = {"chars": trained.vocabulary.chars, "aliases": trained.vocabulary.aliases}
    about = {"config": trained.config, "vocabulary": vocabulary, "title": list(trained.title)}
    torch.save({**about, "model": as_gpt(trained).state_dict()}, folder / "best.pt")


def ours(trained: Trained, data_root: str) -> Write:
    """Texts without an end, or with a data folder 清平乐 in form."""
    model, request = Decoder(trained.config, trained.weights), Request(trained.vocabulary.chars[0])
    if data_root:
        rules = FormRules(Forms.load(data_root), trained.vocabulary)
        request = Request("+++清平乐\n", rules=rules, controls=FORM_CONTROLS, particles=PARTICLES)

    def write(texts: int, tokens: int) -> int:
        wanted = replace(request, num_samples=texts, max_new_tokens=tokens)
        return sum(sample.tokens for sample in samples(trained, wanted, model))

    return write


def plain_loop(trained: Trained, _: str) -> Write:
    import torch

    model = as_gpt(trained)

    @torch.inference_mode()
    def write(texts: int, tokens: int) -> int:
        for seed in range(texts):
            generator = torch.Generator().manual_seed(seed)
            ids = torch.zeros(1, 1, dtype=torch.long)
            for _ in range(tokens):
                logits = model(ids[:, -trained.max_seq_len :])[0][:, -1] / DEFAULT.temperature
                edge = logits.topk(DEFAULT.top_k).values[:, -1:]
                probs = torch.softmax(logits.masked_fill(logits < edge, -math.inf), dim=-1)
                ids = torch.cat((ids, torch.multinomial(probs, 1, generator=generator)), dim=1)
        return texts * tokens

    return write


def with_transformers(trained: Trained, _: str) -> Write:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    size, marks = trained.max_seq_len, {"bos_token_id": 0, "eos_token_id": None}
    sizes = {name: trained.config[name] for name in ("n_layer", "n_head", "n_embd")}
    other = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB_SIZE, n_positions=size, **marks, **sizes)).eval()
    controls = {"do_sample": True, "temperature": DEFAULT.temperature, "top_k": DEFAULT.top_k, "pad_token_id": 0}

    @torch.inference_mode()
    def write(texts: int, tokens: int) -> int:
        for start in range(0, tokens, size - 1):
            ids, length = torch.zeros(texts, 1, dtype=torch.long), min(size - 1, tokens - start)
            lengths = {"max_new_tokens": length, "min_new_tokens": length}
            other.generate(ids, attention_mask=torch.ones_like(ids), **controls, **lengths)
        return texts * tokens

    return write


WAYS = {"ours": ours, "transformers": with_transformers, "plain loop": plain_loop}


def one(args) -> None:
    """Prints tokens and seconds of one way, after a short warm-up, and the peak memory of this process in MB."""
    write = WAYS[args.way](load_trained(args.run), args.data_root if args.in_form else "")
    write(args.texts[0], 5)
    start = time.perf_counter()
    tokens = write(args.texts[0], args.tokens)
    seconds = time.perf_counter() - start
    print(json.dumps([tokens, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def earlier_build(folder: Path) -> Path:
    """A copy of the earlier build."""
    archive = subprocess.run(["git", "archive", EARLIER], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def made_run(folder: Path, preset: str = "") -> Path:
    """make_run() in a process of its own, so that this one stays small."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--part", "make", "--run", folder, "--preset", preset]
    subprocess.run(command, check=True)
    return folder


def copied_run(folder: Path, ckpt_path: str) -> Path:
    """A trained run, as both builds read it."""
    folder.mkdir()
    (folder / BEST).write_bytes((Path(ckpt_path) / BEST).read_bytes())
    return made_run(folder)


def measured(way: str, run: Path, texts: int, tokens: int, earlier: Path, data_root: str = "") -> tuple[float, float]:
    """Tokens a second and peak memory of one way, in a process of its own."""
    if way == "before":
        command = [sys.executable, ROOT / "benchmarks" / "before.py", run, str(texts), str(tokens), data_root]
    else:
        command = [sys.executable, __file__, "--part", "one", "--way", way, "--run", run, "--texts", str(texts)]
        command += ["--tokens", str(tokens), *(["--in_form", "--data_root", data_root] if data_root else [])]
    env = {**os.environ, "PYTHONPATH": str(earlier)} if way == "before" else None
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True, cwd=earlier, env=env)
    written, seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return written / seconds, memory


def in_turns(rounds: int, ways: dict[str, Callable[[], tuple]]) -> dict[str, list[tuple]]:
    """{way: what it gives in each round}, one after another in each."""
    found = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            found[way].append(measure())
    return found


def header(of: str, value: str) -> None:
    print(f"| {of} | way | {value} | ours is faster by | peak memory, MB | ours takes of it |")
    print(6 * "|---" + "|")


def row(name: str, way: str, of_way: list, of_ours: list, faster: Callable[[float, float], float]) -> str:
    """faster: how many times faster ours is, from its figure and the other's."""
    value, memory = (statistics.median(values) for values in zip(*of_way, strict=True))
    ratio = statistics.median(faster(own[0], other[0]) for own, other in zip(of_ours, of_way, strict=True))
    share = statistics.median(own[1] / other[1] for own, other in zip(of_ours, of_way, strict=True))
    shown = f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
    return f"| {name} | {way} | {shown} | {ratio:.2f} | {memory:.0f} | {share:.2f} |"


def of_speeds(ours: float, other: float) -> float:
    return ours / other


def table(args) -> None:
    header("preset, texts", "tokens/s")
    with tempfile.TemporaryDirectory() as folder:
        earlier = earlier_build(Path(folder) / "earlier")
        for preset in args.presets:
            run = made_run(Path(folder) / preset, preset)
            for texts in args.texts:
                # The plain loop takes the same time for each text: two of them are enough
                counts = {way: min(texts, 2) if way == "plain loop" else texts for way in args.ways}
                ways = {way: partial(measured, way, run, n, args.tokens, earlier) for way, n in counts.items()}
                found = in_turns(args.rounds, ways)
                for way, of_way in found.items():
                    print(row(f"{preset}, {texts}", way, of_way, found["ours"], of_speeds), flush=True)


def form(args) -> None:
    header("poems in form", "tokens/s")
    data_root = str(Path(args.data_root).resolve())
    with tempfile.TemporaryDirectory() as folder:
        earlier, run = earlier_build(Path(folder) / "earlier"), copied_run(Path(folder) / "run", args.ckpt_path)
        # forms.json has other contents since: each build learns its own from the text
        before = Path(folder) / "data"
        before.mkdir()
        shutil.copy(Path(data_root) / "input.txt", before)
        command = [sys.executable, earlier / "prepare.py", "--data_root", before]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        data_of = {"ours": data_root, "before": str(before)}
        ways = {w: partial(measured, w, run, args.poems, 500, earlier, of) for w, of in data_of.items()}
        found = in_turns(args.rounds, ways)
    for way, of_way in found.items():
        print(row(str(args.poems), way, of_way, found["ours"], of_speeds))


def process(args) -> None:
    """Seconds and peak memory of whole processes; the seed is another one in each round."""
    header("one poem", "s")
    with tempfile.TemporaryDirectory() as folder:
        earlier, run = earlier_build(Path(folder) / "earlier"), copied_run(Path(folder) / "run", args.ckpt_path)
        flags = ["--num_samples", "1", "--stop_at_poem_end", "--ckpt_path", str(run)]
        flags += ["--data_root", str(Path(args.data_root).resolve())]

        def whole(build: Path, seeds: Iterator[int]) -> tuple[float, float]:
            command = [sys.executable, str(build / "sample.py"), *flags, "--seed", str(next(seeds))]
            start = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as done:
                _, status, usage = os.wait4(done.pid, 0)  # which gives the memory of this child alone
                done.returncode = os.waitstatus_to_exitcode(status)
            if done.returncode:
                raise SystemExit(f"{command} ended with {done.returncode}")
            return time.perf_counter() - start, usage.ru_maxrss / 1024

        builds = {"ours": ROOT, "before": earlier}
        found = in_turns(args.rounds, {way: partial(whole, b, count(1)) for way, b in builds.items()})
    for way, of_way in found.items():
        print(row("sample.py", way, of_way, found["ours"], lambda own, other: other / own))


def new_trained(folder: str, preset: str = "mini") -> Trained:
    return load_trained(made_run(Path(folder), preset))


def length(args) -> None:
    """The mean cost of a token, in each stretch of a long text."""
    with tempfile.TemporaryDirectory() as folder:
        trained = new_trained(folder)
    text = Text(trained, trained.vocabulary.chars[0], 1, 10_000)
    print("| tokens | µs a token |\n|---|---|")
    start = time.perf_counter()
    for i, _ in enumerate(generate(Decoder(trained.config, trained.weights), [text]), start=1):
        if i % 1000 == 0:
            print(f"| {i - 999:,} to {i:,} | {1e3 * (time.perf_counter() - start):.0f} |")
            start = time.perf_counter()


def limit(args) -> None:
    """The time of a step, and what it would be if only the weights were read, or only the head's product computed."""
    with tempfile.TemporaryDirectory() as folder:
        trained = new_trained(folder)
    decoder, steps = Decoder(trained.config, trained.weights), 60
    for number in (1, 10, 100):
        texts = [Text(trained, trained.vocabulary.chars[0], seed) for seed in range(number)]
        model, seconds = decoder.with_cache(number), {"model": 0.0, "choice": 0.0}
        for _ in range(steps):
            start = time.perf_counter()
            logits = next_logits(model, [text.window for text in texts], list(range(number)), VOCAB_SIZE)
            middle = time.perf_counter()
            ids, _ = choose(logits, None, DEFAULT, [text.rng for text in texts])
            seconds["model"] += (middle - start) / steps
            seconds["choice"] += (time.perf_counter() - middle) / steps
            for text, token in zip(texts, ids.tolist(), strict=True):
                text.append(token)
        big = np.ones(64 << 20, dtype=np.float32)
        start = time.perf_counter()
        big.sum()
        size = sum(weight.nbytes for weight in trained.weights.values() if weight.ndim == 2)
        reading = size / (big.nbytes / (time.perf_counter() - start))
        features = np.ones((number, trained.config["n_embd"]), dtype=np.float32)
        start = time.perf_counter()
        for _ in range(20):
            features @ decoder.head
        head = (time.perf_counter() - start) / 20
        parts = ", ".join(f"{name} {1e6 * value:.0f} µs" for name, value in seconds.items())
        print(f"{number} texts: {parts}; reading the weights once {1e6 * reading:.0f} µs, the head {1e6 * head:.0f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"table": table, "form": form, "process": process, "length": length, "limit": limit}
    inner = {"one": one, "make": lambda args: make_run(Path(args.run), args.preset)}
    parser.add_argument("--part", choices=[*parts, *inner], default="table")
    parser.add_argument("--presets", nargs="+", choices=SEQ_LEN, default=list(SEQ_LEN), help="sizes of the model")
    parser.add_argument("--texts", nargs="+", type=int, default=[1, 10, 100], help="texts written at once")
    parser.add_argument("--tokens", type=int, default=500, help="tokens of a text")
    parser.add_argument("--poems", type=int, default=10, help="poems in form")
    ways = ["ours", "before", "transformers", "plain loop"]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways, help="of the table; ours is one of them")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, in turns")
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT)
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the trained run, where one is needed")
    for name in ("--way", "--run", "--preset"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--in_form", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    (parts | inner)[args.part](args)


if __name__ == "__main__":
    main()
