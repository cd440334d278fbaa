"""Runs INSIDE a lab: what the kernel's IPVS table says of weights, a JSON line at every change.

`{"t": SECONDS, "table": {VIP: {SERVER: WEIGHT}}}`, of services that have an address. It looks every
PAUSE seconds, by netlink: an `ipvsadm` process costs more than that.
"""

from __future__ import annotations

import json
import time

from xenlb.ipvs.kernel import Kernel
from xenlb.ipvs.table import AddressKey

PAUSE = 0.02


def main() -> None:
    last: dict[str, dict[str, int]] = {}
    with Kernel() as kernel:
        while True:
            entries = kernel.read(counters=False).table.entries
            table = {
                str(key.address): {str(s.address): v.weight for s, v in entry.servers.items()}
                for key, entry in entries.items()
                if isinstance(key, AddressKey)
            }
            if table != last:
                print(json.dumps({"t": time.time(), "table": table}), flush=True)
                last = table
            time.sleep(PAUSE)


if __name__ == "__main__":
    main()
