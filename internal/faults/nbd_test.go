// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The few numbers of the NBD protocol that a tester needs.
const (
	optExportName = 1
	cmdRead       = 0
	cmdWrite      = 1
	cmdFlush      = 3
	cmdTrim       = 4
	cmdZero       = 6
	flagFUA       = 1 << 16 // beside a command: the answer says that it is durable
	errNoSpace    = 28
	block         = 4096
)

// errBroken is what requests end with that were unanswered when the connection ended.
var errBroken = errors.New("the connection ended")

// nbdError is an error that a server answers.
type nbdError uint32

func (e nbdError) Error() string { return fmt.Sprintf("NBD error %d", uint32(e)) }

// answer is what a request came to.
type answer struct {
	data []byte
	err  error
}

type waiter struct {
	length int // of what a read returns
	reply  chan answer
}

// conn is an NBD connection with any number of requests under way.
type conn struct {
	c      net.Conn
	mu     sync.Mutex // guards the rest, and the order of what is sent
	next   uint64
	wait   map[uint64]waiter
	broken bool
}

// dial connects to the export on a unix socket.
func dial(sock, export string) (*conn, error) {
	c, err := net.Dial("unix", sock)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := handshake(c, export); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	_ = c.SetDeadline(time.Time{})
	n := &conn{c: c, wait: map[uint64]waiter{}}
	go n.receive()
	return n, nil
}

func handshake(c net.Conn, export string) error {
	greeting := make([]byte, 18)
	if _, err := io.ReadFull(c, greeting); err != nil {
		return err
	}
	hello := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	hello = append(hello, "IHAVEOPT"...)
	hello = binary.BigEndian.AppendUint32(hello, optExportName)
	hello = binary.BigEndian.AppendUint32(hello, uint32(len(export)))
	if _, err := c.Write(append(hello, export...)); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 10)) // size and flags
	return err
}

// do sends a request and waits for what comes of it.
func (n *conn) do(cmd uint32, off uint64, length int, payload []byte) answer {
	reply := make(chan answer, 1)
	n.mu.Lock()
	if n.broken {
		n.mu.Unlock()
		return answer{err: errBroken}
	}
	n.next++
	w := waiter{reply: reply}
	if uint16(cmd) == cmdRead {
		w.length = length
	}
	n.wait[n.next] = w
	head := binary.BigEndian.AppendUint32(make([]byte, 0, 28+len(payload)), 0x25609513)
	head = binary.BigEndian.AppendUint32(head, cmd) // flags and type
	head = binary.BigEndian.AppendUint64(head, n.next)
	head = binary.BigEndian.AppendUint64(head, off)
	head = binary.BigEndian.AppendUint32(head, uint32(length))
	_, _ = n.c.Write(append(head, payload...)) // the receiver sees an end
	n.mu.Unlock()
	return <-reply
}

func (n *conn) receive() {
	defer n.end()
	head := make([]byte, 16)
	for {
		if _, err := io.ReadFull(n.c, head); err != nil {
			return
		}
		handle := binary.BigEndian.Uint64(head[8:])
		n.mu.Lock()
		w, ok := n.wait[handle]
		delete(n.wait, handle)
		n.mu.Unlock()
		if !ok || binary.BigEndian.Uint32(head) != 0x67446698 {
			return
		}
		var a answer
		if code := binary.BigEndian.Uint32(head[4:]); code != 0 {
			a.err = nbdError(code)
		} else if w.length > 0 {
			a.data = make([]byte, w.length)
			if _, err := io.ReadFull(n.c, a.data); err != nil {
				w.reply <- answer{err: errBroken}
				return
			}
		}
		w.reply <- a
	}
}

// end answers everything that nobody will answer any more.
func (n *conn) end() {
	_ = n.c.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = true
	for _, w := range n.wait {
		w.reply <- answer{err: errBroken}
	}
	clear(n.wait)
}
