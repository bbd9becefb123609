"""The model that a run leaves, best.safetensors: what it brings back, who can read it, and what damage is found."""

import dataclasses
import json
import random

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from conftest import contents
from safetensors import safe_open
from test_model import SIZES, make, token_ids

from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.runs import BEST, Trained, as_gpt, digest, load_trained, save_trained
from songci.training.checkpoint import trained_of

VOCABULARY = Vocabulary("".join(map(chr, range(50, 100))), {"a": "b"})  # for SIZES[0]


def saved(folder, model, **measured) -> Trained:
    trained = trained_of(model, VOCABULARY, (1, 2), "a fingerprint", **measured)
    save_trained(folder / BEST, trained)
    return trained


def written_anew(folder, change=None, **metadata) -> None:
    """Writes a model anew, with other weights or metadata, and a SHA-256 that fits them."""
    weights = safetensors.numpy.load_file(folder / BEST)
    with safe_open(folder / BEST, "numpy") as file:
        own = json.loads(file.metadata()["songci"])
    weights = change(weights) if change else weights
    text = json.dumps(own | metadata)
    safetensors.numpy.save_file(weights, folder / BEST, {"songci": text, "sha256": digest(text, weights)})


@pytest.mark.parametrize("flags", [{}, {"no_pos": True}, {"no_res": True}, {"dropout": 0.5}])
def test_a_model_comes_back_with_all_that_is_needed_to_use_it(tmp_path, flags):
    model = make(dataclasses.replace(SIZES[0], **flags))
    saved(tmp_path, model, iteration=3, val_loss=0.1 + 0.2)
    found, U = load_trained(tmp_path), token_ids(model.config)
    assert found.config == dataclasses.asdict(model.config) and found.vocabulary == VOCABULARY
    assert (found.title, found.data) == ((1, 2), "a fingerprint")
    assert found.measured == {"iteration": 3, "val_loss": 0.1 + 0.2} and found.num_parameters == model.num_parameters()
    again = as_gpt(found)
    assert not again.training  # it drops nothing
    assert again.head.weight is again.token_embedding.weight and torch.equal(again(U)[0], model(U)[0])


def test_any_program_that_reads_safetensors_can_use_it(tmp_path):
    """Here safetensors' own reader for torch, and model.py alone."""
    model = make(SIZES[0])
    saved(tmp_path, model)
    theirs = safetensors.torch.load_file(tmp_path / BEST)
    assert theirs.keys() == model.state_dict().keys() - {"head.weight"}
    assert all(theirs[name].equal(model.state_dict()[name]) for name in theirs)
    with safe_open(tmp_path / BEST, "pt") as file:
        about = json.loads(file.metadata()["songci"])
    assert about["vocabulary"]["chars"] == VOCABULARY.chars and about["config"]["n_embd"] == 8


def test_weights_in_half_precision_are_read_as_float32(tmp_path):
    """As a run that is handed on may have them, at half the size."""
    expected = saved(tmp_path, make(SIZES[0])).weights
    written_anew(tmp_path, lambda weights: {name: weight.astype(np.float16) for name, weight in weights.items()})
    found = load_trained(tmp_path).weights
    assert {weight.dtype for weight in found.values()} == {np.dtype(np.float32)} and found.keys() == expected.keys()
    for name, weight in found.items():
        np.testing.assert_allclose(weight, expected[name], rtol=1e-3, atol=1e-6)


def test_a_damaged_model_is_refused(tmp_path):
    saved(tmp_path, make(SIZES[0]))
    path, content = tmp_path / BEST, (tmp_path / BEST).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    places = [*rng.sample(range(header), 150), *rng.sample(range(header, len(content)), 150), 0, 7, len(content) - 1]
    flipped = [content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :] for i in places]
    for damaged in (b"", b"x", content[: len(content) // 2], content[:-1], content + b"x", content * 2, *flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{BEST} is damaged or not ours .*: train again"):
            load_trained(tmp_path)


def test_a_file_of_another_program_or_version_is_refused(tmp_path):
    weights = saved(tmp_path, make(SIZES[0])).weights
    for metadata in (None, {}, {"format": "pt"}, {"songci": "{}"}, {"songci": "{", "sha256": digest("{", weights)}):
        safetensors.numpy.save_file(weights, tmp_path / BEST, metadata)
        with pytest.raises(UserError, match=f"{BEST} is damaged or not ours"):
            load_trained(tmp_path)
    for change in ({"vocabulary": None}, {"vocabulary": {"other": ""}}, {"title": None}, {"more": 1}):
        saved(tmp_path, make(SIZES[0]))
        written_anew(tmp_path, **change)
        with pytest.raises(UserError, match=f"{BEST} is damaged or not ours"):
            load_trained(tmp_path)


def test_a_missing_model_and_one_of_an_earlier_version_are_told_in_a_line(tmp_path):
    with pytest.raises(UserError, match=rf"no model {tmp_path / BEST}: run train\.py --ckpt_path {tmp_path} first"):
        load_trained(tmp_path)
    (tmp_path / "best.pt").touch()
    with pytest.raises(UserError, match=rf"the run in {tmp_path} is of an earlier version, with best\.pt: train it"):
        load_trained(tmp_path)


def test_a_copied_run_has_its_forms(tuned_root, tuned_ckpt):
    assert contents(tuned_ckpt)["forms.json"] == contents(tuned_root)["forms.json"]
