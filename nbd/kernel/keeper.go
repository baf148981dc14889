// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"braid/nbd"
)

// A socket that ends before it is this old was not taken by the kernel, or is
// being dropped again and again: the next one waits for a while.
const (
	youngSocket = time.Second
	retryPause  = 250 * time.Millisecond
)

// keeper gives the kernel a new socket for each one that it has dropped.
type keeper struct {
	device *Device
	// ended gets a token per socket that has ended. It never blocks the loop: there
	// are at most as many sockets as it has room for.
	ended      chan time.Duration // its age
	quit       chan struct{}
	done       chan struct{}
	retireOnce sync.Once
	retired    atomic.Bool
	reconnects atomic.Int64
	// mu guards open and count. conns are our ends that are not closed yet.
	mu    sync.Mutex
	conns map[*nbd.Conn]struct{}
	idle  *sync.Cond
}

// newKeeper starts to watch.
func newKeeper(d *Device) *keeper {
	k := &keeper{
		device: d,
		ended:  make(chan time.Duration, 4*MaxConnections),
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
		conns:  map[*nbd.Conn]struct{}{},
	}
	k.idle = sync.NewCond(&k.mu)
	go k.run()
	return k
}

// open makes a socketpair, serves our end and returns the kernel's.
func (k *keeper) open() (int, error) {
	ours, kernels, err := socketpair()
	if err != nil {
		return -1, err
	}
	// A large send buffer lets a reply of 1 MiB leave in one piece; both ends of a
	// socketpair send from their own.
	for _, fd := range []int{ours, kernels} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2<<20)
	}
	port := k.device.port
	born := time.Now()
	served := false
	port.Loop().Call(func() {
		served = true
		c := port.Connect(ours, nbd.ConnOptions{
			ReadOnly: k.device.o.ReadOnly,
			Closed:   func(c *nbd.Conn, _ error) { k.closed(c, time.Since(born)) },
		})
		k.mu.Lock()
		k.conns[c] = struct{}{}
		k.mu.Unlock()
	})
	if !served {
		_ = unix.Close(ours)
		_ = unix.Close(kernels)
		return -1, errors.New("the event loop has ended")
	}
	return kernels, nil
}

// closed runs on the loop.
func (k *keeper) closed(c *nbd.Conn, age time.Duration) {
	k.mu.Lock()
	delete(k.conns, c)
	k.idle.Broadcast()
	k.mu.Unlock()
	if !k.retired.Load() {
		select {
		case k.ended <- age:
		default:
		}
	}
}

func (k *keeper) run() {
	defer close(k.done)
	for {
		select {
		case <-k.quit:
			return
		case age := <-k.ended:
			if k.retired.Load() {
				continue
			}
			if age < youngSocket && !k.pause() {
				return
			}
			if err := k.replace(); err != nil {
				k.gone(err)
			}
		}
	}
}

// pause waits before the next attempt; false when the keeper is stopped.
func (k *keeper) pause() bool {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-k.quit:
		return false
	case <-timer.C:
		return true
	}
}

// replace hands the kernel a new socket. An error means that the device is gone.
func (k *keeper) replace() error {
	d := k.device
	if d.ioctl != nil {
		return errors.New("the kernel dropped a socket, and its old interface takes no new one")
	}
	fd, err := k.open()
	if err != nil {
		return err
	}
	c := config{index: d.index, sockets: []int{fd}, backend: backendPrefix + d.o.Volume}
	err = c.command(nlReconfigure)
	_ = unix.Close(fd)
	if err == nil {
		k.reconnects.Add(1)
		return nil
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("the kernel's device was disconnected by somebody else: %w", err)
	}
	// Our end sees the end of stream and the next round tries again.
	d.o.Report(fmt.Sprintf("%s: hand over a new socket: %v", d.path, err))
	return nil
}

// gone reports the end of the device, once.
func (k *keeper) gone(reason error) {
	first := false
	k.retireOnce.Do(func() { first = true; k.retired.Store(true) })
	if first && k.device.o.Gone != nil {
		go k.device.o.Gone(reason)
	}
}

// retire keeps the keeper from replacing sockets: the end of the device begins.
func (k *keeper) retire() { k.retireOnce.Do(func() { k.retired.Store(true) }) }

// hangUp closes our ends of the sockets.
func (k *keeper) hangUp() {
	k.mu.Lock()
	conns := make([]*nbd.Conn, 0, len(k.conns))
	for c := range k.conns {
		conns = append(conns, c)
	}
	k.mu.Unlock()
	k.device.port.Loop().Call(func() {
		for _, c := range conns {
			c.Close()
		}
	})
}

// stop ends the keeper and our ends of the sockets. It waits for both, but not for
// ever for a call into the driver. Requests may be left at the device; that is
// the port's concern.
func (k *keeper) stop() {
	k.retire()
	close(k.quit)
	timer := time.NewTimer(disconnectLimit)
	defer timer.Stop()
	select {
	case <-k.done:
	case <-timer.C:
		k.device.o.Report(k.device.path + ": the driver has not answered; leaving it alone")
	}
	k.hangUp()
	k.mu.Lock()
	for len(k.conns) > 0 {
		k.idle.Wait()
	}
	k.mu.Unlock()
}

// cutBackend splits our identifier.
func cutBackend(backend string) (volume string, ours bool) {
	return strings.CutPrefix(backend, backendPrefix)
}
