// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"testing"

	"braid/transport/bio/memdev"
)

const wantFlags = flagHasFlags | flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes |
	flagCanMultiConn | flagSendCache | flagSendFastZero

// GO describes the export, its block sizes, and what was asked for, and leads to
// the transmission phase.
func TestGo(t *testing.T) {
	p := newRig(t, rigOptions{}).dial()
	p.greet(3)
	p.option(optGo, goPayload("disk", infoName, infoDescription))
	if b := p.expect(optGo, repInfo); !bytes.Equal(b, pack(infoExport, uint64(testSize), wantFlags)) {
		t.Errorf("export info % x", b)
	}
	if b := p.expect(optGo, repInfo); !bytes.Equal(b, pack(infoBlockSize, uint32(1), uint32(4096), uint32(32<<20))) {
		t.Errorf("block size info % x", b)
	}
	if b := p.expect(optGo, repInfo); !bytes.Equal(b, pack(infoName, "disk")) {
		t.Errorf("name info %q", b)
	}
	if b := p.expect(optGo, repInfo); !bytes.Equal(b, pack(infoDescription, "test disk")) {
		t.Errorf("description info %q", b)
	}
	p.expect(optGo, repAck)
	mustEqual(t, "read", p.readSimple(0, 512), make([]byte, 512))
}

// INFO describes and stays in the handshake; with structured replies DF is
// announced.
func TestInfo(t *testing.T) {
	p := newRig(t, rigOptions{}).dial()
	p.greet(3)
	p.option(optStructuredReply)
	p.expect(optStructuredReply, repAck)
	p.option(optInfo, goPayload("disk"))
	if b := p.expect(optInfo, repInfo); !bytes.Equal(b, pack(infoExport, uint64(testSize), wantFlags|flagSendDF)) {
		t.Errorf("export info % x", b)
	}
	p.expect(optInfo, repInfo)
	p.expect(optInfo, repAck)
	p.enter("disk")
}

// A read-only export says so.
func TestReadOnlyFlag(t *testing.T) {
	p := newRig(t, rigOptions{readOnly: true}).dial()
	p.greet(3)
	if _, flags := p.enter("disk"); flags != wantFlags|flagReadOnly {
		t.Errorf("flags %#x", flags)
	}
}

// An unknown export is refused, and the handshake goes on.
func TestUnknownExport(t *testing.T) {
	p := newRig(t, rigOptions{}).dial()
	p.greet(3)
	for _, id := range []uint32{optGo, optInfo} {
		p.option(id, goPayload("nothing"))
		p.expect(id, repErrUnknown)
	}
	p.enter("disk")
}

// The empty name stands for the only export, and for none when there are two.
func TestDefaultExport(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.dial()
	p.greet(3)
	if size, _ := p.enter(""); size != testSize {
		t.Errorf("size %d", size)
	}
	r.export("other", memdev.New(r.loop, memdev.Options{Size: 1 << 20}), false)
	p = r.dial()
	p.greet(3)
	p.option(optGo, goPayload(""))
	p.expect(optGo, repErrUnknown)
	if size, _ := p.enter("other"); size != 1<<20 {
		t.Errorf("size of the other export: %d", size)
	}
}

// EXPORT_NAME, the old way: with and without 124 zeroes, and a hang-up for a name
// that does not exist.
func TestExportName(t *testing.T) {
	r := newRig(t, rigOptions{})
	for flags, zeroes := range map[uint32]int{1: 124, 3: 0, 0: 124} {
		p := r.dial()
		p.greet(flags)
		p.option(optExportName, "disk")
		want := append(pack(uint64(testSize), wantFlags), make([]byte, zeroes)...)
		mustEqual(t, "reply to EXPORT_NAME", p.read(10+zeroes), want)
		mustEqual(t, "read", p.readSimple(0, 512), make([]byte, 512))
	}
	p := r.dial()
	p.greet(3)
	p.option(optExportName, "nothing")
	p.expectClosed()
}

// LIST names every export.
func TestList(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.export("another", memdev.New(r.loop, memdev.Options{Size: 1 << 20}), false)
	p := r.dial()
	p.greet(3)
	p.option(optList)
	var got []string
	for {
		kind, b := p.reply(optList)
		if kind == repAck {
			break
		}
		n := binary.BigEndian.Uint32(b)
		got = append(got, string(b[4:4+n]))
	}
	if !slices.Equal(got, []string{"another", "disk"}) {
		t.Errorf("exports %q", got)
	}
	p.option(optList, "surplus")
	p.expect(optList, repErrInvalid)
	p.option(optAbort)
	p.expect(optAbort, repAck)
	p.expectClosed()
}

