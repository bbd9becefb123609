"""Models and observations from files, and results as JSON, as hmm.py's docstring describes it."""

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np

from songci.cli import UserError, read_text
from songci.hmm.kbest import kbest

MATRICES = "startprob", "transmat", "emissionprob"
EXACT_UP_TO = 400  # T·N²: up to here JSON comes from fractions


def load_model(kind: type, path: Path):
    """A model, kind(startprob, …), from a JSON file. Other keys are left to the reader: a note, for example.

    Raises UserError.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=_to_float)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(content, dict) or not content.keys() >= set(MATRICES):
        raise UserError(f"{path} must be a JSON object with {', '.join(MATRICES)}")
    names = {field: content.get(field) or [] for field in ("states", "symbols")}
    try:
        for field, given in names.items():
            if not isinstance(given, list) or not all(map(_is_name, given)):
                raise UserError(f"{field} must be a list of names: printable text, not empty, without commas")
        matrices = (_read_entries(name, content[name]) for name in MATRICES)
        return kind(*matrices, **{field: [name.strip() for name in given] for field, given in names.items()})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _is_name(name) -> bool:
    return isinstance(name, str) and bool(name.strip()) and name.isprintable() and not set(name) & set(",，")


def _to_float(digits: str) -> float:
    return float(digits[:400])  # 400 are infinite already, and Python refuses to convert more than 4300


def _read_entries(name: str, values):
    if isinstance(values, list):
        return [_read_entries(name, value) for value in values]
    if isinstance(values, str) and re.fullmatch(r"\d{1,300}/0*[1-9]\d{0,299}", values):
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
        rows = value if isinstance(value[0], list) else [value]
        text = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
        lines.append(f' "{key}": ' + (f"[\n  {text}\n ]" if rows is value else text))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_sequences(model, given: str) -> list[np.ndarray]:
    """The sequences that `given` holds or names, as arrays of symbols' indices (T,). Raises UserError.

    `given` is a sequence such as `H,M,L`, or a text file with one sequence per line. Symbols are separated by commas,
    or else by blanks. In a file, lines that begin with # are comments.
    """
    try:
        is_file = Path(given).exists() and not Path(given).is_dir()  # a pipe is a file too
    except (OSError, ValueError):  # too long for a file name, for example
        is_file = False
    if not is_file:
        try:
            return [model.encode(_split(given))]
        except UserError as error:
            hint = "" if "," in given else ", and there is no file of that name"
            example = ",".join(model.symbols[:3])
            raise UserError(f"--obs {given[:60]!r}: {error}{hint}; give something like --obs {example}") from None
    sequences = []
    for number, line in enumerate(read_text(given).rstrip().splitlines() or [""], start=1):
        try:
            if not line.startswith("#"):
                sequences.append(model.encode(_split(line)))
        except UserError as error:
            raise UserError(f"{given}, line {number}: {error}") from None
    if not sequences:
        raise UserError(f"{given} has no sequence, only comments")
    return sequences


def _split(line: str) -> list[str]:
    line = line.replace("，", ",").strip()
    if not line.strip(", \t"):
        return []
    return [name.strip() for name in line.split(",")] if "," in line else line.split()


def result_to_json(model, obs: np.ndarray, brief: bool = False, k: int = 0) -> str:
    """One line of JSON about `obs` (T,), with the `k` best paths. `brief` leaves out what has a row for each time."""
    small = len(obs) * len(model.states) ** 2 <= EXACT_UP_TO
    log_likelihood, exact = model.score(obs), model.exactly(obs) if small else None
    possible = log_likelihood > -math.inf
    result = {"observations": [model.symbols[o] for o in obs], "likelihood": _plain(log_likelihood)}
    result["log_likelihood"] = _finite(log_likelihood)
    path, log_delta, psi = model.viterbi(obs) if possible else (None, None, None)
    if not brief:
        logs = {"alpha": model.forward(obs), "beta": model.backward(obs), "delta": log_delta}
        result |= {name: _plain(log) for name, log in logs.items()}
        result["gamma"] = model.posterior(obs).tolist() if possible else None
        result["xi"] = model.pair_posterior(obs).tolist() if possible else None
        result["psi"] = psi.tolist() if possible else None
        result |= {f"log_{name}": _finite(log) for name, log in logs.items()}
    if possible:
        result["viterbi"] = _path(model, exact.path if small else path, float(log_delta[-1].max()))
    else:
        t = int(np.isneginf(model.forward(obs)).all(axis=1).argmax()) + 1
        result["viterbi"] = {"path": None, "states": None, "probability": 0.0, "log_probability": None}
        result["note"] = f"P(O) = 0: no state sequence emits the first {t} observation(s)"
    if k:
        result["kbest"] = [_path(model, *path) for path in kbest(model, obs, k)] if possible else []
    if small and not brief:
        _put_exact(result, exact)
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def _put_exact(result: dict, exact) -> None:
    """Adds the fractions, and rounds the plain numbers from them: 0.03541 instead of 0.03541000000000002."""

    def each(change, values):
        return [each(change, value) for value in values] if isinstance(values, (list, np.ndarray)) else change(values)

    result["exact"] = {}
    for name in ("likelihood", "alpha", "beta", "gamma", "xi", "delta"):
        if result[name] is not None:  # δ, γ and ξ of an impossible sequence are
            result["exact"][name] = each(str, getattr(exact, name))
            result[name] = each(lambda x: None if x and not float(x) else float(x), getattr(exact, name))
    if result["viterbi"]["path"]:
        best = max(exact.delta[-1])
        result["exact"]["path_probability"], result["viterbi"]["probability"] = str(best), float(best) or None
        result["psi"] = exact.psi.tolist()


def _path(model, path: np.ndarray, log_probability: float) -> dict:
    states = [model.states[i] for i in path]
    probability = {"probability": _plain(log_probability), "log_probability": log_probability}
    return {"path": path.tolist(), "states": states, **probability}


def _plain(log):
    """exp of logarithms, a number or an array, for JSON: null where that is below the range of floats but not 0."""
    if log is None:
        return None
    values = np.exp(log)
    return np.where((values == 0) & ~np.isneginf(log), None, values).tolist()


def _finite(log):
    """Logarithms, a number or an array, for JSON: null for ln 0."""
    return None if log is None else np.where(np.isneginf(log), None, log).tolist()
