// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Commands, attributes and flags of the generic netlink family "nbd",
// include/uapi/linux/nbd-netlink.h. Sizes are bytes, timeouts seconds, both u64.
const (
	familyName = "nbd"

	nlConnect     = 1
	nlDisconnect  = 2
	nlReconfigure = 3
	nlStatus      = 5

	attrIndex       = 1
	attrSize        = 2
	attrBlockSize   = 3
	attrTimeout     = 4
	attrServerFlags = 5
	attrSockets     = 7
	attrDeadTimeout = 8
	attrDeviceList  = 9
	attrBackend     = 10

	sockItem = 1
	sockFD   = 1

	deviceItem      = 1
	deviceIndex     = 1
	deviceConnected = 2
)

// errNoFamily: the kernel has no netlink interface for nbd.
var errNoFamily = errors.New("the kernel's nbd driver has no netlink interface")

// config is what CONNECT and RECONFIGURE set. Zero fields are left out.
type config struct {
	index       int
	size        uint64
	blockSize   uint64
	timeout     time.Duration
	deadTimeout time.Duration
	flags       uint64
	sockets     []int
	backend     string
}

// encode returns the attributes of c.
func (c *config) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(c.index))
	if c.size > 0 {
		e.Uint64(attrSize, c.size)
	}
	if c.blockSize > 0 {
		e.Uint64(attrBlockSize, c.blockSize)
	}
	if c.timeout > 0 {
		e.Uint64(attrTimeout, seconds(c.timeout))
	}
	if c.deadTimeout > 0 {
		e.Uint64(attrDeadTimeout, seconds(c.deadTimeout))
	}
	if c.flags > 0 {
		e.Uint64(attrServerFlags, c.flags)
	}
	if c.backend != "" {
		e.String(attrBackend, c.backend)
	}
	if len(c.sockets) > 0 {
		e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
			for _, fd := range c.sockets {
				list.Nested(sockItem, func(item *netlink.AttributeEncoder) error {
					item.Uint32(sockFD, uint32(fd))
					return nil
				})
			}
			return nil
		})
	}
	return e.Encode()
}

// seconds rounds up: the driver knows no shorter time.
func seconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

// execute runs one netlink command on a socket of its own. It may block as long
// as the driver does.
func execute(command uint8, attributes []byte) ([]genetlink.Message, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer conn.Close()
	family, err := conn.GetFamily(familyName)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoFamily
	}
	if err != nil {
		return nil, fmt.Errorf("find the netlink family %q: %w", familyName, err)
	}
	return conn.Execute(genetlink.Message{
		Header: genetlink.Header{Command: command, Version: family.Version},
		Data:   attributes,
	}, family.ID, netlink.Request|netlink.Acknowledge)
}

// command runs connect, disconnect or reconfigure.
func (c *config) command(command uint8) error {
	attributes, err := c.encode()
	if err != nil {
		return fmt.Errorf("encode netlink attributes: %w", err)
	}
	_, err = execute(command, attributes)
	return err
}

// connected asks the driver whether a device is connected.
func connected(index int) (bool, error) {
	attributes, err := (&config{index: index}).encode()
	if err != nil {
		return false, fmt.Errorf("encode netlink attributes: %w", err)
	}
	replies, err := execute(nlStatus, attributes)
	if err != nil {
		return false, err
	}
	for _, m := range replies {
		if found, is, err := decodeStatus(m.Data, index); err != nil || found {
			return is, err
		}
	}
	return false, nil
}

// decodeStatus looks for a device in a STATUS reply.
func decodeStatus(b []byte, index int) (found, is bool, err error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return false, false, fmt.Errorf("decode the driver's status: %w", err)
	}
	for d.Next() {
		if d.Type() != attrDeviceList {
			continue
		}
		d.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				if list.Type() != deviceItem {
					continue
				}
				list.Nested(func(item *netlink.AttributeDecoder) error {
					at, state := -1, uint8(0)
					for item.Next() {
						switch item.Type() {
						case deviceIndex:
							at = int(item.Uint32())
						case deviceConnected:
							state = item.Uint8()
						}
					}
					if at == index {
						found, is = true, state != 0
					}
					return item.Err()
				})
			}
			return list.Err()
		})
	}
	if err := d.Err(); err != nil {
		return false, false, fmt.Errorf("decode the driver's status: %w", err)
	}
	return found, is, nil
}

// within runs a call into the driver, which may block, and waits for at most
// limit. The call goes on after that.
func within(limit time.Duration, call func() error) error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return errTimeLimit
	}
}

var errTimeLimit = errors.New("no answer from the driver in time")

// socketpair returns our end and the kernel's.
func socketpair() (ours, kernels int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("socketpair: %w", err)
	}
	return fds[0], fds[1], nil
}
