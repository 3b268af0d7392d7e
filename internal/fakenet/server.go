package fakenet

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/big"
	"net/http"
	"testing"
	"time"
)

// Serve starts an HTTPS server on the network, with HTTP/2 unless change says otherwise. It ends with the test.
func (n *Network) Serve(t testing.TB, handler http.Handler, change func(*http.Server)) {
	t.Helper()
	s := &http.Server{
		Handler:   handler,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{Certificate()}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	if change != nil {
		change(s)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.ServeTLS(n, "", "")
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
}

// Certificate returns a new one that nobody has signed.
func Certificate() tls.Certificate {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(nil, template, template, public, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key}
}
