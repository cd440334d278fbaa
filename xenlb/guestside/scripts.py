"""Scripts that bring the state of a running guest in line with its settings.

They bring the host's guest.sh along: the guest may have none, or an old one. xenlb-guest is stopped
meanwhile, because it keeps the same record.
"""

from collections.abc import Sequence

_END = "END OF A FILE OF XENLB"

# xenlb-guest leaves everything in place when it stops.
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


def applied_script(guest_script: str, *, last: str, settings: str, after: Sequence[str]) -> str:
    """A script that replaces the last settings by new ones, and then runs commands.

    It exits with 1 if something failed, and prints what.
    """
    return "\n".join(
        (
            _adopting(guest_script, last),
            _file("settings", settings),
            "failed=0",
            'sh "$here/guest.sh" up "$here/settings" || failed=1',
            *(_try(command) for command in after),
            "exit $failed",
        )
    )


def removed_script(guest_script: str, *, last: str) -> str:
    """A script that removes all that belongs to the last settings."""
    return _adopting(guest_script, last) + '\nsh "$here/guest.sh" down'


def _adopting(guest_script: str, last: str) -> str:
    return "\n".join(
        (
            _HEAD,
            _file("guest.sh", guest_script),
            _file("last", last),
            "stop_guest",
            'sh "$here/guest.sh" adopt "$here/last" >/dev/null',
        )
    )


def after_script(commands: Sequence[str]) -> str:
    """A script that runs commands, and exits with 1 if one failed."""
    return "\n".join(("failed=0", *(_try(command) for command in commands), "exit $failed"))


def _try(command: str) -> str:
    """The command; its output is shown only if it fails, since systemctl prints much."""
    return (
        f"output=$({{ {command}; }} 2>&1) || {{ failed=1; "
        "printf 'xenlb-guest: %s\\n' \"$output\" | head -n 3; }"
    )


def _file(name: str, text: str) -> str:
    if _END in text:
        raise ValueError(f"{name} contains the line that ends it")
    end = "" if text.endswith("\n") or not text else "\n"
    return f"cat >\"$here/{name}\" <<'{_END}' || exit 1\n{text}{end}{_END}"
