#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# several.sh STORY…: runs stories one after the other in this guest, on one
# cluster, which spares booting and starting. A story that kills all servers for
# good comes last.
set -u
here=$(dirname -- "$(readlink -f -- "$0")")
export BRAID_TEST_SHARED=1 BRAID_WAIT=${BRAID_WAIT:-600}
"$here/../cluster" up --dir /tmp/braid-test/cluster --sds 3 --size 2G || exit 1
for story in "$@"; do
	from=$SECONDS
	echo "=== $story"
	"$here/$story.sh" || exit 1
	echo "--- $story: $((SECONDS - from)) s"
done
"$here/../cluster" down --dir /tmp/braid-test/cluster
