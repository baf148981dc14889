#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: partitions on a volume work, and four volumes are attached and used at the
# same time by one daemon. Method: sfdisk, a file system on a partition, fio on
# four devices at once.
. "$(dirname -- "$0")/lib.sh"

cluster_up --sds 3 --size 1G
for i in 0 1 2 3; do
	scli volume create vol$i --size 256M --replicas 2
	sdc attach /dev/nbd$i --volume vol$i
	[ "$(readlink -f /dev/braid/vol$i)" = /dev/nbd$i ] || fail "no /dev/braid/vol$i"
done
[ "$(sdc list -o json | jq length)" = 4 ] || fail "sdc list does not show four"
fails "vol3" sdc attach /dev/nbd4

for i in 0 1 2 3; do
	fio --name=vol$i --filename=/dev/nbd$i --rw=randrw --bs=4k-32k --ioengine=libaio \
		--iodepth=4 --direct=1 --size=12M --verify=crc32c --verify_fatal=1 --eta=never --output=fio.$i &
	jobs[i]=$!
done
for i in 0 1 2 3; do wait "${jobs[i]}" || { cat fio.$i; fail "fio on /dev/nbd$i"; }; done
say "four volumes at once: verified"

printf 'label: gpt\nsize=100M\nsize=100M\n' | sfdisk -q /dev/nbd2
within test -b /dev/nbd2p2
mkfs.ext4 -q /dev/nbd2p2
mount /dev/nbd2p2 mnt
fio_verify mnt/file --size=16M
fails mount sdc detach /dev/nbd2
umount mnt
e2fsck -fn /dev/nbd2p2 >/dev/null
for i in 0 1 2 3; do sdc detach /dev/nbd$i; done
[ "$(sdc list -o json | jq length)" = 0 ] || fail "sdc list is not empty"
the_end vol0 vol1 vol2 vol3
