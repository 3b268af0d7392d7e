package connpool

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// A conn is a connection of a pool. It finds out whether it lives.
type conn struct {
	*http.ClientConn
	pool   *Pool
	to     url.URL
	link   *link
	opened time.Time

	lastAnswer atomic.Int64 // when a request was last answered, in nanoseconds since opened

	// What follows is protected by the pool's mu.
	watchdog *time.Timer // calls check
	pings    bool        // it is an HTTP/2 connection
	used     time.Time   // when a request was last begun
	silent   bool
	deaf     bool
	doubted  time.Time // when it became suspect
	missAt   time.Time // when a request was given up since the last answer; zero for none
}

// suspectLocked reports whether the connection may be dead. The caller holds the pool's mu.
func (c *conn) suspectLocked() bool { return c.silent || c.deaf }

// pingAfter returns for how long nothing is heard before a ping is sent.
func (p *Pool) pingAfter() time.Duration { return p.interval / 10 * 11 }

// silenceLocked returns for how long nothing is heard over a connection before it is suspect.
func (p *Pool) silenceLocked() time.Duration {
	return p.pingAfter() + max(p.patience(), p.grace)
}

// patience returns for how long an answer to a ping is waited for at least. A busy server takes a quarter of a second
// at times.
func (p *Pool) patience() time.Duration {
	return max(250*time.Millisecond, min(p.interval/2, 5*time.Second))
}

// watchLocked begins to look for silence, where there are pings.
func (c *conn) watchLocked() {
	c.pings = c.Available() > 1
	c.watchdog = time.AfterFunc(c.pool.silenceLocked(), c.check)
	c.link.watchdog.Store(c.watchdog)
}

// check looks whether the connection has been silent for too long. Once something was heard it is called again only
// when a ping is sent: each timer that fires wakes the process.
func (c *conn) check() {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	switch {
	case c.Err() != nil:
		return
	case c.suspectLocked():
		c.closeSuspectLocked()
		return
	case !c.pings:
		return
	}
	limit := c.pool.silenceLocked()
	c.link.checking.Store(false) // before the silence is measured: a ping that is sent from now on calls check
	c.link.alert.Store(true)     // likewise: what is heard from now on calls heard
	silence := c.link.silence()
	if silence >= limit {
		c.silent = true
		c.doubtLocked()
		return
	}
	c.link.alert.Store(false)
	if silence >= c.pool.pingAfter() && c.link.checking.CompareAndSwap(false, true) {
		c.watchdog.Reset(limit - silence)
	}
}

// doubtLocked begins the race of a connection that has just become suspect.
func (c *conn) doubtLocked() {
	c.doubted = time.Now()
	c.link.checking.Store(true) // the watchdog is that of the race now
	c.pool.dialLocked(c.to)
}

// closeSuspectLocked closes a suspect connection once no dial is under way and it had as long to be heard as a dial
// takes.
func (c *conn) closeSuspectLocked() {
	if c.pool.dials[c.to] != nil {
		return // open calls it again
	}
	if left := c.pool.grace - time.Since(c.doubted); left > 0 {
		c.watchdog.Reset(left)
		return
	}
	why := fmt.Errorf("connection to %s lost: no answer to two requests in a row", c.to.Host)
	if c.silent {
		why = fmt.Errorf("connection to %s lost: nothing heard for %v", c.to.Host,
			c.link.silence().Round(time.Millisecond))
	}
	c.pool.era.Go(func() { c.link.fail(why) })
}

// heard is called when something is read of a connection that may be silent.
func (c *conn) heard() {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	c.silent = false
	c.link.alert.Store(false)
	c.trustLocked()
}

// answered records that a request was answered.
func (c *conn) answered() {
	c.lastAnswer.Store(int64(time.Since(c.opened)))
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	c.missAt = time.Time{}
	if c.deaf {
		c.deaf = false
		c.trustLocked()
	}
}

// missed records that a request that was begun at that time had no answer in time.
func (c *conn) missed(began time.Time) {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	now := time.Now()
	switch {
	case c.Err() != nil || c.deaf:
	case c.lastAnswer.Load() > int64(began.Sub(c.opened)): // others are answered: this request is slow
	case now.Sub(began) < c.pool.grace: // it had less than the time of a round trip
	case c.missAt.IsZero():
		c.missAt = now
	case began.Before(c.missAt): // made beside the first
	default:
		c.deaf = true
		if !c.silent {
			c.doubtLocked()
		}
	}
}

