"""Pictures of the operations page for docs/, of a real service and the real CLI with a scripted model.

Usage: `.venv/bin/python -m tests.web.screenshots docs/images`.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.web.browser_fixtures import DESKTOP, PHONE, WatchedContext, chromium

from steadyhand.testing.cli import cli_path
from steadyhand.testing.example import make_repository
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.scenario import load
from steadyhand.testing.service import ADMIN_KEY, Service

JOBS = (
    ("ok", {"agent": "chat", "prompt": "How is a basket's price added up?", "title": "Ask about prices"}),
    ("bad-request", {"prompt": "List the files that changed.", "title": "List changed files"}),
    ("fix-the-test", {"prompt": "Fix the failing test.", "title": "Fix the failing test"}),
)
RUNNING = {"prompt": "Explain every file of the shop.", "title": "Explain the shop", "agent": "chat"}
PICTURES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("job-light", {"viewport": DESKTOP, "color_scheme": "light"}),
    ("now-dark-phone", {"viewport": PHONE, "color_scheme": "dark", "device_scale_factor": 2}),
)


def main() -> None:
    """Run the jobs, and save a picture of the last one, and one of what goes on, as on a phone."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="steadyhand-pictures-") as name, ScriptedModel("ok") as model:
        root = Path(name)
        root.chmod(0o755)
        make_repository(root / "shop")
        config = f'[defaults]\nworkspace = "shop"\n[workspaces.shop]\nrepository = "{root / "shop"}"\n'
        env = {"STEADYHAND_ISOLATION": "bwrap" if os.geteuid() == 0 else "none"}
        with Service(root, cli_path(), env=env, config=config, model=model.url) as service:
            for scenario, body in JOBS:
                model.scenario = load(scenario)
                job_id = service.client.post("/v1/jobs", json=body).json()["id"]
                service.client.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=60"})
            model.scenario = load("slow")
            service.client.post("/v1/jobs", json=RUNNING)
            _take_pictures(service, job_id, folder)


def _take_pictures(service: Service, job_id: str, folder: Path) -> None:
    with chromium() as browser:
        for name, options in PICTURES:
            profile = WatchedContext(browser, service.url, **options)
            page = profile.sign_in(ADMIN_KEY)
            if name.startswith("job"):
                page.goto(f"{service.url}/ui/jobs/{job_id}")
            page.wait_for_timeout(1000)  # the first frame of the stream
            page.screenshot(path=str(folder / f"{name}.png"))
            profile.context.close()
            profile.check()


if __name__ == "__main__":
    main()
