"""Whatever stops a command, as one sentence and an exit status; a traceback only on request."""

from __future__ import annotations

import errno
import sys

ASKED = "FLASHSPEC_TRACEBACK"
EXPECTED = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)
FULL = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "out of memory")
DISK = ("(os error ", "inline_container.cc", " requested and ")  # what Rust, torch and numpy say of a full disk


def in_words(error: BaseException) -> str:
    """One sentence about an exception: what was wrong, or that flashspec has a defect and how to see where."""
    said = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.errno != errno.ENOMEM:
        return f"cannot use {error.filename or 'a file'}: {error.strerror}; check the path, and the room on its disk"
    if isinstance(error, UnicodeError):
        return f"a text is not UTF-8 ({said}); convert it"
    if isinstance(error, MemoryError) or any(word in said for word in FULL):
        return f"not enough memory ({said or 'allocation failed'}); take a smaller model, or fewer and shorter texts"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply to be read; write it flat"
    if any(word in said for word in DISK):
        return f"a file could not be read or written ({said}); check the paths, and the room on their disk"
    if isinstance(error, EXPECTED):
        return said or type(error).__name__
    return f"flashspec has a defect here: {type(error).__name__}: {said or 'no message'}; {ASKED}=1 shows where"


def refuse(message: str) -> int:
    """Print one sentence on standard error; returns the exit status of a refusal."""
    print("error: " + " ".join(message.split()).encode(errors="backslashreplace").decode(), file=sys.stderr)
    return 2
