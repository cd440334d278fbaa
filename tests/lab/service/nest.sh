#!/bin/bash
# nest.sh FOLDER CHECKOUT: boots systemd as process 1 of new namespaces, over a copy-on-write image
# of this machine's file system, with xenlb installed in it. Run by `unshare` (test_service.py).
# Nothing outside FOLDER changes; what probe.sh says lands in FOLDER/said.
set -euo pipefail
folder=$1 checkout=$2

# shellcheck source=tests/lab/service/root.sh
. "$(dirname "$0")/root.sh"

make --no-print-directory -C "$checkout" install DESTDIR="$root"
chroot "$root" groupadd -f libvirt
ip link set lo up
ip link add eth9 type veth peer name peer9
ip link set eth9 up
ip link set peer9 up
ip addr add 10.9.9.1/24 dev eth9

cat >"$root/etc/xenlb/xenlb.yaml" <<END
libvirt: {uris: ["test:///default"]}
director: {interface: eth9}
services:
  mail:
    address: 10.9.9.10
    ports: [25]
    check: none
    servers: [{guest: test, address: 10.9.9.6}]
END

# Only what is to be shown: the unit as it was installed, with a shorter watchdog, and the probe.
units=$root/etc/systemd/system
rm -rf "$units"
mkdir -p "$units/xenlb.service.d"
cat >"$units/xenlb.service.d/here.conf" <<END
[Unit]
DefaultDependencies=no
[Service]
WatchdogSec=2s
StandardError=append:/run/said/log
END
cat >"$units/nest.target" <<END
[Unit]
Requires=probe.service
END
cat >"$units/probe.service" <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=append:/run/said/said
StandardError=append:/run/said/errors
ExecStart=/bin/bash $checkout/tests/lab/service/probe.sh
ExecStopPost=/bin/systemctl exit 0 --force --force
END
exec chroot "$root" env container=nest /lib/systemd/systemd --system --unit=nest.target \
    --log-target=console --show-status=no
