// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"braid/nbd"
)

// backendPrefix opens the identifier that a device of ours shows in sysfs; the
// volume's name follows.
const backendPrefix = "braid:"

// Defaults and limits.
const (
	DefaultConnections = 4
	MaxConnections     = 16
	DefaultTimeout     = 30 * time.Second
	DefaultDeadTimeout = 10 * time.Minute

	connectLimit    = 10 * time.Second // CONNECT reads nothing from the device
	flushLimit      = 2 * time.Second  // of a detach, before it goes on without
	disconnectGrace = time.Second      // DISCONNECT, before its sockets are closed
	disconnectLimit = 4 * time.Second  // DISCONNECT, in all
)

// Options say how to attach.
type Options struct {
	Device      string // /dev/nbdN
	Volume      string // for the identifier and the link /dev/braid/VOLUME
	Connections int    // sockets, one per hardware queue; 0: 4
	// Timeout is how long the kernel waits for a reply before it drops the socket
	// and sends the request again on another; whole seconds. 0: 30 s.
	Timeout time.Duration
	// DeadTimeout is how long requests wait when there is no socket at all. 0: 10 min.
	DeadTimeout time.Duration
	ReadOnly    bool
	Ioctl       bool // do not use netlink
	// TakeOver goes on with a device that a process which died has left connected:
	// the kernel is given new sockets, and sends what was unanswered again.
	TakeOver bool
	// Report is told what a person should know. It may be called from anywhere.
	Report func(text string)
	// Gone is called once, on a goroutine, when the kernel's device was
	// disconnected by somebody else. Detach is then still due.
	Gone func(reason error)
}

// Device is an attached kernel device. Its methods may be called from anywhere
// but the loop.
type Device struct {
	o     Options
	paths paths
	port  *nbd.Port
	index int
	path  string

	ioctl  *ioctlSession // or nil: netlink
	keeper *keeper
}

// Attach connects a device to a port.
func Attach(ctx context.Context, port *nbd.Port, o Options) (*Device, error) {
	d := &Device{o: o, paths: systemPaths(), port: port}
	if err := d.prepare(); err != nil {
		return nil, err
	}
	if err := d.connect(ctx); err != nil {
		return nil, fmt.Errorf("attach %s: %w", d.path, err)
	}
	// The device works; what is left makes it better and must not undo it.
	steps := []error{d.node(), d.paths.link(o.Volume, d.index)}
	if !o.TakeOver {
		steps = append(steps, d.paths.tune(d.index), rescan(d.path))
	}
	for _, err := range steps {
		if err != nil {
			d.o.Report(fmt.Sprintf("%s is attached, but: %v", d.path, err))
		}
	}
	return d, nil
}

// prepare checks all that can be checked before anything is changed.
func (d *Device) prepare() (err error) {
	if d.index, d.path, err = ParseDevice(d.o.Device); err != nil {
		return err
	}
	if d.o.Connections == 0 {
		d.o.Connections = DefaultConnections
	}
	if d.o.Connections < 1 || d.o.Connections > MaxConnections {
		return fmt.Errorf("attach %s: %d connections: it takes 1 to %d", d.path, d.o.Connections,
			MaxConnections)
	}
	if d.o.Timeout == 0 {
		d.o.Timeout = DefaultTimeout
	}
	if d.o.DeadTimeout == 0 {
		d.o.DeadTimeout = DefaultDeadTimeout
	}
	if d.o.TakeOver {
		return d.prepareTakeOver()
	}
	return d.paths.check(d.index, d.path)
}

// prepareTakeOver makes sure that the device is what was left. Connections must be
// what they were: the kernel takes one new socket for each dead one.
func (d *Device) prepareTakeOver() error {
	backend, is := d.paths.backend(d.index)
	if !is || backend != backendPrefix+d.o.Volume {
		return fmt.Errorf("take over %s: %w: it is not connected as volume %s any more", d.path,
			ErrNotAttached, d.o.Volume)
	}
	if d.o.Ioctl {
		return fmt.Errorf("take over %s: the kernel's old interface takes no new sockets", d.path)
	}
	return nil
}

// Check tells whether a device could be attached just now: root, the driver, and a
// device that is free. It loads the driver if need be. Ask before taking a volume
// from somebody else.
func Check(device string) error {
	index, path, err := ParseDevice(device)
	if err != nil {
		return err
	}
	return systemPaths().check(index, path)
}

func (p paths) check(index int, path string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("attach %s: %w", path, ErrNotRoot)
	}
	if err := p.loadModule(); err != nil {
		return fmt.Errorf("attach %s: %w", path, err)
	}
	if err := p.busy(index); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := p.use(index); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

