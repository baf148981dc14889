#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: what was fsynced survives kill -9 of each server in turn and of mdm, and
# the device works on. Method: files with known checksums, caches dropped, so
# that every byte comes from the servers' disks.
. "$(dirname -- "$0")/lib.sh"

cluster_up --sds 3 --size 1G
scli volume create vol --size 512M --replicas 2
sdc attach /dev/nbd0 --volume vol
# Nothing may be written behind our back: a server that loses what was acknowledged
# and not flushed leaves the in-sync set, and there is no second death for it here.
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/nbd0
mount -o noatime /dev/nbd0 mnt

# changed NAME writes a file, fsyncs it, and remembers its checksum.
changed() {
	dd if=/dev/urandom of="mnt/$1" bs=1M count=12 conv=fsync 2>/dev/null
	(cd mnt && md5sum "$1") >>sums
}

# intact compares everything that was ever written.
intact() {
	sync -f mnt
	echo 3 >/proc/sys/vm/drop_caches
	(cd mnt && md5sum --quiet -c ../sums) || fail "a file has changed after kill of $1"
}

changed before
for who in sds1 sds2 sds3 mdm1; do
	sync -f mnt
	cluster kill $who
	cluster start $who
	intact $who
	changed after-$who
	intact $who
	say "$who was killed and is back; all bytes are there"
done
umount mnt
e2fsck -fn /dev/nbd0 >/dev/null
sdc detach /dev/nbd0
the_end vol
