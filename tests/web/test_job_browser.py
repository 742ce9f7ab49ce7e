"""The page of a job in a real browser: subagents, the todo list, the timeline, hostile text."""

import asyncio
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from tests.api.api_service import RunningService, run_job, wait_until
from tests.api.native.test_steer import Steerable
from tests.web.browser_fixtures import DESKTOP, PHONE, WatchedContext, axe_violations, overflow
from tests.web.hostile_strings import HOSTILE, KINDS
from tests.web.test_browser import Steps, submit

from steadyhand.events import Message, TextDelta, ToolFinished, ToolStarted, UsageReported
from steadyhand.ports import Emit
from steadyhand.web.job_page import PART_EVENTS


class Burst:
    """A job that says "word 0", and the next words all at once when it is told to."""

    def __init__(self, service: RunningService, count: int) -> None:
        self._service = service
        self._count = count
        self._gate = asyncio.Event()
        service.runner.play = self._play
        self.job_id = submit(service, "play all is done")

    def go(self) -> None:
        self._service.loop.call_soon_threadsafe(self._gate.set)

    async def _play(self, emit: Emit) -> None:
        await emit(Message("assistant", "word 0"))
        await self._gate.wait()
        for number in range(1, self._count):
            await emit(Message("assistant", f"word {number}"))


def test_subagents_are_nested_live_as_after_a_reload(
    service: RunningService, profile: WatchedContext
) -> None:
    chain = [ToolStarted(f"d{number + 1}", f"Deep-{number + 1}", {}, f"d{number}") for number in range(5)]
    steps = Steps(
        service,
        ToolStarted("a", "Agent", {"description": "one"}),
        ToolStarted("b", "Agent", {"description": "two"}),
        ToolStarted("b1", "Read", {"file_path": "b"}, "b"),
        ToolStarted("a1", "Bash", {"command": "ls"}, "a"),
        ToolStarted("x", "Grep", {"pattern": "p"}, "gone"),
        ToolStarted("d0", "Deep-0", {}),
        *chain,
        ToolFinished("a1", is_error=False, output="file", truncated=False, duration_ms=20),
    )
    job_id = submit(service, "play all is done")
    page = profile.page(f"/ui/jobs/{job_id}")
    expect(page.locator("#head .chip")).to_have_text("running")
    wait_until(lambda: service.feed.follower_count(job_id))
    for number in range(12):
        steps.go(number)
    expect(page.locator("#head .chip")).to_have_text("completed")
    expect(page.locator("#events")).to_contain_text("completed")
    calls = page.locator("#events > ol > .k-tool")
    expect(calls).to_have_count(5)  # two agents, the one without a parent, the chain, and what is too deep
    expect(calls.nth(0).locator(".nested .summary")).to_have_text("ls")
    expect(calls.nth(0).locator(".nested .mark")).to_contain_text("done")
    expect(calls.nth(1).locator(".nested .summary")).to_have_text("b")
    assert axe_violations(page) == []
    live = page.locator("#events > ol > li").all_text_contents()
    outline = (
        "(list) => [...list.children].map(function each(item) { return [item.querySelector('b')?.textContent, "
        "[...(item.querySelector('.nested')?.children ?? [])].map(each)]; })"
    )
    nested = page.locator("#events").evaluate(outline)
    page.reload()
    assert page.locator("#events").evaluate(outline) == nested
    assert page.locator("#events > ol > li").all_text_contents() == live


def test_a_long_transcript_grows_in_parts_that_the_browser_leaves_out(
    service: RunningService, profile: WatchedContext
) -> None:
    """The browser looks at each part at each frame, and at each item of the parts in sight."""
    count, part = 300, PART_EVENTS
    burst = Burst(service, count)
    job_id = burst.job_id
    page = profile.page(f"/ui/jobs/{job_id}")
    items = page.locator("#events > ol > li")
    first = items.filter(has_text="word 0").locator(".seq")
    expect(first).to_be_visible()
    wait_until(lambda: service.feed.follower_count(job_id))
    first.focus()
    burst.go()
    expect(items.filter(has_text="completed")).to_have_count(1)
    expect(first).to_be_focused()  # no item is moved to another part

    def sizes() -> list[int]:
        return [int(size) for size in page.locator("#events > ol").evaluate_all(SIZES)]

    assert len(sizes()) > count // (2 * part)
    assert all(part <= size < 2 * part for size in sizes()[:-1])
    live = items.all_text_contents()
    page.reload()
    assert items.all_text_contents() == live
    assert all(size == part for size in sizes()[:-1])
    assert page.evaluate(LEFT_OUT) > 5
    assert axe_violations(page) == []
    last = page.get_by_text(f"word {count - 1}", exact=True)
    number = items.filter(has=last).get_attribute("id")
    page.goto(f"{profile.url}/ui/jobs/{job_id}#{number}")  # also what the browser had left out
    expect(last).to_be_in_viewport()
    page.evaluate("scrollTo(0, 0)")
    expect(last).not_to_be_in_viewport()
    assert page.evaluate("(text) => window.find(text)", f"word {count - 1}")
    expect(last).to_be_in_viewport()


