"""The compose files: each names its level, and opens no more of the engine than that level needs."""

from pathlib import Path

import yaml

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
