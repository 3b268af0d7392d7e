package connpool

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/leasehold-go/leasehold/internal/fakenet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const interval = 3 * time.Second

// A world is a server on a network in memory, and a pool of connections to it.
type world struct {
	*testing.T
	*fakenet.Network
	pool   *Pool
	status atomic.Int64
	think  atomic.Int64 // how long the server takes for a request for /slow
}

// in runs test in virtual time. Its server answers at once; /slow takes as long as think says, /news tells something
// once per interval, /hang never answers.
func in(t *testing.T, roundTrip time.Duration, change func(*http.Server), test func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, Network: fakenet.New(roundTrip)}
		w.status.Store(http.StatusOK)
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(rw http.ResponseWriter, req *http.Request) {
			io.Copy(io.Discard, req.Body)
			rw.WriteHeader(int(w.status.Load()))
			io.WriteString(rw, "why")
		})
		mux.HandleFunc("/slow", func(rw http.ResponseWriter, req *http.Request) {
			time.Sleep(time.Duration(w.think.Load()))
			io.WriteString(rw, "why")
		})
		mux.HandleFunc("/hang", func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
		mux.HandleFunc("/news", func(rw http.ResponseWriter, req *http.Request) {
			for req.Context().Err() == nil {
				io.WriteString(rw, "news")
				rw.(http.Flusher).Flush()
				select {
				case <-time.After(interval * 95 / 100):
				case <-req.Context().Done():
				}
			}
		})
		w.Serve(t, mux, change)
		w.pool = w.over(w.Dial)
		test(w)
	})
}

// over returns a pool whose connections dial makes. It is closed with the test.
func (w *world) over(dial func(ctx context.Context, network, address string) (net.Conn, error)) *Pool {
	p := New(func() (*http.Transport, error) {
		return &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			ForceAttemptHTTP2: true}, nil
	}, interval)
	w.Cleanup(func() {
		p.Close()
		for _, c := range w.Conns() {
			if !c.Closed() {
				w.Error("a connection is left")
			}
		}
	})
	return p
}

// ask makes a request that waits for its answer for at most so long, and returns the answer or the error.
func (w *world) ask(p *Pool, method, path string, patience time.Duration) string {
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://server.example"+path, strings.NewReader("body"))
	if method == http.MethodGet {
		req, err = http.NewRequestWithContext(ctx, method, "https://server.example"+path, nil)
	}
	if err != nil {
		w.Fatal(err)
	}
	resp, err := p.RoundTrip(req)
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return err.Error()
	}
	return resp.Status + " " + string(body)
}

// want makes a request that is to be answered.
func (w *world) want(path string) {
	w.Helper()
	if got := w.ask(w.pool, http.MethodPatch, path, time.Minute); got != "200 OK why" {
		w.Error(got)
	}
}

// follow opens /news, and returns a channel that is closed when it ends, after the error was stored.
func (w *world) follow() (ended chan struct{}, why *error) {
	req, err := http.NewRequestWithContext(w.Context(), http.MethodGet, "https://server.example/news", nil)
	if err != nil {
		w.Fatal(err)
	}
	resp, err := w.pool.RoundTrip(req)
	if err != nil {
		w.Fatal(err)
	}
	ended, why = make(chan struct{}), new(error)
	go func() {
		defer close(ended)
		_, *why = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}()
	return ended, why
}

func (w *world) wantDials(n int) {
	w.Helper()
	if got := w.Dials(); got != n {
		w.Errorf("%d connections, want %d", got, n)
	}
}