def test_a_page_that_stays_open_keeps_the_newest_events_and_links_to_the_older_ones(
    service: RunningService, profile: WatchedContext
) -> None:
    count, parts = 300, 4
    burst = Burst(service, count)
    page = profile.page(f"/ui/jobs/{burst.job_id}")
    items = page.locator("#events > ol > li")
    earlier = page.get_by_role("link", name="Earlier events")
    expect(items.first).to_be_visible()
    expect(earlier).to_be_hidden()
    page.evaluate("(parts) => { document.getElementById('events').dataset.maxParts = parts; }", parts)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    wait_until(lambda: service.feed.follower_count(burst.job_id))
    burst.go()
    expect(items.filter(has_text="completed")).to_have_count(1)
    expect(page.locator("#events > ol")).to_have_count(parts)
    page.wait_for_function("innerHeight + scrollY >= document.documentElement.scrollHeight - 80")
    first = items.first.get_attribute("id")
    assert first
    assert int(first[1:]) > count // 4
    earlier.click()
    expect(items.last).to_have_id(f"e{int(first[1:]) - 1}")


def test_the_todo_list_and_the_timeline_change_by_themselves(
    service: RunningService, profile: WatchedContext
) -> None:
    def todos(*states: str) -> ToolStarted:
        listed = [{"content": f"step {number}", "status": state} for number, state in enumerate(states)]
        return ToolStarted("t" + "".join(states), "TodoWrite", {"todos": listed})

    steps = Steps(
        service,
        todos("in_progress", "pending"),
        UsageReported(10, 5, 100, 50, 1),
        todos("completed", "in_progress"),
        UsageReported(20, 10, 300, 50, 2),
    )
    job_id = submit(service, "play all is done")
    page = profile.page(f"/ui/jobs/{job_id}")
    expect(page.locator("#head .chip")).to_have_text("running")
    wait_until(lambda: service.feed.follower_count(job_id))
    page.get_by_text("Tokens, cache, context").click()
    steps.go(0)
    steps.go(1)
    entries = page.locator("#todos li")
    expect(entries).to_have_text(["under way: step 0", "open: step 1"])
    expect(page.locator("#calls tbody tr")).to_have_count(1)
    steps.go(2)
    steps.go(3)
    expect(entries).to_have_text(["done: step 0", "under way: step 1"])
    expect(page.locator("#calls tbody tr")).to_have_count(2)
    expect(page.locator("#calls")).to_be_visible()  # what somebody has opened stays open
    expect(page.locator("#calls tbody tr").first).to_contain_text("not priced")
    expect(page.locator("#head .chip")).to_have_text("completed")
    expect(page.locator("#times")).to_contain_text("Harvest")
    assert page.locator("#timeline rect").count() >= 3
    assert axe_violations(page) == []


