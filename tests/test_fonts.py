"""Labels that can be seen, and fonts for them, on machines with and without a Chinese font."""

import shutil

import pytest

from songci import fonts


def test_labels_can_be_seen():
    chars = ["\n", " ", "\u3000", "\t", "\u200b", "\ue000", "\u0301", "风", "，", "a"]
    assert [fonts.label(char) for char in chars] == [
        *("↵", "␣", "␣", "U+0009", "U+200B", "U+E000", "◌\u0301", "风", "，", "a")
    ]


@pytest.fixture
def bundled():
    return fonts.installed()["DejaVu Sans"]


def test_the_bundled_font_is_enough_for_latin(monkeypatch, bundled):
    monkeypatch.setattr(fonts, "installed", lambda: {"DejaVu Sans": bundled})
    assert fonts.find("abc ↵␣") == fonts.Fonts(("DejaVu Sans",), frozenset())
    assert fonts.find("abc ↵␣").note == ""


def test_without_a_chinese_font_the_note_says_how_to_get_one(monkeypatch, bundled):
    monkeypatch.setattr(fonts, "installed", lambda: {"DejaVu Sans": bundled})
    found = fonts.find("春a")
    assert found.missing == {"春"} and found.shown("春a") == "U+6625a"
    for way in ("apt install fonts-noto-cjk", "dnf install", "restart the kernel"):
        assert way in found.note


def chinese():
    found = fonts.find("春")
    if found.missing:
        pytest.skip("no Chinese font here: apt install fonts-noto-cjk")
    return found


def test_a_chinese_font_comes_first_and_others_fill_its_gaps(monkeypatch):
    families = chinese().families
    assert families[0] != "DejaVu Sans" and families[-1] == "DejaVu Sans"
    found = fonts.find("春↵\U0010fffe")
    assert found.families[0] == families[0] and found.missing == {"\U0010fffe"}
    assert found.note.startswith("No font on this machine has U+10FFFE")


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