// Requests that begin together wait for one dial, and more connections are made only where one has no room.
func TestFewConnections(t *testing.T) {
	for _, tt := range []struct {
		name      string
		streams   int
		protocols func(*http.Protocols)
		requests  int
		max       int
	}{
		{"a hundred at once on each", 100, nil, 400, 5},
		{"five, which the server says only when more were sent", 5, nil, 15, 15},
		{"HTTP/1", 0, func(p *http.Protocols) { p.SetHTTP1(true); p.SetHTTP2(false) }, 20, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in(t, 50*time.Millisecond, func(s *http.Server) {
				s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: tt.streams}
				if tt.protocols != nil {
					s.Protocols = new(http.Protocols)
					tt.protocols(s.Protocols)
				}
			}, func(w *world) {
				w.think.Store(int64(2 * time.Second))
				var group sync.WaitGroup
				for range tt.requests {
					group.Go(func() { w.want("/slow") })
				}
				group.Wait()
				if n := w.Dials(); n > tt.max {
					t.Errorf("%d connections, want %d at most", n, tt.max)
				}
				for range 3 {
					w.want("/")
				}
				before := w.Dials()
				time.Sleep(2 * spareTime)
				w.want("/")
				w.wantDials(before)
				if n := len(w.pool.conns); n != 1 {
					t.Errorf("%d connections are left, want 1", n)
				}
			})
		})
	}
}

// While answers come at their usual rate, nothing is sent to find out whether the connection lives, and no timer runs.
func TestNoPingWhileAnswersCome(t *testing.T) {
	for _, tt := range []struct {
		name  string
		every time.Duration
		pings int64
	}{
		{"answers come", interval * 98 / 100, 0},
		{"nothing comes", 20 * interval, 18},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in(t, 0, nil, func(w *world) {
				w.want("/")
				w.want("/")
				before := w.Conns()[0].Writes()
				w.want("/")
				one := w.Conns()[0].Writes() - before
				var requests int64
				for began := time.Now(); time.Since(began) < 20*interval; requests++ {
					time.Sleep(tt.every)
					w.want("/")
				}
				if n := w.Conns()[0].Writes() - before - (requests+1)*one; n != tt.pings {
					t.Errorf("%d pings, want %d", n, tt.pings)
				}
				w.wantDials(1)
				if w.pool.conns[0].watchdog.Stop() && tt.pings == 0 {
					t.Error("the watchdog runs")
				}
			})
		})
	}
}

// A connection that goes dead is found, and what uses it hears why.
func TestDeadConnection(t *testing.T) {
	const roundTrip = 10 * time.Millisecond
	for _, tt := range []struct {
		name   string
		kill   func(*world)
		within time.Duration
		why    string
	}{
		{"dead", func(w *world) { w.Kill() }, interval*16/10 + 3*roundTrip, "nothing heard for"},
		{"dead, and nothing can be dialled", func(w *world) {
			w.Kill()
			w.SetDown(true)
		}, interval*16/10 + dialTimeout, "nothing heard for"},
		{"dead, and dials hang for 8 s", func(w *world) {
			w.Kill()
			w.SetDown(true)
			time.AfterFunc(8*time.Second, func() { w.SetDown(false) })
		}, 8*time.Second + 650*time.Millisecond + 3*roundTrip, "nothing heard for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in(t, roundTrip, nil, func(w *world) {
				ended, why := w.follow()
				time.Sleep(10 * interval)
				tt.kill(w)
				began := time.Now()
				<-ended
				if took := time.Since(began); took > tt.within || !strings.Contains((*why).Error(), tt.why) {
					t.Errorf("%v after %v, want %q within %v", *why, took, tt.why, tt.within)
				}
				w.SetDown(false)
				w.want("/")
			})
		})
	}
}

// A connection that is slow, but not dead, is kept.
func TestSlowConnection(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after time.Duration
	}{
		{"slow from the beginning", 1600 * time.Millisecond, 1600 * time.Millisecond},
		{"it becomes slow", 0, 1600 * time.Millisecond},
		{"it becomes very slow", 0, 3 * interval},
	} {
		for _, use := range []string{"idle", "in use"} {
			t.Run(tt.name+", "+use, func(t *testing.T) {
				in(t, tt.before, nil, func(w *world) {
					w.want("/")
					first := w.Conns()[0]
					time.Sleep(interval)
					w.SetRoundTrip(tt.after)
					for range 20 {
						time.Sleep(interval * 95 / 100)
						if use == "in use" {
							w.want("/")
						}
					}
					time.Sleep(5 * interval)
					if first.Closed() {
						t.Error("the connection was closed")
					}
					w.want("/")
					if use == "in use" && tt.after < interval && w.Dials() > 5 {
						t.Errorf("%d connections", w.Dials())
					}
				})
			})
		}
	}
}

