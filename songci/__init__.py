"""All that goes beyond the assignment's five scripts: a room for each idea, and a file for each further command."""

import os


def let_threads_sleep() -> str:
    """How long the threads of a product wait awake for the next one, where GNU's OpenMP runs them, as in Linux wheels.

    Without a bound they keep their cores busy while they wait, and beside one other busy program training can fall to a
    sixth of its speed (benchmarks/busy.py). OpenMP reads this when torch is imported, so this package comes before it.
    """
    chosen = "OMP_WAIT_POLICY" in os.environ  # by the user, whose word it is
    return "" if chosen else os.environ.setdefault("GOMP_SPINCOUNT", "20000")


SPIN_COUNT = let_threads_sleep()
