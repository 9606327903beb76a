import fcntl
import logging
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from sbce_hf import progress
from sbce_hf.progress import (
    LABELLING,
    TRAINING,
    Bar,
    Itinerary,
    about,
    finished_before,
    remember_interrupts,
    tracked,
)

EXPECTED = {
    "bce": [(TRAINING, 600.0), (LABELLING, 120.0)],
    "round_1": [(TRAINING, 300.0), (LABELLING, 120.0)],
}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger=progress.__name__)
    return lambda: [record.getMessage() for record in caplog.records if record.name == progress.__name__]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "5 s"),
        (42, "40 s"),
        (54.9, "55 s"),
        (55, "1 min"),
        (734, "12 min"),
        (3570, "1 h"),
        (3600, "1 h"),
        (7700, "2 h 10 min"),
        (85800, "23 h 50 min"),
    ],
)
def test_times_in_words(seconds, words):
    assert about(seconds) == words


def test_lines_at_tenths_with_what_is_left_of_part_and_run(clock, lines):
    itinerary = Itinerary(["bce", "round_1"], EXPECTED)
    with itinerary.stage("bce"):
        with Bar(TRAINING, 100) as bar:
            for _ in range(25):
                clock[0] += 6
                bar.note("loss 0.5")
                bar.update()
        with Bar(LABELLING, 10) as bar:
            clock[0] += 20
            bar.update(5)
    # A tenth is 60 seconds; 90 images at 6 seconds are 9 minutes, then 2 of labelling, then 7 of the round.
    assert lines()[0] == (
        "stage 1 of 2, bce: training 10 %, 0.167 images/s, 11 min left, 18 min for the run, loss 0.5"
    )
    assert len([line for line in lines() if "training" in line]) == 2
    assert lines()[2] == "stage 1 of 2, bce: labelling 50 %, 0.25 images/s, 20 s left, 7 min for the run"
    assert lines()[3] == "stage 1 of 2, bce: 2 min 50 s"


def test_a_quick_tenth_is_not_a_line(clock, lines):
    with Bar("checking images", 1000) as bar:
        for _ in range(1000):
            clock[0] += 0.025
            bar.update()
    assert [line.split(",")[0] for line in lines()] == ["checking images 40 %", "checking images 80 %"]


def test_what_is_continued_counts_its_own_speed(clock, lines):
    with Bar(TRAINING, 100, initial=50) as bar:
        clock[0] += 20
        bar.update(20)
    assert lines() == ["training 70 %, 1 images/s, 30 s left"]


def test_what_a_continued_stage_has_finished_is_not_left(clock, lines):
    itinerary = Itinerary(["irn"], {"irn": [(LABELLING, 600.0), (TRAINING, 600.0), (LABELLING, 600.0)]})
    with itinerary.stage("irn"):
        finished_before(LABELLING)
        finished_before(TRAINING)
        with Bar(LABELLING, 10, initial=5) as bar:
            clock[0] += 60
            bar.update(3)
    assert lines()[0] == "stage 1 of 1, irn: labelling 80 %, 0.05 images/s, 40 s left"
    # Outside of a run there is nobody to be told.
    finished_before(LABELLING)


def test_the_last_stage_has_no_run_after_it(clock, lines):
    itinerary = Itinerary(["bce", "round_1"], EXPECTED)
    itinerary.passed("bce")
    with itinerary.stage("round_1"), Bar(LABELLING, 10) as bar:
        clock[0] += 12
        bar.update(2)
    said = ["bce: finished before", "round_1: labelling 20 %, 0.167 images/s, 50 s left", "round_1: 12.0 s"]
    assert lines() == [f"stage {number} of 2, {text}" for number, text in zip((1, 2, 2), said, strict=True)]
    # Outside of a run nothing is said of one.
    with Bar(LABELLING, 10) as bar:
        clock[0] += 12
        bar.update(2)
    assert lines()[-1] == "labelling 20 %, 0.167 images/s, 50 s left"


def test_a_stage_that_fails_is_not_said_to_be_done(lines):
    with pytest.raises(ValueError), Itinerary(["bce"]).stage("bce"):
        raise ValueError
    assert lines() == []
    assert progress._CURRENT.get() is None


def test_one_of_several_processes_shows(clock, lines):
    with Itinerary(["bce"], shown=False).stage("bce"), Bar(TRAINING, 10, shown=False) as bar:
        clock[0] += 100
        bar.update(5)
    assert lines() == []


def test_items_are_passed_on(lines):
    assert list(tracked(iter("abc"), "reading", 3)) == ["a", "b", "c"]


IN_A_TERMINAL = """
import logging, time
from sbce_hf.progress import Bar, Itinerary
logging.basicConfig(level=logging.INFO, format="LINE %(message)s")
with Itinerary(["bce"], {"bce": [("training", 5.0)]}).stage("bce"), Bar("training", 20) as bar:
    for _ in range(20):
        time.sleep(0.02)
        bar.note("loss 0.5")
        bar.update()
"""


@pytest.mark.parametrize("columns", [120, 0])
def test_a_terminal_gets_a_bar_and_one_line(columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    with subprocess.Popen([sys.executable, "-c", IN_A_TERMINAL], stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:
                # The other end is closed.
                break
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    # In 80 columns not all has room.
    assert "stage 1 of 1, bce: training" in text and "%|" in text
    assert "images/s, 5 s left" in text and (columns == 0 or "left, loss 0.5" in text)
    assert text.count("LINE") == 1 and "LINE stage 1 of 1, bce: " in text


def test_an_interrupt_that_a_finaliser_swallows_comes_again(monkeypatch, capfd):
    """Python prints and forgets what is raised there."""

    class Waits:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    try:
        remember_interrupts()
        waits = Waits()
        del waits
        with Bar("counting", 2) as bar, pytest.raises(KeyboardInterrupt):
            bar.update()
        assert "Traceback" not in capfd.readouterr().err
    finally:
        remember_interrupts()
        signal.signal(signal.SIGINT, before)
