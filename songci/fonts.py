"""Chinese in pictures: fonts for matplotlib to fall back on, and the characters that no font on this machine has."""

import sys
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

# Fonts for simplified Chinese, tried first: of Debian and other Linux systems, of Windows, of macOS
PREFERRED = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "Noto Sans CJK JP"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Noto Serif CJK SC", "Noto Serif CJK JP"),
    *("Microsoft YaHei", "SimHei", "SimSun", "PingFang SC", "Hiragino Sans GB", "STHeiti", "Arial Unicode MS"),
)
FROM_PIP = "Noto Sans SC"  # comes with requirements.txt on Linux, for machines without a Chinese font
BUNDLED = "DejaVu Sans"  # comes with matplotlib; has ↵ and ␣, but no Chinese
WAYS = {  # to a Chinese font, by the user's system
    "win32": "in Settings, Optional features, add Chinese (Simplified) Supplemental Fonts",
    "darwin": "open a Chinese font, such as NotoSansSC-Regular.otf, in Font Book",
    "linux": "pip install pylopdf-fonts-zh-cn, apt install fonts-noto-cjk (Debian, Ubuntu), dnf install "
    "google-noto-sans-cjk-fonts (Fedora), or put NotoSansSC-Regular.otf into ~/.fonts",
}
CHINESE = "No Chinese font on this machine: pictures show codes, not characters. To get one: {}; then start again."
RARE = "No font on this machine has some rare characters: pictures show codes. HanaMinB, for one, has more of them."


def label(char: str) -> str:
    """A character as a label that can be seen: ↵ for a line end, ␣ for a space, U+200B for what is invisible."""
    kind = unicodedata.category(char)
    if char == "\n" or kind == "Zs":
        return "↵" if char == "\n" else "␣"
    if kind in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp"):  # control, format, private use; surrogates; line separators
        return code_point(char)
    return "◌" + char if kind.startswith("M") else char  # a combining accent needs a base


def code_point(char: str) -> str:
    return f"U+{ord(char):04X}"


@dataclass(frozen=True)
class Fonts:
    """The families to draw a text with, for matplotlib's `font.family`, and the characters that none of them has."""

    families: tuple[str, ...]
    missing: frozenset[str]

    def shown(self, text: str) -> str:
        """The text with code points instead of the characters that have no glyph."""
        return "".join(code_point(char) if char in self.missing else char for char in text)


def find(text: str) -> Fonts:
    """Chooses fonts for the characters of `text`: a Chinese one, matplotlib's own, and others for what these lack.

    If some characters have no font, a line on stderr says so, once, and how to get one.
    """
    from matplotlib.font_manager import get_font  # here, because it is slow to import

    missing, families = {char for char in text if not char.isspace()}, []
    for family, path in installed().items():
        with suppress(OSError, RuntimeError):  # matplotlib's list may name a file that is gone
            has = {char for char in missing if get_font(path).get_char_index(ord(char))}
            families += [family] if has else []
            missing -= has
    if missing:
        way = WAYS.get(sys.platform, WAYS["linux"])
        say_once(CHINESE.format(way) if any("一" <= char <= "龥" for char in missing) else RARE)
    return Fonts(tuple(dict.fromkeys([*families, BUNDLED])), frozenset(missing))


@cache
def installed() -> dict[str, str]:
    """family → file of each font on this machine, first to last to be tried, though matplotlib's list may be older."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    for path in set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}:
        with suppress(OSError, RuntimeError, ValueError):  # matplotlib cannot read every font file
            fontManager.addfont(path)
    # Of a family, the last one counts: its regular file, if it has one
    fonts = sorted(fontManager.ttflist, key=lambda font: {font.style, font.weight, font.stretch} <= {"normal", 400})
    known = {font.name: font.fname for font in fonts if not font.name.startswith("Last Resort")}  # has boxes
    own = [name for name in PREFERRED if name in known]
    with suppress(ImportError):
        from pylopdf_fonts_zh_cn import sans_path

        if FROM_PIP not in known:  # else the two would be one family
            fontManager.addfont(sans_path())
            known[FROM_PIP] = str(sans_path())
    return {name: known[name] for name in (*own, FROM_PIP, BUNDLED, *sorted(known)) if name in known}


@cache
def say_once(line: str) -> None:
    """Prints a line on stderr, unless this process has done so before."""
    print(line, file=sys.stderr)
