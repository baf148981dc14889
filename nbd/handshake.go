// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"github.com/valyala/bytebufferpool"
)

// Errors that end a handshake.
var (
	errAborted   = errors.New("nbd: the client aborted the handshake")
	errHandshake = errors.New("nbd: the client does not speak fixed newstyle negotiation")
	errOptions   = errors.New("nbd: too many options")
	errOptionLen = errors.New("nbd: an option is longer than any option can be")
	errNoExport  = errors.New("nbd: the client asked for an export that does not exist")
	errNeedTLS   = errors.New("nbd: the client did not start TLS, which this server requires")
)

// negotiation is one handshake, on its own goroutine, over blocking calls. It
// reads exactly what it needs, so that the transmission phase finds its first
// byte in the socket.
type negotiation struct {
	server     *Server
	conn       net.Conn // as accepted
	rw         net.Conn // conn, or the TLS session over it
	tls        bool
	fixed      bool
	noZeroes   bool
	structured bool
	// context is the export that base:allocation was negotiated for.
	context    *Export
	hasContext bool
	deadline   time.Time // of the whole handshake
	out        *bytebufferpool.ByteBuffer
}

// outcome is what a successful handshake leads to.
type outcome struct {
	export *Export
	conn   net.Conn // plain, or a TLS session
	o      ConnOptions
}

// negotiate leads the handshake to the choice of an export, or to an error. It
// does not close the connection.
func (s *Server) negotiate(conn net.Conn) (*outcome, error) {
	n := &negotiation{server: s, conn: conn, rw: conn, out: bytebufferpool.Get(),
		deadline: time.Now().Add(handshakeTime)}
	defer bytebufferpool.Put(n.out)
	if err := conn.SetDeadline(n.deadline); err != nil {
		return nil, fmt.Errorf("nbd: set the handshake's deadline: %w", err)
	}
	if err := n.greet(); err != nil {
		return nil, err
	}
	for range maxOptions {
		export, err := n.option()
		if err != nil {
			return nil, err
		}
		if export == nil {
			continue
		}
		if err := conn.SetDeadline(time.Time{}); err != nil {
			return nil, fmt.Errorf("nbd: clear the handshake's deadline: %w", err)
		}
		return &outcome{export: export, conn: n.rw, o: ConnOptions{
			Structured: n.structured,
			Allocation: n.hasContext && n.context == export,
			ReadOnly:   export.ReadOnly,
		}}, nil
	}
	return nil, errOptions
}

// greet sends the magic numbers and reads the client's flags.
func (n *negotiation) greet() error {
	b := make([]byte, 18)
	be := binary.BigEndian
	be.PutUint64(b, protocol.NEGOTIATION_MAGIC_OLDSTYLE)
	be.PutUint64(b[8:], protocol.NEGOTIATION_MAGIC_OPTION)
	be.PutUint16(b[16:], handshakeFixedNewstyle|handshakeNoZeroes)
	if _, err := n.rw.Write(b); err != nil {
		return fmt.Errorf("nbd: greet the client: %w", err)
	}
	if _, err := io.ReadFull(n.rw, b[:4]); err != nil {
		return fmt.Errorf("nbd: read the client's flags: %w", err)
	}
	flags := be.Uint32(b)
	if flags&^uint32(handshakeFixedNewstyle|handshakeNoZeroes) != 0 {
		return errHandshake
	}
	n.fixed = flags&uint32(handshakeFixedNewstyle) != 0
	n.noZeroes = flags&uint32(handshakeNoZeroes) != 0
	return nil
}