// Meta contexts: only after structured replies; listed and set; unknown ones are
// left out; a failed SET forgets the one before.
func TestMetaContext(t *testing.T) {
	p := newRig(t, rigOptions{}).dial()
	p.greet(3)
	query := func(id uint32, name string, queries ...string) {
		parts := []any{uint32(len(name)), name, uint32(len(queries))}
		for _, q := range queries {
			parts = append(parts, uint32(len(q)), q)
		}
		p.option(id, parts...)
	}
	query(optSetMetaContext, "disk", contextAllocation)
	p.expect(optSetMetaContext, repErrInvalid)
	p.option(optStructuredReply)
	p.expect(optStructuredReply, repAck)
	for _, queries := range [][]string{nil, {"base:"}, {contextAllocation}} {
		query(optListMetaContext, "disk", queries...)
		b := p.expect(optListMetaContext, repMetaContext)
		if !bytes.Equal(b, pack(uint32(0), contextAllocation)) {
			t.Errorf("listed %q", b)
		}
		p.expect(optListMetaContext, repAck)
	}
	query(optListMetaContext, "disk", "x-other:thing")
	p.expect(optListMetaContext, repAck)
	query(optSetMetaContext, "nothing", contextAllocation)
	p.expect(optSetMetaContext, repErrUnknown)
	query(optSetMetaContext, "disk", "x:y", contextAllocation)
	if b := p.expect(optSetMetaContext, repMetaContext); !bytes.Equal(b, pack(uint32(1), contextAllocation)) {
		t.Errorf("set %q", b)
	}
	p.expect(optSetMetaContext, repAck)
	p.option(optSetMetaContext, "bad")
	p.expect(optSetMetaContext, repErrInvalid)
	p.enter("disk")
	errno, _ := chunkErrno(p.chunks(p.request(cmdBlockStatus, 0, 0, 4096, nil)))
	if errno != errnoInval {
		t.Errorf("block status without a context: error %d", errno)
	}
}

// Unknown, malformed and overlong options are refused and the handshake goes on.
func TestBadOptions(t *testing.T) {
	p := newRig(t, rigOptions{}).dial()
	p.greet(3)
	p.option(99, "whatever")
	p.expect(99, repErrUnsupported)
	p.option(optStartTLS)
	p.expect(optStartTLS, repErrPolicy)
	p.option(optStructuredReply, "surplus")
	p.expect(optStructuredReply, repErrInvalid)
	for _, bad := range [][]byte{
		pack(uint32(100), "short", uint16(0)),
		pack(uint32(4), "disk", uint16(3), uint16(1)),
		pack(uint32(4), "disk"),
		pack(uint32(4), "di\x00k", uint16(0)),
		make([]byte, 3),
	} {
		p.option(optGo, bad)
		p.expect(optGo, repErrInvalid)
	}
	p.option(optGo, make([]byte, maxOption+1))
	p.expect(optGo, repErrTooBig)
	p.enter("disk")
}

// go-nbd's client announces no data with GO and sends it all the same; an honest
// empty GO is answered with an error.
func TestUncountedGo(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.dial()
	p.greet(0)
	p.send(uint64(0x49484156454F5054), optGo, uint32(0), uint32(4), "disk", uint16(0))
	p.expect(optGo, repInfo)
	p.expect(optGo, repInfo)
	p.expect(optGo, repAck)
	mustEqual(t, "read", p.readSimple(0, 512), make([]byte, 512))

	p = r.dial()
	p.greet(3)
	p.option(optGo)
	p.expect(optGo, repErrInvalid)
	p.enter("disk")
}

// What cannot be a client costs its own connection.
func TestHopelessHandshakes(t *testing.T) {
	r := newRig(t, rigOptions{})
	for name, send := range map[string]func(p *peer){
		"unknown flags": func(p *peer) { p.greet(0xffff) },
		"wrong magic":   func(p *peer) { p.greet(3); p.send(uint64(42), optGo, uint32(0)) },
		"huge option":   func(p *peer) { p.greet(3); p.send(uint64(0x49484156454F5054), optGo, uint32(1<<31)) },
		"half an option": func(p *peer) {
			p.greet(3)
			p.send(uint64(0x49484156454F5054), optGo)
			_ = p.conn.(*net.UnixConn).CloseWrite()
		},
		"http":            func(p *peer) { p.read(18); p.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n") },
		"nothing at all":  func(p *peer) { p.read(18); _ = p.conn.(*net.UnixConn).CloseWrite() },
		"options forever": func(p *peer) { p.greet(3); foreverOptions(p) },
	} {
		t.Run(name, func(t *testing.T) {
			p := r.dial()
			p.t = t
			send(p)
			p.expectClosed()
		})
	}
	mustEqual(t, "read of another client", r.simple().readSimple(0, 512), make([]byte, 512))
}

func foreverOptions(p *peer) {
	one := pack(uint64(0x49484156454F5054), uint32(77), uint32(0))
	for range maxOptions + 10 {
		if _, err := p.conn.Write(one); err != nil {
			return
		}
	}
}
