#!/bin/sh
# The first process of the User-mode Linux lab. Boots to an execd on the serial line; whoever
# boots it is __init__.py, next to this file. LAB_SERIAL names the line.
#
# The root is the machine's own file system, read-only (hostfs), under an overlay whose upper
# layer is a tmpfs: everything can be written here, and nothing reaches the real disk.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LANG=C.UTF-8 HOME=/root
here=$(cd -P "$(dirname "$0")" && pwd)
modules=/usr/lib/uml/modules/$(uname -r)

off() {
    sync
    echo o >/proc/sysrq-trigger
    sleep 60
}

fail() {
    echo "lab: failed to $1"
    off
}

mount -t proc proc /proc || echo "lab: failed to mount /proc"
# Ours and not busybox's: busybox-static's mount applet fails in User-mode Linux without a word.
insmod "$modules/kernel/fs/overlayfs/overlay.ko" || fail "load overlay.ko from $modules"
mount -t tmpfs -o mode=755 lab /mnt && mkdir /mnt/upper /mnt/work /mnt/root || fail "mount a tmpfs"
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root ||
    fail "mount the overlay root"
root=/mnt/root
mount -t proc proc $root/proc && mount -t sysfs sysfs $root/sys &&
    mount -t devtmpfs devtmpfs $root/dev || fail "mount proc, sys, dev"
mkdir -p $root/dev/pts $root/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts $root/dev/pts
mount -t tmpfs tmpfs $root/dev/shm
# The machine's own state must not shine through: its guests, its networks, its agent.
for directory in run etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt etc/xenlb \
    var/lib/xenlb; do
    mkdir -p "$root/$directory"
    mount -t tmpfs -o mode=755 tmpfs "$root/$directory" || fail "mount a tmpfs on /$directory"
done
mkdir -p $root/run/lock $root/run/lab $root/run/netns
cd $root && pivot_root . mnt || fail "enter the overlay root"
cd / && umount -l /mnt

# libvirt's LXC driver wants cgroup v1 controllers. Not cpuset: without CPU hotplug files its
# setup fails in User-mode Linux.
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
while read -r controller _ _ enabled; do
    [ "$enabled" = 1 ] && [ "$controller" != cpuset ] || continue
    mkdir "/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
done </proc/cgroups

# Where modprobe, and so the kernel's autoload of IPVS schedulers, looks for modules.
mkdir -p /lib/modules && ln -sfn "$modules" "/lib/modules/$(uname -r)" || fail "link the modules"
# libvirtd's QEMU driver wants the user that libvirt-daemon-system makes; the lab runs without
# that package, whose postinst would touch the machine's own services.
grep -q ^libvirt: /etc/group || echo 'libvirt:x:64054:' >>/etc/group
grep -q ^libvirt-qemu: /etc/group || echo 'libvirt-qemu:x:64055:' >>/etc/group
grep -q ^libvirt-qemu: /etc/passwd ||
    echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >>/etc/passwd
hostname director
ip link set lo up
sh "$here/network.sh" || fail "set up the network"

echo "lab: up $(cut -d' ' -f1 /proc/uptime)"
# Not exec: this shell stays the first process and reaps what daemons leave behind.
/usr/bin/python3 "$here/../execd.py" --tty "$LAB_SERIAL" || echo "lab: failed to run execd"
off
