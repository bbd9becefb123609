#!/usr/bin/env bash
# hmmlearn: of several best paths, Viterbi takes the one with the lowest last state, but the highest states before it.
#
# Two states and two symbols, all probabilities 1/2: each of the 16 paths of four steps has the same probability. One
# would have guessed one rule for all times, as Rabiner's argmax has it: 0, 0, 0, 0 (or else 1, 1, 1, 1).
# Seen with hmmlearn 0.3.3, in both of its implementations: 1, 1, 1, 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet hmmlearn==0.3.3
"$folder/venv/bin/python" - <<'PYTHON'
import hmmlearn
import numpy as np
from hmmlearn.hmm import CategoricalHMM

for implementation in ("log", "scaling"):
    model = CategoricalHMM(n_components=2, implementation=implementation)
    model.startprob_ = np.full(2, 0.5)
    model.transmat_ = model.emissionprob_ = np.full((2, 2), 0.5)
    path = model.decode(np.zeros((4, 1), dtype=int))[1].tolist()
    print(f"hmmlearn {hmmlearn.__version__}, {implementation}: the best path is {path}")
    assert path == [1, 1, 1, 0], "this has changed"
PYTHON
