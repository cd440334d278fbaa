"""Marks and clamps of a guest's packet filter held against its needs (verify.py): pure."""

from collections.abc import Iterator

from xenlb.guestside.inspect.finding import APPLY, Difference
from xenlb.guestside.inspect.observed import FilterAction, FilterRule, Observed
from xenlb.guestside.requirements.needs import Clamp, Mark, Needs
from xenlb.ipvs.table import Family, family_of

_VERSION = {Family.INET: "IPv4", Family.INET6: "IPv6"}
_SSH = 22


def marks(needs: Needs, observed: Observed) -> Iterator[Difference]:
    if not needs.marks:
        return
    if unseen := _unseen(observed, what="the marks of connections"):
        yield unseen
        return
    families = {
        mark: tuple(dict.fromkeys(rule.family for rule in needs.rules if rule.mark == mark))
        for mark in dict.fromkeys(need.mark for need in needs.marks)
    }
    for need in needs.marks:
        for family in families[need.mark]:
            if not any(_gives(rule, need) for rule in _of(observed, family, FilterAction.MARK)):
                port = "any port but 22" if need.port is None else f"port {need.port}"
                yield Difference(
                    message=f"{_VERSION[family]} connections that come in by {need.interface} to "
                    f"{need.protocol.upper()} {port} get no mark {need.mark}: their replies do not "
                    "go back to the director",
                    hint=APPLY,
                )
    for mark, each in families.items():
        for family in each:
            if not any(
                _restores(rule, mark) for rule in _of(observed, family, FilterAction.RESTORE)
            ):
                yield Difference(
                    message=f"{_VERSION[family]} replies do not get the mark of their connection "
                    f"({mark}): no rule of the hook output restores it",
                    hint=APPLY,
                )


def _of(observed: Observed, family: Family, does: FilterAction) -> Iterator[FilterRule]:
    return (rule for rule in observed.filters if rule.family is family and rule.does is does)


def _gives(rule: FilterRule, need: Mark) -> bool:
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


def _restores(rule: FilterRule, mark: int) -> bool:
    return rule.hook == "output" and rule.value in (None, mark)


def clamps(needs: Needs, observed: Observed) -> Iterator[Difference]:
    if not needs.clamps:
        return
    if unseen := _unseen(observed, what="the largest segments of TCP"):
        yield unseen
        return
    for need in needs.clamps:
        sizes = [
            rule.value
            for rule in _of(observed, family_of(need.address), FilterAction.CLAMP)
            if _lowers(rule, need) and rule.value is not None
        ]
        if not sizes:
            found = "nothing lowers it"
        elif min(sizes) > need.size:
            found = f"it is lowered to {min(sizes)}"
        else:
            continue
        yield Difference(
            message=f"the segment size that TCP from {need.address} asks for: {found}, wanted "
            f"{need.size}: larger packets do not fit into the tunnel",
            hint=APPLY,
        )


def _lowers(rule: FilterRule, need: Clamp) -> bool:
    return rule.hook in ("output", "postrouting") and rule.source in (None, need.address)


def _unseen(observed: Observed, *, what: str) -> Difference | None:
    if observed.filters:
        return None
    if not observed.programs & {"nft", "iptables-save"}:
        return Difference(
            message=f"{what} cannot be seen, nor set: the guest has neither nft nor iptables",
            hint="install nftables in the guest",
        )
    if not observed.root:
        return Difference(
            message=f"{what} cannot be seen: the guest was not asked as root",
            hint="reach it as root",
        )
    return None
