// SPDX-License-Identifier: Apache-2.0

// Command gonbd makes an export a kernel device with go-nbd's client, until
// SIGTERM or SIGINT. scripts/guest-tests/clients.sh uses the device meanwhile.
//
//	gonbd SOCKET EXPORT DEVICE
//
// That client hands its socket to the kernel by ioctl and tells the kernel none of
// the export's flags, so the kernel sends no flush and no trim: what it wrote is
// durable only once somebody else has flushed the export, such as `sdc serve` at
// its end.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/client"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: gonbd SOCKET EXPORT DEVICE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "gonbd:", err)
		os.Exit(1)
	}
}

func run(socket, export, path string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	ended := make(chan error, 1)
	go func() {
		ended <- client.Connect(conn, device, &client.Options{ExportName: export,
			OnConnected: func() { fmt.Println("connected") }})
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("connect %s as %s: ended by itself: %w", export, path, err)
	case <-stop:
	}
	// NBD_DO_IT returns in the other goroutine, with an error or without.
	return errors.Join(client.Disconnect(device), <-ended)
}
