#!/bin/sh
# Prints the network state of this guest; xenlb on the host compares it with the needs of the
# guest's services. Changes nothing. Runs in dash, busybox sh and bash, with the programs that the
# guest has; most of it needs no root.
#
# The output is framed: a line `section NAME LENGTH`, then that many bytes, so no output of a
# program can pass for a section. The host puts two lines in front: `sysctls`, paths below
# /proc/sys, and `interfaces`, whose configuration is printed.

export LC_ALL=C
# The shells that sshd and the guest agent start have no sbin in their PATH.
PATH=${XENLB_GUEST_PATH:-$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin}
export PATH
root=${XENLB_GUEST_ROOT:-}
: "${sysctls:=}" "${interfaces:=}"

has() { command -v "$1" >/dev/null 2>&1; }

# No command may wait for a bus that does not answer. Old busybox has another syntax.
soon=''
! timeout 10 true 2>/dev/null || soon='timeout 10'

# Plain ASCII only, so that all shells count the same length. Standard input may be this script, so
# no program reads it.
section() { # NAME COMMAND...
    name=$1
    shift
    text=$("$@" </dev/null 2>/dev/null | tr -cd '\11\12\40-\176')
    printf 'section %s %d\n%s\n' "$name" $((${#text} + 1)) "$text"
}

about() {
    echo "uid $(id -u)"
    for program in ip ifconfig nft iptables-save ip6tables-save ethtool nmcli ifup; do
        ! has $program || echo "program $program"
    done
    case $(ip -V) in *iproute2*) echo 'program iproute2' ;; esac # busybox's ip shows less
    [ ! -d "$root/run/systemd/system" ] || echo 'init systemd'
    for folder in /run/openrc /run/runit /run/s6; do
        [ ! -d "$root$folder" ] || echo "init ${folder##*/}"
    done
    for folder in "$root"/etc/rc2.d "$root"/etc/rc.d/rc3.d; do
        [ ! -d "$folder" ] || echo 'init rc-links'
    done
}

# ---- the kernel's state ----

addresses() {
    if has ip; then ip -o addr show; else ifconfig -a; fi
}

links() { # busybox has no -d
    has ip && { ip -o -d link show || ip -o link show; }
}

devices() { # from sysfs, for guests without ip
    ! has ip || return
    for device in /sys/class/net/*; do
        flags='' mac=''
        read -r flags <"$device/flags"
        read -r mac <"$device/address"
        [ ! "$flags" ] || echo "${device##*/} $flags $mac"
    done
}

rules4() { has ip && ip -4 rule show; }
rules6() { has ip && ip -6 rule show; }
routes6() { has ip && ip -o -6 route show table all; }

routes4() {
    if has ip; then ip -o -4 route show table all; else route -n; fi
}

tables() { # the names that ip uses
    sed -n '/^[[:blank:]]*[0-9]/p' /usr/share/iproute2/rt_tables \
        "$root"/etc/iproute2/rt_tables "$root"/etc/iproute2/rt_tables.d/*.conf
}

# The kernel combines an interface's own value with that of "all", so all are printed. Not by
# `read`: dash's reads a byte at a time, and the kernel gives only the first byte of a sysctl.
show_sysctls() {
    cd /proc/sys || return
    # shellcheck disable=SC2086 # words
    grep -s '' net/ipv4/conf/*/arp_ignore net/ipv4/conf/*/arp_announce \
        net/ipv4/conf/*/rp_filter net/ipv4/conf/*/src_valid_mark \
        net/ipv6/conf/*/accept_dad $sysctls /dev/null
}

nft_table() { has nft && nft -nn list table inet xenlb; }
save4() { saved iptables; }
save6() { saved ip6tables; }

# The kernel has two kinds of iptables tables, and each program shows one of them. Without -t: with
# it, the legacy program would make a missing table.
saved() {
    for program in "$1-save" "$1-legacy-save" "$1-nft-save"; do
        ! has "$program" || "$program" | sed -n '/^\*mangle/,/^COMMIT/p'
    done
}

ports() { has ip && { ip fou show; ip -6 fou show; }; }

offloads() {
    has ethtool || return
    for interface in $interfaces; do
        ethtool -k "$interface" | sed -n "s/^[[:blank:]]*\(tx-checksum.*\)/$interface \1/p"
    done
}

# ---- the init system and the network configuration ----

units() {
    for unit in xenlb-hold xenlb-guest; do
        if [ -d "$root/run/systemd/system" ]; then
            $soon systemctl show -p LoadState -p ActiveState -p UnitFileState "$unit.service" |
                sed "s/^/$unit /"
        elif [ -x "$root/etc/init.d/$unit" ]; then
            echo "$unit LoadState=loaded"
            "$root/etc/init.d/$unit" status >/dev/null && echo "$unit ActiveState=active"
            for link in "$root"/etc/rc[2-5].d/S??"$unit" "$root"/etc/rc.d/rc[2-5].d/S??"$unit"; do
                [ ! -e "$link" ] || echo "$unit UnitFileState=enabled"
            done
        fi
    done
}

network() {
    if [ -d "$root/run/systemd/system" ]; then
        echo "networkd $($soon systemctl is-active systemd-networkd)"
    fi
    if has nmcli; then
        echo "nm-version $($soon nmcli --version)"
        echo "nm-running $($soon nmcli -t -f RUNNING general)"
    fi
    [ ! -e "$root/etc/network/interfaces" ] || echo 'ifupdown-file'
    [ ! -x "$root/etc/sysconfig/network-scripts/ifup-eth" ] || echo 'network-scripts'
    for interface in lo $interfaces; do
        of_interface
    done
}

of_interface() {
    read -r index <"/sys/class/net/$interface/ifindex" || index=''
    if [ "$index" ]; then
        sed -n -e '/^ADMIN_STATE=/p' -e '/^NETWORK_FILE=/p' "$root/run/systemd/netif/links/$index" |
            sed "s/^/link $interface /"
    fi
    if has nmcli; then
        $soon nmcli -t -f GENERAL.STATE,GENERAL.CONNECTION device show "$interface" |
            sed "s/^/link $interface /"
    fi
    [ ! -e "$root/etc/sysconfig/network-scripts/ifcfg-$interface" ] ||
        echo "link $interface ifcfg"
    ! grep -q '^ADDRESS0=' "$root/etc/sysconfig/network-scripts/route-$interface" ||
        echo "link $interface address-routes"
    # Newer ifupdown has one file per interface, older one for all.
    for state in "$root/run/network/ifstate.$interface" "$root/run/network/ifstate" \
        "$root/etc/network/run/ifstate"; do
        ! grep -q "^$interface=" "$state" || echo "link $interface ifup"
    done
}

interfaces_file() { # ifupdown: the interfaces, and the other files that it reads
    sed -n -e '/^[[:blank:]]*iface[[:blank:]]/p' -e '/^[[:blank:]]*source/p' \
        "$root/etc/network/interfaces" "$root"/etc/network/interfaces.d/*
}

echo 'xenlb-observed 1'
section about about
section addresses addresses
section links links
section devices devices
section rules4 rules4
section rules6 rules6
section routes4 routes4
section routes6 routes6
section tables tables
section sysctls show_sysctls
section nft nft_table
section iptables4 save4
section iptables6 save6
section fou ports
section offloads offloads
section units units
section network network
section interfaces-file interfaces_file
echo 'section end 0'
