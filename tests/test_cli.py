import errno
import os
import signal
import subprocess
import sys
from functools import partial
from unittest.mock import Mock

import pytest
from conftest import ROOT

from songci import cli


def make_parser():
    parser = cli.ArgumentParser("a test")
    parser.add_argument("--data_root", default="here", help="a folder")
    parser.add_argument("--ckpt_path", help="nothing unless given")
    parser.add_argument("--no_pos", action="store_true", help="a switch")
    parser.add_argument("--size", type=cli.number(int, 1), default=3, help="a number")
    parser.add_argument("--zero", type=float, default=0.0, help="a number")
    parser.add_argument("--empty", default="", help="nothing unless given")
    return parser


def test_single_dash_spellings_of_the_handout_work_from_a_list_and_from_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "-size", "7"])
    args = make_parser().parse_args(["-data_root", "x", "-no_pos", "-size=4"])
    assert (args.data_root, args.no_pos, args.size) == ("x", True, 4)
    assert make_parser().parse_args([]).size == 3 and make_parser().parse_args().size == 7


def test_help_shows_the_defaults_that_say_something():
    text = make_parser().format_help()
    assert "(default: here)" in text and "(default: 0.0)" in text
    assert not any(f"default: {nothing})" in text for nothing in ("None", "False", ""))


def test_number_takes_its_bounds_and_refuses_what_is_out_of_them():
    assert cli.number(float, 0, below=1)("0") == 0 and [cli.number(int, 1, 9)(text) for text in "19"] == [1, 9]
    with pytest.raises(cli.argparse.ArgumentTypeError, match="at least 1 and at most 9"):
        cli.number(int, 1, 9)("10")
    for text in ("-1", "1", "1.5", "nan", "inf", "x", ""):
        with pytest.raises(cli.argparse.ArgumentTypeError, match="not a number of at least 0 and below 1"):
            cli.number(float, 0, below=1)(text)


def parse(*args):
    return partial(make_parser().parse_args, args)


def fail(error):
    return Mock(side_effect=error)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (parse("--workdirs/quansongci"), "--ckpt_path workdirs/quansongci was meant"),
        (parse("--ckpt_pth", "x"), "did you mean --ckpt_path?"),
        (parse("--size", "0"), "'0' is not a whole number of at least 1"),
        (parse("--size", "2.5"), "'2.5' is not a whole number"),
        (parse("--size"), "expected one argument"),
        (parse("--data"), "unknown argument '--data'"),  # no abbreviations: they break when a flag is added
        (fail(cli.UserError("one\n  line")), "error: one line"),
        (fail(MemoryError()), "error: out of memory: choose"),
        (fail(RuntimeError("CUDA out of memory. Tried to allocate")), "error: out of memory: choose"),
        (fail(RuntimeError("DefaultCPUAllocator: can't allocate memory")), "error: out of memory: choose"),
        (fail(OSError(errno.ENOSPC, "No space left")), "error: No space left: while writing"),
        (fail(OSError(errno.EFBIG, "File too large")), "error: File too large: while writing"),
        (fail(OSError(errno.EROFS, "Read-only file system", "x.pt")), "error: Read-only file system: x.pt"),
        (fail(OSError(errno.ENAMETOOLONG, "File name too long", "xx")), "error: File name too long: xx"),
    ],
)
def test_what_a_user_can_put_right_is_one_line_and_status_2(main, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and words in err


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EBADF, ""), RuntimeError("of shapes")], ids=repr)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.run(fail(error))


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 130), (cli.Interrupted(signal.SIGTERM), 143)])
def test_an_interruption_is_told_by_the_status(stop, status, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(fail(stop))
    assert end.value.code == status and capsys.readouterr().err == "interrupted\n"


def test_a_first_signal_is_noted_and_a_second_one_ends_it():
    noted, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), cli.deferred_signals(noted.append):
        assert signal.getsignal(signal.SIGINT) is not before
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one was noted too")
    assert noted == [signal.SIGINT]
    with cli.deferred_signals(noted.append):
        pass
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
    with pytest.raises(FileNotFoundError) as error, cli.atomic_write(tmp_path / "none" / "file"):
        pass
    assert error.value.filename == str(tmp_path / "none" / "file")  # the name that the user knows


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_atomic_write_is_on_the_disk_before_it_takes_its_name_and_obeys_the_umask(tmp_path, monkeypatch, mask):
    """Or a power failure could leave an empty file in the place of the old one."""
    steps, replace, before = [], os.replace, os.umask(mask)
    monkeypatch.setattr(os, "fsync", lambda file: steps.append(os.fstat(file).st_size))
    monkeypatch.setattr(os, "replace", lambda *names: steps.append("replace") or replace(*names))
    try:
        with cli.atomic_write(tmp_path / "file") as file:
            file.write(b"0123456789")
            assert len(os.listdir(tmp_path)) == 1  # beside it: across file systems there is no rename
        assert steps == [10, "replace"] and os.listdir(tmp_path) == ["file"]
        (tmp_path / "usual").write_bytes(b"x")
        assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
    finally:
        assert os.umask(before) == mask


def test_only_what_an_ended_process_of_ours_has_left_is_removed(tmp_path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        left = [f".a[1].txt.{number}" for number in (ended.pid, os.getpid(), 10**30)]
        kept = [".a[1].txt", "a[1].txt", ".a[1].txt.swp", ".a[1].txt.5.7", ".a[1].txt.５", ".a1.txt.5", ".b.txt.5"]
        kept.append(f".a[1].txt.{running.pid}")
        for name in left + kept:
            (tmp_path / name).touch()
        cli.remove_leftovers(tmp_path, ["a[1].txt"])
        assert sorted(os.listdir(tmp_path)) == sorted(kept)
        running.communicate(b"\n")
    monkeypatch.setattr(sys, "platform", "win32")  # where a signal of number 0 is Ctrl-C
    monkeypatch.setattr(os, "kill", Mock(side_effect=AssertionError))
    cli.remove_leftovers(tmp_path, ["a[1].txt"])
    assert sorted(os.listdir(tmp_path)) == sorted(kept[:-1])


def test_a_process_alone_has_the_folder_until_it_ends_even_by_a_kill(tmp_path):
    code = (
        f"import pathlib\nwith cli.only_process(pathlib.Path({str(tmp_path)!r}), ''): print('in', flush=True); input()"
    )
    with start(f"exec({code!r})", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(cli.UserError, match="busy"), cli.only_process(tmp_path, "busy"):
            pass
        other.kill()
        other.wait()
        with cli.only_process(tmp_path, "busy"):
            pass


def start(code: str, **streams) -> subprocess.Popen:
    """Python, whose buffer is not to be complained of at the end."""
    env, command = {**os.environ, "PYTHONUNBUFFERED": ""}, [sys.executable, "-c", f"from songci import cli; {code}"]
    return subprocess.Popen(command, cwd=ROOT, env=env, encoding="utf-8", stderr=subprocess.PIPE, **streams)


@pytest.mark.parametrize("lines", [1, 100_000])  # 1: it stays in the buffer to the end
def test_output_into_a_closed_pipe_is_no_traceback(lines):
    code = f"import sys; sys.stdin.read(); cli.run(lambda: [print('x') for _ in range({lines})])"
    with start(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.close()  # now it begins
        assert process.stderr.read() == "" and process.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_output_that_finds_no_room_at_the_very_end_is_one_line():
    with open("/dev/full", "w") as full, start("cli.run(lambda: print('x'))", stdout=full) as process:
        err = process.stderr.read()
    assert process.returncode == 2 and err.endswith("error: No space left on device: while writing\n"), err