// option reads and answers one option. It returns the export once one is chosen.
func (n *negotiation) option() (*Export, error) {
	var b [16]byte
	if _, err := io.ReadFull(n.rw, b[:]); err != nil {
		return nil, fmt.Errorf("nbd: read an option: %w", err)
	}
	if binary.BigEndian.Uint64(b[:]) != protocol.NEGOTIATION_MAGIC_OPTION {
		return nil, errHandshake
	}
	id, length := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	if length > maxOption {
		return nil, n.tooBig(id, length)
	}
	arg := make([]byte, length)
	if _, err := io.ReadFull(n.rw, arg); err != nil {
		return nil, fmt.Errorf("nbd: read the data of option %d: %w", id, err)
	}
	if n.server.o.RequireTLS && !n.tls && id != optStartTLS && id != optAbort {
		if id == optExportName {
			return nil, errNeedTLS
		}
		return nil, n.refuse(id, repErrTLSRequired, "start TLS first")
	}
	switch id {
	case optExportName:
		return n.exportName(arg)
	case optAbort:
		_ = n.reply(id, repAck, nil) // the client may be gone already
		return nil, errAborted
	case optList:
		return nil, n.list(arg)
	case optStartTLS:
		return nil, n.startTLS(arg)
	case optInfo, optGo:
		return n.infoOrGo(id, arg)
	case optStructuredReply:
		if length != 0 {
			return nil, n.refuse(id, repErrInvalid, "this option has no data")
		}
		n.structured = true
		return nil, n.reply(id, repAck, nil)
	case optListMetaContext, optSetMetaContext:
		return nil, n.metaContext(id, arg)
	}
	return nil, n.refuse(id, repErrUnsupported, "unknown option")
}

// tooBig drops an option that is too long to be looked at; one that is absurd
// ends the connection.
func (n *negotiation) tooBig(id, length uint32) error {
	if length > maxOptionDrain || id == optExportName {
		return errOptionLen
	}
	if _, err := io.CopyN(io.Discard, n.rw, int64(length)); err != nil {
		return fmt.Errorf("nbd: drop the data of option %d: %w", id, err)
	}
	return n.refuse(id, repErrTooBig, "option too long")
}

// reply sends an option reply.
//
//	 0  8  magic 0x3e889045565a9
//	 8  4  option
//	12  4  type
//	16  4  length
func (n *negotiation) reply(id, kind uint32, payload []byte) error {
	var b [20]byte
	be := binary.BigEndian
	be.PutUint64(b[:], protocol.NEGOTIATION_MAGIC_REPLY)
	be.PutUint32(b[8:], id)
	be.PutUint32(b[12:], kind)
	be.PutUint32(b[16:], uint32(len(payload)))
	n.out.Reset()
	_, _ = n.out.Write(b[:])
	_, _ = n.out.Write(payload)
	if _, err := n.rw.Write(n.out.B); err != nil {
		return fmt.Errorf("nbd: answer option %d: %w", id, err)
	}
	return nil
}

// refuse answers an option with an error and a text for humans.
func (n *negotiation) refuse(id, kind uint32, text string) error {
	return n.reply(id, kind, []byte(text))
}

// exportName is the old way to choose: no reply but the export itself, and no
// way to say no but to hang up.
func (n *negotiation) exportName(arg []byte) (*Export, error) {
	e := n.server.find(string(arg))
	if e == nil {
		return nil, fmt.Errorf("%w: %.100q", errNoExport, arg)
	}
	size, flags := e.describe(n.structured)
	b := make([]byte, 10, 134)
	binary.BigEndian.PutUint64(b, size)
	binary.BigEndian.PutUint16(b[8:], flags)
	if !n.noZeroes {
		b = b[:134]
	}
	if _, err := n.rw.Write(b); err != nil {
		return nil, fmt.Errorf("nbd: describe export %q: %w", e.Name, err)
	}
	return e, nil
}

// list names the exports. Descriptions are left to INFO: go-nbd's client takes
// what follows a name for the next one.
func (n *negotiation) list(arg []byte) error {
	if len(arg) != 0 {
		return n.refuse(optList, repErrInvalid, "this option has no data")
	}
	for _, e := range n.server.Exports() {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		b = append(b, e.Name...)
		if err := n.reply(optList, repServer, b); err != nil {
			return err
		}
	}
	return n.reply(optList, repAck, nil)
}

func (n *negotiation) startTLS(arg []byte) error {
	switch {
	case n.server.o.TLS == nil:
		return n.refuse(optStartTLS, repErrPolicy, "this server has no certificate")
	case len(arg) != 0 || n.tls:
		return n.refuse(optStartTLS, repErrInvalid, "TLS is on, or data where none belongs")
	}
	if err := n.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	session := tls.Server(n.conn, n.server.o.TLS)
	if err := session.Handshake(); err != nil {
		return fmt.Errorf("nbd: TLS handshake: %w", err)
	}
	n.rw, n.tls = session, true
	// What was agreed in the clear could have been forged.
	n.structured, n.context, n.hasContext = false, nil, false
	return nil
}

