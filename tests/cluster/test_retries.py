"""Retries on several nodes."""

from concurrent.futures import ThreadPoolExecutor

from tests.cluster.conftest import MakeCluster

from steadyhand.testing.service import wait_until


def test_of_jobs_that_are_retried_at_once_no_more_wait_than_their_key_may(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(serving=(), working=(), both=("one", "two"))
    limits = {"running_jobs": 1, "queued_jobs": 2}
    body = {"name": "limited", "scopes": ["submit", "read", "cancel"], "limits": limits}
    secret = cluster.front.client.post("/v1/keys", json=body).json()["secret"]

    def submit(prompt: str) -> str:
        with cluster.front.new_client(secret) as caller:
            answer = caller.post("/v1/jobs", json={"prompt": prompt, "workspace": "scratch"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def retry(number: int) -> tuple[int, object]:
        with list(cluster.nodes.values())[number % 2].new_client(secret) as caller:
            answer = caller.post(f"/v1/jobs/{ended[number]}/retry")
        return answer.status_code, answer.json().get("code")

    ended = []
    for _ in range(7):
        ended.append(submit("[[standin: text=done]]"))
        cluster.front.wait_until_ended(ended[-1], 60)
    running = submit("[[standin: say=hello sleep=600]]")
    wait_until(lambda: cluster.front.get_job(running)["state"] == "running", 60)
    with ThreadPoolExecutor(len(ended)) as pool:
        answers = list(pool.map(retry, range(len(ended))))
    assert sorted(answers, key=str) == [(202, None)] * 2 + [(429, "too_many_jobs")] * 5
    for job_id in (*ended, running):
        cluster["two"].client.post(f"/v1/jobs/{job_id}/cancel")
