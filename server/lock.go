// SPDX-License-Identifier: Apache-2.0

package server

import "braid/transport"

// lockAnswered takes a client's answer to OpLock or OpUnlock.
func (d *device) lockAnswered(c *conn, h *transport.Header) {
	c.tc.Close(errProtocol) // none was asked
}
