// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"braid/mdm/client"
	"braid/nbd"
	"braid/nbd/kernel"
	"braid/stripe/core"
	"braid/transport/loop"
)

// Limits of the end of an attachment; with those of the kernel's side they stay
// under ten seconds.
const (
	quickDetach  = 200 * time.Millisecond // volume's flush, when the kernel's already failed
	volumeDetach = 3 * time.Second        // volume's flush
	abandonTime  = 2 * time.Second        // for requests that were given up to come back
	resizePoll   = 200 * time.Millisecond
	stuckAge     = time.Second // an older request counts as stuck
)

// kernelDevice is what the daemon needs of a kernel.Device.
type kernelDevice interface {
	Detach(force bool) (unflushed, err error)
	Resize(size uint64) error
	KernelSize() uint64
	Use() error
	Link() string
	Reconnects() int
}

// kernelSide is the way to the kernel; tests stand in for it.
type kernelSide struct {
	check  func(device string) error
	attach func(context.Context, *nbd.Port, kernel.Options) (kernelDevice, error)
	list   func() []kernel.Connected
}

func realKernel() kernelSide {
	return kernelSide{
		check: kernel.Check,
		attach: func(ctx context.Context, p *nbd.Port, o kernel.Options) (kernelDevice, error) {
			d, err := kernel.Attach(ctx, p, o)
			if err != nil {
				return nil, err
			}
			return d, nil
		},
		list: kernel.List,
	}
}

// attachment is one volume on one kernel device.
type attachment struct {
	log    *slog.Logger
	host   *Host
	kernel kernelSide
	index  int
	path   string
	since  time.Time
	loop   *loop.Loop
	volume Volume
	port   *nbd.Port
	ro     bool
	// resumed is what a daemon that died has left, if this goes on with it.
	resumed *saved
	opened  chan struct{} // closed when open has succeeded
	ended   chan struct{} // closed when it is gone

	// mu guards the fields below. volume and port are set before opened is closed.
	mu     sync.Mutex
	device kernelDevice
	state  State
	reason string
	size   uint64 // the volume's
	told   uint64 // the kernel's
	sizing bool
}

