"""The demo, with the real CLI and the scripted model, as `make demo` plays it."""

from pathlib import Path

from tests.cli.world import CommandLine


def test_the_demo_fixes_the_test_and_leaves_nothing_when_told_so(world_dir: Path) -> None:
    ran = CommandLine(world_dir, None, None)("demo", "--clean", timeout=170)
    assert ran.code == 0, ran.out + ran.err
    before, after = ran.out.split("6. The test again")
    assert "FAILED (failures=1)" in before
    assert "ANTHROPIC_API_KEY is not set, so nothing is spent" in before
    assert "isolation bwrap: the agent is sealed off" in before
    assert "● Edit  /workspace/shop.py" in before
    assert "+    return sum(item.price_cents * item.quantity for item in basket)" in before
    assert "OK" in after
    assert "The test passes." in after
    assert "\x1b" not in ran.out
    assert not list(world_dir.glob("steadyhand-demo-*"))
