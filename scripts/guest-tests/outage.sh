#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: a cluster that stands still for longer than the kernel's time-out is no
# I/O error, and a device whose servers are all dead can still be detached.
# Method: a TIMEOUT of 5 s, all servers stopped for longer (a minute in the soak
# form) under a running fio; then all servers killed, and the clock.
. "$(dirname -- "$0")/lib.sh"

pause=$(amount 8 60)

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
	--direct=1 --size=64M --time_based --runtime=$((2 * pause + 10)) --verify=crc32c \
	--verify_fatal=1 --eta=never --output=fio.out &
fio=$!
# Busy again, or through already, on a slow machine.
busy() { written 50 || ! kill -0 $fio 2>/dev/null; }
within written 50
for i in 1 2 3; do cluster kill sds$i --signal STOP; done
say "all servers stand still for $pause s"
sleep $pause
sdc why /dev/nbd0 || :
for i in 1 2 3; do cluster kill sds$i --signal CONT; done
within busy
say "they go on"

# The same with servers that end and are started again.
for i in 1 2 3; do cluster kill sds$i --signal TERM; done
say "all servers have ended"
sleep $pause
for i in 1 2 3; do
	cluster start sds$i &
	starts[i]=$!
done
for i in 1 2 3; do wait "${starts[i]}" || fail "sds$i did not start"; done
wait $fio || { cat fio.out; fail "fio saw an error"; }
dmesg | grep -i 'I/O error.*nbd0' && fail "the kernel saw an I/O error"
say "they are back, and fio saw no error"

for i in 1 2 3; do cluster kill sds$i; done
dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>/dev/null &
sleep 1
timeout $BRAID_WAIT sdc detach /dev/nbd0 --force || fail "detach with dead servers"
say "detached from dead servers"
the_end
