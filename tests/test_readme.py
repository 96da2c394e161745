"""What the README says is so."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


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
    text = text.replace("\\\n", "")
    for name, arguments in re.findall(rf"genreward ({names})((?: +[^\s#`]+)*)", text):
        own, _, trains = arguments.partition(" -- ")  # after it, a sweep takes flags of train
        command = cli.genreward.commands[name]
        if isinstance(command, click.Group) and own.split():
            command = command.commands.get(own.split()[0], command)
        for called, flags in ((command, own), (cli.genreward.commands["train"], trains)):
            known = {option for parameter in called.params for option in parameter.opts}
            for flag in re.findall(r"--[a-z0-9-]+", flags):
                assert flag in known, f"genreward {name} {flag}"


def test_the_examples_names_exist():
    import genreward_fast

    for name in genreward_fast.__all__:
        assert getattr(genreward_fast, name).__name__ == name
