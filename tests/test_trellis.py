import numpy as np
import pytest
from hmm_problems import HML
from matplotlib.image import imread

import hmm
from hmm import HMM, PHONE_STORE, ImpossibleSequenceError
from songci import fonts
from songci.cli import UserError
from songci.hmm import trellis
from songci.hmm.trellis import plot


def drawn(show="delta", model=PHONE_STORE, obs=HML, missing=frozenset()):
    """The texts as (text, bold), and the lines as {(start, end): width}."""
    (axes,) = trellis._draw(model, np.array(obs), show, missing).axes
    texts = [(text.get_text(), text.get_weight() == "bold") for text in axes.texts]
    lines = {tuple(map(tuple, line.get_xydata().tolist())): line.get_linewidth() for line in axes.lines}
    return texts, lines


def test_nodes_hold_delta_and_psi_and_the_best_path_is_bold():
    texts, lines = drawn()
    nodes = [(text, bold) for text, bold in texts if text.startswith("δ")]
    assert nodes == [
        ("δ = 0.2", True),
        ("δ = 0.1", False),
        ("δ = 0.048\nψ = S1", True),
        ("δ = 0.024\nψ = S1", False),
        ("δ = 0.00576\nψ = S1", False),
        ("δ = 0.0096\nψ = S1", True),
    ]
    assert [text for text, bold in texts if bold and "·" in text] == ["0.6·0.4", "0.4·0.5"]
    assert len(lines) == 8
    thick = {edge for edge, wide in lines.items() if wide > 2}
    assert thick == {((0, 0), (1, 0)), ((1, 0), (2, 1))}


@pytest.mark.parametrize(("show", "node"), [("alpha", "α = 0.068"), ("beta", "β = 0.1188"), ("gamma", "γ = 0.671")])
def test_nodes_can_show_other_variables(show, node):
    assert node in dict(drawn(show)[0])


def test_edges_that_are_impossible_are_not_drawn():
    model = HMM([1, 0], [[0.5, 0.5], [0, 1]], [[0.5, 0.5], [0.5, 0.5]])
    assert len(drawn(model=model, obs=[0, 1, 0])[1]) == 6


def test_name_without_a_font_falls_back_to_its_number():
    texts = [text for text, _ in drawn(missing={"畅"})[0]]
    assert "S1" in texts and "S2" in texts and not any("畅" in text for text in texts)
    assert "o₁ = H" in texts
    texts = [text for text, _ in drawn()[0]]
    assert "S1 畅销" in texts and "S2 滞销" in texts


@pytest.mark.parametrize(("missing", "text"), [("", "o₂ = $x$"), ("红", "o₂ = v2")])
def test_symbols_are_written_above_their_times(missing, text):
    model = HMM([1], [[1]], [[0.5, 0.5]], symbols=["红", "$x$"])
    assert text in dict(drawn(model=model, obs=[0, 1], missing=set(missing))[0])


def test_chinese_symbols_are_drawn_without_a_warning(tmp_path, recwarn, caplog):
    plot(HMM([1], [[1]], [[0.5, 0.5]], ["盒子"], ["红", "$白_1$"]), [0, 1], tmp_path / "a.png")
    assert not [w for w in recwarn if "lyph" in str(w.message)] and "glyph" not in caplog.text


def test_machine_without_chinese_fonts_draws_without_a_warning(tmp_path, monkeypatch, recwarn):
    bundled = {fonts.BUNDLED: fonts.installed()[fonts.BUNDLED]}
    monkeypatch.setattr(fonts, "installed", lambda: bundled)
    plot(PHONE_STORE, HML, tmp_path / "a.png")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    assert imread(tmp_path / "a.png").std() > 0.05


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_picture_is_written(call, tmp_path, suffix):
    path = tmp_path / f"trellis.{suffix}"
    status, out, err = call(hmm, "--plot", path, "--plot_nodes", "gamma")
    assert status == 0 and err == "" and "0.03541" in out
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert path.read_bytes().startswith(starts[suffix]) and [*tmp_path.iterdir()] == [path]


def test_large_and_awkward_models_are_drawn(tmp_path, recwarn):
    rng = np.random.default_rng(0)
    names = ["$x_1$", "a\\b", "{", "%", "🀄"]
    model = HMM(
        rng.dirichlet(np.ones(10)), rng.dirichlet(np.ones(10), 10), rng.dirichlet(np.ones(5), 10), symbols=names
    )
    plot(model, rng.integers(0, 5, 24), tmp_path / "a.png")
    plot(model, [0], tmp_path / "b.png")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


@pytest.mark.parametrize(("length", "n"), [(25, 1), (1, 11)])
def test_too_many_times_or_states_are_refused(tmp_path, length, n):
    model = HMM(np.full(n, 1 / n), np.full((n, n), 1 / n), np.ones((n, 1)))
    with pytest.raises(UserError, match="up to 24 observations and 10 states"):
        plot(model, [0] * length, tmp_path / "a.png")


def test_what_cannot_be_drawn_leaves_no_file(assert_user_error, tmp_path):
    with pytest.raises(ImpossibleSequenceError, match=r"P\(O\) = 0"):
        plot(HMM([1, 0], np.eye(2), np.eye(2)), [0, 1], tmp_path / "a.png")
    assert_user_error(hmm, "--plot", tmp_path / "no" / "a.png", words=["--plot", "there is no folder", tmp_path / "no"])
    (tmp_path / "obs").write_text("H\nM\n")
    assert_user_error(hmm, "--plot", tmp_path / "a.png", "--obs", tmp_path / "obs", words=["draws one sequence", "2"])
    assert [path.name for path in tmp_path.iterdir()] == ["obs"]
