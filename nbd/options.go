// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"
	"errors"
	"strings"
)

var errOption = errors.New("nbd: malformed option data")

// goOption is the data of NBD_OPT_INFO and NBD_OPT_GO.
//
//	0    4  length of the name
//	4    n  name
//	4+n  2  number of information requests
//	6+n  2… information requests
type goOption struct {
	name     string
	requests []uint16
}

// has reports whether a piece of information was asked for.
func (o *goOption) has(kind uint16) bool {
	for _, r := range o.requests {
		if r == kind {
			return true
		}
	}
	return false
}

// decode parses b. Lengths are checked against what is there before anything is
// allocated in proportion to them.
func (o *goOption) decode(b []byte) error {
	name, rest, err := cutString(b)
	if err != nil || len(rest) < 2 {
		return errOption
	}
	n := int(binary.BigEndian.Uint16(rest))
	rest = rest[2:]
	if len(rest) != 2*n {
		return errOption
	}
	o.name, o.requests = name, make([]uint16, n)
	for i := range o.requests {
		o.requests[i] = binary.BigEndian.Uint16(rest[2*i:])
	}
	return nil
}

// metaOption is the data of NBD_OPT_LIST_META_CONTEXT and SET_META_CONTEXT.
//
//	0    4  length of the export name
//	4    n  export name
//	4+n  4  number of queries
//	8+n  …  queries: 4 bytes of length, text
type metaOption struct {
	name    string
	queries []string
}

func (o *metaOption) decode(b []byte) error {
	name, rest, err := cutString(b)
	if err != nil || len(rest) < 4 {
		return errOption
	}
	n := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if n > maxQueries || uint64(len(rest)) < 4*uint64(n) {
		return errOption
	}
	o.name, o.queries = name, make([]string, 0, n)
	for range n {
		var q string
		if q, rest, err = cutString(rest); err != nil {
			return err
		}
		o.queries = append(o.queries, q)
	}
	if len(rest) != 0 {
		return errOption
	}
	return nil
}

// wantsAllocation reports whether a query selects base:allocation. A listing may
// ask for the whole namespace.
func (o *metaOption) wantsAllocation(listing bool) bool {
	if listing && len(o.queries) == 0 {
		return true
	}
	for _, q := range o.queries {
		if q == contextAllocation || listing && q == "base:" {
			return true
		}
	}
	return false
}

// cutString takes a string that its length precedes off b.
func cutString(b []byte) (string, []byte, error) {
	if len(b) < 4 {
		return "", nil, errOption
	}
	n := binary.BigEndian.Uint32(b)
	if n > maxName || uint64(n) > uint64(len(b)-4) {
		return "", nil, errOption
	}
	s := string(b[4 : 4+n])
	if strings.IndexByte(s, 0) >= 0 {
		return "", nil, errOption
	}
	return s, b[4+n:], nil
}
