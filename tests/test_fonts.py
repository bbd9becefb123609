"""Chinese in pictures, on machines with fonts of many kinds and with none."""

import copy
import shutil
import sys

import pytest
from matplotlib import font_manager
from readings import POEM, read_corpus

from songci import fonts
from songci.attention import plots
from songci.fonts import installed  # the real one, which conftest.py puts another in place of
from songci.page.poem import as_png

every_glyph = pytest.mark.filterwarnings("error:Glyph")  # matplotlib warns of each that its fonts lack


@pytest.fixture(scope="module")
def reading(data_root, ckpt_path):
    return read_corpus(data_root, ckpt_path)


@pytest.fixture
def bundled(monkeypatch):
    """A machine whose only font is matplotlib's own."""
    only = {fonts.BUNDLED: fonts.installed()[fonts.BUNDLED]}
    monkeypatch.setattr(fonts, "installed", lambda: only)


@pytest.fixture
def machine(monkeypatch):
    """machine(*files) → family → file, as songci finds them on a machine with these font files only."""
    manager = copy.copy(font_manager.fontManager)
    manager.ttflist = [font for font in manager.ttflist if font.name == fonts.BUNDLED]
    monkeypatch.setattr(font_manager, "fontManager", manager)

    def found(*files):
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(map(str, files)))
        return installed.__wrapped__()

    return found


@pytest.fixture
def without_pips(monkeypatch):
    monkeypatch.setitem(sys.modules, "pylopdf_fonts_zh_cn", None)


@every_glyph
def test_chinese_labels_are_real_glyphs_on_this_machine(reading, monkeypatch):
    """Without glyphs, the same box would be drawn for any two of them."""
    monkeypatch.setattr(fonts, "installed", installed)
    if fonts.find("春").missing:
        pytest.skip("no Chinese font here: pip install pylopdf-fonts-zh-cn")
    pictures = set()
    for char in "春风":
        picture = plots.Picture([], 1, 1, 1, 1, more=char)
        picture.text(0.2, 0.2, char, fontsize=40)
        pictures.add(picture.png())
    assert len(pictures) == 2
    for draw in (plots.heatmaps, plots.predictions, plots.losses, plots.statistics, plots.lens):
        draw(reading).png()


@every_glyph
def test_without_a_chinese_font_there_are_code_points_and_one_line(reading, bundled, capsys):
    picture = plots.heatmaps(reading)
    [axes, *_] = picture.axes
    shown = [t if t in "+↵" else f"U+{ord(t):04X}" for t in reading.tokens]
    for side in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in side.get_ticklabels()] == shown
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {90}
    for drawing in (picture, plots.predictions(reading), plots.losses(reading), plots.lens(reading)):
        drawing.png()
    as_png(POEM)
    err = capsys.readouterr().err
    assert err.startswith("No Chinese font on this machine") and err.count("\n") == 1


WAYS = {"linux": "apt install fonts-noto-cjk (Debian, Ubuntu), dnf", "win32": "Chinese (Simplified) Supplemental Fonts"}
WAYS |= {"darwin": "Font Book", "freebsd14": "pip install pylopdf-fonts-zh-cn, "}


@pytest.mark.parametrize("system", WAYS)
def test_without_a_chinese_font_a_line_names_the_way_to_one_on_this_system(bundled, monkeypatch, capsys, system):
    monkeypatch.setattr(fonts.sys, "platform", system)
    assert fonts.find("abc ↵␣") == fonts.Fonts(("DejaVu Sans",), frozenset())
    assert capsys.readouterr().err == "", "matplotlib's own is enough for these"
    found = fonts.find("春a")
    assert found.missing == {"春"} and found.shown("春a") == "U+6625a"
    assert WAYS[system] in capsys.readouterr().err


def test_a_chinese_font_comes_first_and_others_fill_its_gaps(capsys):
    found = fonts.find("春↵\U0010fffe")
    assert found.families == ("Boxes for Han", "DejaVu Sans") and found.missing == {"\U0010fffe"}
    assert capsys.readouterr().err == fonts.RARE + "\n" and "HanaMinB" in fonts.RARE


@pytest.mark.parametrize("order", [1, -1])
def test_of_a_family_the_regular_file_counts(monkeypatch, order):
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", manager.ttflist[::order])
    listed = installed.__wrapped__()  # anew
    assert listed["DejaVu Sans"].endswith("DejaVuSans.ttf"), "not the bold or condensed one"


def test_a_font_that_came_after_matplotlibs_list_is_found(machine, han_font, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert machine(han_font, tmp_path / "broken.ttf")["Boxes for Han"] == str(han_font)


def test_a_machine_without_a_chinese_font_uses_the_one_that_pip_brought(machine, han_font, monkeypatch):
    pips = pytest.importorskip("pylopdf_fonts_zh_cn", reason="pylopdf-fonts-zh-cn is not installed").sans_path()
    first, second, *_ = machine().items()
    assert first == ("Noto Sans SC", str(pips)) and second[0] == "DejaVu Sans"
    assert pips.samefile(font_manager.fontManager.findfont("Noto Sans SC")), "matplotlib draws with it"
    monkeypatch.setattr(fonts, "installed", lambda: dict([first, second]))
    assert fonts.find("清平乐，春风、↵龥。") == fonts.Fonts(("Noto Sans SC", "DejaVu Sans"), frozenset())


def test_the_systems_chinese_font_comes_before_pips(machine, han_font, monkeypatch):
    pytest.importorskip("pylopdf_fonts_zh_cn", reason="pylopdf-fonts-zh-cn is not installed")
    monkeypatch.setattr(fonts, "PREFERRED", (*fonts.PREFERRED, "Boxes for Han"))
    assert list(machine(han_font))[:3] == ["Boxes for Han", "Noto Sans SC", "DejaVu Sans"]
    own = shutil.copy(han_font, han_font.with_name("own.ttf"))
    monkeypatch.setattr(fonts, "FROM_PIP", "Boxes for Han")
    assert machine(own)["Boxes for Han"] == str(own), "a font of the same family is not replaced"


def test_without_any_chinese_font_matplotlibs_own_is_left(machine, without_pips):
    assert next(iter(machine())) == "DejaVu Sans"