SAFE_TAGS = {
    *(
        "a",
        "b",
        "bdi",
        "blockquote",
        "br",
        "code",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "em",
        "h2",
        "hr",
        "li",
        "ol",
        "p",
    ),
    *("pre", "s", "span", "strong", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
SIZES = "(parts) => parts.map((each) => each.childElementCount)"
LEFT_OUT = """() => [...document.querySelectorAll("#events > ol")].filter(
  (each) => !each.firstElementChild.checkVisibility({ contentVisibilityAuto: true })).length"""
SAFE_ATTRIBUTES = {"class", "href", "id", "rel", "start", "title", "open", "data-htmx-powered"}
LOOK = """() => {
  const found = { tags: new Set(), attributes: new Set(), links: new Set(), wide: 0 };
  const width = document.documentElement.clientWidth;
  for (const element of document.querySelectorAll("#events *, #live *, .answer *, #todos *")) {
    found.tags.add(element.localName);
    for (const each of element.attributes) found.attributes.add(each.name);
    if (element.hasAttribute("href")) found.links.add(element.protocol);
  }
  for (const element of document.querySelectorAll("#events > ol > li, #events .body, #events .nested, main, header"))
    if (element.getBoundingClientRect().right > width + 1) found.wide += 1;
  return { ...found, tags: [...found.tags], attributes: [...found.attributes], links: [...found.links],
    ran: window.ran ?? null, title: document.title, items: document.querySelectorAll("#events > ol > li").length };
}"""


def check_harmless(page: Page, title: str, header: Any) -> int:
    """See that hostile texts are text on a page, and return the number of items of the transcript."""
    found = page.evaluate(LOOK)
    assert set(found["tags"]) <= SAFE_TAGS
    assert set(found["attributes"]) <= SAFE_ATTRIBUTES
    assert set(found["links"]) <= {"http:", "https:", "mailto:"}
    assert (found["ran"], found["wide"], found["title"]) == (None, 0, title)
    assert overflow(page) <= 0
    assert page.evaluate("getComputedStyle(document.body).display") == "block"
    page.evaluate("window.scrollTo(0, 0)")
    assert page.locator("header.bar").bounding_box() == header
    return int(found["items"])


async def emit_messages(emit: Emit) -> None:
    for text in HOSTILE:
        await emit(Message("assistant", text))


async def emit_tools(emit: Emit) -> None:
    for number, text in enumerate(HOSTILE):
        tool_id = f"{number}{text[:50]}"
        await emit(ToolStarted(tool_id, text[:200], {text[:200]: text[:9_000], "command": text}))


@pytest.mark.parametrize(
    ("play", "size"),
    [
        pytest.param(emit_messages, DESKTOP, id="desktop", marks=pytest.mark.long),
        pytest.param(emit_tools, PHONE, id="phone"),
    ],
)
def test_a_hostile_transcript_runs_no_script_and_moves_no_layout(
    service: RunningService, profile: WatchedContext, play: Any, size: Any
) -> None:
    assert len(HOSTILE) >= 300
    service.runner.play = play
    with service.client() as client:
        job_id = run_job(client, "play " + HOSTILE[0], title=HOSTILE[1])["id"]
    dialogs: list[str] = []
    page = profile.page("/ui/jobs")
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    page.set_viewport_size(size)
    header = page.locator("header.bar").bounding_box()
    page.goto(f"{profile.url}/ui/jobs/{job_id}")
    title = page.title()
    page.evaluate("document.querySelectorAll('#events details').forEach((each) => { each.open = true; })")
    assert check_harmless(page, title, header) >= len(HOSTILE)
    assert dialogs == []
    assert page.url.endswith(job_id)


def test_hostile_text_is_text_while_it_is_written(service: RunningService, profile: WatchedContext) -> None:
    texts = [text for kind in ("htmx", "svg", "styles", "entities") for text in KINDS[kind]]
    steps = Steps(
        service, *(TextDelta("m", text) for text in texts), *(Message("assistant", text) for text in texts)
    )
    job_id = submit(service, "play done", title="hostile and live")
    page = profile.page(f"/ui/jobs/{job_id}")
    title, header = page.title(), page.locator("header.bar").bounding_box()
    wait_until(lambda: service.feed.follower_count(job_id))
    for number in range(2 * len(texts)):
        steps.go(number)
    expect(page.locator("#events .k-message")).to_have_count(len(texts))
    expect(page.locator("#events .k-state", has_text="completed")).to_have_count(1)
    assert check_harmless(page, title, header) >= len(texts)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_a_message_is_sent_to_a_running_agent_and_followed(
    service: RunningService, profile: WatchedContext, scheme: Any
) -> None:
    job = Steerable(service)
    page = profile.page("/ui/jobs")
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{profile.url}/ui/jobs/{job.id}")
    page.get_by_text("Message", exact=True).click()
    page.get_by_label("Message to the agent").fill("go <left>")
    assert axe_violations(page) == []
    page.get_by_role("button", name="Send").click()
    sent = page.locator("#events .k-steer")
    expect(sent).to_contain_text("go <left>")
    expect(sent.locator(".mark")).to_have_text("read by the agent, for its next step")
    job.end()
    expect(sent.locator(".mark")).to_have_text("the agent goes on with it")
    expect(page.locator("#head .chip")).to_have_text("completed")
    assert axe_violations(page) == []
    page.reload()
    expect(sent.locator(".mark")).to_have_text("the agent goes on with it")
