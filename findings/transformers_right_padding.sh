#!/usr/bin/env bash
# transformers: generate() continues a batch that is padded on the right, wrongly and without a word.
#
# A tokenizer of one's own pads on the right unless it is told, and generate() then goes on behind the padding. It warns
# of that only if generation_config has a pad_token_id, which a model made from a config without one has not, even if
# the tokenizer has pad_token. One would have guessed that a decoder refuses right padding, or at least always warns:
# the attention_mask, which it is given, shows it.
# Seen with transformers 5.24.0 and torch 2.13.0: of four prompts the two shorter ones go on otherwise than alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import logging

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers


class Heard(logging.Handler):
    lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


transformers.utils.logging.add_handler(Heard())
tokens = {token: i for i, token in enumerate(["[PAD]", *"abcdefghijklmnopqrstuvwxyz"])}
characters = Tokenizer(models.WordLevel(tokens))
characters.pre_tokenizer, characters.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=characters, pad_token="[PAD]")
no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
sizes = {"vocab_size": len(tokens), "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **no_ids, initializer_range=0.5)).eval()


def written(prompts, **padding):
    inputs = tokenizer(prompts, padding=True, return_tensors="pt", **padding)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    return tokenizer.batch_decode(ids[:, inputs.input_ids.size(1) :])


prompts = ["abc", "hello", "x", "quick"]
alone = [written([prompt])[0] for prompt in prompts]
as_alone = {}
for way, padding in {"by default": {}, "left": {"padding_side": "left"}}.items():
    Heard.lines.clear()
    as_alone[way] = [text == one for text, one in zip(written(prompts, **padding), alone)]
    print(f"transformers {transformers.__version__}, padded {way}: as alone {as_alone[way]}, warnings {Heard.lines}")
    assert Heard.lines == [], "this has changed"
assert as_alone == {"by default": [False, True, False, True], "left": [True] * 4}, "this has changed"
model.generation_config.pad_token_id = 0
written(prompts)
print(f"with generation_config.pad_token_id: {Heard.lines}")
assert "right-padding was detected" in Heard.lines[0], "this has changed"
PYTHON
