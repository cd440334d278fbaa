#!/bin/sh
# The director's interfaces; the picture is in __init__.py. Runs once, in the lab's root name space.
set -e
modprobe -a ipv6 bridge veth
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
for bridge in br0 front0; do
    ip link add $bridge type bridge forward_delay 0 mcast_snooping 0
    ip link set $bridge up
done
ip addr add 10.0.0.1/24 dev br0
ip addr add 192.0.2.1/24 dev front0
ip addr add fd00:10::1/64 dev br0 nodad
ip addr add fd00:2::1/64 dev front0 nodad
