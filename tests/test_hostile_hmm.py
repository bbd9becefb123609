"""Damaged and hostile HMM models and observations: each ends in a result or in one line."""

import json
import random

import pytest
from conftest import ROOT
from hostile import HOSTILE, LOST, damaged, leaves, replaced

import hmm
from songci.cli import UserError
from songci.hmm.markov import load_model, read_sequences

GOOD = [path.read_bytes() for path in sorted((ROOT / "data" / "hmm").glob("*.json"))]
VALUES = [value for value in HOSTILE if value is not LOST]


def variants(count: int):
    """Models with flipped bits and cut ends, and with values replaced by what no model has."""
    rng = random.Random(0)
    for i in range(count):
        content = rng.choice(GOOD)
        if i % 2:
            yield damaged(content, rng)
        else:
            model = json.loads(content)
            yield json.dumps(replaced(model, rng.choice(leaves(model)), rng.choice(VALUES))).encode("utf-8", "replace")


def test_damaged_models_are_read_or_refused(tmp_path):
    path, refused = tmp_path / "model.json", 0
    for content in variants(1500):
        path.write_bytes(content)
        try:
            model = load_model(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        hmm.as_json(model, [0, 0, len(model.symbols) - 1])  # what passes for a model can be worked with
    assert 500 < refused < 1500


@pytest.mark.parametrize("seed", range(10))
def test_command_explains_a_damaged_model_or_refuses_it_in_one_line(call, tmp_path, seed):
    path = tmp_path / "model.json"
    for content in list(variants(60))[seed::10]:
        path.write_bytes(content)
        status, _, err = call(
            hmm, "--model", path, "--obs", random.Random(seed).choice(["H,M,L", "normal", "0,1", ","])
        )
        assert status in (0, 2) and "Traceback" not in err
        assert status == 0 or err.count("\n") == 1


def test_any_text_is_read_as_observations_or_refused(tmp_path):
    rng, read, path = random.Random(1), 0, tmp_path / "model.json"
    path.write_bytes(GOOD[0])
    model = load_model(path)
    for _ in range(500):
        text = "".join(rng.choices([*model.symbols, *", \n\t\0\ud800的", "\U0001f600"], k=rng.randint(0, 30)))
        try:
            assert read_sequences(model, text)
            read += 1
        except UserError as error:
            assert "\n" not in str(error)
    assert read
