"""What the nodes of a chaos run have around them: a database, and in the long forms a model and an object store."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.kinds import CHECKED_OUT, IN_PLACE
from tests.chaos.model_calls import CountingModel
from tests.service_fixtures import make_repository

from steadyhand.testing.cli import install_standin
from steadyhand.testing.cluster import SHORT_LEASE, Cluster
from steadyhand.testing.object_server import ObjectServer, object_server
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import UNUSED_MODEL_URL, Service

NODES = ("one", "two", "three")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The servers of a run, and the settings of its nodes."""

    postgres: Postgres
    directory: Path
    model: CountingModel | None = None
    objects: ObjectServer | None = None
    config: str = ""

    def make_cluster(self, url: str) -> Cluster:
        """Return a cluster that was not started."""
        stand_in = install_standin(self.directory / "stand-in")

        def make_service(**options: object) -> Service:
            root = Path(tempfile.mkdtemp(prefix="node-", dir=self.directory))
            root.chmod(0o755)
            return Service(root, stand_in, **options)  # type: ignore[arg-type]

        return Cluster(
            make_service,
            url,
            serving=(),
            working=(),
            both=NODES,
            env={"STEADYHAND_ISOLATION": "none", "STEADYHAND_SERVICE__MAX_QUEUED": "10000"},
            constants=SHORT_LEASE,
            config=self.config,
            model=UNUSED_MODEL_URL if self.model is None else self.model.url,
        )


@contextmanager
def open_surroundings(directory: Path, *, is_long: bool) -> Iterator[Surroundings]:
    """Run the servers for the length of the block."""
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres())
        if not is_long:
            yield Surroundings(postgres, directory)
            return
        objects = stack.enter_context(object_server(directory / "objects"))
        model = stack.enter_context(CountingModel())
        yield Surroundings(postgres, directory, model, objects, _settings(directory, objects))


def _settings(directory: Path, objects: ObjectServer) -> str:
    """Create the workspaces; return the settings with them, and with the object store for all files of jobs."""
    repository, yard = directory / CHECKED_OUT, directory / IN_PLACE
    make_repository(repository, {"old.txt": "old\n"})
    yard.mkdir()
    if os.geteuid() == 0:
        os.chown(yard, 65534, 65534)  # the agents of a directory in place are its owner
    options = json.dumps([f"{name}={value}" for name, value in objects.options.items()])
    return (
        f'[artifacts]\nurl = "{objects.url}"\noptions = {options}\ndatabase_bytes = 0\n'
        f'[workspaces.{CHECKED_OUT}]\nrepository = "{repository}"\n'
        f'[workspaces.{IN_PLACE}]\nrepository = "{yard}"\nmode = "in_place"\n'
    )
