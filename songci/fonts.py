"""Chinese in pictures: finds fonts on this machine for the characters, and tells which characters no font has."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Fonts for simplified Chinese, tried first: of Debian and other Linux systems, of Windows, of macOS.
PREFERRED = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "Noto Sans CJK JP"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Noto Serif CJK SC", "Noto Serif CJK JP"),
    *("Microsoft YaHei", "SimHei", "SimSun", "PingFang SC", "Hiragino Sans GB", "STHeiti", "Arial Unicode MS"),
)
BUNDLED = "DejaVu Sans"  # comes with matplotlib; has ↵ and ␣, but no Chinese
PLACEHOLDER = "Last Resort"  # a font with a box as the glyph of every character
HOW_TO = (
    "This machine has no Chinese font: characters are shown by their code points. To get one:\n"
    "apt install fonts-noto-cjk (Debian, Ubuntu), dnf install google-noto-sans-cjk-fonts (Fedora),\n"
    "or put NotoSansSC-Regular.otf into ~/.fonts. Then restart the kernel."
)
RARE = "No font on this machine has {}. For rare characters: apt install fonts-hanazono, or another large font."


def label(char: str) -> str:
    """A character as a label that can be seen: ↵ for a line end, ␣ for a space, U+200B for what is invisible."""
    if char == "\n":
        return "↵"
    kind = unicodedata.category(char)
    if kind == "Zs":
        return "␣"
    if kind in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp"):  # control, format, private use; surrogates; line separators
        return code_point(char)
    return "◌" + char if kind.startswith("M") else char  # a combining accent needs a base


def code_point(char: str) -> str:
    return f"U+{ord(char):04X}"


@dataclass(frozen=True)
class Fonts:
    """The families to draw a text with, in order, and the characters that none of them has."""

    families: tuple[str, ...]
    missing: frozenset[str]

    def shown(self, text: str) -> str:
        """The text with code points instead of the characters that have no glyph."""
        return "".join(code_point(char) if char in self.missing else char for char in text)

    @property
    def note(self) -> str:
        """What to tell the reader if characters are missing: which, and how to get a font; otherwise empty."""
        if self.missing and self.families == (BUNDLED,):
            return HOW_TO
        return RARE.format(", ".join(map(code_point, sorted(self.missing)))) if self.missing else ""


def find(text: str) -> Fonts:
    """Chooses fonts for the characters of `text`: a Chinese one, matplotlib's own, and others for what these lack."""
    missing, families = {char for char in text if not char.isspace()}, []
    for family, path in _candidates():
        if not missing:
            break
        has = _covered(path, missing)
        if has:
            families.append(family)
            missing -= has
    return Fonts((*families, *([] if BUNDLED in families else [BUNDLED])), frozenset(missing))


def _candidates() -> Iterator[tuple[str, str]]:
    """(family, file) of the fonts to try, the best first."""
    known = installed()
    names = [name for name in (*PREFERRED, BUNDLED) if name in known]
    for name in names:
        yield name, known[name]
    for name, path in sorted(known.items()):  # find() comes here only for what is still missing
        if name not in names:
            yield name, path


@cache
def installed() -> dict[str, str]:
    """family → file of each font on this machine, including those installed after matplotlib made its list."""
    from matplotlib import font_manager  # here, because it is slow to import

    manager = font_manager.fontManager
    listed = {Path(font.fname).resolve() for font in manager.ttflist}
    for path in font_manager.findSystemFonts():
        if Path(path).resolve() not in listed:
            try:
                manager.addfont(path)
            except (OSError, RuntimeError, ValueError):  # matplotlib cannot read every font file
                continue
    usual = {"normal", 400}
    regular = [font for font in manager.ttflist if {font.style, font.weight, font.stretch} <= usual]
    fonts = [*manager.ttflist, *regular]  # the later ones win: the regular file of a family that has one
    return {font.name: font.fname for font in fonts if not font.name.startswith(PLACEHOLDER)}


def _covered(path: str, chars: set[str]) -> set[str]:
    """Those of `chars` that the font file has."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(path)
        return {char for char in chars if font.get_char_index(ord(char))}
    except (OSError, RuntimeError):
        return set()
