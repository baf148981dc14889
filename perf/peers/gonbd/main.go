// SPDX-License-Identifier: Apache-2.0

// Command gonbd serves one file or block device with go-nbd's own server, as a
// peer for the benchmark: one request at a time a connection, no flush.
package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/protocol"
	"github.com/pojntfx/go-nbd/pkg/server"
)

func main() {
	file := flag.String("file", "", "file or block device to serve")
	socket := flag.String("socket", "", "unix socket to listen on")
	preferred := flag.Uint("preferred", 4096, "preferred block size, bytes")
	flag.Parse()
	if err := serve(*file, *socket, uint32(*preferred)); err != nil {
		fmt.Fprintln(os.Stderr, "gonbd:", err)
		os.Exit(1)
	}
}

// sized knows the size of a block device, for which stat says 0.
type sized struct {
	backend.Backend
	size int64
}

func (b sized) Size() (int64, error) { return b.size, nil }

// flagged sets NBD_FLAG_HAS_FLAGS in the export information, which go-nbd's
// server leaves out and libnbd (so fio) insists on.
type flagged struct {
	net.Conn
	transmission bool
}

// infoSize is the length of an NBD_INFO_EXPORT item: type, size, flags.
const infoSize = 12

func (c *flagged) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n >= 4 && binary.BigEndian.Uint32(p) == protocol.TRANSMISSION_MAGIC_REQUEST {
		c.transmission = true
	}
	return n, err
}

func (c *flagged) Write(p []byte) (int, error) {
	if !c.transmission && len(p) == infoSize && binary.BigEndian.Uint16(p) == protocol.NEGOTIATION_TYPE_INFO_EXPORT {
		p[infoSize-1] |= 1
	}
	return c.Conn.Write(p)
}

func serve(file, socket string, preferred uint32) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer ln.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	b := sized{backend.NewFileBackend(f), size}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			opts := &server.Options{MinimumBlockSize: 1, PreferredBlockSize: preferred, MaximumBlockSize: 32 << 20}
			if err := server.Handle(&flagged{Conn: conn}, []*server.Export{{Name: "", Backend: b}}, opts); err != nil {
				fmt.Fprintln(os.Stderr, "gonbd: connection:", err)
			}
		}()
	}
}
