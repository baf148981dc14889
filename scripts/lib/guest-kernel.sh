# SPDX-License-Identifier: Apache-2.0
#
# Gets guest kernels: downloads a package through apt, unpacks it to a cache and
# never installs it. Sourced by scripts/guest.

# kernel_cache prints the folder in which unpacked kernels are kept.
kernel_cache() {
	if [ -n "${BRAID_GUEST_CACHE:-}" ]; then
		echo "$BRAID_GUEST_CACHE"
	elif mkdir -p /var/cache/braid-guest 2>/dev/null && [ -w /var/cache/braid-guest ]; then
		echo /var/cache/braid-guest
	else
		echo "${XDG_CACHE_HOME:-$HOME/.cache}/braid-guest"
	fi
}

# kernel_package KIND prints the package to take. Meta packages name the newest
# build, so nothing is pinned here that would vanish from the archive.
kernel_package() {
	local meta
	if [ "$1" = uml ]; then
		apt-cache show user-mode-linux >/dev/null 2>&1 && echo user-mode-linux
		return
	fi
	# The cloud flavour has the virtio drivers and virtiofs built in, so it
	# boots from a shared folder without an initial RAM disk.
	for meta in $(apt-cache pkgnames linux-image- |
		grep -E '^linux-image-[0-9]+\.[0-9]+-cloud-amd64$' | sort -rV) \
		linux-image-cloud-amd64; do
		apt-cache depends "$meta" 2>/dev/null |
			awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }' | grep . && return
	done
}

# kernel_fetch KIND sets KERNEL_IMAGE, KERNEL_TREE (the folder that holds
# lib/modules) and KERNEL_VERSION. The lock makes two first runs wait for each
# other; the stamp is written last, so a broken download is repeated.
kernel_fetch() {
	local cache place package lock
	cache=$(kernel_cache)
	place=$cache/$1
	mkdir -p "$cache" || return 1
	exec {lock}>"$cache/lock.$1" || return 1
	if [ ! -f "$place/version" ]; then
		flock "$lock" || return 1
		[ -f "$place/version" ] || kernel_unpack "$1" "$place" || return 1
	fi
	exec {lock}>&-
	KERNEL_TREE=$place/tree
	KERNEL_VERSION=$(cat "$place/version")
	KERNEL_IMAGE=$KERNEL_TREE/boot/vmlinuz-$KERNEL_VERSION
	[ "$1" = qemu ] || KERNEL_IMAGE=$KERNEL_TREE/usr/bin/linux.uml
	[ -r "$KERNEL_IMAGE" ] && return
	echo "guest: $KERNEL_IMAGE is missing; remove $place and try again" >&2
	return 1
}

kernel_unpack() {
	local kind=$1 place=$2 package version tool
	for tool in apt-get dpkg depmod; do
		command -v $tool >/dev/null && continue
		echo "guest: no $tool here: guest kernels come from a Debian package archive;" \
			"on Debian run scripts/deps guest" >&2
		return 1
	done
	package=$(kernel_package "$kind")
	if [ -z "$package" ]; then
		echo "guest: reading the package lists" >&2
		apt-get -qq update >&2 || return 1
		package=$(kernel_package "$kind")
	fi
	if [ -z "$package" ]; then
		echo "guest: this machine's package archive has no kernel for --kernel $kind;" \
			"try the other one" >&2
		return 1
	fi
	echo "guest: fetching the kernel package $package (once)" >&2
	rm -rf "$place.new"
	mkdir -p "$place.new/tree" || return 1
	(cd "$place.new" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2) || {
		# The lists may be older than the archive.
		apt-get -qq update >&2
		package=$(kernel_package "$kind")
		(cd "$place.new" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2)
	} || { echo "guest: cannot download $package" >&2; return 1; }
	dpkg -x "$place.new"/*.deb "$place.new/tree" || return 1
	rm -f "$place.new"/*.deb
	if [ "$kind" = uml ]; then
		mkdir -p "$place.new/tree/lib"
		ln -sfn ../usr/lib/uml/modules "$place.new/tree/lib/modules"
	fi
	version=$(ls "$place.new/tree/lib/modules" | sort -V | tail -n 1)
	depmod -b "$place.new/tree" "$version" || return 1
	rm -rf "$place"
	mv "$place.new" "$place" && echo "$version" >"$place/version"
}
