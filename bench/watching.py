"""How the page keeps up: 200 jobs watched by 50 browsers and a real tab, a job with 10,000 events, 1,000 followers.

The agent is the stand-in, as a program that notes when it writes each message. A message is a key: a job's name and a
number. The reader is a process of its own, on the same clock; the tab notes when it has put a key into its document.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import httpx2

from bench.following import Writers, cpu_seconds, head, reader
from bench.rows import Row, percentile
from bench.worlds import Broken, made_in
from steadyhand.testing.service import ADMIN_KEY, Service, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

JOBS = 200
BROWSERS = 50
WATCHED = 8
"""The jobs that one browser watches, beside the list."""
EVENTS = 20
"""The messages of each job, one a second."""
FOLLOWERS = 1_000
FOLLOWED_EVENTS = 400
FOLLOWED_PACE = 0.05
LONG_EVENTS = 10_000
_SECONDS = 180.0
_ARGUMENTS = ("--no-sandbox", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
_KEY = r"[a-z]\d{3} \d{5}"
_LAUNCHER = """\
#!{python} -IS
import json, os, re, sys, time
sys.dont_write_bytecode = True
sys.path.insert(0, {library!r})
from standin import pipes
from standin.program import main
write = pipes.write
keys = {{}}
key_pattern = re.compile(rb"[a-z][0-9][0-9][0-9] [0-9]{{5}}")
def noted(data, stream=1):
    if b'"type":"assistant"' in data.replace(b" ", b""):
        for key in key_pattern.findall(data):
            keys[key.decode()] = time.monotonic_ns()
    write(data, stream)
    if keys and b'"type":"result"' in data.replace(b" ", b""):
        path = {folder!r} + "/keys-" + next(iter(keys))[:4]
        with open(path + ".new", "w") as file:
            json.dump(keys, file)
        os.rename(path + ".new", path)
