// SPDX-License-Identifier: Apache-2.0

//go:build cgo || amd64

package nbd

import (
	"net"
	"slices"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/client"
)

// go-nbd's client lists the exports. (Its Connect wants a kernel device; what it
// sends in the handshake is in TestUncountedGo.)
func TestGoNBDClient(t *testing.T) {
	r := newRig(t, rigOptions{})
	conn, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	names, err := client.List(conn)
	if err != nil || !slices.Equal(names, []string{"disk"}) {
		t.Errorf("go-nbd lists %q, %v", names, err)
	}
}
