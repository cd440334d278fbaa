#!/bin/sh
# vip.sh gatewaying|tunnel VIP INTERFACE: makes this name space a real server for VIP.
# The order matters: a server that has the address before it is told not to answer ARP for it
# takes the service away from the director.
set -e
vip=$2
write() { echo "$2" >"/proc/sys/net/$1"; }
case $vip in
*:*)
    # Never nodad's opposite: duplicate address detection would find the director, or the
    # director us.
    ip addr add "$vip/128" dev lo nodad
    exit ;;
esac
write ipv4/conf/all/arp_ignore 1
write ipv4/conf/all/arp_announce 2
case $1 in
gatewaying)
    ip addr add "$vip/32" dev lo ;;
tunnel)
    # The packets come out of tunl0 with a source that is not routed there: rp_filter must be off,
    # and the effective value is the maximum of "all" and the interface's own.
    for interface in all tunl0 "$3"; do
        write "ipv4/conf/$interface/rp_filter" 0
    done
    ip link set tunl0 up
    ip addr add "$vip/32" dev tunl0 ;;
*)
    echo "vip.sh: what is \"$1\"?" >&2
    exit 2 ;;
esac