pipes.write = noted
os._exit(main(sys.argv[1:]))
"""
_NOTE_KEYS = """
() => {
  window.came = {};
  const note = (node) => {
    for (const [key] of (node.textContent ?? "").matchAll(/[a-z]\\d{3} \\d{5}/g))
      window.came[key] ??= performance.timeOrigin + performance.now();
  };
  new MutationObserver((all) => all.forEach((one) => one.addedNodes.forEach(note)))
    .observe(document.querySelector("#events"), { childList: true, subtree: true });
}
"""
_SCROLL = """
async () => {
  const tasks = [];
  new PerformanceObserver((list) => tasks.push(...list.getEntries().map((one) => one.duration)))
    .observe({ type: "longtask" });
  for (const target of [0, document.documentElement.scrollHeight]) {
    const begin = scrollY, steps = 240;
    for (let step = 1; step <= steps; step++) {
      scrollTo(0, begin + ((target - begin) * step) / steps);
      await new Promise(requestAnimationFrame);
    }
  }
  await new Promise((done) => setTimeout(done, 300));
  return Math.max(0, ...tasks);
}
"""
_FIRST_PAINT = """
() => performance.getEntriesByName("first-contentful-paint").map((entry) => entry.startTime)
"""


class KeyWriters(Writers):
    """The stand-in that notes when it wrote the message of each key."""

    launcher = _LAUNCHER

    def messages(self, name: str, count: int, pace: float, first: float = 0) -> str:
        """Give the prompt of an agent that writes so many messages, one each `pace` seconds, once all may begin.

        The first one comes after `first` seconds: agents do not write in step.
        """
        pause = f" sleep={pace}" if pace else ""
        says = "".join(f' say="{name} {number:05d}"{pause}' for number in range(count))
        begin = f"touch={self.folder / f'ready-{name}'} wait_for={self.gate} sleep={first:.3f}"
        return f"[[standin: {begin}{says} text=end]]"

    def keys(self, names: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        """Give when each message of these agents was written (ns), and forget it."""
        found = {}
        for name in names:
            path = self.folder / f"keys-{name}"
            wait_until(path.exists, _SECONDS)
            found[name] = json.loads(path.read_text())
        for each in self.folder.iterdir():
            each.unlink()
        return found


def _delays(written: Mapping[str, int], came: Mapping[str, int]) -> list[float]:
    """Give how long each message took, in ms; raises `Broken` if one has not come."""
    missing = [key for key in written if key not in came]
    if missing:
        raise Broken(f"{len(missing)} of {len(written)} messages have not come: {missing[:3]}")
    return [(came[key] - at) / 1e6 for key, at in written.items()]


def _session(service: Service) -> str:
    """Sign in; give the cookie."""
    answer = httpx2.post(f"{service.url}/ui/sign-in", data={"key": ADMIN_KEY, "next": "/"})
    if answer.status_code != 303:
        raise Broken(f"the sign-in was answered with {answer.status_code}")
    return "; ".join(f"{name}={value}" for name, value in answer.cookies.items())


@contextmanager
def _tab(service: Service) -> Iterator[Page]:
    """Open a tab of a real Chromium that is signed in."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - other rows need no browser

    path = shutil.which("chromium")
    if path is None:
        raise Broken("chromium is missing: run tools/setup.sh .venv tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        page = browser.new_page()
        page.goto(f"{service.url}/ui/sign-in")
        page.get_by_label("Key").fill(ADMIN_KEY)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{service.url}/")
        yield page
        browser.close()


def _tab_delays(page: Page, written: Mapping[str, int]) -> list[float]:
    came: Mapping[str, float] = page.evaluate("window.came")
    apart = time.time_ns() - time.monotonic_ns()
    return _delays(written, {key: int(at * 1e6) - apart for key, at in came.items()})


def measure_page(world: Path, pairs: int) -> list[Row]:
    """Measure 200 jobs with a message a second each, followed by 50 browsers and a real tab."""
    root = made_in(world, "page")
    writers = KeyWriters(made_in(root, "agent"))
    settings = {"STEADYHAND_ISOLATION": "none", "STEADYHAND_SERVICE__CONCURRENCY": str(JOBS)}
    late: list[float] = []
    shares: list[float] = []
    tabs: list[float] = []
    with Service(root, writers.path, env=settings) as service, _tab(service) as page:
        for _ in range(pairs):
            taken, tab, share = _watched(service, writers, page)
            late.append(percentile(taken, 0.95))
            tabs.append(percentile(tab, 0.95))
            shares.append(100 * share)
    what = f"{JOBS} jobs with a message a second each, {BROWSERS} browsers that watch the list and {WATCHED} jobs"
    nothing = [0.0] * pairs
    return [
        Row(
            "page-p95",
            f"p95 until a browser has a message; {what}",
            "ms",
            late,
            nothing,
            "at most",
            250,
            (),
            "added",
        ),
        Row(
            "page-tab",
            f"the same in a tab of Chromium; {what}",
            "ms",
            tabs,
            nothing,
            "at most",
            250,
            (),
            "added",
        ),
        Row(
            "page-cpu",
            f"the service's share of a core; {what}",
            "%",
            shares,
            nothing,
            "at most",
            25,
            (),
            "added",
        ),
    ]


def _watched(service: Service, writers: KeyWriters, page: Page) -> tuple[list[float], list[float], float]:
    """Let all watch all jobs; gives the delays of the browsers and of the tab (ms), and the share of a core."""
    names = [f"j{number:03d}" for number in range(JOBS)]
    jobs = [
        service.submit(writers.messages(name, EVENTS, 1.0, number / JOBS))["id"]
        for number, name in enumerate(names)
    ]
    writers.wait(names)
    host, cookie = urlsplit(service.url).netloc, _session(service)  # the cookie's name has the port
    requests = []
    for browser in range(BROWSERS):
        watched = [jobs[(browser * JOBS // BROWSERS + number) % JOBS] for number in range(WATCHED)]
        query = urlencode([("on", "jobs"), *(("on", f"{job} 0") for job in watched)])
        requests.append(head(f"GET /ui/stream?{query}", accept="text/event-stream", cookie=cookie, host=host))
    page.goto(f"{service.url}/ui/jobs/{jobs[0]}")
    page.evaluate(_NOTE_KEYS)
    with reader(service, requests, _KEY, keys=True, stops=True) as part:
        before, begin = cpu_seconds(service), time.monotonic()
        writers.go()
        page.wait_for_timeout(EVENTS * 1000 - 1000)  # the jobs' ends are not a part of it
        share = (cpu_seconds(service) - before) / (time.monotonic() - begin)
        page.wait_for_function("(key) => key in window.came", arg=f"{names[0]} {EVENTS - 1:05d}")
        written = writers.keys(names)
        part.tell({"stop": True})
        streams: list[Mapping[str, int]] = json.loads(part.read())
    taken = []
    for browser, came in enumerate(streams):
        watched_names = [names[(browser * JOBS // BROWSERS + number) % JOBS] for number in range(WATCHED)]
        taken += _delays({key: at for name in watched_names for key, at in written[name].items()}, came)
    for job in jobs:
        service.wait_until_ended(job, _SECONDS)
    return taken, _tab_delays(page, written[names[0]]), share


def measure_thousand(world: Path, pairs: int) -> list[Row]:
    """Measure 1,000 followers of one job with 20 events a second."""
    root = made_in(world, "thousand")
    writers = KeyWriters(made_in(root, "agent"))
    settings = {"STEADYHAND_ISOLATION": "none", "STEADYHAND_SERVER__MAX_CONNECTIONS_PER_ADDRESS": "2000"}
    late: list[float] = []
    alone: list[float] = []
    memory: list[float] = []
    with Service(root, writers.path, env=settings) as service:
        for _ in range(pairs):
            for count, found in ((1, alone), (FOLLOWERS, late)):
                taken, size = _followed(service, writers, count)
                found.append(percentile(taken, 0.95))
            memory.append(size / FOLLOWERS)
    rate = round(1 / FOLLOWED_PACE)
    what = f"p95 until one of {FOLLOWERS} followers of a job has an event, {rate} events a second"
    nothing = [0.0] * pairs
    return [
        Row(
            "thousand-p95",
            what,
            "ms",
            late,
            nothing,
            "at most",
            120,
            (f"one follower: {alone[-1]:.1f} ms",),
            "added",
        ),
        Row("thousand-memory", "the memory of a follower", "KB", memory, nothing, "at most", 60, (), "added"),
    ]


def _followed(service: Service, writers: KeyWriters, count: int) -> tuple[list[float], float]:
    """Let so many follow one job; gives the delays (ms) and the service's memory for them (KB)."""
    job = service.submit(writers.messages("f000", FOLLOWED_EVENTS, FOLLOWED_PACE))["id"]
    writers.wait(["f000"])
    before = _resident(service)
    request = head(f"GET /v1/jobs/{job}/events", accept="text/event-stream")
    with reader(service, [request] * count, _KEY, keys=True) as part:
        writers.go()
        time.sleep(FOLLOWED_EVENTS * FOLLOWED_PACE / 2)  # measured while all follow
        size = _resident(service) - before
        streams: list[Mapping[str, int]] = json.loads(part.read())
    written = writers.keys(["f000"])["f000"]
    return [delay for came in streams for delay in _delays(written, came)], size


def _resident(service: Service) -> float:
    text = Path(f"/proc/{service.pid}/status").read_text()
    return float(text.partition("VmRSS:")[2].split()[0])


def measure_long(world: Path, pairs: int) -> list[Row]:
    """Measure the page of a job with 10,000 events: its first paint, and scrolling it once all have come live."""
    root = made_in(world, "long")
    writers = KeyWriters(made_in(root, "agent"))
    paints: list[float] = []
    tasks: list[float] = []
    with Service(root, writers.path, env={"STEADYHAND_ISOLATION": "none"}) as service, _tab(service) as page:
        for _ in range(pairs):
            job = service.submit(writers.messages("l000", LONG_EVENTS, 0))["id"]
            writers.wait(["l000"])
            page.goto(f"{service.url}/ui/jobs/{job}")
            page.evaluate(_NOTE_KEYS)
            writers.go()
            last = f"l000 {LONG_EVENTS - 1:05d}"
            page.wait_for_function("(key) => key in window.came", arg=last, timeout=_SECONDS * 1000)
            service.wait_until_ended(job, _SECONDS)
            writers.keys(["l000"])
            tasks.append(page.evaluate(_SCROLL))
            page.goto(f"{service.url}/ui/jobs/{job}")
            page.wait_for_function(f"({_FIRST_PAINT})().length")
            paints.append(page.evaluate(_FIRST_PAINT)[0])
    nothing = [0.0] * pairs
    what = f"a job with {LONG_EVENTS:,} events"
    return [
        Row(
            "long-paint",
            f"the first paint of the page of {what}",
            "ms",
            paints,
            nothing,
            "at most",
            500,
            (),
            "added",
        ),
        Row(
            "long-scroll",
            f"the longest task while the page of {what}, all come live, is scrolled to its begin and its end",
            "ms",
            tasks,
            nothing,
            "at most",
            50,
            ("a task of less than 50 ms counts as 0",),
            "added",
        ),
    ]
