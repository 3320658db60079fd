#!/bin/busybox sh
# Loads what the root disk needs, then hands over to it.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in $($B cat /modules/order); do $B insmod "/modules/$module"; done
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; $B sleep 0.2; done
$B mount -t ext4 /dev/vda /new || { echo "guest: no root disk"; $B poweroff -f; }
$B umount /sys
$B umount /proc
$B mount --move /dev /new/dev
exec $B switch_root /new /mesh-init
