"""Each how-to and the tutorial, carried out block by block against a real service on loopback."""

import ast
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.callbacks.receiver import Receiver, receiving
from tests.clients.client_programs import client_command, client_environment
from tests.compat.sample import EXPECTED, unpack
from tests.docs.forked_commands import forked_commands
from tests.docs.page_run import SECONDS, PageRun, blocks_of, matches, pages
from tests.docs.pages import PROJECT, names_in, table
from tests.service_fixtures import make_repository

from steadyhand.store.schema import NEWEST_REVISION
from steadyhand.testing.cli import cli_path
from steadyhand.testing.example import FILES
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import UNUSED_MODEL_URL, MakeService, Service, run_git, wait_until

PAGES = {path.stem: path for path in pages()}
KINDS = {"run", "file", "start", "stop", "output", "read"}
AGENT = "---\nname: {name}\ndescription: Answers questions.\n---\nYou answer questions.\n"
OpenPage = Callable[..., PageRun]


@pytest.fixture(scope="module", autouse=True)
def _forked_commands() -> Iterator[None]:
    """Let the pages' commands be forked instead of started."""
    with forked_commands() as PageRun.commands_dir:
        yield
    PageRun.commands_dir = None


@pytest.fixture
def open_page(make_service: MakeService, tmp_path: Path) -> OpenPage:
    """Open a page, with a running service that has the page's settings; `replaced` are texts that differ here."""

    def opened(name: str, *, replaced: dict[str, str] | None = None, **options: object) -> PageRun:
        page = PageRun(PAGES[name], tmp_path, replaced=replaced or {})
        page.service = make_service(config=page.settings(), **options).start()
        return page

    return opened


def service_of(page: PageRun) -> Service:
    assert page.service is not None
    return page.service


# --- all pages -----------------------------------------------------------------------------------


