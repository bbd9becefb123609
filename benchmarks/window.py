"""What moving the window costs: the perplexity of held-out text in windows that move on and keep half, as sampling has
it, and in full ones at every step.

  python benchmarks/window.py
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import songci  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import torch

from model import GPT
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, load_dataset
from songci.corpus.windows import ScoredWindows
from songci.runs import as_gpt, load_trained, perplexity
from songci.training.measure import mean_loss


@torch.inference_mode()
def last_loss(model: GPT, tokens: np.ndarray, starts: np.ndarray, length: int) -> float:
    """Mean loss of the token after each of the windows tokens[start : start + length]."""
    total = 0.0
    for i in range(0, len(starts), 256):
        windows = torch.from_numpy(tokens[starts[i : i + 256, None] + np.arange(length + 1)].astype(np.int64))
        logits = model.head(model.features(windows[:, :-1])[0][:, -1])
        total += torch.nn.functional.cross_entropy(logits, windows[:, -1], reduction="sum").item()
    return total / len(starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT)
    parser.add_argument("--ckpt_path", default="workdirs/quansongci")
    args = parser.parse_args()
    trained = load_trained(args.ckpt_path)
    model, size = as_gpt(trained), trained.max_seq_len
    _, _, tokens = load_dataset(args.data_root)
    if trained.title:
        poems = ScoredWindows.of_poems(tokens, trained.title, size)
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


if __name__ == "__main__":
    main()
