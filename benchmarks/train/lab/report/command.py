"""The command line of ``report.py``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llama.errors import UsageError

from lab import ROOT, store, studies
from lab.report import page, pictures, tables
from lab.scales import SCALES

STOPPED = 2, 130, 143  # run.py could not begin, or was told to end: no use going on


def main(arguments: list[str] | None = None) -> int:
    options, of_run = _parser().parse_known_args(arguments)
    if options.results:
        of_run += ["--results", str(options.results)]
    of_run += ["--scale", options.scale]
    try:
        failed = 0 if options.no_run or options.check else _run(of_run)
        return _write(options) or failed
    except UsageError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    """Every study, "main" first; the others take its rates. Returns 1 where a run failed."""
    from lab import runner

    failed = 0
    for study in studies.STUDIES:
        code = runner.main(["--study", study, *arguments])
        if code in STOPPED:
            raise UsageError("stopped; --no-run writes the page from the results there are")
        failed = failed or code
    return failed


def _write(options: argparse.Namespace) -> int:
    scale = SCALES[options.scale]
    at_home = tables.at_home(scale)
    usual = store.RESULTS / ("" if at_home else scale.name)
    kept = store.Store(options.results or usual)
    out = options.out or (ROOT / "docs" if at_home else ROOT / "runs" / "train" / f"report-{scale.name}")
    path, folder = out / "results.md", out / "results"
    part = page.text(kept, scale, elsewhere=kept.folder.resolve() != usual.resolve())
    if options.check:
        wrong = pictures.stale(kept, scale, folder)
        text = path.read_text() if path.is_file() else ""
        wrong += [] if f"{page.BEGIN}\n\n{part}\n\n{page.END}" in text else [path.name]
        for name in wrong:
            print(f"{name}: out of date; run make report REPORT=--no-run", file=sys.stderr)
        return 1 if wrong else 0
    for picture in pictures.write(kept, scale, folder, redraw=options.redraw):
        print(f"{picture}: drawn")
    if page.put(path, part):
        print(f"{path}: written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Run what is missing of all studies, then write the page of results and its pictures.",
        epilog="Other arguments go to run.py: --jobs, --text, --cache, --device, --amp, --threads.",
    )
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="default: benchmarks/results/train, or SCALE below it"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: docs; of another scale, runs/train/report-SCALE"
    )
    parser.add_argument("--redraw", action="store_true", help="pictures too that are up to date")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--no-run", action="store_true", help="run nothing, write alone")
    what.add_argument("--check", action="store_true", help="write nothing; 1 if anything is out of date")
    return parser
