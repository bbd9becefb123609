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
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from model import GPT
from songci.cli import ArgumentParser, UserError, atomic_write, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, Vocabulary
from songci.generation import DEFAULT
from songci.training.checkpoint import Trained, load_model

FILES = ["config.json", "model.safetensors", "tokenizer.json"]
FILES += ["tokenizer_config.json", "generation_config.json", "README.md"]
GPT2_NAMES = {
    "attention_norm": "ln_1",
    "attention.out": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


def gpt2_weights(model: GPT) -> dict[str, Tensor]:
    """The model's weights under the names, and in the shapes, of transformers' GPT2LMHeadModel.

    Its layers store their matrices transposed, (in, out). The head is the token embedding and is not stored twice.
    Raises UserError for a model without residual connections, which GPT-2 always has.
    """
    c = model.config
    if c.no_res:
        raise UserError("a model without residual connections (--no_res) has no equivalent: GPT-2 always has them")
    weights = {
        "transformer.wte.weight": model.token_embedding.weight,
        "transformer.wpe.weight": torch.zeros(c.max_seq_len, c.n_embd) if c.no_pos else model.position_embedding.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
    }
    for i, layer in enumerate(model.layers):
        qkv = (layer.attention.query, layer.attention.key, layer.attention.value)
        weights[f"transformer.h.{i}.attn.c_attn.weight"] = torch.cat([linear.weight for linear in qkv]).T
        weights[f"transformer.h.{i}.attn.c_attn.bias"] = torch.cat([linear.bias for linear in qkv])
        for ours, theirs in GPT2_NAMES.items():
            module = layer.get_submodule(ours)
            weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
            weights[f"transformer.h.{i}.{theirs}.weight"] = weight
            weights[f"transformer.h.{i}.{theirs}.bias"] = module.bias
    return {name: weight.detach().float().contiguous() for name, weight in weights.items()}


def gpt2_config(model: GPT) -> dict:
    """config.json: GPT-2 in our sizes. No token is special; if this were not said, those of GPT-2's vocabulary were."""
    c = model.config
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.max_seq_len,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "n_inner": 4 * c.n_embd,
        "activation_function": "gelu_new",  # GELU by tanh
        "layer_norm_epsilon": model.norm.eps,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), c.dropout),
        "tie_word_embeddings": True,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        "dtype": "float32",
    }


def generation_config(model: GPT) -> dict:
    """generation_config.json: sample.py's defaults, and no more tokens than the window holds, the prompt included."""
    controls = {"temperature": DEFAULT.temperature, "top_k": DEFAULT.top_k}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {"do_sample": True, **controls, "max_length": model.config.max_seq_len, **ids}


def tokenizer_json(vocabulary: Vocabulary) -> str:
    """tokenizer.json: the ids of Vocabulary.encode(), a character each; as there, an unknown character is an error."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({char: i for i, char in enumerate(vocabulary.chars)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # "." would not match line ends
    tokenizer.decoder = decoders.Fuse()  # without one, decoding puts spaces between
    return tokenizer.to_str()


def tokenizer_config(model: GPT) -> dict:
    """tokenizer_config.json: nothing is changed or added."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # for a token_type_id, GPT-2 would add an embedding
        "model_max_length": model.config.max_seq_len,
    }


CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, character-level, poetry]{front}
---

# Songci GPT: {run}

