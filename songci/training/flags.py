"""The command line of train.py, and what its presets mean."""

from argparse import Namespace

from model import PRESETS, GPTConfig
from songci.cli import ArgumentParser, UserError, number
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT
from songci.training.checkpoint import resumed_settings
from songci.training.optim import MAX_WARMUP

RECIPES = {"poet": {"max_seq_len": 128, "iters": 10200}}  # what else a preset sets; see docs/results.md
MODEL_HELP = "sizes, which the next four flags override: " + "; ".join(
    f"{name}: {p['n_layer']} layers, {p['n_head']} heads, {p['n_embd']} channels, dropout {p['dropout']}"
    + "".join(f", --{flag} {value}" for flag, value in RECIPES.get(name, {}).items())
    for name, p in PRESETS.items()
)
WINDOWS_HELP = "where samples begin: at title lines (poem), anywhere (stream); auto: poem if the text has +++ titles"
OPTIMIZER_HELP = "muon: Muon for the layers' matrices, AdamW for the rest; adamw: AdamW for all (then use --lr 0.003)"
EMA_HELP = (
    "decay of an exponential moving average of the weights, which then is measured and kept; after n steps it is "
    "(1 + n)/(10 + n) as long as that is less; 0: no average"
)
INIT_HELP = (
    "begin with the weights of another run, of the same sizes and vocabulary (prepare.py --vocabulary), "
    "and a fresh optimizer; a shorter window takes its first positions, in a longer one those that it lacks begin anew"
)
ACCUM_HELP = "compute each batch in this many parts, one after another: without dropout the same result, in less memory"
DTYPE_HELP = "type of the large products; auto: bfloat16 on GPUs that have it and on CPUs that are faster with it"
ITERS_HELP = "number of iterations; may be raised on --resume: the learning rates then fall to 0 at the new end"
WARMUP_HELP = f"iterations of linear warm-up, at most {MAX_WARMUP:.0%} of all"
POSITIVE, SIZE, RATE = number(int, 1, 10**9), number(int, 1, 10**6), number(float, 0, 1e6)
SHARE = number(float, 0, below=1)


def parse_args(words: list[str] | None = None, description: str = "") -> Namespace:
    """The command line, or the words of one, as a namespace; with --resume, what it does not say is the run's."""
    parser = ArgumentParser(description)
    add = parser.add_argument_group("the handout's flags").add_argument
    add("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    add("--ckpt_path", default="workdirs/quansongci", help="the folder for this run's files")
    add("--batchsize", type=SIZE, default=16, help="sequences in a batch, B")
    add("--iters", type=POSITIVE, default=2000, help=ITERS_HELP)
    add("--max_seq_len", type=SIZE, default=64, help="length L of the sequences")
    add("--no_pos", action="store_true", help="leave out the position embedding")
    add("--no_res", action="store_true", help="leave out the residual connections")

    add = parser.add_argument_group("the run").add_argument
    add("--resume", action="store_true", help="go on with the run in CKPT_PATH; what is not given is as it was")
    add("--overwrite", action="store_true", help="start afresh in CKPT_PATH; the run in it is lost")
    add("--init_from", metavar="CKPT_PATH", help=INIT_HELP)
    add("--seed", type=number(int, 0, 2**63 - 1), default=1, help="of weights, windows and dropout")
    add("--eval_interval", type=POSITIVE, default=100, help="iterations between evaluations")
    add("--eval_iters", type=POSITIVE, default=10, help="batches of validation text per evaluation")
    add("--tensorboard", action="store_true", help="also log for TensorBoard, into CKPT_PATH")
    add("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to compute")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help=DTYPE_HELP)
    add("--compile", action="store_true", help="torch.compile the model: slow to start, then faster")
    add("--accum", type=SIZE, default=1, help=ACCUM_HELP)

    add = parser.add_argument_group("model").add_argument
    add("--model", default="mini", choices=PRESETS, help=MODEL_HELP)
    add("--n_layer", type=SIZE, help="number of transformer layers")
    add("--n_head", type=SIZE, help="number of attention heads h in a layer")
    add("--n_embd", type=SIZE, help="number of feature channels C, a multiple of h")
    add("--dropout", type=SHARE, help="probability that an activation is dropped")

    add = parser.add_argument_group("learning").add_argument
    add("--windows", default="auto", choices=["auto", "poem", "stream"], help=WINDOWS_HELP)
    add("--optimizer", default="muon", choices=["adamw", "muon"], help=OPTIMIZER_HELP)
    add("--lr", type=RATE, default=0.01, help="AdamW's highest learning rate")
    add("--muon_lr", type=RATE, default=0.008, help="Muon's highest learning rate")
    add("--warmup_iters", type=number(int, 0), default=100, help=WARMUP_HELP)
    add("--weight_decay", type=RATE, default=0.1, help="weight decay of the matrices")
    add("--grad_clip", type=RATE, default=1.0, help="clip the gradient at this norm; 0: never")
    add("--ema", type=SHARE, default=0.0, help=EMA_HELP)
    parser.set_defaults(**RECIPES.get(parser.parse_args(words).model, {}))
    args = parser.parse_args(words)
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    return resumed_settings(args, parser.given(words)) if args.resume else args


def model_config(args: Namespace, vocab_size: int) -> GPTConfig:
    """The preset that --model names, with what the other flags override."""
    sizes = {**PRESETS[args.model]}
    sizes.update({name: getattr(args, name) for name in sizes if getattr(args, name) is not None})
    try:
        return GPTConfig(vocab_size, args.max_seq_len, **sizes, no_pos=args.no_pos, no_res=args.no_res)
    except ValueError as error:
        raise UserError(f"--{error}") from None
