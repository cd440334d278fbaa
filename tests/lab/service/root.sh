#!/bin/bash
# Sourced with FOLDER in $folder: makes $root, a copy-on-write image of this machine's file system for
# a systemd in namespaces of its own. Nothing outside FOLDER changes; it is /run/said in there.
layers=${folder:?}/layers
mkdir -p "$layers"
mount -t tmpfs tmpfs "$layers"
mkdir "$layers"/{up,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$layers/up,workdir=$layers/work" "$layers/root"
root=$layers/root
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
umount -R "$root/sys/fs/cgroup" 2>/dev/null || true
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/dev"
cp -a /dev/{null,zero,full,random,urandom,tty} "$root/dev"
mkdir "$root"/dev/{pts,shm}
ln -s pts/ptmx "$root/dev/ptmx" # PrivateDevices= makes it anew
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/said"
mount --bind "$folder" "$root/run/said"
