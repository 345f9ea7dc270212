"""Where the command starts: from here on Ctrl-C is answered with one line, while modules are imported, too.

It imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
import sys

from acdc.errors import INTERRUPTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn


def main() -> None:
    """Entry point of the command `acdc`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background jobs
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _unraisable
    while os.open(os.devnull, os.O_RDWR) < 2:  # if stdout or stderr is closed, no file of ours takes its place
        pass
    try:
        try:
            from acdc import cli

            cli.main()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done
    except KeyboardInterrupt:
        _end()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; end at once while modules are imported, which turn it into errors of their own."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end()
        frame = frame.f_back
    signal.signal(signal.SIGINT, lambda *_: _end())  # a second time, while things are being closed
    raise KeyboardInterrupt


def _unraisable(error: Any) -> None:
    """An interrupt in a callback, of which Python would only write a report, ends all."""
    if error.exc_type is KeyboardInterrupt:
        _end()
    sys.__unraisablehook__(error)


def _end() -> NoReturn:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    main()
