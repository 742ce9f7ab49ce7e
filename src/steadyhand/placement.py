"""The nodes that a job may run on: the labels that it asks for, and the nodes that it must not have. Pure."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

MAX_LABELS: Final = 32
"""The most labels of a node, and the most that a job asks for."""
LABEL_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/=-]{0,62}")
LABEL_RULE: Final = "a label has up to 63 letters, digits and . _ / = - and begins with a letter or a digit"
NODE_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NODE_NAME_RULE: Final = (
    "a node's name has up to 128 letters, digits and . _ - and begins with a letter or a digit"
)


@dataclass(frozen=True, slots=True)
class Placement:
    """The demands of a job: a node that fits has all labels, and is none of the nodes. Sorted, without doubles."""

    labels: tuple[str, ...] = ()
    not_on_nodes: tuple[str, ...] = ()

    def fits(self, node: str, labels: Iterable[str]) -> bool:
        """Return True if a node of this name and with these labels may run the job."""
        return node not in self.not_on_nodes and set(self.labels) <= set(labels)

    @property
    def is_free(self) -> bool:
        """True if any node may run the job."""
        return not self.labels and not self.not_on_nodes

    def describe(self) -> str:
        """Return the demands as a part of a sentence that begins with "a node"."""
        parts = []
        if self.labels:
            parts.append(f"with the label{'s' * (len(self.labels) > 1)} {', '.join(self.labels)}")
        if self.not_on_nodes:
            parts.append(f"other than {', '.join(self.not_on_nodes)}")
        return " ".join(["a node", *parts])


ANYWHERE: Final = Placement()
"""The placement of a job that asks for nothing."""


def combine(*demands: tuple[Collection[str], Collection[str]]) -> Placement:
    """Return the placement of a job whose parts ask for labels and exclude nodes, such as its agent and itself."""
    if not any(labels or nodes for labels, nodes in demands):
        return ANYWHERE
    return Placement(
        tuple(sorted({label for labels, _ in demands for label in labels})),
        tuple(sorted({node for _, nodes in demands for node in nodes})),
    )
