"""How fast texts are written: tokens a second and peak memory, compared with two other ways in one run.

  ours           generation.py, all texts together, with its cache
  plain loop     one text after another, the whole window through the model for each token, no cache
  transformers   generate() of a GPT2LMHeadModel of the same size with its cache, in pieces as long as the window,
                 since it cannot go past it

Each is run in a process of its own, with fresh weights: what the texts say does not matter here.

  python benchmarks/sampling.py                       mini and small, 1, 10 and 100 texts of 500 tokens
  python benchmarks/sampling.py --part length         the cost of a token in a text of 10,000
  python benchmarks/sampling.py --part limit          where the time of a step goes
  python benchmarks/sampling.py --part window         what moving the window costs: loss of held-out text
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import songci  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import numpy as np
import torch
from songci.cache import KVCache
from songci.generation import Context, Controls, Text, generate, next_logits, sample_next

from model import GPT, PRESETS, GPTConfig
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, Vocabulary, load_dataset
from songci.corpus.windows import ScoredWindows
from songci.training.checkpoint import Trained, load_model
from songci.training.loss import perplexity
from songci.training.measure import mean_loss
from songci.training.threads import threads_for

VOCAB_SIZE, SEQ_LEN = 5916, 64


def new_model(preset: str) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(VOCAB_SIZE, SEQ_LEN, **PRESETS[preset])).eval()


def new_texts(model: GPT, texts: int, tokens: int) -> list[Text]:
    trained = Trained(model, Vocabulary("".join(map(chr, range(0x4E00, 0x4E00 + VOCAB_SIZE)))))
    return [Text(trained, trained.vocabulary.chars[0], seed, tokens) for seed in range(texts)]


def ours(model: GPT, texts: int, tokens: int) -> None:
    with threads_for(model, texts):
        for _ in generate(model, new_texts(model, texts, tokens)):
            pass


@torch.inference_mode()
def plain_loop(model: GPT, texts: int, tokens: int) -> None:
    for seed in range(texts):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(tokens):
            logits = model(ids[:, -SEQ_LEN:])[0][:, -1] / 0.8
            edge = logits.topk(200).values[:, -1:]
            probs = torch.softmax(logits.masked_fill(logits < edge, -math.inf), dim=-1)
            ids = torch.cat((ids, torch.multinomial(probs, 1, generator=generator)), dim=1)


@torch.inference_mode()
def with_transformers(model: GPT, texts: int, tokens: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    sizes = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "n_positions": SEQ_LEN}
    other = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB_SIZE, bos_token_id=0, eos_token_id=None, **sizes)).eval()
    for start in range(0, tokens, SEQ_LEN - 1):
        ids = torch.zeros(texts, 1, dtype=torch.long)
        length = min(SEQ_LEN - 1, tokens - start)
        other.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=0.8,
            top_k=200,
            max_new_tokens=length,
            min_new_tokens=length,
            pad_token_id=0,
        )


WAYS = {"ours": ours, "plain loop": plain_loop, "transformers": with_transformers}


def one(args) -> None:
    """Prints the seconds of one way, after a short warm-up, and the peak memory of this process in MB, as JSON."""
    way, model = WAYS[args.way], new_model(args.preset)
    way(model, args.texts, 5)
    start = time.perf_counter()
    way(model, args.texts, args.tokens)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def table(args) -> None:
    print("| preset | texts | way | tokens/s | ours is faster by | peak memory, MB |\n|---|---|---|---|---|---|")
    for preset in ("mini", "small"):
        for texts in (1, 10, 100):
            measured = {}
            for way in WAYS:
                # The plain loop takes the same time for each text: two of them are enough
                part = min(texts, 2) if way == "plain loop" else texts
                command = [sys.executable, __file__, "--part", "one", "--way", way, "--preset", preset]
                command += ["--texts", str(part), "--tokens", str(args.tokens)]
                done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
                seconds, memory = json.loads(done.stdout.splitlines()[-1])
                measured[way] = (part * args.tokens / seconds, memory)
            for way, (speed, memory) in measured.items():
                ratio = measured["ours"][0] / speed
                print(f"| {preset} | {texts} | {way} | {speed:,.0f} | {ratio:.1f} | {memory:.0f} |", flush=True)


def length(args) -> None:
    """The mean cost of a token, in each stretch of a long text."""
    model = new_model("mini")
    print("| tokens | µs a token |\n|---|---|")
    start = time.perf_counter()
    for i, _ in enumerate(generate(model, new_texts(model, 1, 10_000)), start=1):
        if i % 1000 == 0:
            print(f"| {i - 999:,} to {i:,} | {1e3 * (time.perf_counter() - start):.0f} |")
            start = time.perf_counter()


@torch.inference_mode()
def limit(args) -> None:
    """The time of a step, and what it would be if only the weights were read, or only the head's product computed."""
    for texts in (1, 10, 100):
        model = new_model("mini")
        contexts = [Context(model.config.max_seq_len, (), [0]) for _ in range(texts)]
        cache, rows = KVCache(model, texts), list(range(texts))
        uniform = torch.rand(texts, dtype=torch.double)
        seconds = {"model": 0.0, "choice": 0.0}
        steps = 60
        for _ in range(steps):
            start = time.perf_counter()
            logits = next_logits(model, contexts, cache, rows)
            middle = time.perf_counter()
            ids = sample_next(logits, uniform, Controls())
            seconds["model"] += (middle - start) / steps
            seconds["choice"] += (time.perf_counter() - middle) / steps
            for context, token in zip(contexts, ids.tolist(), strict=True):
                context.append(token)
        weights = [p for p in model.parameters() if p.dim() == 2]
        big = torch.ones(64 << 20)
        start = time.perf_counter()
        big.sum()
        reading = 4 * sum(p.numel() for p in weights) / (4 * big.numel() / (time.perf_counter() - start))
        features = torch.ones(texts, 128)
        start = time.perf_counter()
        for _ in range(20):
            model.head(features)
        head = (time.perf_counter() - start) / 20
        parts = ", ".join(f"{name} {1e6 * value:.0f} µs" for name, value in seconds.items())
        print(f"{texts} texts: {parts}; reading the weights once {1e6 * reading:.0f} µs, the head {1e6 * head:.0f} µs")


