"""What would not run on another machine, found in the source: on Windows or macOS, or with other packages installed."""

import ast
import re
import sys

import pytest
from conftest import ROOT, run_script

SCRIPTS = sorted([*ROOT.glob("*.py"), *ROOT.glob("songci/**/*.py")])
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_CALLS = {
    "fork",
    "forkpty",
    "getuid",
    "geteuid",
    "getpgid",
    "killpg",
    "mkfifo",
    "setsid",
    "wait",
    "waitpid",
    "uname",
}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_use_nothing_that_is_posix_only(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & POSIX_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in POSIX_MODULES
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in POSIX_CALLS, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_are_opened_as_utf_8(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            literals = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            binary = any("b" in text for text in literals if len(text) <= 3)
            of_os = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("os", "tarfile", "Image")
            if (name in ("read_text", "write_text") and not isinstance(node.func, ast.Name)) or (
                name == "open" and not binary and not of_os
            ):
                keywords = {keyword.arg for keyword in node.keywords}
                assert "encoding" in keywords, f"{path.name}:{node.lineno}"


def test_every_package_that_a_script_imports_is_in_the_requirements():
    """What comes with another package only may be gone with its next version."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {re.match(r"[\w-]*", line)[0] for line in lines if line and not line.startswith("#")}
    imported = set()
    for path in SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    foreign = imported - sys.stdlib_module_names - {path.stem for path in SCRIPTS} - {"songci", "numba"}  # optional
    assert {{"PIL": "pillow"}.get(name, name) for name in foreign} <= listed


@pytest.mark.parametrize("command", [["hmm.py"], ["songci.forms", "--help"]], ids=str)
def test_a_terminal_without_utf_8_gets_escapes_and_no_traceback(command):
    done = run_script(*command, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert "\\u" in done.stdout and done.stdout.isascii()
