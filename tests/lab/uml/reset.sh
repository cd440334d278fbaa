#!/bin/sh
# Takes back what tests change on the director.
ipvsadm -C
for interface in br0 front0; do
    ip -4 addr flush dev $interface
    ip -6 addr flush dev $interface scope global
done
ip addr flush dev lo scope global
ip addr add 10.0.0.1/24 dev br0
ip addr add 192.0.2.1/24 dev front0
ip addr add fd00:10::1/64 dev br0 nodad
ip addr add fd00:2::1/64 dev front0 nodad
for table in mangle nat filter; do
    for tool in iptables-legacy ip6tables-legacy; do
        $tool -t $table -F
    done
done 2>/dev/null
rm -rf /run/xenlb /var/lib/xenlb/* /etc/xenlb/* /etc/libvirt/hooks/* /run/lab/*
true
