"""`genreward doctor`."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict

import click

from genreward_fast.commands.options import SectionedCommand


@click.command(cls=SectionedCommand)
@click.option("--json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--quiet", is_flag=True, help="Print only what keeps training from running.")
def doctor(json: bool, quiet: bool) -> int:
    """Say what works on this machine.

    The exit code is 0 if `genreward train` can run, and 1 if it cannot.
    """
    from genreward_fast.doctor import report_lines, run_checks

    checks = run_checks()
    broken = [check for check in checks if check.required and not check.ok]
    if json:
        click.echo(json_module.dumps({"ok": not broken, "checks": [asdict(c) for c in checks]}, indent=2))
    elif quiet:
        click.echo("".join(line + "\n" for line in report_lines(broken)), nl=False)
    else:
        verdict = "genreward train cannot run here yet" if broken else "genreward train can run here"
        click.echo("\n".join([*report_lines(checks), "", verdict]))
    return 1 if broken else 0
