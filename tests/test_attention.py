"""The attention room: numbers against values worked out by hand, what the pictures show, the page, and the fonts."""

import html.parser
import io
import json
import re
import shutil
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hostile import ANY_TEXT, NEAR_TEXT, POEMS, case, fuzz
from hypothesis import given
from PIL import Image
from readings import DATA, POEM, RUN, make_project, read_corpus

import model as gpt
from songci import attention, fonts
from songci.attention import __main__ as command
from songci.attention import page, plots, stats
from songci.cli import UserError, read_text
from songci.corpus.vocabulary import Vocabulary
from songci.training.checkpoint import load_model

CLAUSES = "+++调\n甲乙丙丁，子丑寅。"  # places: 0-3 title, 4 line end, 5-8, 9 comma, 10-12, 13


@pytest.fixture(scope="module")
def reading(data_root, ckpt_path):
    return read_corpus(data_root, ckpt_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("attention"), "no_pos")


@pytest.fixture(scope="module")
def poem(folder):
    """The poem of the notebook, as a tiny model of three layers reads it."""
    return attention.load(folder / DATA, folder / RUN, POEM)


# Numbers


def looking_at(places: list[int]) -> list[torch.Tensor]:
    """The weights of one head in one layer, of which character i looks at places[i] only."""
    weights = torch.zeros(1, 1, len(places), len(places))
    weights[0, 0, range(len(places)), places] = 1
    return [weights]


def test_a_head_that_looks_at_the_previous_character():
    places = [0, *range(len(CLAUSES) - 1)]
    assert stats.head_statistics(looking_at(places), CLAUSES)[:, 0, 0].tolist() == [0, 1, 1, 0]


def test_a_head_that_looks_at_the_first_character():
    entropy, distance, previous, clause = stats.head_statistics(looking_at([0] * 4), "甲乙丙丁")[:, 0, 0]
    assert (entropy, distance) == (0, 2) and previous == pytest.approx(1 / 3) and np.isnan(clause)


def test_a_head_that_looks_at_the_same_place_of_the_clause_before():
    places = list(range(14))
    places[10:13] = [5, 6, 7]
    entropy, distance, previous, clause = stats.head_statistics(looking_at(places), CLAUSES)[:, 0, 0]
    assert (entropy, previous, clause) == (0, 0, 1) and distance == pytest.approx(3 * 5 / 13)


def test_same_places_pairs_clauses_and_leaves_the_title_out():
    assert stats.same_places(CLAUSES) == [(10, 5), (11, 6), (12, 7)]
    assert stats.same_places("一二三。四五、六七八九") == [(4, 0), (5, 1), (7, 4), (8, 5)]
    assert stats.same_places("") == []


def test_a_uniform_head_has_the_entropy_of_its_choices():
    entropy, distance, previous, _ = stats.uniform_statistics("一二三")
    assert entropy == pytest.approx((np.log(2) + np.log(3)) / 2)
    assert distance == pytest.approx((1 / 2 + 1) / 2) and previous == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_each_layer_and_head_has_its_own_statistics(reading):
    values = stats.head_statistics(reading.weights, reading.text)
    assert values.shape == (4, 2, 2)
    for layer in range(2):
        for head in range(2):
            alone = [reading.weights[layer][:, head : head + 1]]
            expected = stats.head_statistics(alone, reading.text)[:, 0, 0]
            assert np.allclose(values[:, layer, head], expected, equal_nan=True)


def test_predictions_are_the_likeliest_by_the_model(reading):
    best, probs = stats.top_predictions(reading, k=5)
    expected = torch.softmax(reading.model(reading.ids)[0][0], dim=-1).detach().numpy()
    assert len(best) == 14 and probs.shape == (14, 5) and (np.diff(probs) <= 0).all()
    for chars, row, all_probs in zip(best, probs, expected, strict=True):
        assert np.allclose(all_probs[reading.vocabulary.encode(chars)], row, atol=1e-6)
        assert row[0] == pytest.approx(all_probs.max(), abs=1e-6)


