"""A small corpus and a font of our own making, a data set and a trained model, and ways to run the scripts."""

import csv
import os

# Before torch comes in: small models gain nothing from threads, and lose much when another program takes a core.
os.environ["OMP_NUM_THREADS"] = "1"
# The tests' own servers are on this machine: a proxy that the environment names is not to be asked for them.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))

import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from safetensors.torch import load_file

import prepare
import train
from songci import cli, fonts
from songci.runs import BEST

ROOT = Path(__file__).parent.parent

TINY = ["--n_layer", "2", "--n_head", "2", "--n_embd", "16", "--max_seq_len", "16", "--batchsize", "4"]
# float32, since auto measures the machine anew for each run, and a busy machine can turn it
QUICK = ["--iters", "12", "--eval_interval", "4", "--eval_iters", "2", "--device", "cpu", "--dtype", "float32"]
HAN = [chr(0x4E00 + 7 * i) for i in range(120)]


def song_text(num_poems: int, seed: int = 0) -> str:
    """Nonsense in the form of the corpus: titles, clauses of 4 to 7 characters, 、 here and there."""
    rng = random.Random(seed)
    poems = []
    for _ in range(num_poems):
        tune = rng.choice(["清平乐", "如梦令", "浣溪沙"])
        clauses = [
            "".join(rng.choices(HAN, k=rng.randint(4, 7))) + rng.choice("，。、") for _ in range(rng.randint(3, 7))
        ]
        poems.append(f"+++{tune}\n{''.join(clauses)[:-1]}。\n\n")
    return "".join(poems)


RHYMES = ["东红风空中同", "月雪节别绝叶", "天年烟边前船"]  # classes of rhyming characters
TUNES = {"清平乐": ("4。5。3，4。", "aaa"), "如梦令": ("3。2。2。3。", "aaaa"), "浣溪沙": ("4，3。3。5。4。", "aabb")}


def tuned_text(num_poems: int, seed: int = 0) -> str:
    """Nonsense that keeps the forms and rhymes of TUNES; 如梦令 has a refrain, 清平乐 sometimes a pause."""
    rng = random.Random(seed)
    poems = []
    for _ in range(num_poems):
        tune = rng.choice(sorted(TUNES))
        form, scheme = TUNES[tune]
        groups = dict(zip("ab", rng.sample(RHYMES, 2), strict=True))
        letters, body, used = iter(scheme), "", [""]
        for n, (length, mark) in enumerate(re.findall("([0-9])(.)", form)):
            clause = rng.choices(HAN[:60], k=int(length))
            if mark == "。":
                refrain, group = tune == "如梦令" and n == 2, groups[next(letters)]
                clause[-1] = used[-1] if refrain else rng.choice([c for c in group if c not in used])
                used.append(clause[-1])
            if tune == "清平乐" and n == 1 and rng.random() < 0.5:
                clause.insert(2, "、")
            body += "".join(clause) + mark
        poems.append(f"+++{tune}\n{body}\n\n")
    return "".join(poems)


def box(width: int, height: int):
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in (100, height), (100 + width, height), (100 + width, 0):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


@pytest.fixture(scope="session")
def han_font(tmp_path_factory) -> Path:
    """A font file of our making: each Chinese character is a box, of one of 16 heights, and each mark a small one."""
    sizes = {".notdef": (0, 0), "mark": (200, 200)} | {f"box{i}": (800, 400 + 25 * i) for i in range(16)}
    marks, chars = [*range(0x3000, 0x3040), *range(0xFF00, 0xFF61)], range(0x4E00, 0xA000)
    font = FontBuilder(1000)
    font.setupGlyphOrder([*sizes])
    font.setupCharacterMap(dict.fromkeys(marks, "mark") | {char: f"box{char % 16}" for char in chars})
    font.setupGlyf({name: box(*size) for name, size in sizes.items()})
    font.setupHorizontalMetrics(dict.fromkeys(sizes, (1000, 100)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Boxes for Han", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    path = tmp_path_factory.mktemp("share") / "fonts" / "boxes.ttf"
    path.parent.mkdir()
    font.save(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def fonts_of_no_machine(han_font):
    """What a test draws and says does not depend on the fonts of this machine: it has this one and matplotlib's."""

    @cache
    def installed():
        from matplotlib import font_manager, get_data_path

        font_manager.fontManager.addfont(han_font)
        return {"Boxes for Han": str(han_font), fonts.BUNDLED: f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fonts, "installed", installed)
        yield


@pytest.fixture(autouse=True)
def nothing_said_before():
    """What a test reads on stderr does not depend on the tests before it."""
    fonts.say_once.cache_clear()


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script's main() in this process as its command line does: call(module, *args) → status, stdout, stderr."""

    def run(module, *args):
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, args)])
        status = 0
        capsys.readouterr()  # what came before
        try:
            cli.run(module.main)
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def assert_user_error(call):
    """Checks that a script ends with status 2 and one line on stderr with the given words; returns the line."""

    def check(module, *args, words=()):
        status, out, err = call(module, *args)
        assert status == 2 and err.startswith(f"{cli.program()}: error: "), (status, out, err)
        assert err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err, err
        assert all(str(word) in err for word in words), (words, err)
        return err

    return check


@pytest.fixture
def file(tmp_path):
    """Writes content, text or bytes, into a file of this name: file(name, content) → its path."""

    def write(name, content):
        content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def run_script(name: str, *args, cwd: Path = ROOT, **env) -> subprocess.CompletedProcess:
    """Runs a script, train.py or songci.forms, as a user does, in a process of its own."""
    program = [str(ROOT / name)] if name.endswith(".py") else ["-m", name]
    command, env = [sys.executable, *program, *map(str, args)], {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=300)


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until happened() is true, and fails if that takes longer."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"it did not happen within {seconds} s"
        time.sleep(0.02)


def prepared(folder: Path, text: str) -> Path:
    """A data set made of a text."""
    folder.mkdir()
    (folder / "input.txt").write_text(text, encoding="utf-8")
    prepare.prepare(folder)
    return folder


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """A small prepared data set."""
    return prepared(tmp_path_factory.mktemp("data") / "small", song_text(200))


@pytest.fixture(scope="session")
def tuned_root(tmp_path_factory) -> Path:
    """A small prepared data set whose poems keep forms and rhymes."""
    return prepared(tmp_path_factory.mktemp("data") / "tuned", tuned_text(300))


@pytest.fixture(scope="session")
def tuned_ckpt(tuned_root, tmp_path_factory) -> Path:
    """A tiny model trained on it."""
    return train_tiny(tuned_root, tmp_path_factory.mktemp("workdirs") / "tuned")


def tiny_flags(data_root: Path, ckpt_path: Path, *flags) -> list[str]:
    """The command line that trains a tiny model for twelve iterations, with further flags."""
    return list(map(str, ["--data_root", data_root, "--ckpt_path", ckpt_path, *TINY, *QUICK, *flags]))


def train_tiny(data_root: Path, ckpt_path: Path, *flags) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *tiny_flags(data_root, ckpt_path, *flags)])
        train.main()
    return ckpt_path


@pytest.fixture
def make_trainer(data_root, tmp_path):
    """make_trainer(*flags) → a Trainer of a tiny model, before its first iteration."""
    return lambda *flags: train.Trainer(train.parse_args(tiny_flags(data_root, tmp_path, *flags)))


def after_each_iteration(patch, action) -> None:
    """Lets action(trainer, loss, norm) follow every iteration of a training."""
    iterate = train.Trainer.iterate

    def iterate_and_act(self):
        loss, norm = iterate(self)
        action(self, loss, norm)
        return loss, norm

    patch.setattr(train.Trainer, "iterate", iterate_and_act)


@pytest.fixture(scope="session")
def ckpt_path(data_root, tmp_path_factory) -> Path:
    """A tiny trained model."""
    return train_tiny(data_root, tmp_path_factory.mktemp("workdirs") / "small")


def read_log(folder: Path) -> list[dict]:
    """The rows of a run's log.csv, as text."""
    with (folder / "log.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def logged(folder: Path, name: str) -> list[float]:
    """A column of a run's log.csv."""
    return [float(row[name]) for row in read_log(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path, name: str = "last.pt") -> dict:
    """The tensors of a run's last.pt or best.safetensors."""
    return load_file(folder / name) if name == BEST else torch.load(folder / name)["model"]


def assert_same_run(a: Path, b: Path) -> None:
    """The same weights, bit for bit, and the same log but for the speed."""
    for name in (BEST, "last.pt"):
        one, other = weights(a, name), weights(b, name)
        assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)
    for row, other in zip(read_log(a), read_log(b), strict=True):
        assert {**row, "tokens_per_second": 0} == {**other, "tokens_per_second": 0}


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements-dev.txt")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()
