"""Count the words of docstrings and the names that stand twice.

`python -m tests.package.test_wording` prints the counts of each room, and with `--files` those of each file.
"""

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.source_trees import source_trees

_RIDDLES = frozenset(
    {
        *("Give", "Gives", "Say", "Says", "Tell", "Tells", "Take", "Takes"),
        *(
            "How",
            "Until",
            "What",
            "Whatever",
            "When",
            "Where",
            "Whether",
            "Which",
            "Who",
            "Whom",
            "Whose",
            "Why",
        ),
    }
)
"""Openings that leave it to the reader to find out what a thing is or does."""
_WORD = re.compile(r"[A-Za-z']+")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

FILE_NAMES: dict[str, tuple[list[str], str]] = {
    "app": (["api", "cli"], "the usual name of the module that builds a FastAPI or a Typer application"),
    "bulk": (["api", "cli", "control"], "routes, commands and operations on all jobs of a filter"),
    "callback_endpoints": (["api", "ports", "store"], "the same resource as routes, ports and rows"),
    "callbacks": (["api", "cli"], "routes and commands of the same resource"),
    "client": (["client", "config"], "the HTTP client, and the settings that it reads"),
    "deps": (["control", "worker"], "the dependencies that the parts of a room share"),
    "names": (["metrics", "telemetry"], "the one table of names of metrics, and of spans"),
    "doctor": (
        ["ports", "queue", "serve", "store", "workspace"],
        "the port of the checks of `steadyhand doctor`, and the checks of each room",
    ),
    "errors": (["", "api"], "the errors, and their HTTP form"),
    "forecast": (["", "api", "control"], "the arithmetic, the operation and its route"),
    "gateway": (["gateway", "ports"], "a port is named after the room that implements it"),
    "isolation": (
        ["serve", "testing"],
        "the composition of an isolation level, and the contract of every level",
    ),
    "jobs": (["api", "cli"], "routes and commands of the same resource"),
    "keys": (["api", "cli"], "routes and commands of the same resource"),
    "artifacts": (["ports", "testing"], "a contract is named after its port"),
    "ledger": (["ports", "testing"], "a contract is named after its port"),
    "lifecycle": (["cli", "control"], "commands and operations that change the state of a job"),
    "announcements": (["ports", "store"], "the type, and how it goes over a notification"),
    "page_sessions": (["ports", "store"], "the port, and its statements in SQL"),
    "saved_items": (
        ["control", "ports", "store", "testing"],
        "the operations, the port, its statements in SQL, and its contract",
    ),
    "node_calls": (["ports", "testing"], "a contract is named after its port"),
    "outbox": (["ports", "store", "testing"], "the port, its statements in SQL, and its contract"),
    "providers": (["config", "gateway"], "the table of the configuration, and its use"),
    "queries": (["control", "testing"], "the queries of control, and the contract of a store's queries"),
    "queue": (["ports", "testing"], "a contract is named after its port"),
    "requests": (["api", "control"], "the JSON bodies, and the requests that control checks"),
    "runner": (["ports", "runner", "testing"], "a port and its contract are named after the room"),
    "nodes": (["api", "cli", "ports", "testing"], "routes, commands, the port and its contract"),
    "schedules": (["api", "cli", "ports", "store"], "routes, commands, the port and its statements in SQL"),
    "sandbox": (["ports", "sandbox"], "a port is named after the room that implements it"),
    "service": (["cli", "testing"], "commands for a systemd unit, and a real service for tests"),
    "tools": (["api", "cli"], "routes and commands of the same resource"),
    "usage": (["api", "cli"], "routes and commands of the same resource"),
}
"""Stems that more than one module has, with the rooms of these modules and the reason."""

