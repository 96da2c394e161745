"""What the README says is so."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


def test_the_tables_are_those_of_the_result_files():
    script = ROOT / "benchmarks" / "readme_tables.py"
    done = subprocess.run([sys.executable, str(script), "--check"])
    assert done.returncode == 0, "run: python benchmarks/readme_tables.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_have_the_flags_that_are_shown():
    from genreward_fast import cli

    text = "\n".join(page.read_text() for page in PAGES)
    names = "|".join(cli.genreward.commands)
    for command, arguments in re.findall(rf"genreward ({names})((?: +[^\s#`]+)*)", text):
        shown = cli.genreward.commands[command]
        if isinstance(shown, click.Group):
            shown = shown.commands[arguments.split()[0]]
        known = {name for parameter in shown.params for name in parameter.opts}
        for flag in re.findall(r"--[a-z0-9-]+", arguments):
            assert flag in known, f"genreward {command} {flag}"


def test_the_examples_names_exist():
    import genreward_fast

    for name in genreward_fast.__all__:
        assert getattr(genreward_fast, name).__name__ == name