// infoOrGo describes an export, and with GO chooses it.
func (n *negotiation) infoOrGo(id uint32, arg []byte) (*Export, error) {
	if len(arg) == 0 {
		more, err := n.uncountedGo()
		if err != nil {
			return nil, err
		}
		arg = more
	}
	var o goOption
	if err := o.decode(arg); err != nil {
		return nil, n.refuse(id, repErrInvalid, err.Error())
	}
	e := n.server.find(o.name)
	if e == nil {
		return nil, n.refuse(id, repErrUnknown, fmt.Sprintf("no export %.100q", o.name))
	}
	be := binary.BigEndian
	size, flags := e.describe(n.structured)
	b := be.AppendUint16(nil, infoExport)
	b = be.AppendUint64(b, size)
	b = be.AppendUint16(b, flags)
	if err := n.reply(id, repInfo, b); err != nil {
		return nil, err
	}
	b = be.AppendUint16(b[:0], infoBlockSize)
	b = be.AppendUint32(b, MinBlock)
	b = be.AppendUint32(b, PreferredBlock)
	b = be.AppendUint32(b, MaxPayload)
	if err := n.reply(id, repInfo, b); err != nil {
		return nil, err
	}
	if o.has(infoName) {
		b = append(be.AppendUint16(b[:0], infoName), e.Name...)
		if err := n.reply(id, repInfo, b); err != nil {
			return nil, err
		}
	}
	if o.has(infoDescription) && e.Description != "" {
		b = append(be.AppendUint16(b[:0], infoDescription), e.Description...)
		if err := n.reply(id, repInfo, b); err != nil {
			return nil, err
		}
	}
	if err := n.reply(id, repAck, nil); err != nil || id == optInfo {
		return nil, err
	}
	return e, nil
}

// uncountedGo reads the data of a GO or INFO that announced none. go-nbd's client
// leaves the length 0 and sends the data all the same. An honest empty option
// would be malformed anyway, and is told apart by the next option's magic number,
// of which the first half is longer than any name.
func (n *negotiation) uncountedGo() ([]byte, error) {
	const patience = 200 * time.Millisecond
	b := make([]byte, 4)
	if err := n.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, fmt.Errorf("nbd: set a deadline: %w", err)
	}
	k, err := io.ReadFull(n.rw, b)
	if k == 0 && errors.Is(err, errTimeout()) {
		return nil, n.conn.SetDeadline(n.deadline)
	}
	if err != nil {
		return nil, fmt.Errorf("nbd: read uncounted option data: %w", err)
	}
	if err := n.conn.SetDeadline(n.deadline); err != nil {
		return nil, fmt.Errorf("nbd: set a deadline: %w", err)
	}
	length := binary.BigEndian.Uint32(b)
	if length > maxName {
		return nil, errHandshake
	}
	b = append(b, make([]byte, length+2)...)
	if _, err := io.ReadFull(n.rw, b[4:]); err != nil {
		return nil, fmt.Errorf("nbd: read uncounted option data: %w", err)
	}
	requests := make([]byte, 2*int(binary.BigEndian.Uint16(b[4+length:])))
	if _, err := io.ReadFull(n.rw, requests); err != nil {
		return nil, fmt.Errorf("nbd: read uncounted option data: %w", err)
	}
	return append(b, requests...), nil
}

// metaContext lists or sets the meta contexts of an export.
func (n *negotiation) metaContext(id uint32, arg []byte) error {
	if id == optSetMetaContext {
		n.context, n.hasContext = nil, false
	}
	if !n.structured {
		return n.refuse(id, repErrInvalid, "negotiate structured replies first")
	}
	var o metaOption
	if err := o.decode(arg); err != nil {
		return n.refuse(id, repErrInvalid, err.Error())
	}
	e := n.server.find(o.name)
	if e == nil {
		return n.refuse(id, repErrUnknown, fmt.Sprintf("no export %.100q", o.name))
	}
	if o.wantsAllocation(id == optListMetaContext) {
		number := contextAllocationID
		if id == optListMetaContext {
			number = 0
		}
		b := binary.BigEndian.AppendUint32(nil, number)
		b = append(b, contextAllocation...)
		if err := n.reply(id, repMetaContext, b); err != nil {
			return err
		}
		if id == optSetMetaContext {
			n.context, n.hasContext = e, true
		}
	}
	return n.reply(id, repAck, nil)
}
