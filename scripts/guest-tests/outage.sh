#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: a cluster that stands still for longer than the kernel's time-out is no
# I/O error, and a device whose servers are all dead can still be detached.
# Method: a TIMEOUT of 5 s, all servers stopped for longer (a minute in the soak
# form) under a running fio; then all servers killed, and the clock.
. "$(dirname -- "$0")/lib.sh"

pause=13
[ -z "${BRAID_SOAK:-}" ] || pause=60

cluster_up --sds 3 --size 512M
scli volume create vol --size 256M --replicas 2
sdc attach /dev/nbd0 --volume vol --timeout 5s
# written N: have N more writes reached the device since the last call that succeeded?
before=0
written() {
	local now
	now=$(awk '{ print $5 }' /sys/block/nbd0/stat)
	[ "$now" -ge $((before + $1)) ] && before=$now
}

fio --name=outage --filename=/dev/nbd0 --rw=randrw --bs=4k-16k --ioengine=libaio --iodepth=4 \
	--direct=1 --size=64M --time_based --runtime=$((pause + 12)) --verify=crc32c \
	--verify_fatal=1 --eta=never --output=fio.out &
fio=$!
within 60 written 50
for i in 1 2 3; do cluster kill sds$i --signal STOP; done
say "all servers stand still for $pause s"
sleep $pause
sdc why /dev/nbd0 || :
for i in 1 2 3; do cluster kill sds$i --signal CONT; done
say "they go on"
wait $fio || { cat fio.out; fail "fio saw an error"; }
dmesg | grep -i 'I/O error.*nbd0' && fail "the kernel saw an I/O error"
say "fio saw no error"

# The same with servers that end and are started again.
fio --name=restart --filename=/dev/nbd0 --rw=randrw --bs=4k-16k --ioengine=libaio --iodepth=4 \
	--direct=1 --size=64M --time_based --runtime=$((pause + 12)) --verify=crc32c \
	--verify_fatal=1 --eta=never --output=fio.out &
fio=$!
within 60 written 50
for i in 1 2 3; do cluster kill sds$i --signal TERM; done
say "all servers have ended"
sleep $pause
for i in 1 2 3; do cluster start sds$i; done
wait $fio || { cat fio.out; fail "fio saw an error"; }
dmesg | grep -i 'I/O error.*nbd0' && fail "the kernel saw an I/O error"
say "fio saw no error when they were started again"

for i in 1 2 3; do cluster kill sds$i; done
dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>/dev/null &
sleep 1
from=$SECONDS
timeout 30 sdc detach /dev/nbd0 --force || fail "detach with dead servers"
[ $((SECONDS - from)) -le 10 ] || fail "detach took $((SECONDS - from)) s"
say "detached from dead servers in $((SECONDS - from)) s"
the_end
