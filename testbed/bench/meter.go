package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
)

// A meter counts what one candidate sends and receives, and is where its network fails.
type meter struct {
	reads, writes, watches atomic.Int64  // requests, by what they are
	sent, received         atomic.Int64  // bytes of its TCP connections, TLS included
	dials                  atomic.Int64  // TCP connections opened
	watching               chan struct{} // closed once a watch is open
	open                   sync.Once
	dead                   atomic.Bool

	mu    sync.Mutex // protects what follows
	conns map[*meteredConn]struct{}
	hole  chan struct{} // closed when new connections work again; nil while they do
}

func newMeter() *meter {
	return &meter{watching: make(chan struct{}), conns: map[*meteredConn]struct{}{}}
}

// attach returns cfg with the meter in it. Its dial function is a candidate's own, so that client-go, too, opens a
// connection for it.
func (m *meter) attach(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.Dial = m.dial
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) { return m.roundTrip(next, req) })
	})
	return cfg
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

var errDead = errors.New("this process is dead")

func (m *meter) roundTrip(next http.RoundTripper, req *http.Request) (*http.Response, error) {
	if m.dead.Load() {
		return nil, errDead
	}
	kind := m.kind(req)
	kind.Add(1)
	resp, err := next.RoundTrip(req)
	if kind == &m.watches && err == nil && resp.StatusCode == http.StatusOK {
		m.open.Do(func() { close(m.watching) })
	}
	return resp, err
}

// kind returns the counter of requests like req.
func (m *meter) kind(req *http.Request) *atomic.Int64 {
	switch watch := req.URL.Query().Get("watch"); {
	case req.Method != http.MethodGet:
		return &m.writes
	case watch == "true" || watch == "1":
		return &m.watches
	default:
		return &m.reads
	}
}

func (m *meter) requests() int64 { return m.reads.Load() + m.writes.Load() + m.watches.Load() }
func (m *meter) bytes() int64    { return m.sent.Load() + m.received.Load() }

func (m *meter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	m.mu.Lock()
	hole := m.hole
	m.mu.Unlock()
	if hole != nil {
		select {
		case <-hole:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	conn, err := (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext(ctx, network,
		address)
	if err != nil {
		return nil, err
	}
	m.dials.Add(1)
	c := &meteredConn{Conn: conn, meter: m, closed: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns[c] = struct{}{}
	return c, nil
}

// each calls f for each connection that is open.
func (m *meter) each(f func(*meteredConn)) {
	m.mu.Lock()
	conns := make([]*meteredConn, 0, len(m.conns))
	for c := range m.conns {
		conns = append(conns, c)
	}
	m.mu.Unlock()
	for _, c := range conns {
		f(c)
	}
}

// cut makes all connections lead nowhere, those that are opened until heal as well.
func (m *meter) cut() {
	m.mu.Lock()
	if m.hole == nil {
		m.hole = make(chan struct{})
	}
	m.mu.Unlock()
	m.swallow()
}

// heal makes new connections work again.
func (m *meter) heal() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hole != nil {
		close(m.hole)
		m.hole = nil
	}
}

// swallow makes the connections of now lead nowhere, without a sign of it. New ones work.
func (m *meter) swallow() { m.each(func(c *meteredConn) { c.gone.Store(true) }) }

// hangUp closes the connections of now.
func (m *meter) hangUp() { m.each(func(c *meteredConn) { c.Close() }) }

// die ends all communication for good.
func (m *meter) die() {
	m.dead.Store(true)
	m.hangUp()
}

// A meteredConn counts bytes until it is swallowed: from then on it takes what is written, and brings nothing.
type meteredConn struct {
	net.Conn
	meter  *meter
	gone   atomic.Bool
	once   sync.Once
	closed chan struct{}
}

func (c *meteredConn) Write(p []byte) (int, error) {
	if c.gone.Load() {
		return len(p), nil
	}
	n, err := c.Conn.Write(p)
	c.meter.sent.Add(int64(n))
	return n, err
}

func (c *meteredConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.gone.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	c.meter.received.Add(int64(n))
	return n, err
}

func (c *meteredConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	c.meter.mu.Lock()
	delete(c.meter.conns, c)
	c.meter.mu.Unlock()
	return c.Conn.Close()
}

// cpuTime returns how long a process has run on a CPU, in steps of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(data))
}

// parseStat reads fields 14 and 15 of proc_pid_stat(5), which count hundredths of a second. The second field is a name
// in parentheses, which may contain anything.
func parseStat(stat string) (time.Duration, error) {
	_, rest, found := cutLast(stat, ")")
	fields := strings.Fields(rest)
	if !found || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/PID/stat says %q", stat)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// residentBytes returns how much memory of a process is resident, as VmRSS in proc_pid_status(5).
func residentBytes(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if size, found := strings.CutPrefix(line, "VmRSS:"); found {
			kilobytes, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(size), "kB")),
				10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status says nothing of VmRSS", pid)
}

// ownCPUTime returns how long this process has run on a CPU.
func ownCPUTime() (time.Duration, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, err
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

// load returns the machine's load averages, "" if they are not to be had.
func load() string {
	data, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(data))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