// Requests that the server is slow to answer are no reason to leave a connection over which others are answered.
func TestSlowRequests(t *testing.T) {
	in(t, 10*time.Millisecond, nil, func(w *world) {
		var group sync.WaitGroup
		for range 20 {
			group.Go(func() { w.ask(w.pool, http.MethodPatch, "/hang", interval) })
		}
		for range 100 {
			w.want("/")
			time.Sleep(interval / 10)
		}
		group.Wait()
		for range 20 { // one after the other
			w.ask(w.pool, http.MethodPatch, "/hang", interval)
			w.want("/")
		}
		w.wantDials(1)
	})
}

// Where one request after the other has no answer, others are made over another connection, even if the first looks
// alive because there is news over it.
func TestDeafConnection(t *testing.T) {
	in(t, 10*time.Millisecond, nil, func(w *world) {
		ended, why := w.follow()
		w.want("/")
		w.Conns()[0].Mute(true)
		for range 2 {
			if got := w.ask(w.pool, http.MethodPatch, "/", interval*3/4); got != context.DeadlineExceeded.Error() {
				t.Fatal(got)
			}
			w.wantDials(1)
		}
		began := time.Now()
		w.want("/")
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("answered after %v", took)
		}
		w.wantDials(2)
		<-ended
		if !strings.Contains((*why).Error(), "no answer to two requests") {
			t.Error(*why)
		}
	})
}

// What does not show that a connection is deaf.
func TestNotDeaf(t *testing.T) {
	hang := func(w *world, patience time.Duration) { w.ask(w.pool, http.MethodPatch, "/hang", patience) }
	for _, tt := range []struct {
		name      string
		roundTrip time.Duration
		requests  func(*world)
	}{
		{"one request alone", 0, func(w *world) { hang(w, interval) }},
		{"one alone, and one before beside which another was answered", 0, func(w *world) {
			time.AfterFunc(time.Second, func() { w.want("/") })
			hang(w, interval)
			hang(w, interval)
		}},
		{"two at a time", 0, func(w *world) {
			var group sync.WaitGroup
			group.Go(func() { hang(w, interval) })
			group.Go(func() { hang(w, 2*interval) })
			group.Wait()
		}},
		{"two that had less than a round trip", time.Second, func(w *world) {
			for range 2 {
				w.ask(w.pool, http.MethodPatch, "/", 500*time.Millisecond)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in(t, tt.roundTrip, nil, func(w *world) {
				w.want("/")
				dials := w.Dials()
				tt.requests(w)
				w.pool.mu.Lock()
				deaf := w.pool.conns[0].deaf
				w.pool.mu.Unlock()
				if deaf {
					t.Error("the connection is suspect")
				}
				w.want("/")
				w.wantDials(dials)
			})
		})
	}
}

// A connection in use is never spare.
func TestSpareInUse(t *testing.T) {
	in(t, 10*time.Millisecond, func(s *http.Server) { s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1} },
		func(w *world) {
			w.want("/")
			first, _ := w.follow()
			second, _ := w.follow()
			time.Sleep(2 * spareTime)
			w.want("/")
			select {
			case <-first:
				t.Error("the first was closed")
			case <-second:
				t.Error("the second was closed")
			default:
			}
		})
}

// A suspect connection that answers before the next is dialled is used again.
func TestSuspectAnswers(t *testing.T) {
	in(t, 10*time.Millisecond, nil, func(w *world) {
		w.want("/")
		w.SetDown(true)
		w.think.Store(int64(4 * time.Second))
		began := time.Now()
		var group sync.WaitGroup
		defer group.Wait()
		group.Go(func() { w.want("/slow") })
		for range 2 {
			w.ask(w.pool, http.MethodPatch, "/hang", time.Second)
		}
		w.want("/")
		if took := time.Since(began); took < 4*time.Second || took > 5*time.Second {
			t.Errorf("answered after %v, want 4s: when the slow request is", took)
		}
		w.wantDials(1)
		time.Sleep(2 * dialTimeout) // the dial goes on, and fails
		w.want("/")
		w.wantDials(1)
	})
}

