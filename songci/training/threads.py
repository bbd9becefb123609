"""How many threads compute, and how they wait for each other, on an idle machine and beside other busy programs.

The threads of a product wait awake for the next one, since waking takes longer than most products of a small model. But
beside a busy program one of them has no core, all the others wait for it awake, and training falls to a fifth of its
speed (benchmarks/busy.py). So they wait asleep as long as other programs want the cores. Results are the same either
way.
"""

import os
import time
from functools import cache
from pathlib import Path
from threading import Event, Thread

import torch

import songci

STAT = Path("/proc/stat")  # of Linux
INTERVAL = 0.5  # seconds between looks at the machine
ENOUGH = 0.3  # of a core, in use by other programs


@cache
def considerate_threads(threads: int) -> None:
    """From now on, so many threads wait asleep whenever other programs want the cores, and awake otherwise.

    Only GNU's OpenMP can be told so, that of Linux wheels; and not if the user has told it how to wait.
    """
    if threads > 1 and songci.WAITS_ARE_OURS and STAT.exists():
        Thread(target=watch, args=(threads,), daemon=True).start()


def watch(threads: int) -> None:
    """Has a crowd of teams while other programs use more than the cores that our threads leave."""
    cpus, asleep = os.sched_getaffinity(0), None
    before = used(cpus)
    while True:
        time.sleep(INTERVAL)
        now = used(cpus)
        seconds, everyone, ours = (y - x for x, y in zip(before, now, strict=True))
        before, wanted = now, (everyone - ours) / seconds > len(cpus) - threads + ENOUGH
        if wanted and asleep is None:
            asleep = Event()
            crowd(asleep, len(cpus) // threads)
        elif not wanted and asleep is not None:
            asleep.set()
            asleep = None


def used(cpus: set[int]) -> tuple[float, float, float]:
    """In seconds: the clock, what all programs have used of these cores, and what this one has used."""
    rows = (line.split() for line in STAT.read_text(encoding="ascii").splitlines())
    rows = [row for row in rows if row[0] in {f"cpu{i}" for i in cpus}]
    # user, nice, system; not idle, iowait; irq, softirq: man 5 proc
    ticks = sum(int(number) for row in rows for number in (*row[1:4], *row[6:8]))
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def crowd(end: Event, teams: int) -> None:
    """Until `end`, holds more teams of idle OpenMP threads, so that there are more of them than cores.

    Then none waits awake for more than a moment, whatever GOMP_SPINCOUNT says (libgomp's manual, GOMP_SPINCOUNT).
    """

    def hold() -> None:
        torch.ones(1 << 18).add_(1)  # large enough for a team
        end.wait()

    for _ in range(teams):
        Thread(target=hold, daemon=True).start()
