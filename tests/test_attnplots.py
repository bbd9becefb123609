"""What the pictures show, read from matplotlib's axes, and that every glyph in them is real."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from readings import read_corpus

from songci import fonts
from songci.attention import plots as attnplots
from songci.attention import stats as attnstats
from songci.corpus.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def reading(data_root, ckpt_path):
    return read_corpus(data_root, ckpt_path)


@pytest.fixture
def shortest(reading):
    """A text of one character."""
    return attnstats.read(reading.model, reading.vocabulary, reading.text[5])


def drawn(axes) -> np.ma.MaskedArray:
    [image] = axes.get_images()
    return image.get_array()


def framed(picture) -> list:
    return [patch for axes in picture.axes for patch in axes.patches if patch.get_edgecolor()[3] > 0]


def texts(picture) -> list[str]:
    return [text.get_text() for axes in picture.axes for text in axes.texts]


def test_a_heatmap_a_head_whose_rows_sum_to_1_and_whose_upper_triangle_is_empty(reading):
    picture = attnplots.heatmaps(reading, layer=1)
    *panels, _colorbar = picture.axes
    assert len(panels) == 2
    for head, axes in enumerate(panels):
        shown = drawn(axes)
        assert (shown.mask == np.triu(np.ones((14, 14)), 1)).all()
        assert np.allclose(shown.sum(1), 1, atol=1e-6)
        assert (shown.filled(0) == reading.weights[1][0, head].numpy()).all()
        labels = [[label.get_text() for label in side.get_ticklabels()] for side in (axes.xaxis, axes.yaxis)]
        assert labels == [reading.tokens] * 2 and "↵" in reading.tokens
        assert axes.get_title() == f"layer 1, head {head}"
        assert axes.get_images()[0].norm(0.25) == 0.5, "the square root, so that small weights can be seen"


def test_the_heatmaps_of_all_layers_and_of_several_runs(reading):
    assert len(attnplots.heatmaps(reading, layer=None).axes) == 4 + 1
    two = attnplots.heatmaps(reading, reading, layer=0, labels=False)
    assert len(two.axes) == 4 + 1 and two.axes[0].get_title() == "small\nlayer 0, head 0"


@pytest.mark.skipif(fonts.find("春").missing != frozenset(), reason="no Chinese font here: apt install fonts-noto-cjk")
def test_chinese_labels_are_real_glyphs(reading, recwarn):
    """matplotlib warns of each glyph that it lacks, and would draw the same box for any two of them."""
    pictures = []
    for char in "春风":
        picture = attnplots.Picture(char, 1, 1)
        with picture.drawing():
            picture.text(0.2, 0.2, char, fontsize=40)
        pictures.append(picture.png())
    assert pictures[0] != pictures[1]
    assert attnplots.heatmaps(reading).png().startswith(b"\x89PNG")
    assert attnplots.predictions(reading).fonts.note == ""
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_without_a_chinese_font_there_are_code_points_and_a_note(reading, monkeypatch, recwarn):
    bundled = {"DejaVu Sans": fonts.installed()["DejaVu Sans"]}
    monkeypatch.setattr(fonts, "installed", lambda: bundled)
    picture = attnplots.heatmaps(reading)
    labels = [label.get_text() for label in picture.axes[0].get_yticklabels()]
    assert labels == [t if t in "+↵" else f"U+{ord(t):04X}" for t in reading.tokens]
    assert {label.get_rotation() for label in picture.axes[0].get_xticklabels()} == {90}
    assert "fonts-noto-cjk" in picture.get_supxlabel()
    picture.png()
    for draw in (attnplots.predictions, attnplots.losses, attnplots.lens):
        draw(reading).png()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_predictions_frame_the_character_that_comes(reading):
    picture = attnplots.predictions(reading, k=3)
    best, _ = attnstats.top_predictions(reading, k=3)
    assert len(framed(picture)) == sum(reading.text[i + 1] in best[i] for i in range(13))
    for char in best[0]:
        assert fonts.label(char) in texts(picture)


def test_losses_stand_below_their_characters_and_a_line_ends_its_row(reading):
    picture = attnplots.losses(reading)
    losses = attnstats.character_losses(reading)
    assert [text for text in texts(picture) if text] == [
        part
        for token, loss in zip(reading.tokens, losses, strict=True)
        for part in (token, "–" if np.isnan(loss) else f"{loss:.1f}")
    ]
    assert picture.axes[0].get_title(loc="left") == f"{np.nanmean(losses):.2f} nats a character"
    assert attnplots._lines("+++\n" + "字" * 30) == [range(0, 4), range(4, 28), range(28, 34)]


def test_statistics_and_ablation_are_matrices_layers_by_heads(reading, data_root):
    picture = attnplots.statistics(reading)
    values = attnstats.head_statistics(reading.weights, reading.text)
    for axes, value in zip(picture.axes, values, strict=True):
        assert np.array_equal(drawn(axes), value, equal_nan=True)
    [axes] = attnplots.ablation(reading, data_root=data_root, num_windows=2).axes
    assert drawn(axes).shape == (2, 2) and axes.get_title().startswith("rise of the loss\nfrom ")
    whole = attnstats.text_loss(reading)
    assert f"from {whole:.3f}" in attnplots.ablation(reading).axes[0].get_title()
    on_validation = attnstats.validation_loss(data_root, reading.model, reading.title, num_windows=2)()
    assert f"from {on_validation:.3f}" in axes.get_title() and on_validation != pytest.approx(whole, abs=1e-3)


def test_the_lens_has_a_row_a_depth_and_the_text_below(reading):
    best, _, losses = attnstats.logit_lens(reading)
    picture = attnplots.lens(reading)
    shown = texts(picture)
    assert len(framed(picture)) == sum(row[i] == reading.text[i + 1] for row in best for i in range(13)) > 0
    for name, chars, loss in zip(("embeddings", "layer 0", "layer 1"), best, losses, strict=True):
        start = shown.index(f"{name}, loss {loss:.2f}")
        assert [text for text in shown[start + 1 : start + 29] if text] == list(map(fonts.label, chars))
    assert [text for text in shown[shown.index("text") + 1 :] if text] == reading.tokens


def test_in_the_lens_the_first_row_of_each_run_has_its_name(reading, monkeypatch):
    monkeypatch.setattr(attnplots, "ROW", 10)
    picture = attnplots.lens(reading, replace(reading, name="other"))
    assert [axes.get_title(loc="left") for axes in picture.axes] == ["small", "", "other", ""]


def test_runs_side_by_side_may_differ_in_size(reading):
    weights = torch.rand(3, 1, 5, 14, 14).tril()
    other = replace(reading, weights=list(weights / weights.sum(-1, keepdim=True)), name="other")
    picture = attnplots.statistics(reading, other)
    assert [axes.get_title().split("\n")[0] for axes in picture.axes] == ["small"] * 4 + ["other"] * 4


@pytest.mark.parametrize("draw", [attnplots.heatmaps, attnplots.predictions, attnplots.losses, attnplots.lens])
def test_the_shortest_text_has_its_pictures(shortest, draw):
    picture = draw(shortest)._repr_png_()
    assert Image.open(io.BytesIO(picture)).mode == "P"


def test_a_text_of_one_character_has_statistics_too(shortest, recwarn):
    attnplots.statistics(shortest).png()
    assert not list(recwarn)


def test_odd_characters_are_drawn_by_their_names(reading, recwarn):
    vocabulary = Vocabulary("".join(sorted({*reading.vocabulary.chars[:-5], *"\u3000\u200b\ue000\U0003134a$"})))
    odd = attnstats.read(reading.model, vocabulary, "$\u3000\u200b\ue000\U0003134a")
    assert odd.tokens == ["$", "␣", "U+200B", "U+E000", "\U0003134a"]
    picture = attnplots.heatmaps(odd)
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()][:4] == odd.tokens[:4]
    picture.png()
    attnplots.losses(odd).png()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
