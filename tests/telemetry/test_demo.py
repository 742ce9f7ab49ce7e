"""The demo's signals: its metrics in a scrape, and its trace in a receiver of OTLP."""

import json
import signal
from pathlib import Path

import httpx2
from tests.blackbox.test_metrics import NOT_ON_THE_PATH, OF_THIS_MOMENT, is_counted, parse
from tests.cli.command_line import CommandLine, read_until
from tests.telemetry.otlp_receiver import OtlpReceiver, faults_of
from tests.telemetry.test_traces import named

from steadyhand.metrics.names import METRICS, PROCESS_METRICS
from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import PLAIN_HTTP, wait_until

OF_OTHER_PATHS = {
    *(name for name in METRICS if name.startswith(("steadyhand_warm_", "steadyhand_callbacks_"))),
}
"""The demo has neither waiting processes nor callbacks."""


def test_after_the_demo_every_metric_of_its_path_counts_and_its_trace_is_whole(
    world_dir: Path, otlp: OtlpReceiver
) -> None:
    command = CommandLine(world_dir, None, None)
    with ScriptedModel("fix-the-test") as model:
        command.env |= {
            "ANTHROPIC_API_KEY": DUMMY_API_KEY,
            "ANTHROPIC_BASE_URL": model.url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.url,
        }
        with command.running("demo") as demo:
            shown = read_until(demo.stdout, "202 Accepted: job ", 120)
            # Its service goes on: what it counts is scraped before the demo ends it.
            demo.send_signal(signal.SIGSTOP)
            url = shown.partition("steadyhand serve  →  ")[2].split()[0]
            (root,) = world_dir.glob("steadyhand-demo-*")
            key = (root / "data" / "admin.key").read_text().strip()
            with httpx2.Client(
                base_url=url, headers={"authorization": f"Bearer {key}"}, trust_env=False, verify=PLAIN_HTTP
            ) as client:
                job = wait_until(
                    lambda: next(
                        (
                            each
                            for each in client.get("/v1/jobs").json()["data"]
                            if each["state"] not in {"queued", "running"}
                        ),
                        None,
                    ),
                    120,
                )
                found = parse(client.get("/metrics").text)
            demo.send_signal(signal.SIGCONT)
            out, err = demo.communicate(timeout=120)
            assert demo.wait(10) == 0, out + err
    assert job["state"] == "completed", json.dumps(job)
    expected = {*METRICS, *PROCESS_METRICS} - NOT_ON_THE_PATH - OF_THIS_MOMENT - OF_OTHER_PATHS
    assert [name for name in sorted(expected) if not is_counted(found, name)] == []
    spans = otlp.of(job["id"])
    assert faults_of(spans) == []
    assert {span.name for span in named(spans, "execute_tool")} >= {"execute_tool Bash", "execute_tool Edit"}
    names = {span.name.split(" ")[0] for span in spans}
    assert {
        "job",
        "queue",
        "invoke_agent",
        "checking_out",
        "starting",
        "running",
        "harvesting",
        "chat",
    } <= names
    # The last export of the metrics has the whole job, too.
    assert otlp.metrics["steadyhand_jobs_ended_total"]["claude", "success"] == 1
