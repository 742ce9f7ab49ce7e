"""The runners that an agent may name."""

from pathlib import Path

import pytest

from steadyhand.config.runners import acp_programs
from steadyhand.config.settings import load_settings
from steadyhand.errors import ConfigError

OPENAI = '[providers.o]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:1"\n'
KIMI = OPENAI + '[runner.kimi]\npath = "/opt/kimi"\n'
MINE = OPENAI + '[runners.mine]\npath = "/opt/mine"\nenv = { URL = "{base_url}", MODEL = "{model}" }\n'


def load(tmp_path: Path, text: str) -> None:
    file = tmp_path / "steadyhand.toml"
    file.write_text(text)
    load_settings(file, environ={})


def agent(runner: str, more: str = 'model = "m"') -> str:
    return f'[agents.a]\nrunner = "{runner}"\nprovider = "o"\n{more}\n'


@pytest.mark.parametrize("text", [KIMI + agent("kimi"), MINE + agent("mine")])
def test_an_agent_may_have_a_runner_that_is_set_up(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (OPENAI + agent("kimmi"), "there is no runner 'kimmi'; did you mean kimi?"),
        (KIMI + agent("kimi", ""), "kimi needs the name of a model"),
        (KIMI + agent("kimi", 'model = "m"\ntools = ["x"]'), "agents.a.tools: kimi has no such setting"),
        (KIMI + agent("kimi", 'model = "m"\neffort = "high"'), "agents.a.effort: kimi has no such setting"),
        (KIMI + agent("kimi", 'model = "m"\negress = ["host"]'), "by a port of a network of its own"),
        (MINE + agent("mine", ""), "mine needs the name of a model"),
        (OPENAI + '[runners.kimi]\npath = "/x"\n', "this runner is built in; see [runner.kimi]"),
        (OPENAI + '[runners."a b"]\npath = "/x"\n', "this is not a valid name"),
        (OPENAI + '[runners.m]\npath = "/x"\nfiles = { "../x" = "" }\n', "is not a path below the home"),
        (
            OPENAI + '[runner.claude-agent-acp]\npath = "/x"\n' + agent("claude-agent-acp"),
            "the runner claude-agent-acp cannot use a provider of the kind openai-compatible",
        ),
        ("[runner.claude-agent-acp]\npaht = '/x'\n", "did you mean path?"),
    ],
)
def test_a_runner_that_an_agent_cannot_have_is_an_error(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    assert error in str(raised.value)


def test_a_table_of_an_own_runner_is_an_agent_of_acp(tmp_path: Path) -> None:
    file = tmp_path / "steadyhand.toml"
    file.write_text(MINE)
    program = acp_programs(load_settings(file, environ={}).tables)["mine"]
    assert (program.path, program.node, program.agent.api) == (Path("/opt/mine"), None, "openai")
    assert program.agent.needs_model
    assert not program.agent.loads_sessions
