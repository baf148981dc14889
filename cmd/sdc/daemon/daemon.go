// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"braid/cmd/internal/observe"
	"braid/nbd/kernel"
	"braid/transport/loop"
)

// ErrRunning: another daemon holds the lock.
var ErrRunning = errors.New("another sdc daemon runs already")

// idleTime is how long a daemon that attach started waits for its first or next
// attachment.
const idleTime = 2 * time.Second

// shutdownTime bounds the wait for control calls at the end.
const shutdownTime = 2 * time.Second

// Options describe a daemon.
type Options struct {
	Dir    string // run directory
	Auto   bool   // end after the last detach
	Engine loop.Engine
	Loops  int
	Log    *slog.Logger
	Locked bool // memory is locked
	// Metrics is where Prometheus metrics are served, HOST:PORT; empty: nowhere.
	// Pprof adds Go's profiles.
	Metrics string
	Pprof   bool

	kernel kernelSide // tests only
	opener Opener     // tests only
}

// Daemon serves the attachments of a host.
type Daemon struct {
	o      Options
	host   *Host
	lock   *os.File
	ln     net.Listener
	server *http.Server
	id     [16]byte      // the client id of its sessions
	ended  chan struct{} // closed when the daemon has decided to end
	// orphans are the devices that a dead daemon has left, until Run.
	orphans []*attachment
	work    sync.WaitGroup // resumptions that are under way

	// mu guards the fields below. It is never held across a call that blocks.
	mu       sync.Mutex
	attached map[int]*attachment
	clusters map[string]*Cluster // by the metadata managers' addresses
	// unresumed says why an orphan could not be gone on with.
	unresumed map[int]error
	ending    bool
	idle      *time.Timer
}

// New takes the lock and opens the control socket. Run serves it.
func New(o Options) (*Daemon, error) {
	if o.kernel.attach == nil {
		o.kernel = realKernel()
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the run directory: %w", err)
	}
	lock, err := os.OpenFile(lockPath(o.Dir), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the daemon's lock: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w, with its state in %s", ErrRunning, o.Dir)
		}
		return nil, fmt.Errorf("take the daemon's lock: %w", err)
	}
	id, err := clientID(o.Dir)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	host, err := NewHost(HostOptions{Loops: o.Loops, Engine: o.Engine, Locked: o.Locked})
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	d := &Daemon{o: o, host: host, lock: lock, id: id, ended: make(chan struct{}),
		attached: map[int]*attachment{}, unresumed: map[int]error{}, clusters: map[string]*Cluster{}}
	path := socketPath(o.Dir)
	_ = os.Remove(path) // nobody listens on it: we hold the lock
	if d.ln, err = net.Listen("unix", path); err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the control socket: %w", err), host.Close(), lock.Close())
	}
	d.findOrphans()
	d.server = &http.Server{Handler: d.routes(), ReadHeaderTimeout: 10 * time.Second}
	return d, nil
}

// Run serves until Stop, an idle end, or the end of soft, which detaches what is
// not in use and goes on while something is. The end of hard gives up.
func (d *Daemon) Run(soft, hard context.Context) error {
	served := make(chan error, 1)
	go func() { served <- d.server.Serve(d.ln) }()
	url, stopMetrics, err := observe.Serve(d.o.Metrics, d.o.Pprof, NewCollector(d.volumes))
	if err != nil {
		d.o.Log.Error("there are no metrics", "error", err)
		stopMetrics = func() {}
	}
	defer stopMetrics()
	resuming, cancel := context.WithCancel(soft)
	defer d.work.Wait()
	defer cancel()
	d.resume(resuming)
	d.mu.Lock()
	d.checkIdle()
	d.mu.Unlock()
	d.o.Log.Info("ready", "socket", d.ln.Addr().String(), "engine", d.host.Engine().String(),
		"pid", os.Getpid(), "metrics", url)
	select {
	case <-d.ended:
	case err := <-served:
		return fmt.Errorf("serve the control socket: %w", err)
	case <-soft.Done():
		d.detachAll(hard)
	}
	return d.end()
}

