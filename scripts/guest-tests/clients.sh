#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: other programs that speak NBD to the kernel use `sdc serve`: nbd-client and
# go-nbd's client. Method: a file system that one of them makes is whole for the
# other. BRAID_GONBD is the program internal/guest/gonbd.
. "$(dirname -- "$0")/lib.sh"

cluster_up --sds 3 --size 512M
scli volume create vol --size 256M --replicas 2
sdc serve --volume vol --socket s.sock 2>serve.log &
server=$!
within test -S s.sock

"$BRAID_GONBD" s.sock vol /dev/nbd2 >gonbd.log 2>&1 &
client=$!
# That client says so before it has started the device; the kernel, after.
within test -e /sys/block/nbd2/pid
size_is /dev/nbd2 $((256 << 20)) || fail "wrong size: $(blockdev --getsize64 /dev/nbd2)"
mkfs.ext4 -q /dev/nbd2
mount /dev/nbd2 mnt
fio_verify mnt/file --size=16M
head -c 5000000 /dev/urandom >mnt/random
sum=$(md5sum <mnt/random)
umount mnt
kill -TERM $client
wait $client || { cat gonbd.log; fail "go-nbd's client did not end well"; }
say "go-nbd's client has used sdc serve"

nbd-client -unix s.sock -N vol /dev/nbd1 -timeout 10 >/dev/null
e2fsck -fn /dev/nbd1 >/dev/null
mount /dev/nbd1 mnt
[ "$(md5sum <mnt/random)" = "$sum" ] || fail "the file has changed"
umount mnt
nbd-client -d /dev/nbd1 >/dev/null
kill -TERM $server
wait $server || { cat serve.log; fail "sdc serve did not end well"; }
say "nbd-client has read the same file system from sdc serve"
the_end vol
