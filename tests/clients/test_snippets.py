"""The programs of docs/clients.md, each taken out of the page and run as it stands.

`make test` runs those of different libraries: the rest of what these have is done by the cases of `test_matrix.py`.
"""

import re
import subprocess
from pathlib import Path

import pytest
from tests.clients.client_programs import PROGRAMS, client_command, client_environment

from steadyhand.testing.service import ADMIN_KEY, Service

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_SNIPPET = re.compile(r"<!-- client: ([a-z-]+) -->\n```(python|js|sh)\n(.*?)```", re.DOTALL)
SNIPPETS = {name: (language, text) for name, language, text in _SNIPPET.findall(PAGE.read_text("utf-8"))}
SUFFIX = {"python": "py", "js": "mjs", "sh": "sh"}
ANSWER = "ok: Why is the build red?"
"""What the stand-in says to the page's question."""
TELLS_ON_STDERR = {"codex"}
"""Programs that tell of their progress there."""
LONG = {"instructor", "langchain", "litellm", "llama-index", "openai", "pydantic-ai", "pydantic-ai-chat"}
"""Programs that ask by the library of another one here, or of a client whose cases `make test` runs."""
SAMPLE = "stand-in"
"""What the stand-in puts where a schema wants a string."""


def test_every_client_has_a_program_on_the_page() -> None:
    assert sorted(SNIPPETS) == sorted(PROGRAMS)


def test_every_client_has_a_row_in_the_table() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(PROGRAMS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in sorted(SNIPPETS)],
)
def test_the_snippet_prints_the_answer(name: str, stand_in_service: Service, tmp_path: Path) -> None:
    language, text = SNIPPETS[name]
    program = tmp_path / f"snippet-{name}.{SUFFIX[language]}"
    program.write_text(text, "utf-8")
    where = {"OPENAI_BASE_URL": f"{stand_in_service.url}/v1", "OPENAI_API_KEY": ADMIN_KEY}
    done = subprocess.run(
        client_command(name, program),
        env=client_environment(name) | where,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or name in TELLS_ON_STDERR
    if name == "codex":  # it puts what it knows of its machine before the question
        assert done.stdout.startswith("ok: <environment_context>")
    else:
        assert done.stdout.strip() == (SAMPLE if name == "instructor" else ANSWER)