// detachAll detaches what is not in use and waits for the rest.
func (d *Daemon) detachAll(hard context.Context) {
	d.mu.Lock()
	d.ending = true // no new attachments
	d.mu.Unlock()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	told := map[string]string{}
	for {
		list := d.attachments()
		if len(list) == 0 {
			return
		}
		for _, a := range list {
			_, err := d.detach(DetachRequest{Device: a.path})
			if err != nil && told[a.path] != err.Error() {
				told[a.path] = err.Error()
				d.o.Log.Warn("asked to end, but this stays attached", "device", a.path, "reason", err)
			}
		}
		select {
		case <-hard.Done():
			d.o.Log.Warn("asked to end again: leaving devices to the kernel's time limit")
			return
		case <-d.ended:
			return
		case <-tick.C:
		}
	}
}

// end closes everything. Attachments that are left stay with the kernel.
func (d *Daemon) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	err := d.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = d.server.Close()
	}
	_ = os.Remove(socketPath(d.o.Dir))
	d.mu.Lock()
	clusters, left := d.clusters, len(d.attached)
	d.clusters = nil
	d.mu.Unlock()
	if left == 0 {
		for _, c := range clusters {
			err = errors.Join(err, c.Close())
		}
		err = errors.Join(err, d.host.Close())
	}
	d.o.Log.Info("ended", "attachments left", left)
	return errors.Join(err, d.lock.Close())
}

// attachments in the order of their devices.
func (d *Daemon) attachments() []*attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]*attachment, 0, len(d.attached))
	for _, a := range d.attached {
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].index < out[j].index })
	return out
}

// opener returns what opens a request's volume.
func (d *Daemon) opener(r AttachRequest) (Opener, error) {
	if d.o.opener != nil {
		return d.o.opener, nil
	}
	if r.Memory > 0 {
		return Memory{Size: r.Memory, BlockSize: r.BlockSize}, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	key := strings.Join(r.Mdm, ",")
	if c := d.clusters[key]; c != nil {
		return c, nil
	}
	c, err := NewCluster(r.Mdm, d.id)
	if err != nil {
		return nil, err
	}
	d.clusters[key] = c
	return c, nil
}

// attach makes an attachment. One that goes on with a dead daemon's device may be
// under way already; its outcome is what the caller wants.
func (d *Daemon) attach(ctx context.Context, r AttachRequest) (*attachment, error) {
	index, path, err := kernel.ParseDevice(r.Device)
	if err != nil {
		return nil, err
	}
	a, err := d.place(index, path, r, nil)
	if a != nil && err != nil && a.resumed != nil {
		select {
		case <-a.opened:
			if r.Volume == "" || r.Volume == a.volume.Name() || r.Volume == a.resumed.Attach.Volume {
				return a, nil
			}
		case <-a.ended:
			return nil, d.explain(index, err)
		case <-ctx.Done():
		}
	}
	if err != nil {
		return nil, err
	}
	if err := d.open(ctx, a, r); err != nil {
		return nil, d.explain(index, err)
	}
	return a, nil
}

// explain says why a device that a dead daemon has left is busy for good.
func (d *Daemon) explain(index int, err error) error {
	d.mu.Lock()
	reason := d.unresumed[index]
	d.mu.Unlock()
	if reason == nil || !errors.Is(err, kernel.ErrBusy) {
		return err
	}
	return fmt.Errorf("%w; its daemon has died and this one cannot go on with it: %w; umount it, "+
		"then sdc detach /dev/nbd%d", err, reason, index)
}

// place takes the place of an attachment before anything slow begins. When it is
// taken, the error comes with who has it.
func (d *Daemon) place(index int, path string, r AttachRequest, resumed *saved) (*attachment, error) {
	a := &attachment{log: d.o.Log, host: d.host, kernel: d.o.kernel, index: index, path: path, since: time.Now(),
		ro: r.ReadOnly, state: StateAttaching, resumed: resumed,
		opened: make(chan struct{}), ended: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return nil, errEnding
	}
	if other := d.attached[index]; other != nil {
		return other, other.taken()
	}
	d.attached[index] = a
	d.checkIdle()
	return a, nil
}

// open fills the place.
func (d *Daemon) open(ctx context.Context, a *attachment, r AttachRequest) error {
	opener, err := d.opener(r)
	if err == nil {
		err = a.open(ctx, opener, r, func(reason error) { d.gone(a, reason) })
	}
	if err != nil {
		if a.resumed != nil {
			d.mu.Lock()
			d.unresumed[a.index] = err
			d.mu.Unlock()
		}
		d.forget(a)
		d.o.Log.Warn("attach failed", "device", a.path, "volume", r.Volume, "error", err)
		return err
	}
	if r.Device = a.path; a.resumed == nil {
		r.Volume = a.volume.Name()
	}
	s := saved{Attach: r, ID: a.volume.ID(), Client: hex.EncodeToString(d.id[:]), Generation: a.volume.Generation()}
	if err := s.save(d.o.Dir, a.index); err != nil {
		d.o.Log.Warn("a daemon that follows this one could not go on", "device", a.path, "error", err)
	}
	close(a.opened)
	d.o.Log.Info("attached", "device", a.path, "volume", a.volume.Name())
	return nil
}

// taken is the error of an attach to a device that has an attachment.
func (a *attachment) taken() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.device == nil:
		return fmt.Errorf("%s is %w: an attach to it is under way", a.path, kernel.ErrBusy)
	case a.state == StateDetaching:
		return fmt.Errorf("%s is %w: it is being detached", a.path, kernel.ErrBusy)
	}
	return fmt.Errorf("%s is %w: volume %s is attached to it (sdc list shows all)", a.path,
		kernel.ErrBusy, a.volume.Name())
}