// A dial that hangs, even if nothing can end it, keeps neither requests from being made over the next connection, nor
// the pool from being closed.
func TestDialHangs(t *testing.T) {
	in(t, 10*time.Millisecond, nil, func(w *world) {
		hang := make(chan struct{})
		w.Cleanup(func() { synctest.Wait() })
		w.Cleanup(func() { close(hang) }) // after the pool was closed
		var dials atomic.Int64
		p := w.over(func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				<-hang
				return nil, errors.New("at last")
			}
			return w.Dial(ctx, network, address)
		})
		began := time.Now()
		if got := w.ask(p, http.MethodGet, "/", time.Minute); got != "200 OK why" {
			t.Error(got)
		}
		if took := time.Since(began); took > redialAfter+100*time.Millisecond {
			t.Errorf("answered after %v", took)
		}
		began = time.Now()
		p.Close()
		if took := time.Since(began); took > time.Second {
			t.Errorf("closed after %v", took)
		}
	})
}

// A request that gives up does not end the dial that it waited for.
func TestDialOutlivesRequest(t *testing.T) {
	in(t, 2*time.Second, nil, func(w *world) {
		for range 2 {
			if got := w.ask(w.pool, http.MethodPatch, "/",
				1900*time.Millisecond); got != context.DeadlineExceeded.Error() {
				t.Error(got)
			}
		}
		before := w.Dials()
		time.Sleep(time.Second) // connected
		began := time.Now()
		w.want("/")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("answered after %v", took)
		}
		if w.Dials() > before+7 {
			t.Errorf("%d dials", w.Dials())
		}
	})
}

// An HTTP/2 frame begins with its length and type.
var (
	settings = []byte{0, 0, 0, 4, 0, 0, 0, 0, 0}
	goAway   = []byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // nothing was processed
	refusal  = []byte{
		// GOAWAY, so that there is no second request on the connection
		0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0,
		0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7, // RST_STREAM of the first
	}
)

// A request that the server has not processed is made again where that is certain, or where it is a read.
func TestNotProcessed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		frames []byte
		method string
		times  int64 // for how many connections
		want   string
	}{
		{"a write is refused once", refusal, http.MethodPatch, 1, "200 OK why"},
		{"a write is refused always", refusal, http.MethodPatch, 1000, "REFUSED_STREAM"},
		{"the server goes away from a read", goAway, http.MethodGet, 1, "200 OK why"},
		{"the server goes away from a read always", goAway, http.MethodGet, 1000, "GOAWAY"},
		{"the server goes away from a write", goAway, http.MethodPatch, 1, "GOAWAY"},
		{"the connection ends below a write", nil, http.MethodPatch, 1, "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in(t, 10*time.Millisecond, nil, func(w *world) {
				other := serve(w, func(c *tls.Conn) { unwilling(c, tt.frames) })
				var dials atomic.Int64
				p := New(func() (*http.Transport, error) {
					dial := other.Dial
					if dials.Add(1) > tt.times {
						dial = w.Dial
					}
					return &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
						ForceAttemptHTTP2: true}, nil
				}, interval)
				defer p.Close()
				if got := w.ask(p, tt.method, "/", time.Minute); !strings.Contains(got, tt.want) {
					t.Errorf("%s, want %s", got, tt.want)
				}
				if n := dials.Load(); n > mostTries {
					t.Errorf("%d dials", n)
				}
			})
		})
	}
}

// unwilling answers what is sent on c with frames, and returns a while later.
func unwilling(c *tls.Conn, frames []byte) {
	go io.Copy(io.Discard, c)
	c.Write(settings)
	time.Sleep(100 * time.Millisecond) // for the request to be sent
	c.Write(frames)
	time.Sleep(100 * time.Millisecond)
}

