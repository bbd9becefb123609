"""How well and how fast train.py learns, beside a plain recipe: one table for each --part.

The yardstick is transformers' GPT2LMHeadModel of the same size in float32, trained as minimal GPT codebases do: AdamW,
1e-3 → 1e-4 by a cosine after 100 steps of warm-up, betas 0.9 and 0.99, weight decay 0.1 on matrices, gradients clipped
at 1.0, windows drawn at random with replacement.

  speed     tokens a second, in turns, each in a process of its own, and the share of the machine's matmul peak
  quality   losses after a whole run of each, and when ours reaches the yardstick's last one (minutes a run)
  growth    time of an iteration and memory against batch size, window and preset (each in a process of its own)
  profile   where the time of an iteration goes
"""

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import songci  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import numpy as np
import torch

import train
from model import PRESETS
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, load_dataset
from songci.corpus.windows import ScoredWindows, title_ids
from songci.runs import perplexity
from songci.training.batches import stack_windows
from songci.training.device import keep_large_blocks
from songci.training.measure import mean_loss
from songci.training.threads import considerate_threads

SEQ_LEN, BATCHSIZE = 64, 16


class Yardstick(torch.nn.Module):
    """transformers' GPT-2, with what measure.py asks of a model."""

    def __init__(self, vocab_size: int, seq_len: int, preset: str = "mini"):
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        sizes = {name: PRESETS[preset][name] for name in ("n_layer", "n_head", "n_embd")}
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        no_marks = {"bos_token_id": None, "eos_token_id": None}
        config = GPT2Config(vocab_size=vocab_size, n_positions=seq_len, **sizes, **no_dropout, **no_marks)
        self.gpt2 = GPT2LMHeadModel(config)
        self.config = argparse.Namespace(max_seq_len=seq_len)
        self.device = torch.device("cpu")
        self.head = self.gpt2.lm_head

    def forward(self, ids):
        return self.gpt2(ids, use_cache=False).logits, []

    def features(self, ids):
        return self.gpt2.transformer(ids, use_cache=False).last_hidden_state, []


class YardstickTrainer:
    """The plain recipe, with the iterate() of train.Trainer."""

    def __init__(self, vocab_size: int, tokens: np.ndarray, seed: int, iters: int):
        torch.manual_seed(seed)
        self.model, self.tokens, self.iters, self.iteration = Yardstick(vocab_size, SEQ_LEN), tokens, iters, 0
        self.rng = np.random.default_rng(seed)
        decay = [p for p in self.model.parameters() if p.dim() >= 2]
        rest = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    def iterate(self) -> None:
        warmup = min(1.0, (self.iteration + 1) / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, self.iteration - 100) / max(1, self.iters - 100)))
        for group in self.optimizer.param_groups:
            group["lr"] = warmup * (1e-4 + 9e-4 * cosine)
        starts = self.rng.integers(len(self.tokens) - SEQ_LEN, size=BATCHSIZE)
        inputs, targets = stack_windows(self.tokens, starts, SEQ_LEN)
        logits, _ = self.model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.iteration += 1


def our_trainer(data_root: str, *flags) -> train.Trainer:
    with tempfile.TemporaryDirectory() as folder:
        return train.Trainer(train.parse_args(["--data_root", data_root, "--ckpt_path", folder, *map(str, flags)]))


def trainer_by_name(name: str, data_root: str, seed: int, iters: int):
    flags = {
        "ours, poem": [],
        "ours, stream": ["--windows", "stream"],
        "ours, plain AdamW": ["--optimizer", "adamw", "--lr", 0.003],
    }
    if name in flags:
        return our_trainer(data_root, "--seed", seed, "--iters", iters, *flags[name])
    vocabulary, tokens, _ = load_dataset(data_root)
    return YardstickTrainer(len(vocabulary), tokens, seed, iters)


def first_64(poems: ScoredWindows) -> ScoredWindows:
    """The first window of each poem, up to its 64th character."""
    first = poems[poems.scored == 0]
    return ScoredWindows(first.start, first.scored, np.minimum(first.length, 64))


