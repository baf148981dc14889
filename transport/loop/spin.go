// SPDX-License-Identifier: Apache-2.0

package loop

// spinner decides how long to poll before blocking: the whole limit while
// polling finds completions, less with each time it found none, so that an idle
// loop soon stops burning its core.
type spinner struct {
	limit  int64 // ns; 0: never
	losses uint
}

// maxSpinLosses bounds the back-off at 1/64 of the limit, which still notices
// when load returns.
const maxSpinLosses = 6

func (s *spinner) budget() int64 { return s.limit >> s.losses }

func (s *spinner) won() { s.losses = 0 }

func (s *spinner) lost() { s.losses = min(s.losses+1, maxSpinLosses) }
