package connpool

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// dialTimeout bounds one dial. It is long, because others begin beside it.
	dialTimeout = 10 * time.Second
	// redialAfter is when another dial begins beside one that has not ended. What a network lost must not keep requests
	// waiting once the server can be reached.
	redialAfter = 650 * time.Millisecond
	// spareTime is for how long a connection may lie idle that another one makes superfluous.
	spareTime = time.Minute
	// mostTries is how often a request is made that no server processes.
	mostTries = 6
)

// A Pool is an http.RoundTripper over connections of its own.
type Pool struct {
	newTransport func() (*http.Transport, error)
	interval     time.Duration
	panicked     atomic.Pointer[panicError] // the program's code did, and no request has gone on with that

	mu    sync.Mutex // protects following
	conns []*conn
	dials map[url.URL]*dial // those that requests wait for, by where they lead
	era   *era              // until Close
	grace time.Duration     // how long the last dial took, at most the interval
}

// An era is what a pool has under way between one Close and the next.
type era struct {
	sync.WaitGroup
	ctx    context.Context
	cancel context.CancelFunc
}

func newEra() *era {
	ctx, cancel := context.WithCancel(context.Background())
	return &era{ctx: ctx, cancel: cancel}
}

// A dial ends with a connection in the pool, or an error.
type dial struct {
	done chan struct{}
	conn *conn // readable once done is closed, as err is; nil where the dial need not be waited for any more
	err  error
}

// New returns a pool of connections over each of which something is usually heard once per interval. newTransport is
// called for each connection. The transports need a DialContext; they carry no requests themselves.
func New(newTransport func() (*http.Transport, error), interval time.Duration) *Pool {
	return &Pool{newTransport: newTransport, interval: interval, dials: map[url.URL]*dial{}, era: newEra()}
}

// RoundTrip makes a request. It makes it again where no server has processed it, or its connection ended and it is a
// read. It goes on with a panic of the program's code that was recovered on one of the pool's goroutines.
func (p *Pool) RoundTrip(req *http.Request) (*http.Response, error) {
	for try := 1; ; try++ {
		p.repanic()
		c, err := p.get(req)
		if err != nil {
			p.repanic()
			if req.Body != nil {
				req.Body.Close()
			}
			return nil, err
		}
		began := time.Now()
		resp, err := c.RoundTrip(req)
		if err == nil {
			c.answered()
			if resp.StatusCode == http.StatusUnauthorized {
				p.closeUnauthorized(c, resp)
			}
			return resp, nil
		}
		p.repanic()
		if errors.Is(context.Cause(req.Context()), context.DeadlineExceeded) {
			c.missed(began)
		}
		again, ok := repeat(req, err)
		if try == mostTries || !ok {
			return nil, err
		}
		req = again
	}
}

// repeat returns a request like req, which failed with err, if it may be made again. A write whose connection ended may
// have taken effect, which its caller has to know.
func repeat(req *http.Request, err error) (*http.Request, bool) {
	var stream streamError
	refused := errors.As(err, &stream) && stream.Code == refusedStream
	if req.Context().Err() != nil || !refused && req.Method != http.MethodGet {
		return nil, false
	}
	if req.Body == nil || req.Body == http.NoBody {
		return req, true
	}
	if req.GetBody == nil {
		return nil, false
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, false
	}
	again := *req
	again.Body = body
	return &again, true
}

// refusedStream is REFUSED_STREAM: the server has not processed the request (RFC 9113, 8.7).
const refusedStream = 7

// A streamError is net/http's of that name, as far as errors.As is concerned.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (streamError) Error() string { return "stream error" }

// get returns a connection with a place for req on it.
func (p *Pool) get(req *http.Request) (*conn, error) {
	for {
		c, d := p.reserve(req.URL)
		if c != nil {
			return c, nil
		}
		select {
		case <-d.done:
			if d.err != nil {
				return nil, d.err
			}
			if d.conn != nil {
				if err := p.checkNew(d.conn); err != nil {
					return nil, fmt.Errorf("connecting to %s: %w", req.URL.Host, err)
				}
			}
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
	}
}

// checkNew returns why a connection that was just dialled takes no requests, so that a request does not dial again and
// again without a pause.
func (p *Pool) checkNew(c *conn) error {
	p.mu.Lock() // no place is reserved meanwhile
	defer p.mu.Unlock()
	if err := c.Err(); err != nil {
		return fmt.Errorf("closed at once: %w", err)
	}
	if c.InFlight() == 0 && c.Available() == 0 {
		p.era.Go(c.close)
		return errors.New("the server takes no requests over a new connection")
	}
	return nil
}

// reserve returns a connection with a place for one request on it or, if there is none, the dial to wait for.
func (p *Pool) reserve(u *url.URL) (*conn, *dial) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.tidyLocked(now)
	to := url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"}
	for _, c := range p.conns {
		if c.to == to && !c.suspectLocked() && c.Reserve() == nil {
			c.used = now
			return c, nil
		}
	}
	return nil, p.dialLocked(to)
}

