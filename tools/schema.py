"""Write etc/schema.json, the JSON Schema of the configuration, for editors.

Keys, values and descriptions come from the declarations that the validator reads by. Only rules
between keys are stated here, as far as JSON Schema can state them.
"""

import json
from pathlib import Path
from typing import Any

from xenlb.config import check_parser, check_types, check_values, draft, scalars
from xenlb.config.check_parser import CheckDraft
from xenlb.config.guest_side import GuestSideDraft
from xenlb.config.keys import Key, keys_by_field
from xenlb.config.loader import ROOT_KEYS
from xenlb.config.root_sections import DirectorDraft, GuestsDraft, LibvirtDraft

FILE = Path(__file__).parents[1] / "etc/schema.json"

Json = dict[str, Any]

CHECK = (
    "How servers are probed: none, one check, or several of which all (a list does it) or any must"
    " pass."
)


def ref(name: str) -> Json:
    """A reference to a definition."""
    return {"$ref": f"#/$defs/{name}"}


def mapping(properties: Json, description: str = "", **rules: Any) -> Json:
    """A mapping that has no other keys than these."""
    return {
        **({"description": description} if description else {}),
        "type": "object",
        "additionalProperties": False,
        **rules,
        "properties": properties,
    }


def keys(declared: type) -> Json:
    """The properties of a section, from its declaration."""
    return {key.name: described(key) for key in keys_by_field(declared).values()}


def described(key: Key) -> Json:
    """The schema of one key, with its description."""
    return ({"description": key.description} if key.description else {}) | dict(key.kind.schema)


def without(*names: str) -> Json:
    """The rule that excludes these keys."""
    rules = [{"required": [name]} for name in names]
    return {"not": rules[0] if len(rules) == 1 else {"anyOf": rules}}


def check() -> Json:
    """A single check, with a rule for each type."""
    types = check_types.TYPES
    properties = keys(CheckDraft)
    for name, description in check_types.TYPE_KEYS.items():
        type_key = next(kind.keys[name] for kind in types.values() if name in kind.keys)
        properties[name] = {"description": description, **type_key.kind.schema}
    return mapping(
        properties,
        "One check; the type determines which keys it has besides the common ones.",
        allOf=[check_rule(name) for name in types],
    )


def check_rule(name: str) -> Json:
    """The keys of one type of check, and what only this type accepts."""
    type_keys = check_types.TYPES[name].keys
    common = [key for key in check_parser.COMMON_KEYS if (name, key) != ("icmp", "port")]
    narrower = {key: dict(value.narrower) for key, value in type_keys.items() if value.narrower}
    if name != "tcp":
        narrower["via"] = {"const": "server"}
    rule: Json = {"propertyNames": {"enum": [*common, *type_keys]}}
    if narrower:
        rule["properties"] = narrower
    if "starttls" in type_keys:
        rule["not"] = {"required": ["tls", "starttls"]}
    return {
        "if": {"required": ["type"], "properties": {"type": {"const": name}}},
        "then": rule,
    }


def definitions() -> Json:
    """The sections that occur several times."""
    service = keys(draft.ServiceDraft)
    checks = ref("checks")
    service["check"] = {
        "description": CHECK,
        "oneOf": [
            {"const": "none"},
            ref("check"),
            checks,
            mapping(
                {
                    "all": {"description": "Every check must pass.", **checks},
                    "any": {"description": "One check must pass.", **checks},
                },
                minProperties=1,
                maxProperties=1,
            ),
        ],
    }
    return {
        "duration": {"type": "string", "pattern": "^(0|[1-9][0-9]*)(ms|s|m|h)$"},
        "weight": {
            "description": "The server's share of new connections, relative to others; 0 … 65535.",
            "type": "integer",
            "minimum": 0,
            "maximum": 65535,
        },
        "port": {
            "oneOf": [
                {"type": "integer", "minimum": 0, "maximum": 65535},
                {"type": "string", "pattern": "^(0|[1-9][0-9]{0,4})(/(tcp|udp|sctp))?$"},
            ]
        },
        "service": mapping(
            service,
            oneOf=[
                {"required": ["address", "ports"], **without("fwmark")},
                {"required": ["fwmark"], **without("address", "ports")},
            ],
        ),
        "tunnel": mapping(keys(draft.TunnelDraft), "Encapsulation, for forwarding: tunnel."),
        "check": check(),
        "checks": {
            "type": "array",
            "minItems": 1,
            "maxItems": check_parser.MOST_CHECKS,
            "items": ref("check"),
        },
        "code": {
            "description": "200, or 200-399.",
            "oneOf": [
                {"type": "integer", "minimum": 100, "maximum": 599},
                {"type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"},
            ],
        },
        "tls": {"oneOf": [{"type": "boolean"}, mapping(keys(check_values.TlsDraft))]},
        "share": mapping(keys(check_values.WeightDraft)),
        "drain": mapping(keys(draft.DrainDraft), "How a server is taken out of service."),
        "server": mapping(
            keys(draft.MemberDraft),
            oneOf=[
                {"required": ["guest"], **without("host")},
                {"required": ["host"], **without("guest", "address", "network", "guest-side")},
            ],
        ),
        "guest-side": mapping(
            keys(GuestSideDraft), "How xenlb reaches and configures the inside of the guests."
        ),
    }


def schema() -> Json:
    """The whole schema as JSON."""
    sections = {
        "libvirt": mapping(keys(LibvirtDraft)),
        "guests": mapping(keys(GuestsDraft)),
        "director": mapping(keys(DirectorDraft)),
        "defaults": mapping(
            {
                name: {"$ref": f"#/$defs/service/properties/{name}"}
                for name in draft.SERVICE_KEYS
                if name not in draft.OWN_KEYS
            },
            "Any key of a service except address, fwmark, ports and servers.",
        ),
        "services": {
            "type": "object",
            "propertyNames": {"pattern": f"^{scalars.SERVICE_NAME}$"},
            "additionalProperties": ref("service"),
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "xenlb.yaml",
        **mapping(
            {name: sections[name] for name in ROOT_KEYS},
            "The configuration of xenlb. `xenlb check` knows more rules than this schema can"
            " state.",
            required=["services"],
        ),
        "$defs": definitions(),
    }


def text() -> str:
    """The schema as the file has it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
