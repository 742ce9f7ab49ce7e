"""The chart of `deploy/helm`: rendered by Helm's own library, and its objects by the schemas of Kubernetes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

CHART = Path(__file__).parents[2] / "deploy/helm"
RELEASE, NAMESPACE = "demo", "agents"
SMALLEST: Mapping[str, Any] = {"database": {"secretName": "steadyhand-database"}}
FULL: Mapping[str, Any] = {
    **SMALLEST,
    "adminKey": {"secretName": "steadyhand-admin"},
    "model": {"secretName": "steadyhand-model"},
    "callbacks": {"secretName": "steadyhand-callbacks"},
    "secretFiles": [{"name": "git", "secretName": "steadyhand-git"}],
    "image": {"repository": "registry.example.org/steadyhand", "pullSecrets": ["registry"]},
    "config": '[defaults]\nbudget_usd = 2\n\n[git]\ncredential_file = "/etc/steadyhand/secrets/git/credentials"\n',
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.org:3128"}],
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "host": "agents.example.org",
        "tlsSecretName": "agents-tls",
        "annotations": {"example.org/buffering": "off"},
    },
    "serve": {"podAnnotations": {"example.org/team": "a"}, "tolerations": [{"operator": "Exists"}]},
    "workers": {"labels": ["gpu", "zone=a"], "nodeSelector": {"pool": "agents"}},
    "autoscaling": {"enabled": True, "postgres": {"secretName": "steadyhand-keda", "key": "url"}},
    "networkPolicy": {
        "scrapers": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "database": {"port": 6432, "to": [{"podSelector": {"matchLabels": {"app": "pgbouncer"}}}]},
        "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"port": 443}]}],
    },
}
"""Values that render each object and each optional part once."""
BARE: Mapping[str, Any] = {
    **SMALLEST,
    "workers": {"isolation": "none", "runtimeClassName": "kata", "persistence": {"enabled": False}},
    "autoscaling": {
        "enabled": True,
        "trigger": "prometheus",
        "prometheus": {"serverAddress": "http://prometheus.monitoring:9090"},
    },
}
"""The other side of each choice."""
_KEDA_GROUP = "keda.sh/v1alpha1"
"""It is no part of Kubernetes, and no package has its schemas without a plugin for every test run."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a release of the chart has."""

    objects: list[dict[str, Any]]
    notes: str

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, suffix: str = "") -> dict[str, Any]:
        """Return the one object of a kind whose name ends so."""
        (found,) = [each for each in self.all(kind) if each["metadata"]["name"].endswith(suffix)]
        return found

    @property
    def workloads(self) -> list[dict[str, Any]]:
        """The objects that have pods."""
        return [each for each in self.objects if "template" in each.get("spec", {})]

    def pods(self) -> Iterator[dict[str, Any]]:
        """Yield the specification of each kind of pod."""
        for each in self.workloads:
            yield each["spec"]["template"]["spec"]

    def pod(self, part: str) -> dict[str, Any]:
        """Return the specification of the pods of a part."""
        (found,) = [each for each in self.workloads if each["metadata"]["name"].endswith(f"-{part}")]
        spec: dict[str, Any] = found["spec"]["template"]["spec"]
        return spec


def render(values: Mapping[str, Any]) -> Rendered:
    """Render a release. Raise Helm's error for values that it refuses."""
    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(dict(values), name=RELEASE, namespace=NAMESPACE)
    notes = texts.pop("steadyhand/templates/NOTES.txt")
    objects = [each for text in texts.values() for each in yaml.safe_load_all(text) if each is not None]
    return Rendered(objects, notes)


def check_schema(manifest: dict[str, Any], version: str) -> None:
    """Raise an error unless a release of Kubernetes knows each field of an object."""
    if manifest["apiVersion"] != _KEDA_GROUP:
        kubernetes_validate.validate(manifest, version, strict=True)


def container_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the one container of a pod."""
    (container,) = pod["containers"]
    assert not pod.get("initContainers")
    found: dict[str, Any] = container
    return found


def environment_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, and else the sources, of the variables of a pod."""
    pairs = [(each["name"], each.get("value", each.get("valueFrom"))) for each in container_of(pod)["env"]]
    assert len(dict(pairs)) == len(pairs), "a variable is set twice"
    return dict(pairs)
