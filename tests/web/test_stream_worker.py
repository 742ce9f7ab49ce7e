"""The shared worker of the page's stream, in a real browser, with a connection that the test plays."""

from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from playwright.sync_api import Page
from tests.web.browser_fixtures import chromium

SCENE = """
async (source) => {
  const asked = [], bodies = [], got = {early: [], late: []};
  const fetch = (url) => {
    asked.push(decodeURIComponent(url));
    const body = new ReadableStream({ start: (controller) => bodies.push(controller) });
    return Promise.resolve(new Response(body));
  };
  const scope = {};
  new Function("fetch", "scope", source.replace("onconnect =", "scope.onconnect =")) (fetch, scope);
  const until = async (met) => {  // what does not come is seen by the test
    for (let left = 10_000; left > 0 && !met(); left--) await new Promise((done) => setTimeout(done, 2));
  };
  const say = (text) => bodies.at(-1).enqueue(new TextEncoder().encode(text + "\\n\\n"));
  const tab = (name, topic) => {
    const port = { postMessage: ({ text }) => got[name].push(text.split("\\n")[0]) };
    scope.onconnect({ ports: [port] });
    port.onmessage({ data: { open: 1, topic } });
  };
  tab("early", "job 0");
  await until(() => bodies.length === 1);
  for (const number of [1, 2, 3]) say(`id: job ${number}\\ndata: x`);
  await until(() => got.early.length === 3);
  tab("late", "job 1");  // its page was made before the events 2 and 3
  say("id: job 3 live\\nevent: changed\\ndata: ");
  await until(() => bodies.length === 2);
  for (const number of [2, 3, 4]) say(`id: job ${number}\\ndata: x`);
  await until(() => got.late.length >= 3 && got.early.length >= 5);
  return { asked, got };
}
"""


@pytest.fixture(scope="module")
def blank() -> Iterator[Page]:
    """An empty page."""
    with chromium() as browser:
        yield browser.new_page()


def test_a_tab_that_comes_later_gets_all_that_its_page_lacks_and_no_tab_gets_an_event_twice(
    blank: Page,
) -> None:
    source = (resources.files("steadyhand.web") / "static" / "stream-worker.js").read_text("utf-8")
    seen: dict[str, Any] = blank.evaluate(SCENE, source)
    assert seen["asked"] == ["/ui/stream?on=job 0", "/ui/stream?on=job 1"]
    assert seen["got"]["late"] == ["id: job 2", "id: job 3", "id: job 4"]
    events = [each for each in seen["got"]["early"] if not each.endswith("live")]
    assert events == ["id: job 1", "id: job 2", "id: job 3", "id: job 4"]
