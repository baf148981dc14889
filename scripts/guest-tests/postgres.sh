#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Goal: a real database runs on a volume: initdb, pgbench, a restart, and its
# invariant holds. Method: pgbench's balances: the sums of branches, tellers,
# accounts and history are equal whatever ran.
. "$(dirname -- "$0")/lib.sh"

for place in /usr/lib/postgresql/*/bin; do PATH=$place:$PATH; done
seconds=$(amount 5 120)

cluster_up --sds 3 --size 2G
scli volume create db --size 2G --replicas 2
sdc attach /dev/nbd0 --volume db
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 mnt
mkdir mnt/db
chown nobody mnt/db
chmod 755 "$dir"
as() { runuser -u nobody -- env -C / PATH="$PATH" PGHOST=/tmp PGDATABASE=postgres LC_ALL=C "$@"; }
server() { as pg_ctl -D "$dir/mnt/db" -s -w -t $BRAID_WAIT -l "$dir/mnt/db/log" -o "-k /tmp -h ''" "$@"; }

as initdb -D "$dir/mnt/db" -U nobody -A trust >/dev/null
say "initdb has ended"
server start
as pgbench -q -i -s 1 2>/dev/null
say "pgbench's tables are there"
as pgbench -n -c 4 -T $seconds | grep -E 'processed|tps'
server -m fast stop
umount mnt
e2fsck -fn /dev/nbd0 >/dev/null
mount /dev/nbd0 mnt
server start
sums=$(as psql -At -c 'select (select sum(abalance) from pgbench_accounts),
	(select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches),
	(select sum(delta) from pgbench_history), (select count(*) from pgbench_history)')
IFS='|' read -r accounts tellers branches history count <<<"$sums"
[ "$accounts" = "$tellers" ] && [ "$accounts" = "$branches" ] && [ "$accounts" = "$history" ] ||
	fail "the sums differ: $sums"
[ "$count" -gt 0 ] || fail "no transaction was made"
say "$count transactions, all sums are equal"
server -m fast stop
umount mnt
sdc detach /dev/nbd0
the_end db
