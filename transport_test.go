package leasehold

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// connected returns the client over the connections that config describes. The test closes it.
func connected(t *testing.T, config *rest.Config) *sharedClient {
	t.Helper()
	l, err := openClient(nil, config, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close(true) })
	return l
}

// request makes a request of l to host, and returns the protocol of the answer.
func request(t *testing.T, l *sharedClient, host string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, host+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := l.pool.RoundTrip(req)
	if err != nil {
		return "", err
	}
	io.Copy(io.Discard, resp.Body)
	return resp.Proto, resp.Body.Close()
}

// A configured proxy function is told where the connection goes.
func TestTransportProxy(t *testing.T) {
	for _, host := range []string{"https://[::1]:6443", "https://kubernetes.example:6443"} {
		urls := make(chan string, 10)
		l := connected(t, &rest.Config{Host: host, Proxy: func(req *http.Request) (*url.URL, error) {
			urls <- req.URL.Scheme + "://" + req.URL.Host
			return nil, errors.New("no")
		}})
		if _, err := request(t, l, host); err == nil {
			t.Error("no error")
		}
		if got := <-urls; got != host {
			t.Errorf("%s, want %s", got, host)
		}
	}
}

func newTLSServer(t *testing.T) *httptest.Server {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// A connection that is opened later trusts the authorities that the file names then.
func TestTransportCAFile(t *testing.T) {
	s := newTLSServer(t)
	file := t.TempDir() + "/ca.crt"
	write := func(cert []byte) {
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
			0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(otherCertificate(t))
	l := connected(t, &rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{CAFile: file}})
	if _, err := request(t, l, s.URL); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Fatal(err)
	}
	write(s.Certificate().Raw)
	if _, err := request(t, l, s.URL); err != nil {
		t.Error(err)
	}
}

// otherCertificate returns one that the server does not have.
func otherCertificate(t *testing.T) []byte {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// HTTP/2 is used unless the configuration names HTTP/1.1 alone.
func TestTransportProtocol(t *testing.T) {
	s := newTLSServer(t)
	for _, tt := range []struct {
		protocols []string
		want      string
	}{
		{nil, "HTTP/2.0"},
		{[]string{"http/1.1"}, "HTTP/1.1"},
	} {
		l := connected(t, &rest.Config{Host: s.URL,
			TLSClientConfig: rest.TLSClientConfig{Insecure: true, NextProtos: tt.protocols}})
		if got, err := request(t, l, s.URL); got != tt.want || err != nil {
			t.Errorf("%v: %s, %v", tt.protocols, got, err)
		}
	}
}