def test_each_page_has_a_test() -> None:
    tree = ast.parse(Path(__file__).read_text("utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert set(PAGES) == {name[10:].replace("_", "-") for name in names if name.startswith("test_page_")}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_each_block_has_a_marker_and_a_page_says_what_was_not_tried(name: str) -> None:
    text = PAGES[name].read_text("utf-8")
    blocks = blocks_of(PAGES[name])
    assert 2 * len(blocks) == len(re.findall("^```", text, re.MULTILINE))
    assert {each.kind for each in blocks} <= KINDS, "a block has no marker"
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^\n {4}\S", prose, re.MULTILINE), "a block without a fence is not carried out"
    assert "**Not tried.**" in text or all(each.kind != "read" for each in blocks)
    assert all(each.argument for each in blocks if each.kind in ("file", "read"))


def test_the_comparison_of_output_finds_a_difference() -> None:
    assert matches("a…z\n…\nend\n", "abcz\none\ntwo\nend")
    assert not matches("a…z\nend\n", "abc\nend\n")
    assert not matches("a\n", "a\nb\n")


# --- one by one ----------------------------------------------------------------------------------


def test_page_configure(open_page: OpenPage) -> None:
    open_page("configure").carry_out()


def test_page_keys(open_page: OpenPage) -> None:
    page = open_page("keys")
    page.carry_out()
    keys = service_of(page).client.get("/v1/keys").json()["data"]
    (key,) = [each for each in keys if each["name"] == "nightly-triage"]
    assert key["revoked_at"] is not None


def test_page_compose(open_page: OpenPage) -> None:
    page = open_page("compose")
    page.carry_out()
    ((name, added),) = yaml.safe_load((page.folder / "compose.override.yaml").read_text("utf-8"))[
        "services"
    ].items()
    compose = yaml.safe_load((PROJECT / "compose.yaml").read_text("utf-8"))["services"][name]
    assert set(added) <= set(compose)
    target = added["environment"]["STEADYHAND_CONFIG"]
    assert added["volumes"] == [f"./steadyhand.toml:{target}:ro"]
    for block in blocks_of(page.page):
        for file in re.findall(r"compose[a-z.]*yaml", block.text):
            assert (PROJECT / file).is_file()


def test_page_kubernetes(tmp_path: Path) -> None:
    page = PageRun(PAGES["kubernetes"], tmp_path)
    page.carry_out()
    assert (page.folder / "values.yaml").is_file()  # tests/deploy render the chart with it


def test_page_migrate(make_service: MakeService, reachable_tmp: Path, tmp_path: Path) -> None:
    page = PageRun(PAGES["migrate"], tmp_path)
    (command,) = [each.text.splitlines()[-1] for each in blocks_of(page.page) if each.kind == "start"]
    workspace = reachable_tmp / "migrate"
    agents = ("issue-responder", "recruiter-triage")
    make_repository(workspace, {f".claude/agents/{name}.md": AGENT.format(name=name) for name in agents})
    page.service = make_service(
        classic=True,
        env={"WORKSPACE_DIR": str(workspace), "STEADYHAND_PROFILE": None},
        arguments=shlex.split(command)[2:],
    )
    page.service.give_to_agent(workspace)
    page.service.start()
    page.carry_out()


def test_page_voice(open_page: OpenPage) -> None:
    page = open_page("voice", replaced={"!secret ": ""})
    page.carry_out()
    (agent,) = [
        each for each in service_of(page).client.get("/v1/agents").json()["data"] if each["name"] == "voice"
    ]
    assert agent["warm"]["configured"] == 1
    command = yaml.safe_load((page.folder / "configuration.yaml").read_text("utf-8"))["rest_command"][
        "ask_agent"
    ]
    assert command["url"] == f"{service_of(page).url}/v1/conversational"
    body = json.loads(command["payload"].replace("{{ message | to_json }}", '"Hello."'))
    answer = service_of(page).client.request(command["method"].upper(), command["url"], json=body)
    assert (answer.status_code, answer.json()["session_id"]) == (200, "home")


@pytest.mark.long  # another client of the library that `tests/clients` has in `make test`
def test_page_langchain(open_page: OpenPage) -> None:
    page = open_page("langchain")
    page.programs["langchain"] = lambda program: (
        client_command("langchain", program),
        client_environment("langchain"),
    )
    page.carry_out()


# --- n8n -----------------------------------------------------------------------------------------


@pytest.fixture
def n8n() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def test_page_n8n(open_page: OpenPage, n8n: Receiver) -> None:
    page = open_page("n8n", replaced={"n8n:5678": f"127.0.0.1:{n8n.port}"})
    page.carry_out()
    workflow = json.loads((page.folder / "workflow.json").read_text("utf-8"))
    nodes: dict[str, dict[str, Any]] = {node["name"]: node for node in workflow["nodes"]}
    order = ["Start"]
    while following := workflow["connections"].get(order[-1]):
        order += [each["node"] for (each,) in following["main"]]
    assert order == list(nodes)
    request = nodes["Start a job"]["parameters"]
    resume = f"{n8n.url}/webhook-waiting/17?signature=abc"
    values = {"$execution.id": "17", "$execution.resumeUrl": resume}
    answer = service_of(page).client.request(
        request["method"],
        request["url"],
        headers=n8n_parameters(request["headerParameters"], values),
        json=n8n_parameters(request["bodyParameters"], values),
    )
    assert answer.status_code == 202, answer.text
    (message,) = wait_until(lambda: list(n8n.messages), SECONDS)
    assert message.path == "/webhook-waiting/17?signature=abc"
    callback = json.loads(message.body)
    assert nodes["Wait for its end"]["parameters"]["httpMethod"] == "POST"
    assigned = nodes["The answer"]["parameters"]["assignments"]["assignments"]
    found = {each["name"]: n8n_path({"body": callback}, each["value"]) for each in assigned}
    job = service_of(page).get_job(answer.json()["id"])
    assert found == {"state": "completed", "answer": "ok: Why is the build red?", "cost": job["cost"]["usd"]}


def n8n_parameters(parameters: dict[str, Any], values: dict[str, str]) -> dict[str, str]:
    """Return the parameters of a node with its expressions replaced by their values."""
    found = {}
    for each in parameters["parameters"]:
        text: str = each["value"]
        if text.startswith("="):
            text = re.sub(r"\{\{ (\S+) \}\}", lambda match: values[match[1]], text[1:])
        found[each["name"]] = text
    return found


def n8n_path(document: dict[str, Any], expression: str) -> Any:
    """Return what an expression such as `={{ $json.a.b }}` names in a document."""
    value: Any = document
    for name in expression.removeprefix("={{ $json.").removesuffix(" }}").split("."):
        value = value[name]
    return value


# --- CI and cron ---------------------------------------------------------------------------------


def test_page_ci(open_page: OpenPage, reachable_tmp: Path) -> None:
    shop, work = reachable_tmp / "ci-shop.git", reachable_tmp / "ci-work"
    make_repository(work, {"shop.py": "broken\n"})
    run_git(reachable_tmp, "clone", "-q", "--bare", str(work), str(shop))
    page = open_page("ci", replaced={"https://git.example.org/shop.git": str(shop)})
    page.carry_out()
    commit = run_git(work, "rev-parse", "HEAD")
    (page.folder / "build.log").write_text("AssertionError [[standin: write=fix.txt:done]]\n", "utf-8")
    scripts = []
    for number, name in enumerate((".github/workflows/test.yml", ".forgejo/workflows/test.yml")):
        steps = yaml.safe_load((page.folder / name).read_text("utf-8"))["jobs"]["test"]["steps"]
        (step,) = [each for each in steps if "env" in each]
        assert (step["if"], set(step["env"])) == ("failure()", {"STEADYHAND_URL", "STEADYHAND_TOKEN"})
        summary = page.folder / f"summary-{number}.md"
        page.environment |= {
            "GITHUB_SHA": commit,
            "GITHUB_RUN_ID": f"4{number}",
            "GITHUB_STEP_SUMMARY": str(summary),
        }
        printed = page.run_shell(step["run"])
        assert summary.read_text("utf-8") == printed
        found = re.search(r"Job (\w+): completed, 0\.\d+ USD\n[^`]*Branch: `(steadyhand/\w+)`", printed)
        assert found, printed
        assert run_git(shop, "show", f"{found[2]}:fix.txt") == "done"
        assert page.run_shell(step["run"]) == printed, "the same run asks once"
        scripts.append(step["run"])
    assert scripts[0] == scripts[1]


def test_page_cron(open_page: OpenPage) -> None:
    page = open_page("cron")
    page.carry_out()
    (line,) = (page.folder / "crontab").read_text("utf-8").splitlines()
    fields = line.split(maxsplit=5)
    assert all(re.fullmatch(r"\d+|\*", each) for each in fields[:5])
    subprocess.run(["sh", "-n"], input=fields[5], text=True, check=True, timeout=60)
    service = page.folder / "nightly.service"
    service.write_text(service.read_text("utf-8").replace("/usr/local/bin/nightly.sh", "/bin/true"), "utf-8")
    verify_unit(service)
    verify_unit(page.folder / "nightly.timer")


def verify_unit(path: Path) -> None:
    """Let systemd verify a unit, if it is on this machine; without pages of the manual, which are not installed."""
    program = shutil.which("systemd-analyze")
    if program is not None:
        command = [program, "--man=no", "verify", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_page_systemd(tmp_path: Path) -> None:
    settings, data = tmp_path / "etc", tmp_path / "data"
    here = {"/etc/steadyhand": str(settings), "/var/lib/steadyhand": str(data)}  # also what begins so
    page = PageRun(PAGES["systemd"], tmp_path, replaced=here)
    page.carry_out()
    assert (data / "admin.key").is_file()
    env = settings / "steadyhand.env"
    assert f"EnvironmentFile=-{env}\n" in (settings / "steadyhand.service").read_text("utf-8")
    assert env.stat().st_mode & 0o777 == 0o600
    assert str(data) in page.run_shell(f"steadyhand --config {settings}/steadyhand.toml config")
    verify_unit(settings / "steadyhand.service")
    verify_unit(tmp_path / "etc-worker/steadyhand.service")


# --- backup, restore, upgrade --------------------------------------------------------------------


def test_page_backup(open_page: OpenPage, reachable_tmp: Path) -> None:
    repository = reachable_tmp / "backup-shop"
    make_repository(repository, {"a.txt": "a\n"})
    page = open_page("backup", env={"STEADYHAND_ISOLATION": None, "STEADYHAND_SERVICE__DRAIN_SECONDS": "1"})
    service = service_of(page)
    key = service.client.post("/v1/keys", json={"name": "ci", "scopes": ["submit", "read"]}).json()
    done = service.submit("[[standin: write=b.txt:b]] work", workspace=str(repository))["id"]
    wait_until(lambda: service.get_job(done)["finished_at"], SECONDS)
    before = {
        "job": service.get_job(done),
        "diff": service.client.get(f"/v1/jobs/{done}/diff").text,
        "transcript": service.client.get(f"/v1/jobs/{done}/transcript").text,
        "usage": service.client.get("/v1/usage").json(),
    }
    assert "b.txt" in before["diff"]
    running = service.submit("[[standin: sleep=600]] long", workspace="scratch")["id"]
    wait_until(lambda: service.get_job(running)["state"] == "running", SECONDS)
    rows = table(page.page.read_text("utf-8"), "| in the data directory | is | in the backup |")
    named = {name: kept.startswith("yes") for cell, _, kept in rows for name in names_in(cell)}
    there = {path.name for path in service.data_dir.iterdir() if not path.name.startswith("steadyhand.db-")}
    assert there <= set(named), "the page names everything in the data directory"
    page.carry_out()
    with tarfile.open(page.folder / "backup" / "files.tar") as archive:
        kept = {Path(name).parts[0] for name in archive.getnames() if name != "."}
    assert kept == {name for name in there if named[name]} - {"steadyhand.db"}
    after = {
        "job": service.get_job(done),
        "diff": service.client.get(f"/v1/jobs/{done}/diff").text,
        "transcript": service.client.get(f"/v1/jobs/{done}/transcript").text,
        "usage": service.client.get("/v1/usage").json(),
    }
    assert after == before
    assert service.get_job(running)["state"] == "interrupted"
    with service.new_client(key["secret"]) as caller:
        assert caller.get("/v1/jobs").status_code == 200
    turn = service.client.post(f"/v1/jobs/{done}/turns", json={"prompt": "[[standin: run=ls]] go on"}).json()[
        "id"
    ]
    wait_until(lambda: service.get_job(turn)["finished_at"], SECONDS)
    assert service.get_job(turn)["state"] == "completed"
    assert {path.name for path in (page.folder / "backup").iterdir()} == {"steadyhand.db", "files.tar"}


def test_page_upgrade(make_service: MakeService, tmp_path: Path) -> None:
    page = PageRun(PAGES["upgrade"], tmp_path)
    page.service = service = make_service(env={"STEADYHAND_SERVICE__PAUSED": "true"})
    config = unpack(service.root, service.uid_base)
    service.config_path.write_text(
        config.replace("@ROOT@", str(service.root)).replace("@MODEL@", UNUSED_MODEL_URL), "utf-8"
    )
    expected = json.loads(EXPECTED.read_text("ascii"))
    assert revision(service) < NEWEST_REVISION
    page.is_stopped = True
    page.carry_out()
    assert revision(service) == NEWEST_REVISION
    jobs = service.client.get("/v1/jobs", params={"limit": 200}).json()["data"]
    assert [each["id"] for each in jobs] == expected["list"]


def revision(service: Service) -> str:
    with closing(sqlite3.connect(service.data_dir / "steadyhand.db")) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


# --- the tutorial --------------------------------------------------------------------------------


@pytest.mark.timeout(400)  # a loaded machine takes long for the real CLI
def test_page_tutorial(make_service: MakeService, tmp_path: Path) -> None:
    page = PageRun(PAGES["tutorial"], tmp_path)
    with ScriptedModel("fix-the-test") as model:
        page.service = make_service(
            claude=cli_path(),
            model=model.url,
            env={"STEADYHAND_API_KEY": None, "API_BEARER_TOKEN": None, "STEADYHAND_ISOLATION": None},
        ).start()
        page.environment["STEADYHAND_TOKEN"] = ""
        page.carry_out()
    for name, text in FILES.items():
        written = page.folder / "shop" / name
        assert not written.exists() or name == "shop.py" or written.read_text("utf-8") == text