def test_losses_are_those_of_the_next_character(reading):
    losses = stats.character_losses(reading)
    log_probs = torch.log_softmax(reading.model(reading.ids)[0][0].detach(), dim=-1)
    assert np.isnan(losses[0]) and losses.shape == (14,)
    for i in range(1, 14):
        assert losses[i] == pytest.approx(-log_probs[i - 1, reading.ids[0, i]].item(), abs=1e-5)
    assert stats.text_loss(reading) == pytest.approx(losses[1:].mean(), abs=1e-5)


@pytest.mark.parametrize("head", [0, 1])
def test_a_head_that_is_switched_off_adds_nothing_and_is_back_afterwards(reading, head):
    """W^O gets zeros for the channels of this head, and the channels of the other as they were."""
    model, seen = reading.model, []
    out = model.layers[1].attention.out
    with torch.inference_mode():
        hook = out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(reading.ids)
        hook.remove()
        with stats.without_head(model, 1, head):
            hook = out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            model(reading.ids)
            hook.remove()
        whole, without = seen
        (off, on), (silent, kept) = ([x[..., 8 * i : 8 * i + 8] for i in (head, 1 - head)] for x in (whole, without))
        assert off.any() and not silent.any() and torch.equal(on, kept)
        assert torch.equal(model(reading.ids, need_weights=True)[0][0], reading.logits)


def test_ablation_measures_each_head_by_itself(reading):
    whole, rises = stats.head_ablation(reading.model, lambda: stats.text_loss(reading))
    assert rises.shape == (2, 2) and whole == pytest.approx(stats.text_loss(reading))
    with stats.without_head(reading.model, 0, 1):
        assert whole + rises[0, 1] == pytest.approx(stats.text_loss(reading))
    assert len(set(rises.flat)) == 4


@pytest.mark.parametrize("num_windows", [1, 5, 10_000])
def test_validation_loss_is_the_same_each_time_and_of_so_many_windows(reading, data_root, num_windows, monkeypatch):
    used = []
    real = stats.mean_loss
    monkeypatch.setattr(stats, "mean_loss", lambda *args, **kw: used.append(args[2]) or real(*args, **kw))
    loss = stats.validation_loss(data_root, reading.model, reading.title, num_windows)
    assert loss() == loss() > 0 and len(used[0]) == len(used[1]) <= num_windows
    assert len(used[0]) == num_windows or num_windows == 10_000  # more than there are
    assert not used[0].scored.any()  # each begins with a title


def test_the_last_row_of_the_lens_is_the_model_itself(reading):
    best, probs, losses = stats.logit_lens(reading)
    assert [len(row) for row in best] == [14] * 3 and probs.shape == (3, 14) and losses.shape == (3,)
    top, top_probs = stats.top_predictions(reading, k=1)
    assert best[-1] == "".join(top) and np.allclose(probs[-1], top_probs[:, 0], atol=1e-6)
    assert losses[-1] == pytest.approx(np.nanmean(stats.character_losses(reading)), abs=1e-5)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in reading.model.layers)


def test_the_lens_reads_what_a_model_of_fewer_layers_would(reading):
    """The row after the first layer equals the prediction of the model whose second layer adds nothing."""
    best, _, losses = stats.logit_lens(reading)
    second = reading.model.layers[1]
    kept = {name: value.clone() for name, value in second.state_dict().items()}
    try:
        for part in (second.attention.out, second.feed_forward.down):
            part.weight.data.zero_()
            part.bias.data.zero_()
        shallow = stats.read(reading.model, reading.vocabulary, reading.text)
    finally:
        second.load_state_dict(kept)
    assert best[1] == "".join(stats.top_predictions(shallow, k=1)[0])
    assert losses[1] == pytest.approx(np.nanmean(stats.character_losses(shallow)), abs=1e-4)


