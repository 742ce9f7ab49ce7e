"""The Python client of the service: small and blocking.

    with Client("http://127.0.0.1:8080", token) as client:
        job = client.submit("Fix the failing test.", workspace="infra", budget_usd=2.0)
        for event in client.events(job["id"]):
            print(event["type"], event["data"])
        print(client.get(job["id"])["answer"])

Jobs, events, agents and workspaces are the JSON objects of the HTTP API, unchanged. Errors are those of
`steadyhand.errors`: `InvalidRequest`, `Unauthenticated`, `Forbidden`, `NotFound`, `Conflict`, `RetryLater` and, if no
service answers, `Unreachable`.
"""

from steadyhand.client.client import DEFAULT_URL, ENDED_STATES, Client

__all__ = ["DEFAULT_URL", "ENDED_STATES", "Client"]
