#!/bin/bash
# shutdown.sh FOLDER HOW: boots systemd as process 1 of new namespaces, over a copy-on-write image of
# this machine's file system, with the rendered hold of FOLDER/files in it and a service that must
# outlive it, up to multi-user.target; then asks for HOW. What happened lands in FOLDER/said.
# Run by `unshare` (test_hold_order.py).
set -euo pipefail
folder=$1 how=$2

# shellcheck source=tests/lab/service/root.sh
. "$(dirname "$0")/root.sh"
ip link set lo up

# Nothing that this machine has enabled; what systemd itself brings to multi-user.target stays.
units=$root/etc/systemd/system
rm -rf "$units" "$root/etc/fstab"
mkdir -p "$units"
cp -a "$folder/files/." "$root/"
mkdir -p "$units/xenlb-hold.service.d" "$units/multi-user.target.wants"
cat >"$units/xenlb-hold.service.d/here.conf" <<END
[Service]
StandardOutput=append:/run/said/said
END
# No virtio port, but a device that nobody else has open.
mkdir "$root/dev/virtio-ports"
ln -s ../full "$root/dev/virtio-ports/org.xenlb.0"
cat >"$root/usr/local/bin/mail-stops" <<'END'
#!/bin/bash
holders=(/proc/[0-9]*/fd/7)
open=closed
for each in "${holders[@]}"; do
    if [[ $each -ef /dev/full ]]; then open=open; fi
done
echo "mail stops, the port is $open" >>/run/said/said
END
chmod +x "$root/usr/local/bin/mail-stops"
cat >"$units/mail.service" <<END
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo mail starts >>/run/said/said'
ExecStop=/usr/local/bin/mail-stops
END
cat >"$units/mail.socket" <<END
[Socket]
ListenStream=127.0.0.1:2525
ExecStopPost=/bin/sh -c 'echo socket stops >>/run/said/said'
END
mkdir -p "$units/sockets.target.wants"
cat >"$units/ask.service" <<END
[Unit]
DefaultDependencies=no
After=xenlb-hold.service
[Service]
ExecStart=/bin/systemctl --no-block $how
END
for unit in xenlb-hold.service mail.service ask.service; do
    ln -s "../$unit" "$units/multi-user.target.wants/$unit"
done
ln -s ../mail.socket "$units/sockets.target.wants/mail.socket"
for unit in getty.target systemd-logind.service systemd-networkd.service systemd-udevd.service \
    systemd-resolved.service; do
    ln -sf /dev/null "$units/$unit"
done
exec chroot "$root" env container=nest /lib/systemd/systemd --system --unit=multi-user.target \
    --log-target=console --show-status=no