def measure(model, data_root: str) -> dict[str, float]:
    """Perplexities on the validation split: of the first 64 characters of poems, of whole poems, of the stream."""
    vocabulary, _, tokens = load_dataset(data_root)
    poems = ScoredWindows.of_poems(tokens, title_ids(vocabulary), model.config.max_seq_len)
    return {
        "first 64": perplexity(mean_loss(model, tokens, first_64(poems), 64)),
        "poems": perplexity(mean_loss(model, tokens, poems, 64)),
        "stream": perplexity(mean_loss(model, tokens, ScoredWindows.of_stream(tokens, SEQ_LEN), 64)),
    }


def quality_run(name: str, data_root: str, seed: int, iters: int) -> dict:
    """One whole run: its seconds, its measures at the end, and the stream loss along the way."""
    trainer, seconds, curve = trainer_by_name(name, data_root, seed, iters), 0.0, []
    _, _, tokens = load_dataset(data_root)
    for iteration in range(1, iters + 1):
        start = time.perf_counter()
        trainer.iterate()
        seconds += time.perf_counter() - start
        if iteration % 50 == 0:
            some = ScoredWindows.of_stream(tokens, SEQ_LEN)[:: len(tokens) // SEQ_LEN // 320]
            curve.append((seconds, mean_loss(trainer.model, tokens, some, BATCHSIZE)))
    return {"name": name, "seed": seed, "seconds": seconds, "curve": curve, **measure(trainer.model, data_root)}


def quality(args) -> None:
    names = ["yardstick", "ours, poem", "ours, stream"]
    results = []
    for seed in range(1, args.seeds + 1):
        for name in names:
            command = [sys.executable, __file__, "--part", "run", "--name", name, "--seed", str(seed)]
            command += ["--iters", str(args.iters), "--data_root", args.data_root]
            done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            shown = {k: round(v, 1) for k, v in results[-1].items() if k not in ("name", "seed", "curve")}
            print(f"seed {seed}, {name}: {shown}", flush=True)
    by_name = {name: [r for r in results if r["name"] == name] for name in names}
    print(f"\nmedian of {args.seeds} seeds, and the median ratio to the yardstick of the same seed\n")
    print("| run | " + " | ".join(f"{m} perplexity | ratio" for m in ("first 64", "poems", "stream")) + " | seconds |")
    print("|---" * 8 + "|")
    for name in names:
        cells = []
        for key in ("first 64", "poems", "stream"):
            ratios = [r[key] / y[key] for r, y in zip(by_name[name], by_name["yardstick"], strict=True)]
            cells += [f"{statistics.median(r[key] for r in by_name[name]):.1f}", f"{statistics.median(ratios):.3f}"]
        print(f"| {name} | {' | '.join(cells)} | {statistics.median(r['seconds'] for r in by_name[name]):.0f} |")
    shares = []
    for ours, other in zip(by_name["ours, stream"], by_name["yardstick"], strict=True):
        goal = other["curve"][-1][1]
        shares.append(next((s for s, loss in ours["curve"] if loss <= goal), math.nan) / other["seconds"])
    print(f"\nours, stream, reaches the yardstick's last loss in {statistics.median(shares):.2f} of its time")


def worker(connection, name: str, data_root: str) -> None:
    """Times as many steps as asked for. Each run has its own process, for keep_large_blocks() changes the whole one."""
    if name != "yardstick":
        keep_large_blocks()
    trainer = trainer_by_name(name, data_root, 1, 10_000)
    dtype = getattr(trainer, "dtype", torch.float32)
    while count := connection.recv():
        start = time.perf_counter()
        for _ in range(count):
            trainer.iterate()
        connection.send(((time.perf_counter() - start) / count, str(dtype), matmul_peak(dtype)))


def speed(args) -> None:
    names = ["yardstick", "ours, plain AdamW", "ours, poem"]
    context, pipes, times, peaks = multiprocessing.get_context("spawn"), {}, {name: [] for name in names}, []
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, name, args.data_root), daemon=True).start()
    for turn in range(args.rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(10)
            seconds, dtype, peak = pipe.recv()
            if turn > 0:  # the first warms up
                times[name].append(seconds)
                peaks.append(peak)
    for pipe in pipes.values():
        pipe.send(0)  # the end
    peak = statistics.median(peaks)
    print(f"{torch.get_num_threads()} threads, ours in {dtype}, matmul peak {peak / 1e9:.0f} GFLOP/s\n")
    print("| run | ms an iteration | tokens/s | ratio to the yardstick | share of the peak |\n|---|---|---|---|---|")
    flops = flops_of_iteration(len(load_dataset(args.data_root)[0]))
    for name in names:
        seconds = statistics.median(times[name])
        ratio = statistics.median(y / t for y, t in zip(times["yardstick"], times[name], strict=True))
        tokens = BATCHSIZE * SEQ_LEN
        print(
            f"| {name} | {1e3 * seconds:.1f} | {tokens / seconds:,.0f} | {ratio:.2f} | {flops / seconds / peak:.0%} |"
        )


def flops_of_iteration(vocab_size: int, C: int = 128, n_layer: int = 4) -> float:
    """Multiplications and additions of the matrix products, forward and twice that backward; without Muon's."""
    tokens = BATCHSIZE * SEQ_LEN
    linear = n_layer * 12 * C * C + vocab_size * C
    return 3 * 2 * tokens * (linear + n_layer * 2 * SEQ_LEN * C)


def matmul_peak(dtype: torch.dtype) -> float:
    """FLOP/s of a product of two large matrices."""
    a = torch.ones(2048, 2048, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def growth(args) -> None:
    print(
        "| preset | batchsize | max_seq_len | ms an iteration | µs a token | peak memory, MB |\n|---" + "|---" * 5 + "|"
    )
    cases = [("mini", b, 64) for b in (4, 16, 64)] + [("mini", 16, n) for n in (128, 256, 512, 1024)]
    for preset, batchsize, seq_len in [*cases, ("small", 16, 64), ("base", 16, 64)]:
        flags = ["--model", preset, "--batchsize", batchsize, "--max_seq_len", seq_len, "--dropout", 0]
        command = [sys.executable, __file__, "--part", "one", "--data_root", args.data_root, "--flags"]
        done = subprocess.run([*command, json.dumps(flags)], capture_output=True, encoding="utf-8", check=True)
        seconds, memory = json.loads(done.stdout.splitlines()[-1])
        each = 1e6 * seconds / (batchsize * seq_len)
        print(f"| {preset} | {batchsize} | {seq_len} | {1e3 * seconds:.0f} | {each:.1f} | {memory:.0f} |")


def one(args) -> None:
    """Median seconds of an iteration, and the peak memory of this process in MB."""
    trainer = our_trainer(args.data_root, *json.loads(args.flags))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        trainer.iterate()
        times.append(time.perf_counter() - start)
    print(json.dumps([statistics.median(times[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def tokens(args) -> None:
    """Tokens a second of --name, after a warm-up."""
    trainer, seconds = trainer_by_name(args.name, args.data_root, 1, 10_000), []
    if args.name != "yardstick":
        considerate_threads(torch.get_num_threads())
    begin = time.perf_counter()
    while (start := time.perf_counter()) < begin + 9:
        trainer.iterate()
        if start > begin + 3:  # the warm-up, in which ours looks what other programs do
            seconds.append(time.perf_counter() - start)
    print(json.dumps(BATCHSIZE * SEQ_LEN * len(seconds) / sum(seconds)))


def profile(args) -> None:
    trainer = our_trainer(args.data_root)
    for _ in range(5):
        trainer.iterate()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(10):
            trainer.iterate()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("| operation | ms an iteration | share |\n|---|---|---|")
    for event in events[:12]:
        milliseconds = event.self_cpu_time_total / 1e3 / 10
        print(f"| {event.key} | {milliseconds:.1f} | {event.self_cpu_time_total / total:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"speed": speed, "quality": quality, "growth": growth, "profile": profile}
    inner = {
        "one": one,
        "tokens": tokens,
        "run": lambda a: print(json.dumps(quality_run(a.name, a.data_root, a.seed, a.iters))),
    }
    parser.add_argument("--part", choices=[*parts, *inner], default="speed", help="which table")
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--iters", type=int, default=2000, help="iterations of a quality run")
    parser.add_argument("--seeds", type=int, default=3, help="quality runs of each kind")
    parser.add_argument("--rounds", type=int, default=7, help="turns of the speed comparison")
    for name in ("--name", "--flags"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.name != "yardstick":  # which is left as others run it
        keep_large_blocks()
    (parts | inner)[args.part](args)


if __name__ == "__main__":
    main()
