import os
import resource
import subprocess
import sys

import pytest
from conftest import ROOT

import cli


def make_parser():
    parser = cli.ArgumentParser("a test")
    parser.add_argument("--data_root", default="here", help="a folder")
    parser.add_argument("--ckpt_path", default="there", help="a folder")
    parser.add_argument("--no_pos", action="store_true", help="a switch")
    parser.add_argument("--size", type=cli.number(int, 1), default=3, help="a number")
    return parser


def test_single_dash_spellings_of_the_handout_work():
    args = make_parser().parse_args(["-data_root", "x", "-no_pos", "-size=4"])
    assert (args.data_root, args.no_pos, args.size) == ("x", True, 4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--workdirs/quansongci"], "--ckpt_path workdirs/quansongci was meant"),
        (["--ckpt_pth", "x"], "did you mean --ckpt_path?"),
        (["--size", "0"], "'0' is not a whole number of at least 1"),
        (["--size", "2.5"], "'2.5' is not a whole number"),
        (["--size"], "expected one argument"),
        (["--data"], "unknown argument '--data'"),  # no abbreviations: they break when a flag is added
    ],
)
def test_a_wrong_argument_gets_one_line_and_status_2(args, words, capsys):
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args(args)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and words in err


@pytest.mark.parametrize("text", ["-1", "1.5", "nan", "inf", "x", ""])
def test_number_refuses_what_is_out_of_range(text):
    with pytest.raises(cli.argparse.ArgumentTypeError):
        cli.number(float, 0, below=1)(text)


def test_help_shows_the_defaults_that_say_something():
    parser = make_parser()
    parser.add_argument("--zero", type=float, default=0.0, help="a number")
    parser.add_argument("--none", help="nothing unless given")
    text = parser.format_help()
    assert "(default: here)" in text and "(default: 0.0)" in text
    assert "default: None" not in text and "default: False" not in text


def test_a_bug_keeps_its_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main)


def test_atomic_write_keeps_the_old_file_if_the_block_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), cli.atomic_write(path, "w") as file:
        file.write("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    with cli.atomic_write(path, "w") as file:
        file.write("新\n")
    assert path.read_bytes() == "新\n".encode() and os.listdir(tmp_path) == ["file"]


def test_atomic_write_obeys_the_umask(tmp_path):
    with cli.atomic_write(tmp_path / "file") as file:
        file.write(b"x")
    (tmp_path / "usual").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    """A limit on the size of files stands for the full disk."""
    (tmp_path / "file").write_bytes(b"old")
    code = (
        "import cli, pathlib\n"
        "def main():\n"
        "    with cli.atomic_write(pathlib.Path('file')) as file:\n"
        "        file.write(bytes(1 << 20))\n"
        "cli.run(main)\n"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "File too large" in done.stderr
    assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_output_into_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -c 'import cli; cli.run(lambda: print(\"x\\n\" * 100000))' | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "x\n" and done.stderr == ""
