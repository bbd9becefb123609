"""How fast training and sampling are beside other busy programs: tokens a second, as a share of the idle machine's.

Ours and the plain way (transformers' GPT-2 trained by AdamW; a loop without a cache), in turn in one run, each in a
process of its own, beside 0, 1 and 2 processes that keep a core busy each.

  python benchmarks/busy.py                       three rounds, some five minutes on two cores
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sampling import made_run

HERE = Path(__file__).parent
# Ours decides by itself how its threads wait; the plain way has what libgomp does without being told.
PLAIN = {"GOMP_SPINCOUNT": "300000"}
WAYS = {
    ("training", "ours"): ({}, ["training.py", "--part", "tokens", "--name", "ours, poem"]),
    ("training", "plain"): (PLAIN, ["training.py", "--part", "tokens", "--name", "yardstick"]),
    ("sampling", "ours"): ({}, ["sampling.py", "--part", "one", "--way", "ours", "--tokens", "300"]),
    ("sampling", "plain"): (PLAIN, ["sampling.py", "--part", "one", "--way", "plain loop", "--tokens", "100"]),
}
TEXTS = {"ours": 10, "plain": 1}  # written at once, or one after another


def speed(task: str, way: str, run: Path) -> float:
    """Tokens a second of one process. run: the folder of a model to write with."""
    env, command = WAYS[task, way]
    if task == "sampling":
        command = [*command, "--run", run, "--texts", str(TEXTS[way])]
    script, *flags = command
    env = {**os.environ, **env}
    done = subprocess.run(
        [sys.executable, HERE / script, *flags], capture_output=True, encoding="utf-8", check=True, env=env
    )
    result = json.loads(done.stdout.splitlines()[-1])
    return result if task == "training" else result[0] / result[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured; the table has the medians")
    args = parser.parse_args()
    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        run = made_run(Path(folder) / "mini", "mini")
        for _ in range(args.rounds):
            for busy in (0, 1, 2):
                others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
                time.sleep(0.5)
                try:
                    for task, way in WAYS:
                        speeds.setdefault((task, way, busy), []).append(speed(task, way, run))
                finally:
                    for other in others:
                        other.kill()
                        other.wait()
    print("| tokens a second | idle | beside one | share | beside two | share |\n|---|---|---|---|---|---|")
    for task, way in WAYS:
        idle, one, two = (statistics.median(speeds[task, way, busy]) for busy in (0, 1, 2))
        print(f"| {task}, {way} | {idle:,.0f} | {one:,.0f} | {one / idle:.0%} | {two:,.0f} | {two / idle:.0%} |")


if __name__ == "__main__":
    main()
