"""The page of costs: sums, budgets with the day on which they run out, forecasts, and what a key may see of them."""

import asyncio
import html
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from tests.api.api_service import CATALOGUE, RunningService, run_job, running_service
from tests.web.page_client import PageClient

from steadyhand.agents import Agent
from steadyhand.control import Caller, Forecast, ForecastRequest
from steadyhand.ports import ModelCall, TokenCounts
from steadyhand.web import create_routes

DOLLAR = 1_000_000
_NUMBERS = count()
CATALOG = replace(
    CATALOGUE, agents={**CATALOGUE.agents, "reviewer": Agent("reviewer", "Reviews.", day_micros=50 * DOLLAR)}
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service with budgets of its own, of an agent and of keys."""
    root = tmp_path_factory.mktemp("costs")
    with running_service(
        root, catalog=CATALOG, more_routes=create_routes(), service_day_micros=200 * DOLLAR
    ) as found:
        yield found


def spend(service: RunningService, micros: int, key: str, *, agent: str = "claude", days: int = 0) -> None:
    """Store a settled call of a model, so many days ago."""
    now = datetime.now(UTC)
    at = min(now, now.replace(hour=0, minute=0, second=1) if days == 0 else now - timedelta(days=days))
    call = ModelCall(
        f"call_{next(_NUMBERS)}",
        "0" * 12,
        1,
        key,
        agent,
        "default",
        "model <m>",
        at,
        settled=True,
        tokens=TokenCounts(input=10, output=5, cache_read=30),
        micros=micros,
    )
    asyncio.run_coroutine_threadsafe(service.store.save_call(call), service.loop).result(20)


def create_key(service: RunningService, name: str, **limits: float) -> tuple[str, str]:
    """Return the secret and the id of a new key."""
    with service.client() as admin:
        found = admin.post("/v1/keys", json={"name": name, "limits": limits}).json()
    return found["secret"], found["id"]


def budgets(text: str) -> dict[str, str]:
    """Return the text of each budget by its owner and period."""
    found = {}
    for item in re.findall(r"<li><div><b>(.*?)</li>", text.partition('class="budgets"')[2], re.DOTALL):
        words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", item)).split())
        owner, period, rest = re.split(r" a (day|month) ", words, maxsplit=1)
        found[f"{owner} {period}"] = rest
    return found


def test_budgets_have_bars_and_the_day_on_which_they_run_out(
    service: RunningService, page: PageClient
) -> None:
    _, slow = create_key(service, "slow <k>", budget_usd_per_day=1000, budget_usd_per_month=4000)
    _, spent = create_key(service, "spent", budget_usd_per_day=5)
    for days in range(1, 8):
        spend(service, 200 * DOLLAR, slow, days=days)
    spend(service, 6 * DOLLAR, spent)
    spend(service, 45 * DOLLAR, slow, agent="reviewer")
    found = budgets(page.get("/ui/costs").text)
    assert found["Key spent day"].startswith("100 % $6.00 of $5.00 (100 %) spent until ")
    assert found["Key slow <k> day"].startswith("4 % $45.00 of $1,000.00 (4 %) lasts until ")
    assert found["Agent reviewer day"].startswith("90 % $45.00 of $50.00 (90 %)")
    assert found["Service day"].startswith("25 % $51.00 of $200.00 (25 %)")
    assert found["Key slow <k> month"].split()[3:5] == ["of", "$4,000.00"]
    text = page.get("/ui/costs").text
    assert 'class="b-bad" max="100" value="100"' in text
    assert 'class="b-warning" max="100" value="90"' in text
    assert "The service spends <b>$" in text
    assert "75 % of the input came from the cache" in text
    assert "model &lt;m&gt;" in text


def test_a_budget_that_does_not_last_says_when_it_runs_out(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, own = create_key(service, "fast", budget_usd_per_day=20)
    spend(service, 2 * DOLLAR, own)
    forecast, end = service.control.forecast, datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)

    async def with_an_end(caller: Caller, request: ForecastRequest) -> Forecast:
        # When it is depends on the time of day: the forecast of `Control` has tests with a clock of their own.
        found = await forecast(caller, request)
        return replace(found, budgets=[replace(budget, runs_out_at=end) for budget in found.budgets])

    monkeypatch.setattr(service.control, "forecast", with_an_end)
    with PageClient(service) as client:
        client.sign_in(secret)
        text = budgets(client.get("/ui/costs").text)["Key fast day"]
    assert text.endswith("at this rate it runs out on 2031-05-06 07:08:09 UTC")


def test_a_key_sees_its_own_spending_and_budgets_alone(service: RunningService) -> None:
    secret, own = create_key(service, "own", budget_usd_per_day=20)
    _, other = create_key(service, "other", budget_usd_per_day=77)
    spend(service, 2 * DOLLAR, own)
    spend(service, 3 * DOLLAR, other, agent="secret-agent")
    with PageClient(service) as client:
        client.sign_in(secret)
        text = client.get("/ui/costs").text
    assert list(budgets(text)) == ["Key own day"]
    assert budgets(text)["Key own day"].startswith("10 % $2.00 of $20.00 (10 %)")
    assert "This key spends <b>$" in text
    assert "secret-agent" not in text
    assert "77" not in budgets(text)["Key own day"]


def test_forecasts_are_there_for_agents_with_enough_jobs(service: RunningService, page: PageClient) -> None:
    with service.client() as client:
        for number in range(5):
            run_job(client, f"say {number}")
            run_job(client, f"say {number}", agent="dear") if number < 2 else None
    _, key = create_key(service, "forecast")
    spend(service, 100, key, agent="dear")
    table = page.get("/ui/costs").text.partition("Table of the forecasts")[2].partition("</table>")[0]
    rows = {
        html.unescape(row[0]): re.findall(r'<td class="number">(.*?)</td>', row[1])
        for row in re.findall(r"<tr><td><bdi>(.*?)</bdi></td>(.*?)</tr>", table, re.DOTALL)
    }
    assert rows["claude"] == ["$0.04", "$0.04", "0 s", "0 s", "5"]
    assert rows["dear"] == ["—", "—", "—", "—", "2"]
