#!/bin/sh
# init of a mail guest: Exim, which keeps queue and mailbox in $MAIL when the guest is off. What it
# is to do comes in variables (mailserver.py).
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec >"$GUEST_LOG" 2>&1
here=$(cd -P "$(dirname "$0")" && pwd)
ip link set lo up
trap '' TERM
[ -z "$GUEST_VIP" ] || sh "$here/uml/vip.sh" gatewaying "$GUEST_VIP" eth0 || exit 1
# Guests share the lab's files, and each has its own configuration where Exim looks for it: with
# -C it would give up root, and could not write into a mailbox.
mount --bind "$MAIL/etc" /etc/exim4 || exit 1
exim4 -bdf -q15s &
daemon=$!
trap 'echo "asked to stop"; kill "$daemon"' TERM
wait "$daemon" # the trap ends it
wait "$daemon"
# As init systems do: sessions and deliveries under way have some seconds to end.
left=100
while [ "$left" -gt 0 ] && pidof exim4 >/dev/null; do
    left=$((left - 1))
    sleep 0.1
done
echo "ends; $left"
