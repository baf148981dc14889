# SPDX-License-Identifier: Apache-2.0
#
# Processes by pid, without the danger of hitting a stranger: a pid is stored
# with the start time of its process, and counts only while both agree. Sourced.

# proc_started PID prints its start time in clock ticks since boot. The command
# name in front of it may hold blanks and brackets, hence the cut.
proc_started() {
	local stat
	{ read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
	# shellcheck disable=SC2086
	set -- ${stat##*) }
	[ "$1" != Z ] && echo "${20}"
}

# proc_save FILE PID stores a process of ours: the pid alone in FILE.pid.
proc_save() {
	proc_started "$2" >"$1.started" && echo "$2" >"$1.pid"
}

# proc_alive FILE: does the stored process still run? Prints its pid.
proc_alive() {
	local pid started
	{ read -r pid <"$1.pid" && read -r started <"$1.started"; } 2>/dev/null || return 1
	[ "$(proc_started "$pid")" = "$started" ] && echo "$pid"
}

# proc_wait FILE SECONDS: waits until the stored process has ended.
proc_wait() {
	local tenths=$(($2 * 10))
	while proc_alive "$1" >/dev/null; do
		[ $tenths -gt 0 ] || return 1
		tenths=$((tenths - 1))
		sleep 0.1
	done
}

# proc_end FILE SECONDS: TERM, and KILL when that is not enough. Succeeds when
# nothing runs; tells on standard error when it had to kill.
proc_end() {
	local pid
	pid=$(proc_alive "$1") || return 0
	# A stopped process hears TERM only once it goes on.
	kill -TERM "$pid" 2>/dev/null
	kill -CONT "$pid" 2>/dev/null
	proc_wait "$1" "$2" && return
	echo "${1##*/} (pid $pid) did not end within $2 s of TERM; killing it" >&2
	kill -KILL "$pid" 2>/dev/null
	proc_wait "$1" 10
}

# port_free prints a TCP port on which nothing listens, below the range that the
# kernel gives to clients, and not one of its arguments.
port_free() {
	local port hex
	for _ in {1..200}; do
		port=$((10240 + (RANDOM * 32768 + RANDOM) % 20000))
		printf -v hex ':%04X ' $port
		[[ " $* " != *" $port "* ]] || continue
		grep -qs "$hex" /proc/net/tcp /proc/net/tcp6 || { echo $port; return; }
	done
	return 1
}

# port_open PORT: does something on this machine accept connections there?
port_open() {
	(exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}
