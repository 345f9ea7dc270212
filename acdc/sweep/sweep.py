"""A sweep from plan to table: make what is left, then write the table, the page and the plots.

    <out>/runs/<name>/      one directory per run, as `acdc run` writes it; failure.json if it failed
    <out>/results.csv       a row per run (acdc/files/table.py); also results.parquet if pyarrow is installed
    <out>/report.html       the table as a page with plots; every point links to its run's page
    <out>/*.svg, *.pdf      plots; also *.png
    <out>/logs/, slurm/     messages of the worker processes or jobs

All state is in the runs' directories. So a sweep can be killed at any time; called again, it makes what is not done.
Failed runs are made again only if asked for (`retry`).
"""

from collections import defaultdict
from contextlib import closing
from urllib.parse import quote

from acdc.files.table import FAILURE, Row, every_column, to_csv, to_parquet
from acdc.io.files import write_atomic
from acdc.io.folder import locked
from acdc.io.progress import Progress, Say, Show
from acdc.report import curves
from acdc.report.page import render_many
from acdc.report.panels import of_rows
from acdc.report.results import summary
from acdc.sweep.grid import Run
from acdc.sweep.plan import SweepPlan
from acdc.sweep.tracking import Tracking

HIDDEN = ("folder", "model_hash", "data_hash")  # columns that the page leaves out


def sweep(plan: SweepPlan, progress: Show, say: Say) -> list[Row]:
    """Make the runs that are left, then the table and the plots. A failed run does not stop the others. Raises
    UserError if the directory is in use or can't be written, or Slurm refuses."""
    title = plan.file.path.stem
    tracking = Tracking(plan.file.sweep.track, title, plan.out, say)
    with locked(plan.out, "this sweep", others=("config.yaml", "compare.json")):
        left = plan.left()
        for run in left:  # a failed run that is made again counts as not done
            (run.folder(plan.out) / FAILURE).unlink(missing_ok=True)
        _make(plan, left, tracking, progress, say)
        rows = [plan.row(run) for run in plan.runs]
        for note in _mixed(rows):
            say(note)
        write_atomic(plan.out / "results.csv", to_csv(rows))
        parquet = to_parquet(rows)
        if parquet is None:
            say("note: no results.parquet; to get it, pip install 'acdc-circuits[sweeps]'")
        else:
            write_atomic(plan.out / "results.parquet", parquet)
        panels = of_rows(rows)
        columns = [c for c in every_column(rows) if c not in HIDDEN and any(row.get(c) is not None for row in rows)]
        cells = [[row.get(c) for c in columns] for row in rows]
        links = [f"{quote(row['folder'])}/report.html" if row["state"] == "done" else None for row in rows]
        page = render_many(title, plan.file.sweep.description, summary(rows), columns, cells, links, panels)
        write_atomic(plan.out / "report.html", page)
        if plan.plots:
            for name, data in curves.draw(panels).items():
                write_atomic(plan.out / name, data)
    return rows


def _make(plan: SweepPlan, left: list[Run], tracking: Tracking, progress: Show, say: Say) -> None:
    """Make these runs, and show and log each that ends."""
    to_come = {run.name: plan.seconds[run.name] for run in left}
    total = sum(plan.seconds[run.name] for run in plan.runs)
    done = len(plan.runs) - len(left)
    failed = 0
    progress(Progress("runs", total - sum(to_come.values()), total, resumed=f"{done:,} finished runs" if done else ""))
    if not left:
        return
    with closing(plan.executor.make(left, say)) as looks:  # if this is interrupted, the workers end
        for ended, doing in looks:
            for run in ended:
                row = plan.row(run)
                if row["state"] == "failed":
                    failed += 1
                    say(f"{run.name} failed: {row['message']}")
                tracking.log(row)
                del to_come[run.name]
            ended_ = f"{len(plan.runs) - len(to_come)} of {len(plan.runs)}" + f", {failed} failed" * bool(failed)
            progress(Progress("runs", total - sum(to_come.values()), total, f"{ended_}; {doing}"))


def _mixed(rows: list[Row]) -> list[str]:
    """Return warnings about runs that should have the same weights or prompts, but don't."""
    notes = []
    same_weights = ("weights", "model_hash", ("model", "dtype"))
    same_prompts = ("prompts", "data_hash", ("task", "model", "examples", "seed"))
    for what, column, keys in (same_weights, same_prompts):
        hashes = defaultdict(set)
        for row in rows:
            if row["state"] == "done":
                hashes[tuple(row[key] for key in keys)].add(row[column])
        for kind, found in hashes.items():
            if len(found) > 1:
                options = ", ".join(f"{key} {value}" for key, value in zip(keys, kind, strict=True))
                notes.append(f"warning: runs of {options} were made with different {what}; remove the outdated runs")
    return notes