// trustLocked ends the race if the connection is not suspect any more. The requests that wait for the dial can use it.
func (c *conn) trustLocked() {
	if c.suspectLocked() || c.doubted.IsZero() {
		return
	}
	c.doubted = time.Time{}
	c.watchdog.Reset(c.pool.silenceLocked())
	if d := c.pool.dials[c.to]; d != nil {
		c.pool.endLocked(c.to, d, nil, nil)
	}
}

// close closes the connection, and waits for that, which may take as long as the program's code likes. The requests on
// it fail.
func (c *conn) close() {
	if c.watchdog != nil {
		c.watchdog.Stop()
	}
	c.Close()
	<-c.link.closed
}

// closeUnauthorized closes a connection over which the server did not know us: one that is opened now has the client
// certificate of now. A burst of such answers closes one, and a server that refuses us for another reason does not make
// us dial all the time.
func (p *Pool) closeUnauthorized(c *conn, resp *http.Response) {
	if time.Since(c.opened) < p.interval {
		return
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16)) // it says why, and ends with the connection
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if err == nil {
		c.Close()
	}
}

// A link is the network connection below a conn. It knows when it was last heard. A panic in the program's code below
// it is an error.
type link struct {
	net.Conn
	pool    *Pool
	began   time.Time
	last    atomic.Int64          // when something was last read, in nanoseconds since began
	alert   atomic.Bool           // whether heard is called for what is read
	heard   func()                // called with no lock held
	failure atomic.Pointer[error] // why the connection was given up
	closing sync.Once
	closed  chan struct{} // closed when the connection is

	watchdog atomic.Pointer[time.Timer] // calls the conn's check; nil before it is in the pool
	checking atomic.Bool                // check is scheduled
}

func (l *link) open(nc net.Conn, heard func()) { l.Conn, l.began, l.heard = nc, time.Now(), heard }

// Write schedules check when b is a ping, or a request that comes as late as one. It takes no lock, because a
// connection may be closed, which writes, while the pool's mu is held.
func (l *link) Write(b []byte) (n int, err error) {
	defer l.pool.recoverInto(&err)
	if w := l.watchdog.Load(); w != nil && l.silence() >= l.pool.pingAfter() && l.checking.CompareAndSwap(false, true) {
		w.Reset(l.pool.patience())
	}
	return l.Conn.Write(b)
}

func (l *link) Read(b []byte) (n int, err error) {
	defer l.pool.recoverInto(&err)
	n, err = l.Conn.Read(b)
	if n > 0 {
		l.last.Store(int64(time.Since(l.began)))
		if l.alert.Load() {
			l.heard()
		}
	}
	if why := l.failure.Load(); err != nil && why != nil {
		err = *why
	}
	return n, err
}

// Close begins to close the connection. It does not wait, because net/http holds locks meanwhile that the pool waits
// for.
func (l *link) Close() error {
	l.closing.Do(func() {
		go func() {
			defer close(l.closed)
			var err error
			defer l.pool.recoverInto(&err)
			l.Conn.Close()
		}()
	})
	return nil
}

func (l *link) SetDeadline(t time.Time) (err error) {
	defer l.pool.recoverInto(&err)
	return l.Conn.SetDeadline(t)
}

func (l *link) SetReadDeadline(t time.Time) (err error) {
	defer l.pool.recoverInto(&err)
	return l.Conn.SetReadDeadline(t)
}

func (l *link) SetWriteDeadline(t time.Time) (err error) {
	defer l.pool.recoverInto(&err)
	return l.Conn.SetWriteDeadline(t)
}

func (l *link) LocalAddr() net.Addr { return l.address(func() net.Addr { return l.Conn.LocalAddr() }) }
func (l *link) RemoteAddr() net.Addr {
	return l.address(func() net.Addr { return l.Conn.RemoteAddr() })
}

// address returns what get returns, or an address that says nothing.
func (l *link) address(get func() net.Addr) (address net.Addr) {
	address = &net.TCPAddr{}
	var err error
	defer l.pool.recoverInto(&err)
	return get()
}

// silence returns for how long nothing has been read.
func (l *link) silence() time.Duration { return time.Since(l.began) - time.Duration(l.last.Load()) }

// fail ends the connection, and waits for that. Its reads fail with why.
func (l *link) fail(why error) {
	l.failure.Store(&why)
	l.Close()
	<-l.closed
}
