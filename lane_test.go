package leasehold

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/transport"

	"github.com/leasehold-go/leasehold/leasetest"
)

// Campaigns share a lane where theirs would be alike, and only there.
func TestLaneShared(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
	with := func(change func(*rest.Config)) *rest.Config {
		c := &rest.Config{Host: "https://203.0.113.1", BearerToken: "secret"}
		if change != nil {
			change(c)
		}
		return c
	}
	// Closures of one code, which differ only by what they have in them.
	var wraps []transport.WrapperFunc
	for _, user := range []string{"a", "b"} {
		wraps = append(wraps, func(next http.RoundTripper) http.RoundTripper { return transport.NewUserAgentRoundTripper(user, next) })
	}
	one, dialing := with(nil), with(func(c *rest.Config) { c.Dial = dial })
	changed, wrapping := with(nil), with(func(c *rest.Config) { c.WrapTransport = wraps[0] })
	running := with(func(c *rest.Config) {
		c.ExecProvider = &clientcmdapi.ExecConfig{Command: "true", Args: []string{"a"}, APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: "Never"}
	})
	grouped := with(func(c *rest.Config) {
		c.Impersonate = rest.ImpersonationConfig{UserName: "a", Groups: []string{"a"}, Extra: map[string][]string{"a": {"a"}}}
	})
	extra := with(func(c *rest.Config) {
		c.Impersonate = rest.ImpersonationConfig{UserName: "a", Extra: map[string][]string{"a": {"a"}}}
	})
	defer func() {
		if n := len(lanes.inUse); n != 0 {
			t.Errorf("%d lanes are left", n)
		}
	}()
	for _, tt := range []struct {
		name     string
		a, b     *rest.Config
		interval time.Duration
		before   func()
		want     bool
	}{
		{"the same", one, one, I, nil, true},
		{"equal", with(nil), with(nil), I, nil, true},
		{"limits, which are not used", with(nil), with(func(c *rest.Config) { c.QPS, c.Timeout = 3, time.Hour }), I, nil, true},
		{"another interval", one, one, 2 * I, nil, false},
		{"another server", one, with(func(c *rest.Config) { c.Host = "https://203.0.113.2" }), I, nil, false},
		{"another user", one, with(func(c *rest.Config) { c.Impersonate.UserName = "b" }), I, nil, false},
		{"another token", one, with(func(c *rest.Config) { c.BearerToken = "b" }), I, nil, false},
		{"the same, with a function", dialing, dialing, I, nil, true},
		{"the same function", dialing, with(func(c *rest.Config) { c.Dial = dial }), I, nil, true},
		{"another function", wrapping, with(func(c *rest.Config) { c.WrapTransport = wraps[1] }), I, nil, false},
		{"the same, with another function meanwhile", wrapping, wrapping, I, func() { wrapping.WrapTransport = wraps[1] }, false},
		{"another transport", with(func(c *rest.Config) { c.Transport = &http.Transport{} }), with(func(c *rest.Config) { c.Transport = &http.Transport{} }), I, nil, false},
		{"the same, with another command meanwhile", running, running, I, func() { running.ExecProvider.Args[0] = "b" }, false},
		{"the same, with another group meanwhile", grouped, grouped, I, func() { grouped.Impersonate.Groups[0] = "b" }, false},
		{"the same, with another extra meanwhile", extra, extra, I, func() { extra.Impersonate.Extra["a"][0] = "b" }, false},
		{"the same, changed meanwhile", changed, changed, I, func() { changed.BearerToken = "b" }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			enter := func(config *rest.Config, interval time.Duration) (*lane, *campaign) {
				l, err := enterLane(nil, config, interval)
				if err != nil {
					t.Fatal(err)
				}
				return l, &campaign{}
			}
			a, ca := enter(tt.a, I)
			defer a.leave(ca)
			if tt.before != nil {
				tt.before()
			}
			b, cb := enter(tt.b, tt.interval)
			defer b.leave(cb)
			if (a == b) != tt.want {
				t.Errorf("shared: %v", a == b)
			}
		})
	}
	client := leasetest.NewServer().Client("a")
	var entered []*lane
	for _, interval := range []time.Duration{I, 2 * I, I} {
		l, err := enterLane(client, nil, interval)
		if err != nil {
			t.Fatal(err)
		}
		defer l.leave(&campaign{})
		entered = append(entered, l)
	}
	if entered[0] == entered[1] || entered[0] != entered[2] {
		t.Error("a client is shared where the interval is another, or not where it is the same")
	}
}

// A client that cannot be compared is shared with nobody.
func TestLaneOfOddClient(t *testing.T) {
	type odd struct {
		*leasetest.Client
		_ []string
	}
	client := odd{Client: leasetest.NewServer().Client("a")}
	a, _ := enterLane(client, nil, I)
	b, _ := enterLane(client, nil, I)
	if a == b {
		t.Error("shared")
	}
	a.leave(&campaign{})
	b.leave(&campaign{})
}

