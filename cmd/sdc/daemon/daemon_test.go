// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/nbd"
	"braid/nbd/kernel"
	"braid/stripe"
	"braid/stripe/core"
	"braid/transport/bio/memdev"
)

const patience = 20 * time.Second

// fakeKernel stands in for the driver: devices are entries of a map.
type fakeKernel struct {
	mu       sync.Mutex
	devices  map[string]*fakeDevice
	orphans  []kernel.Connected
	checkErr error
}

type fakeDevice struct {
	kernel *fakeKernel
	o      kernel.Options
	path   string
	lost   error // what a flush says
	mu     sync.Mutex
	use    error
	sizes  []uint64
}

func (k *fakeKernel) side() kernelSide {
	return kernelSide{
		check: func(device string) error {
			for _, c := range k.orphans {
				if c.Path == device {
					return fmt.Errorf("%s is %w", device, kernel.ErrBusy)
				}
			}
			return k.checkErr
		},
		attach: func(_ context.Context, _ *nbd.Port, o kernel.Options) (kernelDevice, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			d := &fakeDevice{kernel: k, o: o, path: o.Device}
			k.devices[o.Device] = d
			return d, nil
		},
		list: func() []kernel.Connected { return k.orphans },
	}
}

func (k *fakeKernel) get(path string) *fakeDevice {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.devices[path]
}

func (d *fakeDevice) Detach(force bool) (unflushed, err error) {
	if use := d.Use(); use != nil && !force {
		return nil, use
	}
	d.kernel.mu.Lock()
	delete(d.kernel.devices, d.path)
	d.kernel.mu.Unlock()
	return d.lost, nil
}

func (d *fakeDevice) Resize(size uint64) error {
	d.mu.Lock()
	d.sizes = append(d.sizes, size)
	d.mu.Unlock()
	return nil
}

func (d *fakeDevice) told() []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]uint64(nil), d.sizes...)
}

func (d *fakeDevice) KernelSize() uint64 { return 4 << 20 }
func (d *fakeDevice) Use() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.use
}

func (d *fakeDevice) setUse(use error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.use = use
}

func (d *fakeDevice) Link() string    { return "/dev/braid/" + d.o.Volume }
func (d *fakeDevice) Reconnects() int { return 0 }

// fakeVolume is a memory device with the manners of a volume.
type fakeVolume struct {
	*memdev.Device
	name     string
	id       cluster.VolumeID
	gen      cluster.Generation
	request  OpenRequest
	detached error
	roomless bool // writes wait for space
}

func (v *fakeVolume) Name() string                   { return v.name }
func (v *fakeVolume) ID() cluster.VolumeID           { return v.id }
func (v *fakeVolume) Generation() cluster.Generation { return v.gen }
func (v *fakeVolume) Detach(context.Context) error   { return v.detached }
func (v *fakeVolume) Waiting() []stripe.Wait {
	if v.roomless {
		return []stripe.Wait{{Device: 7, Server: "sds1", Reason: core.WaitSpace, Requests: 3}}
	}
	return []stripe.Wait{{Server: "sds1", Why: "not connected", Requests: 2}}
}

// fakeCluster opens fake volumes.
type fakeCluster struct {
	mu      sync.Mutex
	opened  []*fakeVolume
	gen     cluster.Generation
	err     error
	errOnce error
	renamed string // what the volume is called by now
}

func (c *fakeCluster) Open(_ context.Context, r OpenRequest) (Volume, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.errOnce; err != nil {
		c.errOnce = nil
		return nil, err
	}
	if c.err != nil {
		return nil, c.err
	}
	name := r.Volume
	if name == "" {
		name = "only"
	}
	if c.renamed != "" {
		name = c.renamed
	}
	c.gen++
	v := &fakeVolume{Device: memdev.New(r.Loop, memdev.Options{Size: 4 << 20}), name: name, id: r.ID, gen: c.gen,
		request: r}
	c.opened = append(c.opened, v)
	return v, nil
}

func (c *fakeCluster) Close() error { return nil }

func (c *fakeCluster) last() *fakeVolume {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opened[len(c.opened)-1]
}

// bench is a daemon with stand-ins on both sides.
type bench struct {
	t       *testing.T
	dir     string
	kernel  *fakeKernel
	cluster *fakeCluster
	client  *Client
	soft    context.CancelFunc
	ended   chan error
}

