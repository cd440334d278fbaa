"""The JSON Schema and the annotated example against the loader: same keys, same words."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.unit.config.test_broken import SCHEMA
from tests.unit.config.test_loader import ETC, EXAMPLES
from xenlb.config import check_parser, check_types, guest_side, loader, scalars, service_parser
from xenlb.ipvs.table import Family, Forwarding, TunnelChecksum, TunnelType
from xenlb.model.guest_side import Delivery, Init, OnBoot, ReturnPath, System
from xenlb.model.settings import AddressPolicy, DrainUntil, OnFailure, SysctlPolicy

FILES = [ETC / "xenlb.yaml", *EXAMPLES]
DEFS = SCHEMA["$defs"]
SERVICE = DEFS["service"]["properties"]
ROOT = SCHEMA["properties"]


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
    assert (path.parent / match[1]).resolve() == Path(loader.__file__).parent / "schema.json"


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        (SCHEMA, loader.ROOT_KEYS),
        (ROOT["libvirt"], loader.LIBVIRT_KEYS),
        (ROOT["guests"], loader.GUESTS_KEYS),
        (ROOT["director"], loader.DIRECTOR_KEYS),
        (ROOT["defaults"], service_parser.DEFAULT_KEYS),
        (DEFS["service"], service_parser.SERVICE_KEYS),
        (DEFS["server"], service_parser.SERVER_KEYS),
        (DEFS["tunnel"], service_parser.TUNNEL_KEYS),
        (DEFS["check"], check_parser.CHECK_KEYS),
        (DEFS["tls"]["oneOf"][1], check_types.TLS_KEYS),
        (DEFS["check"]["properties"]["weight"], check_types.WEIGHT_KEYS),
        (DEFS["drain"], service_parser.DRAIN_KEYS),
        (DEFS["guest-side"], guest_side.SIDE_KEYS),
    ],
)
def test_keys(section: dict[str, Any], keys: tuple[str, ...]) -> None:
    assert set(section["properties"]) == set(keys)
    assert section["additionalProperties"] is False


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (SERVICE["family"], Family),
        (SERVICE["scheduler"], scalars.SCHEDULERS),
        (SERVICE["scheduler-flags"]["items"], service_parser.SCHEDULER_FLAGS),
        (SERVICE["forwarding"], set(Forwarding) - set(service_parser.READ_ONLY)),
        (SERVICE["on-failure"], OnFailure),
        (DEFS["tunnel"]["properties"]["type"], TunnelType),
        (DEFS["tunnel"]["properties"]["checksum"], TunnelChecksum),
        (DEFS["check"]["properties"]["type"], check_types.TYPES),
        (DEFS["check"]["properties"]["via"], check_parser.VIAS),
        (DEFS["check"]["properties"]["method"], check_types.METHODS),
        (DEFS["check"]["properties"]["record"], check_types.RECORDS),
        (DEFS["drain"]["properties"]["until"], DrainUntil),
        (DEFS["guest-side"]["properties"]["delivery"], Delivery),
        (DEFS["guest-side"]["properties"]["on-boot"], OnBoot),
        (DEFS["guest-side"]["properties"]["system"], System),
        (DEFS["guest-side"]["properties"]["init"], Init),
        (DEFS["guest-side"]["properties"]["return-path"], ReturnPath),
        (ROOT["director"]["properties"]["addresses"], AddressPolicy),
        (ROOT["director"]["properties"]["sysctls"], SysctlPolicy),
    ],
)
def test_words(schema: dict[str, Any], words: Any) -> None:
    assert sorted(schema["enum"]) == sorted(str(word) for word in words)


@pytest.mark.parametrize("name", check_types.TYPES)
def test_keys_of_a_type_of_check(name: str) -> None:
    (then,) = (
        each["then"]
        for each in DEFS["check"]["allOf"]
        if each["if"]["properties"]["type"]["const"] == name
    )
    without = {"port"} if name == "icmp" else set()
    keys = {*check_parser.COMMON_KEYS, *check_types.TYPES[name].keys} - without
    assert set(then["propertyNames"]["enum"]) == keys


def test_drivers_and_transports() -> None:
    pattern = ROOT["libvirt"]["properties"]["uris"]["items"]["pattern"]
    assert re.findall(r"\w+", pattern) == [*scalars.DRIVERS, *scalars.TRANSPORTS]


def test_the_annotated_example_has_every_key() -> None:
    text = (ETC / "xenlb.yaml").read_text()
    keys = {
        *loader.ROOT_KEYS,
        *loader.LIBVIRT_KEYS,
        *loader.GUESTS_KEYS,
        *loader.DIRECTOR_KEYS,
        *service_parser.SERVICE_KEYS,
        *service_parser.SERVER_KEYS,
        *service_parser.TUNNEL_KEYS,
        *check_parser.CHECK_KEYS,
        *check_types.TLS_KEYS,
        *check_types.WEIGHT_KEYS,
        *service_parser.DRAIN_KEYS,
        *guest_side.SIDE_KEYS,
    }
    missing = [key for key in keys if not re.search(rf"^[-# ]*{key}:", text, re.MULTILINE)]
    assert not missing


def test_the_annotated_example_shows_the_built_in_defaults() -> None:
    """Its `defaults` section can be left out without a change."""
    text = (ETC / "xenlb.yaml").read_text()
    document = yaml.safe_load(text)
    del document["defaults"]
    assert loader.parse(text, "f") == loader.parse(yaml.safe_dump(document, sort_keys=False), "f")
