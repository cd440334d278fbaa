#!/bin/sh
# init of a container guest; what it is to do comes in GUEST_* variables (UmlLab.define_lxc_guest).
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec >"$GUEST_LOG" 2>&1
here=$(cd -P "$(dirname "$0")" && pwd)
echo "$GUEST: init runs, $(date +%s.%N)"
# libvirt sets the address itself, but leaves lo down.
ip link set lo up
# A guest that still boots does not react to a shutdown; neither does this one.
trap '' TERM
[ "$GUEST_START_DELAY" = 0 ] || sleep "$GUEST_START_DELAY"
[ -z "$GUEST_VIP" ] || sh "$here/vip.sh" "$GUEST_VIP_ON" "$GUEST_VIP" eth0 || exit 1
set --
for port in $GUEST_PORTS; do
    set -- "$@" --listen "0.0.0.0:$port" --listen "[::]:$port"
done
for port in $GUEST_UDP; do
    set -- "$@" --udp "0.0.0.0:$port"
done
# shellcheck disable=SC2086 # options without spaces
exec /usr/bin/python3 -ISu "$here/../traffic.py" server --name "$GUEST" $GUEST_SERVER "$@"
