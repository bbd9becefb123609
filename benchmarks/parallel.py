"""Where the time of a data-parallel step goes, and how it would scale: a measurement, and a calculation on paper.

Measured with one process and with two on this machine (gloo, one thread each): gradients with their exchange and
without, and the optimisers. The calculation: a ring all-reduce moves 2 (N-1)/N of the gradients' bytes through each
process's link; the exchange is taken not to overlap with anything, so this is the worst case.

  python benchmarks/parallel.py
  python benchmarks/parallel.py --flags "--model small --batchsize 32"
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import train

LINKS = {"1 Gbit/s Ethernet": 0.125e9, "10 Gbit/s Ethernet": 1.25e9, "100 Gbit/s InfiniBand": 12.5e9}


def worker(flags: list[str], steps: int) -> None:
    """Prints, from the first process, the median seconds of the parts of a step, and the bytes of the gradients."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = train.Trainer(train.parse_args([*flags, "--ckpt_path", folder]))
    times = {"gradients with exchange": [], "gradients alone": [], "optimisers": []}
    alone = getattr(trainer.loss, "module", trainer.loss)  # what DistributedDataParallel wraps

    def backward(loss) -> None:
        for inputs, targets, share in trainer.pieces():
            (share * loss(inputs, targets)).backward()

    for _ in range(steps):
        start = time.perf_counter()
        backward(trainer.loss)
        times["gradients with exchange"].append(time.perf_counter() - start)
        start = time.perf_counter()
        for optimizer in trainer.optimizers:
            optimizer.step()
        times["optimisers"].append(time.perf_counter() - start)
        trainer.model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        backward(alone)
        times["gradients alone"].append(time.perf_counter() - start)
        trainer.model.zero_grad(set_to_none=True)
    if trainer.parallel.main:
        medians = {name: statistics.median(values[3:]) for name, values in times.items()}
        print(json.dumps(medians | {"bytes": 4 * trainer.model.num_parameters()}))


def measured(processes: int, args) -> dict:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, __file__, "--worker", "--flags", args.flags, "--steps", str(args.steps)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=env)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flags", default="", help="flags of train.py")
    parser.add_argument("--steps", type=int, default=40, help="steps to measure")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(shlex.split(args.flags), args.steps)
        return
    one, two = measured(1, args), measured(2, args)
    print("| ms | one process | two, half of the batch each |\n|---|---|---|")
    for name in ("gradients alone", "gradients with exchange", "optimisers"):
        print(f"| {name} | {1e3 * one[name]:.1f} | {1e3 * two[name]:.1f} |")
    compute, serial, size = one["gradients alone"], one["optimisers"], one["bytes"]
    print(
        f"\n{size / 1e6:.1f} MB of gradients; on paper, the speed of N processes over that of one, the batch divided:\n"
    )
    print("| link | N = 2 | 4 | 8 |\n|---|---|---|---|")
    for link, speed in LINKS.items():
        gains = []
        for n in (2, 4, 8):
            exchange = 2 * (n - 1) / n * size / speed
            gains.append(f"{(compute + serial) / (compute / n + serial + exchange):.2f}")
        print(f"| {link} | {' | '.join(gains)} |")


if __name__ == "__main__":
    main()
