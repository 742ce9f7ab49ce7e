"""The Helm chart renders what Kubernetes takes, gives its pods no rights, and names what the service has."""

import copy
import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import helm_python
import pytest
import typer.main
import yaml
from tests.deploy.chart import (
    BARE,
    CHART,
    FULL,
    SMALLEST,
    Rendered,
    check_schema,
    container_of,
    environment_of,
    render,
)
from tests.docs.page_run import blocks_of, pages
from tests.docs.pages import PROJECT, text_of

from steadyhand.cli.app import app
from steadyhand.config.reference import list_settings

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
CHOICES = {"smallest": SMALLEST, "full": FULL, "bare": BARE}
OLDEST_SANDBOXED, OLDEST, NEWEST = "1.33", "1.29", "1.37"


@pytest.fixture(scope="module")
def rendered() -> dict[str, Rendered]:
    return {name: render(values) for name, values in CHOICES.items()}


# --- Helm and Kubernetes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_helm_has_nothing_to_say_against_the_chart(name: str) -> None:
    report = helm_python.lint(CHART, dict(CHOICES[name]), strict=True)
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize(
    ("name", "version"),
    [("smallest", NEWEST), ("full", OLDEST_SANDBOXED), ("full", NEWEST), ("bare", OLDEST), ("bare", NEWEST)],
)
def test_every_field_of_every_object_is_one_that_kubernetes_knows(
    rendered: dict[str, Rendered], name: str, version: str
) -> None:
    for each in rendered[name].objects:
        check_schema(each, version)


def test_a_field_that_kubernetes_does_not_know_is_found(rendered: dict[str, Rendered]) -> None:
    changed = copy.deepcopy(rendered["full"].one("StatefulSet"))
    container_of(changed["spec"]["template"]["spec"])["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(Exception, match="readOnlyRootFileSystem"):
        check_schema(changed, NEWEST)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "database"),
        ({"database": {"secretName": ""}}, "secretName"),
        ({"database": {"secretName": "a", "url": "postgresql://user:secret@host/db"}}, "url"),
        ({**SMALLEST, "workers": {"isolation": "docker"}}, "isolation"),
        ({**SMALLEST, "workers": {"seccompProfile": {"type": "RuntimeDefault"}}}, "seccompProfile"),
        ({**SMALLEST, "workers": {"labels": ["a,b"]}}, "labels"),
        ({**SMALLEST, "ingress": {"enabled": True}}, "host"),
        ({**SMALLEST, "autoscaling": {"enabled": True, "trigger": "prometheus"}}, "serverAddress"),
        ({**SMALLEST, "replicas": 3}, "replicas"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_named(values: Mapping[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=named):
        render(values)


def test_a_name_of_the_chart_is_no_name_of_a_secret_file() -> None:
    with pytest.raises(helm_python.HelmError, match="secretFiles has model"):
        render({**FULL, "secretFiles": [{"name": "model", "secretName": "a"}]})


def test_the_schema_describes_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))

    def compare(properties: Any, value: Any, path: str) -> None:
        if "$ref" in properties:
            properties = schema["definitions"][properties["$ref"].rpartition("/")[2]]
        if "properties" not in properties or not isinstance(value, dict):
            return
        known = set(properties["properties"]) - {"global", "requests", "limits", "localhostProfile"}
        assert set(value) - {"requests", "limits"} == known, path
        for name, inner in value.items():
            compare(properties["properties"].get(name, {}), inner, f"{path}.{name}")

    compare(schema, values, "")


