"""Writes a trained model as a Hugging Face model: a GPT-2 and its tokenizer, which need no code of ours.

Writes into OUT, all of it or nothing:

  model.safetensors, config.json          the weights of best.pt under GPT-2's names, and their sizes
  tokenizer.json, tokenizer_config.json   one token a character, the line end included
  generation_config.json                  how generate() writes by default: as sample.py does, within the window
  README.md                               the model card: what it is, how it was trained, its losses, how to use it

  python -m songci.export --ckpt_path workdirs/quansongci --out export

A model without positions (--no_pos) becomes one whose positions are all zero. One without residual connections
(--no_res) has no equivalent.
"""

import contextlib
import json
from pathlib import Path

import torch

from model import GPT
from songci.cli import ArgumentParser, UserError, atomic_write, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT
from songci.generation import DEFAULT
from songci.samples import possible_start
from songci.training.checkpoint import Trained, load_model
from songci.training.loss import perplexity

FILES = ["config.json", "model.safetensors", "tokenizer.json"]
FILES += ["tokenizer_config.json", "generation_config.json", "README.md"]
GPT2_LAYER = {  # the parts of a layer of GPT-2, and what stands there side by side of our layer
    "ln_1": ["attention_norm"],
    "attn.c_attn": ["attention.query", "attention.key", "attention.value"],
    "attn.c_proj": ["attention.out"],
    "ln_2": ["feed_forward_norm"],
    "mlp.c_fc": ["feed_forward.up"],
    "mlp.c_proj": ["feed_forward.down"],
}
NO_SPECIAL = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # if not said, they would be GPT-2's


def gpt2_weights(model: GPT) -> dict[str, torch.Tensor]:
    """The model's weights, named as in transformers' GPT2LMHeadModel and, in its layers, transposed to (in, out).

    The head is the token embedding, stored once. Raises UserError for a model without residual connections (--no_res).
    """
    c = model.config
    if c.no_res:
        raise UserError("a model without residual connections (--no_res) has no equivalent: GPT-2 always has them")
    positions = torch.zeros(c.max_seq_len, c.n_embd) if c.no_pos else model.position_embedding.weight
    weights = {"wte.weight": model.token_embedding.weight, "wpe.weight": positions}
    weights |= {f"ln_f.{kind}": parameter for kind, parameter in model.norm.named_parameters()}
    for i, layer in enumerate(model.layers):
        for theirs, ours in GPT2_LAYER.items():
            for kind in ("weight", "bias"):
                joined = torch.cat([layer.get_parameter(f"{name}.{kind}") for name in ours])
                weights[f"h.{i}.{theirs}.{kind}"] = joined.t()  # leaves vectors as they are
    return {f"transformer.{name}": weight.detach().float().contiguous() for name, weight in weights.items()}


def gpt2_config(model: GPT) -> dict:
    """config.json: GPT-2 in our sizes."""
    c = model.config
    kind = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": c.vocab_size}
    sizes = {"n_positions": c.max_seq_len, "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd}
    sizes |= {"n_inner": 4 * c.n_embd, "activation_function": "gelu_new", "layer_norm_epsilon": model.norm.eps}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), c.dropout)
    return kind | sizes | dropout | {"tie_word_embeddings": True} | NO_SPECIAL | {"dtype": "float32"}


