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

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from model import GPT
from songci.cli import ArgumentParser, UserError, atomic_write, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, Vocabulary
from songci.generation import DEFAULT
from songci.training.checkpoint import load_model

# config.json last: without it, nothing takes the folder for a model
FILES = [
    *("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"),
    "config.json",
]
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


def read_json(path: Path) -> dict:
    """A file of the run's folder; empty if it is not there or is no JSON object, since a model needs neither."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def model_card(model: GPT, vocabulary: Vocabulary, poems: bool, ckpt_path: Path, name: str) -> str:
    """README.md for a folder `name`: what the model is, how to use it, how it was trained, its losses, its corpus."""
    settings, result = read_json(ckpt_path / "config.json"), read_json(ckpt_path / "result.json")
    c, default_corpus = model.config, Path(settings.get("data_root", "")).name == Path(DEFAULT_DATA_ROOT).name
    front = ["language: zh", "license: mit"] if default_corpus else []
    front += ["library_name: transformers", "pipeline_tag: text-generation", "tags: [gpt2, character-level, poetry]"]
    prompt = example_prompt(vocabulary, poems)
    parts = [
        "\n".join(["---", *front, "---"]),
        f"# Songci GPT: {ckpt_path.resolve().name}",
        f"A small GPT-2 that writes character by character{IN_THE_MANNER if default_corpus else ''}: "
        f"{c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels, {model.num_parameters():,} parameters, "
        f"a window of {c.max_seq_len} characters, a vocabulary of {len(vocabulary):,}.{NO_POS if c.no_pos else ''} "
        "Made by `export.py` of Songci GPT.",
        "## How to use",
        USE.format(name=json.dumps(name, ensure_ascii=False), prompt=json.dumps(prompt, ensure_ascii=False)),
        LIMITS.format(window=c.max_seq_len, title=TITLE_LIMIT if poems else ""),
        "## How it was trained",
        training_facts(settings, result, poems),
        *losses(result),
        "## Corpus",
        CORPUS if default_corpus else "A text of its user's own, who knows its source and its licence.",
    ]
    return "\n\n".join(parts) + "\n"


def example_prompt(vocabulary: Vocabulary, poems: bool) -> str:
    """A prompt whose characters are all in the vocabulary."""
    for prompt in ("+++清平乐\n", "+++") if poems else ("\n",):
        if set(prompt) <= set(vocabulary.chars):
            return prompt
    return vocabulary.chars[-1]


def training_facts(settings: dict, result: dict, poems: bool) -> str:
    """The paragraph on the training; settings, result: config.json and result.json of the run, as far as known."""
    windows = "that begin at the title lines of poems" if poems else "that begin anywhere in the text"
    facts = [f"By `train.py`, on the first 90 % of the text, in windows {windows}."]
    flags = [f"`--{name} {settings[name]}`" for name in FLAGS if settings.get(name) is not None]
    if flags:
        facts.append(f"Settings: {', '.join(flags)}.")
    if {"tokens", "seconds"} <= result.keys():
        facts.append(f"It has read {result['tokens']:,} characters, in {result['seconds']:,.0f} seconds.")
    for key, label in (("corpus_sha256", "SHA-256 of the text"), ("git_commit", "commit of the code")):
        if key in settings:
            facts.append(f"The {label}: `{settings[key]}`.")
    return " ".join(facts)


def losses(result: dict) -> list[str]:
    """The paragraphs on the losses that result.json has."""
    labels = {"poem": "poem by poem, each from its title on", "stream": "as one stream, in windows that begin anywhere"}
    rows = [
        f"| {label} | {result[f'{name}_val_loss']:.4f} | {math.exp(result[f'{name}_val_loss']):.2f} |"
        for name, label in labels.items()
        if f"{name}_val_loss" in result
    ]
    if not rows:
        return []
    table = "\n".join(["| the text is read | loss (nats a character) | perplexity |", "|---|---|---|", *rows])
    return ["## Losses", "Over the last 10 % of the text, which it was not trained on:", table]


FLAGS = ["iters", "batchsize", "optimizer", "lr", "muon_lr", "weight_decay", "warmup_iters", "dropout", "ema", "seed"]
IN_THE_MANNER = " in the manner of Song-dynasty lyric poems (宋词)"
NO_POS = " It was trained without positions: its position embedding is all zero."
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForCausalLM.from_pretrained({name})
inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0]))
```"""
LIMITS = """- A token is a character, the line end included. There are no special tokens and no unknown token: a
  character that the corpus lacks is an error.
- Prompt and new characters together fit into {window} characters, the default `max_length`; beyond that there are no
  positions. (Songci GPT's own `sample.py` moves its window on, and can hold a poem to the form of its tune.){title}
- It knows how such texts sound, and nothing of the world."""
TITLE_LIMIT = """
- Each text that it learned from began with a title line: begin a prompt with `+++`, not with a line end."""
CORPUS = """全宋词, the Complete Song Ci, in the digital edition of the project chinese-poetry (MIT licence); the poems
themselves, of the years 960 to 1279, are in the public domain. Poems with lost characters, without a tune's name,
fragments and duplicates are left out. A poem is a title line, `+++` and the tune (词牌), a line of text, and an empty
line."""


def export(ckpt_path: str | Path, out: str | Path, overwrite: bool = False) -> None:
    """Writes the best model of a run into the folder `out`.

    Raises UserError if there is no model, if GPT-2 cannot express it, if `out` holds something other than an export and
    overwrite is not given, or if safetensors or tokenizers is not installed.
    """
    try:
        import safetensors.torch
        import tokenizers  # noqa: F401 (tokenizer_json() needs it)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install safetensors tokenizers") from None
    folder = Path(out).resolve()
    check_out(folder, overwrite)
    model, vocabulary, title = load_model(ckpt_path)
    configs = {"tokenizer_config": tokenizer_config, "generation_config": generation_config, "config": gpt2_config}
    weights = safetensors.torch.save(gpt2_weights(model), {"format": "pt"})

    def write(new: Path) -> None:
        write_file(new / "model.safetensors", weights)
        write_file(new / "tokenizer.json", tokenizer_json(vocabulary))
        write_file(new / "README.md", model_card(model, vocabulary, bool(title), Path(ckpt_path), folder.name))
        for name, make in configs.items():
            write_file(new / f"{name}.json", json.dumps(make(model), indent=2) + "\n")

    replace_folder(folder, write)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; text as UTF-8."""
    with atomic_write(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export and nothing else."""
    return sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def check_out(folder: Path, overwrite: bool) -> None:
    """Raises UserError if the folder is a file, or holds what an export would not replace unasked."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()) and not is_export(folder) and not overwrite:
        raise UserError(
            f"--out {folder} holds something other than an export: choose another folder, "
            "or write into this one with --overwrite, which leaves other files as they are"
        )


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets write() fill a folder aside, which then takes the name, so that the folder is never seen half full.

    A folder with other files in it keeps them; there, each new file takes its place by itself.
    """
    new, old = (folder.parent / f".{folder.name}.{state}" for state in ("new", "old"))
    for left in (new, old):  # left by an export that was killed
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        write(new)
        if folder.is_dir() and any(folder.iterdir()) and not is_export(folder):
            for name in FILES:
                (new / name).replace(folder / name)
            return
        if folder.is_dir():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.is_dir():
                old.rename(folder)
            raise
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


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