// tidyLocked forgets the connections that have ended, and closes those that are spare.
func (p *Pool) tidyLocked(now time.Time) {
	idle := 0
	p.conns = slices.DeleteFunc(p.conns, func(c *conn) bool {
		if c.Err() != nil {
			c.watchdog.Stop()
			return true
		}
		if c.InFlight() > 0 {
			return false
		}
		if idle++; idle == 1 || now.Sub(c.used) <= spareTime {
			return false
		}
		p.era.Go(c.close) // it is the program's code, which may block
		return true
	})
}

// dialLocked returns the dial under way to a server. It begins one if there is none.
func (p *Pool) dialLocked(to url.URL) *dial {
	d := p.dials[to]
	if d == nil {
		d = &dial{done: make(chan struct{})}
		p.dials[to] = d
		e := p.era
		e.Go(func() { p.open(e, d, to) })
	}
	return d
}

// endLocked tells the requests that wait for d that it has ended, or that they need not wait for it.
func (p *Pool) endLocked(to url.URL, d *dial, c *conn, err error) {
	if p.dials[to] == d {
		delete(p.dials, to)
		d.conn, d.err = c, err
		close(d.done)
	}
}

// open ends the dial d by a connection in the pool, or an error. Then the races of suspect connections end.
func (p *Pool) open(e *era, d *dial, to url.URL) {
	c, took, err := p.connect(e, to)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.era != e { // the pool was closed meanwhile
		if err == nil {
			e.Go(c.close)
		}
		return
	}
	if err == nil {
		p.grace = min(took, p.interval)
		p.conns = append(p.conns, c)
		c.watchLocked()
	}
	p.endLocked(to, d, c, err)
	for _, c := range p.conns {
		if c.to == to && c.suspectLocked() {
			c.closeSuspectLocked()
		}
	}
}

// connect returns the first connection that it gets, and how long that took. Until it has one it begins more dials.
func (p *Pool) connect(e *era, to url.URL) (*conn, time.Duration, error) {
	ctx, cancel := context.WithTimeout(e.ctx, dialTimeout)
	defer cancel()
	type result struct {
		conn *conn
		took time.Duration
		err  error
	}
	results := make(chan result)
	again := time.NewTicker(redialAfter)
	defer again.Stop()
	for {
		e.Go(func() {
			began := time.Now()
			c, err := call(p, func() (*conn, error) { return p.dialOne(ctx, to) })
			select {
			case results <- result{c, time.Since(began), err}:
			case <-ctx.Done():
				if err == nil {
					c.close()
				}
			}
		})
		select {
		case r := <-results:
			return r.conn, r.took, r.err
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("connecting to %s: %w", to.Host, ctx.Err())
		case <-again.C:
		}
	}
}

// dialOne makes a connection.
func (p *Pool) dialOne(ctx context.Context, to url.URL) (*conn, error) {
	transport, err := p.newTransport()
	if err != nil {
		return nil, err
	}
	if proxy := transport.Proxy; proxy != nil {
		transport.Proxy = func(req *http.Request) (*url.URL, error) {
			req.URL = &to // NewClientConn leaves the port out, and an IPv6 address without brackets
			return proxy(req)
		}
	}
	if config := transport.TLSClientConfig; config != nil && config.GetClientCertificate != nil {
		get := config.GetClientCertificate // net/http calls it on a goroutine of its own
		config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return call(p, func() (*tls.Certificate, error) { return get(info) })
		}
	}
	c := &conn{pool: p, to: to, link: &link{pool: p, closed: make(chan struct{})}}
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		nc, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c.link.open(nc, c.heard)
		return c.link, nil
	}
	// The pool itself decides what it means that a ping is not answered.
	transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: p.pingAfter(), PingTimeout: 24 * time.Hour}
	c.ClientConn, err = transport.NewClientConn(ctx, to.Scheme, address(to))
	if err != nil {
		return nil, err
	}
	c.opened = time.Now()
	c.used = c.opened
	return c, nil
}

// address returns where u is, with its port.
func address(u url.URL) string {
	if port := u.Port(); port != "" {
		return net.JoinHostPort(u.Hostname(), port)
	}
	return net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
}

// Close closes the connections and ends the dials under way. The next request opens a new connection. Close waits at
// most a second for dials that do not heed their context, and for connections that are slow to close.
func (p *Pool) Close() {
	p.mu.Lock()
	conns, e := p.conns, p.era
	p.conns, p.era = nil, newEra()
	for to, d := range p.dials {
		p.endLocked(to, d, nil, net.ErrClosed)
	}
	p.mu.Unlock()
	e.cancel()
	for _, c := range conns {
		e.Go(c.close)
	}
	ended := make(chan struct{})
	go func() {
		e.Wait()
		close(ended)
	}()
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
}