def contents(trained: Trained, ckpt_path: Path, name: str) -> list[bytes]:
    """What is in FILES, in their order, in a folder `name`."""
    from safetensors.torch import save
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    model, window = trained.model, trained.model.config.max_seq_len
    # The ids of Vocabulary.encode(), a character each; as there, an unknown character is an error
    tokenizer = Tokenizer(models.WordLevel({char: i for i, char in enumerate(trained.vocabulary.chars)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # "." would not match line ends
    tokenizer.decoder = decoders.Fuse()  # without one, decoding puts spaces between
    reading = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    reading["model_input_names"] = ["input_ids", "attention_mask"]  # for a token_type_id, GPT-2 would add an embedding
    reading["model_max_length"] = window
    writing = {"do_sample": True, "temperature": DEFAULT.temperature, "top_k": DEFAULT.top_k, "max_length": window}
    configs = (gpt2_config(model), reading, writing | NO_SPECIAL)
    config, *others = (json.dumps(content, indent=2).encode() + b"\n" for content in configs)
    weights, card = save(gpt2_weights(model), {"format": "pt"}), model_card(trained, ckpt_path, name)
    return [config, weights, tokenizer.to_str().encode(), *others, card.encode(errors="backslashreplace")]


FLAGS = ["iters", "batchsize", "optimizer", "lr", "muon_lr", "dropout", "seed"]
READ = {"poem_val_loss": "poem by poem, each from its title on", "stream_val_loss": "as one stream"}
LOSSES = """
Over the last 10 % of the text, which it was not trained on:

| the text is read | loss (nats a character) | perplexity |
|---|---|---|
"""
TITLE = "Each text that it learned from began with a title line: begin a prompt with `+++`.\n"
DEFAULT_CORPUS = """全宋词, the Complete Song Ci, in the edition of the project chinese-poetry (MIT licence),
cleaned; the poems are in the public domain."""


def model_card(trained: Trained, ckpt_path: Path, name: str) -> str:
    """README.md for a folder `name`: what the model is, how to use it, its losses, its corpus."""
    settings, result = {}, {}
    for record, file in ((settings, "config.json"), (result, "result.json")):
        with contextlib.suppress(OSError, ValueError):  # a model needs neither
            record.update(json.loads((ckpt_path / file).read_text(encoding="utf-8")))
    c, window = trained.model.config, trained.model.config.max_seq_len
    sizes = f"{c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels, {trained.model.num_parameters():,}"
    flags = ", ".join(f"`--{flag} {settings[flag]}`" for flag in FLAGS if settings.get(flag) is not None)
    prompt = possible_start(trained.vocabulary, *(["+++清平乐\n", "+++"] if trained.title else []))
    name, prompt = (json.dumps(text, ensure_ascii=False) for text in (name, prompt))
    losses = {way: result[key] for key, way in READ.items() if key in result}
    rows = "".join(f"| {way} | {loss:.4f} | {perplexity(loss):.2f} |\n" for way, loss in losses.items())
    front, corpus = "", "a text of its user's own, who knows its source and its licence."
    if Path(settings.get("data_root", "")).name == Path(DEFAULT_DATA_ROOT).name:
        front, corpus = "\nlanguage: zh\nlicense: mit", DEFAULT_CORPUS
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, character-level, poetry]{front}
---

# Songci GPT: {ckpt_path.resolve().name}

A small GPT-2 that writes character by character: {sizes}
parameters, made by Songci GPT's `train.py`{flags and f" ({flags})"} and `python -m songci.export`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForCausalLM.from_pretrained({name})
inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0]))
```

A token is a character, the line end included; there are no special tokens, and a character outside the vocabulary of
{c.vocab_size:,} is an error. Prompt and new characters together fit into {window}, the default `max_length`; beyond
that there are no positions. {TITLE if trained.title else ""}
{rows and LOSSES + rows}
Corpus: {corpus}
"""


def export(ckpt_path: str | Path, out: str | Path, overwrite: bool = False) -> None:
    """Writes the best model of a run into the folder `out`; files that it does not write stay.

    Raises UserError if there is no model, if GPT-2 cannot express it, if `out` holds something other than an export and
    overwrite is not given, or if safetensors or tokenizers is not installed.
    """
    folder = Path(out).resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file, not a folder")
    if folder.is_dir() and not {path.name for path in folder.iterdir()} <= set(FILES) and not overwrite:
        way = "choose another folder, or write into this one with --overwrite, which leaves other files as they are"
        raise UserError(f"--out {folder} holds something other than an export: {way}")
    try:
        written = contents(load_model(ckpt_path), Path(ckpt_path), folder.name)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install safetensors tokenizers") from None
    with contextlib.ExitStack() as files:  # they take their names when all are written, config.json as the last
        if not folder.exists():
            folder.mkdir(parents=True)
            files.push(lambda failure, *_: folder.rmdir() if failure else None)
        for name, content in zip(FILES, written, strict=True):
            file = files.enter_context(atomic_write(folder / name))
            file.write(content)
            file.flush()


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--ckpt_path", default="workdirs/quansongci", help="the folder of a run of train.py")
    parser.add_argument("--out", default="export", help="the folder to write; an earlier export in it is replaced")
    parser.add_argument("--overwrite", action="store_true", help="write into OUT even if other files are in it")
    return parser.parse_args(args)


def main() -> None:
    args = parse_args()
    export(args.ckpt_path, args.out, args.overwrite)
    print(f"{args.out}: {', '.join(FILES)}")


if __name__ == "__main__":
    run(main)
