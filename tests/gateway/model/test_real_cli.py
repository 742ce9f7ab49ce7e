"""The real CLI through the model's socket: it holds a placeholder, and the model gets the real key."""

import asyncio
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.gateway.gateway_harness import CANARY, KEY, GatewayHarness, open_gateway

from steadyhand.gateway import Credential
from steadyhand.gateway.model.providers import PLACEHOLDER_CREDENTIAL
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.model import ScriptedModel

AGENT = 64001
ROOT = os.geteuid() == 0
ENV_IN_A_TOOL = """\
description = "Look at everything a tool can see of the credential."
[[turn]]
[[turn.tool]]
name = "Bash"
input = { command = "env; tr '\\\\0' ' ' < /proc/$PPID/environ; cat .claude/.claude.json", description = "Look" }
[[turn]]
text = "I looked."
"""


def run(
    cli: Path, root: Path, way: GatewayHarness, credential: Mapping[str, str], prompt: str
) -> tuple[int, str, str]:
    home = root / "home"
    home.mkdir(exist_ok=True)
    if ROOT:
        os.chown(home, AGENT, AGENT)
    done = subprocess.run(
        [cli, "-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions"],
        input=prompt.encode(),
        cwd=home,
        env={
            "HOME": str(home),
            "PATH": SYSTEM_PATH,
            "LANG": "C.UTF-8",
            "CLAUDE_CONFIG_DIR": str(home / ".claude"),
            "ANTHROPIC_UNIX_SOCKET": str(way.socket),
            "ANTHROPIC_BASE_URL": "http://model.invalid",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            **credential,
        },
        user=AGENT if ROOT else None,
        group=AGENT if ROOT else None,
        extra_groups=[] if ROOT else None,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("kind", ["api_key", pytest.param("oauth", marks=pytest.mark.long)])
def test_the_real_key_is_on_every_call_and_nowhere_in_the_agent(
    world_dir: Path, real_cli: Path, kind: str
) -> None:
    scenario = world_dir / "look.toml"
    scenario.write_text(ENV_IN_A_TOOL, encoding="utf-8")
    credential = KEY if kind == "api_key" else Credential("oauth", CANARY)
    held = "ANTHROPIC_API_KEY" if kind == "api_key" else "CLAUDE_CODE_OAUTH_TOKEN"

    async def main() -> None:
        with ScriptedModel(scenario) as model:
            async with open_gateway(
                world_dir, model.url, credential=credential, slot=1, user=AGENT if ROOT else None
            ) as way:
                code, out, err = await asyncio.to_thread(
                    run, real_cli, world_dir, way, {held: PLACEHOLDER_CREDENTIAL}, "look around"
                )
                assert code == 0, out + err
                assert way.events == []
            calls = [*model.requests, *model.side_requests, *model.other_requests]
            assert len(model.requests) == 2
            for call in calls:
                key = call.headers.get("x-api-key"), call.headers.get("authorization")
                assert key == ((CANARY, None) if kind == "api_key" else (None, f"Bearer {CANARY}"))
                assert PLACEHOLDER_CREDENTIAL not in str(call.headers)
                assert next(iter(call.body)) == "model"  # its model is known before the rest of it is here
                if kind == "oauth":
                    assert "oauth-2025-04-20" in call.headers["anthropic-beta"].split(",")
            assert f"{held}={PLACEHOLDER_CREDENTIAL}" in json.dumps(
                calls[-1].body
            )  # the tool did see its environment
            assert CANARY not in out + err + json.dumps([call.body for call in calls])
        for file, content in contents_below(world_dir / "home"):
            assert CANARY.encode() not in content, file

    asyncio.run(main())


def test_a_refusal_of_the_model_reaches_the_cli_as_it_is(
    world_dir: Path, real_cli: Path, scripted_model: ScriptedModel
) -> None:
    async def main() -> None:
        async with open_gateway(world_dir, scripted_model.url, slot=1, user=AGENT if ROOT else None) as way:
            code, out, _ = await asyncio.to_thread(
                run,
                real_cli,
                world_dir,
                way,
                {"ANTHROPIC_API_KEY": PLACEHOLDER_CREDENTIAL},
                "[[scenario:no-credit]]",
            )
        result = json.loads(out.splitlines()[-1])
        assert code == 1
        assert result["api_error_status"] == 402
        assert scripted_model.calls == 1

    asyncio.run(main())
