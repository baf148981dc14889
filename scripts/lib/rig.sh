# SPDX-License-Identifier: Apache-2.0
#
# What perf/catchup, perf/pauses and scripts/profile measure on: two servers on devices in memory, a volume
# with two copies on an NBD socket, fio. Sourced by them.

# rig SIZE [SERVERS] starts it all. It sets dir, port and uri, and ends everything at the exit.
rig() {
	dir=$(mktemp -d) jobs=()
	trap unrig EXIT
	make -s build || exit 1
	scripts/cluster up --dir "$dir" --sds "${2:-2}" --size "$(($1 * 3 / 2))M" --ram >"$dir/up.log" 2>&1 ||
		{ cat "$dir/up.log"; exit 1; }
	. "$dir/env"
	scli volume create v --size "$1M" >/dev/null 2>&1 || exit 1
	port=$((20000 + RANDOM % 10000))
	sdc serve --volume v --socket "$dir/sock" --metrics 127.0.0.1:$port >"$dir/sdc.log" 2>&1 &
	jobs+=($!)
	within 20 test -S "$dir/sock"
	uri="nbd+unix:///v?socket=$dir/sock"
	fio --name=fill --ioengine=nbd --uri="$uri" --size="$1M" --rw=write --bs=1M --iodepth=8 --end_fsync=1 \
		>"$dir/fill.out" 2>&1 || { cat "$dir/fill.out"; exit 1; }
	within 60 healthy
}

unrig() {
	for pid in "${jobs[@]}"; do disown "$pid"; kill -KILL "$pid"; done 2>/dev/null
	scripts/cluster down --dir "$dir" --remove >/dev/null 2>&1
	rm -rf -- "$dir"
}

# within SECONDS COMMAND… repeats COMMAND until it succeeds; if it does not, all ends.
within() {
	local until=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $until ] || { echo "not in time: $*" >&2; scli status >&2; exit 1; }
		sleep 0.1
	done
}

healthy() { [ "$(scli status -o json 2>/dev/null | awk -F'"' '/"health"/ { print $4 }')" = ok ]; }

# load starts 4 KiB writes at queue depth 32, no block twice in one pass; $fio is its
# pid. What follows the size are further options. Each tenth of a second it writes down the longest time that a write took.
load() {
	local size=$1
	shift
	rm -f "$dir"/lat*
	fio --name=load --ioengine=nbd --uri="$uri" --size="${size}M" --randrepeat=0 --rw=randwrite --bs=4k --iodepth=32 \
		--time_based --runtime=600 --write_lat_log="$dir/lat" --log_avg_msec=100 --log_max_value=1 "$@" \
		>"$dir/load.out" 2>&1 &
	fio=$!
	jobs+=($fio)
}

# flush makes all durable that was written.
flush() {
	fio --name=flush --ioengine=nbd --uri="$uri" --size=4k --rw=write --bs=4k --end_fsync=1 >"$dir/flush.out" 2>&1 ||
		{ cat "$dir/flush.out"; exit 1; }
}

# medians prints of lines "NAME NUMBER…" the median, the least and the most of each name.
medians() {
	sort -k1,1 -k2,2n | awk '
		function tell() { if (n) printf "%-8s median %7.3f, from %7.3f to %7.3f, %d runs\n", last,
			n % 2 ? x[(n + 1) / 2] : (x[n / 2] + x[n / 2 + 1]) / 2, x[1], x[n], n }
		$1 != last { tell(); n = 0; last = $1 }
		{ x[++n] = $2 }
		END { tell() }'
}

# unload ends the load; $longest is the longest time that one of its writes took, in seconds.
unload() {
	kill -INT "$fio"
	wait "$fio" 2>/dev/null
	longest=$(awk -F, '$2 + 0 > most { most = $2 + 0 } END { printf "%.3f\n", most / 1e9 }' "$dir"/lat_lat.*.log)
}
