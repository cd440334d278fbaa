"""Answers of an agent on a host with two mail guests, a web service by mark and some trouble."""

from datetime import UTC, datetime, timedelta
from typing import Any


def ago(**span: float) -> str:
    return (datetime.now(UTC) - timedelta(**span)).isoformat().replace("+00:00", "Z")


def server(guest: str | None, **fields: Any) -> dict[str, Any]:
    return {
        "guest": guest,
        "uuid": None if guest is None else "3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1",
        "uri": None if guest is None else "xen:///system",
        "address": "10.0.0.11",
        "port": 25,
        "phase": "serving",
        "weight": 2,
        "configured_weight": 2,
        "in_table": True,
        "active_connections": 12,
        "inactive_connections": 3,
        "persistent_connections": 0,
        "health": "up",
        "reason": "check passed",
        "since": ago(minutes=3),
        "deadline": None,
        **fields,
    }


def status() -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "pid": 812,
        "started": ago(hours=3),
        "synced": True,
        "kernel": None,
        "libvirt": [
            {"uri": "xen:///system", "connected": True, "since": ago(hours=3), "reason": ""},
            {
                "uri": "xen+ssh://dom0b/system",
                "connected": False,
                "since": ago(seconds=40),
                "reason": "connection refused",
            },
        ],
        "config": {
            "file": "/etc/xenlb/xenlb.yaml",
            "loaded": ago(hours=3),
            "problems": ["/etc/xenlb/xenlb.yaml:3:5: services.mail.weight: is too much"],
        },
        "director": {"interface": "eth0", "problems": []},
        "services": [
            {
                "name": "mail",
                "address": "192.0.2.10",
                "port": 25,
                "protocol": "tcp",
                "fwmark": None,
                "scheduler": "lblc",
                "forwarding": "gatewaying",
                "in_table": True,
                "reason": "",
                "foreign_servers": 1,
                "servers": [
                    server("mail1"),
                    server(
                        "mail2",
                        address="10.0.0.12",
                        phase="draining",
                        weight=0,
                        reason="asked for poweroff",
                        deadline=ago(seconds=-61),
                        deadline_means="back in service, unless it goes,",
                    ),
                    server(
                        "a-guest-with-a-rather-long-name",
                        address=None,
                        port=None,
                        phase="absent",
                        weight=0,
                        in_table=False,
                        health="unknown",
                        reason="not running",
                        since=None,
                    ),
                ],
            },
            {
                "name": "web",
                "address": None,
                "port": None,
                "protocol": None,
                "fwmark": 7,
                "family": "inet6",
                "scheduler": "wlc",
                "forwarding": "masquerade",
                "in_table": True,
                "reason": "",
                "foreign_servers": 0,
                "servers": [server(None, address="2001:db8::5", port=8080, weight=1)],
            },
        ],
    }


def drain(**fields: Any) -> dict[str, Any]:
    return {
        "id": "7.000000",
        "reason": "drained",
        "by": "alice (sudo)",
        "since": ago(seconds=10),
        "deadline": ago(seconds=-50),
        "then": None,
        "asked": False,
        "failure": None,
        "connections_left": None,
        "over": None,
        "outcome": None,
        "end": None,
        "warnings": [],
        **fields,
    }


def progress(**fields: Any) -> dict[str, Any]:
    """The answer to `progress` for a guest whose drain has these fields."""
    answer = why()
    for key in ("servers", "events"):
        del answer[key]
    return {
        **answer,
        "drain": drain(**fields),
        "serves": False,
        "holders": [],
        "more_holders": 0,
    }


def ended(**fields: Any) -> dict[str, Any]:
    """The same after the end of the drain."""
    return {**progress(), "drain": None, "last_drain": drain(**fields)}


def why() -> dict[str, Any]:
    return {
        "guest": "mail2",
        "uuid": "3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1",
        "uri": "xen:///system",
        "phase": "up",
        "since": ago(hours=3),
        "domain_id": 4,
        "request": None,
        "drain": drain(),
        "last_drain": None,
        "addresses": [{"address": "10.0.0.12", "source": "interface xml"}],
        "refused_addresses": [
            {
                "address": "192.0.2.10",
                "source": "reported by the guest",
                "reason": "a service address",
            }
        ],
        "metadata_problems": [],
        "inside": [
            {"service": "mail", "problem": "192.0.2.10 is missing, wanted on lo"},
            {"service": "web", "problem": None},
        ],
        "services": ["mail"],
        "servers": [
            {
                "service": "mail",
                **server("mail2", address="10.0.0.12", phase="draining", weight=0),
                "reason": "drained by alice (sudo)",
                "checks": [
                    check("http 10.0.0.12:80", "up", share=0.5),
                    check(
                        "smtp 10.0.0.12:25",
                        "down",
                        detail="expected 220, got 554",
                        failures=3,
                        deadline=ago(seconds=-50),
                    ),
                    check("dns 10.0.0.12:53", "unknown", since=None, detail="", changes=[]),
                ],
            }
        ],
        "events": [event()],
    }


def check(name: str, health: str, **fields: Any) -> dict[str, Any]:
    return {
        "check": name,
        "type": name.partition(" ")[0],
        "health": health,
        "since": ago(minutes=3),
        "detail": "status 200",
        "share": None,
        "failures": 0,
        "deadline": None,
        "changes": [{"at": "2026-01-02T03:04:05.678000Z", "health": "up", "detail": "status 200"}],
        **fields,
    }


def event(text: str = "drained by alice (sudo)") -> dict[str, Any]:
    return {
        "number": 1,
        "time": "2026-01-02T03:04:05.678000Z",
        "level": "info",
        "guest": "mail2",
        "uuid": "3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1",
        "text": text,
    }
