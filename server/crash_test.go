// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"fmt"
	"testing"

	"braid/server/disk"
	"braid/transport"
	"braid/transport/loop"
)

// Goal: what was flushed, or written with FUA, is there after the process or the
// machine was killed; a block that had never been written before as well.
func TestFlushedDataSurvives(t *testing.T) {
	type crash struct {
		name string
		disk func(*memDisk) *memDisk
	}
	crashes := []crash{{"kill", (*memDisk).reopened}}
	for seed := range uint64(4) {
		crashes = append(crashes, crash{fmt.Sprintf("power loss, seed %d", seed),
			func(d *memDisk) *memDisk { return d.powerLoss(seed) }})
	}
	for _, crash := range crashes {
		t.Run(crash.name, func(t *testing.T) {
			engines(t, func(t *testing.T, e loop.Engine) {
				d := newMemDisk(testDiskSize)
				format(t, d)
				m := newFakeManager()
				r := startRig(t, e, m, d)
				p := r.dial(0)
				if s := p.open(1); s != transport.StatusOK {
					t.Fatalf("open: %v", s)
				}
				first, second, fua := pattern(1, 64<<10), pattern(2, 4096), pattern(3, 8192)
				p.write(0, 0, first)
				p.write(5, 4096, second)
				p.flush()
				p.want(transport.StatusOK, writeHeader(6, 0, len(fua), transport.FlagFUA), fua)
				p.write(0, 128<<10, second) // not flushed: may be there or not, the rest must be
				p.close()
				after := crash.disk(d)
				r.kill()

				r = startRig(t, e, m, after)
				p = r.dial(0)
				if s := p.open(2); s != transport.StatusOK {
					t.Fatalf("open after the crash: %v", s)
				}
				for _, c := range []struct {
					chunk uint64
					off   int
					want  []byte
				}{{0, 0, first}, {5, 4096, second}, {6, 0, fua}} {
					if got := p.read(c.chunk, c.off, len(c.want)); !bytes.Equal(got, c.want) {
						t.Errorf("chunk %d is not what was made durable", c.chunk)
					}
				}
				p.write(0, 0, second) // and it works on
				p.flush()
				p.close()
				r.stop()
			})
		})
	}
}

// Goal: a device whose flush fails goes out of service alone: its clients lose
// their connections, new ones are refused with the reason, the manager is told,
// and the other device works on.
func TestFailedFlushRetiresOneDevice(t *testing.T) {
	engines(t, func(t *testing.T, e loop.Engine) {
		bad, good := newMemDisk(testDiskSize), newMemDisk(testDiskSize)
		format(t, bad)
		format(t, good)
		m := newFakeManager()
		r := startRig(t, e, m, bad, good)
		p, q := r.dial(0), r.dial(1)
		for _, x := range []*peer{p, q} {
			if s := x.open(1); s != transport.StatusOK {
				t.Fatalf("open: %v", s)
			}
		}
		p.write(0, 0, pattern(1, 4096))
		bad.Fail(disk.Fault{Op: "flush"})
		p.send(transport.Header{Op: transport.OpFlush, Interval: 1}, nil)
		select {
		case rep := <-p.replies:
			if rep.Status != transport.StatusIO {
				t.Errorf("the flush was answered with %v", rep.Status)
			}
			<-p.ended
		case <-p.ended:
		}
		p.ended <- nil
		eventually(t, "the manager hears of it", func() bool { return m.report(r.uuids[0]).Failed != "" })
		if f := m.report(r.uuids[1]).Failed; f != "" {
			t.Errorf("the good device is reported as failed: %s", f)
		}
		_, reply, err := transport.Dial(t.Context(), p.loop, r.srv.Addr().String(),
			transport.Hello{Cluster: m.cluster, Device: r.uuids[0], Role: transport.Client},
			func(transport.HelloReply) transport.Handler { return p })
		if reply.Status != transport.HelloRefused {
			t.Errorf("a client of the failed device is answered %v: %v", reply.Status, err)
		}
		q.write(0, 0, pattern(2, 4096))
		q.flush()
		p.close()
		q.close()
		r.stop()
	})
}

// Goal: a disk that does not answer counts as failed, and no longer when it
// answers again; the other requests of its clients are answered meanwhile.
func TestHungDiskIsReported(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	m := newFakeManager()
	r := startRig(t, loop.Auto, m, d)
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	p.write(0, 0, pattern(1, 4096))
	release := d.hangFlushes()
	dev := r.srv.devices[0]
	dev.loop.Call(func() { dev.hungAfter = 1 })
	id := p.send(transport.Header{Op: transport.OpFlush, Interval: 1}, nil)
	eventually(t, "the manager hears of the hung disk", func() bool { return m.report(r.uuids[0]).Failed != "" })
	release()
	if rep := p.receive(); rep.ID != id || rep.Status != transport.StatusOK {
		t.Errorf("the late flush: %+v", rep.Header)
	}
	eventually(t, "the manager hears that it answers", func() bool { return m.report(r.uuids[0]).Failed == "" })
	p.close()
	r.stop()
}
