"""What the tests on hostile files share: damaging a file, and bounds of time."""

import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import warnings

import hypothesis.strategies as st
from conftest import tuned_text
from hypothesis import HealthCheck, settings

from songci import cli

SECONDS = 20  # for a case: it takes milliseconds, on a busy machine tenths of a second

ANY_TEXT = st.text(st.characters(), max_size=40)  # surrogates too
NEAR_TEXT = st.text(st.sampled_from("+\n\r\t \0。，、！.（）()清平乐如梦令东红一丁七□é😀\u2028"), max_size=200)
POEMS = st.lists(st.one_of(NEAR_TEXT, st.sampled_from(tuned_text(20).split("\n\n")))).map("\n\n".join)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=10,
).map(json.dumps)

LOST = object()  # in place of a value: its key or index is taken out
HOSTILE = [None, True, -1, 0, 1, 2**31, 2**70, 10**400, 0.5, -1.0, 1e308, float("nan"), float("inf"), "", "x", "\ud800"]
HOSTILE += [[], [[]], {}, {"x": 1}, LOST, "9" * 50, ["a"], "＋１"]


class TooLong(BaseException):
    """Not an Exception: what catches everything that a damaged file can raise must not catch this."""


def fuzz(examples: int):
    """hypothesis' settings: the same cases in each run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


@contextlib.contextmanager
def bounded():
    """Raises TooLong if the block hangs."""

    def stop(number, frame):
        raise TooLong(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def case(kind: str, function, *args):
    """A result, or None for what a user is told in one line; all else, and a hang, is raised."""
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with bounded(), silent[0], silent[1], warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it would be a second line
        try:
            return function(*args)
        except cli.UserError as error:
            assert str(error).strip()
            return None


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Truncated, with bits flipped, bytes overwritten, or a part lost, repeated or doubled."""
    kind, place = rng.randrange(6), rng.randrange(max(1, len(content)))
    size = min(rng.choice([1, 2, 4, 8, 64]), len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[place + size :]
    if kind == 2:
        return content[:place] + content[place : place + size] * 2 + content[place + size :]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20]) if changed else 0):
        place = rng.randrange(len(changed))
        if kind == 3:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 4:
            changed[place] = rng.choice([0, 0xFF, 0x7F, 0x80, rng.randrange(256)])
        else:
            changed[place : place + size] = rng.choice([b"\xff", b"\0"]) * len(changed[place : place + size])
    return bytes(changed)


def leaves(value, path=()) -> list[tuple]:
    """The places of a nested value: paths of keys, those of containers too."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, child in children for place in leaves(child, (*path, key))]


def replaced(value, path: tuple, new):
    """A copy of a nested value with `new` at the place."""
    if not path:
        return new
    copy = value.copy()
    if len(path) == 1 and new is LOST:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def in_child(function, *args, user: int | None = None, file_size: int | None = None) -> tuple[int, str, int]:
    """Runs a script's function in a process of its own: its exit status, its stderr, megabytes that it took.

    user: as this user, if we are root. file_size: no file may grow longer, which stands for a full disk.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, function, args, user, file_size))
    process.start()
    send.close()
    try:
        result = receive.recv() if receive.poll(3 * SECONDS) else (-1, "it hangs", 0)
    except EOFError:
        result = (-2, "it was killed", 0)
    process.kill()
    process.join()
    return result


def _child(send, function, args, user, file_size) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # so that a failure costs the machine no more
    if user is not None and os.getuid() == 0:
        os.setgid(user)
        os.setuid(user)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    status, err = 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            cli.run(lambda: function(*args))
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:  # what would be a traceback
            status = 1
            print(repr(error), file=sys.stderr)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    send.send((status, err.getvalue(), grown))
    send.close()
    os._exit(0)
