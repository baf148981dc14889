#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: a file system lives on a volume: attach with several sockets, ext4, fio
# verify, unmount, fsck, detach, and all of it is still there at the next attach.
# Method: the ordinary tools, on the kernel's own device.
. "$(dirname -- "$0")/lib.sh"

cluster_up --sds 3 --size 1G
scli volume create home --size 1G --replicas 2
sdc attach /dev/nbd0 --volume home
size_is /dev/nbd0 $((1 << 30)) || fail "wrong size: $(blockdev --getsize64 /dev/nbd0)"
[ "$(readlink -f /dev/braid/home)" = /dev/nbd0 ] || fail "no /dev/braid/home"
large=$(cat /sys/block/nbd0/queue/max_sectors_kb)
[ "$large" -ge 1024 ] || fail "requests are limited to $large KiB"
say "attached, requests of up to $large KiB"

# The driver makes one queue per socket.
queues=$(find /sys/block/nbd0/mq -mindepth 1 -maxdepth 1 | wc -l)
[ "$BRAID_GUEST" = uml ] || [ "$queues" -ge 2 ] || fail "only $queues queue"
fails "volume home is attached" sdc attach /dev/nbd0 --volume home

mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 mnt
fio_verify mnt/file --size=8M
head -c 20000000 /dev/urandom >mnt/random
sum=$(md5sum <mnt/random)

fails mount sdc detach /dev/nbd0
umount mnt
e2fsck -fn /dev/nbd0 >/dev/null
sdc list
sdc detach /dev/nbd0
[ ! -e /dev/braid/home ] || fail "/dev/braid/home is still there"
say "detached"

sdc attach /dev/nbd0
mount /dev/nbd0 mnt
[ "$(md5sum <mnt/random)" = "$sum" ] || fail "the file has changed"
umount mnt
sdc detach /dev/nbd0
the_end home
