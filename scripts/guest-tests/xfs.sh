#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: XFS works, fstrim gives space back to the devices, and a volume grows
# while it is mounted. Method: the devices' own figures before and after.
. "$(dirname -- "$0")/lib.sh"

cluster_up --sds 3 --size 1G
scli volume create data --size 512M --replicas 2
sdc attach /dev/nbd0 --volume data
modprobe -q xfs || :
mkfs.xfs -q /dev/nbd0
mount /dev/nbd0 mnt
say "the file system is mounted"
fio_verify mnt/file

# Two copies. What stood in a removed file would be written over, not added: both go later.
size=$(amount 60 150) # MiB
before=$(used)
head -c ${size}M /dev/zero | tr '\0' x >mnt/big
sync -f mnt
# Devices report what is in use with their next lease renewal.
filled() { full=$(used) && [ "$full" -gt $((before + size * 2000000)) ]; }
within filled
rm mnt/big mnt/file
sync -f mnt
# XFS gives the extents of a removed file back in the background: a trim that comes
# too early finds nothing.
freed() { fstrim mnt && [ "$(used)" -lt $((full - size * 1400000)) ]; }
within freed
say "used with the file: $full, after fstrim: $(used)"

scli volume resize data --size 1G
within size_is /dev/nbd0 $((1 << 30))
xfs_growfs mnt >/dev/null
[ "$(df --output=size -B1M mnt | tail -n 1)" -gt 900 ] || fail "the file system did not grow"
fio_verify mnt/file2
umount mnt
xfs_repair -n /dev/nbd0 2>/dev/null >&2
sdc detach /dev/nbd0
the_end data
