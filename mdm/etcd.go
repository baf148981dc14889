// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Limits of the embedded etcd. The whole state of a large cluster is a few MB.
const (
	etcdQuota       = 1 << 30
	etcdTxnOps      = 8192
	etcdRequest     = 16 << 20
	etcdSnapshots   = 5000 // entries between snapshots: bounds memory and the time to start
	etcdLogLimit    = 8 << 20
	compactionAfter = "10m"
)

// backend is etcd, embedded or not.
type backend struct {
	client *clientv3.Client
	server *embed.Etcd // nil: external
	log    *os.File
}

// openEtcd starts the embedded etcd, or connects to the external one.
func openEtcd(ctx context.Context, c Config) (*backend, error) {
	log, logger, err := etcdLog(c.DataDir)
	if err != nil {
		return nil, err
	}
	b := &backend{log: log}
	if len(c.Etcd) > 0 {
		err = b.connect(ctx, c, logger)
	} else {
		err = b.start(ctx, c, logger)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// etcdLog sends etcd's warnings to a file: it warns about slow disks in bulk.
func etcdLog(dir string) (*os.File, *zap.Logger, error) {
	path := filepath.Join(dir, "etcd.log")
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if st, err := os.Stat(path); err == nil && st.Size() > etcdLogLimit {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open etcd's log: %w", err)
	}
	encoding := zap.NewProductionEncoderConfig()
	encoding.EncodeTime = zapcore.ISO8601TimeEncoder
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(encoding), zapcore.AddSync(f), zap.WarnLevel)
	return f, zap.New(core), nil
}

func (b *backend) connect(ctx context.Context, c Config, logger *zap.Logger) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Etcd, Logger: logger,
		DialTimeout: commitTimeout, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second})
	if err != nil {
		return fmt.Errorf("connect to etcd at %v: %w", c.Etcd, err)
	}
	b.client = client
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if _, err := client.Get(ctx, "/"); err != nil {
		return fmt.Errorf("read from etcd at %v: %w; is it running, and are the URLs of --etcd right?",
			c.Etcd, err)
	}
	return nil
}

func (b *backend) start(ctx context.Context, c Config, logger *zap.Logger) error {
	config, err := embedConfig(c, logger)
	if err != nil {
		return err
	}
	server, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("start etcd in %s: %w", config.Dir, err)
	}
	b.server = server
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case <-server.Server.ReadyNotify():
	case <-server.Server.StopNotify():
		return fmt.Errorf("start etcd in %s: it stopped again; its log is %s", config.Dir, b.log.Name())
	case <-ctx.Done():
		return ctx.Err()
	case <-timeout.C:
		return fmt.Errorf("start etcd in %s: not ready after %v; do the other members of --cluster %s run, "+
			"and can they reach each other? Its log is %s", config.Dir, startTimeout, c.Cluster, b.log.Name())
	}
	// Calls go straight into the server: there is no client port that could clash
	// or be reached by others.
	b.client = v3client.New(server.Server)
	return nil
}

func embedConfig(c Config, logger *zap.Logger) (*embed.Config, error) {
	config := embed.NewConfig()
	config.Name = c.Name
	config.Dir = filepath.Join(c.DataDir, "etcd")
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	config.LogLevel = "warn"
	config.ListenClientUrls, config.AdvertiseClientUrls = nil, nil
	config.AutoCompactionMode = embed.CompactorModePeriodic
	config.AutoCompactionRetention = compactionAfter
	config.QuotaBackendBytes = etcdQuota
	config.MaxTxnOps = etcdTxnOps
	config.MaxRequestBytes = etcdRequest
	config.SnapshotCount = etcdSnapshots
	config.UnsafeNoFsync = c.skipSync
	config.InitialClusterToken = "braid"
	if c.Cluster == "" {
		// Nobody ever connects to a single member: it has a peer URL because it must,
		// and listens nowhere.
		alone, err := url.Parse("http://127.0.0.1:1")
		if err != nil {
			return nil, err
		}
		config.ListenPeerUrls, config.AdvertisePeerUrls = nil, []url.URL{*alone}
		config.InitialCluster = c.Name + "=" + alone.String()
		return config, nil
	}
	own, err := c.peerURL()
	if err != nil {
		return nil, err
	}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*own}, []url.URL{*own}
	config.InitialCluster = c.Cluster
	return config, nil
}

// await returns why the embedded etcd gave up, as it does when its disk fails;
// nil when ctx ended first. An external one is somebody else's: it is waited for.
func (b *backend) await(ctx context.Context) error {
	if b.server == nil {
		return nil
	}
	select {
	case err := <-b.server.Err():
		return fmt.Errorf("etcd failed: %w; its log is %s", err, b.log.Name())
	case <-b.server.Server.StopNotify():
		return fmt.Errorf("etcd stopped by itself; its log is %s", b.log.Name())
	case <-ctx.Done():
		return nil
	}
}

func (b *backend) close() error {
	var err error
	if b.client != nil {
		err = b.client.Close()
		if errors.Is(err, context.Canceled) {
			err = nil
		}
	}
	if b.server != nil {
		b.server.Close()
	}
	return errors.Join(err, b.log.Close())
}
