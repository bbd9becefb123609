"""The README's commands, run as they stand there (with tiny sizes), and its links."""

import re
import shlex
import shutil
import subprocess

import pytest
from conftest import ROOT, TINY, run_script, tuned_text

READMES = ["README.md", "README.zh-CN.md"]
SIZES = {
    "train.py": [*TINY, "--iters", "2", "--eval_iters", "1", "--device", "cpu"],
    "sample.py": ["--num_samples", "1", "--max_new_tokens", "3"],
    "songci.evaluate": ["--max_new_tokens", "3", "--samples", "3"],
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks that are marked with a language, or with none."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(name), re.DOTALL | re.MULTILINE)
    return [content for marked, content in fences if marked == language]


def commands(name: str) -> list[str]:
    return [line for block in blocks(name, "sh") for line in block.splitlines()]


def test_both_languages_show_the_same_commands_and_pictures():
    english, chinese = READMES
    assert commands(english) == commands(chinese) != []
    assert re.findall(r"!\[.*?\]\((.*?)\)", text_of(english)) == re.findall(r"!\[.*?\]\((.*?)\)", text_of(chinese))
    assert blocks(english, "") == blocks(chinese, "") != []


def test_every_python_command_of_the_readme_runs(tmp_path):
    # The forms that the commands ask for, the poem that they begin with, and all their characters
    poem = (ROOT / "data" / "attnvis" / "rumengling.txt").read_text(encoding="utf-8").strip()
    text = 2 * f"{poem}\n\n" + "+++清平乐\n春夏秋冬，东红红东。\n\n" * 3 + tuned_text(200)
    for corpus in ("quansongci", "mine"):
        folder = tmp_path / "data" / corpus
        folder.mkdir(parents=True)
        (folder / "input.txt").write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "data" / "attnvis", tmp_path / "data" / "attnvis")
    ran = set()
    for line in commands("README.md"):
        python, *arguments = shlex.split(line)
        if python != "python":
            continue
        if arguments[0] == "-m":
            arguments = arguments[1:]
        script, *flags = arguments
        done = run_script(script, *flags, *SIZES.get(script, []), cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
        ran.add(script)
    assert ran >= {"prepare.py", "train.py", "sample.py", "songci.forms", "songci.evaluate", "songci.export", "hmm.py"}


def test_every_make_command_of_the_readme_is_a_target():
    targets = {line.split()[1] for line in commands("README.md") if line.startswith("make ")}
    assert targets >= {"demo", "test"}
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    "name", [*READMES, *(f"docs/{page}.md" for page in ("theory", "results", "course", "course.zh-CN"))]
)
def test_links_to_files_lead_somewhere(name):
    folder = (ROOT / name).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text_of(name)) if "://" not in link]
    assert not [link for link in links if not (folder / link).exists()]


def test_the_hmm_lines_in_the_readme_are_what_the_script_prints():
    [lines] = [block.splitlines() for block in blocks("README.md", "") if block.startswith("α")]
    printed = [line.strip() for line in run_script("hmm.py", "--lang", "en").stdout.splitlines()]
    assert len(lines) == 3 and set(lines) <= set(printed)
