"""`make lab-shell`: a shell in a lab, with the guests and the agent of the demonstration.

Each line runs by itself in /bin/sh of the lab, in the folder where the last one ended; there is no
terminal there, so nothing that needs one (virsh console, top) works. Everything is forgotten when
the shell ends.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import readline
import shlex
import sys
from pathlib import Path

from tests.lab.demo import Show, uml_stage, xen_stage
from tests.lab.host import LabError, LabHost, cache_directory

FOLDER = "/run/lab/shell-folder"
LONGEST = 600  # seconds that one line may run


def converse(lab: LabHost) -> None:
    folder = "/root"
    while True:
        try:
            line = input(f"{lab.name}:{folder}# ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if line.strip() in {"exit", "logout"}:
            return
        if not line.strip():
            continue
        script = (
            f"cd {shlex.quote(folder)} && {{ {line}\n}}; "
            f"code=$?; pwd >{FOLDER}; exit $code"  # so that `cd` holds for the next line
        )
        try:
            result = lab.run(script, check=False, timeout=LONGEST)
        except LabError as error:
            print(error, file=sys.stderr)
            continue
        sys.stdout.write(result.out)
        sys.stderr.write(result.err)
        if result.rc:
            print(f"[status {result.rc}]", file=sys.stderr)
        with contextlib.suppress(LabError):
            folder = lab.text(FOLDER).strip() or folder


def _keep(history: Path) -> None:
    with contextlib.suppress(OSError):
        readline.write_history_file(history)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make lab-shell", description=__doc__)
    parser.add_argument("--lab", choices=["xen", "uml"], default="xen")
    stage = {"xen": xen_stage, "uml": uml_stage}[parser.parse_args().lab]
    show = Show(steps=2)
    history = cache_directory() / "lab-shell-history"
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    atexit.register(_keep, history)
    show.step("The lab boots, and the agent starts in it")
    try:
        with stage(show) as at:
            at.agent.start(ready=120)
            names = ", ".join(guest.name for guest in at.guests)
            show.step(
                f"A shell in {at.lab.name}. Guests {names} are defined and off; the agent runs as"
                f"\n      {' '.join(at.agent.command)}; exit or Ctrl-D ends the lab."
            )
            converse(at.lab)
    except LabError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
