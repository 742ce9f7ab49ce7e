"""The image of the project's Dockerfile, which is built once for all tests of a process."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.container.dockerfile import parse
from tests.container.image_builder import Image, ImageBuilder, cache_folder

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    # Beside the kept layers: what is kept is renamed, which no two file systems can do.
    cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=cache_folder()))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def image(scratch: Path) -> Image:
    stages = parse((PROJECT / "Dockerfile").read_text("utf-8"))
    return ImageBuilder(PROJECT, scratch, cache_folder()).build(stages)
