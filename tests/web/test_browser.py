"""The page in a real browser: live jobs, many tabs, forms, access rules and hostile text."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, FilePayload, Page, Route, expect
from tests.api.api_service import ADMIN, RunningService, run_job, wait_until
from tests.web.browser_fixtures import DESKTOP, PHONE, WatchedContext, axe_violations, overflow

from steadyhand.events import Message, TextDelta, ToolFinished, ToolStarted
from steadyhand.ports import Emit

DIFF = """diff --git a/src/app/main.py b/src/app/main.py
index 1111111..2222222 100644
--- a/src/app/main.py
+++ b/src/app/main.py
@@ -1,4 +1,5 @@ def main():
 import sys
-print("old")
+print("new")
+print("more")
 x = 1
 y = 2
diff --git a/README.md b/README.md
new file mode 100644
--- /dev/null
+++ b/README.md
@@ -0,0 +1 @@
+# Hello
"""

PATHS = (
    "/",
    "/ui/jobs",
    "/ui/jobs?state=failed",
    "/ui/jobs/bulk?action=resume&of=all",
    "/ui/jobs/bulk?action=cancel&of=all&q=hold",
    "/ui/costs",
    "/ui/agents",
    "/ui/tools",
    "/ui/tools?by=job",
    "/ui/service",
    "/ui/doctor",
    "/ui/keys",
)


@pytest.fixture(autouse=True)
def _no_job_is_left(service: RunningService) -> Iterator[None]:
    """Cancel what a test leaves: it would hold the slots of the next one."""
    yield
    service.runner.forced_result = None
    with service.client() as client:
        client.post("/v1/jobs/cancel", json={"all": True})


class Steps:
    """An agent that does one step whenever the test lets it."""

    def __init__(self, service: RunningService, *steps: Any) -> None:
        self._loop = service.loop
        self._gates = [asyncio.Event() for _ in steps]
        self._steps = steps
        service.runner.play = self._play

    async def _play(self, emit: Emit) -> None:
        for gate, step in zip(self._gates, self._steps, strict=True):
            await gate.wait()
            await emit(step)

    def go(self, number: int) -> None:
        """Let the agent do the step of this number."""
        self._loop.call_soon_threadsafe(self._gates[number].set)


def submit(service: RunningService, prompt: str, **fields: Any) -> str:
    with service.client() as client:
        return str(client.post("/v1/jobs", json={"prompt": prompt, **fields}).json()["id"])


def wait_for_run(service: RunningService, job_id: str) -> None:
    """Wait until a job runs: those of the tests before may still hold the slots."""
    with service.client() as client:
        wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] == "running")


def test_a_live_job_is_followed_to_its_end(service: RunningService, profile: WatchedContext) -> None:
    steps = Steps(
        service,
        TextDelta("m1", "I look <i>"),
        TextDelta("m1", " around"),
        Message("assistant", "I look <i> **around**"),
        ToolStarted("t1", "Bash", {"command": "ls -la"}),
        ToolFinished("t1", is_error=False, output="file one\nfile two", truncated=False, duration_ms=20),
    )
    job_id = submit(service, "play all is done")
    page = profile.page(f"/ui/jobs/{job_id}")
    expect(page.locator("#head .chip")).to_have_text("running")
    wait_until(lambda: service.feed.follower_count(job_id))
    steps.go(0)
    expect(page.locator("#live")).to_have_text("I look <i>")
    steps.go(1)
    expect(page.locator("#live")).to_have_text("I look <i> around")
    steps.go(2)
    expect(page.locator("#events .md strong")).to_have_text("around")
    expect(page.locator("#live")).to_have_text("")
    steps.go(3)
    call = page.locator("details.tool")
    expect(call).to_contain_text("running")
    steps.go(4)
    expect(call).to_contain_text("done")
    call.locator("summary").click()
    expect(call.locator(".result pre")).to_have_text("file one\nfile two")
    expect(page.locator("#head .chip")).to_have_text("completed")
    expect(page.locator("#events")).to_contain_text("completed")
    expect(page.get_by_text("Retry from the start")).to_be_visible()
    live_items = page.locator("#events > ol > li").all_text_contents()
    page.reload()
    assert page.locator("#events > ol > li").all_text_contents() == live_items  # as it was shown live


def test_ten_tabs_share_one_connection(service: RunningService, profile: WatchedContext) -> None:
    steps = Steps(service, Message("assistant", "for every tab"), Message("assistant", "and once more"))
    job_id = submit(service, "play done")
    tabs = [profile.page(f"/ui/jobs/{job_id}") for _ in range(8)] + [
        profile.page("/ui/jobs"),
        profile.page("/"),
    ]
    wait_until(lambda: service.feed.follower_count(job_id))
    steps.go(0)
    for tab in tabs[:8]:
        tab.bring_to_front()
        expect(tab.locator("#events")).to_contain_text("for every tab")
    wait_until(lambda: service.feed.follower_count(job_id) == 1)
    for tab in tabs[:7]:
        tab.close()
    steps.go(1)
    tabs[7].bring_to_front()
    expect(tabs[7].locator("#events")).to_contain_text("and once more")
    expect(tabs[7].locator("#events .md", has_text="for every tab")).to_have_count(1)


def test_the_list_changes_by_itself_and_by_its_filters(
    service: RunningService, profile: WatchedContext
) -> None:
    with service.client() as client:
        run_job(client, "fail giraffe")
        run_job(client, "say giraffe")
    page = profile.page("/ui/jobs")
    page.get_by_label("Search").fill("giraffe")
    rows = page.locator("table.jobs tbody tr")
    expect(rows).to_have_count(2)
    page.get_by_label("failed").check()
    expect(rows).to_have_count(1)
    assert re.search(r"q=giraffe.*state=failed", page.url) is not None
    with service.client() as client:
        run_job(client, "fail another giraffe")
    expect(rows).to_have_count(2)
    page.reload()
    expect(rows).to_have_count(2)
    expect(page.get_by_label("Search")).to_have_value("giraffe")
    page.go_back()
    expect(page.get_by_label("failed")).not_to_be_checked()


def test_selected_rows_stay_while_the_list_waits_and_are_cancelled(
    service: RunningService, profile: WatchedContext
) -> None:
    jobs = [submit(service, f"hold lynx {number}") for number in range(3)]
    page = profile.page("/ui/jobs?q=lynx")
    rows = page.locator("table.jobs tbody tr")
    expect(rows).to_have_count(3)
    rows.nth(0).get_by_role("checkbox").check()
    expect(page.get_by_text("1 selected; the list waits")).to_be_visible()
    with service.client() as client:
        run_job_later = client.post("/v1/jobs", json={"prompt": "hold lynx late"}).json()["id"]
    rows.nth(1).get_by_role("checkbox").check()
    expect(rows).to_have_count(3)
    page.get_by_label("All on this page").check()
    expect(page.get_by_text("3 selected; the list waits")).to_be_visible()
    page.get_by_label("All on this page").uncheck()
    expect(rows).to_have_count(4)  # it goes on
    rows.nth(2).get_by_role("checkbox").check()
    rows.nth(3).get_by_role("checkbox").check()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Cancel 2 jobs?")).to_be_visible()
    page.get_by_role("button", name="Cancel 2 jobs").click()
    expect(page.get_by_role("heading", name="2 jobs cancelled")).to_be_visible()
    page.get_by_role("link", name="Back to the list").click()
    expect(page.get_by_label("Search")).to_have_value("lynx")
    with service.client() as client:
        wait_until(lambda: client.get(f"/v1/jobs/{jobs[0]}").json()["state"] == "cancelled")
        wait_until(lambda: client.get(f"/v1/jobs/{jobs[1]}").json()["state"] == "cancelled")
        for each in (jobs[2], run_job_later):
            assert client.post(f"/v1/jobs/{each}/cancel").json()["state"] != "completed"


def hold(page: Page, pattern: str | re.Pattern[str], times: int | None = None) -> list[Route]:
    """Hold the requests that match, for the test to let them go."""
    held: list[Route] = []

    def add(route: Route) -> None:
        held.append(route)

    page.route(pattern, add, times=times)
    return held


def test_a_change_that_comes_while_the_list_is_fetched_is_shown(
    service: RunningService, profile: WatchedContext
) -> None:
    page = profile.page("/ui/jobs?q=heron")
    rows = page.locator("table.jobs tbody tr")
    expect(rows).to_have_count(0)
    fetches = hold(page, "**/ui/jobs?**", times=1)
    page.evaluate(
        "addEventListener('changed', ({ detail }) => { window.told = Number(detail.id.split(' ')[1]); }, true)"
    )
    with service.client() as client:
        run_job(client, "say heron")
        page.wait_for_function("() => window.told")
        for _ in range(1000):  # its request has begun
            if fetches:
                break
            page.wait_for_timeout(20)
        list_then = fetches[0].fetch()
        run_job(client, "say another heron")
    page.wait_for_function("(number) => window.told >= number", arg=service.feed.change_number)
    fetches[0].fulfill(response=list_then)
    expect(rows).to_have_count(2)


def test_a_page_whose_files_come_late_follows_its_job(
    service: RunningService, profile: WatchedContext
) -> None:
    steps = Steps(service, Message("assistant", "in spite of it"))
    job_id = submit(service, "play done")
    page = profile.page()
    files = hold(page, re.compile(r"(?<!worker)\.js$"))
    page.goto(f"{service.url}/ui/jobs/{job_id}", wait_until="commit")
    while page.evaluate("document.readyState") != "complete":
        for file in files:
            file.continue_()  # one after the other: a task of the page may run between two
            page.evaluate("new Promise((done) => setTimeout(done, 20))")
        files.clear()
    steps.go(0)
    expect(page.locator("#events")).to_contain_text("in spite of it")


def test_a_job_is_cancelled_and_resumed_with_a_message(
    service: RunningService, profile: WatchedContext
) -> None:
    job_id = submit(service, "hold on")
    wait_for_run(service, job_id)
    page = profile.page(f"/ui/jobs/{job_id}")
    expect(page.locator("#head .chip")).to_have_text("running")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#head .chip")).to_have_text("cancelled")
    service.runner.forced_result = "say resumed"
    page.get_by_text("Resume", exact=True).first.click()
    page.get_by_label("Message").fill("go on, please")
    page.get_by_label("Budget in all").fill("9")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#head .chip")).to_have_text("completed")
    service.runner.forced_result = None
    assert service.runner.specs[-1].continue_prompt == "go on, please"
    assert service.runner.specs[-1].budget_micros == 9_000_000


def diff_job(service: RunningService) -> str:
    with service.client() as client:
        job_id = str(run_job(client, "say changed", workspace="infra")["id"])
    service.checkouts.job_paths(job_id).diff.write_text(DIFF)
    return job_id


def test_the_diff_is_read_by_its_tree(service: RunningService, profile: WatchedContext) -> None:
    page = profile.page(f"/ui/jobs/{diff_job(service)}")
    page.get_by_role("link", name="1 file").click()
    tree = page.get_by_role("navigation", name="Changed files")
    expect(tree.get_by_role("link")).to_have_text(["README.md", "main.py"])
    tree.get_by_role("link", name="main.py").click()
    expect(page.locator("#f0 .l-added .text")).to_have_text(['added: print("new")', 'added: print("more")'])
    expect(page.locator("#f0 .l-removed .no").first).to_have_text("2")
    page.locator("#f0 .l-added .no").nth(1).click()
    message = page.get_by_label("Message")
    expect(message).to_have_value("src/app/main.py:2: ")
    message.press_sequentially("why?")
    page.locator("#f0 .l-removed .no").first.click()
    expect(message).to_have_value("src/app/main.py:2: why?\nsrc/app/main.py:2 (removed line): ")
    with page.expect_download() as download:
        page.get_by_role("link", name="Patch").click()
    assert download.value.suggested_filename.endswith(".patch")


def test_a_link_signs_in_and_leaves_nothing_in_the_address(browser: Browser, service: RunningService) -> None:
    with service.client() as client:
        link = client.post("/ui/links").json()["url"]
    stranger = WatchedContext(browser, service.url)
    page = stranger.page(link)
    page.wait_for_url(service.url + "/")
    expect(page.get_by_role("heading", name="Under way")).to_be_visible()
    page.go_back()
    assert "#" not in page.url
    stranger.context.close()
    stranger.check()


def test_it_works_without_scripts(browser: Browser, service: RunningService) -> None:
    plain = WatchedContext(browser, service.url, java_script_enabled=False)
    page = plain.sign_in(ADMIN)
    job_id = submit(service, "hold on")
    wait_for_run(service, job_id)
    page.goto(f"{service.url}/ui/jobs?state=running")
    page.locator(f'input[value="{job_id}"]').check()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Cancel 1 job?")).to_be_visible()
    page.goto(f"{service.url}/ui/jobs?state=running")
    page.locator(f'a[href="/ui/jobs/{job_id}"]').click()
    page.get_by_role("button", name="Cancel").click()
    page.goto(f"{service.url}/ui/jobs/{job_id}")
    expect(page.locator("#head .chip")).to_have_text(re.compile("running|cancelled"))
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    plain.context.close()
    plain.check()


@pytest.mark.long  # `test_composer.py` and `test_saved.py` send the same forms
def test_a_prompt_with_a_file_and_an_estimate_is_saved_chosen_and_started(
    service: RunningService, profile: WatchedContext
) -> None:
    with service.client() as client:
        for number in range(5):
            run_job(client, f"say {number}", agent="dear")
    page = profile.page("/")
    expect(page.locator("#estimate")).to_contain_text("claude")
    page.get_by_label("Agent").fill("dear")
    page.get_by_role("textbox", name="Prompt").fill("say composed\nwith a file")
    expect(page.locator("#estimate")).to_contain_text("Estimate for dear: half of such jobs cost up to $0.04")
    page.get_by_role("button", name="Save the prompt").click()
    page.get_by_label("Name").fill("Composed <b>")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("say composed\nwith a file")
    page.reload()
    page.get_by_text("Saved prompts").click()
    page.get_by_role("link", name="Composed <b>").click()
    expect(page.get_by_label("Agent")).to_have_value("dear")
    file: FilePayload = {"name": "notes.md", "mimeType": "text/markdown", "buffer": b"# Notes"}
    page.get_by_label("Files").set_input_files([file])
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#head .chip")).to_have_text("completed")
    assert service.runner.specs[-1].spec.content[1]["title"] == "notes.md"
    page.goto(service.url)
    page.get_by_text("Saved prompts").click()
    page.get_by_role("button", name="Delete the prompt Composed <b>").click()
    expect(page.get_by_text("Saved prompts")).to_have_count(0)


@pytest.mark.long  # `test_saved.py` sends the same forms, and a test above has the list live
def test_a_view_is_saved_while_the_list_is_live_and_survives_a_reload(
    service: RunningService, profile: WatchedContext
) -> None:
    page = profile.page("/ui/jobs")
    page.get_by_label("Search").fill("yak")
    expect(page).to_have_url(re.compile("q=yak"))  # the view that is saved is the one that is shown
    with service.client() as client:
        run_job(client, "say yak")
    page.get_by_text("Save this view").click()
    page.get_by_label("Name").fill("Yaks")
    page.get_by_role("button", name="Save", exact=True).click()
    page.goto(f"{service.url}/ui/jobs")
    page.get_by_role("navigation", name="Saved views").get_by_role("link", name="Yaks").click()
    expect(page.get_by_label("Search")).to_have_value("yak")
    expect(page.locator("table.jobs tbody tr")).to_have_count(1)
    page.get_by_role("button", name="Delete the view Yaks").click()
    expect(page.get_by_label("Search")).to_have_value("yak")
    expect(page.get_by_role("navigation", name="Saved views")).to_have_count(0)


def test_the_keyboard_reaches_all(service: RunningService, profile: WatchedContext) -> None:
    with service.client() as client:
        run_job(client, "say tabs", title="reached by keys")
    page = profile.page("/ui/jobs?q=tabs")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "reached by keys":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="reached by keys")).to_be_visible()


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        pytest.param(DESKTOP, "light", id="desktop-light"),
        pytest.param(DESKTOP, "dark", id="desktop-dark", marks=pytest.mark.long),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.long),
        pytest.param(PHONE, "dark", id="phone-dark"),
    ],
)
def test_axe_finds_nothing_and_nothing_is_too_wide(
    browser: Browser, service: RunningService, scheme: str, size: dict[str, int]
) -> None:
    steps = Steps(
        service,
        Message(
            "assistant",
            "# Head\n\n- [a link](https://example.org)\n\n| a | b |\n|-|-|\n| 1 | 2 |\n\n```\ncode\n```",
        ),
        ToolStarted("t1", "Bash", {"command": "x" * 400}),
        ToolFinished("t1", is_error=True, output="y" * 3000, truncated=True, duration_ms=20),
    )
    for number in range(3):
        steps.go(number)
    with service.client() as client:
        job_id = run_job(client, "play", title="w" * 190)["id"]
    changed = diff_job(service)
    running = submit(service, "hold on")
    seen = WatchedContext(browser, service.url, color_scheme=scheme, viewport=size)
    page = seen.page("/ui/sign-in")
    assert axe_violations(page) == []
    seen.sign_in(ADMIN)
    with service.client() as client:
        run_job(client, "say x", callback_url="https://receiver.example/hook")
        delivery = client.get("/v1/callbacks/deliveries").json()["data"][0]["id"]
    job_paths = (f"/ui/jobs/{job_id}", f"/ui/jobs/{changed}/diff", f"/ui/jobs/{changed}/diff?view=split")
    callback_paths = ("/ui/callbacks", f"/ui/callbacks/{delivery}")
    page.goto(f"{service.url}/ui/jobs?state=failed")
    page.get_by_text("Save this view").click()
    assert axe_violations(page) == []
    page.get_by_label("Name").fill("w" * 80)
    page.get_by_role("button", name="Save", exact=True).click()
    page.goto(service.url)
    page.get_by_role("textbox", name="Prompt").fill("p" * 300)
    page.get_by_role("button", name="Save the prompt").click()
    assert axe_violations(page) == []
    page.get_by_role("button", name="Save", exact=True).click()
    page.goto(f"{service.url}/ui/doctor")
    page.get_by_role("button", name="Run the checks").click()
    expect(page.get_by_text("1 failed")).to_be_visible()
    for path in (*PATHS, *job_paths, *callback_paths):
        page.goto(service.url + path)
        page.evaluate("document.querySelectorAll('main details').forEach((each) => { each.open = true; })")
        assert axe_violations(page) == [], path
        assert overflow(page) <= 0, path
    with service.client() as client:
        client.post(f"/v1/jobs/{running}/cancel")
    seen.context.close()
    seen.check()
