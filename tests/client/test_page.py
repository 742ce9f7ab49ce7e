"""The programs of docs/python-client.md, each run as it stands, and the tables of the page."""

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.api.api_service import ADMIN, RunningService
from tests.api.tool_calling_agent import ToolCallingAgent
from tests.docs.pages import by_name, table, text_of

import steadyhand
from steadyhand import Client, SteadyhandError, errors

PAGE = text_of("python-client.md")
SNIPPETS = dict(re.findall(r"<!-- snippet: ([a-z-]+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(autouse=True)
def environment(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that the programs of the page read."""
    monkeypatch.setenv("STEADYHAND_URL", service.url)
    monkeypatch.setenv("STEADYHAND_TOKEN", ADMIN)


@pytest.fixture
def failed_job(service: RunningService) -> str:
    with Client(service.url, ADMIN) as client:
        return client.run("fail it broke", metadata={"team": "infra"}).id


@pytest.fixture
def tool_calls(service: RunningService) -> Iterator[ToolCallingAgent]:
    """An agent that asks for the weather of two cities, and then of one."""
    agent = ToolCallingAgent(["Paris", "Rome"], ["Oslo"])
    service.runner.tool_calling_agent, service.runner.forced_result = agent, "say it is fine"
    yield agent
    service.runner.tool_calling_agent, service.runner.forced_result = None, None


def run_snippet(name: str) -> list[str]:
    """Run a program of the page and return the lines that it prints."""
    lines: list[str] = []

    def record(*values: object) -> None:
        lines.append(" ".join(map(str, values)))

    program = compile(SNIPPETS[name], f"docs/python-client.md: {name}", "exec")
    exec(program, {"__name__": "__main__", "print": record})  # noqa: S102  # the page's own programs
    return lines


def test_each_program_of_the_page_has_a_test() -> None:
    tested = {name.removeprefix("test_snippet_") for name in globals() if name.startswith("test_snippet_")}
    assert set(SNIPPETS) == tested
    assert PAGE.count("```python") == len(SNIPPETS)


def test_the_common_case_has_at_most_twelve_lines() -> None:
    assert len(SNIPPETS["common"].splitlines()) <= 12


def test_snippet_common(service: RunningService) -> None:
    service.runner.forced_result = "tell"
    try:
        assert run_snippet("common") == ["the whole message", "0.041200 dollars"]
    finally:
        service.runner.forced_result = None


def test_snippet_results(failed_job: str) -> None:
    lines = run_snippet("results")
    assert lines[0].startswith(f"{failed_job} failed ")


def test_snippet_errors() -> None:
    assert run_snippet("errors") == ["unknown_agent ['/agent']"]


def test_snippet_asyncio() -> None:
    assert run_snippet("asyncio") == ["Check module a.", "Check module b."]


def test_snippet_tools(tool_calls: ToolCallingAgent) -> None:
    assert run_snippet("tools") == ["it is fine"]
    assert tool_calls.results == [["Sun in Paris", "Sun in Rome"], ["Sun in Oslo"]]


def test_the_tables_name_each_option_method_and_error() -> None:
    options = by_name(table(PAGE, "| option | default | meaning |"))
    assert list(options) == [name for name in inspect.signature(Client).parameters if name != "self"]
    methods = by_name(table(PAGE, "| method | result | meaning |"))
    public = {name for name, _ in inspect.getmembers(Client, callable) if not name.startswith("_")}
    assert set(methods) == public - {"from_environment"}
    rows = by_name(table(PAGE, "| error | when |"))
    exported = {
        name
        for name in steadyhand.__all__
        if inspect.isclass(found := getattr(steadyhand, name)) and issubclass(found, SteadyhandError)
    }
    assert set(rows) == exported - {"SteadyhandError"}


def test_each_public_name_is_documented_and_loaded_at_its_first_use() -> None:
    assert steadyhand.__doc__ is not None
    documented = set(re.findall(r"`([A-Za-z_]+)`", steadyhand.__doc__))
    assert documented == set(steadyhand.__all__)
    assert set(steadyhand.__all__) <= set(dir(steadyhand))
    for name in steadyhand.__all__:
        found = getattr(steadyhand, name)
        assert not inspect.isclass(found) or inspect.getdoc(found)
        assert not dataclasses.is_dataclass(found) or vars(found)["__dataclass_params__"].frozen
    with pytest.raises(AttributeError):
        getattr(steadyhand, "Clients")  # noqa: B009  # a type checker knows that it is not there
    assert errors.NotFound is steadyhand.NotFound


def test_the_package_alone_loads_nothing_that_costs_time() -> None:
    code = "import sys, steadyhand; print(*sorted(n for n in sys.modules if n.startswith(('httpx2', 'steadyhand'))))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["steadyhand"]
