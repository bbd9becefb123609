"""Models and observations from files, and results as JSON, as hmm.py's docstring describes it."""

import json
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

from songci.cli import UserError
from songci.hmm.kbest import kbest, ln, path_probability
from songci.text import read_text, to_json

MATRICES = "startprob", "transmat", "emissionprob"


def load_model(kind: type, path: Path):
    """A model, kind(startprob, …), from a JSON file. Other keys are left to the reader: a note, for example.

    Raises UserError.
    """
    text = read_text(path)
    try:  # of a number, 400 digits are infinite already, and Python refuses to convert more than 4300
        text = re.sub(r",(\s*[\]}])", r"\1", text)  # a comma after the last is common, and harmless
        content = json.loads(text, parse_int=lambda digits: float(digits[:400]))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(content, dict) or not content.keys() >= set(MATRICES):
        raise UserError(f"{path} must be a JSON object with {', '.join(MATRICES)}")
    try:
        names = [_read_names(field, content.get(field) or []) for field in ("states", "symbols")]
        return kind(*(_read_entries(name, content[name]) for name in MATRICES), *names)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_names(field: str, names) -> list[str]:
    def fits(name) -> bool:
        return isinstance(name, str) and name.strip() and name.isprintable() and not set(name) & set(",，")

    if isinstance(names, list):  # numbers are names too
        names = [repr(name).removesuffix(".0") if isinstance(name, float) else name for name in names]
    if not isinstance(names, list) or not all(map(fits, names)):
        raise UserError(f"{field} must be a list of names: printable text, not empty, without commas")
    return [name.strip() for name in names]


def _read_entries(name: str, values):
    if isinstance(values, list):
        return [_read_entries(name, value) for value in values]
    if isinstance(values, str) and re.fullmatch(r"\d{1,300}(/0*[1-9]\d{0,299}|\.\d{1,300})?", values.strip()):
        return Fraction(values)
    if isinstance(values, float):
        return values
    raise UserError(f"{name} is not a table of numbers: {json.dumps(values, ensure_ascii=False)[:40]}")


def model_to_json(model) -> str:
    """The content of a file that `load_model` reads."""
    content = {"states": list(model.states), "symbols": list(model.symbols)}
    content |= {name: getattr(model, name).tolist() for name in MATRICES}
    lines = []
    for key, value in content.items():
        rows = [json.dumps(row, ensure_ascii=False) for row in value]
        table = isinstance(value[0], list)
        lines.append(f' "{key}": ' + ("[\n  " + ",\n  ".join(rows) + "\n ]" if table else f"[{', '.join(rows)}]"))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_sequences(model, given: str) -> list[np.ndarray]:
    """The sequences that `given` holds or names, as arrays of symbols' indices (T,). Raises UserError.

    `given` is a sequence such as `H,M,L`, or a text file with one sequence per line. Symbols are separated by commas,
    or else by blanks. In a file, lines that begin with # are comments, and empty ones are passed over.
    """
    try:
        is_file = Path(given).exists() and not Path(given).is_dir()  # a pipe is a file too
    except (OSError, ValueError):  # too long for a file name, for example
        is_file = False
    if is_file:
        lines = enumerate(map(str.strip, read_text(given).split("\n")), start=1)
        lines = {f"{given}, line {number}": line for number, line in lines if line and not line.startswith("#")}
        hint = ""
    else:
        lines, hint = {f"--obs {given[:60]!r}": given}, "" if "," in given else ", and there is no file of that name"
        hint += f"; give something like --obs {','.join(model.symbols[:3])}"
    if not lines:
        raise UserError(f"{given} has no sequence of observations")
    sequences = []
    for place, line in lines.items():
        line = line.replace("，", ",").strip()
        names = [name.strip() for name in line.removesuffix(",").split(",")] if "," in line else line.split()
        try:
            sequences.append(model.encode(names if any(names) else []))
        except UserError as error:
            raise UserError(f"{place}: {error}{hint}") from None
    return sequences


def result_to_json(model, obs: np.ndarray, brief: bool = False, k: int = 0) -> str:
    """One line of JSON about `obs` (T,), with the `k` best paths. `brief` leaves out what has a row for each time."""
    score, log_delta, note = model.score(obs), None, {}
    posteriors = {"gamma": None, "xi": None, "psi": None}
    best = {"path": None, "states": None, "probability": 0.0, "log_probability": None}
    try:
        path, log_delta, psi = model.viterbi(obs)
        best = _path(model, obs, path, log_delta[-1].max())
        if not brief:
            posteriors = {"gamma": model.posterior(obs), "xi": model.pair_posterior(obs), "psi": psi}
    except UserError as error:  # P(O) = 0
        note = {"note": str(error)}
    result = {"observations": [model.symbols[o] for o in obs]}
    result |= {"likelihood": _plain(score), "log_likelihood": _finite(score)}
    if not brief:
        logs = {"alpha": model.forward(obs), "beta": model.backward(obs), "delta": log_delta}
        result |= {name: _plain(log) for name, log in logs.items()} | posteriors
        result |= {f"log_{name}": _finite(log) for name, log in logs.items()}
    result |= {"viterbi": best, **note}
    if k:
        result["kbest"] = [_path(model, obs, *path) for path in kbest(model, obs, k)]
    if model.is_small(obs):
        _put_exact(result, model.exactly(obs), brief)
    return to_json(result, allow_nan=False, default=np.ndarray.tolist)


def _put_exact(result: dict, exact, brief: bool) -> None:
    """Rounds all numbers from the fractions, 0.03541 instead of 0.03541000000000002, and adds these unless `brief`."""
    if hasattr(sys, "set_int_max_str_digits"):  # in newer Pythons: a hundred small probabilities make long fractions
        sys.set_int_max_str_digits(0)
    names = [name for name in ("alpha", "beta", "gamma", "xi", "delta") if result.get(name) is not None]
    tables = {name: getattr(exact, name) for name in ("likelihood", *names)}  # without δ, γ and ξ if P(O) = 0
    result |= {name: np.vectorize(_float, otypes=[object])(table) for name, table in tables.items()}
    for name in ("likelihood", "alpha", "beta", "delta"):
        if name in tables:
            result[f"log_{name}"] = _finite(np.vectorize(ln, otypes=[float])(tables[name]))
    if brief:
        return
    result["exact"] = {name: np.vectorize(str, otypes=[object])(table) for name, table in tables.items()}
    if result["viterbi"]["path"]:
        result["exact"]["path_probability"] = str(max(exact.delta[-1]))


def _path(model, obs: np.ndarray, path: np.ndarray, log_probability: float) -> dict:
    """A path and its probability, the same numbers wherever it stands: from a fraction if the problem is small."""
    numbers = {"probability": _plain(log_probability), "log_probability": log_probability}
    if model.is_small(obs):
        p = path_probability(model, obs, path)
        numbers = {"probability": _float(p), "log_probability": ln(p)}
    return {"path": path.tolist(), "states": [model.states[i] for i in path], **numbers}


def _float(x: Fraction) -> float | None:
    """The nearest float, for JSON: null for what is below the range of floats but not 0."""
    return float(x) if float(x) or not x else None


def _plain(log):
    """exp of logarithms, a number or an array, for JSON: null where that is below the range of floats but not 0."""
    return None if log is None else np.where((np.exp(log) == 0) & ~np.isneginf(log), None, np.exp(log)).tolist()


def _finite(log):
    """Logarithms, a number or an array, for JSON: null for ln 0."""
    return None if log is None else np.where(np.isneginf(log), None, log).tolist()
