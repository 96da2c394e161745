"""`genreward report`."""

from __future__ import annotations

from pathlib import Path

import click

from genreward_fast.commands.options import FOLDER, SectionedCommand


@click.command(cls=SectionedCommand)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
def report(runs: tuple[Path, ...], out: Path) -> int:
    """Compare runs: learning curves, success and return by task and method, over seeds.

    RUNS are run folders (--out of genreward train), or folders with such folders in them. Writes one page, report.html,
    that needs nothing beside it, and the same as PNG and CSV files.
    """
    from genreward_fast.training.report.build import build_report

    written = build_report(runs, out)
    click.echo("\n".join([*written.lines(), f"the page is {written.page}"]))
    return 0