// detach ends an attachment.
func (d *Daemon) detach(r DetachRequest) (DetachReply, error) {
	a, err := d.find(r.Device)
	if err != nil {
		return DetachReply{}, err
	}
	a.mu.Lock()
	before, reason := a.state, a.reason
	if a.device == nil || before == StateDetaching {
		a.mu.Unlock()
		return DetachReply{}, fmt.Errorf("detach %s: %w: it is %s just now", a.path, kernel.ErrBusy, before)
	}
	a.state = StateDetaching
	a.mu.Unlock()
	if !r.Force {
		if why := a.roomless(); why != nil {
			a.set(before, reason)
			return DetachReply{}, fmt.Errorf("detach %s: %w; add a device or free space, and they go on; --force "+
				"gives them up: they fail", a.path, why)
		}
	}
	warning, err := a.close(r.Force)
	if errors.Is(err, kernel.ErrInUse) {
		a.set(before, reason)
		return DetachReply{}, err
	}
	forgetSaved(d.o.Dir, a.index)
	d.forget(a)
	d.o.Log.Info("detached", "device", a.path, "volume", a.volume.Name(), "warning", warning, "error", err)
	return DetachReply{Volume: a.volume.Name(), Warning: warning}, err
}

// gone cleans up behind a device that somebody else has disconnected.
func (d *Daemon) gone(a *attachment, reason error) {
	select {
	case <-a.opened:
	case <-a.ended:
		return
	}
	d.o.Log.Warn("the kernel's device is gone", "device", a.path, "reason", reason)
	if _, err := d.detach(DetachRequest{Device: a.path, Force: true}); err != nil {
		d.o.Log.Warn("clean up behind it", "device", a.path, "error", err)
	}
}

func (d *Daemon) find(device string) (*attachment, error) {
	index, path, err := kernel.ParseDevice(device)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	a := d.attached[index]
	d.mu.Unlock()
	if a == nil {
		return nil, fmt.Errorf("%s: %w", path, kernel.ErrNotAttached)
	}
	return a, nil
}

func (d *Daemon) forget(a *attachment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.attached, a.index)
	close(a.ended)
	d.checkIdle()
}

// checkIdle arms or disarms the idle end. mu is held.
func (d *Daemon) checkIdle() {
	if !d.o.Auto || d.ending {
		return
	}
	if d.idle != nil {
		d.idle.Stop()
		d.idle = nil
	}
	if len(d.attached) > 0 {
		return
	}
	d.idle = time.AfterFunc(idleTime, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.attached) == 0 {
			d.finish()
		}
	})
}

// finish makes Run end. mu is held.
func (d *Daemon) finish() {
	d.ending = true
	select {
	case <-d.ended:
	default:
		close(d.ended)
	}
}

// stop ends a daemon without attachments.
func (d *Daemon) stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.attached); n > 0 {
		return fmt.Errorf("%d volume(s) are attached: detach them first (sdc list shows them)", n)
	}
	d.finish()
	return nil
}
