"""What all command lines share: the parser, one-line errors, files written whole or not at all, a lock for a folder."""

import argparse
import contextlib
import difflib
import errno
import glob
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

PACKAGE = Path(__file__).resolve().parent


class UserError(Exception):
    """Something a user can put right: the message names the thing, its value and the way out."""


class Interrupted(KeyboardInterrupt):
    """A signal that asked to stop, once what was under way is in order: the process ends with 128 + its number."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def deferred_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call note(number), so that what is under way can end; a second one ends it all at once."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

    def first(number, frame):
        note(number)
        for each, handler in usual.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, first) for each in usual}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, with defaults in --help, one-line errors, and the spellings of the course handout.

    The handout writes some flags with one dash (`-data_root`): every long flag is accepted so. Its two slips, and
    ordinary typing errors, get an error that says what was probably meant.
    """

    def __init__(self, description: str):
        # A description is a module's docstring: its paragraphs are kept as they are.
        super().__init__(program(), description=description, formatter_class=_HelpFormatter, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        values, unknown = self.parse_known_args([self._two_dashes(arg) for arg in args], namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]!r}{self._suggestion(unknown[0])}")
        return values

    def given(self, args=None) -> set[str]:
        """The names of the arguments that the command line has, as attributes of what parse_args() returns."""
        absent = object()  # argparse sets a default only where the namespace has no such attribute
        values = self.parse_args(args, argparse.Namespace(**dict.fromkeys(vars(self.parse_args(args)), absent)))
        return {name for name, value in vars(values).items() if value is not absent}

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def _two_dashes(self, arg: str) -> str:
        name = "-" + arg.partition("=")[0]
        return "-" + arg if re.match(r"-[a-z]\w", arg) and name in self._option_string_actions else arg

    def _suggestion(self, arg: str) -> str:
        if arg.startswith("--workdirs") and "--ckpt_path" in self._option_string_actions:
            return f"; probably --ckpt_path {arg.lstrip('-')} was meant"
        close = difflib.get_close_matches(arg.partition("=")[0], self._option_string_actions, n=1)
        return f"; did you mean {close[0]}?" if close else ""


def program() -> str:
    """The program that is running, as its user called it: train.py, or python -m songci.forms."""
    path = Path(sys.argv[0]).resolve()
    if not path.is_relative_to(PACKAGE):
        return path.name
    return "python -m " + ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__main__")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        """Without a default that says nothing: none, an empty text, a switch that is off."""
        plain = action.default is None or action.default is False or action.default == ""
        return action.help if plain else super()._get_help_string(action)


def number(kind: type, minimum: float, maximum: float = math.inf, *, below: float = math.inf) -> Callable[[str], float]:
    """An argparse `type=` for an int or a float with minimum <= x <= maximum and x < below."""

    def parse(text: str):
        bounds = f"at least {minimum:g}"
        bounds += f" and at most {maximum:g}" if maximum < math.inf else ""
        bounds += f" and below {below:g}" if below < math.inf else ""
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (minimum <= value <= maximum and value < below):  # NaN fails every comparison
            name = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {name} of {bounds}")
        return value

    return parse


def run(main: Callable[[], None]) -> None:
    """Calls a script's main(), and turns what a user can get wrong into one line on stderr and exit status 2.

    A bug in our own code keeps its traceback. Ctrl-C ends with status 130, a deferred SIGTERM with 143, a reader that
    has gone (`| head`) with 141.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            if stream.isatty():  # shows what it can
                stream.reconfigure(errors="replace")
            else:  # for other programs, whatever the console's code page; a name of a file can be no text: escaped
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt as stop:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))
    except BrokenPipeError:
        _end_output()
        sys.exit(141)
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRORS:
            raise
        _fail(f"{error.strerror}: {error.filename or 'while writing'}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(r"can't allocate memory|out of memory", str(error)):
            raise
        _fail("out of memory: choose a smaller batch, window or model, or fewer particles")


_ENVIRONMENT = "ENOSPC EDQUOT EFBIG EACCES EPERM EROFS ENOENT ENOTDIR EISDIR EEXIST ENAMETOOLONG EIO"
_ENVIRONMENT_ERRORS = {getattr(errno, name, errno.ENOSPC) for name in _ENVIRONMENT.split()}  # not every system has all


def _fail(message: str) -> None:
    print(f"{program()}: error: {' '.join(message.split())}", file=sys.stderr)
    _end_output()
    sys.exit(2)


def _end_output() -> None:
    """Flushes stdout. If it takes no more, the rest goes nowhere: else the interpreter would complain of it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def check_writable(flag: str, path: Path) -> None:
    """Raises UserError if no file can be made at `path`, which `flag` gave: before the work, so that none is lost."""
    if path.is_dir():
        raise UserError(f"{flag} {path}: it is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {path}: no permission to write into {path.parent}; choose another folder")


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Opens a temporary file beside `path` that takes its name when the block ends, and vanishes if the block fails.

    Whatever happens, even a kill or a full disk, `path` holds either all of the old content or all of the new.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        # A name of a file that is no text is escaped
        kind = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        with open(temporary, mode.replace("w", "x"), **kind) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that the user knows
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Removes the temporary files that atomic_write() left of these names when its process was killed.

    Other hidden files stay, an editor's .NAME.swp for example, and those of a process that is still at work.
    """
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*"):
            process = path.name.removeprefix(f".{name}.")
            if re.fullmatch("[0-9]+", process) and not _is_another(int(process)):
                with contextlib.suppress(PermissionError):  # on Windows, if somebody has it open
                    path.unlink(missing_ok=True)


def _is_another(process: int) -> bool:
    """Whether a process of this number runs, and is not this one."""
    if process == os.getpid() or sys.platform == "win32":  # where kill() would end it, and no open file can be removed
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # of another user
    return True


@contextlib.contextmanager
def only_process(folder: Path, otherwise: str) -> Iterator[None]:
    """While the block runs, no other process enters it for this folder: by a lock, which ends with the process.

    Raises UserError, with the message `otherwise`, if another is in it. The file .lock stays.
    """
    from filelock import FileLock, Timeout  # here: few commands need it

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(otherwise) from None
