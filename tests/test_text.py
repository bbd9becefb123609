"""Texts in the encodings that people have; what is written for other programs and for terminals."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, run_script, tuned_text

from songci import text
from songci.cli import UserError

POEM = "常记溪亭日暮，沉醉不知归路。兴尽晚回舟，误入藕花深处。争渡，争渡，惊起一滩鸥鹭。\n"
TRADITIONAL = "常記溪亭日暮，沉醉不知歸路。興盡晚回舟，誤入藕花深處。爭渡，爭渡，驚起一灘鷗鷺。\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_go_and_line_ends_are_one(encoding):
    assert text.decode(f"{POEM}\r\n甲\r乙\u2028\x85\f".encode(encoding), "x") == f"{POEM}\n甲\n乙\u2028\x85\f"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [(POEM, "GB18030"), (TRADITIONAL, "BIG5-HKSCS"), (POEM, "UTF-16LE"), (TRADITIONAL, "UTF-16BE")],
)
def test_the_message_names_the_likely_encoding_and_its_commands_convert_the_file(file, tmp_path, content, encoding):
    path = file("a 诗.txt", content.encode(encoding))
    with pytest.raises(UserError) as error:
        text.read_text(path)
    told, _, python = str(error.value).partition(" — or in its place, on Windows too: ")
    assert f"not UTF-8 but probably {encoding}; convert it with: iconv" in told
    subprocess.run([told.partition("with: ")[2].replace("NEW", "new")], shell=True, check=True, cwd=tmp_path)
    assert text.read_text(tmp_path / "new") == content
    env = {**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    subprocess.run([python], shell=True, check=True, env=env)
    assert text.read_text(path) == content


def test_the_encoding_of_every_part_of_a_text_is_found():
    for start in range(0, 2000, 40):
        part = tuned_text(60)[start : start + 40] + POEM[start % 30 :]
        assert text.likely_encoding(part.encode("gb18030")) == "GB18030"


@pytest.mark.parametrize(
    "content", [POEM.encode() + b"\xff", POEM.encode()[:-2], "naïve".encode("latin-1"), bytes(9) + b"\xff"]
)
def test_a_damaged_text_and_what_is_none_are_said_to_be_so(content):
    with pytest.raises(UserError, match=r"x is not UTF-8: byte \d+ is 0x"):
        text.decode(content, "x")


def test_a_file_gets_utf_8_whatever_the_code_page_and_is_read_again(tmp_path):
    done = run_script("hmm.py", "--sample", 5, "--seed", 1, PYTHONIOENCODING="gbk")  # read as UTF-8
    (tmp_path / "o.txt").write_text(done.stdout, encoding="utf-8")
    assert "畅销" in done.stdout
    assert run_script("hmm.py", "--obs", tmp_path / "o.txt", PYTHONIOENCODING="gbk").returncode == 0


def test_a_terminal_gets_what_it_can_show_and_json_is_json(tmp_path):
    pty = pytest.importorskip("pty")

    def shown(*command) -> str:
        parent, child = pty.openpty()
        env = {**os.environ, "PYTHONIOENCODING": "gbk"}
        subprocess.run([sys.executable, "hmm.py", *map(str, command)], env=env, stdout=child, cwd=ROOT, check=True)
        os.close(child)
        return os.read(parent, 1 << 16).decode("gbk")

    model = {"startprob": [1], "transmat": [[1]], "emissionprob": [[1]], "states": ["甲"], "symbols": ["𠺕"]}
    (tmp_path / "model.json").write_text(json.dumps(model), encoding="utf-8")
    sample = ["--model", tmp_path / "model.json", "--sample", 2]
    assert shown(*sample) == "# 甲,甲\r\n?,?\r\n"
    assert json.loads(shown(*sample, "--format", "json")) == {"states": ["甲"] * 2, "observations": ["𠺕"] * 2}
