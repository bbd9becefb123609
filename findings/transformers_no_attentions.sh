#!/usr/bin/env bash
# transformers: output_attentions=True gives an empty tuple, without a word, unless the model was loaded as "eager".
#
# The default implementation (sdpa) does not compute the weights. One would have guessed an error, a warning, or weights:
# a program that loops over the layers sees none.
# Seen with transformers 5.24.0 and torch 2.13.0: (), where attn_implementation="eager" gives a matrix a layer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - 2>"$folder/stderr" <<'PYTHON' || { cat "$folder/stderr"; exit 1; }
import torch
import transformers

sizes = {"vocab_size": 9, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
ids = torch.tensor([[1, 2, 3]])
default = model(ids, output_attentions=True).attentions
model.set_attn_implementation("eager")
eager = model(ids, output_attentions=True).attentions
shapes = [tuple(weights.shape) for weights in eager]
print(f"transformers {transformers.__version__}: by default {default}, eager {shapes}")
assert default == () and shapes == [(1, 2, 3, 3)] * 2, "this has changed"
PYTHON
if grep -i attention "$folder/stderr"; then echo "this has changed: it warns"; exit 1; fi