// A poolServer counts connections and answers as it is told.
type poolServer struct {
	*httptest.Server
	mux         *http.ServeMux
	conns, open atomic.Int64
	status      atomic.Int64
	hold        chan struct{} // requests wait until it is closed
}

func newPoolServer(t *testing.T, http2 bool, changes ...func(*poolServer)) *poolServer {
	s := &poolServer{hold: make(chan struct{}), mux: http.NewServeMux()}
	s.status.Store(http.StatusOK)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		<-s.hold
		w.WriteHeader(int(s.status.Load()))
		io.WriteString(w, "why")
	})
	s.Server = httptest.NewUnstartedServer(s.mux)
	s.EnableHTTP2 = http2
	for _, change := range changes {
		change(s)
	}
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.conns.Add(1)
			s.open.Add(1)
		case http.StateClosed:
			s.open.Add(-1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *poolServer) lane(t *testing.T, interval time.Duration) *lane {
	config := &rest.Config{Host: s.URL}
	config.Insecure = true
	l, err := enterLane(nil, config, interval)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.leave(&campaign{})
		for end := time.Now().Add(10 * time.Second); s.open.Load() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%d connections are left", s.open.Load())
				return
			}
		}
	})
	return l
}

// ask makes n requests at once, and returns what became of each.
func (s *poolServer) ask(t *testing.T, l *lane, n int) (answers []string) {
	var mu sync.Mutex
	var group sync.WaitGroup
	for range n {
		group.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
			answer := ""
			resp, err := l.pool.RoundTrip(req)
			if err == nil {
				var body []byte
				body, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				answer = resp.Status + " " + string(body)
			}
			if err != nil {
				answer = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			answers = append(answers, answer)
		})
	}
	group.Wait()
	return answers
}

// Many requests that begin at once share a few connections.
func TestPoolFewConnections(t *testing.T) {
	s := newPoolServer(t, true)
	l := s.lane(t, time.Minute)
	time.AfterFunc(500*time.Millisecond, func() { close(s.hold) })
	for _, answer := range s.ask(t, l, 400) {
		if answer != "200 OK why" {
			t.Fatal(answer)
		}
	}
	if n := s.conns.Load(); n > 5 {
		t.Errorf("%d connections for 400 requests at once", n)
	}
	before := s.conns.Load()
	s.ask(t, l, 50)
	if n := s.conns.Load() - before; n != 0 {
		t.Errorf("%d more for 50", n)
	}
}

// Where there is no HTTP/2, each request takes a connection while it lasts.
func TestPoolHTTP1(t *testing.T) {
	s := newPoolServer(t, false)
	close(s.hold)
	l := s.lane(t, time.Minute)
	for range 3 {
		for _, answer := range s.ask(t, l, 1) {
			if answer != "200 OK why" {
				t.Fatal(answer)
			}
		}
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections for one request after the other", n)
	}
	for _, answer := range s.ask(t, l, 20) {
		if answer != "200 OK why" {
			t.Fatal(answer)
		}
	}
}

// A 401 replaces the connection, but not one that is new itself; its reason is not lost.
func TestPoolUnauthorized(t *testing.T) {
	s := newPoolServer(t, true)
	close(s.hold)
	l := s.lane(t, 100*time.Millisecond)
	s.ask(t, l, 1)
	time.Sleep(100 * time.Millisecond)
	s.status.Store(http.StatusUnauthorized)
	if got := s.ask(t, l, 1)[0]; got != "401 Unauthorized why" {
		t.Error(got)
	}
	s.ask(t, l, 1)
	if n := s.conns.Load(); n != 2 {
		t.Errorf("%d connections, want a new one after the first refusal", n)
	}
	l.pool.mu.Lock()
	for _, c := range l.pool.conns {
		c.opened = time.Now().Add(time.Hour) // it stays young
	}
	l.pool.mu.Unlock()
	s.ask(t, l, 10)
	if n := s.conns.Load(); n != 2 {
		t.Errorf("%d connections after more refusals", n)
	}
}

// Connections that are not needed any more are closed when others are used.
func TestPoolSpare(t *testing.T) {
	s := newPoolServer(t, true)
	l := s.lane(t, time.Minute)
	time.AfterFunc(500*time.Millisecond, func() { close(s.hold) })
	s.ask(t, l, 400)
	l.pool.mu.Lock()
	for _, c := range l.pool.conns {
		c.used = c.used.Add(-2 * spareTime)
	}
	l.pool.mu.Unlock()
	s.ask(t, l, 1)
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	if n := len(l.pool.conns); n != 1 {
		t.Errorf("%d connections are left", n)
	}
}