// connect gives the kernel its sockets. Ours are served from before it knows.
func (d *Device) connect(ctx context.Context) error {
	c := &config{
		index: d.index, timeout: d.o.Timeout, deadTimeout: d.o.DeadTimeout,
		backend: backendPrefix + d.o.Volume,
	}
	d.port.Loop().Call(func() {
		dev := d.port.Device()
		c.size, c.blockSize = dev.Size(), uint64(dev.BlockSize())
		c.flags = uint64(nbd.TransmissionFlags(d.o.ReadOnly || dev.ReadOnly(), false))
	})
	d.keeper = newKeeper(d)
	for range d.o.Connections {
		fd, err := d.keeper.open()
		if err != nil {
			closeAll(c.sockets)
			d.keeper.stop()
			return err
		}
		c.sockets = append(c.sockets, fd)
	}
	err := errNoFamily
	switch {
	case d.o.TakeOver:
		c = &config{index: d.index, sockets: c.sockets, backend: c.backend}
		err = within(connectLimit, func() error { return c.command(nlReconfigure) })
	case !d.o.Ioctl:
		err = within(connectLimit, func() error { return c.command(nlConnect) })
	}
	if errors.Is(err, errNoFamily) {
		d.ioctl, err = connectIoctl(d.path, c)
	}
	// The kernel has its own references. Ours must go, or the end of the kernel's
	// would never show.
	closeAll(c.sockets)
	if err == nil && ctx.Err() != nil {
		err = errors.Join(ctx.Err(), d.disconnect())
	}
	if err != nil {
		d.keeper.stop()
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: somebody else just connected it", ErrBusy)
		}
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			err = ErrNotRoot
		}
		return err
	}
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// node makes /dev/nbdN where nobody else does (a container without devtmpfs).
func (d *Device) node() error {
	if _, err := os.Stat(d.path); err == nil {
		return nil
	}
	number, ok := d.paths.numbers(filepath.Base(d.path))[filepath.Base(d.path)]
	if !ok {
		return fmt.Errorf("%s does not exist and sysfs does not know its number", d.path)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(number, "%d:%d", &major, &minor); err != nil {
		return fmt.Errorf("device number %q: %w", number, err)
	}
	err := unix.Mknod(d.path, unix.S_IFBLK|0o660, int(unix.Mkdev(major, minor)))
	if err != nil {
		return fmt.Errorf("make %s: %w", d.path, err)
	}
	return nil
}

// Path is /dev/nbdN.
func (d *Device) Path() string { return d.path }

// Link is /dev/braid/VOLUME.
func (d *Device) Link() string { return filepath.Join(d.paths.dev, "braid", d.o.Volume) }

// Reconnects is how often the kernel was given a new socket.
func (d *Device) Reconnects() int { return int(d.keeper.reconnects.Load()) }

// KernelSize is the size that the kernel believes in, bytes; 0 if it does not say.
func (d *Device) KernelSize() uint64 {
	b, err := os.ReadFile(filepath.Join(d.paths.sys, "block", filepath.Base(d.path), "size"))
	if err != nil {
		return 0
	}
	sectors, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return sectors * 512
}

// Use says by whom the device is used, or nil.
func (d *Device) Use() error { return d.paths.use(d.index) }

// Resize tells the kernel a new size. It may block while requests are stuck, so
// it must not be called then.
func (d *Device) Resize(size uint64) error {
	var blockSize uint64
	d.port.Loop().Call(func() { blockSize = uint64(d.port.Device().BlockSize()) })
	err := within(connectLimit, func() error {
		if d.ioctl != nil {
			return d.ioctl.resize(size, blockSize)
		}
		c := config{index: d.index, size: size, blockSize: blockSize,
			backend: backendPrefix + d.o.Volume}
		return c.command(nlReconfigure)
	})
	if err != nil {
		return fmt.Errorf("resize %s to %d bytes: %w", d.path, size, err)
	}
	return nil
}

// Detach disconnects the device. It refuses a device that is in use, unless
// forced. It ends within seconds, whatever the cluster does: then unflushed is
// why what was written last may not have reached the volume.
func (d *Device) Detach(force bool) (unflushed, err error) {
	if !force {
		if err := d.paths.use(d.index); err != nil {
			return nil, fmt.Errorf("detach: %w", err)
		}
	}
	if _, is := d.paths.backend(d.index); is || d.ioctl != nil {
		unflushed = flushNode(d.path)
		err = d.disconnect()
	}
	d.paths.unlinkAll(d.index)
	d.keeper.stop()
	if err != nil {
		err = fmt.Errorf("detach %s: %w", d.path, err)
	}
	return unflushed, err
}

// disconnect ends the kernel's side. The driver says goodbye on each socket; where
// a socket is clogged, closing our end lets it go on.
func (d *Device) disconnect() error {
	d.keeper.retire()
	done := make(chan error, 1)
	go func() {
		if d.ioctl != nil {
			done <- d.ioctl.disconnect()
			return
		}
		done <- (&config{index: d.index}).command(nlDisconnect)
	}()
	for _, limit := range []time.Duration{disconnectGrace, disconnectLimit - disconnectGrace} {
		timer := time.NewTimer(limit)
		select {
		case err := <-done:
			timer.Stop()
			return err
		case <-timer.C:
			d.keeper.hangUp()
		}
	}
	return errTimeLimit
}

// flushNode writes back what the page cache holds for the device.
func flushNode(path string) error {
	err := within(flushLimit, func() error {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
			return nil // read-only: nothing to write
		}
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	})
	if err != nil {
		return fmt.Errorf("flush %s: %w", path, err)
	}
	return nil
}

// DetachOrphan disconnects a device of ours whose process is gone.
func DetachOrphan(device string, force bool) (unflushed, err error) {
	p := systemPaths()
	index, path, err := ParseDevice(device)
	if err != nil {
		return nil, err
	}
	backend, is := p.backend(index)
	if !is {
		return nil, fmt.Errorf("detach %s: %w", path, ErrNotAttached)
	}
	if _, ours := cutBackend(backend); !ours {
		return nil, fmt.Errorf("detach %s: another NBD client has connected it (try `nbd-client -d %s`)",
			path, path)
	}
	if !force {
		if err := p.use(index); err != nil {
			return nil, fmt.Errorf("detach: %w", err)
		}
	}
	// Nobody answers requests: what is in the page cache is lost in any case.
	err = within(disconnectLimit, func() error {
		return (&config{index: index}).command(nlDisconnect)
	})
	p.unlinkAll(index)
	if err != nil {
		return nil, fmt.Errorf("detach %s: %w", path, err)
	}
	return errors.New("no process served the device any more"), nil
}

// ErrNotAttached: there is nothing to detach.
var ErrNotAttached = errors.New("nothing is attached to it")
