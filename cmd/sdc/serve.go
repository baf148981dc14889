// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/cmd/internal/observe"
	"braid/cmd/sdc/daemon"
)

// serveFlags is the command line of sdc serve.
type serveFlags struct {
	*shared
	volume, socket, listen string
	readOnly, force        bool
	onFull                 daemon.OnFull
	insecure               bool
	engine                 string
	tlsCert, tlsKey, tlsCA string
	memory                 string
	memoryBlock            int
	metrics                string
	pprof                  bool
}

func newServe(s *shared) *cobra.Command {
	f := serveFlags{shared: s}
	cmd := &cobra.Command{
		Use:   "serve --volume NAME (--socket PATH | --listen HOST:PORT)",
		Short: "Offer a volume as an NBD export, without the kernel, in the foreground",
		Long: `serve attaches a volume and offers it to NBD clients: qemu, nbdcopy, nbdfuse,
nbd-client, fio's nbd engine, … The export's name is the volume's; clients that
name none get it, too. It says "ready" on stderr when clients may connect.

SIGTERM or SIGINT ends it: what was received is answered, the volume is flushed
and detached. A second signal ends it at once.

With --tls-cert and --tls-key every client must start TLS; with --tls-ca it must
also show a certificate that one of those authorities has signed.`,
		Example: `  sdc serve --volume db --socket /run/db.sock
  nbdinfo nbd+unix:///db?socket=/run/db.sock
  qemu-img convert -n image.qcow2 'nbd+unix:///db?socket=/run/db.sock'

  sdc serve --volume db --listen 127.0.0.1:10809 --read-only`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.volume, "volume", "", "the volume (default: the cluster's only one)")
	fs.StringVar(&f.socket, "socket", "", "listen on a unix socket at this path")
	fs.StringVar(&f.listen, "listen", "", "listen on HOST:PORT; port 0 takes a free one")
	fs.BoolVar(&f.readOnly, "read-only", false, "refuse writes")
	fs.BoolVar(&f.force, "force", false, "take the volume from another client that holds it, and fence that client")
	fs.StringVar((*string)(&f.onFull), "on-full", string(daemon.OnFullWait),
		"what writes do that need space where there is none: wait, or error (ENOSPC)")
	fs.BoolVar(&f.insecure, "insecure", false, "allow a non-loopback address without TLS")
	fs.StringVar(&f.engine, "engine", cli.EnvOr("BRAID_ENGINE", "auto"), "auto, io_uring or pool ($BRAID_ENGINE)")
	fs.StringVar(&f.tlsCert, "tls-cert", "", "certificate chain, PEM")
	fs.StringVar(&f.tlsKey, "tls-key", "", "key of the certificate, PEM")
	fs.StringVar(&f.tlsCA, "tls-ca", "", "authorities that clients' certificates must come from, PEM")
	fs.StringVar(&f.memory, "memory", "", "serve this much memory instead of a volume (for measurements)")
	fs.IntVar(&f.memoryBlock, "memory-block-size", 4096, "logical block size with --memory")
	fs.StringVar(&f.metrics, "metrics", "", "serve Prometheus metrics on HOST:PORT")
	fs.BoolVar(&f.pprof, "pprof", false, "serve Go's profiles there, too, below /debug/pprof/")
	_ = fs.MarkHidden("memory")
	_ = fs.MarkHidden("memory-block-size")
	return cmd
}

// validate checks the flags that can be checked without doing anything.
func (f *serveFlags) validate() (*tls.Config, error) {
	if (f.socket == "") == (f.listen == "") {
		return nil, cli.Usagef("serve needs exactly one of --socket PATH and --listen HOST:PORT")
	}
	if err := f.onFull.Check(); err != nil {
		return nil, cli.UsageError{Err: err}
	}
	if (f.tlsCert == "") != (f.tlsKey == "") || f.tlsCA != "" && f.tlsCert == "" {
		return nil, cli.Usagef("--tls-cert and --tls-key go together, and --tls-ca needs them")
	}
	if f.listen != "" {
		host, _, err := net.SplitHostPort(f.listen)
		if err != nil {
			return nil, cli.Usagef("--listen %q: %v; it must be HOST:PORT", f.listen, err)
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) &&
			!f.insecure && f.tlsCA == "" {
			return nil, cli.Usagef("--listen %s can be reached from other machines, and whoever reaches it"+
				" can read and write the volume: add --tls-cert, --tls-key and --tls-ca, or --insecure"+
				" if the network is trusted", f.listen)
		}
	}
	if err := observe.Check(f.metrics, f.pprof, f.insecure); err != nil {
		return nil, cli.UsageError{Err: err}
	}
	if f.tlsCert == "" {
		return nil, nil
	}
	return f.tlsConfig()
}

