"""The one exception type for mistakes a user can fix, and how entry scripts show it."""

from __future__ import annotations

import reprlib
import sys
from typing import Callable, Optional

NOT_SAVED = 74  # exit code of a training whose results are not all on the disk: EX_IOERR of sysexits.h
_LONGEST = 2000  # characters of a message
_SHOWN = 80  # characters of a value in a message


class UserError(ValueError):
    """Bad input from outside (config, path, checkpoint, image): the message names it and the way out.

    A message of more than 2000 characters loses its middle: whatever the input, it fits on a screen.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - 500]} [...] {message[-490:]}"
        super().__init__(message)


def run_main(main: Callable[[], Optional[int]]) -> None:
    """Run an entry script's `main`; a `UserError` becomes one line on stderr and exit code 2, and so does a locale
    that cannot represent a path.

    Any other exception keeps its traceback: it is a defect, not a mistake of the user. Ctrl-C exits with 130.
    """
    try:
        code = main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    except UnicodeEncodeError as error:  # only a locale without UTF-8 lacks characters for the name of a file
        if error.encoding.lower().replace("-", "") == "utf8":
            raise
        hint = "set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        sys.stderr.write(f"error: this locale ({error.encoding}) cannot represent {error.object!a}; {hint}\n")
        code = 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    sys.exit(code or 0)


class _Short(reprlib.Repr):
    """Its settings bound the number of entries as well as their length, so that shared entries cannot multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict = 3, 6
        self.maxlist = self.maxtuple = self.maxset = 12
        self.maxstring = self.maxother = _SHOWN

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 300:  # Python refuses to write out much longer ones
            return f"an integer of {value.bit_length()} bits"
        return repr(value)


def shown(value: object) -> str:
    """`repr` of a value for a message, shortened to some hundred characters at most."""
    return _Short().repr(value)


def one_line(error: BaseException, most: int = 300) -> str:
    """The message of an error in one line of at most `most` characters, or its type if it has no message."""
    message = str(error).split("\n----", 1)[0]  # MindSpore appends its own call stacks below such a ruler
    return " ".join(message.split())[:most] or type(error).__name__


_NOT_PRINTABLE = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0xD800, 0xE000))
_ESCAPES = {code: ascii(chr(code))[1:-1] for code in _NOT_PRINTABLE}


def printable(name: str) -> str:
    """A file name for a line of text: control characters and bytes that are not UTF-8 become `\\n` or `\\udcff`."""
    return name.translate(_ESCAPES)
