"""The JSON Schema is up to date and accepts the annotated example, which has every key."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.unit.config.test_broken import SCHEMA
from tests.unit.config.test_loader import ETC, EXAMPLES
from tools import schema
from xenlb.config import check_types, loader

FILES = [ETC / "xenlb.yaml", *EXAMPLES]


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_takes_the_examples(path: Path) -> None:
    document: Any = yaml.safe_load(path.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_editors_find_it(path: Path) -> None:
    match = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert match
    assert (path.parent / match[1]).resolve() == schema.FILE


def test_it_is_generated_from_the_declarations_of_the_keys() -> None:
    assert schema.FILE.read_text() == schema.text(), "run: make schema"


def test_every_key_of_a_check_has_a_description() -> None:
    keys = {key for kind in check_types.TYPES.values() for key in kind.keys}
    assert keys == check_types.TYPE_KEYS.keys()


def keys(part: Any) -> Iterator[str]:
    """The names of all properties anywhere in a schema."""
    for name, inner in part.items() if isinstance(part, dict) else enumerate(part):
        if name == "properties":
            yield from inner
        if isinstance(inner, dict | list):
            yield from keys(inner)


def test_the_annotated_example_has_every_key() -> None:
    text = (ETC / "xenlb.yaml").read_text()
    missing = [
        key
        for key in set(keys(SCHEMA)) - {"all", "any"}
        if not re.search(rf"^[-# ]*{key}:", text, re.MULTILINE)
    ]
    assert not missing


def test_the_annotated_example_shows_the_built_in_defaults() -> None:
    """Its `defaults` section can be left out without a change."""
    text = (ETC / "xenlb.yaml").read_text()
    document = yaml.safe_load(text)
    del document["defaults"]
    assert loader.parse(text, "f") == loader.parse(yaml.safe_dump(document, sort_keys=False), "f")
