#!/bin/bash
# First process of the test guest: mounts what a Debian has, runs the shared script, powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /share
mount -t devpts devpts /dev/pts
for dir in /dev/shm /run /tmp; do mount -t tmpfs tmpfs "$dir"; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
echo mesh-guest > /proc/sys/kernel/hostname
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 share /share
echo "guest: kernel $(uname -r), $(nproc) processors"
bash /share/run.sh
echo $? > /share/status
sync
echo o > /proc/sysrq-trigger
sleep 10
