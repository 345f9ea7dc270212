"""Ctrl-C: exit code 130 and one line, at every moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from acdc.errors import INTERRUPTED

BEGIN = "import os, signal, sys, time\nfrom acdc import start\nos.write(2, b'.')\n"
PRESS = "os.kill(os.getpid(), signal.SIGINT)"


def interrupted(tmp_path, code: str, *arguments: str, after: float | None = None) -> tuple[int, str]:
    """Start a process that does this after BEGIN, press Ctrl-C, and return its exit code and stderr."""
    command = [sys.executable, "-c", BEGIN + code, *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr.read(1) == "."
        if after is not None:
            time.sleep(after)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert not out
    return process.returncode, err


@pytest.mark.parametrize("after", [0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1])
def test_it_is_one_line_from_the_first_moment_on(tmp_path, after):
    run = ["run", "--task", "ioi", "--model", "tiny", "--examples", "500", "--threshold", "0"]
    assert interrupted(tmp_path, "start.main()", *run, after=after) == (130, f"{INTERRUPTED}\n")


MOMENTS = {
    "in an import that makes another error of it": (
        "open('numpy.py', 'w').write('''import os, signal\ntry: "
        + PRESS
        + "\nexcept BaseException: raise AttributeError''')\n"
        "sys.path.insert(0, '')\nfrom acdc import cli\ncli.main = lambda: __import__('numpy')\nstart.main()"
    ),
    "while Python throws something away": (
        f"class Thing:\n    def __del__(self): {PRESS}\n"
        "from acdc import cli\ncli.main = lambda: [Thing() and None, time.sleep(30)]\nstart.main()"
    ),
    "twice": (
        f"def close():\n    try: {PRESS}\n    finally: {PRESS}; time.sleep(30)\n"
        "from acdc import cli\ncli.app = lambda **_: close()\nstart.main()"
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_it_is_one_line_at_odd_moments(tmp_path, moment):
    assert interrupted(tmp_path, MOMENTS[moment]) == (130, f"{INTERRUPTED}\n")


def test_it_is_nothing_when_all_is_done(tmp_path):
    code = f"import atexit\natexit.register(lambda: {PRESS})\nsys.argv[1:] = ['methods', 'acdc']\n"
    code += "sys.stdout = open(os.devnull, 'w')\nstart.main()"
    assert interrupted(tmp_path, code) == (0, "")


def test_a_job_in_the_background_of_a_shell_ignores_it(tmp_path):
    code = (
        f"signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom acdc import cli\ncli.main = lambda: {PRESS}\nstart.main()"
    )
    assert interrupted(tmp_path, code) == (0, "")