// serve returns a network whose server speaks HTTP/2 by handle alone, until the test ends.
func serve(w *world, handle func(*tls.Conn)) *fakenet.Network {
	n := fakenet.New(10 * time.Millisecond)
	var group sync.WaitGroup
	w.Cleanup(group.Wait)
	w.Cleanup(func() { n.Close() })
	group.Go(func() {
		for {
			conn, err := n.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				c := tls.Server(conn, &tls.Config{
					Certificates: []tls.Certificate{fakenet.Certificate()}, NextProtos: []string{"h2"}})
				defer c.Close()
				c.Handshake()
				handle(c)
			})
		}
	})
	return n
}

// A 401 replaces the connection, but not one that is new itself. Its reason is not lost.
func TestUnauthorized(t *testing.T) {
	in(t, 0, nil, func(w *world) {
		w.want("/")
		time.Sleep(interval)
		w.status.Store(http.StatusUnauthorized)
		for range 10 {
			if got := w.ask(w.pool, http.MethodPatch, "/", time.Minute); got != "401 Unauthorized why" {
				t.Error(got)
			}
		}
		w.wantDials(2)
	})
}

// A server that closes each connection at once is an error, not an endless loop.
func TestClosedAtOnce(t *testing.T) {
	in(t, 0, nil, func(w *world) {
		other := fakenet.New(0)
		defer other.Close()
		go func() {
			for {
				conn, err := other.Accept()
				if err != nil {
					return
				}
				c := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{fakenet.Certificate()},
					NextProtos: []string{"h2"}})
				c.Handshake()
				c.Close()
			}
		}()
		p := w.over(other.Dial)
		if got := w.ask(p, http.MethodGet, "/", time.Minute); strings.Contains(got, "deadline") ||
			strings.Contains(got, "200") {
			t.Error(got)
		}
		if n := other.Dials(); n > mostTries {
			t.Errorf("%d dials", n)
		}
		p.Close()
	})
}

// A server that takes no requests over a new connection is an error, not an endless loop.
func TestNoPlace(t *testing.T) {
	noStreams := []byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0} // SETTINGS_MAX_CONCURRENT_STREAMS = 0
	for name, frames := range map[string][]byte{
		"no streams":   noStreams,
		"it goes away": append(append([]byte{}, settings...), goAway...),
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 10*time.Millisecond, nil, func(w *world) {
				other := serve(w, func(c *tls.Conn) {
					c.Write(frames)
					io.Copy(io.Discard, c)
				})
				p := w.over(other.Dial)
				defer p.Close()
				to := url.URL{Scheme: "https", Host: "server.example", Path: "/"}
				c, _, err := p.connect(p.era, to)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // the frames are read
				d := &dial{done: make(chan struct{})}
				p.dials[to] = d
				got := make(chan string, 1)
				go func() { got <- w.ask(p, http.MethodPatch, "/", 10*time.Second) }()
				synctest.Wait() // it waits for the dial
				p.mu.Lock()
				p.conns = append(p.conns, c)
				p.endLocked(to, d, c, nil)
				p.mu.Unlock()
				if err := <-got; !strings.HasPrefix(err, "connecting to server.example") {
					t.Error(err)
				}
				if n := other.Dials(); n != 1 {
					t.Errorf("%d dials", n)
				}
			})
		})
	}
}

// Close ends requests under way; the next one opens a new connection.
func TestClose(t *testing.T) {
	in(t, 0, nil, func(w *world) {
		ended, _ := w.follow()
		w.pool.Close()
		<-ended
		w.want("/")
		w.wantDials(2)
		w.SetDown(true)
		w.pool.Close()
		waiting := make(chan string, 1)
		go func() { waiting <- w.ask(w.pool, http.MethodGet, "/", time.Minute) }()
		time.Sleep(time.Second)
		w.pool.Close()
		if got := <-waiting; got != net.ErrClosed.Error() {
			t.Error(got)
		}
	})
}

// A hostileConn is a network connection whose code misbehaves.
type hostileConn struct {
	net.Conn
	read, write, end func()
}

func (c hostileConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read()
	return n, err
}

func (c hostileConn) Write(b []byte) (int, error) {
	c.write()
	return c.Conn.Write(b)
}

func (c hostileConn) Close() error {
	err := c.Conn.Close()
	c.end()
	return err
}

