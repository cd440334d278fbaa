"""The scripts that make true in a running guest what its files say: guest.sh, brought along.

It is the host's guest.sh that runs, not the guest's: one that is not installed, or an old one, need
not know what is wanted now. xenlb-guest is stopped meanwhile, since it keeps the same record.
"""

from collections.abc import Sequence

_END = "END OF WHAT XENLB BRINGS ALONG"

# Stopped, xenlb-guest leaves everything in place.
_HEAD = """\
umask 077
run=/run
[ -d "$run" ] || run=/var/run
here=$run/xenlb-apply.$$
rm -rf "$here"
mkdir "$here" || exit 1
trap 'rm -rf "$here"' EXIT
stop_guest() {
    if [ -d /run/systemd/system ]; then
        systemctl stop xenlb-guest.service
    elif [ -x /etc/init.d/xenlb-guest ]; then
        /etc/init.d/xenlb-guest stop
    fi
} >/dev/null 2>&1
"""


def applied_script(guest_script: str, *, former: str, settings: str, after: Sequence[str]) -> str:
    """Takes away what is of the former settings and no longer wanted, makes the rest so, and runs
    the commands after it. Status 1: something failed, the output says what."""
    return "\n".join(
        (
            _HEAD,
            _file("guest.sh", guest_script),
            _file("former", former),
            _file("settings", settings),
            "failed=0",
            "stop_guest",
            'sh "$here/guest.sh" adopt "$here/former" >/dev/null',
            'sh "$here/guest.sh" up "$here/settings" || failed=1',
            *(_tried(command) for command in after),
            "exit $failed",
        )
    )


def removed_script(guest_script: str, *, former: str) -> str:
    """Takes away all that is of the former settings."""
    return "\n".join(
        (
            _HEAD,
            _file("guest.sh", guest_script),
            _file("former", former),
            "stop_guest",
            'sh "$here/guest.sh" adopt "$here/former" >/dev/null',
            'sh "$here/guest.sh" down',
        )
    )


def after_script(commands: Sequence[str]) -> str:
    return "\n".join(("failed=0", *(_tried(command) for command in commands), "exit $failed"))


def _tried(command: str) -> str:
    """Its words are told only if it fails: systemctl has much to say."""
    return (
        f"said=$({{ {command}; }} 2>&1) || {{ failed=1; "
        "printf 'xenlb-guest: %s\\n' \"$said\" | head -n 3; }"
    )


def _file(name: str, text: str) -> str:
    if _END in text:
        raise ValueError(f"{name} has the line that ends it")
    end = "" if text.endswith("\n") or not text else "\n"
    return f"cat >\"$here/{name}\" <<'{_END}' || exit 1\n{text}{end}{_END}"
