// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Connected is a kernel device of ours, whichever process serves it.
type Connected struct {
	Index  int
	Path   string
	Volume string
}

// List returns the kernel devices that this software has connected, as the
// kernel sees it.
func List() []Connected { return systemPaths().list() }

func (p paths) list() []Connected {
	var out []Connected
	backends, _ := filepath.Glob(filepath.Join(p.sys, "block/nbd*/backend"))
	for _, at := range backends {
		name := filepath.Base(filepath.Dir(at))
		index, err := strconv.Atoi(strings.TrimPrefix(name, "nbd"))
		if err != nil {
			continue
		}
		backend, is := p.backend(index)
		if volume, ours := cutBackend(backend); is && ours {
			out = append(out, Connected{Index: index, Path: fmt.Sprintf("/dev/%s", name), Volume: volume})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Index < out[j].Index })
	return out
}

// Use says by whom /dev/nbdN is used, or nil.
func Use(index int) error { return systemPaths().use(index) }