// The program's code panics, or exits its goroutine, where it dials and on the connection that it made: a request goes
// on with the panic, or fails, and the next one is answered.
func TestHostileDialler(t *testing.T) {
	type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)
	nothing := func() {}
	for _, where := range []struct {
		name  string
		spoil func(transport *http.Transport, dial dialFunc, do func())
		open  bool // the connection is open by then
		exits bool // it may exit its goroutine; net/http would never stop waiting for a read or a write
	}{
		{"dial", func(transport *http.Transport, dial dialFunc, do func()) {
			transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				do()
				return dial(ctx, network, address)
			}
		}, false, true},
		{"proxy", func(transport *http.Transport, _ dialFunc, do func()) {
			transport.Proxy = func(*http.Request) (*url.URL, error) {
				do()
				return nil, nil
			}
		}, false, true},
		{"client certificate", func(transport *http.Transport, _ dialFunc, do func()) {
			transport.TLSClientConfig.GetClientCertificate =
				func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					do()
					return &tls.Certificate{}, nil
				}
		}, false, true},
		{"read of the handshake", func(transport *http.Transport, dial dialFunc, do func()) {
			transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				nc, err := dial(ctx, network, address)
				return hostileConn{nc, do, nothing, nothing}, err
			}
		}, false, false},
		{"read of an answer", func(transport *http.Transport, dial dialFunc, do func()) {
			transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				nc, err := dial(ctx, network, address)
				return hostileConn{nc, do, nothing, nothing}, err
			}
		}, true, false},
		{"write of a request", func(transport *http.Transport, dial dialFunc, do func()) {
			transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				nc, err := dial(ctx, network, address)
				return hostileConn{nc, nothing, do, nothing}, err
			}
		}, true, false},
	} {
		for _, misdeed := range []string{"panics", "exits its goroutine"} {
			if misdeed != "panics" && !where.exits {
				continue
			}
			t.Run(where.name+" "+misdeed, func(t *testing.T) {
				in(t, 10*time.Millisecond, func(s *http.Server) { s.TLSConfig.ClientAuth = tls.RequestClientCert },
					func(w *world) {
						var armed atomic.Bool
						do := func() {
							switch {
							case !armed.Swap(false):
							case misdeed == "panics":
								panic("the program's")
							default:
								runtime.Goexit()
							}
						}
						w.pool = New(func() (*http.Transport, error) {
							transport := &http.Transport{DialContext: w.Dial,
								TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
							where.spoil(transport, w.Dial, do)
							return transport, nil
						}, interval)
						defer w.pool.Close()
						if where.open {
							w.want("/")
						}
						armed.Store(true)
						var got string
						recovered := func() (value any) {
							defer func() { value = recover() }()
							got = w.ask(w.pool, http.MethodPatch, "/", time.Minute)
							return nil
						}()
						switch {
						case misdeed == "panics" && recovered != "the program's":
							t.Errorf("recovered %v, answered %q", recovered, got)
						case misdeed != "panics" && !strings.HasSuffix(got, errExited.Error()):
							t.Errorf("answered %q", got)
						}
						w.want("/")
					})
			})
		}
	}
}

// A dial that no request waits for panics: the next request goes on with that. A connection panics as it is closed,
// which Close does not.
func TestUnheardPanic(t *testing.T) {
	in(t, 10*time.Millisecond, nil, func(w *world) {
		var dials, closed atomic.Int64
		nothing := func() {}
		p := w.over(func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) == 2 {
				panic("the program's")
			}
			nc, err := w.Dial(ctx, network, address)
			return hostileConn{nc, nothing, nothing, func() { closed.Add(1); panic("at the end") }}, err
		})
		if got := w.ask(p, http.MethodPatch, "/", time.Minute); got != "200 OK why" {
			t.Fatal(got)
		}
		w.Kill()
		time.Sleep(5 * interval) // it is found dead, and replaced
		if n := dials.Load(); n != 2 {
			t.Errorf("%d dials", n)
		}
		recovered := func() (value any) {
			defer func() { value = recover() }()
			w.ask(p, http.MethodPatch, "/", time.Minute)
			return nil
		}()
		if recovered != "the program's" {
			t.Errorf("recovered %v", recovered)
		}
		p.Close()
		if closed.Load() == 0 {
			t.Error("no connection was closed")
		}
	})
}

