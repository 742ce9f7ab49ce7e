"""The example repository: a small shop whose test fails until somebody fixes one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

from steadyhand.testing.cli import SYSTEM_PATH

FILES = {
    "shop.py": '''\
"""A shopping basket."""

from dataclasses import dataclass


@dataclass
class Item:
    """A thing in the basket, its price for one in cents."""

    name: str
    price_cents: int
    quantity: int = 1


def total(basket):
    """Return the price of the whole basket, in cents."""
    return sum(item.price_cents for item in basket)
''',
    "test_shop.py": """\
import unittest

from shop import Item, total


class TotalTest(unittest.TestCase):
    def test_an_empty_basket_costs_nothing(self):
        self.assertEqual(total([]), 0)

    def test_a_single_item_costs_its_price(self):
        self.assertEqual(total([Item("tea", 350)]), 350)

    def test_two_of_the_same_cost_twice_as_much(self):
        self.assertEqual(total([Item("tea", 350, quantity=2), Item("cake", 200)]), 900)


if __name__ == "__main__":
    unittest.main()
""",
    "README.md": "# Shop\n\nRun the tests with `python3 -m unittest -q`.\n",
    ".gitignore": "__pycache__/\n",
}


def make_repository(path: Path) -> str:
    """Make the example repository at ``path`` (created if missing) and return its commit's id.

    Raises CalledProcessError when git fails; git's own settings of the user play no part in it.
    """
    path.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (path / name).write_text(text, encoding="utf-8")
    _git(path, "init", "-q", "-b", "main")
    _git(path, "add", "-A")
    _git(
        path,
        "-c",
        "user.name=Example",
        "-c",
        "user.email=example@example.org",
        "commit",
        "-q",
        "-m",
        "A small shop",
    )
    return _git(path, "rev-parse", "HEAD").strip()


def _git(path: Path, *arguments: str) -> str:
    environment = {"PATH": SYSTEM_PATH, "HOME": str(path), "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *arguments], cwd=path, env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout
