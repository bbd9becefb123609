"""Texts and files that other rooms read: whatever is in them ends in a result or in one line."""

import hypothesis.strategies as st
import pytest
from hostile import ANY_TEXT, JSON, NEAR_TEXT, POEMS, case, fuzz
from hypothesis import given

from songci.attention import stats as attnstats
from songci.cli import read_text
from songci.corpus import quansongci
from songci.training.checkpoint import load_model

pytestmark = pytest.mark.slow


@fuzz(150)
@given(content=st.one_of(st.binary(), ANY_TEXT, NEAR_TEXT, POEMS))
def test_any_text_to_look_at(tuned_ckpt, file, content):
    model, vocabulary, _ = load_model(tuned_ckpt)
    path = file("text.txt", content)
    reading = case("text", lambda: attnstats.read(model, vocabulary, read_text(path)))
    if reading:
        case("text", lambda: attnstats.head_statistics(reading.weights, reading.text))


@fuzz(60)
@given(st.one_of(st.binary(), JSON), st.integers(0, 21))
def test_any_files_of_quansongci(file, content, number):
    """As laid there by hand. Those that are not the known ones are not even parsed."""
    for i, name in enumerate(quansongci.FILES):
        path = file(name, content if i == number else b"[]")
    assert case("ci.song", quansongci.obtain, path.parent, "file:///nowhere") is None
