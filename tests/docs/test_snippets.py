"""Every block of every page is what it seems: commands that exist, settings, JSON, YAML; others are listed here.

The how-tos, the tutorial and the pages of the clients are carried out in their own tests.
"""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml
from tests.docs.page_run import pages
from tests.docs.pages import PROJECT, text_of
from tools.cli_reference import reference

from steadyhand.cli.app import app
from steadyhand.config.settings import load_settings

CARRIED_OUT = {"tutorial.md", "clients.md", "python-client.md", *(f"how-to/{path.name}" for path in pages())}
PAGES = sorted(
    path.relative_to(PROJECT).as_posix()
    for path in (PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md"))
    if path.relative_to(PROJECT / "docs" if "docs" in path.parts else PROJECT).as_posix() not in CARRIED_OUT
)
PLAIN = {
    "queued -> running": "the states",
    "cli -> serve": "the layers",
    "app -> examples": "the layers of api",
    "mirror (bare": "the layers of a checkout",
    "id: 12": "an event of a stream",
}
"""Blocks that are no input of a program, by how they begin; trees are known by their branches."""
OTHERS = {"git", "cd", "export", "curl", "make", "python", "pip", "source", "createuser", "createdb"}
"""Programs that are not ours, in blocks of commands."""
PROGRAM = typer.main.get_command(app)


def blocks_in(text: str) -> list[str]:
    """Return the fenced and the indented blocks of a page."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^\n|\A)((?: {4}.*\n|\n(?= {4}))+)", prose, re.MULTILINE)
    return [*fenced, *(re.sub(r"^ {4}", "", each, flags=re.MULTILINE) for each in indented)]


def commands_in(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block of shell, also of those in a pipe."""
    for line in re.sub(r"<[^<>\n]*>", "PLACE", block.replace("\\\n", " ")).splitlines():
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        parts = iter([*lexer, ";"])
        for word in parts:
            if word in (">", ">>", "<"):
                next(parts)  # the file
            elif set(word) <= set("|&;()<>"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def check_command(words: list[str]) -> None:
    """Raise an error unless the program would take these words, which are not carried out."""
    command: Any = PROGRAM
    arguments = words
    context: click.Context | None = None
    while True:
        context = command.make_context("steadyhand", list(arguments), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        if command.invoke_without_command and not [*context._protected_args, *context.args]:
            return
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])


def is_shell(block: str) -> bool:
    first = Path(block.split(maxsplit=1)[0]).name
    return first == "steadyhand" or first in OTHERS


def settings_of(block: str, folder: Path) -> None:
    """Read a block as the file of settings; the secret files that it names are made."""
    path = folder / "steadyhand.toml"
    text = re.sub(r'_file = "/[^"]+/([^"/]+)"', rf'_file = "{folder}/\1"', block)
    path.write_text(text, "utf-8")
    for name in re.findall(rf'_file = "{folder}/([^"]+)"', text):
        (folder / name).write_text("a-secret-of-the-page", "utf-8")
    load_settings(path, environ={"HOME": str(folder)})


def kind_of(block: str, folder: Path) -> str:
    """Return the kind of a block, after it has been checked as such; an error is raised for one of no kind."""
    if any(block.startswith(plain) for plain in PLAIN) or "├──" in block:
        return "plain"
    if is_shell(block):
        for words in commands_in(block):
            name = Path(words[0]).name
            assert name in OTHERS or name == "steadyhand" or "=" in words[0], words
            if name == "steadyhand":
                check_command(words[1:])
            if name == "make":
                assert re.search(rf"^{words[1]}:", (PROJECT / "Makefile").read_text("utf-8"), re.MULTILINE), (
                    words
                )
        return "shell"
    if block.startswith("{"):
        json.loads(block)
        return "json"
    if block.startswith("["):
        tomllib.loads(block)
        settings_of(block, folder)
        return "settings"
    assert isinstance(yaml.safe_load(block), dict), f"a diagram belongs to PLAIN in this test: {block}"
    return "yaml"


@pytest.mark.parametrize("page", PAGES)
def test_each_block_of_a_page_is_what_it_seems(page: str, tmp_path: Path) -> None:
    for block in blocks_in((PROJECT / page).read_text("utf-8")):
        kind_of(block, tmp_path)


def test_a_wrong_block_is_found(tmp_path: Path) -> None:
    for wrong in (
        "steadyhand jobs --stat queued\n",
        "steadyhand show\n",
        "steadyhand nothing\n",
        "make nothing\n",
        "export A=b\nrm x\n",
        '{"a": 1,}\n',
        "[agents.a]\nbudget = 1\n",
        "a word\n",
    ):
        with pytest.raises(Exception, match=r"."):
            kind_of(wrong, tmp_path)
    assert kind_of("steadyhand jobs --state queued --json | git apply\n", tmp_path) == "shell"


def test_each_plain_block_is_on_a_page() -> None:
    text = "".join((PROJECT / page).read_text("utf-8") for page in PAGES)
    assert [start for start in PLAIN if start not in text] == []


def test_the_page_of_commands_is_that_of_the_program() -> None:
    made = "run `python tools/cli_reference.py > docs/cli-commands.md`"
    assert text_of("cli-commands.md") == reference(), made


def test_the_command_line_page_and_the_others_name_only_commands_that_exist() -> None:
    context = PROGRAM.make_context("steadyhand", [], resilient_parsing=True)
    known = set(PROGRAM.list_commands(context))  # type: ignore[attr-defined]  # it is a group
    named = set()
    for path in (PROJECT / "docs").rglob("*.md"):
        named |= set(re.findall(r"`steadyhand ([a-z]+)", path.read_text("utf-8")))
    assert len(named) > 5
    assert named <= known
