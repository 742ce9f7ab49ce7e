"""Two versions side by side on one database: while the nodes are upgraded one after the other, jobs go through both."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

import steadyhand
from steadyhand.store.schema import NEWEST_REVISION, OLDEST_REVISION
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import MakeService, Service, wait_until

PACKAGE = Path(steadyhand.__file__).parent
REPOSITORY = PACKAGE.parent.parent
MIGRATIONS = "src/steadyhand/store/migrations/versions"
FIRST_OF_MANY_NODES = "src/steadyhand/serve/queue_setup.py"
"""A file of the first version in which several services use one database."""
EXPANSION = '''\
"""A migration of a version to come, which only adds."""

import sqlalchemy as sa
from alembic import op

revision = "0999"
down_revision = "{newest}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column with a default, one that may be null, and a table."""
    op.add_column("jobs", sa.Column("later", sa.Text, nullable=False, server_default="no"))
    op.add_column("runs", sa.Column("later", sa.Text))
    op.create_table("later", sa.Column("id", sa.BigInteger, primary_key=True))
'''


@pytest.fixture(scope="module")
def next_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function for the folder of a version to come: this package with one more migration."""

    def make(oldest: str) -> Path:
        folder = tmp_path_factory.mktemp("next")
        copied = folder / "steadyhand"
        shutil.copytree(PACKAGE, copied)  # with what is compiled already
        text = EXPANSION.format(newest=NEWEST_REVISION)
        (copied / "store/migrations/versions/r0999_later.py").write_text(text, encoding="utf-8")
        schema = copied / "store/schema.py"
        changed = schema.read_text("utf-8")
        for name, before, after in (
            ("NEWEST_REVISION", NEWEST_REVISION, "0999"),
            ("OLDEST_REVISION", OLDEST_REVISION, oldest),
        ):
            line = f'{name} = "{before}"\n'
            assert changed.count(line) == 1
            changed = changed.replace(line, f'{name} = "{after}"\n')
        schema.write_text(changed, encoding="utf-8")
        readable_by_agents(folder)
        return folder

    return make


def readable_by_agents(folder: Path) -> None:
    """Let agents read the package, from which their supervisors run."""
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)


@pytest.fixture(scope="module")
def former_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package of the commit before the newest migration."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", f"safe.directory={REPOSITORY}", "-C", str(REPOSITORY), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    newest = next((REPOSITORY / MIGRATIONS).glob(f"r{NEWEST_REVISION}_*.py"))
    commit = git("log", "--diff-filter=A", "--format=%H", "-1", "--", str(newest.relative_to(REPOSITORY)))
    before = f"{commit}^" if commit else ""
    if not before or not git("rev-parse", "--verify", before):
        pytest.skip("there is no history with the commit before the newest migration")
    if not git("ls-tree", before, FIRST_OF_MANY_NODES):
        pytest.skip("one service alone uses a database in the commit before the newest migration")
    folder = tmp_path_factory.mktemp("former")
    archive = folder / "source.tar"
    git("archive", "--format=tar", f"--output={archive}", before, "src/steadyhand")
    shutil.unpack_archive(archive, folder, filter="data")
    readable_by_agents(folder)
    return folder / "src"


def pass_jobs_through_both(first: Service, second: Service) -> None:
    """Let each of two nodes accept jobs, run some, and show those of the other."""
    jobs = [service.submit("hello")["id"] for service in (first, second) for _ in range(2)]
    for job_id in jobs:
        ended = first.wait_until_ended(job_id)
        assert ended["state"] == "completed", ended
        seen = second.client.get(f"/v1/jobs/{job_id}").json()
        assert (seen["state"], seen["answer"]) == (ended["state"], ended["answer"])
    listed = [service.client.get("/v1/jobs", params={"limit": 100}).json() for service in (first, second)]
    assert all(set(jobs) <= {job["id"] for job in page["data"]} for page in listed)


def run_on(service: Service, other: Service) -> None:
    """Let a job that one node accepts run on the other one."""
    name = service.client.get("/v1/nodes").json()["data"]
    mine = next(node["name"] for node in name if node["here"])
    job_id = service.submit("hello", not_on_nodes=[mine])["id"]
    ended = service.wait_until_ended(job_id)
    assert ended["state"] == "completed"
    assert ended["runs"][0]["node"] != mine
    assert other.client.get(f"/v1/jobs/{job_id}").json()["state"] == "completed"


class TestTwoVersions:
    @pytest.fixture(autouse=True)
    def place(self, postgres: Postgres, make_service: MakeService) -> None:
        self.url = postgres.url(postgres.create_database())
        self.make_service = make_service

    def node(self, name: str, package: Path | None = None) -> Service:
        env = {"STEADYHAND_DATABASE_URL": self.url, "STEADYHAND_SERVICE__NODE": name}
        if package is not None:
            env["PYTHONPATH"] = str(package)
        return self.make_service(env=env)

    def revision(self) -> str:
        with psycopg.connect(self.url) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        assert found is not None
        return str(found[0])

    @pytest.mark.long  # that of the commit before goes on beside this one in the same way
    def test_this_version_goes_on_beside_the_next_one_and_starts_again_on_its_schema(
        self, next_package: Callable[[str], Path]
    ) -> None:
        with self.node("this") as this, self.node("next", next_package(OLDEST_REVISION)) as following:
            assert self.revision() == "0999"
            pass_jobs_through_both(this, following)
            run_on(this, following)
            run_on(following, this)
            schemas = {node["name"]: node["schema"] for node in this.client.get("/v1/nodes").json()["data"]}
            assert schemas == {"this": NEWEST_REVISION, "next": "0999"}
            assert this.terminate() == 0
            this.restart()
            assert "store.newer_schema" in this.log_since_start
            pass_jobs_through_both(this, following)

    def test_a_version_that_takes_something_away_waits_for_the_nodes_before_it_and_then_keeps_them_out(
        self, next_package: Callable[[str], Path]
    ) -> None:
        following = self.node("next", next_package("0999"))
        with self.node("this") as this:
            process = following.spawn()
            assert process.wait(60) == 75
            assert "are at work: this (" in following.log
            assert self.revision() == NEWEST_REVISION
            assert this.wait_until_ended(this.submit("hello")["id"])["state"] == "completed"
            assert this.terminate() == 0
        with following:
            assert this.spawn().wait(60) == 2
            assert "is too old for the database's schema, 0999." in this.log_since_start
            assert following.wait_until_ended(following.submit("hello")["id"])["state"] == "completed"

    def test_the_commit_before_the_newest_migration_works_beside_this_one(self, former_package: Path) -> None:
        with self.node("former", former_package) as former:
            earlier = former.wait_until_ended(former.submit("hello")["id"])
            before = self.revision()
            assert before < NEWEST_REVISION
            with self.node("this") as this:
                assert self.revision() == NEWEST_REVISION
                assert this.client.get(f"/v1/jobs/{earlier['id']}").json()["answer"] == earlier["answer"]
                pass_jobs_through_both(former, this)
                if before >= OLDEST_REVISION:
                    assert former.terminate() == 0
                    former.restart()
                    wait_until(lambda: former.client.get("/readyz").status_code == 200)
                    pass_jobs_through_both(this, former)
