#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: a real database runs on a volume and keeps its invariant. It sees no error
# while a data server dies and returns and while the client's daemon dies. When
# every process has died at once, itself included, each transaction is there whose
# commit was acknowledged. Method: pgbench's balances: the sums of branches, tellers,
# accounts and history are equal whatever ran; a session whose acknowledged inserts
# are written down outside the volume; pg_amcheck, e2fsck, the kernel's messages.
. "$(dirname -- "$0")/lib.sh"

for place in /usr/lib/postgresql/*/bin; do PATH=$place:$PATH; done
rounds=$(amount 1 5)
clients=$(amount 2 8)

as() { runuser -u nobody -- env -C / PATH="$PATH" PGHOST=/tmp PGDATABASE=postgres LC_ALL=C "$@"; }
server() { as pg_ctl -D "$dir/mnt/db" -s -w -t "$BRAID_WAIT" -l "$dir/mnt/db/log" -o "-k /tmp -h ''" "$@"; }

# balanced compares pgbench's sums.
balanced() {
	local sums accounts tellers branches history count
	sums=$(as psql -At -c 'select (select sum(abalance) from pgbench_accounts),
		(select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches),
		(select sum(delta) from pgbench_history), (select count(*) from pgbench_history)')
	IFS='|' read -r accounts tellers branches history count <<<"$sums"
	[ "$accounts" = "$tellers" ] && [ "$accounts" = "$branches" ] && [ "$accounts" = "$history" ] ||
		fail "the sums differ: $sums"
	[ "$count" -gt 0 ] || fail "no transaction was made"
	say "$count transactions, all sums are equal"
}

# load starts pgbench, and a session that inserts one number after the other. psql
# prints a number when its commit has been acknowledged.
load() {
	as pgbench -n -c $clients -T 100000 >bench.out 2>&1 &
	bench=$!
	seq $((round * 10000000)) $((round * 10000000 + 9999999)) |
		sed 's/.*/insert into acknowledged values (&) returning n;/' |
		as stdbuf -oL psql -qAt -v ON_ERROR_STOP=1 >>committed 2>psql.err &
	session=$!
}

# goes_on waits until ten more commits were acknowledged.
more() { [ "$(wc -l <committed)" -ge $((before + 10)) ]; }
goes_on() {
	before=$(wc -l <committed)
	within more
	kill -0 $bench 2>/dev/null || { cat bench.out; fail "pgbench has ended"; }
}

# no_error: neither the kernel nor the database has met one.
no_error() {
	! dmesg | grep -iE 'I/O error|EXT4-fs.*(error|warning)' || fail "the kernel saw an error"
	! grep -E 'PANIC|could not (read|write|fsync)' mnt/db/log || fail "the database saw an error"
}

# nothing_lost compares what was acknowledged with what is there.
nothing_lost() {
	as psql -At -c 'select n from acknowledged' | sort >there
	[ -z "$(sort committed | comm -23 - there)" ] || fail "acknowledged transactions are gone"
	as pg_amcheck --heapallindexed --install-missing postgres || fail "pg_amcheck"
	balanced
	say "all $(wc -l <committed) acknowledged inserts are there, pg_amcheck is content"
}

# checked stops the database, and lets e2fsck look at what is on the volume.
checked() {
	server -m fast stop
	umount mnt
	e2fsck -fn /dev/nbd0 >/dev/null 2>e2fsck.out || { cat e2fsck.out; fail "e2fsck"; }
	mount /dev/nbd0 mnt
	server start
}

# daemon prints the process id of the newest client daemon.
daemon() { sed -n 's/.*msg=ready .*pid=\([0-9]*\).*/\1/p' cluster/run/sdc.log | tail -n 1; }

# one_by_one: a server dies and returns, the client's daemon dies, under load.
one_by_one() {
	local who=sds$((round % 3 + 1))
	load
	goes_on
	cluster kill $who
	goes_on
	say "$who was killed, commits go on"
	cluster start $who
	goes_on
	kill -KILL "$(daemon)"
	attach
	goes_on
	say "$who is back, the client's daemon was killed, commits go on"
	no_error
}

healthy() { [ "$(scli status -o json | jq -r .health)" = ok ]; }

# children PID prints the processes that PID has started.
children() {
	local status
	for status in /proc/[0-9]*/status; do
		awk -v of="$1" '/^Pid:/ { pid = $2 } /^PPid:/ && $2 == of { print pid }' "$status" 2>/dev/null || :
	done
}

# all_at_once: nobody is left to write anything. What the kernel had not yet sent to
# the volume goes with the device, as it does when the machine loses its power.
all_at_once() {
	local postmaster who pids
	[ $((round % 2)) = 0 ] || within healthy
	goes_on
	postmaster=$(head -n 1 mnt/db/postmaster.pid)
	mapfile -t pids < <(daemon; cat cluster/sds[123].pid cluster/mdm1.pid; children "$postmaster")
	kill -KILL "${pids[@]}" "$postmaster" || say "one had ended by itself"
	say "all were killed"
	for who in mdm1 sds1 sds2 sds3; do cluster start $who; done
	sdc detach /dev/nbd0 --force
	# Backends that wait for the dead device end only now, and their clients after them.
	wait $bench $session || :
	within umount mnt
	attach --force
	mount /dev/nbd0 mnt
	dmesg -C
	rm -f mnt/db/postmaster.pid
	server start
	nothing_lost
}

cluster_up --sds 3 --size 2G
scli volume create db --size 2G --replicas 2
# What was in flight when the daemon died is sent again after this time.
attach() { sdc attach /dev/nbd0 --volume db --timeout 10s "$@"; }
attach
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 mnt
mkdir mnt/db
chown nobody mnt/db
chmod 755 "$dir"

as initdb -D "$dir/mnt/db" -U nobody -A trust >/dev/null
say "initdb has ended"
server start
as pgbench -q -i -s 1 2>/dev/null
as psql -q -c 'create table acknowledged (n bigint primary key)'
: >committed
say "the tables are there"

for ((round = 1; round <= rounds; round++)); do
	one_by_one
	all_at_once
	checked
	no_error
done
server -m fast stop
umount mnt
sdc detach /dev/nbd0
the_end db