def test_an_empty_text_and_unknown_characters_are_refused(reading):
    with pytest.raises(UserError, match="empty"):
        stats.read(reading.model, reading.vocabulary, "")
    with pytest.raises(UserError, match=r"U\+2000B"):
        stats.read(reading.model, reading.vocabulary, "𠀋")


# Pictures


@pytest.fixture
def shortest(reading):
    """A text of one character."""
    return stats.read(reading.model, reading.vocabulary, reading.text[5])


def drawn(axes) -> np.ma.MaskedArray:
    [image] = axes.get_images()
    return image.get_array()


def framed(picture) -> list:
    return [patch for axes in picture.axes for patch in axes.patches if patch.get_edgecolor()[3] > 0]


def texts(picture) -> list[str]:
    return [text.get_text() for axes in picture.axes for text in axes.texts]


def test_a_heatmap_a_head_whose_rows_sum_to_1_and_whose_upper_triangle_is_empty(reading):
    picture = plots.heatmaps(reading, layer=1)
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
    assert len(plots.heatmaps(reading, layer=None).axes) == 4 + 1
    two = plots.heatmaps(reading, reading, layer=0, labels=False)
    assert len(two.axes) == 4 + 1 and two.axes[0].get_title() == "small\nlayer 0, head 0"


@pytest.mark.skipif(fonts.find("春").missing != frozenset(), reason="no Chinese font here: apt install fonts-noto-cjk")
def test_chinese_labels_are_real_glyphs(reading, recwarn):
    """matplotlib warns of each glyph that it lacks, and would draw the same box for any two of them."""
    pictures = []
    for char in "春风":
        picture = plots.Picture([], 1, 1, 1, 1, more=char)
        picture.text(0.2, 0.2, char, fontsize=40)
        pictures.append(picture.png())
    assert pictures[0] != pictures[1]
    for draw in (plots.heatmaps, plots.predictions, plots.losses, plots.statistics, plots.lens):
        draw(reading).png()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_one_head_can_be_drawn_by_itself(reading):
    picture = plots.heatmaps(reading, layer=1, heads=[1])
    axes, _colorbar = picture.axes
    assert axes.get_title() == "layer 1, head 1"
    assert (drawn(axes).filled(0) == reading.weights[1][0, 1].numpy()).all()


@pytest.fixture
def bundled(monkeypatch):
    """A machine whose only font is matplotlib's own, and that has not complained yet."""
    only = {"DejaVu Sans": fonts.installed()["DejaVu Sans"]}
    monkeypatch.setattr(fonts, "installed", lambda: only)
    fonts.say_once.cache_clear()


def test_without_a_chinese_font_there_are_code_points_and_one_line(reading, bundled, capsys, recwarn):
    picture = plots.heatmaps(reading)
    labels = [label.get_text() for label in picture.axes[0].get_yticklabels()]
    assert labels == [t if t in "+↵" else f"U+{ord(t):04X}" for t in reading.tokens]
    assert {label.get_rotation() for label in picture.axes[0].get_xticklabels()} == {90}
    picture.png()
    for draw in (plots.predictions, plots.losses, plots.lens):
        draw(reading).png()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    err = capsys.readouterr().err
    assert err.startswith("No Chinese font on this machine") and err.count("\n") == 1


def test_predictions_frame_the_character_that_comes(reading):
    picture = plots.predictions(reading, k=3)
    best, _ = stats.top_predictions(reading, k=3)
    assert len(framed(picture)) == sum(reading.text[i + 1] in best[i] for i in range(13))
    for char in best[0]:
        assert fonts.label(char) in texts(picture)


def test_losses_stand_below_their_characters_and_a_line_ends_its_row(reading):
    picture = plots.losses(reading)
    losses = stats.character_losses(reading)
    assert [text for text in texts(picture) if text] == [
        part
        for token, loss in zip(reading.tokens, losses, strict=True)
        for part in (token, "–" if np.isnan(loss) else f"{loss:.1f}")
    ]
    assert picture.axes[0].get_title(loc="left") == f"{np.nanmean(losses):.2f} nats a character"
    assert plots.lines("+++\n" + "字" * 30) == [range(0, 4), range(4, 28), range(28, 34)]


