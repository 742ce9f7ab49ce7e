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
    assert known.published is not None
    stage = parse((HERE / "Dockerfile").read_text("utf-8"))[-1]
    assert [known.volume] == stage.volumes == [stage.env["STEADYHAND_DATA_DIR"]]
    assert stage.user[0] > 0
    assert stage.ports == [known.published[2]] == [int(stage.command[stage.command.index("--port") + 1])]
    assert f":{known.published[2]}/livez" in stage.health[-1]
    assert known.published[0] == "127.0.0.1"


CLUSTER = HERE / "deploy/compose/compose.yaml"
VARIABLES = {"POSTGRES_PASSWORD": "secret", "STEADYHAND_API_KEY": "sh_key"}
WORKERS = ("worker-1", "worker-2")


def test_the_nodes_of_the_cluster_share_a_database_and_have_names_and_volumes_of_their_own() -> None:
    document = yaml.safe_load(CLUSTER.read_text("utf-8"))
    assert list(document["services"]) == ["postgres", "serve", *WORKERS]
    assert set(document["volumes"]) == set(document["services"])
    nodes = {name: ComposeService.read(CLUSTER, VARIABLES, name) for name in ("serve", *WORKERS)}
    assert {name: node.environment["STEADYHAND_SERVICE__NODE"] for name, node in nodes.items()} == {
        name: name for name in nodes
    }
    for name, node in nodes.items():
        service = document["services"][name]
        assert service["volumes"][0] == f"{name}:{node.volume}"
        assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}
        assert node.grace_seconds > 30
        assert node.read_only
        assert "privileged" not in service
    for setting in ("STEADYHAND_DATABASE_URL", "STEADYHAND_API_KEY", "STEADYHAND_CALLBACKS__SECRET_FILE"):
        assert len({node.environment[setting] for node in nodes.values()}) == 1, setting
    (source,) = {node.binds for node in nodes.values()}
    assert source == (("./callbacks.key", nodes["serve"].environment["STEADYHAND_CALLBACKS__SECRET_FILE"]),)
    assert {**document["services"]["worker-1"], "environment": None, "volumes": None} == {
        **document["services"]["worker-2"],
        "environment": None,
        "volumes": None,
    }


def test_only_the_node_that_serves_is_reached_and_only_the_workers_open_the_engine() -> None:
    document = yaml.safe_load(CLUSTER.read_text("utf-8"))["services"]
    assert [name for name, service in document.items() if service.get("ports")] == ["serve"]
    serve = ComposeService.read(CLUSTER, VARIABLES, "serve")
    stage = parse((HERE / "Dockerfile").read_text("utf-8"))[-1]
    assert serve.published == ("127.0.0.1", 8080, stage.ports[0])
    assert serve.command == ("serve", "--no-work", *stage.command[1:])
    assert serve.options == {"no-new-privileges:true"}
    sealed = ComposeService.read(HERE / "compose.yaml", {})
    for name in WORKERS:
        worker = ComposeService.read(CLUSTER, VARIABLES, name)
        assert worker.command == ("worker",)
        assert worker.options == sealed.options
        assert worker.environment["STEADYHAND_ISOLATION"] == "bwrap"


def test_postgres_keeps_its_data_and_its_password_is_the_one_in_the_address_of_the_nodes() -> None:
    postgres = yaml.safe_load(CLUSTER.read_text("utf-8"))["services"]["postgres"]
    assert postgres["volumes"] == ["postgres:/var/lib/postgresql/data"]
    user, name = (postgres["environment"][each] for each in ("POSTGRES_USER", "POSTGRES_DB"))
    serve = ComposeService.read(CLUSTER, VARIABLES, "serve")
    assert serve.environment["STEADYHAND_DATABASE_URL"] == f"postgresql://{user}:secret@postgres/{name}"
    assert postgres["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    assert "ports" not in postgres
