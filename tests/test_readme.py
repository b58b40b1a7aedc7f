"""The README shows what there is: every command, notebook, file and picture, and nothing else."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from conftest import ROOT

from mlops_lib.cli import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def shown_commands(text: str) -> list[str]:
    """Return every `mlops …` that stands in backticks or at the start of a line of a code block."""
    text = re.sub(r"`mlops\s+", "`mlops ", text)
    inline = re.findall(r"`(mlops [^`]+)`", text)
    return [*inline, *re.findall(r"^(mlops .+)$", text, flags=re.MULTILINE)]


def commands(group: click.Group = main, prefix: str = "") -> list[str]:
    found = []
    for name, command in group.commands.items():
        path = f"{prefix}{name}"
        found += commands(command, f"{path} ") if isinstance(command, click.Group) else [path]
    return found


def why_wrong(command: str) -> str:
    """Return why click would refuse the words of a command, or nothing; the command is not run."""
    words = shlex.split(command.split("#", maxsplit=1)[0])[1:]
    node: click.Command = main
    while isinstance(node, click.Group) and words:
        if words[0] not in node.commands:
            return f"no command '{words[0]}'"
        node = node.commands[words.pop(0)]
    try:
        node.make_parser(click.Context(node)).parse_args(words)
    except click.UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", shown_commands(README))
def test_every_command_that_the_readme_shows_is_understood(command: str) -> None:
    assert why_wrong(command) == ""


@pytest.mark.parametrize("command", ["mlops promot 4 staging", "mlops promote 4 staging --because x"])
def test_a_command_with_a_mistake_would_be_found(command: str) -> None:
    assert why_wrong(command) != ""


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_the_readme(command: str) -> None:
    assert re.search(rf"mlops\s+{command}\b", README), f"README does not mention 'mlops {command}'"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_has_its_row(notebook: str) -> None:
    assert re.search(rf"^\| `{notebook}` \|", README, flags=re.MULTILINE)


def test_every_linked_file_and_every_script_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    files = [link for link in links if "://" not in link]
    files += re.findall(r"\bci/\w+(?:-\w+)?", README)
    files += re.findall(r"\b[A-Z]+\.md\b", README)
    assert len(files) > 8
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_table_of_floors_is_the_one_that_the_architecture_test_holds() -> None:
    from test_architecture import RANKS

    layout = README.partition("## Layout")[2].partition("## ")[0]
    cells = re.findall(r"^\|[^|]*\|([^|]+)\|[^|]+\|$", layout, flags=re.MULTILINE)
    shown = [wing for cell in cells for wing in re.findall(r"`([\w.]+)`", cell)]
    assert sorted(shown) == sorted(RANKS)


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 190
