package leasehold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// A pool is the connections of a lane. A request goes over the first that has room for it; when none
// has, one more is opened, by one dial for all who wait. net/http's own pool dials once for each
// request that finds no room: a thousand leases would begin with a thousand TLS handshakes.
//
// Over HTTP/2 an API server takes a hundred requests or so at once on one connection, watches
// included, so that there are few connections, and a renewal never waits for a watch to end.
type pool struct {
	newTransport func() (*http.Transport, error) // makes a connection; carries no request itself
	timeout      time.Duration                   // for one dial, which goes on when a request has given up
	young        time.Duration                   // a connection is not replaced for a 401 before

	mu     sync.Mutex // protects following
	conns  []*pooledConn
	dialed *dial  // under way; nil when there is none
	dials  *dials // until the pool hangs up
}

// dials are what a pool has under way.
type dials struct {
	sync.WaitGroup
	ctx    context.Context
	cancel context.CancelFunc
}

func newDials() *dials {
	ctx, cancel := context.WithCancel(context.Background())
	return &dials{ctx: ctx, cancel: cancel}
}

type pooledConn struct {
	*http.ClientConn
	to     string
	opened time.Time
	used   time.Time // when a request was last begun; protected by the pool's mu
	silent bool      // a request had no answer in time; protected by the pool's mu
}

// spareTime is for how long a connection may lie idle that another one makes superfluous.
const spareTime = time.Minute

type dial struct {
	to   string
	done chan struct{}
	err  error // readable once done is closed
}

func newPool(newTransport func() (*http.Transport, error), interval time.Duration) *pool {
	return &pool{newTransport: newTransport, timeout: 2 * interval, young: interval, dials: newDials()}
}

func (p *pool) RoundTrip(req *http.Request) (*http.Response, error) {
	for try := 1; ; try++ {
		conn, err := p.get(req)
		if err != nil {
			if req.Body != nil {
				req.Body.Close()
			}
			return nil, err
		}
		resp, err := conn.RoundTrip(req)
		if err == nil {
			if resp.StatusCode == http.StatusUnauthorized {
				p.replace(conn, resp)
			}
			return resp, nil
		}
		if errors.Is(context.Cause(req.Context()), context.DeadlineExceeded) {
			p.avoid(conn)
		}
		again, ok := repeat(req, err)
		if try == mostTries || !ok {
			return nil, err
		}
		req = again
	}
}

// mostTries is how often a request is made that no server processes.
const mostTries = 6

