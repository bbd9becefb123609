"""Writes a trained model as a Hugging Face model: a GPT-2 and its tokenizer, which need no code of ours.

Writes into OUT, all of it or nothing:

  model.safetensors, config.json          the weights under GPT-2's names, and their sizes
  tokenizer.json, tokenizer_config.json   one token a character, the line end included
  generation_config.json                  how generate() writes by default: as sample.py does, within the window
  README.md                               the model card: what it is, how it was trained, its losses, how to use it

  python -m songci.export --ckpt_path workdirs/quansongci --out export

A model without positions (--no_pos) becomes one whose positions are all zero. One without residual connections
(--no_res) has no equivalent.

Two tokens come after the V characters: [PAD], to the left of the shorter texts of a batch, and [UNK], for a character
that the vocabulary lacks. No character can stand for these: it would be left out as padding, or read where another was
meant. Their embedding is the mean of the others, so their logit is the mean of the others, which stay as they are, and
no probability falls by more than 2/V of itself; generate() never writes them. The end of a text is a character, the +
that begins the next title.
"""

import contextlib
import json
from pathlib import Path

import torch

from model import GPT
from songci.cli import ArgumentParser, UserError, atomic_write, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT
from songci.runs import Trained, as_gpt, load_trained, perplexity
from songci.writing.generation import DEFAULT
from songci.writing.prompt import first_encodable

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
PAD, UNK = SPECIAL = ("[PAD]", "[UNK]")  # their ids follow those of the characters


def gpt2_weights(model: GPT) -> dict[str, torch.Tensor]:
    """The model's weights, named as in transformers' GPT2LMHeadModel and, in its layers, transposed to (in, out).

    The head is the token embedding, stored once; after its rows comes their mean for each of SPECIAL. Raises UserError
    for a model without residual connections (--no_res).
    """
    c = model.config
    if c.no_res:
        raise UserError("a model without residual connections (--no_res) has no equivalent: GPT-2 always has them")
    positions = torch.zeros(c.max_seq_len, c.n_embd) if c.no_pos else model.position_embedding.weight
    embedding = model.token_embedding.weight
    embedding = torch.cat([embedding, embedding.mean(dim=0).expand(len(SPECIAL), -1)])
    weights = {"wte.weight": embedding, "wpe.weight": positions}
    weights |= {f"ln_f.{kind}": parameter for kind, parameter in model.norm.named_parameters()}
    for i, layer in enumerate(model.layers):
        for theirs, ours in GPT2_LAYER.items():
            for kind in ("weight", "bias"):
                joined = torch.cat([layer.get_parameter(f"{name}.{kind}") for name in ours])
                weights[f"h.{i}.{theirs}.{kind}"] = joined.t()  # leaves vectors as they are
    return {f"transformer.{name}": weight.detach().float().contiguous() for name, weight in weights.items()}


def special_ids(trained: Trained) -> dict[str, int | None]:
    """The ids that end a text and that fill a batch; if not said, they would be GPT-2's."""
    end = trained.title[-1] if trained.title else None  # a stream has no end
    return {"bos_token_id": None, "eos_token_id": end, "pad_token_id": len(trained.vocabulary) + SPECIAL.index(PAD)}


def gpt2_config(model: GPT) -> dict:
    """config.json: GPT-2 in our sizes."""
    c = model.config
    kind = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": c.vocab_size + len(SPECIAL)}
    sizes = {"n_positions": c.max_seq_len, "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd}
    sizes |= {"n_inner": 4 * c.n_embd, "activation_function": "gelu_new", "layer_norm_epsilon": model.norm.eps}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), c.dropout)
    return kind | sizes | dropout | {"tie_word_embeddings": True, "dtype": "float32"}


def contents(trained: Trained, ckpt_path: Path, name: str) -> list[bytes]:
    """What is in FILES, in their order, in a folder `name`."""
    from safetensors.torch import save
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    model, window = as_gpt(trained), trained.max_seq_len
    # The ids of Vocabulary.encode(), a character each
    tokens, ids = [*trained.vocabulary.chars, *SPECIAL], special_ids(trained)
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # "." would not match line ends
    tokenizer.decoder = decoders.Fuse()  # without one, decoding puts spaces between
    reading = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    reading["model_input_names"] = ["input_ids", "attention_mask"]  # for a token_type_id, GPT-2 would add an embedding
    reading |= {"model_max_length": window, "padding_side": "left", "pad_token": PAD, "unk_token": UNK}
    reading["split_special_tokens"] = True  # a text with "[PAD]" in it has five characters there
    if ids["eos_token_id"] is not None:
        reading["eos_token"] = tokens[ids["eos_token_id"]]
    writing = {"do_sample": True, "temperature": DEFAULT.temperature, "top_k": DEFAULT.top_k, "max_length": window}
    writing["suppress_tokens"] = list(range(len(trained.vocabulary), len(tokens)))
    configs = (gpt2_config(model) | ids, reading, writing | ids)
    config, *others = (json.dumps(content, indent=2).encode() + b"\n" for content in configs)
    weights, card = save(gpt2_weights(model), {"format": "pt"}), model_card(trained, ckpt_path, name)
    return [config, weights, tokenizer.to_str().encode(), *others, card.encode(errors="backslashreplace")]


