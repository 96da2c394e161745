"""The command line: a group of commands, and what becomes of their errors. Each command is a file in `commands/`.

Click, rather than a library that makes flags out of nested dataclasses: the flags keep the names that are documented
however the settings are grouped, a flag that was not given can be told from one that was (presets, `--resume`), and
`--help` imports nothing heavy.
"""

from __future__ import annotations

import os
import sys

import click

from genreward_fast import __version__
from genreward_fast.commands.assets import assets
from genreward_fast.commands.bench import bench
from genreward_fast.commands.demos import demos
from genreward_fast.commands.doctor import doctor
from genreward_fast.commands.evaluate import evaluate
from genreward_fast.commands.export import export
from genreward_fast.commands.finetune import finetune
from genreward_fast.commands.fit import fit
from genreward_fast.commands.generate import generate
from genreward_fast.commands.goal import goal
from genreward_fast.commands.report import report
from genreward_fast.commands.signal import signal
from genreward_fast.commands.sweep import sweep
from genreward_fast.commands.train import train
from genreward_fast.errors import Interrupted, RunFailed, UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(version)s")
def genreward() -> None:
    """Train robot agents with rewards out of a goal video.

    Bad input is answered in one line with exit code 2.
    """


for _command in (
    assets, bench, demos, doctor, evaluate, export, finetune, fit, generate, goal, report, signal, sweep, train,
):  # fmt: skip
    genreward.add_command(_command)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0; 2 for bad input; 1 for a run that failed, or a machine that cannot train; 128 + n after signal n.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return genreward.main(arguments, prog_name="genreward", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        click.echo(f"genreward: {' '.join(error.format_message().split())} See genreward --help.", err=True)
        return 2
    except UserError as error:
        click.echo(f"genreward: {error}", err=True)
        return 2
    except RunFailed as error:
        click.echo(f"genreward: {error}", err=True)
        return 1
    except OSError as error:  # no space left, no permission: checkpoints are whole or not there
        if error.filename is None:
            raise
        click.echo(f"genreward: {error.filename}: {error.strerror}", err=True)
        return 1
    except Interrupted as stop:
        click.echo(f"genreward: {stop}", err=True)
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("genreward: interrupted", err=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
