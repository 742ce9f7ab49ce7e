"""The reference of the settings: descriptions, the page that the types make, and the template."""

import re
import tomllib
from pathlib import Path

import pytest

from steadyhand.config.descriptions import DESCRIPTIONS
from steadyhand.config.file_schema import Tables
from steadyhand.config.reference import list_settings, settings_page, settings_template
from steadyhand.config.settings import load_settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_each_setting_has_a_description_and_each_description_a_setting() -> None:
    names = [setting.name for setting in list_settings()]
    assert len(names) == len(set(names)) > 60
    assert set(names) == set(DESCRIPTIONS)
    assert all(text.endswith(".") for text in DESCRIPTIONS.values())


def test_the_page_is_the_one_that_the_types_make() -> None:
    assert PAGE.read_text("utf-8") == settings_page(), (
        "run: python -m steadyhand.config.reference > docs/settings.md"
    )


def test_each_variable_of_the_page_sets_its_setting(tmp_path: Path) -> None:
    found = {setting.name: setting for setting in list_settings() if setting.variable is not None}
    assert found["service.data_dir"].variable == "STEADYHAND_DATA_DIR"
    assert found["server.max_body_bytes"].variable == "STEADYHAND_SERVER__MAX_BODY_BYTES"
    for setting in found.values():
        assert setting.variable is not None
        value = setting.example.strip('"') if setting.example != "[]" else "a,b"
        environ = {
            "HOME": str(tmp_path),
            "STEADYHAND_WORKSPACES__TEXT__REPOSITORY": "/x",
            setting.variable: value,
        }
        settings = load_settings(environ=environ, use_working_directory=False)
        assert settings.sources[setting.name] == setting.variable


@pytest.mark.parametrize(
    "setting", [each for each in list_settings() if each.default is not None], ids=lambda each: each.name
)
def test_the_default_of_the_page_is_the_one_of_the_type(setting: object, tmp_path: Path) -> None:
    name, default = setting.name, setting.default  # type: ignore[attr-defined]
    table, _, key = name.rpartition(".")
    required = {
        "workspaces.*": "repository = '/x'\n",
        "runners.*": "path = '/x'\n",
        "openai.models.*": "agent = 'a'\n",
        "schedules.*": "cron = '@daily'\nprompt = 'x'\n",
        "callbacks.endpoints.*": "url = 'https://x.example'\nsecret_file = '/x'\n",
    }.get(table, "")
    header = f"[{table.replace('*', 'x')}]\n{required}"
    without = Tables.model_validate(tomllib.loads(header))
    stated = Tables.model_validate(tomllib.loads(f"{header}{key} = {default}\n"))
    assert stated.model_dump() == without.model_dump()


def test_the_template_is_all_comments_and_each_setting_in_it_can_be_used() -> None:
    template = settings_template()
    assert tomllib.loads(template) == {}
    text = re.sub(r"^#: ", "", template, flags=re.MULTILINE)
    tables = tomllib.loads(text)
    Tables.model_validate(tables)
    for setting in list_settings():
        value = tables
        for part in setting.name.replace("*", "name").split("."):
            assert part in value, setting.name
            value = value[part]
