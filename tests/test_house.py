"""The house as docs and readers expect it: what stands where, which way imports go, and what other machines need."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("songci/**/*.py")])
SCRIPTS = {"prepare", "model", "train", "sample", "hmm"}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))

# What a room may import beside itself, songci.cli and packages
ROOMS = {
    "model": set(),
    "hmm": {"songci.hmm"},
    "songci.cli": set(),
    "songci.text": set(),
    "songci.fonts": set(),
    "songci.corpus": set(),
    "songci.runs": {"model", "songci.corpus"},
    "songci.machine": set(),
    "songci.curves": {"songci.fonts"},
    "songci.training": {"model", "songci.corpus", "songci.fonts", "songci.machine", "songci.runs"},
    "songci.forms": {"songci.corpus"},
    "songci.writing": {"songci.corpus", "songci.forms", "songci.machine", "songci.runs"},
    "songci.hmm": {"songci.fonts"},
}

MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it; of our own, those that define the names."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found.add(inner if inner in MODULES else node.module)
    return found


def room_of(module: str) -> str:
    """songci.corpus of songci.corpus.windows; songci.cli and model of themselves."""
    return ".".join(module.split(".")[:2])


def test_the_top_level_shows_the_assignment_and_nothing_else():
    assert {path.stem for path in ROOT.glob("*.py")} == SCRIPTS
    listed = "prepare.py model.py train.py sample.py hmm.py attnvis.ipynb README.md README.zh-CN.md LICENSE Makefile "
    listed += "pyproject.toml requirements.txt requirements-dev.txt requirements-page.txt requirements-write.txt "
    listed += "songci data docs tests benchmarks findings"
    assert {top for top in tops() if not top.startswith(".")} == set(listed.split())


def tops() -> set[str]:
    """The names at the top: those that git keeps; without git, as in a downloaded archive, all that are not ignored."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "-c", "safe.directory=*", "ls-files"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
        return {line.split("/")[0] for line in done.stdout.splitlines()}
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()]
    return {path.name for path in ROOT.iterdir() if not any(path.match(pattern) for pattern in ignored)}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    paths = [path for name, path in MODULES.items() if room_of(name) == room]
    assert paths
    used = {room_of(module) for path in paths for module in imports(path) if module in MODULES} - {
        room,
        "songci",
        "songci.cli",
        "songci.text",
    }
    assert used <= ROOMS[room]


def test_no_script_is_imported_but_the_model_and_no_modules_import_each_other_in_a_circle():
    graph = {module: imports(path) & MODULES.keys() for module, path in MODULES.items()}
    assert not set().union(*graph.values()) & (SCRIPTS - {"model"})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_what_writes_and_what_reads_a_run_imports_no_torch_at_the_top_of_a_file():
    """Only within functions, for a GPU and for those who train."""
    paths = [
        path for name, path in MODULES.items() if room_of(name) in ("songci.writing", "songci.forms", "songci.corpus")
    ]
    for path in [
        *paths,
        ROOT / "sample.py",
        *(ROOT / "songci" / f"{name}.py" for name in ("runs", "machine", "curves")),
    ]:
        tops = [node for node in tree(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        named = {getattr(node, "module", None) or name.name for node in tops for name in node.names}
        assert not {name for name in named if name.split(".")[0] in ("torch", "model") or "training" in name}, path


def test_the_model_needs_torch_and_the_standard_library_alone():
    assert {module.split(".")[0] for module in imports(ROOT / "model.py")} - sys.stdlib_module_names == {"torch"}


@every_file
def test_nothing_runs_at_import(path):
    """Only definitions stand outside of functions; what is computed there has a name."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)
    for node in tree(path).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        optional = isinstance(node, ast.Try) and ast.unparse(node.handlers[0].type) == "ImportError"
        assert isinstance(node, definitions) or docstring or main or optional, f"{path.name}:{node.lineno}"


def test_every_package_that_is_imported_is_in_the_requirements():
    """What comes with another package only may be gone with its next version. Optional ones are tried for."""
    listed, optional, page = (
        set(re.findall(r"^\w+", (ROOT / name).read_text(encoding="utf-8").replace("-", "_"), re.MULTILINE))
        for name in ("requirements.txt", "requirements-dev.txt", "requirements-page.txt")
    )
    foreign = {module.split(".")[0].replace("PIL", "pillow") for path in FILES for module in imports(path)}
    foreign -= sys.stdlib_module_names | SCRIPTS | {"songci"}
    assert foreign - listed <= {"tensorboard", "numba", "threadpoolctl"} & optional | page


def test_what_decides_data_and_results_is_pinned():
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"torch", "opencc"} <= {*pinned}  # of numpy and networkx, requirements.txt says why not


def test_a_package_that_a_python_may_lack_is_imported_by_the_tests_that_need_it_alone():
    """They say why they are skipped; an import would end all tests of a file."""
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    conditional = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in lines if ";" in line.partition("#")[0]}
    assert conditional == {"hmmlearn", "tshet_uinh"}
    for path in ROOT.glob("tests/*.py"):
        assert not {module.split(".")[0] for module in imports(path)} & conditional, path.name


def test_what_another_program_says_is_read_in_a_named_encoding():
    """text=True would take the system's, which on a Chinese Windows is GBK."""
    for path in [*FILES, *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                flags = {ast.unparse(keyword) for keyword in node.keywords}
                assert not flags & {"text=True", "universal_newlines=True"}, f"{path.name}:{node.lineno}"


POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_CALLS = {"fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "mkfifo", "setsid", "wait", "waitpid"}


@every_file
def test_nothing_is_posix_only_and_texts_are_opened_as_utf_8(path):
    assert not {module.split(".")[0] for module in imports(path)} & POSIX_MODULES
    for node in ast.walk(tree(path)):
        code = ast.unparse(node)
        if isinstance(node, ast.Attribute):
            assert code.removeprefix("os.") not in POSIX_CALLS, f"{path.name}:{node.lineno}"
        elif isinstance(node, ast.Call) and re.search(r"\bopen$|\.(read|write)_text$", name := ast.unparse(node.func)):
            binary = re.search(r"'[rwxa]b'", code) or name in ("os.open", "tarfile.open", "Image.open")
            assert binary or "encoding=" in code or "**" in code, f"{path.name}:{node.lineno}"
