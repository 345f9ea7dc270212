"""`python -m tests.benchmarks --out FILE.json --md FILE.md [--device cuda] [--quick] [--only NAME] [--peer PYTHON]`

Every part runs in a process of its own. The exit code is 1 where edges differ from the naive oracle's, and else 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import peer
from tests.benchmarks.models import FULL, LARGER, LLAMA, QUICK
from tests.benchmarks.tables import markdown


def machine(device: torch.device) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line[:10] == "model name"]
        cpu = names[0] if names else cpu
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "load_before": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def part(module: str, *args: str, timeout: float) -> tuple[int, Any]:
    """Exit code and result of one part; it says so when there is none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", f"tests.benchmarks.{module}", *args, "--out", str(out)]
        try:
            done = subprocess.run(command, check=False, timeout=timeout, stderr=subprocess.PIPE, text=True)
        except subprocess.TimeoutExpired:
            return 0, {"error": f"not finished within {timeout:.0f} s"}
        if not out.exists():
            return done.returncode, {"error": done.stderr.strip().splitlines()[-1:]}
        return done.returncode, json.loads(out.read_text())


def say(text: str) -> None:
    print(text, flush=True)


def arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--out", type=Path, help="everything, as JSON")
    parser.add_argument("--md", type=Path, help="the tables, as Markdown")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or mps")
    parser.add_argument("--quick", action="store_true", help="small models, under three minutes")
    parser.add_argument("--only", action="append", help="a setting's name, or a part (docs/benchmarks.md); repeatable")
    parser.add_argument("--peer", help="the Python of an environment with auto-circuit 1.0.1")
    parser.add_argument("--repeats", type=int, help="runs per setting instead of the setting's own number")
    parser.add_argument("--threshold", type=float, help="τ instead of the setting's own")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that one part may take")
    return parser, parser.parse_args()


def main() -> None:
    parser, a = arguments()
    device = torch.device(a.device)
    found: dict[str, Any] = {"machine": machine(device), "quick": a.quick, "settings": {}}
    found["started"] = time.strftime("%F %T")
    settings = QUICK if a.quick else (*FULL, *LARGER, *LLAMA)
    larger = {s.name for s in LARGER}
    llama = {s.name for s in LLAMA}
    names = {*(s.name for s in settings), "exact", "scaling", "larger", "llama", "overlap", "attribution"}
    if a.only and not set(a.only) <= names:
        parser.error(f"--only is one of {', '.join(sorted(names))}")
    on = ["--device", a.device]
    quick = ["--quick", *on] if a.quick else on
    given = {"--repeats": a.repeats, "--threshold": a.threshold}
    options = [*on, *(word for flag, value in given.items() if value for word in (flag, str(value)))]

    def wanted(name: str) -> bool:
        if not a.only:
            return name not in llama or device.type != "cpu"
        return name in a.only or (name in larger and "larger" in a.only) or (name in llama and "llama" in a.only)

    failed = False
    if wanted("exact"):
        code, found["exact"] = part("exact", *quick, timeout=a.limit)
        failed = code != 0
        say(f"exact: {'FAILED' if failed else 'same edges as the naive oracle'} {json.dumps(found['exact'])}")
    for s in settings:
        if not wanted(s.name):
            continue
        code, row = part("measure", s.name, *options, timeout=a.limit)
        found["settings"][s.name] = row
        if "error" in row:
            say(f"{s.name}: {row['error']}")
            continue
        if a.peer and s.peer:
            theirs = peer.ask(a.peer, s, False, a.limit)
            row["peer"] = theirs
            if "total" in theirs:
                theirs["ratio"] = theirs["total"] / row["median"]
                theirs["ratios"] = sorted(t / mine for t in theirs["totals"] for mine in row["seconds"])
        say(markdown({"machine": found["machine"], "settings": {s.name: row}}, brief=True))
    if a.peer and wanted("overlap"):
        found["overlap"] = peer.overlap(a.peer, a.limit)
    if wanted("scaling"):
        _, found["scaling"] = part("scaling", *quick, timeout=a.limit)
    for what in ("time", "memory") if wanted("attribution") and not a.quick and device.type == "cpu" else ():
        _, found[f"attribution {what}"] = part("attribution", what, timeout=a.limit)
    found["machine"]["load_after"] = os.getloadavg() if hasattr(os, "getloadavg") else None
    text = markdown(found)
    say("\n" + text)
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n")
    if a.md:
        a.md.write_text(text)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
