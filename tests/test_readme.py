"""The documents: their commands run as they stand there (with tiny sizes), their links lead somewhere, and both
languages say the same."""

import re
import shlex
import shutil
import subprocess

import pytest
from conftest import ROOT, TINY, run_script, tuned_text

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PAIRS = [(name, name.replace(".md", ".zh-CN.md")) for name in PAGES if name.replace(".md", ".zh-CN.md") in PAGES]
SIZES = {
    "train.py": [*TINY, "--iters", "2", "--eval_iters", "1", "--device", "cpu", "--overwrite"],
    "sample.py": ["--num_samples", "1", "--max_new_tokens", "3"],
    "songci.evaluate": ["--max_new_tokens", "3", "--samples", "3"],
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, *languages: str) -> list[str]:
    """The fenced blocks that are marked with one of the languages; "" is no mark."""
    fences = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text_of(name))
    return [content for marked, content in fences if marked in languages]


def commands(name: str) -> list[str]:
    return "".join(blocks(name, "sh", "powershell")).splitlines()


def prose(name: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", text_of(name))


def anchors(name: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_but_the_results_stands_in_both_languages_and_the_readme_is_short():
    assert [english for english, _ in PAIRS] == ["README.md", "docs/course.md", "docs/guide.md", "docs/theory.md"]
    assert {*PAGES} - {name for pair in PAIRS for name in pair} == {"docs/results.md"}
    assert max(len(text_of(name).splitlines()) for name in PAIRS[0]) <= 130


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_show_the_same_commands_pictures_poems_and_sections(english, chinese):
    assert commands(english) == commands(chinese)
    for pattern in (r"!\[.*?\]\((.*?)\)", r"^(#+) ", r"^\+\+\+.*\n.*", r"^\|.*[✓✗].*"):
        one, other = (re.findall(pattern, text_of(name), re.MULTILINE) for name in (english, chinese))
        assert one == other, pattern
    one, other = (set(re.findall(r"--\w+|test_\w+", text_of(name))) for name in (english, chinese))
    assert one == other


def test_both_languages_of_the_theory_show_the_same_formulas():
    def formulas(name, pattern):
        return [re.sub(r"\\text\{.*?\}", "", formula) for formula in re.findall(pattern, text_of(name), re.DOTALL)]

    english, chinese = "docs/theory.md", "docs/theory.zh-CN.md"
    assert formulas(english, r"\$\$(.*?)\$\$") == formulas(chinese, r"\$\$(.*?)\$\$") != []
    inline = r"(?<!\$)\$([^$]+)\$(?!\$)"  # in another order, and some of them more than once
    assert set(formulas(english, inline)) == set(formulas(chinese, inline))


def test_the_theory_names_every_test_of_its_answers():
    tests = re.findall(r"^def (test_\w+)", text_of("tests/test_theory.py"), re.MULTILINE)
    assert sorted(set(re.findall(r"`(test_\w+)`", text_of("docs/theory.md")))) == sorted(tests) != []


@pytest.mark.slow
def test_every_python_command_of_readme_and_guide_runs(tmp_path):
    # The forms that the commands ask for, the poem that they begin with, and all their characters
    poem = text_of("data/attnvis/rumengling.txt").strip()
    line = "红红红红红红"
    draft = f"+++浣溪沙\n{line}春。{line}人。{line}人。\n{line}红，{line}人。{line}春。\n\n"
    text = 2 * f"{poem}\n\n" + "+++清平乐\n春夏秋冬，东红红东。\n\n" * 3 + 3 * draft + tuned_text(200)
    for folder in ("attnvis", "hmm"):
        shutil.copytree(ROOT / "data" / folder, tmp_path / "data" / folder)
    for corpus in ("quansongci", "mine", "shi"):
        own = text.replace("浣溪沙", "七言律诗") if corpus == "shi" else text + "+++七言律诗\n春。\n\n"
        (tmp_path / "data" / corpus).mkdir()
        (tmp_path / "data" / corpus / "input.txt").write_text(own, encoding="utf-8")
    ran = set()
    for line in dict.fromkeys(commands("README.md") + commands("docs/guide.md")):
        program, *arguments = shlex.split(line)
        if program != "python":
            continue
        script, *flags = arguments[1:] if arguments[0] == "-m" else arguments
        done = run_script(script, *flags, *SIZES.get(script, []), cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
        ran.add(script)
    rooms = {f"songci.{room}" for room in ("forms", "evaluate", "export", "attention")}
    assert ran == {"prepare.py", "train.py", "sample.py", "hmm.py", *rooms}


def test_every_make_command_is_a_target():
    named = {target for name in PAGES for target in re.findall(r"(?:^|`)make ([a-z-]+)", text_of(name), re.MULTILINE)}
    assert named >= {"demo", "test", "test-all", "ablation", "exercise"}
    for target in named:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)]+)\)", prose(name)):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), link


@pytest.mark.parametrize(("name", "language"), [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_the_hmm_lines_in_the_readme_are_what_the_script_prints(name, language):
    [lines] = [block.splitlines() for block in blocks(name, "") if block.startswith("α")]
    printed = [line.strip() for line in run_script("hmm.py", "--lang", language).stdout.splitlines()]
    assert len(lines) == 4 and set(lines) <= set(printed)
