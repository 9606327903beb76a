"""Spoil files and read them for some minutes: a table of what came of it, exit status 1 if anything was wrong.

    python scripts/fuzz.py --minutes 30 [--target NAME ...] [--seed N]
    python scripts/fuzz.py --target NAME --case NUMBER [--seed N]      one case again, with its traceback

The readers are those of tests/hostile, which come with a checkout and with the source archive. Each is tried in a
process of its own, whose memory is limited, so that a crash or a bomb ends that process and is counted.
"""

import argparse
import collections
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "hostile"))

# Bytes of address space above what a process starts with.
MEMORY = 4 * 2**30
COLUMNS = ("cases", "read", "user errors", "tracebacks", "hangs", "crashes", "peak MB")
# Tracebacks of one kind that are shown.
SHOWN = 1


def main() -> int:
    """Run all targets, or one case."""
    from readers import READERS

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--target", action="append", choices=READERS, metavar="NAME", help=f"of {', '.join(READERS)}")
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--case", type=int, metavar="NUMBER", help="run this case alone")
    options = parser.parse_args()
    targets = options.target or list(READERS)
    if options.case is not None:
        return _one_case(targets[0], options.seed, options.case)
    seconds = 60 * options.minutes / len(targets)
    total: collections.Counter[str] = collections.Counter()
    print(f"{'target':<16}" + "".join(f"{name:>13}" for name in COLUMNS), flush=True)
    for name in targets:
        counts = _target(name, options.seed, seconds)
        total.update({key: value for key, value in counts.items() if key != "peak MB"})
        total["peak MB"] = max(total["peak MB"], counts["peak MB"])
        _print_row(name, counts)
    _print_row("all", total)
    return int(any(total[name] for name in ("tracebacks", "hangs", "crashes")))


def _print_row(name: str, counts: collections.Counter[str]) -> None:
    print(f"{name:<16}" + "".join(f"{counts[column]:>13}" for column in COLUMNS), flush=True)


def _target(name: str, seed: int, seconds: float) -> collections.Counter[str]:
    """Cases of one reader until the time is over; a process that dies is followed by another."""
    counts: collections.Counter[str] = collections.Counter()
    context, end = multiprocessing.get_context("spawn"), time.monotonic() + seconds
    while time.monotonic() < end or not counts["cases"]:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, name, seed, counts["cases"], seconds))
        process.start()
        there.close()
        _collect(here, counts)
        process.join()
        if process.exitcode:
            print(f"{name}, case {counts['cases']}: the process ended with {process.exitcode}", flush=True)
            counts["crashes"] += 1
            counts["cases"] += 1
        if counts["crashes"] > 20:
            break
    return counts


def _collect(pipe: Connection, counts: collections.Counter[str]) -> None:
    try:
        while True:
            outcome, peak = pipe.recv()
            if outcome is not None:
                counts["cases"] += 1
                counts[outcome] += 1
            counts["peak MB"] = max(counts["peak MB"], peak >> 20)
    except EOFError:
        return


def _work(pipe: Connection, name: str, seed: int, first: int, seconds: float) -> None:
    from readers import READERS, Hang, folder_of, peak_memory, quiet, run_case

    end, kinds = time.monotonic() + seconds, collections.Counter[Any]()
    with tempfile.TemporaryDirectory() as root, quiet():
        folder = folder_of(name, Path(root))
        READERS[name].prepare(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        number = first
        while time.monotonic() < end:
            try:
                outcome = {"read": "read", "refused": "user errors"}[run_case(name, folder, seed, number)]
            except (Exception, Hang) as error:
                outcome = "hangs" if isinstance(error, Hang) else "tracebacks"
                kind = (
                    type(error),
                    *[(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)],
                )
                kinds[kind] += 1
                if kinds[kind] <= SHOWN:
                    print(f"{name}, case {number}:\n{traceback.format_exc()[-3000:]}", flush=True)
            pipe.send((outcome, peak_memory()))
            number += 1
    pipe.close()


def _one_case(name: str, seed: int, number: int) -> int:
    from readers import READERS, folder_of, quiet, run_case

    with tempfile.TemporaryDirectory() as root, quiet():
        folder = folder_of(name, Path(root))
        READERS[name].prepare(folder)
        print(f"{name}, case {number}: {run_case(name, folder, seed, number)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
