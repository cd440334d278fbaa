"""JSON of state files of the versions 6 and 7, converted to that of version 8."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

HEALTH = ("valid_from", "up", "since", "detail", "assumed", "share", "failures", "held_until")
Parts = dict[str, list[list[Any]]]


def converted(saved: Any, changes: Iterable[Any]) -> tuple[Parts, list[Any]]:
    """Both as `saved_state.decoded` takes them.

    Changes of version 8 may follow older ones, until the file is rewritten.
    """
    return _parts(saved), [_change(**change) if "now" in change else change for change in changes]


def _change(now: Any, gone: Any) -> dict[str, Any]:
    removed = {name: [key for key, _ in entries] for name, entries in _parts(gone).items()}
    return {"changed": _parts(now), "removed": removed}


def _parts(saved: dict[str, Any]) -> Parts:
    old = defaultdict[str, Any](tuple, saved)
    return {
        "services": [[key, None] for key in old["services"]],
        "servers": [
            [[key, [address, port]], uri]
            for key, port, uri, addresses in old["servers"]
            for address in addresses
        ],
        "addresses": [[address, None] for address in old["addresses"]],
        "sysctls": list(old["sysctls"]),
        "guests": [[guest["id"], _guest(**guest)] for guest in old["guests"]],
        "admitted": [
            [
                [owner, key, [address, port]],
                {"at": at, "ramp": ramp, "quiesced": quiesced, "overrides": _health(own)}
                | dict(zip(["zero_since"], since, strict=False)),  # version 6 does not have it
            ]
            for key, port, owner, at, ramp, quiesced, own, addresses, *since in old["admitted"]
            for address in addresses
        ],
        "health": _health(old["verdicts"]),
        # Version 6 has one kind of alarm.
        "alarms": [[key, [(*kind, "kept")[0], since]] for key, since, *kind in old["alarms"]],
    }


def _guest(*, drained: Any, found: Any, metadata: Any, **guest: Any) -> dict[str, Any]:
    # Version 6 has reserved addresses without an end, which would be waited for without end.
    end = {"reserved_until": 0.0} if guest.get("reserved") else {}
    services = [{"name": name, "weight": weight, "address": at} for name, weight, at in metadata]
    return {**end, **guest, "last_drain": drained, "candidates": found, "metadata": services}


def _health(verdicts: Any) -> list[list[Any]]:
    return [
        [
            {"check": _check(check), "address": address, "port": port, **_via(*via or ())},
            {**dict(zip(HEALTH, health, strict=True)), "changes": changes},
        ]
        for check, address, port, via, *health, changes in verdicts
    ]


def _via(vip: Any = None, tunnel: Any = None) -> dict[str, Any]:
    parts = tunnel and dict(zip(("type", "port", "checksum"), tunnel, strict=True))
    return {"vip": vip, "tunnel": parts}


def _check(check: dict[str, Any]) -> dict[str, Any]:
    return _nameless(check) | {"asks": [check["asks"]["is"], _nameless(check["asks"])]}


def _nameless(item: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _nameless(value) if isinstance(value, dict) else value
        for name, value in item.items()
        if name != "is"
    }