def test_statistics_and_ablation_are_matrices_layers_by_heads(reading, data_root):
    picture = plots.statistics(reading)
    values = stats.head_statistics(reading.weights, reading.text)
    for axes, value in zip(picture.axes, values, strict=True):
        assert np.array_equal(drawn(axes), value, equal_nan=True)
    [axes] = plots.ablation(reading, data_root=data_root, num_windows=2).axes
    assert drawn(axes).shape == (2, 2) and axes.get_title().startswith("rise of the loss\nfrom ")
    whole = stats.text_loss(reading)
    assert f"from {whole:.3f}" in plots.ablation(reading).axes[0].get_title()
    on_validation = stats.validation_loss(data_root, reading.model, reading.title, num_windows=2)()
    assert f"from {on_validation:.3f}" in axes.get_title() and on_validation != pytest.approx(whole, abs=1e-3)


def test_the_lens_has_a_row_a_depth_and_the_text_below(reading):
    best, _, losses = stats.logit_lens(reading)
    picture = plots.lens(reading)
    shown = texts(picture)
    assert len(framed(picture)) == sum(row[i] == reading.text[i + 1] for row in best for i in range(13)) > 0
    for name, chars, loss in zip(("embeddings", "layer 0", "layer 1"), best, losses, strict=True):
        start = shown.index(f"{name}, loss {loss:.2f}")
        assert [text for text in shown[start + 1 : start + 29] if text] == list(map(fonts.label, chars))
    start = shown.index("text")
    assert [text for text in shown[start + 1 : start + 29] if text] == reading.tokens


def test_in_the_lens_the_first_row_of_each_run_has_its_name(reading, monkeypatch):
    monkeypatch.setattr(plots, "ROW", 10)
    picture = plots.lens(reading, replace(reading, name="other"))
    assert [axes.get_title(loc="left") for axes in picture.axes] == ["small", "", "other", ""]


def test_runs_side_by_side_may_differ_in_size(reading):
    weights = torch.rand(3, 1, 5, 14, 14).tril()
    other = replace(reading, weights=list(weights / weights.sum(-1, keepdim=True)), name="other")
    picture = plots.statistics(reading, other)
    assert [axes.get_title().split("\n")[0] for axes in picture.axes] == ["small"] * 4 + ["other"] * 4


@pytest.mark.parametrize("draw", [plots.heatmaps, plots.predictions, plots.losses, plots.lens])
def test_the_shortest_text_has_its_pictures(shortest, draw):
    picture = draw(shortest)._repr_png_()
    assert Image.open(io.BytesIO(picture)).mode == "P"


def test_a_text_of_one_character_has_statistics_too(shortest, recwarn):
    plots.statistics(shortest).png()
    assert not list(recwarn)


def test_odd_characters_are_drawn_by_their_names(reading, recwarn):
    vocabulary = Vocabulary("".join(sorted({*reading.vocabulary.chars[:-5], *"\u3000\u200b\ue000\U0003134a$"})))
    odd = stats.read(reading.model, vocabulary, "$\u3000\u200b\ue000\U0003134a")
    assert odd.tokens == ["$", "␣", "U+200B", "U+E000", "\U0003134a"]
    picture = plots.heatmaps(odd)
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()][:4] == odd.tokens[:4]
    picture.png()
    plots.losses(odd).png()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def parameters(view: page.View) -> dict:
    """The data in a view's script."""
    _, data = view.document.split("const params = readable(")
    return json.JSONDecoder().raw_decode(data)[0]


# Loading


