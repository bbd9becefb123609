"""All that goes beyond the assignment's five scripts: a room for each idea, and a file for each further command."""

import os

SPIN_COUNT = "20000"


def let_threads_sleep() -> bool:
    """Bounds how long threads wait awake for each other where GNU's OpenMP runs them, as in Linux wheels.

    Without a bound they keep their cores busy while they wait, and beside one other busy program sampling by two
    threads falls to a fiftieth of its speed. OpenMP reads this when torch is imported, so this package comes before it.
    Returns whether it was left to us to say: songci/training/threads.py does more.
    """
    free = "OMP_WAIT_POLICY" not in os.environ
    return free and os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT) == SPIN_COUNT


WAITS_ARE_OURS = let_threads_sleep()
