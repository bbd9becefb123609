"""Which Python on which system installs what the requirements files ask for, from wheels alone, so without a compiler.

✓ is all of it, ✓ − x all but x, which a condition of the file leaves out there, ✗ x nothing, for want of a wheel of x.
It asks the package index and fetches no package, which takes ten minutes or so. It asks with uv, since pip takes
conditions such as `python_version < "3.14"` to be about the Python that pip runs in.

  pip install uv
  python benchmarks/wheels.py
"""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ["requirements.txt", "requirements-page.txt", "requirements-dev.txt"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
SYSTEMS = {  # the name that the table shows: (uv's name, the release of macOS)
    "Linux x86-64": ("x86_64-manylinux_2_28", ""),
    "Linux arm64": ("aarch64-manylinux_2_28", ""),
    "Windows x86-64": ("x86_64-pc-windows-msvc", ""),
    "macOS 14 arm64": ("aarch64-apple-darwin", "14.0"),
    "macOS 13 arm64": ("aarch64-apple-darwin", "13.0"),
    "macOS 14 x86-64": ("x86_64-apple-darwin", "14.0"),
    "Windows arm64": ("aarch64-pc-windows-msvc", ""),
    "Linux musl x86-64": ("x86_64-unknown-linux-musl", ""),
}


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]*", requirement)[0].lower().replace("_", "-")


def cell(lines: list[str], python: str, system: str) -> str:
    """What the table says of one Python on one system, for these lines of requirements."""
    platform, macos = SYSTEMS[system]
    command = ["uv", "pip", "compile", "-", "--only-binary", ":all:", "--no-header", "--no-annotate", "--quiet"]
    command += ["--python-version", python, "--python-platform", platform]
    env = os.environ | ({"MACOSX_DEPLOYMENT_TARGET": macos} if macos else {})
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, encoding="utf-8", env=env)
    if done.returncode == 0:
        found = {name_of(line) for line in done.stdout.splitlines()}
        without = [name_of(line) for line in lines if name_of(line) not in found]
        return f"✓ − {', '.join(without)}" if without else "✓"
    if lacking := re.search(r"Because ([\w.-]+)\S* has no ", done.stderr):
        return f"✗ {lacking[1]}"
    raise SystemExit(f"uv: {done.stderr}")  # no network, for instance


def main() -> None:
    lines = [line for name in FILES for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if re.match(r"\w", line)]
    print(f"| | {' | '.join(PYTHONS)} |\n|---{'|---' * len(PYTHONS)}|")
    for system in SYSTEMS:
        print(f"| {system} | {' | '.join(cell(lines, python, system) for python in PYTHONS)} |", flush=True)


if __name__ == "__main__":
    main()
