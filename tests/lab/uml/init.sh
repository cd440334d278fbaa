#!/bin/sh
# The first process of the User-mode Linux lab. Boots to an execd on the serial line; whoever
# boots it is __init__.py, next to this file. LAB_SERIAL names the line.
#
# The root is the machine's own file system, read-only (hostfs), under an overlay whose upper
# layer is a tmpfs: everything can be written here, and nothing reaches the real disk.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LANG=C.UTF-8 HOME=/root
release=$(uname -r)
modules=/usr/lib/uml/modules/$release
# Where the checkout's files are, in the overlay as on the machine.
here=$(cd -P "${0%/*}" && pwd)

off() {
    echo o >/proc/sysrq-trigger
    sleep 60
}

fail() {
    echo "lab: failed to $1"
    off
}

# mount(8) and not busybox-static's applet: that one fails in User-mode Linux without a word.
mount -t proc proc /proc || echo "lab: failed to mount /proc"
insmod "$modules/kernel/fs/overlayfs/overlay.ko" || fail "load overlay.ko from $modules"
mount -t tmpfs -o mode=755 lab /mnt && mkdir /mnt/upper /mnt/work /mnt/root || fail "mount a tmpfs"
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root ||
    fail "mount the overlay root"
mount -a -T "$here/fstab" --target-prefix /mnt/root || fail "mount what fstab names"
# Debian 13's Linux 6.12 has no controller for memory in cgroup v1 (MEMCG_V1): there all is in v2.
groups=/mnt/root/sys/fs/cgroup
mount -t tmpfs -o mode=755 cgroup $groups && mkdir $groups/memory || fail "mount a tmpfs for cgroups"
if mount -t cgroup -o memory cgroup $groups/memory 2>/dev/null; then
    mount -a -T "$here/fstab-cgroup1" --target-prefix /mnt/root || fail "mount cgroup v1"
else
    umount $groups && mount -t cgroup2 cgroup2 $groups || fail "mount cgroup v2"
    # libvirt suspends a container by the freezer of v1 alone.
    mkdir $groups/freezer && mount -t cgroup -o freezer cgroup $groups/freezer ||
        fail "mount the freezer of cgroup v1"
fi
cd /mnt/root && pivot_root . mnt || fail "enter the overlay root"
cd / && umount -l /mnt
mkdir -p /run/lock /run/lab /run/netns /lib/modules

# Where modprobe, and so the kernel's autoload of IPVS schedulers, looks for modules.
ln -sfn "$modules" "/lib/modules/$release" || fail "link the modules"
# libvirtd's QEMU driver wants the user that libvirt-daemon-system makes; the lab runs without
# that package, whose postinst would touch the machine's own services.
case $(cat /etc/group) in
*libvirt-qemu:*) ;;
*)
    printf 'libvirt:x:64054:\nlibvirt-qemu:x:64055:\n' >>/etc/group
    echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >>/etc/passwd ;;
esac
echo director >/proc/sys/kernel/hostname

# The director's interfaces; the picture is in __init__.py.
modprobe -a ipv6 bridge veth || fail "load network modules"
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
# Fixed addresses: a bridge without one takes the lowest of its ports', and with each new port may
# change it under the neighbours that know it.
ip -batch - <<END || fail "set up the network"
link set lo up
link add br0 address 02:00:00:00:00:01 type bridge forward_delay 0 mcast_snooping 0
link add front0 address 02:00:00:00:00:02 type bridge forward_delay 0 mcast_snooping 0
link set br0 up
link set front0 up
addr add 10.0.0.1/24 dev br0
addr add 192.0.2.1/24 dev front0
addr add fd00:10::1/64 dev br0 nodad
addr add fd00:2::1/64 dev front0 nodad
END

echo "lab: network up after $(cut -d' ' -f1 /proc/uptime) s"
# Not exec: this shell stays the first process and reaps what daemons leave behind.
/usr/bin/python3 -IS "$here/../execd.py" --tty "$LAB_SERIAL" || echo "lab: failed to run execd"
off