def test_the_weights_are_those_of_the_explicit_path_and_that_path_is_the_fast_one(poem):
    with torch.inference_mode():
        logits, weights = poem.model(poem.ids, need_weights=True)
        fast, none = poem.model(poem.ids)
    assert none == [] and torch.allclose(logits, fast, atol=1e-5)
    assert torch.allclose(poem.logits, fast[0], atol=1e-5)
    assert [tuple(layer.shape) for layer in poem.weights] == [(1, 2, 48, 48)] * 3
    for ours, theirs in zip(poem.weights, weights, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.allclose(ours.sum(-1), torch.ones(1, 2, 48)) and not ours.triu(1).any()


def test_the_weights_are_softmax_of_the_scores(poem, monkeypatch):
    """Computed anew, with numpy, from the queries and keys that the model's attention() gets."""
    seen = []
    real = gpt.attention
    monkeypatch.setattr(gpt, "attention", lambda q, k, *args: seen.append((q, k)) or real(q, k, *args))
    with torch.inference_mode():
        poem.model(poem.ids, need_weights=True)
    for (q, k), weights in zip(seen, poem.weights, strict=True):
        scores = np.exp(q.numpy() @ k.numpy().swapaxes(-1, -2) / np.sqrt(8)) * np.tri(48)
        assert np.allclose(weights, scores / scores.sum(-1, keepdims=True), atol=1e-5)


def test_line_breaks_spaces_and_invisible_characters_can_be_seen(poem):
    assert poem.tokens == list(POEM.replace("\n", "↵"))
    vocabulary = Vocabulary("".join(sorted({*poem.vocabulary.chars[:-3], *" \u3000\u200b"})))
    shown = stats.read(poem.model, vocabulary, " \u3000\u200b\n")
    assert shown.tokens == ["␣", "␣", "U+200B", "↵"]


def test_of_a_long_text_the_first_window_is_shown_with_a_note(folder, poem):
    long = stats.load(folder / DATA, folder / RUN, POEM * 2)
    assert long.text == (POEM * 2)[:64] and len(long.tokens) == 64 == long.weights[0].size(-1)
    assert "96 characters" in long.note and "64" in long.note
    for view in (page.head_view(long), page.model_view(long)):
        assert long.note in view.frame()
    assert poem.note == "" and "<p>" not in page.head_view(poem).frame()


def test_runs_that_do_not_exist_are_named_with_the_command_that_makes_them(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    [run] = stats.load_existing(DATA, [f"{RUN}_no_pos", "workdirs/other_no_res"], POEM)
    assert run.name == "quansongci_no_pos" and run.model.config.no_pos
    said = "no run workdirs/other_no_res: python train.py --ckpt_path workdirs/other_no_res --no_res makes it\n"
    assert capsys.readouterr().out == said


# bertviz' views


@pytest.mark.parametrize("draw", [page.head_view, page.model_view])
def test_a_view_holds_the_models_weights_once_and_rounded(poem, draw):
    view = draw(poem)
    [data] = parameters(view)["attention"]
    assert data["left_text"] == data["right_text"] == poem.tokens
    weights = torch.cat(poem.weights).numpy()  # (layers, h, L, L)
    assert np.abs(np.array(data["attn"]) - weights).max() <= 0.5001e-4
    assert all(len(str(w)) <= 6 for w in data["attn"][2][1][47])
    assert view.document.count('"left_text"') == 1
    assert len(view.frame()) < 700_000


@pytest.mark.parametrize("draw", [page.head_view, page.model_view])
def test_a_view_asks_for_nothing_outside(poem, draw):
    tags = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(draw(poem).document)
    assert {"html", "head", "body", "script", "div"} <= {tag for tag, _ in tags}
    assert not [tag for tag, attributes in tags if tag == "link" or {"src", "href"} & set(attributes)]
    frame = draw(poem).frame()
    assert frame.count("<iframe") == frame.count("srcdoc=") == 1 and "<script" not in frame


def test_no_token_ends_the_script(poem):
    nasty = ["</script>", "</SCRIPT >", "<!--", "<script src=x></script>", "]]>", "; // HACK: ", "PYTHON_PARAMS"]
    nasty += ['"', "'", "&quot;", "\\", "\u2028"]
    view = page.head_view(replace(poem, tokens=[*nasty, *poem.tokens[len(nasty) :]]))
    assert parameters(view)["attention"][0]["left_text"][: len(nasty)] == nasty
    assert len(re.findall(r"</script", view.document, re.IGNORECASE)) == view.document.count("<script>") == 4
    assert view.document.count("<!--") == 0


def test_layers_and_heads_that_the_model_lacks_are_refused(poem):
    for wrong in (
        lambda: page.head_view(poem, layer=3),
        lambda: page.head_view(poem, heads=[9]),
        lambda: page.head_view(poem, heads=[]),
        lambda: page.model_view(poem, include_layers=[-1]),
        lambda: plots.heatmaps(poem, layer=3),
        lambda: plots.heatmaps(poem, heads=[2]),
    ):
        with pytest.raises(UserError, match="quansongci has the"):
            wrong()


def test_a_view_shows_the_layer_and_heads_that_are_asked_for(poem):
    data = parameters(page.head_view(poem, layer=2, heads=[1]))
    assert data["layer"] == 2 and data["heads"] == [1]
    data = parameters(page.model_view(poem, include_layers=[1]))
    assert data["include_layers"] == [1] and data["total_heads"] == 12


def test_without_the_libraries_a_line_says_what_to_install(poem, monkeypatch):
    monkeypatch.setattr(page, "LIBRARIES", (("no_such_package", "js/d3.v5.min.js"),))
    with pytest.raises(UserError, match="no_such_package is missing: pip install"):
        page.head_view(poem)


# The command line


def test_a_page_of_a_large_model_leaves_the_model_view_out_and_says_so(poem, monkeypatch):
    monkeypatch.setattr(page, "MANY_LINES", 3 * 2 * 48**2 - 1)
    written = page.offline_page(poem, {})
    assert written.count("<iframe") == 1 and "include_layers" in written
    monkeypatch.setattr(page, "MANY_LINES", 3 * 2 * 48**2)
    assert page.offline_page(poem, {}).count("<iframe") == 2


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("𠀋", [], ["not in the vocabulary", "U+2000B"]),
        ("", [], ["the text is empty"]),
        (b"\xff\xfe", [], ["cannot read", "UTF-8"]),
        (POEM, ["--out", "page.pdf"], ["page.pdf", ".html"]),
        (POEM, ["--out", "nowhere/page.html"], ["no folder nowhere"]),
        (POEM, ["--out", ""], ["--out ''", ".html"]),
        (POEM, ["--ckpt_path", "nowhere"], ["no checkpoint", "train.py"]),
        (POEM, ["--data_root", "nowhere"], ["no data folder nowhere"]),
        (POEM, ["--text", "nowhere.txt"], ["cannot read nowhere.txt as UTF-8 text: No such file or directory"]),
        (POEM, ["--num_windows", "0"], ["num_windows"]),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(folder, tmp_path, assert_user_error, monkeypatch, text, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    paths = ["--data_root", folder / DATA, "--ckpt_path", folder / RUN, "--text", "text.txt", "--out", "page.html"]
    assert_user_error(command, *paths, *flags, words=words)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_text_that_was_cut_is_told_of_in_the_terminal_and_on_the_page(folder, tmp_path, call, monkeypatch):
    monkeypatch.setattr(command, "draw", lambda *args: {})  # its pictures take long
    (tmp_path / "text.txt").write_text(POEM * 2, encoding="utf-8")
    paths = ["--text", tmp_path / "text.txt", "--out", tmp_path / "page.html"]
    status, out, err = call(command, "--data_root", folder / DATA, "--ckpt_path", folder / RUN, *paths)
    note, *_ = out.splitlines()
    assert (status, err) == (0, "") and note.startswith("The text has 96 characters")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count(note) == 2
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["page.html", "page.png"])
def test_a_folder_where_the_page_or_its_picture_would_go_is_refused_before_any_work(tmp_path, assert_user_error, name):
    (tmp_path / name).mkdir()
    flags = ["--out", tmp_path / "page.html", "--ckpt_path", tmp_path / "no_run"]
    assert_user_error(command, *flags, words=["--out", f"{name}: it is a folder"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_model_of_another_vocabulary_is_refused(folder, ckpt_path):
    with pytest.raises(UserError, match="another vocabulary"):
        stats.load(folder / DATA, ckpt_path, POEM)


# Fonts


def test_labels_can_be_seen():
    chars = ["\n", " ", "\u3000", "\t", "\u200b", "\ue000", "\u0301", "风", "，", "a"]
    assert [fonts.label(char) for char in chars] == [
        *("↵", "␣", "␣", "U+0009", "U+200B", "U+E000", "◌\u0301", "风", "，", "a")
    ]


def test_the_bundled_font_is_enough_for_latin(bundled, capsys):
    assert fonts.find("abc ↵␣") == fonts.Fonts(("DejaVu Sans",), frozenset())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("system", "way"),
    [
        ("linux", "apt install fonts-noto-cjk (Debian, Ubuntu), dnf install"),
        ("win32", "Chinese (Simplified) Supplemental Fonts"),
        ("darwin", "Font Book"),
        ("freebsd14", "~/.fonts"),
    ],
)
def test_without_a_chinese_font_the_line_says_how_to_get_one_on_this_system(bundled, monkeypatch, capsys, system, way):
    monkeypatch.setattr(fonts.sys, "platform", system)
    found = fonts.find("春a")
    assert found.missing == {"春"} and found.shown("春a") == "U+6625a"
    assert way in capsys.readouterr().err


def chinese():
    found = fonts.find("春")
    if found.missing:
        pytest.skip("no Chinese font here: apt install fonts-noto-cjk")
    return found


def test_a_chinese_font_comes_first_and_others_fill_its_gaps(capsys):
    families = chinese().families
    assert families[0] != "DejaVu Sans" and families[-1] == "DejaVu Sans"
    fonts.say_once.cache_clear()
    capsys.readouterr()
    found = fonts.find("春↵\U0010fffe")
    assert found.families[0] == families[0] and found.missing == {"\U0010fffe"}
    assert capsys.readouterr().err == fonts.RARE + "\n"


@pytest.mark.parametrize("order", [1, -1])
def test_of_a_family_the_regular_file_counts(monkeypatch, order):
    from matplotlib import font_manager

    monkeypatch.setattr(font_manager.fontManager, "ttflist", font_manager.fontManager.ttflist[::order])
    fonts.installed.cache_clear()
    try:
        assert fonts.installed()["DejaVu Sans"].endswith("DejaVuSans.ttf"), "not the bold or condensed one"
    finally:
        fonts.installed.cache_clear()


def test_a_font_that_came_after_matplotlibs_list_is_found(tmp_path, monkeypatch):
    from matplotlib import font_manager

    family = chinese().families[0]
    path = shutil.copy(fonts.installed()[family], tmp_path)
    manager = font_manager.FontManager.__new__(font_manager.FontManager)
    manager.__dict__.update(font_manager.fontManager.__dict__)
    manager.ttflist = [font for font in manager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager, "fontManager", manager)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path), str(tmp_path / "broken.ttf")])
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fonts.installed.cache_clear()
    try:
        assert fonts.find("春").missing == frozenset()
    finally:
        fonts.installed.cache_clear()


@pytest.mark.slow
@fuzz(150)
@given(content=st.one_of(st.binary(), ANY_TEXT, NEAR_TEXT, POEMS))
def test_any_text_to_look_at(tuned_ckpt, file, content):
    model, vocabulary, _ = load_model(tuned_ckpt)
    path = file("text.txt", content)
    reading = case("text", lambda: stats.read(model, vocabulary, read_text(path)))
    if reading:
        case("text", lambda: stats.head_statistics(reading.weights, reading.text))
