#!/bin/sh
# Prints what this guest's network is like, for xenlb on its host, which holds it against what the
# guest's services need. Changes nothing. Runs in dash, busybox sh and bash, with what programs
# there are; most of it needs no root.
#
# The output is framed: a line `section NAME LENGTH`, then exactly so many bytes. So nothing that a
# program prints can pass for a section. The host puts two lines in front: `sysctls`, paths below
# /proc/sys, and `interfaces`, about whose configuration it asks.

export LC_ALL=C
# Where sbin is missing: the shells that sshd and the guest agent start.
PATH=${XENLB_GUEST_PATH:-$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin}
export PATH
root=${XENLB_GUEST_ROOT:-}
: "${sysctls:=}" "${interfaces:=}"

has() { command -v "$1" >/dev/null 2>&1; }

# Nothing here may wait for a bus that does not answer. Old busybox knows another form.
soon=''
! timeout 10 true 2>/dev/null || soon='timeout 10'

# Nothing but plain ASCII, so every shell counts the same; and no program reads the script itself,
# which may be standard input.
section() { # NAME COMMAND...
    name=$1
    shift
    text=$("$@" </dev/null 2>/dev/null | tr -cd '\11\12\40-\176')
    printf 'section %s %d\n%s\n' "$name" $((${#text} + 1)) "$text"
}

about() {
    echo "uid $(id -u)"
    for each in ip ifconfig nft iptables-save ip6tables-save ethtool nmcli ifup; do
        ! has $each || echo "program $each"
    done
    case $(ip -V) in *iproute2*) echo 'program iproute2' ;; esac # busybox's ip tells less
    [ ! -d "$root/run/systemd/system" ] || echo 'init systemd'
    for each in /run/openrc /run/runit /run/s6; do
        [ ! -d "$root$each" ] || echo "init ${each##*/}"
    done
    for each in "$root"/etc/rc2.d "$root"/etc/rc.d/rc3.d; do
        [ ! -d "$each" ] || echo 'init rc-links'
    done
}

os_release() {
    cat "$root/etc/os-release" || cat "$root/usr/lib/os-release"
}

# ---- the kernel's state ----

addresses() {
    if has ip; then ip -o addr show; else ifconfig -a; fi
}

links() { # busybox has no -d
    has ip && { ip -o -d link show || ip -o link show; }
}

devices() { # for want of `ip`: from sysfs
    ! has ip || return
    for each in /sys/class/net/*; do
        flags='' mac=''
        read -r flags <"$each/flags"
        read -r mac <"$each/address"
        [ ! "$flags" ] || echo "${each##*/} $flags $mac"
    done
}

rules4() { has ip && ip -4 rule show; }
rules6() { has ip && ip -6 rule show; }
routes6() { has ip && ip -o -6 route show table all; }

routes4() {
    if has ip; then ip -o -4 route show table all; else route -n; fi
}

tables() { # by what names `ip` calls them
    sed -n '/^[[:blank:]]*[0-9]/p' /usr/share/iproute2/rt_tables \
        "$root"/etc/iproute2/rt_tables "$root"/etc/iproute2/rt_tables.d/*.conf
}

# Of an interface the kernel takes its own value together with that of "all"; which receives, the
# host finds out. Not by `read`: dash's takes a letter at a time, and the kernel gives a sysctl's
# first one only.
show_sysctls() {
    cd /proc/sys || return
    # shellcheck disable=SC2086 # words
    grep -s '' net/ipv4/conf/*/arp_ignore net/ipv4/conf/*/arp_announce \
        net/ipv4/conf/*/rp_filter net/ipv4/conf/*/src_valid_mark \
        net/ipv6/conf/*/accept_dad $sysctls /dev/null
}

# The guest's nftables table and its iptables chains are those of guest.sh.
nft_table() { has nft && nft -nn list table inet xenlb; }
save4() { saved iptables; }
save6() { saved ip6tables; }

# The rules may be in either of the two kinds of tables; each shows its own only. Without -t: with
# it, the older kind makes a table that is not there yet.
saved() {
    for each in "$1-save" "$1-legacy-save" "$1-nft-save"; do
        ! has "$each" || "$each" | sed -n '/^\*mangle/,/^COMMIT/p'
    done
}

ports() { has ip && { ip fou show; ip -6 fou show; }; }

offloads() {
    has ethtool || return
    for each in $interfaces; do
        ethtool -k "$each" | sed -n "s/^[[:blank:]]*\(tx-checksum.*\)/$each \1/p"
    done
}

# ---- what starts things, what configures the network ----

units() {
    for each in xenlb-hold xenlb-guest; do
        if [ -d "$root/run/systemd/system" ]; then
            $soon systemctl show -p LoadState -p ActiveState -p UnitFileState "$each.service" |
                sed "s/^/$each /"
        elif [ -x "$root/etc/init.d/$each" ]; then
            echo "$each LoadState=loaded"
            "$root/etc/init.d/$each" status >/dev/null && echo "$each ActiveState=active"
            for link in "$root"/etc/rc[2-5].d/S??"$each" "$root"/etc/rc.d/rc[2-5].d/S??"$each"; do
                [ ! -e "$link" ] || echo "$each UnitFileState=enabled"
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
        $soon nmcli -t -f GENERAL.STATE,GENERAL.CONNECTION,GENERAL.CON-UUID device show \
            "$interface" | sed "s/^/link $interface /"
    fi
    [ ! -e "$root/etc/sysconfig/network-scripts/ifcfg-$interface" ] ||
        echo "link $interface ifcfg"
    ! grep -q '^ADDRESS0=' "$root/etc/sysconfig/network-scripts/route-$interface" ||
        echo "link $interface address-routes"
    # Newer ifupdown has a file for each interface, older one for all.
    for state in "$root/run/network/ifstate.$interface" "$root/run/network/ifstate" \
        "$root/etc/network/run/ifstate"; do
        ! grep -q "^$interface=" "$state" || echo "link $interface ifup"
    done
}

interfaces_file() { # ifupdown: which interfaces are in it, and what else it reads
    sed -n -e '/^[[:blank:]]*iface[[:blank:]]/p' -e '/^[[:blank:]]*source/p' \
        "$root/etc/network/interfaces" "$root"/etc/network/interfaces.d/*
}

echo 'xenlb-observed 1'
section about about
section os os_release
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
