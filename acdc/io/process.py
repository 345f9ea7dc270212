"""Starting Python, and what a process has said when it died."""

import re
import sys
from pathlib import Path

# What follows `-m` is run as Python does, but without the current folder on the path: a torch.py or queue.py there
# would be imported. Python's own options for this came with 3.11.
_RUN = (
    f"import sys; sys.path[:] = [*filter(None, sys.path), {str(Path(__file__).resolve().parents[2])!r}]; "
    "del sys.argv[: sys.argv.index('-m') + 1]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
PYTHON = (sys.executable, "-c", _RUN)  # then "-m", a module and its arguments


def last_words(log: Path, begin: int = 0) -> str:
    """Return the reason in what a process has written to its log from byte `begin` on, with ": " before it: the last
    line of its last traceback, or the last line; "" if there is none."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 10_000))
        text = file.read().decode(errors="replace").strip()
    reason = (re.findall(r"^Traceback.*\n(?: .*\n)+(.+)", text, re.MULTILINE) or text.split("\n"))[-1]
    return f": {reason[:300]}" if reason else ""
