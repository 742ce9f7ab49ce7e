"""The page of the doctor and that of the service: checks on request, bounded, and places that promise nothing."""

import asyncio
import html
from collections.abc import AsyncGenerator, Iterator, Sequence

import pytest
from tests.api.api_service import LIMITED, RunningService, running_service
from tests.web.page_client import PageClient

from steadyhand.api import ApiOptions
from steadyhand.errors import RetryLater
from steadyhand.ports import DoctorCheck
from steadyhand.ports.nodes import Drained, NodeCounts, NodeFigures, NodeInfo, NodeState
from steadyhand.redact import Redactor
from steadyhand.testing.contracts.samples import NOON
from steadyhand.web import create_routes
from steadyhand.web.doctor_runs import REST_SECONDS, DoctorRuns

SECRET = "live-secret-of-a-provider-0123456789"
CHECKS = (
    DoctorCheck("cli", ok=True, detail="runs <b>here</b>"),
    DoctorCheck("limits", ok=True, detail="no control group", remedy="delegate one", warning=True),
    DoctorCheck("workspace x\u202e", ok=False, detail=f"cannot log in with {SECRET}", remedy="Check\nit."),
)


class Checks:
    """Checks that count their runs."""

    runs = 0

    async def __call__(self) -> AsyncGenerator[Sequence[DoctorCheck], None]:
        self.runs += 1
        yield CHECKS[:1]
        await asyncio.sleep(0)
        yield CHECKS[1:]


class TwoNodes:
    """This node, and one that went silent."""

    def counts(self) -> NodeCounts:
        return NodeCounts(1, 1)

    async def load(self) -> None:
        """Do nothing."""

    async def list_nodes(self) -> Sequence[NodeState]:
        here = NodeInfo("node <7>", version="1.2.3", schema="0011", labels=("<gpu>",), slots=2)
        there = NodeInfo("node \u202e8", "worker", host="<b>far</b>")
        return [
            NodeState(here, NodeFigures(1, 0, 0.25, 3), None, 0.4),
            NodeState(there, NodeFigures(), Drained(NOON, until_restart=True), 4_000.0),
        ]

    async def drain(self, name: str, *, until_restart: bool, by: str) -> NodeState:
        raise NotImplementedError

    async def undrain(self, name: str) -> NodeState:
        raise NotImplementedError


@pytest.fixture(scope="module")
def checks() -> Checks:
    return Checks()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, checks: Checks) -> Iterator[RunningService]:
    options = ApiOptions(
        run_doctor=checks.__call__, redactor=Redactor([SECRET]), node="node <7>", nodes=TwoNodes()
    )
    root = tmp_path_factory.mktemp("doctor")
    with running_service(root, options=options, more_routes=create_routes()) as found:
        yield found


def test_the_checks_run_on_request_alone_and_the_failed_ones_come_first(
    page: PageClient, checks: Checks
) -> None:
    assert "Run the checks" in page.get("/ui/doctor").text
    assert checks.runs == 0
    answer = page.send("/ui/doctor")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/doctor")
    text = page.get("/ui/doctor").text
    assert checks.runs == 1  # a reload runs nothing
    failed, lacking, passed = (text.index(f">{word}</span>") for word in ("failed", "lacking", "passed"))
    assert failed < lacking < passed
    assert "What to do: Check\nit." in text
    assert "What to do: delegate one" in text
    assert "1 failed" in text


def test_text_of_a_check_is_shown_as_text_and_without_secrets(page: PageClient) -> None:
    page.send("/ui/doctor")
    text = page.get("/ui/doctor").text
    assert "runs &lt;b&gt;here&lt;/b&gt;" in text
    assert "⟨U+202E⟩" in text
    assert SECRET not in text
    assert "cannot log in with" in text


def test_the_doctor_needs_the_scope_admin_and_a_form_of_the_session(
    service: RunningService, page: PageClient, checks: Checks
) -> None:
    before = checks.runs
    with PageClient(service) as client:
        client.sign_in(LIMITED)
        assert client.get("/ui/doctor").status_code == 403
        assert client.send("/ui/doctor").status_code == 403
        assert "/ui/doctor" not in client.get("/ui/service").text
    assert page.http.post("/ui/doctor", data={"csrf": "x"}).status_code == 403
    assert checks.runs == before


def test_the_service_shows_its_nodes_and_has_no_schedules(page: PageClient) -> None:
    raw = page.get("/ui/service").text
    text = html.unescape(raw)
    assert "<bdi>node <7></bdi>" in text
    assert "<bdi><gpu></bdi>" in text
    assert "node <7>" not in raw
    assert "<b>far</b>" not in raw
    assert "node ⟨U+202E⟩8" in text
    assert "1.2.3" in text
    assert '<td class="number">1 of 2</td><td class="number">0</td><td class="number">3</td>' in text
    assert '<span class="good">takes runs</span>' in text
    assert '<span class="bad">silent</span>' in text
    assert "until its restart" in text
    assert "There are no schedules yet." in text


def test_a_service_that_takes_no_work_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    async def refuse() -> None:
        raise RetryLater("The service is stopping <soon>.", code="draining")

    options = ApiOptions(readiness_check=refuse)
    root = tmp_path_factory.mktemp("draining")
    with (
        running_service(root, options=options, more_routes=create_routes()) as found,
        PageClient(found) as page,
    ):
        page.sign_in()
        assert "The service is stopping &lt;soon&gt;." in page.get("/ui/service").text
        assert "This service has no doctor" in page.get("/ui/doctor").text
        assert page.send("/ui/doctor").status_code == 404


def test_a_request_during_a_run_gets_the_report_of_that_run() -> None:
    async def main() -> None:
        runs, gate, started = 0, asyncio.Event(), asyncio.Event()

        async def iter_checks() -> AsyncGenerator[Sequence[DoctorCheck], None]:
            nonlocal runs
            runs += 1
            started.set()
            await gate.wait()
            yield CHECKS

        doctor = DoctorRuns()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(doctor.run(iter_checks))
            await started.wait()
            second = group.create_task(doctor.run(iter_checks))
            await asyncio.sleep(0)
            gate.set()
        assert runs == 1
        assert first.result() is second.result() is doctor.newest
        assert (await doctor.run(iter_checks)) is not first.result()

    asyncio.run(main())


def test_a_run_that_hangs_is_stopped_keeps_what_it_found_and_is_followed_by_a_rest() -> None:
    async def main() -> None:
        now, closed = 1000.0, []

        async def iter_checks() -> AsyncGenerator[Sequence[DoctorCheck], None]:
            try:
                yield CHECKS[:1]
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        doctor = DoctorRuns(lambda: now)
        report = await doctor.run(iter_checks, max_seconds=0.01)
        assert (report.is_complete, list(report.checks), closed) == (False, [CHECKS[0]], [True])
        with pytest.raises(RetryLater) as caught:
            await doctor.run(iter_checks)
        assert REST_SECONDS <= caught.value.retry_after <= REST_SECONDS + 1
        now += REST_SECONDS
        assert not (await doctor.run(iter_checks, max_seconds=0.01)).is_complete

    asyncio.run(main())