_RESULT = "the client's result has the fields and the name of the JSON body"
_BODY = "the body is the domain's type as JSON; its name is that of the OpenAPI component, which clients know"
CLASS_NAMES: dict[str, tuple[list[str], str]] = {
    "Agent": (["", "api", "client"], _BODY),
    "CallbackDelivery": (["api", "client"], _BODY),
    "CallbackEndpoint": (["api", "client"], _BODY),
    "CallbackReceiver": (["api", "client"], _BODY),
    "CallbackSecret": (["api", "client"], _BODY),
    "Changes": (["", "api", "client"], _BODY),
    "RefChange": (["", "api", "client"], _BODY),
    "Cost": (["", "api", "client"], _BODY),
    "Event": (["", "api", "client"], _BODY),
    "Job": (["", "api", "client"], _BODY),
    "KeyLimits": (["api", "client", "ports"], _BODY),
    "Node": (["api", "client", "testing"], _BODY),
    "Outcome": (["", "api", "client"], _BODY),
    "QueueReason": (["api", "client"], _BODY),
    "Run": (["", "api", "client"], _BODY),
    "Schedule": (["api", "client", "ports"], _BODY),
    "SchedulePause": (["api", "client", "ports"], _BODY),
    "ScheduleTick": (["api", "client", "ports"], _BODY),
    "ScheduledJob": (["api", "client"], _RESULT),
    "Service": (["serve", "testing"], "the service as a process of its own, for tests"),
    "Usage": (["", "api", "client"], _BODY),
    "Workspace": (["", "api", "client"], _BODY),
    "JobWarning": (["", "client"], _RESULT),
    "AgentLimits": (["api", "client"], _RESULT),
    "JobFault": (["api", "client"], _RESULT),
    "JobItem": (["api", "client"], _RESULT),
    "Key": (["api", "client"], _RESULT),
    "NewKey": (["api", "client"], _RESULT),
    "ResponseFault": (["api", "client"], _RESULT),
    "ToolCall": (["api", "client"], _RESULT),
    "BulkFault": (["api", "client"], _RESULT),
    "BulkStop": (["api", "client"], _RESULT),
    "CostForecast": (["api", "client"], _RESULT),
    "Steer": (["api", "client"], _RESULT),
    "TimeForecast": (["api", "client"], _RESULT),
    "ToolList": (["api", "client"], _RESULT),
    "BudgetForecast": (["api", "client", "control"], _BODY),
    "BulkItem": (["api", "client", "control"], _BODY),
    "BulkResult": (["api", "client", "control"], _BODY),
    "BurnRate": (["", "api", "client"], _BODY),
    "Forecast": (["api", "client", "control"], _BODY),
    "ToolRow": (["api", "client", "control"], _BODY),
}
"""Names that more than one class has, with the rooms of these classes and the reason."""


@cache
def documented_nodes() -> Sequence[tuple[Path, Documented]]:
    """Return what can have a docstring in the package, each with the path of its module relative to it."""
    return [
        (path, node)
        for path, tree in source_trees().items()
        for node in ast.walk(tree)
        if isinstance(node, Documented)
    ]


def room(path: Path) -> str:
    """Return the room of a module; it is empty for a module at the top."""
    return path.parts[0] if len(path.parts) > 1 else ""


def docstring_words(node: Documented) -> list[str]:
    """Return the words of a docstring, in lower case."""
    return _WORD.findall((ast.get_docstring(node) or "").lower())


def per_thousand(words: Counter[str], *wanted: str) -> float:
    """Return how often the wanted words occur in 1,000 words."""
    return 1000 * sum(words[word] for word in wanted) / max(1, words.total())


def product_words(*, by_file: bool = False) -> dict[str, Counter[str]]:
    """Count the words of each room without `testing`, or of each file."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path, node in documented_nodes():
        if room(path) != "testing":
            counts[path.as_posix() if by_file else room(path)].update(docstring_words(node))
    return counts


def all_words() -> Counter[str]:
    """Count the words of all rooms together."""
    return sum(product_words().values(), Counter())


def repeated(rooms_by_name: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the names that stand twice, with their rooms."""
    return {name: sorted(rooms) for name, rooms in rooms_by_name.items() if len(rooms) > 1}


def without_reasons(names: dict[str, tuple[list[str], str]]) -> dict[str, list[str]]:
    """Return a list of names that may stand twice in the form of `repeated`."""
    return {name: rooms for name, (rooms, _) in names.items()}


def test_docstrings_use_the_words_of_a_reference() -> None:
    words = all_words()
    assert per_thousand(words, "what") <= 2
    assert per_thousand(words, "give", "gives", "given") <= 1
    assert per_thousand(words, "return", "returns") >= 5


def opening(node: Documented) -> str:
    """Return the first word of a docstring; it is empty if there is none."""
    word = _WORD.match(ast.get_docstring(node) or "")
    return word[0] if word else ""


def test_no_docstring_opens_with_a_riddle() -> None:
    found = [
        f"{path}:{getattr(node, 'lineno', 1)}: {opening(node)}"
        for path, node in documented_nodes()
        if opening(node) in _RIDDLES
    ]
    assert found == []


def test_no_method_is_called_take() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, node in documented_nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "take"
    ]
    assert found == []


def test_only_listed_files_share_a_name() -> None:
    rooms: defaultdict[str, list[str]] = defaultdict(list)
    for path in source_trees():
        if path.stem not in ("__init__", "__main__"):
            rooms[path.stem].append(room(path))
    assert repeated(rooms) == without_reasons(FILE_NAMES)


def test_only_listed_classes_share_a_name() -> None:
    rooms: defaultdict[str, list[str]] = defaultdict(list)
    for path, node in documented_nodes():
        if isinstance(node, ast.ClassDef):
            rooms[node.name].append(room(path))
    assert repeated(rooms) == without_reasons(CLASS_NAMES)


def main(arguments: Sequence[str]) -> None:
    """Print the counts of each room or file, and of all."""
    counts = product_words(by_file="--files" in arguments)
    sys.stdout.write("  words   what   give return  where\n")
    for place, words in [*sorted(counts.items()), ("all", all_words())]:
        figures = (("what",), ("give", "gives", "given"), ("return", "returns"))
        rates = " ".join(f"{per_thousand(words, *wanted):6.1f}" for wanted in figures)
        sys.stdout.write(f"{words.total():7} {rates}  {place or 'steadyhand'}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