# --- what must hold for each pod -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_no_pod_is_root_or_has_a_right_or_a_token_or_a_path_of_the_machine(
    rendered: dict[str, Rendered], name: str
) -> None:
    pods = list(rendered[name].pods())
    assert len(pods) == 2
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 10001
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        context = container_of(pod)["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "configMap", "secret"}
        assert {"requests", "limits"} <= set(container_of(pod)["resources"])


def test_only_the_workers_with_a_sandbox_open_the_filters_and_then_without_the_users_of_the_machine(
    rendered: dict[str, Rendered],
) -> None:
    open_filters = {"seccompProfile": {"type": "Unconfined"}, "appArmorProfile": {"type": "Unconfined"}}
    sealed = rendered["full"].pod("worker")
    assert sealed["hostUsers"] is False
    context = container_of(sealed)["securityContext"]
    assert context["procMount"] == "Unmasked"
    assert {name: context[name] for name in open_filters} == open_filters
    for pod in (rendered["full"].pod("serve"), rendered["bare"].pod("worker"), rendered["bare"].pod("serve")):
        assert "procMount" not in container_of(pod)["securityContext"]
        assert not set(open_filters) & set(container_of(pod)["securityContext"])
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert environment_of(rendered["bare"].pod("worker"))["STEADYHAND_ISOLATION"] == "none"
    assert rendered["bare"].pod("worker")["runtimeClassName"] == "kata"


@pytest.mark.parametrize("name", CHOICES)
def test_secrets_are_named_and_never_made(rendered: dict[str, Rendered], name: str) -> None:
    assert rendered[name].all("Secret") == []
    for pod in rendered[name].pods():
        variables = environment_of(pod)
        for variable in ("STEADYHAND_DATABASE_URL", "STEADYHAND_API_KEY", "STEADYHAND_TOKEN"):
            if variable in variables:
                assert set(variables[variable]) == {"secretKeyRef"}
        assert "STEADYHAND_DATABASE_URL" in variables
        files = {mount["mountPath"] for mount in container_of(pod)["volumeMounts"]}
        for variable, value in variables.items():
            if variable.endswith("_FILE"):
                assert value.rpartition("/")[0] in files
        for volume in pod["volumes"]:
            assert volume.get("secret", {}).get("defaultMode", 0o440) == 0o440
        mounted = {mount["name"] for mount in container_of(pod)["volumeMounts"]} - {"data"}
        assert mounted == {volume["name"] for volume in pod["volumes"]} - {"data"}


def drain_of(rendered: Rendered) -> list[str]:
    """Return the words of `steadyhand` that a worker's stop begins with."""
    words: list[str] = container_of(rendered.pod("worker"))["lifecycle"]["preStop"]["exec"]["command"]
    assert words[0] == "steadyhand"
    return words[1:]


# --- what the service has ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_each_variable_is_one_of_the_service(rendered: dict[str, Rendered], name: str) -> None:
    settings = {setting.variable for setting in list_settings()}
    others = set(re.findall(r"^\| `([A-Z_]+)` \|", text_of("settings.md"), re.MULTILINE))
    known = settings | others | {f"{each}_FILE" for each in others} | {"HTTPS_PROXY"}
    for pod in rendered[name].pods():
        assert set(environment_of(pod)) <= known


@pytest.mark.parametrize("name", CHOICES)
def test_each_command_of_a_container_is_one_of_the_command_line(
    rendered: dict[str, Rendered], name: str
) -> None:
    commands = [container_of(pod)["args"] for pod in rendered[name].pods()]
    for command in (*commands, drain_of(rendered[name])):
        group: Any = typer.main.get_command(app)
        group.get_command(None, command[0]).make_context(command[0], command[1:])


def test_probes_ask_the_routes_for_them(rendered: dict[str, Rendered]) -> None:
    routes = text_of("http-api.md")
    for pod in rendered["full"].pods():
        container = container_of(pod)
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["path"] == ("/readyz" if probe == "readinessProbe" else "/livez")
            assert f"`GET {asked['path']}`" in routes
            assert asked["port"] in ports


def test_a_stop_of_a_worker_drains_it_and_waits_longer_than_the_drain(rendered: dict[str, Rendered]) -> None:
    longer = render({**SMALLEST, "workers": {"drainSeconds": 7200}})
    for each, seconds in ((rendered["smallest"], 3600), (longer, 7200)):
        assert drain_of(each) == ["drain", "--wait", "--until-restart", "--timeout", f"{seconds}s"]
        assert each.pod("worker")["terminationGracePeriodSeconds"] >= seconds + 90


def test_each_node_has_the_name_of_its_pod_and_a_directory_of_its_own(rendered: dict[str, Rendered]) -> None:
    for name in ("full", "bare"):
        for pod in rendered[name].pods():
            node = environment_of(pod)["STEADYHAND_SERVICE__NODE"]
            assert node == {"fieldRef": {"fieldPath": "metadata.name"}}
            (mount,) = [each for each in container_of(pod)["volumeMounts"] if each["name"] == "data"]
            assert environment_of(pod)["STEADYHAND_DATA_DIR"].startswith(f"{mount['mountPath']}/")
    workers = rendered["full"].one("StatefulSet")
    (claim,) = workers["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert "data" not in {volume["name"] for volume in rendered["full"].pod("worker")["volumes"]}
    assert "volumeClaimTemplates" not in rendered["bare"].one("StatefulSet")["spec"]


def test_the_settings_reach_the_nodes_and_a_change_of_them_is_a_change_of_the_pods(
    rendered: dict[str, Rendered],
) -> None:
    config = rendered["full"].one("ConfigMap")["data"]["steadyhand.toml"]
    assert tomllib.loads(config) == tomllib.loads(FULL["config"])

    def marks(each: Rendered) -> set[str]:
        return {
            workload["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for workload in each.workloads
        }

    other = render({**FULL, "config": "[defaults]\nbudget_usd = 3\n"})
    assert len(marks(rendered["full"])) == len(marks(other)) == 1
    assert marks(rendered["full"]) != marks(other)


# --- what is around the pods -----------------------------------------------------------------------------


def selected(rendered: Rendered, labels: Mapping[str, str]) -> list[str]:
    return [
        each["metadata"]["name"]
        for each in rendered.workloads
        if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
    ]


@pytest.mark.parametrize("name", CHOICES)
def test_each_service_policy_and_budget_selects_the_pods_of_its_name(
    rendered: dict[str, Rendered], name: str
) -> None:
    it = rendered[name]
    for each in it.workloads:
        assert selected(it, each["spec"]["selector"]["matchLabels"]) == [each["metadata"]["name"]]
    assert len(it.all("Service")) == len(it.all("NetworkPolicy")) == len(it.all("PodDisruptionBudget")) == 2
    for each in it.all("Service"):
        assert selected(it, each["spec"]["selector"]) == [each["metadata"]["name"]]
        (target,) = [port["targetPort"] for port in each["spec"]["ports"]]
        pod = it.pod(each["metadata"]["name"].rpartition("-")[2])
        assert target in {port["name"] for port in container_of(pod)["ports"]}
    for each in it.all("NetworkPolicy"):
        assert selected(it, each["spec"]["podSelector"]["matchLabels"]) == [each["metadata"]["name"]]
    for each in it.all("PodDisruptionBudget"):
        assert selected(it, each["spec"]["selector"]["matchLabels"]) == [each["metadata"]["name"]]
        assert each["spec"]["maxUnavailable"] == 1


def test_nodes_reach_the_database_names_and_public_addresses_alone(rendered: dict[str, Rendered]) -> None:
    for each in rendered["smallest"].all("NetworkPolicy"):
        assert each["spec"]["policyTypes"] == ["Ingress", "Egress"]
        names, database, public = each["spec"]["egress"]
        assert {port["port"] for port in names["ports"]} == {53}
        assert database == {"ports": [{"port": 5432}]}
        assert {port["port"] for port in public["ports"]} == {443, 22}
        blocks = [peer["ipBlock"] for peer in public["to"]]
        assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(blocks[0]["except"])
        assert {"fc00::/7", "fe80::/10"} <= set(blocks[1]["except"])
    full = rendered["full"].one("NetworkPolicy", "-worker")["spec"]
    assert full["egress"][1]["to"] == FULL["networkPolicy"]["database"]["to"]
    assert full["egress"][-1] == FULL["networkPolicy"]["extraEgress"][0]


def test_nobody_reaches_a_worker_but_who_may_scrape_it(rendered: dict[str, Rendered]) -> None:
    assert rendered["smallest"].one("NetworkPolicy", "-worker")["spec"]["ingress"] == []
    (scraped,) = rendered["full"].one("NetworkPolicy", "-worker")["spec"]["ingress"]
    assert scraped["from"] == FULL["networkPolicy"]["scrapers"]
    assert scraped["ports"] == [{"port": "metrics"}]
    called, _ = rendered["full"].one("NetworkPolicy", "-serve")["spec"]["ingress"]
    assert called["ports"] == [{"port": "http"}]
    assert render({**SMALLEST, "networkPolicy": {"enabled": False}}).all("NetworkPolicy") == []


def test_callers_reach_the_service_by_the_names_that_it_accepts(rendered: dict[str, Rendered]) -> None:
    (rule,) = rendered["full"].one("Ingress")["spec"]["rules"]
    service = rule["http"]["paths"][0]["backend"]["service"]["name"]
    assert service == rendered["full"].one("Service", "-serve")["metadata"]["name"]
    variables = environment_of(rendered["full"].pod("serve"))
    assert variables["STEADYHAND_SERVER__PUBLIC_URL"] == f"https://{rule['host']}"
    assert f"{service}.agents.svc" in variables["STEADYHAND_SERVER__ALLOWED_HOSTS"].split(",")
    assert "STEADYHAND_SERVER__PUBLIC_URL" not in environment_of(rendered["smallest"].pod("serve"))


def test_keda_scales_the_workers_by_the_jobs_that_wait_and_run(rendered: dict[str, Rendered]) -> None:
    assert rendered["smallest"].all("ScaledObject") == []
    assert rendered["smallest"].one("StatefulSet")["spec"]["replicas"] == 2
    for name, kind, target in (
        ("full", "postgresql", "targetQueryValue"),
        ("bare", "prometheus", "threshold"),
    ):
        workers = rendered[name].one("StatefulSet")
        assert "replicas" not in workers["spec"], "an upgrade would undo what KEDA set"
        scaled = rendered[name].one("ScaledObject")["spec"]
        assert scaled["scaleTargetRef"] == {
            "apiVersion": workers["apiVersion"],
            "kind": "StatefulSet",
            "name": workers["metadata"]["name"],
        }
        (trigger,) = scaled["triggers"]
        assert (trigger["type"], trigger["metricType"]) == (kind, "AverageValue")
        slots = environment_of(rendered[name].pod("worker"))["STEADYHAND_CONCURRENCY"]
        assert trigger["metadata"][target] == slots
        assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes texts alone"
    login = rendered["full"].one("TriggerAuthentication")
    (trigger,) = rendered["full"].one("ScaledObject")["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": login["metadata"]["name"]}
    assert login["spec"]["secretTargetRef"] == [
        {"parameter": "connection", "name": "steadyhand-keda", "key": "url"}
    ]
    assert rendered["bare"].all("TriggerAuthentication") == []


def test_the_query_for_prometheus_is_one_of_a_metric_of_the_service(rendered: dict[str, Rendered]) -> None:
    (trigger,) = rendered["bare"].one("ScaledObject")["spec"]["triggers"]
    (metric,) = re.findall(r"steadyhand_\w+", trigger["metadata"]["query"])
    assert f"| `{metric}` | gauge | `state` |" in text_of("metrics.md")


# --- a release -----------------------------------------------------------------------------------------


def test_the_chart_is_of_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_the_notes_warn_of_what_is_left_open(rendered: dict[str, Rendered]) -> None:
    assert "WARNING" not in rendered["full"].notes
    for words in ("adminKey.secretName is not set", "callbacks.secretName is not set"):
        assert words in rendered["smallest"].notes
    assert "the pod is the only boundary" in rendered["bare"].notes
    assert "in the clear" in render({**SMALLEST, "ingress": {"enabled": True, "host": "a.example"}}).notes
    assert "without a network policy" in render({**SMALLEST, "networkPolicy": {"enabled": False}}).notes


def test_the_how_to_names_the_secrets_that_its_values_need_and_the_objects_that_they_make() -> None:
    (page,) = [each for each in pages() if each.stem == "kubernetes"]
    blocks = blocks_of(page)
    (values,) = [yaml.safe_load(each.text) for each in blocks if each.argument == "values.yaml"]
    found = render(values)
    assert "WARNING" not in found.notes
    commands = "".join(each.text for each in blocks if each.language == "sh")
    for name in ("database", "adminKey", "callbacks", "model"):
        assert f"secret generic {values[name]['secretName']} " in commands
        assert f"{values[name].get('key', DEFAULTS[name]['key'])}=" in commands
    (release,) = set(re.findall(r"--install (\S+)", commands))
    deployments = {f"{release}-serve"}
    assert set(re.findall(r"deployment/(\S+)", commands)) == deployments
    assert found.one("Deployment")["metadata"]["name"] == "demo-steadyhand-serve"