FLAGS = ["iters", "batchsize", "optimizer", "lr", "muon_lr", "dropout", "seed"]
READ = {"poem_val_loss": "poem by poem, each from its title on", "stream_val_loss": "as one stream"}
LOSSES = """
## Losses

Over the last 10 % of the text, which it was not trained on:

| the text is read | loss (nats a character) | perplexity |
|---|---|---|
"""
ONE = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForCausalLM.from_pretrained({name})
inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```

A token is a character, the line end included. Prompt and new characters together fit into {window}, the default
`max_length`; beyond that there are no positions. {end}

A character outside the vocabulary of {size:,} is read as `[UNK]`, of which the model has learned nothing. Which ones:

```python
text = {prompt}
print("unknown:", *set(text) - set(tokenizer.get_vocab()))
```
"""
TITLE = """Each text that it learned from began with a title line: begin a
prompt with `+++`. A poem is over where the next title would begin: `+` is the `eos_token`. `skip_special_tokens` leaves
out all of these."""
STREAM = "It learned from a stream of text, which has no end: it always writes so many."
MANY = """
## A batch

Shorter texts are filled up with `[PAD]` on the left (`padding_side="left"`), and all go on as each would alone, until
the longest one has filled the window.

```python
prompts = [{short}, {prompt}]
inputs = tokenizer(prompts, padding=True, return_tensors="pt")
for text in tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True):
    print(text)
```

The same as a pipeline, whose texts have their prompts in full:

```python
from transformers import pipeline

write = pipeline("text-generation", {name})
for [text] in write(prompts, batch_size=2):
    print(text["generated_text"])
```

## The loss of a text

`generate()` counts positions from the first character on, `model(**inputs)` from the padding on. So `position_ids`
are given here. Of the logits, the last two are those of `[PAD]` and `[UNK]`.

```python
import torch

seen = inputs.attention_mask
positions = (seen.cumsum(-1) - 1).clamp(min=0)
logits = model(**inputs, position_ids=positions).logits[:, :-1, :{size}]
targets = {{"target": inputs.input_ids[:, 1:], "ignore_index": tokenizer.pad_token_id}}
losses = torch.nn.functional.cross_entropy(logits.mT, **targets, reduction="none") * seen[:, :-1]
print("nats a character:", (losses.sum(-1) / seen[:, :-1].sum(-1).clamp(min=1)).tolist())
```

## Attention weights

By default, transformers 5 leaves `attentions` empty, without a word; `attn_implementation="eager"` computes them.

```python
eager = AutoModelForCausalLM.from_pretrained({name}, attn_implementation="eager")
weights = eager(**tokenizer({prompt}, return_tensors="pt"), output_attentions=True).attentions
print(len(weights), "layers of", tuple(weights[0].shape), "(texts, heads, characters, characters)")
```
"""
DEFAULT_CORPUS = """全宋词, the Complete Song Ci, in the edition of the project chinese-poetry (MIT licence),
cleaned; the poems are in the public domain."""


def model_card(trained: Trained, ckpt_path: Path, name: str) -> str:
    """README.md for a folder `name`: what the model is, how to use it, its losses, its corpus."""
    settings, result = {}, {}
    for record, file in ((settings, "config.json"), (result, "result.json")):
        with contextlib.suppress(OSError, ValueError):  # a model needs neither
            record.update(json.loads((ckpt_path / file).read_text(encoding="utf-8")))
    sizes = "{n_layer} layers, {n_head} heads, {n_embd} channels".format(**trained.config)
    sizes += f", {trained.num_parameters:,}"
    flags = ", ".join(f"`--{flag} {settings[flag]}`" for flag in FLAGS if settings.get(flag) is not None)
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
{usage(trained, name)}{rows and LOSSES + rows}
## Corpus

{corpus[0].upper() + corpus[1:]}
"""


def usage(trained: Trained, name: str) -> str:
    """The part of the card that says how to use the model in a folder `name`, by code that runs as it stands."""
    prompt = first_encodable(trained.vocabulary, *(["+++清平乐\n", "+++"] if trained.title else []))
    short, prompt = ("+++", prompt) if trained.title else (prompt, prompt * 2)
    name, short, prompt = (json.dumps(text, ensure_ascii=False) for text in (name, short, prompt))
    sizes = {"size": len(trained.vocabulary), "window": trained.max_seq_len}
    end = TITLE if trained.title else STREAM
    return (ONE + MANY).format(name=name, short=short, prompt=prompt, end=end, **sizes)


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
        written = contents(load_trained(ckpt_path), Path(ckpt_path), folder.name)
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
