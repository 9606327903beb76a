"""Which errors are told in one line, and which are a defect of this package.

One line is for what whoever runs the command can mend: a [`UserError`], the operating system's errors, exhausted
memory, a training that has failed. The many explicit checks of this package that raise a plain `ValueError` count as
well. What tells them from a `ValueError` out of the depths, which is useless to a user and needed by whoever mends the
defect, is what raised it: a `raise` statement in a file of this package, not a function of torch or NumPy, and not a
built-in function that was given nonsense.
"""

import dis
import os
from collections.abc import Iterator

from huggingface_hub.errors import StrictDataclassError

from ..errors import UserError
from ..files import DISK_FULL, explained

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

# Longer than anybody reads; a name in it may be longer still.
_LENGTH = 2000

# Recognised by name, because importing them would import torch.
_NAMES = ("TrainingHealthError", "OutOfMemoryError")

DEFECT = "This is a defect of sbce_hf: please report it, with the lines above and the command."


def told_in_one_line(error: BaseException) -> str | None:
    """The line for an error that the user can mend; `None` for a defect.

    An error that another program made of one of ours is told in our words.
    """
    for link in _chain(error):
        if isinstance(link, StrictDataclassError) and link.__cause__ is not None:
            # A field of a recipe or a checkpoint; the error around it is about the dataclass, not for a user.
            return _one_line(str(link.__cause__))
        if _is_the_users(link):
            if isinstance(link, OSError) and link.errno in DISK_FULL and link.strerror == os.strerror(link.errno):
                link = explained(link, str(link.filename or "a file"))
            notes = [f" ({note})" for note in getattr(link, "__notes__", ())]
            return _one_line((str(link) or type(link).__name__) + "".join(notes))
    return None


def _one_line(text: str) -> str:
    line = " ".join(part.strip() for part in text.splitlines())
    return line if len(line) <= _LENGTH else f"{line[:_LENGTH]}..."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_the_users(error: BaseException) -> bool:
    if isinstance(error, (UserError, OSError, MemoryError)) or type(error).__name__ in _NAMES:
        return True
    return isinstance(error, ValueError) and _is_raised_here(error)


def _is_raised_here(error: BaseException) -> bool:
    """Whether a `raise` statement of this package raised it."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None:
        return False
    code = innermost.tb_frame.f_code
    return (
        os.path.abspath(code.co_filename).startswith(PACKAGE)
        and dis.opname[code.co_code[innermost.tb_lasti]] == "RAISE_VARARGS"
    )
