// Package proxy does to TCP connections what networks do to them.
//
// Each direction has a rule of its own, so that requests can arrive while replies do not. What is held arrives once it
// is let go, as it does when a network heals and TCP sends again what was lost. What is dropped never arrives: the
// connection leads nowhere from then on, and neither end is told, until one of them gives up.
package proxy

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leasehold-go/leasehold/testbed/internal/loopback"
)

// A Rule is what happens to the bytes of one direction. The zero Rule passes them on.
type Rule struct {
	Delay, Jitter time.Duration // they arrive later, by Delay and up to Jitter more, in order
	Hold          bool          // they wait until this rule is replaced
	Drop          bool          // they are lost, and whatever follows them on the same connection
}

// A direction is an index of rules.
const (
	up   = iota // from the client to the server
	down        // from the server to the client
)

// A Proxy passes connections on to a server. Its methods are safe for concurrent use.
type Proxy struct {
	Addr   string // where it listens
	target string

	ctx    context.Context // ends with the proxy
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil while connections are refused
	rules    [2]Rule
	changed  chan struct{} // closed when rules change
	conns    map[*conn]struct{}
}

// New starts a proxy for a server's address, on a port of 127.0.0.1.
func New(target string) (*Proxy, error) {
	l, err := loopback.Listen()
	if err != nil {
		return nil, err
	}
	p := &Proxy{Addr: l.Addr().String(), target: target, changed: make(chan struct{}), conns: map[*conn]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.serve(l)
	return p, nil
}

// Set makes these the rules for all connections, present and future.
func (p *Proxy) Set(toServer, toClient Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = [2]Rule{up: toServer, down: toClient}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Swallow makes the connections of now lead nowhere. New ones work.
func (p *Proxy) Swallow() {
	for _, c := range p.open() {
		c.dead[up].Store(true)
		c.dead[down].Store(true)
	}
}

// Reset ends the connections of now, and both ends are told so by a TCP reset.
func (p *Proxy) Reset() {
	for _, c := range p.open() {
		c.reset()
	}
}

// Refuse makes the proxy refuse new connections, or accept them again.
func (p *Proxy) Refuse(refuse bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if refuse == (p.listener == nil) || p.ctx.Err() != nil {
		return nil
	}
	if refuse {
		err := p.listener.Close()
		p.listener = nil
		return err
	}
	l, err := net.Listen("tcp", p.Addr)
	if err == nil {
		p.serve(l)
	}
	return err
}

// Close ends the proxy and all its connections.
func (p *Proxy) Close() error {
	err := p.Refuse(true)
	p.cancel()
	p.group.Wait()
	return err
}

func (p *Proxy) open() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var open []*conn
	for c := range p.conns {
		open = append(open, c)
	}
	return open
}

// serve is called with mu held, or before there is anybody else.
func (p *Proxy) serve(l net.Listener) {
	p.listener = l
	p.group.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // it was closed
			}
			p.group.Go(func() { p.pass(client.(*net.TCPConn)) })
		}
	})
}

// A conn is a connection of a client and the one to the server that belongs to it.
type conn struct {
	ends [2]*net.TCPConn // where the bytes of each direction go
	dead [2]atomic.Bool  // nothing arrives any more in this direction
}

func (c *conn) reset() {
	for _, end := range c.ends {
		_ = end.SetLinger(0) // it may be closed already
	}
	c.close()
}

func (c *conn) close() {
	for _, end := range c.ends {
		end.Close()
	}
}

func (p *Proxy) pass(client *net.TCPConn) {
	server, err := (&net.Dialer{}).DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		_ = client.SetLinger(0)
		client.Close()
		return
	}
	c := &conn{ends: [2]*net.TCPConn{up: server.(*net.TCPConn), down: client}}
	defer context.AfterFunc(p.ctx, c.reset)()
	p.mu.Lock()
	p.conns[c] = struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(c, up) })
	both.Go(func() { p.copy(c, down) })
	both.Wait()
	c.close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// A chunk is bytes that are under way, or what ended the connection.
type chunk struct {
	bytes []byte
	end   error
	due   time.Time
}

// copy brings the bytes of one direction to their end, as the rules say at the time.
func (p *Proxy) copy(c *conn, direction int) {
	from, to := c.ends[1-direction], c.ends[direction]
	chunks := make(chan chunk, 256)
	var reader sync.WaitGroup
	defer reader.Wait()
	gone := make(chan struct{})
	defer close(gone)
	reader.Go(func() {
		defer close(chunks)
		var due time.Time
		for buffer := make([]byte, 32<<10); ; {
			n, err := from.Read(buffer)
			rule, _ := p.rule(direction)
			arrival := time.Now().Add(rule.Delay)
			if rule.Jitter > 0 {
				arrival = arrival.Add(rand.N(rule.Jitter))
			}
			if arrival.After(due) {
				due = arrival
			}
			select {
			case chunks <- chunk{bytes.Clone(buffer[:n]), err, due}:
			case <-gone:
				return
			}
			if err != nil {
				return
			}
		}
	})
	for next := range chunks {
		if !p.await(c, direction, next.due) {
			continue // lost
		}
		if _, err := to.Write(next.bytes); err != nil || next.end != nil && next.end != io.EOF {
			c.reset()
			return
		}
		if next.end != nil {
			_ = to.CloseWrite() // it may be closed already
			return
		}
	}
}

func (p *Proxy) rule(direction int) (Rule, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rules[direction], p.changed
}

// await returns when what is due then may arrive, and false if it never does.
func (p *Proxy) await(c *conn, direction int, due time.Time) bool {
	for {
		rule, changed := p.rule(direction)
		if rule.Drop {
			c.dead[direction].Store(true)
		}
		if c.dead[direction].Load() {
			return false
		}
		left := time.Until(due)
		if !rule.Hold && left <= 0 {
			return true
		}
		if rule.Hold {
			left = time.Hour
		}
		select {
		case <-time.After(left):
		case <-changed:
		case <-p.ctx.Done():
			return false
		}
	}
}
