import errno
import os
import resource
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from songci import cli


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


def test_arguments_that_are_given_are_not_those_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--size", "7"])
    assert make_parser().parse_args([]).size == 3 and make_parser().parse_args().size == 7


@pytest.mark.parametrize("text", ["-1", "1", "1.5", "nan", "inf", "x", ""])
def test_number_refuses_what_is_out_of_range(text):
    with pytest.raises(cli.argparse.ArgumentTypeError):
        cli.number(float, 0, below=1)(text)


def test_number_takes_the_bounds_themselves():
    assert cli.number(float, 0, below=1)("0") == 0
    assert [cli.number(int, 1, 9)(text) for text in "19"] == [1, 9]
    with pytest.raises(cli.argparse.ArgumentTypeError, match="at least 1 and at most 9"):
        cli.number(int, 1, 9)("10")


def test_help_shows_the_defaults_that_say_something():
    parser = make_parser()
    parser.add_argument("--zero", type=float, default=0.0, help="a number")
    parser.add_argument("--none", help="nothing unless given")
    parser.add_argument("--empty", default="", help="nothing unless given")
    text = parser.format_help()
    assert "(default: here)" in text and "(default: 0.0)" in text
    assert not any(f"default: {nothing})" in text for nothing in ("None", "False", ""))


def run_and_raise(error):
    def main():
        raise error

    cli.run(main)


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EBADF, ""), RuntimeError("of shapes")], ids=repr)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_and_raise(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (cli.UserError("one\n  line"), "one line"),
        (MemoryError(), "out of memory: choose"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory: choose"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: choose"),
        (OSError(errno.ENOSPC, "No space left"), "No space left: while writing"),
        (OSError(errno.EROFS, "Read-only file system", "x.pt"), "Read-only file system: x.pt"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "xx"), "File name too long: xx"),
    ],
    ids=repr,
)
def test_what_a_user_can_put_right_is_one_line_and_status_2(error, words, capsys):
    with pytest.raises(SystemExit) as stop:
        run_and_raise(error)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and f"error: {words}" in err


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 130), (cli.Interrupted(signal.SIGTERM), 143)])
def test_an_interruption_is_told_by_the_status(stop, status, capsys):
    with pytest.raises(SystemExit) as end:
        run_and_raise(stop)
    assert end.value.code == status and capsys.readouterr().err == "interrupted\n"


def test_a_first_signal_is_noted_and_a_second_one_ends_it():
    noted, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), cli.deferred_signals(noted.append):
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one was noted too")
    assert noted == [signal.SIGINT]
    with cli.deferred_signals(noted.append):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


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


def test_atomic_write_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """Or a power failure could leave an empty file in the place of the old one."""
    steps, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda file: steps.append(os.fstat(file).st_size))
    monkeypatch.setattr(os, "replace", lambda *names: steps.append("replace") or replace(*names))
    with cli.atomic_write(tmp_path / "file") as file:
        file.write(b"0123456789")
        assert len(os.listdir(tmp_path)) == 1  # beside it: across file systems there is no rename
    assert steps == [10, "replace"] and os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_not_there_is_told_by_the_name_that_the_user_knows(tmp_path):
    with pytest.raises(FileNotFoundError) as error, cli.atomic_write(tmp_path / "none" / "file"):
        pass
    assert error.value.filename == str(tmp_path / "none" / "file")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_atomic_write_obeys_the_umask_and_leaves_it(tmp_path, mask):
    before = os.umask(mask)
    try:
        with cli.atomic_write(tmp_path / "file") as file:
            file.write(b"x")
        (tmp_path / "usual").write_bytes(b"x")
        assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    """A limit on the size of files stands for the full disk."""
    (tmp_path / "file").write_bytes(b"old")
    code = (
        "import pathlib\n"
        "from songci import cli\n"
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


BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}  # what is left in the buffer must not be complained of at the end


@pytest.mark.parametrize("lines", [1, 100_000])  # 1: it stays in the buffer to the end
def test_output_into_a_closed_pipe_is_no_traceback(lines):
    code = (
        f"import sys; from songci import cli; sys.stdin.read(); cli.run(lambda: [print('x') for _ in range({lines})])"
    )
    pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=BUFFERED, text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.close()  # now it begins
        assert process.stderr.read() == "" and process.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_output_that_finds_no_room_at_the_very_end_is_one_line():
    command = [sys.executable, "-c", "from songci import cli; cli.run(lambda: print('x'))"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, env=BUFFERED, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.endswith("error: No space left on device: while writing\n"), done
