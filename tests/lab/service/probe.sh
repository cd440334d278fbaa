#!/bin/bash
# Runs inside the nested systemd and says, one KEY=VALUE a line, how the service fares.
set -uo pipefail
xenlb=/usr/local/sbin/xenlb

say() {
    printf '%s=%s\n' "$1" "$(tr '\n' '|' <<<"$2" | sed 's/|$//')"
}
show() {
    systemctl show --value -p "$1" xenlb
}
# until COMMAND...: for ten seconds at most
wait_for() {
    local n
    for ((n = 0; n < 100; n++)); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
}
has_address() {
    ip addr show eth9 | grep -q 10.9.9.10/32
}
runs_as_other_than() {
    [[ $(show MainPID) != "$1" && $(show ActiveState) == active ]]
}

systemctl start xenlb
say start "$? $(show ActiveState) $(show Type)"
first=$(show MainPID)
say caps "$(awk '/^Cap(Prm|Bnd)/ { printf "%s ", $2 }' "/proc/$first/status")"
say confined "$(awk '/^(NoNewPrivs|Seccomp):/ { printf "%s ", $2 }' "/proc/$first/status")"
say socket "$(stat -c '%a %U:%G' /run/xenlb/control.sock)"
wait_for has_address
say address "$(has_address && echo there)"
say status "$($xenlb status --json | grep -c '"guest": "test"')"

member=(chroot --userspec="65534:$(getent group libvirt | cut -d: -f3)" /)
say member_reads "$("${member[@]}" $xenlb status --json | grep -c '"pid"')"
"${member[@]}" $xenlb reload 2>/dev/null
say member_reloads "$?"

systemctl reload xenlb
say reload "$? $(wait_for test "$(show ActiveState)" = active; show ActiveState)"

sleep 5
say watched "$(show NRestarts) $([[ $(show MainPID) == "$first" ]] && echo same)"
kill -STOP "$first"
wait_for runs_as_other_than "$first"
say stuck "$(show NRestarts) $(show ActiveState)"

second=$(show MainPID)
kill -KILL "$second"
wait_for runs_as_other_than "$second"
say killed "$(show NRestarts) $(show ActiveState)"

$xenlb run 2>/run/said/refused
say other_agent "$?"

systemctl stop xenlb
say stop "$? $(show Result)"
say kept "$(has_address && echo address) $(test -s /run/xenlb/state.json && echo state)"

echo 'surplus: 1' >>/etc/xenlb/xenlb.yaml
systemctl start xenlb
say last_good "$(show ActiveState) $($xenlb status --json | grep -c '"last_good_since": "2')"
systemctl stop xenlb
rm /var/lib/xenlb/last-good.yaml
systemctl start xenlb 2>/dev/null
sleep 2
say wrong_configuration "$(show ActiveState) $(show ExecMainStatus) $(show NRestarts)"

# The unit's sandbox around one check by a program, of which it must make the program's user.
checkout=$(dirname "$0")/../../..
sed -e "s|^ExecStart=.*|ExecStart=/usr/local/lib/xenlb/bin/python $checkout/tests/lab/service/execs.py|" \
    -e 's/^Type=.*/Type=oneshot/' -e '/^Restart/d' -e '/^WatchdogSec/d' -e '/^RuntimeDirectory/d' \
    /usr/local/lib/systemd/system/xenlb.service >/etc/systemd/system/execs.service
mkdir -p /etc/systemd/system/execs.service.d
# The checkout may lie below /tmp, of which the unit has its own.
printf '%s\n' '[Unit]' DefaultDependencies=no '[Service]' \
    StandardOutput=append:/run/said/said StandardError=append:/run/said/errors \
    "BindReadOnlyPaths=$(realpath "$checkout")" >/etc/systemd/system/execs.service.d/here.conf
systemctl daemon-reload
systemctl start execs
