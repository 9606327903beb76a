"""What a terminal shows while a command works: this package's progress and warnings, nothing of others."""

import logging
import os
import select
import signal
import sys

from tqdm import tqdm

from ..errors import UserError
from ..text import visible

# Exit status of a program that writes to a pipe which nobody reads any more, as a shell reports it.
UNREAD = 128 + signal.SIGPIPE
# Says of every trunk that its classifier was left out, which is what a trunk is.
_CHATTY = ("timm",)


def set_up(verbose: bool) -> None:
    """Send log lines to standard error, below the progress bar if there is one; call before torch is imported.

    Args:
        verbose: everything that is logged, of other libraries as well; otherwise progress, and warnings of ours.
    """
    # OpenMP's threads spin while they wait for each other. Beside other work on the same cores they wait for one that
    # does not run: small steps took twenty times the CPU time of one thread. Sleeping, they take twice.
    # On idle cores a step of MobileNetV2 takes as long either way, and one of 12 ms 20.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[_Lines()])
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Plain("%(message)s"))
    logging.getLogger("sbce_hf.progress").setLevel(logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if verbose else logging.ERROR)


def quiet_loading() -> None:
    """No bars of transformers for weights that are read within a second; downloads keep theirs.

    Called once transformers is needed anyway.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def require_current_folder() -> None:
    """See that the folder in which the command was given is still there.

    Raises:
        UserError: it is not; every relative path would only be told to be missing.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder has been removed; change to one that is there, with cd") from error


def nobody_reads() -> bool:
    """Whether standard output goes to a program that has ended, as in `sbce config | head`.

    What is left of it goes nowhere then, so that Python does not complain at its end either.
    """
    reader = select.poll()
    reader.register(sys.stdout.fileno(), select.POLLOUT)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in reader.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


class _Lines(logging.Handler):
    """Writes lines where a bar that is drawn makes room for them."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _Plain(logging.Formatter):
    """Log lines with names from anywhere, which cannot control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), kept="\n\t")
