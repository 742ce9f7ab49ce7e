"""What the nodes of one database know of each other: events, live text, keys and sign-in links."""

from functools import partial

import httpx2
from tests.blackbox.test_events import follow

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.service import wait_until

TEXT = "the whole answer comes in pieces, from another node"


def is_refused(client: httpx2.Client) -> bool:
    return client.get("/v1/jobs").status_code == 401


def test_a_client_of_one_node_follows_a_run_on_another_with_its_live_text(cluster: Cluster) -> None:
    front = cluster.front
    job_id = front.submit(f'[[standin: text="{TEXT}" pace=60 chunk=4]]')["id"]
    found = follow(front, job_id)
    assert [run["node"] for run in front.get_job(job_id)["runs"]] == ["worker"]
    numbers = [data["seq"] for ident, _, data in found if ident is not None]
    assert numbers == list(range(1, front.get_job(job_id)["last_event"] + 1))
    live = [data["data"]["text"] for _, name, data in found if name == "text.delta"]
    assert len(live) > 2
    assert TEXT.endswith("".join(live))


def test_keys_and_sign_in_links_of_one_node_hold_on_another(cluster: Cluster) -> None:
    front, other = cluster["front"], cluster["back"]
    for number in range(3):
        key = front.client.post("/v1/keys", json={"name": f"key {number}", "scopes": ["read"]}).json()
        with other.new_client(key["secret"]) as client:
            assert client.get("/v1/jobs").status_code == 200  # at once, also before it has heard of the key
            assert front.client.delete(f"/v1/keys/{key['id']}").status_code < 300
            wait_until(partial(is_refused, client))
    link = front.client.post("/ui/links").json()["url"].partition("#")[2]
    origin = {"origin": other.url}
    with other.new_client(None) as browser:
        opened = browser.post("/ui/open", data={"secret": link}, headers=origin, follow_redirects=False)
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        assert browser.get("/", follow_redirects=False).status_code == 200
        again = browser.post("/ui/open", data={"secret": link}, headers=origin, follow_redirects=False)
        assert again.status_code == 401
        cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}
    # The name of the cookie has the port: behind one address it is the same on each node.
    name, _, token = cookie["cookie"].partition("=")
    moved = {"cookie": f"{name.rpartition('_')[0]}_{front.url.rpartition(':')[2]}={token}"}
    with front.new_client(None) as browser:
        assert browser.get("/", headers=moved, follow_redirects=False).status_code == 200
