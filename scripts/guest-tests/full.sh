#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: a file system on a cluster that is full stays writable: what needs space waits,
# for longer than the kernel's time-out, and goes on without an error when servers
# join. Method: ext4 on one of two volumes that promise more than there is; a file is
# written until it waits, then the cluster grows.
. "$(dirname -- "$0")/lib.sh"

cluster_up --sds 3 --size 96M
scli volume create filler --size 96M --replicas 2
sdc attach /dev/nbd1 --volume filler
dd if=/dev/zero of=/dev/nbd1 bs=1M count=60 oflag=direct conv=fsync status=none
sdc detach /dev/nbd1
scli volume create full --size 128M --replicas 2
sdc attach /dev/nbd0 --volume full --timeout 10s
grep -s . /sys/block/nbd0/queue/scheduler /sys/block/nbd0/queue/wbt_lat_usec || say "no writeback throttling"
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 mnt
head -c 2000000 /dev/urandom >mnt/old
sync
sum=$(md5sum <mnt/old)

head -c 95000000 /dev/urandom | tee >(md5sum >large.sum) | dd of=mnt/large bs=1M conv=fsync status=none &
writer=$!
waits() { sdc why /dev/nbd0 -o json | grep -q '"reason": *"space"'; }
until waits; do
	kill -0 $writer 2>/dev/null || fail "95 MB found space"
	sleep 0.2
done
say "writes wait for space"
until=$((SECONDS + 25)) # the kernel's time-out strikes twice
while [ $SECONDS -lt $until ]; do
	sleep 1
	echo 1 >/proc/sys/vm/drop_caches
	[ "$(md5sum <mnt/old)" = "$sum" ] || fail "an old file reads otherwise"
	waits || fail "nothing waits for space any more"
	say "reads go on"
done
sdc why /dev/nbd0
scli status
scli status | grep -q "writers wait" || fail "status does not say that writers wait"
fails "writes wait for space on device" sdc detach /dev/nbd0
grep -q " $dir/mnt ext4 rw" /proc/mounts || fail "the file system is not writable: $(grep mnt /proc/mounts)"

"$scripts/cluster" add sds --dir "$dir/cluster"
"$scripts/cluster" add sds --dir "$dir/cluster"
say "two servers have joined"
wait $writer || fail "the writer ended with an error"
say "the writer has ended"
echo 3 >/proc/sys/vm/drop_caches
[ "$(md5sum <mnt/large)" = "$(cat large.sum)" ] || fail "what was written has changed"
[ "$(md5sum <mnt/old)" = "$sum" ] || fail "an old file has changed"
dmesg | grep -i "I/O error" && fail "the kernel has seen errors"
umount mnt
e2fsck -fn /dev/nbd0 >/dev/null
sdc detach /dev/nbd0
the_end full filler