// repeat returns a request like req, which failed with err, if it may be made again, because the server
// did not process it for sure. What a server that shuts down or a load balancer refuses is no outage.
func repeat(req *http.Request, err error) (*http.Request, bool) {
	if !unprocessed(err) {
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

// unprocessed tells whether err means that the server did not process a request (RFC 9113, 8.7). net/http's
// own pool repeats these too, and has no names for them.
func unprocessed(err error) bool {
	var stream streamError
	return errors.As(err, &stream) && stream.Code == refusedStream || err.Error() == errUnusable || err.Error() == errGoAway
}

const (
	refusedStream = 7                                                             // REFUSED_STREAM
	errUnusable   = "http2: client conn not usable"                               // nothing was sent
	errGoAway     = "http2: Transport received Server's graceful shutdown GOAWAY" // which names an earlier request as the last one processed
)

// A streamError is net/http's of that name, as far as errors.As is concerned.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (streamError) Error() string { return "stream error" }

// get returns a connection with a place for req on it.
func (p *pool) get(req *http.Request) (*pooledConn, error) {
	for {
		conn, d := p.reserve(req.URL)
		if conn != nil {
			return conn, nil
		}
		select {
		case <-d.done:
			if d.err != nil {
				return nil, d.err
			}
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
	}
}

// reserve returns a connection with a place for one request on it or, if there is none, the dial to
// wait for.
func (p *pool) reserve(u *url.URL) (*pooledConn, *dial) {
	to := u.Scheme + " " + u.Host
	p.mu.Lock()
	defer p.mu.Unlock()
	now, idle := time.Now(), 0
	p.conns = slices.DeleteFunc(p.conns, func(c *pooledConn) bool {
		if c.Err() != nil {
			return true
		}
		if c.InFlight() > 0 {
			return false
		}
		spare := c.silent
		if !spare {
			idle++
			spare = idle > 1 && now.Sub(c.used) > spareTime
		}
		if spare {
			c.Close()
		}
		return spare
	})
	for _, c := range p.conns {
		if c.to == to && !c.silent && c.Reserve() == nil {
			c.used = now
			return c, nil
		}
	}
	if d := p.dialed; d != nil && d.to == to {
		return nil, d
	}
	d := &dial{to: to, done: make(chan struct{})}
	p.dialed = d
	all := p.dials
	all.Go(func() { p.open(all, d, &url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"}) })
	return nil, d
}

// open ends the dial d: by a connection that is in the pool, or an error.
func (p *pool) open(all *dials, d *dial, u *url.URL) {
	defer close(d.done)
	conn, err := p.connect(all, u)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dialed == d {
		p.dialed = nil
	}
	if err == nil && p.dials != all { // the pool hung up meanwhile
		conn.Close()
		err = net.ErrClosed
	}
	if err != nil {
		d.err = err
		return
	}
	now := time.Now()
	p.conns = append(p.conns, &pooledConn{ClientConn: conn, to: d.to, opened: now, used: now})
}

// connect returns the first connection that it is given. As long as it has none, it asks for another
// one, as a read is sent again: what a network lost, or a Dial that does not heed its context, must not
// keep everybody waiting once the API server answers (G8).
func (p *pool) connect(all *dials, u *url.URL) (*http.ClientConn, error) {
	transport, err := p.newTransport()
	if err != nil {
		return nil, err
	}
	proxy := transport.Proxy
	transport.Proxy = func(req *http.Request) (*url.URL, error) {
		req.URL = u // NewClientConn leaves the port out, and an IPv6 address without brackets
		return proxy(req)
	}
	ctx, cancel := context.WithTimeout(all.ctx, p.timeout)
	defer cancel()
	type result struct {
		conn *http.ClientConn
		err  error
	}
	results := make(chan result)
	again := time.NewTicker(longestDelay)
	defer again.Stop()
	for {
		all.Go(func() {
			conn, err := transport.NewClientConn(ctx, u.Scheme, address(u))
			select {
			case results <- result{conn, err}:
			case <-ctx.Done():
				if err == nil {
					conn.Close()
				}
			}
		})
		select {
		case r := <-results:
			return r.conn, r.err
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting to %s: %w", u.Host, ctx.Err())
		case <-again.C:
		}
	}
}

// address returns where u is, with its port.
func address(u *url.URL) string {
	if port := u.Port(); port != "" {
		return net.JoinHostPort(u.Hostname(), port)
	}
	return net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
}

// replace closes a connection over which the server did not know us: one that is opened now has the
// client certificate of now. A burst of such answers replaces it once, and a server that refuses
// us for another reason does not make us dial all the time.
func (p *pool) replace(c *pooledConn, resp *http.Response) {
	if time.Since(c.opened) < p.young {
		return
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16)) // it says why, and ends with the connection
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if err == nil {
		c.Close()
	}
}

// avoid has later requests made over another connection than c, which is closed when none is left on it.
// A ping would not tell that c is dead as long as a watch brings news over it: it may be dead in one
// direction alone.
func (p *pool) avoid(c *pooledConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.silent = true
}

// hangUp closes the connections and ends the dials under way; the next request opens a new one. A Dial
// of the caller's that does not heed its context is not waited for much longer.
func (p *pool) hangUp() {
	p.mu.Lock()
	conns, all := p.conns, p.dials
	p.conns, p.dialed, p.dials = nil, nil, newDials()
	p.mu.Unlock()
	all.cancel()
	for _, c := range conns {
		c.Close()
	}
	ended := make(chan struct{})
	go func() {
		all.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
}