func (f *serveFlags) tlsConfig() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.tlsCert, f.tlsKey)
	if err != nil {
		return nil, fmt.Errorf("load the certificate %s with key %s: %w", f.tlsCert, f.tlsKey, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if f.tlsCA != "" {
		pem, err := os.ReadFile(f.tlsCA)
		if err != nil {
			return nil, fmt.Errorf("read the authorities: %w", err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("there is no PEM certificate in %s", f.tlsCA)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

func (f *serveFlags) opener() (daemon.Opener, error) {
	if f.memory == "" {
		return daemon.NewCluster(f.mdm, [16]byte{})
	}
	size, err := cluster.ParseSize(f.memory)
	if err != nil {
		return nil, cli.Usagef("--memory: %v", err)
	}
	return daemon.Memory{Size: size, BlockSize: f.memoryBlock}, nil
}

// listener opens the socket. A socket file that nobody listens on is replaced.
func (f *serveFlags) listener() (net.Listener, error) {
	if f.socket == "" {
		ln, err := net.Listen("tcp", f.listen)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", f.listen, err)
		}
		return ln, nil
	}
	ln, err := net.Listen("unix", f.socket)
	if errors.Is(err, syscall.EADDRINUSE) {
		c, dialErr := net.DialTimeout("unix", f.socket, time.Second)
		if dialErr == nil {
			_ = c.Close()
			return nil, fmt.Errorf("listen on %s: another process serves it", f.socket)
		}
		if errors.Is(dialErr, syscall.ECONNREFUSED) {
			if err := os.Remove(f.socket); err != nil {
				return nil, fmt.Errorf("remove the stale socket %s: %w", f.socket, err)
			}
			ln, err = net.Listen("unix", f.socket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", f.socket, err)
	}
	return ln, nil
}

func (f *serveFlags) run(cmd *cobra.Command) error {
	tlsConfig, err := f.validate()
	if err != nil {
		return err
	}
	engine, err := cli.ParseEngine(f.engine)
	if err != nil {
		return err
	}
	opener, err := f.opener()
	if err != nil {
		return err
	}
	defer opener.Close()
	soft, hard, stop := signalContexts(cmd.Context())
	defer stop()
	ln, err := f.listener()
	if err != nil {
		return err
	}
	stderr := cmd.ErrOrStderr()
	e, err := daemon.OpenExport(soft, daemon.ExportOptions{
		Opener: opener, Listener: ln, TLS: tlsConfig, Engine: engine,
		Volume: f.volume, ReadOnly: f.readOnly, Force: f.force, OnFull: f.onFull, Dir: daemon.RunDir(),
		Where: ln.Addr().String(), Metrics: f.metrics, Pprof: f.pprof,
		Report: func(text string) { fmt.Fprintf(stderr, "sdc: %s\n", text) },
	})
	if err != nil {
		_ = ln.Close()
		return err
	}
	fmt.Fprintf(stderr, "sdc: ready: volume %s (%s) on %s, engine %v\n",
		e.Name(), cluster.FormatSize(e.Size()), ln.Addr(), e.Engine())
	return e.Run(soft, hard)
}

// signalContexts returns a context that the first SIGTERM or SIGINT ends, and one
// that the second ends.
func signalContexts(parent context.Context) (soft, hard context.Context, stop func()) {
	hard, endHard := context.WithCancel(parent)
	soft, endSoft := context.WithCancel(hard)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, end := range []func(){endSoft, endHard} {
			select {
			case <-signals:
				end()
			case <-hard.Done():
				return
			}
		}
	}()
	return soft, hard, func() {
		signal.Stop(signals)
		endHard()
		<-done
	}
}
