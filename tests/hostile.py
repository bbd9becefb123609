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
import pytest
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


def fuzz(examples: int):
    """hypothesis' settings: the same cases in each run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


@contextlib.contextmanager
def bounded():
    """Fails if the block hangs; pytest's exception is a BaseException, which no `except Exception` catches."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail(f"more than {SECONDS} s"))
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
    """Truncated, with bits flipped, bytes overwritten, or a part lost or repeated."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        start, size = rng.randrange(max(1, len(content))), rng.choice([1, 2, 4, 8, 64])
        part, rest = content[start : start + size], content[start + size :]
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in part)
        new = rng.choice(
            [b"", part * 2, flipped, rng.randbytes(len(part)), b"\xff" * len(part), bytes(len(part)), None]
        )
        content = content[:start] if new is None else content[:start] + new + rest
    return content


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


def forking():
    """multiprocessing with fork, so that a child has all that was imported and begins in milliseconds."""
    if sys.platform == "darwin":
        pytest.skip("macOS lets no process fork safely once torch has used its libraries")
    return multiprocessing.get_context("fork")


def in_child(function, *args, user: int | None = None, file_size: int | None = None) -> tuple[int, str, int]:
    """Runs a script's function in a process of its own: its exit status, its stderr, megabytes that it took.

    user: as this user, if we are root. file_size: no file may grow longer, which stands for a full disk.
    """
    context = forking()
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limit, allowed = 16 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]
        if allowed == resource.RLIM_INFINITY or allowed > limit:  # so that a failure costs the machine no more
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
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
        send.send((status, err.getvalue(), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10))
        os._exit(0)

    process = context.Process(target=child)
    process.start()
    send.close()
    try:
        return receive.recv() if receive.poll(3 * SECONDS) else (-1, "it hangs", 0)
    except EOFError:
        return -2, "it was killed", 0
    finally:
        process.kill()
        process.join()