func newBench(t *testing.T) *bench {
	dir, err := os.MkdirTemp("", "sdc") // short: a unix socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &bench{t: t, dir: dir, kernel: &fakeKernel{devices: map[string]*fakeDevice{}},
		cluster: &fakeCluster{}}
	return b
}

func (b *bench) start(auto bool) {
	b.t.Helper()
	d, err := New(Options{Dir: b.dir, Auto: auto, Loops: 1, Log: slog.New(slog.DiscardHandler),
		kernel: b.kernel.side(), opener: b.cluster})
	if err != nil {
		b.t.Fatal(err)
	}
	soft, endSoft := context.WithCancel(context.Background())
	hard, endHard := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	b.soft, b.client, b.ended = endSoft, NewClient(b.dir), ended
	go func() { ended <- d.Run(soft, hard); close(ended) }()
	b.t.Cleanup(func() { endSoft(); endHard(); <-ended })
}

func (b *bench) awaitEnd() {
	b.t.Helper()
	select {
	case err := <-b.ended:
		if err != nil {
			b.t.Errorf("the daemon ended with %v", err)
		}
	case <-time.After(patience):
		b.t.Fatal("the daemon does not end")
	}
}

func (b *bench) attach(device, volume string) Attachment {
	b.t.Helper()
	a, err := b.client.Attach(b.t.Context(), AttachRequest{Device: device, Volume: volume})
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

func (b *bench) until(what string, condition func() bool) {
	b.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !condition(); <-tick.C {
		if time.Now().After(end) {
			b.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func mustSay(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v; it should say %q", err, text)
	}
}

// The life of an attachment: attach, list, why, detach; the daemon ends by itself.
func TestAttachListDetach(t *testing.T) {
	b := newBench(t)
	b.start(true)
	a := b.attach("nbd1", "db")
	if a.Device != "/dev/nbd1" || a.Volume != "db" || a.Size != 4<<20 || a.State != StateAttached ||
		a.Link != "/dev/braid/db" {
		t.Errorf("attached %+v", a)
	}
	b.attach("/dev/nbd0", "web")
	list, err := b.client.List(t.Context())
	if err != nil || len(list) != 2 || list[0].Volume != "web" || list[1].Volume != "db" {
		t.Errorf("list %+v, %v", list, err)
	}
	why, err := b.client.Why(t.Context(), "nbd1")
	if err != nil || len(why.Waits) != 1 || why.Waits[0].Server != "sds1" {
		t.Errorf("why %+v, %v", why, err)
	}
	mustSay(t, b.client.Stop(t.Context()), "2 volume(s) are attached")
	for _, device := range []string{"nbd0", "nbd1"} {
		if d, err := b.client.Detach(t.Context(), DetachRequest{Device: device}); err != nil || d.Warning != "" {
			t.Errorf("detach %s: %+v, %v", device, d, err)
		}
	}
	_, err = b.client.Detach(t.Context(), DetachRequest{Device: "nbd1"})
	mustSay(t, err, "nothing is attached to it")
	_, err = b.client.Why(t.Context(), "nbd1")
	mustSay(t, err, "nothing is attached to it")
	b.awaitEnd()
	if _, err := b.client.List(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// What cannot be attached leaves nothing behind, and takes the volume from nobody
// when it is the kernel's side that fails.
func TestAttachFails(t *testing.T) {
	b := newBench(t)
	b.start(false)
	_, err := b.client.Attach(t.Context(), AttachRequest{Device: "/dev/sda"})
	mustSay(t, err, "not an NBD device")
	b.kernel.checkErr = kernel.ErrNoModule
	_, err = b.client.Attach(t.Context(), AttachRequest{Device: "nbd0", Volume: "db", Force: true})
	mustSay(t, err, "no nbd module")
	if len(b.cluster.opened) != 0 {
		t.Error("the volume was opened before the kernel was asked")
	}
	b.kernel.checkErr = nil
	b.cluster.err = errors.New("attached at host h2")
	_, err = b.client.Attach(t.Context(), AttachRequest{Device: "nbd0", Volume: "db"})
	mustSay(t, err, "attached at host h2")
	b.cluster.err = nil
	b.attach("nbd0", "db")
	_, err = b.client.Attach(t.Context(), AttachRequest{Device: "nbd0", Volume: "other"})
	mustSay(t, err, "/dev/nbd0 is busy: volume db is attached to it")
}

// A mounted device stays, forced or not, and one for whose writes there is no space; an
// unflushed one goes with a warning.
func TestDetachRefusesAndWarns(t *testing.T) {
	b := newBench(t)
	b.start(false)
	b.attach("nbd0", "db")
	dev := b.kernel.get("/dev/nbd0")
	dev.setUse(fmt.Errorf("/dev/nbd0 is %w: mounted at /mnt", kernel.ErrInUse))
	_, err := b.client.Detach(t.Context(), DetachRequest{Device: "nbd0"})
	mustSay(t, err, "mounted at /mnt")
	if list, _ := b.client.List(t.Context()); len(list) != 1 || list[0].State != StateAttached {
		t.Errorf("after a refused detach: %+v", list)
	}
	dev.setUse(nil)
	b.cluster.last().roomless = true
	_, err = b.client.Detach(t.Context(), DetachRequest{Device: "nbd0"})
	mustSay(t, err, "3 writes wait for space on device 7 (sds1)")
	if list, _ := b.client.List(t.Context()); len(list) != 1 || list[0].State != StateAttached {
		t.Errorf("after a refused detach: %+v", list)
	}
	b.cluster.last().roomless = false
	dev.lost = errors.New("no answer")
	b.cluster.last().detached = errors.New("3 requests were abandoned")
	d, err := b.client.Detach(t.Context(), DetachRequest{Device: "nbd0"})
	if err != nil || !strings.Contains(d.Warning, "no answer") || !strings.Contains(d.Warning, "3 requests") {
		t.Errorf("detach: %+v, %v", d, err)
	}
}

// A device that somebody else has disconnected is cleaned up.
func TestKernelDeviceGone(t *testing.T) {
	b := newBench(t)
	b.start(false)
	b.attach("nbd0", "db")
	b.kernel.get("/dev/nbd0").o.Gone(errors.New("nbd-client -d"))
	b.until("the attachment is gone", func() bool {
		list, err := b.client.List(t.Context())
		return err == nil && len(list) == 0
	})
	b.attach("nbd0", "db")
}

// A volume that is lost shows as failed, with the reason, and can be detached.
func TestVolumeLost(t *testing.T) {
	b := newBench(t)
	b.start(false)
	b.attach("nbd0", "db")
	r := b.cluster.last().request
	r.Loop.Call(func() { r.Lost(errors.New("fenced by host h2")) })
	list, err := b.client.List(t.Context())
	if err != nil || list[0].State != StateFailed || list[0].Reason != "fenced by host h2" {
		t.Errorf("list %+v, %v", list, err)
	}
	if _, err := b.client.Detach(t.Context(), DetachRequest{Device: "nbd0"}); err != nil {
		t.Error(err)
	}
}

// An export whose volume is lost says so to who asks, with the reason.
func TestExportLost(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "nbd"))
	if err != nil {
		t.Fatal(err)
	}
	opener, said := &fakeCluster{}, make(chan string, 4)
	e, err := OpenExport(t.Context(), ExportOptions{Opener: opener, Volume: "db", Listener: listener,
		Where: "here", Report: func(text string) { said <- text }})
	if err != nil {
		t.Fatal(err)
	}
	if why := e.watched.why().Attachment; why.State != StateAttached || why.Reason != "" {
		t.Errorf("at first %+v", why)
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx, context.Background()) }()
	r := opener.last().request
	r.Loop.Call(func() { r.Lost(errors.New("acknowledged writes were lost")) })
	if text := <-said; !strings.Contains(text, "can serve no longer: acknowledged writes were lost") {
		t.Errorf("it reports %q", text)
	}
	if why := e.watched.why().Attachment; why.State != StateFailed || why.Reason != "acknowledged writes were lost" {
		t.Errorf("after the loss %+v", why)
	}
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The kernel learns the newest size.
func TestResize(t *testing.T) {
	b := newBench(t)
	b.start(false)
	b.attach("nbd0", "db")
	v, dev := b.cluster.last(), b.kernel.get("/dev/nbd0")
	v.request.Loop.Call(func() { v.Resize(8 << 20); v.request.Resized(8 << 20) })
	b.until("the kernel knows", func() bool { s := dev.told(); return len(s) == 1 && s[0] == 8<<20 })
	list, _ := b.client.List(t.Context())
	if list[0].Size != 8<<20 {
		t.Errorf("list says %d", list[0].Size)
	}
}

// SIGTERM detaches what is free; what is in use keeps the daemon until it is free.
func TestTermWaitsForMounted(t *testing.T) {
	b := newBench(t)
	b.start(false)
	b.attach("nbd0", "db")
	b.attach("nbd1", "web")
	dev := b.kernel.get("/dev/nbd0")
	dev.setUse(fmt.Errorf("/dev/nbd0 is %w: mounted", kernel.ErrInUse))
	b.soft()
	b.until("the free one is detached", func() bool { return b.kernel.get("/dev/nbd1") == nil })
	if _, err := b.client.Attach(t.Context(), AttachRequest{Device: "nbd2"}); !errors.Is(err, errEnding) {
		t.Errorf("attach while ending: %v", err)
	}
	if _, err := b.client.Detach(t.Context(), DetachRequest{Device: "nbd0", Force: true}); err != nil {
		t.Error(err)
	}
	b.awaitEnd()
}

// There is one daemon per run directory.
func TestSecondDaemon(t *testing.T) {
	b := newBench(t)
	b.start(false)
	if _, err := New(Options{Dir: b.dir, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, ErrRunning) {
		t.Errorf("second daemon: %v", err)
	}
	if err := b.client.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	b.awaitEnd()
	if _, err := os.Stat(savedPath(b.dir, 0)); !os.IsNotExist(err) {
		t.Error("state is left behind")
	}
}

// After a crash the next daemon goes on with the kernel's device, once the
// metadata managers answer, in the same session; unless somebody else had the
// volume since. The volume may have been renamed: it is known by number, and the
// kernel's device by the old name.
func TestResume(t *testing.T) {
	for name, c := range map[string]struct {
		err     error // mdm's answer
		resumes bool
		renamed string
	}{"same": {nil, true, ""}, "renamed": {nil, true, "store"},
		"attached elsewhere since": {errors.New("attached elsewhere since"), false, ""}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			s := saved{Attach: AttachRequest{Device: "/dev/nbd3", Volume: "db", Force: true, Connections: 2},
				ID: 8, Generation: 5}
			if err := s.save(b.dir, 3); err != nil {
				t.Fatal(err)
			}
			b.kernel.orphans = []kernel.Connected{{Index: 3, Path: "/dev/nbd3", Volume: "db"},
				{Index: 4, Path: "/dev/nbd4", Volume: "unknown"}}
			b.cluster.gen = 30 // the end of a session has one of its own
			b.cluster.renamed = c.renamed
			b.cluster.err = c.err
			b.cluster.errOnce = client.ErrUnreachable
			b.start(true)
			a, err := b.client.Attach(t.Context(), AttachRequest{Device: "/dev/nbd3", Volume: "db"})
			if !c.resumes {
				mustSay(t, err, "attached elsewhere since")
				b.awaitEnd()
				return
			}
			if r := b.cluster.last().request; !r.GuestAlive || r.Force || r.Continues != 5 || r.ID != 8 {
				t.Errorf("opened with %+v", r)
			}
			if err != nil || a.Volume != b.cluster.last().name {
				t.Fatalf("%+v, %v", a, err)
			}
			if o := b.kernel.get("/dev/nbd3").o; !o.TakeOver || o.Connections != 2 || o.Volume != "db" {
				t.Errorf("taken over with %+v", o)
			}
			if s, err := load(b.dir, 3); err != nil || s.ID != 8 || s.Attach.Volume != "db" || s.Generation != 31 {
				t.Errorf("the next daemon would find %+v, %v", s, err)
			}
			if _, err := b.client.Detach(t.Context(), DetachRequest{Device: "nbd3"}); err != nil {
				t.Error(err)
			}
			b.awaitEnd()
		})
	}
}

// The client id stays the same in one run directory.
func TestClientID(t *testing.T) {
	dir := t.TempDir()
	one, err := clientID(dir)
	if err != nil || one == ([16]byte{}) {
		t.Fatalf("%x, %v", one, err)
	}
	two, err := clientID(dir)
	if err != nil || one != two {
		t.Errorf("%x, then %x, %v", one, two, err)
	}
}
