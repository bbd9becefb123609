"""prepare.py on a large text: MB a second and peak memory, beside the handout's plain algorithm on the same text.

The text is 全宋词 over and over until it has --megabytes, so it has titles, and their forms are learned too; with
--no_titles it is the same without +++. The plain algorithm reads all into a string, builds the dictionary by
sorted(set(data)), and a list of ids for each split. Each runs in a process of its own, which is measured.

  python benchmarks/prepare.py                     1,000 MB
  python benchmarks/prepare.py --megabytes 100
"""

import argparse
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from prepare import prepare
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT


def plain(folder: Path) -> None:
    data = (folder / "input.txt").read_text(encoding="utf-8")
    chars = sorted(set(data))
    stoi = {char: i for i, char in enumerate(chars)}
    itos = dict(enumerate(chars))
    n = len(data)
    for name, part in (("train.bin", data[: int(n * 0.9)]), ("val.bin", data[int(n * 0.9) :])):
        np.array([stoi[char] for char in part], dtype=np.uint16).tofile(folder / name)
    with (folder / "meta.pkl").open("wb") as file:
        pickle.dump({"vocab_size": len(chars), "stoi": stoi, "itos": itos}, file)


def nothing(folder: Path) -> None:
    """For the memory of the interpreter with its libraries."""


WAYS = {"interpreter": nothing, "ours": prepare, "plain": plain}


def one(way: str, folder: Path) -> None:
    start = time.perf_counter()
    WAYS[way](folder)
    print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def write_text(path: Path, source: Path, megabytes: int, titles: bool) -> None:
    poems = source.read_bytes()
    poems = poems if titles else poems.replace(b"+++", b"")
    with path.open("wb") as file:
        for _ in range(-(-megabytes * 10**6 // len(poems))):
            file.write(poems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--no_titles", action="store_true")
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="whose input.txt is taken over and over")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one[0], Path(args.one[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "input.txt", Path(args.data_root) / "input.txt", args.megabytes, not args.no_titles)
        size, measured, bins = (folder / "input.txt").stat().st_size / 1e6, {}, {}
        for way in WAYS:
            done = subprocess.run(
                [sys.executable, __file__, "--one", way, name], capture_output=True, encoding="utf-8", check=True
            )
            measured[way] = json.loads(done.stdout.splitlines()[-1])
            bins[way] = [(folder / f).read_bytes() for f in ("train.bin", "val.bin")] if way != "interpreter" else []
        print(f"{size:,.0f} MB; the same train.bin and val.bin: {bins['ours'] == bins['plain']}\n")
        base = measured["interpreter"][1]
        print("| way | seconds | MB/s | peak memory above the interpreter's, MB |\n|---|---|---|---|")
        for way in ("ours", "plain"):
            seconds, memory = measured[way]
            print(f"| {way} | {seconds:.1f} | {size / seconds:.0f} | {memory - base:,.0f} |")
        ratio = measured["plain"][0] / measured["ours"][0]
        share = (measured["ours"][1] - base) / (measured["plain"][1] - base)
        print(f"\nours is {ratio:.1f} times as fast, with {share:.3f} of the memory")


if __name__ == "__main__":
    main()
