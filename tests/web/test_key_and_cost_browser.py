"""Keys and costs in a real browser: a key is made, spends, and ends; its costs and budgets are read.

`make test` has the same forms and figures without a browser, in `test_other_pages.py` and `test_cost_page.py`.
"""

from collections.abc import Iterator, Mapping

import pytest
from playwright.sync_api import Browser, expect
from tests.api.api_service import ADMIN, CATALOGUE, RunningService, run_job, running_service
from tests.web.browser_fixtures import DESKTOP, PHONE, WatchedContext, axe_violations, overflow
from tests.web.test_cost_page import DOLLAR, spend

from steadyhand.web import create_routes


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service of its own, as calls of models would be in the sums of other tests."""
    root = tmp_path_factory.mktemp("spending")
    with running_service(
        root, catalog=CATALOGUE, more_routes=create_routes(), service_day_micros=20 * DOLLAR
    ) as found:
        yield found


@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        pytest.param("light", DESKTOP, id="desktop", marks=pytest.mark.long),
        pytest.param("dark", PHONE, id="phone"),
    ],
)
def test_a_key_is_made_and_replaced_its_costs_are_read_and_it_ends(
    browser: Browser, service: RunningService, scheme: str, size: Mapping[str, int]
) -> None:
    admin = WatchedContext(browser, service.url, color_scheme=scheme, viewport=size)
    keys = admin.sign_in(ADMIN)
    keys.goto(f"{service.url}/ui/keys")
    name = f"Agent <b>of {scheme}</b>"
    keys.get_by_label("Name").fill(name)
    keys.get_by_label("Budget a day").fill("5")
    keys.get_by_role("button", name="Create").click()
    first = keys.locator("code.secret").inner_text()
    expect(keys.get_by_role("status")).to_contain_text(name)
    row = keys.get_by_role("row").filter(has_text=name)
    expect(row).to_contain_text("$5.00 a day")
    assert axe_violations(keys) == []
    key_id = row.locator("code").first.inner_text()

    spend(service, DOLLAR, key_id)
    spend(service, 2 * DOLLAR, key_id, agent="dear", days=40)
    with service.client(first) as client:
        for _ in range(5):
            run_job(client, "say x")
    guest = WatchedContext(browser, service.url, color_scheme=scheme, viewport=size)
    costs = guest.sign_in(first)
    costs.get_by_role("link", name="Costs").first.click()
    expect(costs.locator("b.sum")).to_have_text("$1.21")  # a dollar, and five jobs of $0.0412
    budget = costs.get_by_role("progressbar", name="Share of the budget")
    expect(budget).to_have_attribute("value", "24")
    expect(costs.locator(".budgets")).to_contain_text("$1.21 of $5.00")
    expect(costs.get_by_role("region", name="Table of the forecasts")).to_contain_text("claude")
    expect(costs.get_by_role("img", name="Cost by day")).to_be_visible()
    costs.get_by_role("link", name="90 days").click()
    expect(costs.locator("b.sum")).to_have_text("$3.21")
    expect(costs.get_by_role("region", name="Costs of agents")).to_contain_text("dear")
    assert axe_violations(costs) == []
    assert overflow(costs) <= 0

    row.get_by_text("Change").click()
    row.get_by_role("button", name="New secret").click()
    second = keys.locator("code.secret").inner_text()
    assert second != first
    costs.reload()
    costs.wait_for_url("**/ui/sign-in*")
    costs.get_by_label("Key").fill(second)
    costs.get_by_role("button", name="Sign in").click()
    expect(costs.locator("b.sum")).to_be_visible()
    row.get_by_text("Change").click()
    row.get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    assert axe_violations(keys) == []
    assert overflow(keys) <= 0
    costs.reload()
    costs.wait_for_url("**/ui/sign-in*")
    for seen in (admin, guest):
        seen.context.close()
        seen.check()
