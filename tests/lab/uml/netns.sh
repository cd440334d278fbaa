#!/bin/sh
# netns.sh NAME BRIDGE MAC ADDRESS/LENGTH GATEWAY [ADDRESS/LENGTH GATEWAY]: a name space on a
# bridge.
set -e
name=$1 bridge=$2 mac=$3
shift 3
ip netns add "$name"
# The other end's name would not fit 15 characters for a long NAME: the kernel picks one.
ip link add name "v%d" type veth peer name eth0 address "$mac" netns "$name"
link=$(ip netns exec "$name" cat /sys/class/net/eth0/iflink)
peer=$(ip -o link | sed -n "s/^$link: \([^@:]*\).*/\1/p")
ip link set "$peer" master "$bridge" up
cd /
while [ $# -gt 0 ]; do
    case $1 in *:*) nodad=nodad ;; *) nodad= ;; esac
    # shellcheck disable=SC2086 # empty or one word
    printf '%s\n' "link set lo up" "link set eth0 up" "addr add $1 dev eth0 $nodad" \
        "route add default via $2" | ip -n "$name" -batch -
    shift 2
done
