"""Differences between the marks and clamps of a guest's packet filter and its needs: pure."""

from collections.abc import Iterator

from xenlb.guestside.inspect.finding import APPLY, Difference
from xenlb.guestside.inspect.observed import FilterAction, FilterRule, Observed
from xenlb.guestside.requirements.needs import Mark, Needs
from xenlb.ipvs.table import Family, family_of

_VERSION = {Family.INET: "IPv4", Family.INET6: "IPv6"}
_SSH = 22


def marks(needs: Needs, observed: Observed) -> Iterator[Difference]:
    """Check that connections get their marks, and replies the mark of their connection."""
    if not needs.marks:
        return
    if unknown := _unknown(observed, subject="the marks of connections"):
        yield unknown
        return
    families = {
        mark: tuple(dict.fromkeys(rule.family for rule in needs.rules if rule.mark == mark))
        for mark in dict.fromkeys(need.mark for need in needs.marks)
    }
    for need in needs.marks:
        for family in families[need.mark]:
            if not any(_marks(rule, need) for rule in _rules(observed, family, FilterAction.MARK)):
                port = "any port but 22" if need.port is None else f"port {need.port}"
                yield Difference(
                    message=f"{_VERSION[family]} connections through {need.interface} to "
                    f"{need.protocol.upper()} {port} get no mark {need.mark}: their replies do not "
                    "go back to the director",
                    hint=APPLY,
                )
    for mark, mark_families in families.items():
        for family in mark_families:
            rules = _rules(observed, family, FilterAction.RESTORE)
            if not any(rule.hook == "output" and rule.value in (None, mark) for rule in rules):
                yield Difference(
                    message=f"{_VERSION[family]} replies do not get the mark of their connection "
                    f"({mark}): no rule of the hook output restores it",
                    hint=APPLY,
                )


def _rules(observed: Observed, family: Family, action: FilterAction) -> Iterator[FilterRule]:
    return (rule for rule in observed.filters if (rule.family, rule.action) == (family, action))


def _marks(rule: FilterRule, need: Mark) -> bool:
    if rule.hook != "prerouting" or rule.value != need.mark or rule.source is not None:
        return False
    if rule.interface not in (None, need.interface) or rule.protocol not in (None, need.protocol):
        return False
    if rule.ports is None:
        return True
    if need.port is not None:
        return any(need.port in ports for ports in rule.ports)
    covered = sum(len(ports) for ports in rule.ports if _SSH not in ports)
    return covered >= 65534  # every port but 22


def clamps(needs: Needs, observed: Observed) -> Iterator[Difference]:
    """Check that the maximum segment size of TCP is at most the needed one, in bytes."""
    if not needs.clamps:
        return
    if unknown := _unknown(observed, subject="the maximum segment size of TCP"):
        yield unknown
        return
    for need in needs.clamps:
        sizes = [
            rule.value
            for rule in _rules(observed, family_of(need.address), FilterAction.CLAMP)
            if rule.hook in ("output", "postrouting")
            and rule.source in (None, need.address)
            and rule.value is not None
        ]
        if sizes and min(sizes) <= need.size:
            continue
        now = f"lowered to {min(sizes)}" if sizes else "not lowered"
        yield Difference(
            message=f"the maximum segment size of TCP from {need.address} is {now}, wanted "
            f"{need.size}: larger packets do not fit into the tunnel",
            hint=APPLY,
        )


def _unknown(observed: Observed, *, subject: str) -> Difference | None:
    if observed.filters:
        return None
    if not observed.programs & {"nft", "iptables-save"}:
        return Difference(
            message=f"{subject} cannot be read or set: the guest has neither nft nor iptables",
            hint="install nftables in the guest",
        )
    if not observed.root:
        return Difference(
            message=f"{subject} cannot be read: xenlb is not root in the guest",
            hint="connect as root",
        )
    return None
