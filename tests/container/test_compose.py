"""The compose files: each names its level, and opens no more of the engine than that level needs."""

from pathlib import Path

import pytest
import yaml
from tests.container.container import ComposeService
from tests.container.dockerfile import parse

HERE = Path(__file__).resolve().parents[2]


def test_every_compose_file_names_its_level_drains_long_enough_and_only_the_sealed_one_opens_the_engine() -> (
    None
):
    sealed, bare = (
        yaml.safe_load((HERE / name).read_text("utf-8"))["services"]["steadyhand"]
        for name in ("compose.yaml", "compose.none.yaml")
    )
    assert (sealed["environment"]["STEADYHAND_ISOLATION"], bare["environment"]["STEADYHAND_ISOLATION"]) == (
        "bwrap",
        "none",
    )
    assert sealed["security_opt"] == ["seccomp:unconfined", "apparmor:unconfined", "systempaths=unconfined"]
    assert not any("unconfined" in option for option in bare["security_opt"])
    for one in (sealed, bare):
        assert int(one["stop_grace_period"].removesuffix("s")) > 30
        assert "privileged" not in one
        assert one["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("file", ["compose.yaml", "compose.none.yaml"])
def test_the_compose_files_fit_what_the_dockerfile_makes(file: str) -> None:
    known = ComposeService.read(HERE / file, {})
    stage = parse((HERE / "Dockerfile").read_text("utf-8"))[-1]
    assert [known.volume] == stage.volumes == [stage.env["STEADYHAND_DATA_DIR"]]
    assert stage.user[0] > 0
    assert stage.ports == [known.published[2]] == [int(stage.command[stage.command.index("--port") + 1])]
    assert f":{known.published[2]}/livez" in stage.health[-1]
    assert known.published[0] == "127.0.0.1"