@torch.inference_mode()
def window(args) -> None:
    """The perplexity of held-out text in windows that move on and keep half, and in full ones at every step."""
    model, _, title, _ = load_model(args.ckpt_path)
    _, _, tokens = load_dataset(args.data_root)
    size = model.config.max_seq_len
    if title:
        poems = ScoredWindows.of_poems(tokens, title, size)
        later = poems[poems.scored > 0]
        spans = zip(later.start, later.scored, later.length, strict=True)
        places = np.array([start + i for start, scored, length in spans for i in range(scored, length)])[::16]
        print(f"past the first window of {len(poems[poems.scored == 0]):,} poems, perplexity:")
        print(f"  half of the window kept: {perplexity(mean_loss(model, tokens, later, 64)):.1f}")
        print(
            f"  full windows, each 16th character: {perplexity(last_loss(model, tokens, places - size + 1, size)):.1f}"
        )
        return
    places, kept, total = np.arange(size, len(tokens) - 1, 17), size - size // 2, 0.0  # a sample of them is enough
    print(f"stream, full windows: {perplexity(last_loss(model, tokens, places - size + 1, size)):.1f} (perplexity)")
    for seen in range(kept + 1, size + 1):  # the lengths that the window has in turn
        total += last_loss(model, tokens, places[seen % 17 :: size - kept] - seen + 1, seen) / (size - kept)
    print(f"stream, half kept: {perplexity(total):.1f}")


def last_loss(model: GPT, tokens: np.ndarray, starts: np.ndarray, length: int) -> float:
    """Mean loss of the token after each of the windows tokens[start : start + length]."""
    total = 0.0
    for i in range(0, len(starts), 256):
        windows = torch.from_numpy(tokens[starts[i : i + 256, None] + np.arange(length + 1)].astype(np.int64))
        logits = model.head(model.features(windows[:, :-1])[:, -1])
        total += torch.nn.functional.cross_entropy(logits, windows[:, -1], reduction="sum").item()
    return total / len(starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"table": table, "length": length, "limit": limit, "window": window, "one": one}
    parser.add_argument("--part", choices=parts, default="table")
    parser.add_argument("--tokens", type=int, default=500, help="tokens of a text")
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT)
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the run that --part window measures")
    for name, kind in (("--way", str), ("--preset", str), ("--texts", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    parts[args.part](args)


if __name__ == "__main__":
    main()
