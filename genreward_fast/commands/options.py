"""What the commands share: types and texts of options, and help texts with the options in sections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

FOLDER = click.Path(path_type=Path)
DEVICE_HELP = "auto, cpu, cuda or cuda:N."

F = TypeVar("F", bound=Callable[..., Any])


class Choices(click.Choice):
    """Several of the choices, separated by commas; given to the command as a tuple."""

    name = "choices"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(super(Choices, self).convert(each.strip(), param, ctx) for each in value.split(","))


class _Heading(click.Option):
    """An entry in the list of options that is only a heading: it never takes part in parsing."""

    def __init__(self, title: str):
        super().__init__([f"--heading-{title.lower().replace(' ', '-')}"], expose_value=False, hidden=True)
        self.title = title


def encoder_weights(function: F) -> F:
    """Adds the options that say where the encoders' weights come from."""
    for option in (
        click.option(
            "--weights", type=click.Choice(["pretrained", "random"]), help="random: no trained weights, to benchmark."
        ),
        click.option("--clip", help="Hub id, folder or checkpoint of OpenCLIP."),
        click.option("--dino", help="Hub id or folder of DINOv3."),
        click.option("--vae", help="Hub id or folder of the video VAE."),
    ):  # the last one added is listed first
        function = option(function)
    return function


def section(title: str) -> Callable[[F], F]:
    """Options that are listed below this decorator stand under `title` in the help text."""

    def decorate(function: F) -> F:
        parameters = function.__dict__.setdefault("__click_params__", [])
        parameters.append(_Heading(title))
        return function

    return decorate


class SectionedCommand(click.Command):
    """A command whose help shows its options under the headings made by `section`."""

    def __init__(self, *, params: list[click.Parameter] | None = None, **kwargs: Any):
        self._sections: dict[str, list[click.Parameter]] = {}
        title = "Options"
        for parameter in params or []:
            if isinstance(parameter, _Heading):
                title = parameter.title
            else:
                self._sections.setdefault(title, []).append(parameter)
        super().__init__(params=[p for group in self._sections.values() for p in group], **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        help_option: list[click.Parameter] = [option for option in [self.get_help_option(ctx)] if option is not None]
        for title, parameters in (self._sections | {"Help": help_option}).items():
            records = [record for parameter in parameters if (record := parameter.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
