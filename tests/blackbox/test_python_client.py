"""The Python client and a service that is killed and started again under it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.client.client_kinds import MakeClient, make_blocking_async_client
from tests.client.cutting_proxy import CuttingProxy

from steadyhand import Client, Event, Job
from steadyhand.testing.service import ADMIN_KEY, MakeService, wait_until


def follow(make_client: MakeClient, url: str, job_id: str) -> list[Event]:
    with make_client(url, ADMIN_KEY) as client:
        return list(client.follow(job_id))


def wait(make_client: MakeClient, url: str, job_id: str) -> Job:
    with make_client(url, ADMIN_KEY) as client:
        return client.wait(job_id, timeout_seconds=60)


def test_followers_and_waiters_of_a_job_outlive_a_crash_of_the_service(
    make_service: MakeService, common_dir: Path
) -> None:
    service = make_service(env={"STEADYHAND_CONCURRENCY": "1"}).start()
    with (
        CuttingProxy(service.url, b"/v1/jobs/", b"\0") as proxy,
        Client(proxy.url, ADMIN_KEY) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        running = client.submit(f"[[standin: touch={common_dir}/on sleep=60]]")
        wait_until((common_dir / "on").exists)
        job = client.submit(f"[[standin: run='echo x >> {common_dir}/ran']]")
        kinds = (Client, make_blocking_async_client)
        followers = [pool.submit(follow, kind, proxy.url, job.id) for kind in kinds]
        waiters = [pool.submit(wait, kind, proxy.url, job.id) for kind in kinds]
        wait_until(lambda: len(proxy.requests) >= 4)
        service.kill()
        service.restart()
        proxy.forward_to(service.url)
        for waiter in waiters:
            assert waiter.result(90).state == "completed"
        for follower in followers:
            events = [event for event in follower.result(90) if event.seq is not None]
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert events[-1].new_state == "completed"
        assert (common_dir / "ran").read_text() == "x\n"
        interrupted = client.get(running)
        assert interrupted.state == "interrupted"
        assert client.retry(interrupted).id == client.retry(interrupted).id
        # Cancelled in the queue, it would have no second run.
        wait_until(lambda: client.get(running).run == 2)
        client.cancel(running)
        assert (client.wait(running, timeout_seconds=30).state, client.get(running).run) == ("cancelled", 2)


def test_followers_and_waiters_go_on_with_a_job_that_the_next_start_runs_again(
    make_service: MakeService, common_dir: Path
) -> None:
    service = make_service(env={"STEADYHAND_SERVICE__DRAIN_SECONDS": "0.2"}).start()
    script = f"test -e {common_dir}/again || {{ touch {common_dir}/again; sleep 60; }}"
    kinds = (Client, make_blocking_async_client)
    with (
        CuttingProxy(service.url, b"/v1/jobs/", b"\0") as proxy,
        Client(proxy.url, ADMIN_KEY) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        job = client.submit(f"[[standin: run='{script}']]", on_interrupt="restart")
        wait_until((common_dir / "again").exists)
        followers = [pool.submit(follow, kind, proxy.url, job.id) for kind in kinds]
        waiters = [pool.submit(wait, kind, proxy.url, job.id) for kind in kinds]
        wait_until(lambda: len(proxy.requests) >= 4)
        service.terminate(30)
        service.restart()
        proxy.forward_to(service.url)
        for waiter in waiters:
            ended = waiter.result(90)
            assert (ended.state, ended.is_final, ended.run) == ("completed", True, 2)
        for follower in followers:
            events = [event for event in follower.result(90) if event.seq is not None]
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            states = [event.new_state for event in events if event.new_state is not None]
            assert states == ["queued", "running", "interrupted", "queued", "running", "completed"]