// open attaches the volume and then the device. On failure nothing is left.
func (a *attachment) open(ctx context.Context, opener Opener, r AttachRequest, gone func(error)) error {
	// First what changes nothing: --force fences another client.
	if a.resumed == nil {
		if err := a.kernel.check(r.Device); err != nil {
			return err
		}
	}
	a.loop = a.host.Take()
	var err error
	request := OpenRequest{Volume: r.Volume, Force: r.Force && a.resumed == nil, ReadOnly: r.ReadOnly,
		OnFull: r.OnFull, Loop: a.loop, Pool: a.host.Pool, Resized: a.resized, Lost: a.lost}
	if a.resumed != nil {
		// mdm refuses it when anybody had the volume in the meantime: the guest's page
		// cache would not know what they wrote.
		request.GuestAlive, request.Continues = true, a.resumed.Generation
		request.ID = a.resumed.ID
	}
	a.volume, err = a.openVolume(ctx, opener, request)
	if err != nil {
		a.host.Give(a.loop)
		return err
	}
	a.port = nbd.NewPort(a.loop, a.host.Arena, a.volume)
	a.loop.Call(func() {
		a.mu.Lock()
		a.size = a.volume.Size()
		a.told = a.size
		a.mu.Unlock()
	})
	name := a.volume.Name()
	if a.resumed != nil {
		name = r.Volume // it may have been renamed since; the kernel's device was not
	}
	device, err := a.kernel.attach(ctx, a.port, kernel.Options{
		Device: a.path, Volume: name, Connections: r.Connections, Timeout: r.Timeout,
		DeadTimeout: r.DeadTimeout, ReadOnly: r.ReadOnly, Ioctl: r.Ioctl,
		TakeOver: a.resumed != nil,
		Report:   func(text string) { a.log.Warn(text) },
		Gone:     gone,
	})
	if err != nil {
		_, closeErr := a.closeVolume(volumeDetach)
		return errors.Join(err, closeErr)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.device = device
	if a.resumed != nil {
		a.told = device.KernelSize()
	}
	if a.state == StateAttaching { // and not failed in the meantime
		a.state = StateAttached
	}
	if a.size != a.told {
		a.sizing = true
		go a.resize()
	}
	return nil
}

// openVolume attaches the volume. Where a device waits for it already, it waits for
// the metadata managers for as long as it takes.
func (a *attachment) openVolume(ctx context.Context, opener Opener, r OpenRequest) (Volume, error) {
	for {
		v, err := opener.Open(ctx, r)
		if a.resumed == nil || !errors.Is(err, client.ErrUnreachable) || ctx.Err() != nil {
			return v, err
		}
		a.log.Warn("a device whose daemon had died still waits", "device", a.path, "reason", err)
	}
}

// close detaches the device and the volume. The warning tells what was lost.
func (a *attachment) close(force bool) (warning string, err error) {
	unflushed, err := a.attachedTo().Detach(force)
	if errors.Is(err, kernel.ErrInUse) {
		return "", err
	}
	limit := volumeDetach
	if unflushed != nil {
		limit = quickDetach
	}
	volumeErr, closeErr := a.closeVolume(limit)
	if lost := errors.Join(unflushed, volumeErr); lost != nil {
		warning = "what was written last may be lost: " +
			strings.ReplaceAll(lost.Error(), "\n", "; ")
	}
	return warning, errors.Join(err, closeErr)
}

// closeVolume detaches the volume; unflushed says why its flush failed.
func (a *attachment) closeVolume(limit time.Duration) (unflushed, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	unflushed = a.volume.Detach(ctx)
	drained := make(chan struct{})
	a.loop.Call(func() { a.port.Drain(func() { close(drained) }) })
	timer := time.NewTimer(abandonTime)
	defer timer.Stop()
	select {
	case <-drained:
		a.loop.Call(a.port.Close)
		a.host.Give(a.loop)
	case <-timer.C:
		// Their slots and buffers are lost to this process, but the detach ends.
		err = fmt.Errorf("requests of volume %s do not come back", a.volume.Name())
		a.log.Error("requests were given up and did not come back", "volume", a.volume.Name())
	}
	return unflushed, err
}

func (a *attachment) attachedTo() kernelDevice {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.device
}

func (a *attachment) set(state State, reason string) {
	a.mu.Lock()
	a.state, a.reason = state, reason
	a.mu.Unlock()
}

// lost runs on the loop when the volume can serve no longer.
func (a *attachment) lost(reason error) {
	a.mu.Lock()
	a.state, a.reason = StateFailed, reason.Error()
	a.mu.Unlock()
	a.log.Error("the volume can serve no longer", "device", a.path, "reason", reason)
}

// resized runs on the loop when the volume has a new size. The kernel is told from
// a goroutine, because that can block as long as requests do.
func (a *attachment) resized(size uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.size = size
	if !a.sizing && a.device != nil {
		a.sizing = true
		go a.resize()
	}
}

// resize tells the kernel the newest size, as soon as no request is stuck: the
// driver would wait for it with the netlink interface locked, and then the socket
// that the request needs could not be replaced.
func (a *attachment) resize() {
	tick := time.NewTicker(resizePoll)
	defer tick.Stop()
	for {
		a.mu.Lock()
		size := a.size
		finished := size == a.told || a.state == StateDetaching || a.state == StateFailed
		if finished {
			a.sizing = false
		}
		a.mu.Unlock()
		if finished {
			return
		}
		if _, oldest := a.inFlight(); oldest < stuckAge {
			if err := a.attachedTo().Resize(size); err != nil {
				a.log.Error("the kernel did not take the new size", "device", a.path, "error", err)
			} else {
				a.log.Info("resized", "device", a.path, "size", size)
			}
			a.mu.Lock()
			a.told = size
			a.mu.Unlock()
			continue
		}
		select {
		case <-tick.C:
		case <-a.ended:
			return
		}
	}
}

func (a *attachment) inFlight() (requests int, oldest time.Duration) {
	a.loop.Call(func() { requests, oldest = a.port.InFlight() })
	return requests, oldest
}

// status is what list shows.
func (a *attachment) status() Attachment {
	a.mu.Lock()
	s := Attachment{Device: a.path, State: a.state, Reason: a.reason, Size: a.size, ReadOnly: a.ro,
		Since: a.since}
	device := a.device
	a.mu.Unlock()
	if device == nil {
		return s
	}
	s.Volume = a.volume.Name()
	s.Link = device.Link()
	s.Reconnects = device.Reconnects()
	if use := device.Use(); use != nil {
		s.Use = use.Error()
	}
	a.loop.Call(func() {
		n, oldest := a.port.InFlight()
		c := a.port.Counters()
		s.BlockSize, s.Connections, s.InFlight = a.volume.BlockSize(), a.port.Conns(), n
		s.OldestMS = oldest.Milliseconds()
		s.Reads, s.Writes, s.Flushes = c.Reads, c.Writes, c.Flushes
		s.ReadBytes, s.WriteBytes, s.Errors = c.ReadBytes, c.WriteBytes, c.Errors
	})
	if s.State == StateAttached && time.Duration(s.OldestMS)*time.Millisecond > stuckAge {
		s.State = StateWaiting
	}
	return s
}

// roomless says which writes wait for space, and where; nil: none do.
func (a *attachment) roomless() error {
	var out []string
	for _, w := range a.waits() {
		if w.Reason == string(core.WaitSpace) && w.Device != 0 {
			out = append(out, fmt.Sprintf("%d writes wait for space on device %d (%s) since %s", w.Requests, w.Device,
				w.Server, w.Since.Format(time.TimeOnly)))
		}
	}
	if out == nil {
		return nil
	}
	return errors.New(strings.Join(out, ", "))
}

// waits is what why shows.
func (a *attachment) waits() []Wait {
	select {
	case <-a.opened:
		return waitsOf(a.volume)
	default:
		return []Wait{}
	}
}

// watched is nil while the volume is not attached yet.
func (a *attachment) watched() *watched {
	select {
	case <-a.opened:
		return &watched{where: a.path, volume: a.volume, port: a.port, loop: a.loop}
	default:
		return nil
	}
}
