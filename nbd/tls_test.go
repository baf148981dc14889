// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// certificate makes a self-signed one for "localhost".
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func tlsRig(t *testing.T) (*rig, *x509.CertPool) {
	cert, pool := certificate(t)
	return newRig(t, rigOptions{server: ServerOptions{RequireTLS: true,
		TLS: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}}), pool
}

// startTLS upgrades a peer.
func (p *peer) startTLS(pool *x509.CertPool) {
	p.t.Helper()
	p.option(optStartTLS)
	p.expect(optStartTLS, repAck)
	session := tls.Client(p.conn, &tls.Config{RootCAs: pool, ServerName: "localhost"})
	if err := session.Handshake(); err != nil {
		p.t.Fatal(err)
	}
	p.conn = session
}

// A TLS session carries requests of all sizes, forgets what was agreed in the
// clear, and ends cleanly.
func TestTLS(t *testing.T) {
	r, pool := tlsRig(t)
	p := r.dial()
	p.greet(3)
	p.startTLS(pool)
	p.option(optStartTLS)
	p.expect(optStartTLS, repErrInvalid)
	p.option(optStructuredReply)
	p.expect(optStructuredReply, repAck)
	p.enter("disk")
	for _, n := range []int{1, 5000, 100_000, 3 << 20} {
		p.write(77, bytesAt(0, n))
		mustEqual(t, "read over TLS", p.readStructured(0, 77, uint32(n)), bytesAt(0, n))
	}
	p.request(cmdDisc, 0, 0, 0, nil)
	p.expectClosed()
	r.atRest()
}

// Where TLS is required everything else is refused before it, and EXPORT_NAME,
// which cannot be refused, ends the connection.
func TestTLSRequired(t *testing.T) {
	r, pool := tlsRig(t)
	p := r.dial()
	p.greet(3)
	for _, id := range []uint32{optGo, optInfo, optList, optStructuredReply, optSetMetaContext, 99} {
		p.option(id, goPayload("disk"))
		p.expect(id, repErrTLSRequired)
	}
	p.startTLS(pool)
	p.enter("disk")
	p = r.dial()
	p.greet(3)
	p.option(optExportName, "disk")
	p.expectClosed()
}

// What was negotiated before TLS does not count after it.
func TestTLSForgets(t *testing.T) {
	cert, pool := certificate(t)
	r := newRig(t, rigOptions{server: ServerOptions{
		TLS: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}})
	p := r.dial()
	p.greet(3)
	p.option(optStructuredReply)
	p.expect(optStructuredReply, repAck)
	p.startTLS(pool)
	if _, flags := p.enter("disk"); flags&flagSendDF != 0 {
		t.Error("structured replies are still on")
	}
	mustEqual(t, "simple read", p.readSimple(0, 10), make([]byte, 10))
}

// A client that breaks its TLS session costs that session only.
func TestTLSGarbage(t *testing.T) {
	r, pool := tlsRig(t)
	p := r.dial()
	p.greet(3)
	p.option(optStartTLS)
	p.expect(optStartTLS, repAck)
	p.send("this is not a client hello at all, whatever you may think of it")
	p.expectClosed()
	p = r.dial()
	p.greet(3)
	p.startTLS(pool)
	p.enter("disk")
	p.request(cmdWrite, 0, 0, 1<<20, make([]byte, 1000))
	hangUp(p)
	r.atRest()
}
