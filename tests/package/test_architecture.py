"""The layers on the page are those that import-linter checks, and each room is in its table."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGE = (
    (PROJECT / "docs" / "architecture.md")
    .read_text("utf-8")
    .partition("## Layers and rooms\n")[2]
    .partition("\n## ")[0]
)


def layers_of(text: str) -> list[set[str]]:
    """Return the rooms of each layer, from the top down."""
    return [set(re.findall(r"\w+", layer)) for layer in text.split("->")]


def test_the_layers_on_the_page_are_those_of_the_contract() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    for container, top in (("steadyhand", "cli"), ("steadyhand.api", "app")):
        (contract,) = (each for each in contracts if each["containers"] == [container])
        drawn = PAGE.partition(f"    {top} ->")[1:]
        drawing = "".join(drawn).partition("\n\n")[0]
        assert layers_of(drawing) == [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]
        assert contract["exhaustive"] is True


def test_every_room_has_its_row_in_the_table() -> None:
    rooms = {
        path.name if path.is_dir() else path.stem
        for path in (PROJECT / "src" / "steadyhand").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    named = {
        name.strip("`/").removesuffix(".py")
        for row in PAGE.partition("| room |")[2].splitlines()[2:]
        for name in row.split("|")[1].replace(" ", "").split(",")
        if row.startswith("| `")
    }
    assert rooms - {"__init__", "__main__"} == named
