"""Print the OpenAPI document that the service serves: it is started for it, in a directory that is removed."""

import sys
import tempfile
from pathlib import Path

import httpx2

from steadyhand.config.settings import load_settings
from steadyhand.serve import embedded


def main() -> None:
    """Print the document as JSON."""
    with tempfile.TemporaryDirectory(prefix="sh-") as name:
        overrides = {"server.port": 0, "service.data_dir": Path(name, "data"), "service.isolation": "none"}
        # The credential is sent to nobody: nothing runs.
        environ = {"HOME": name, "PATH": "/usr/bin:/bin", "ANTHROPIC_API_KEY": "none"}
        settings = load_settings(None, overrides, environ, use_working_directory=False)
        with embedded(settings) as (url, token):
            answer = httpx2.get(
                f"{url}/openapi.json",
                headers={"Authorization": f"Bearer {token}"},
                trust_env=False,
                timeout=60,
            )
            sys.stdout.write(answer.raise_for_status().text + "\n")


if __name__ == "__main__":
    main()
