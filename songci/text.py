"""How a text comes in and goes out: files in the encodings that people have, and JSON that any terminal can show."""

import codecs
import contextlib
import json
import shlex
import sys
from pathlib import Path

from songci.cli import UserError

COMMON = "，。、一不人大中是我有的"  # some of them are in every Chinese text, simplified or traditional, old or new
SAMPLE = 1 << 16  # bytes, to guess an encoding from


def decode(content: bytes, path: str | Path) -> str:
    """The text of a file, without a byte-order mark and with all line ends as \\n.

    It is UTF-8, with a mark or without, or UTF-16 with one, as Windows PowerShell's `>` writes. Raises UserError for
    anything else, with the likely encoding and the command that converts it.
    """
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8")
    except UnicodeDecodeError as error:
        name = None if marked else likely_encoding(content[:SAMPLE])
        if name is None:
            found = f"byte {error.start} is {content[error.start]:#04x}"
            raise UserError(f"{path} is not {'UTF-16' if marked else 'UTF-8'}: {found}") from None
        unix = f"iconv -f {name} -t UTF-8 {shlex.quote(str(path))} > NEW"
        anywhere = f"p = __import__('pathlib').Path({str(path)!r}); p.write_text(p.read_text('{name}'), 'utf-8')"
        message = f"{path} is not UTF-8 but probably {name}; convert it with: {unix}"
        raise UserError(f'{message} — or in its place, on Windows too: python -c "{anywhere}"') from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def likely_encoding(content: bytes) -> str | None:
    """The encoding of a Chinese text that is not UTF-8; None for a UTF-8 text that is damaged, and for no text.

    Bytes of one encoding are often valid in another too: the one in which there are more of the commonest characters
    is taken.
    """
    names = ["UTF-16LE", "UTF-16BE"] if b"\0" in content else ["GB18030", "BIG5-HKSCS"]
    counts = {}
    for name in names:
        with contextlib.suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(name)().decode(content)  # the last character may be cut
            counts[name] = sum(map(text.count, COMMON))
    damaged = sum(map(content.decode(errors="ignore").count, COMMON))
    best = max(counts, key=counts.get, default=None)
    if best and counts[best] > damaged:
        return best
    with contextlib.suppress(UnicodeDecodeError):  # a few words without any of these
        content.decode("gb2312")
        return best
    return None


def read_text(path: str | Path) -> str:
    """The text of a file, as decode(). Raises UserError if it cannot be read."""
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return decode(content, path)


def printable(name: str) -> str:
    """A name of a file, which need not be text: what is none in it is escaped."""
    return name.encode(errors="backslashreplace").decode()


def to_json(value, **options) -> str:
    """JSON for stdout: Chinese as it is, or as JSON's own escapes on a terminal that cannot show all of Unicode."""
    plain = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    return json.dumps(value, ensure_ascii=not plain, **options)
