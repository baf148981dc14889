#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: the client's daemon may die under a running load and a new one takes its
# device over without an I/O error; a device without daemon can be detached;
# SIGTERM waits for what is mounted; attach by ioctl works. Method: kill -9, and the
# tools' own words.
. "$(dirname -- "$0")/lib.sh"

# pid prints the process id of the newest daemon.
pid() { sed -n 's/.*msg=ready .*pid=\([0-9]*\).*/\1/p' cluster/run/sdc.log | tail -n 1; }

scli_shows() { scli events | grep -q -- "$1"; }
writes() { [ "$(awk '{ print $5 }' /sys/block/nbd0/stat)" -gt "$1" ]; }

cluster_up --sds 3 --size 512M
scli volume create vol --size 256M --replicas 2
sdc attach /dev/nbd0 --volume vol --timeout 5s
fio --name=crash --filename=/dev/nbd0 --rw=randrw --bs=4k-16k --ioengine=libaio --iodepth=4 \
	--eta=never --direct=1 --size=64M --time_based --runtime=$(amount 8 15) --verify=crc32c \
	--verify_fatal=1 --output=fio.out &
fio=$!
within writes 100
kill -KILL "$(pid)"
say "the daemon was killed under a running fio"
sdc list
sdc attach /dev/nbd0 --volume vol
say "a new one has taken the device over"
wait $fio || { cat fio.out; fail "fio saw an error"; }
say "fio saw no error"

if soak; then
	dd if=/dev/urandom of=page bs=4096 count=1 status=none
	dd if=page of=/dev/nbd0 bs=4096 seek=1000 conv=notrunc status=none # in the page cache
	kill -KILL "$(pid)"
	within scli_shows "session-expired"
	sdc attach /dev/nbd0 --volume vol
	sync /dev/nbd0
	dd if=/dev/nbd0 bs=4096 skip=1000 count=1 iflag=direct status=none | cmp - page ||
		fail "what the page cache held is not on the volume"
	say "a device was taken over although the session of its daemon had run out"
fi

kill -KILL "$(pid)"
sdc detach /dev/nbd0
say "a device without daemon was detached"

sdc attach /dev/nbd0 --ioctl
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 mnt
fio_verify mnt/file --size=8M
kill -TERM "$(pid)"
head -c 1M /dev/urandom >mnt/after
sync -f mnt
[ "$(sdc list -o json | jq length)" = 1 ] || fail "the daemon ended under a mounted file system"
umount mnt
within test ! -e cluster/run/sdc.sock
say "attached by ioctl; told to end, the daemon waited for umount"

the_end vol
