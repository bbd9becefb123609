"""How an earlier build writes, with torch: benchmarks/sampling.py runs this file in a copy of commit 87a965d.

Prints tokens and seconds, after a short warm-up, and the peak memory of this process in MB, as JSON.
"""

import json
import resource
import sys
import time

import songci  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
from songci.generation import FORM_CONTROLS
from songci.samples import samples

from songci.forms.templates import Forms
from songci.forms.writer import FormRules
from songci.training.checkpoint import load_model


def main(run: str, texts: str, tokens: str, data_root: str = "") -> None:
    """As sampling.ours(); with a data folder, in form."""
    trained = load_model(run)
    start, ways = trained.vocabulary.chars[0], {}
    if data_root:
        rules = FormRules(Forms.load(data_root), trained.vocabulary)
        start, ways = "+++清平乐\n", {"rules": rules, "controls": FORM_CONTROLS, "particles": 16}

    def write(tokens: int) -> int:
        return sum(sample.tokens for sample in samples(trained, start, int(texts), tokens, **ways))

    write(5)
    began = time.perf_counter()
    written = write(int(tokens))
    seconds = time.perf_counter() - began
    print(json.dumps([written, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


if __name__ == "__main__":
    main(*sys.argv[1:])
