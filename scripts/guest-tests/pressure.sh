#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: writing back dirty pages through sdc and sds does not deadlock when memory
# is short. Method: a guest with little memory, data servers on raw disks, and
# several times the memory written through the page cache while a process takes
# most of the rest.
. "$(dirname -- "$0")/lib.sh"

times=$(amount 1 20)
megabytes=$(amount 80 100) # in each of three files; as much memory as all is not left
read -r -a disks <<<"$BRAID_DISKS"
(IFS=,; echo "${disks[*]}") >paths
cluster_up --sds ${#disks[@]} --paths "$(cat paths)"
scli volume create vol --size 1G --replicas 2
sdc attach /dev/nbd0 --volume vol
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 mnt
blockdev --setra 8192 /dev/nbd0
echo 60 >/proc/sys/vm/dirty_ratio
echo 40 >/proc/sys/vm/dirty_background_ratio

# A process that holds on to memory: a file system in memory, filled.
mkdir hog
mount -t tmpfs -o size=100% hog hog
free=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
head -c $((free / 3))M /dev/zero | tr '\0' h >hog/file
say "$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo) MiB of memory are left"

# text N prints what is another for each N. (head ends the pipe early.)
text() {
	{ yes "file $1: $(printf "%0900d" "$1")" || :; } 2>/dev/null | head -c ${megabytes}M
}

for ((round = 1; round <= times; round++)); do
	for i in 1 2 3; do
		text $i >mnt/file$i &
		jobs[i]=$!
	done
	for i in 1 2 3; do wait "${jobs[i]}"; done
	sync -f mnt
	say "round $round: $((3 * megabytes)) MB written back"
done
echo 3 >/proc/sys/vm/drop_caches
for i in 1 2 3; do
	text $i | cmp - mnt/file$i
done
dmesg | grep -iE 'out of memory|blocked for more than' && fail "the kernel complains"
umount mnt
e2fsck -fn /dev/nbd0 >/dev/null
sdc detach /dev/nbd0
the_end vol
