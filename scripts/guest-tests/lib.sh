# SPDX-License-Identifier: Apache-2.0
#
# What the guest tests share. Sourced by them, inside the guest.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
scripts=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
dir=/tmp/braid-test
mkdir -p "$dir/mnt"
cd "$dir"
test_began=$SECONDS
# Limits are there for what hangs; a busy machine with one CPU is no hang.
export BRAID_WAIT=${BRAID_WAIT:-600}

# amount SHORT SOAK: how much of something the short form and the long one take.
amount() { if [ -z "${BRAID_SOAK:-}" ]; then echo "$1"; else echo "$2"; fi; }

# soak: whether this is the long form.
soak() { [ -n "${BRAID_SOAK:-}" ]; }

# say TEXT: one line of the story, with the seconds since the start.
say() { printf '%4d s  %s\n' $((SECONDS - test_began)) "$*"; }

# fail TEXT ends the test.
fail() {
	say "FAILED: $*" >&2
	exit 1
}

# On failure the daemons' last words are shown.
on_exit() {
	local code=$?
	[ $code != 0 ] || exit 0
	say "ended with code $code; the daemons' logs end so:" >&2
	tail -n 15 "$dir"/cluster/*.log "$dir"/cluster/run/*.log "$dir"/*.log >&2 || :
	dmesg | tail -n 40 >&2 || :
	exit $code
}
trap on_exit EXIT
trap 'say "a command failed on line $LINENO: $BASH_COMMAND" >&2' ERR

# cluster_up OPTIONS… starts a cluster and takes over its environment. Stories that
# run in one guest (several.sh) share the first one's.
cluster_up() {
	if [ -z "${BRAID_TEST_SHARED:-}" ] || [ ! -e "$dir/cluster/env" ]; then
		"$scripts/cluster" up --dir "$dir/cluster" "$@"
	fi
	. "$dir/cluster/env"
	say "the cluster is up"
}

# the_end VOLUME… ends a story: its volumes go, and the cluster unless it is shared.
the_end() {
	local volume
	if [ -n "${BRAID_TEST_SHARED:-}" ]; then
		for volume in "$@"; do scli volume delete "$volume"; done
	else
		cluster down
	fi
	say "done"
}

cluster() { "$scripts/cluster" "$@" --dir "$dir/cluster"; }

# fails TEXT COMMAND… : COMMAND must fail, saying TEXT.
fails() {
	local text=$1 said
	shift
	if said=$("$@" 2>&1); then fail "$* succeeded"; fi
	[[ $said == *"$text"* ]] || fail "$* said: $said; expected: $text"
	say "refused as it must be: ${said##*$'\n'}"
}

# within COMMAND… repeats COMMAND until it succeeds, for BRAID_WAIT seconds at most.
within() {
	local until=$((SECONDS + BRAID_WAIT))
	until "$@"; do
		[ $SECONDS -lt $until ] || fail "not within the time: $*"
		sleep 0.2
	done
}

# used prints how many bytes all devices together have in use.
used() { scli device list -o json | jq '[.[].used | tonumber? // 0] | add'; }

# fio_verify FILE MORE… writes at random, reads back, compares.
fio_verify() {
	local file=$1
	shift
	fio --name=verify --filename="$file" --rw=randrw --bs=4k-64k --ioengine=libaio --iodepth=8 \
		--direct=1 --size="$(amount 8M 32M)" --eta=never --verify=crc32c --verify_fatal=1 --fallocate=none \
		--output-format=terse "$@" >"$dir/fio.out" || {
		cat "$dir/fio.out"
		fail "fio on $file"
	}
	say "fio has verified $file"
}

size_is() { [ "$(blockdev --getsize64 "$1")" = "$2" ]; }