A small GPT-2 that writes character by character: {n_layer} layers, {n_head} heads, {n_embd} channels, {parameters:,}
parameters, made by Songci GPT's `train.py`{settings} and `python -m songci.export`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForCausalLM.from_pretrained({name})
inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0]))
```

A token is a character, the line end included; there are no special tokens, and a character outside the vocabulary of
{vocab_size:,} is an error. Prompt and new characters together fit into {max_seq_len}, the default `max_length`; beyond
that there are no positions. {title}
{losses}
Corpus: {corpus}
"""
TITLE = "Each text that it learned from began with a title line: begin a prompt with `+++`.\n"
LOSSES = """
Over the last 10 % of the text, which it was not trained on:

| the text is read | loss (nats a character) | perplexity |
|---|---|---|
"""
DEFAULT_CORPUS = """全宋词, the Complete Song Ci, in the edition of the project chinese-poetry (MIT licence),
cleaned; the poems are in the public domain."""
FLAGS = ["iters", "batchsize", "optimizer", "lr", "muon_lr", "dropout", "seed"]


def model_card(trained: Trained, ckpt_path: Path, name: str) -> str:
    """README.md for a folder `name`: what the model is, how to use it, its losses, its corpus."""
    settings, result = (read_json(ckpt_path / file) for file in ("config.json", "result.json"))
    default = Path(settings.get("data_root", "")).name == Path(DEFAULT_DATA_ROOT).name
    flags = ", ".join(f"`--{flag} {settings[flag]}`" for flag in FLAGS if settings.get(flag) is not None)
    ways = {"poem": "poem by poem, each from its title on", "stream": "as one stream"}
    rows = [
        f"| {way} | {result[f'{kind}_val_loss']:.4f} | {result[f'{kind}_perplexity']:.2f} |"
        for kind, way in ways.items()
        if f"{kind}_val_loss" in result
    ]
    return CARD.format(
        **asdict(trained.model.config),
        front="\nlanguage: zh\nlicense: mit" if default else "",
        run=ckpt_path.resolve().name,
        parameters=trained.model.num_parameters(),
        settings=f" ({flags})" if flags else "",
        name=json.dumps(name, ensure_ascii=False),
        prompt=json.dumps(example_prompt(trained), ensure_ascii=False),
        title=TITLE if trained.title else "",
        losses=LOSSES + "\n".join(rows) + "\n" if rows else "",
        corpus=DEFAULT_CORPUS if default else "a text of its user's own, who knows its source and its licence.",
    )


def read_json(path: Path) -> dict:
    """A file of the run's folder; empty if it is not there or damaged, since a model needs neither."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def example_prompt(trained: Trained) -> str:
    """A prompt whose characters are all in the vocabulary."""
    chars = trained.vocabulary.chars
    prompts = ("+++清平乐\n", "+++") if trained.title else ("\n",)
    return next((prompt for prompt in prompts if set(prompt) <= set(chars)), chars[-1])


def export(ckpt_path: str | Path, out: str | Path, overwrite: bool = False) -> None:
    """Writes the best model of a run into the folder `out`; files that it does not write stay.

    Raises UserError if there is no model, if GPT-2 cannot express it, if `out` holds something other than an export and
    overwrite is not given, or if safetensors or tokenizers is not installed.
    """
    try:
        import safetensors.torch
        import tokenizers  # noqa: F401 (tokenizer_json() needs it)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install safetensors tokenizers") from None
    folder = Path(out).resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file, not a folder")
    if folder.is_dir() and not {path.name for path in folder.iterdir()} <= set(FILES) and not overwrite:
        raise UserError(
            f"--out {folder} holds something other than an export: choose another folder, "
            "or write into this one with --overwrite, which leaves other files as they are"
        )
    trained = load_model(ckpt_path)
    model = trained.model
    configs = [gpt2_config(model), tokenizer_config(model), generation_config(model)]
    config, *others = (json.dumps(content, indent=2).encode() + b"\n" for content in configs)
    weights = safetensors.torch.save(gpt2_weights(model), {"format": "pt"})
    contents = [config, weights, tokenizer_json(trained.vocabulary).encode(), *others]
    contents.append(model_card(trained, Path(ckpt_path), folder.name).encode())
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as files:  # they take their names when all are written, config.json as the last
            for name, content in zip(FILES, contents, strict=True):
                file = files.enter_context(atomic_write(folder / name))
                file.write(content)
                file.flush()
    except BaseException:
        if made:
            folder.rmdir()
        raise


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