// A connection whose Close blocks holds up neither requests, nor the end of the pool for longer than a second.
func TestCloseBlocks(t *testing.T) {
	http1 := func(p *http.Protocols) { p.SetHTTP1(true) }
	http2 := func(p *http.Protocols) { p.SetHTTP2(true) }
	for _, tt := range []struct {
		name      string
		protocols func(*http.Protocols)
		close     func(*world)
	}{
		{"a spare connection", http2, func(w *world) {
			w.think.Store(int64(time.Second))
			var group sync.WaitGroup
			for range 3 {
				group.Go(func() { w.want("/slow") })
			}
			group.Wait()
			time.Sleep(2 * spareTime)
		}},
		{"a dial that ends after the pool was closed", http2, func(w *world) {
			closed := newEra()
			closed.Go(func() {
				w.pool.open(closed, &dial{}, url.URL{Scheme: "https", Host: "server.example", Path: "/"})
			})
			time.Sleep(time.Second)
		}},
		{"a suspect connection", http2, func(w *world) {
			w.want("/")
			w.Kill()
			time.Sleep(5 * interval)
		}},
		{"a request given up over HTTP/1", http1, func(w *world) {
			w.ask(w.pool, http.MethodGet, "/hang", time.Second)
		}},
		{"all connections", http2, func(w *world) {
			w.want("/")
			w.pool.Close()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in(t, 10*time.Millisecond, func(s *http.Server) {
				s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1}
				s.Protocols = new(http.Protocols)
				tt.protocols(s.Protocols)
			}, func(w *world) {
				w.Cleanup(synctest.Wait)
				hang := make(chan struct{})
				var blocked atomic.Int64
				w.pool = w.over(func(ctx context.Context, network, address string) (net.Conn, error) {
					nc, err := w.Dial(ctx, network, address)
					nothing := func() {}
					return hostileConn{nc, nothing, nothing, func() { blocked.Add(1); <-hang }}, err
				})
				w.Cleanup(func() { close(hang) })
				tt.close(w)
				if got := w.ask(w.pool, http.MethodPatch, "/", time.Second/2); got != "200 OK why" {
					t.Error(got)
				}
				synctest.Wait()
				if blocked.Load() == 0 {
					t.Error("no Close blocked")
				}
				began := time.Now()
				w.pool.Close()
				if took := time.Since(began); took > time.Second {
					t.Errorf("closed after %v", took)
				}
			})
		})
	}
}

// A panickingConn panics in what net/http seldom calls.
type panickingConn struct{ net.Conn }

func (panickingConn) LocalAddr() net.Addr              { panic("address") }
func (panickingConn) RemoteAddr() net.Addr             { panic("address") }
func (panickingConn) SetDeadline(time.Time) error      { panic("deadline") }
func (panickingConn) SetReadDeadline(time.Time) error  { panic("deadline") }
func (panickingConn) SetWriteDeadline(time.Time) error { panic("deadline") }

// No method of a connection panics on a goroutine of net/http.
func TestConnPanics(t *testing.T) {
	in(t, 0, nil, func(w *world) {
		p := w.over(func(ctx context.Context, network, address string) (net.Conn, error) {
			nc, err := w.Dial(ctx, network, address)
			return panickingConn{nc}, err
		})
		if got := w.ask(p, http.MethodPatch, "/", time.Minute); got != "200 OK why" {
			t.Fatal(got)
		}
		l := p.conns[0].link
		for name, call := range map[string]func(){
			"LocalAddr":        func() { _ = l.LocalAddr().String() },
			"RemoteAddr":       func() { _ = l.RemoteAddr().String() },
			"SetDeadline":      func() { l.SetDeadline(time.Now()) },
			"SetReadDeadline":  func() { l.SetReadDeadline(time.Now()) },
			"SetWriteDeadline": func() { l.SetWriteDeadline(time.Now()) },
		} {
			call()
			if p.panicked.Swap(nil) == nil {
				t.Errorf("%s: the panic is lost", name)
			}
		}
	})
}
