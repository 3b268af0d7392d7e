package leasehold

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// over enters a lane to s over dial.
func (s *poolServer) over(t *testing.T, interval time.Duration, dial func(ctx context.Context, network, address string) (net.Conn, error)) *lane {
	config := &rest.Config{Host: s.URL, Dial: dial}
	config.Insecure = true
	l, err := enterLane(nil, config, interval)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.leave(&campaign{}) })
	return l
}

// A slowConn brings what the server says a while later.
type slowConn struct{ net.Conn }

func (c slowConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	time.Sleep(50 * time.Millisecond)
	return n, err
}

// More requests than the server takes at once on a connection are made over others, also if it says so
// only when they were sent.
func TestPoolFewStreams(t *testing.T) {
	t.Parallel()
	s := newPoolServer(t, true, func(s *poolServer) {
		s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 5}
	})
	l := s.over(t, time.Minute, func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return slowConn{conn}, err
	})
	time.AfterFunc(2*time.Second, func() { close(s.hold) })
	for _, answer := range s.ask(t, l, 15) {
		if answer != "200 OK why" {
			t.Error(answer)
		}
	}
}

// goAway answers the first request on conn with a GOAWAY: the server has processed none.
func goAway(conn net.Conn, config *tls.Config) {
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	c := tls.Server(conn, config)
	defer c.Close()
	go io.Copy(io.Discard, c)
	c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})                         // SETTINGS
	time.Sleep(100 * time.Millisecond)                                 // for the request to be sent
	c.Write([]byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // GOAWAY
	time.Sleep(100 * time.Millisecond)
}

// A request that the server says it did not process is made again.
func TestPoolGoAway(t *testing.T) {
	s := newPoolServer(t, true)
	close(s.hold)
	for _, tt := range []struct {
		name  string
		times int64
		want  string
	}{
		{"once", 1, "200 OK why"},
		{"always", 1000, errGoAway},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var dials atomic.Int64
			l := s.over(t, time.Minute, func(ctx context.Context, network, address string) (net.Conn, error) {
				if dials.Add(1) > tt.times {
					return new(net.Dialer).DialContext(ctx, network, address)
				}
				client, server := net.Pipe()
				go goAway(server, s.TLS)
				return client, nil
			})
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPatch, s.URL, strings.NewReader("body"))
			resp, err := l.pool.RoundTrip(req)
			got := ""
			if err != nil {
				got = err.Error()
			} else {
				body, _ := io.ReadAll(resp.Body)
				got = resp.Status + " " + string(body)
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// A mutableConn can lose what is sent to the server, while what the server says is heard.
type mutableConn struct {
	net.Conn
	mute *atomic.Bool
}

func (c mutableConn) Write(b []byte) (int, error) {
	if c.mute.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// A request that had no answer in time does not have the next one go the same way, even if the
// connection looks alive because a watch brings news over it.
func TestPoolHalfOpen(t *testing.T) {
	s := newPoolServer(t, true)
	close(s.hold)
	s.mux.HandleFunc("/watch", func(w http.ResponseWriter, req *http.Request) {
		for req.Context().Err() == nil {
			io.WriteString(w, "news")
			w.(http.Flusher).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	var mute atomic.Bool
	var dials atomic.Int64
	l := s.over(t, time.Minute, func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if dials.Add(1) == 1 {
			conn = mutableConn{conn, &mute}
		}
		return conn, err
	})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/watch", nil)
	resp, err := l.pool.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	go io.Copy(io.Discard, resp.Body)
	mute.Store(true)
	for try := range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second+time.Duration(try)*10*time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
		resp, err := l.pool.RoundTrip(req)
		if try == 0 {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%v, want none in time", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// A dial that hangs, even if nothing can end it, keeps neither requests from being made over the next,
// nor the last campaign from leaving.
func TestPoolDialHangs(t *testing.T) {
	t.Parallel()
	s := newPoolServer(t, true)
	close(s.hold)
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) }) // after the lane was left
	var dials atomic.Int64
	l := s.over(t, time.Minute, func(ctx context.Context, network, address string) (net.Conn, error) {
		if dials.Add(1) == 1 {
			<-hang
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
	resp, err := l.pool.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// Who is asked for a proxy is told where the connection goes.
func TestPoolProxy(t *testing.T) {
	for _, host := range []string{"https://[::1]:6443", "https://kubernetes.example:6443"} {
		urls := make(chan string, 10)
		config := &rest.Config{Host: host, Proxy: func(req *http.Request) (*url.URL, error) {
			urls <- req.URL.Scheme + "://" + req.URL.Host
			return nil, errors.New("no")
		}}
		l, err := enterLane(nil, config, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, host+"/x", nil)
		if _, err := l.pool.RoundTrip(req); err == nil {
			t.Error("no error")
		}
		if got := <-urls; got != host {
			t.Errorf("%s, want %s", got, host)
		}
		l.leave(&campaign{})
	}
}

// A connection that is opened later trusts those whom the file with the CAs names then.
func TestPoolCAFile(t *testing.T) {
	s := newPoolServer(t, true)
	close(s.hold)
	file := t.TempDir() + "/ca.crt"
	write := func(cert []byte) {
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(otherCertificate(t))
	config := &rest.Config{Host: s.URL}
	config.CAFile = file
	l, err := enterLane(nil, config, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer l.leave(&campaign{})
	if got := s.ask(t, l, 1)[0]; !strings.Contains(got, "certificate") {
		t.Fatal(got)
	}
	write(s.Certificate().Raw)
	if got := s.ask(t, l, 1)[0]; got != "200 OK why" {
		t.Error(got)
	}
}

// otherCertificate returns one that the server does not have.
func otherCertificate(t *testing.T) []byte {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A configuration that names HTTP/1.1 alone gets no HTTP/2.
func TestPoolNextProtos(t *testing.T) {
	s := newPoolServer(t, true)
	close(s.hold)
	config := &rest.Config{Host: s.URL}
	config.Insecure, config.NextProtos = true, []string{"http/1.1"}
	l, err := enterLane(nil, config, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer l.leave(&campaign{})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
	resp, err := l.pool.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.Proto != "HTTP/1.1" {
		t.Error(resp.Proto)
	}
}
