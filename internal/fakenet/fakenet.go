// Package fakenet is a network in memory for tests in virtual time: what is written arrives half a round trip later,
// nothing ever blocks a writer, and connections can go dead without a word, as behind a firewall that forgot them.
package fakenet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A Network has one listener, and the connections to it.
type Network struct {
	mu        sync.Mutex
	roundTrip time.Duration
	down      bool
	conns     []*Conn // the clients' ends
	accepted  chan net.Conn
	closed    chan struct{}
}

// New returns a network with the given round trip.
func New(roundTrip time.Duration) *Network {
	return &Network{roundTrip: roundTrip, accepted: make(chan net.Conn, 1024), closed: make(chan struct{})}
}

// SetRoundTrip changes the round trip for what is written from now on.
func (n *Network) SetRoundTrip(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.roundTrip = d
}

func (n *Network) oneWay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.roundTrip / 2
}

// Kill makes all present connections lead nowhere: what is written is lost, and nothing is read any more.
func (n *Network) Kill() {
	for _, c := range n.Conns() {
		c.Mute(true)
		c.Deafen()
	}
}

// SetDown makes dials that begin from now on hang, or not any more.
func (n *Network) SetDown(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
}

// Dials returns how many connections were made.
func (n *Network) Dials() int { return len(n.Conns()) }

// Conns returns the clients' ends of all connections that were made, the oldest first.
func (n *Network) Conns() []*Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]*Conn(nil), n.conns...)
}

// Dial connects to the listener, which takes a round trip. Packets that are lost while the network is down are not sent
// again: a dial begun then never succeeds.
func (n *Network) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.mu.Lock()
	down, roundTrip := n.down, n.roundTrip
	n.mu.Unlock()
	if down {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	timer := time.NewTimer(roundTrip)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	toServer, toClient := newHalf(), newHalf()
	client := &Conn{network: n, in: toClient, out: toServer}
	server := &Conn{network: n, in: toServer, out: toClient}
	select {
	case <-n.closed:
		return nil, errors.New("connection refused")
	case n.accepted <- server:
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, client)
	return client, nil
}

// Accept, Close and Addr make the network a net.Listener.
func (n *Network) Accept() (net.Conn, error) {
	select {
	case c := <-n.accepted:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.closed:
	default:
		close(n.closed)
	}
	return nil
}

func (n *Network) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "fake" }
func (addr) String() string  { return "192.0.2.1:443" }

// A Conn is one end of a connection.
type Conn struct {
	network *Network
	in, out *half
	writes  atomic.Int64
}

// Writes returns how often this end wrote something.
func (c *Conn) Writes() int64 { return c.writes.Load() }

// A half carries bytes in one direction.
type half struct {
	mu       sync.Mutex
	packets  []packet
	last     time.Time     // when the newest packet arrives: none overtakes another
	mute     bool          // what is written is lost
	dead     bool          // what has not been read is never read
	closed   bool          // by its reader
	deadline time.Time     // of reads
	changed  chan struct{} // closed when one of these changes
}

type packet struct {
	data    []byte
	arrives time.Time
	end     bool // the writer closed its end
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

func (h *half) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

// Mute makes what this end writes be lost, or not any more.
func (c *Conn) Mute(mute bool) { c.out.change(func() { c.out.mute = mute }) }

// Deafen makes this end read nothing any more.
func (c *Conn) Deafen() { c.in.change(func() { c.in.dead = true }) }

func (c *Conn) Write(b []byte) (int, error) {
	if c.Closed() {
		return 0, net.ErrClosed
	}
	c.writes.Add(1)
	arrives := time.Now().Add(c.network.oneWay())
	c.out.change(func() {
		if !c.out.mute {
			c.out.send(packet{data: append([]byte(nil), b...), arrives: arrives})
		}
	})
	return len(b), nil
}

func (h *half) send(p packet) {
	if p.arrives.Before(h.last) {
		p.arrives = h.last
	}
	h.last = p.arrives
	h.packets = append(h.packets, p)
}

func (c *Conn) Read(b []byte) (int, error) {
	h := c.in
	for {
		h.mu.Lock()
		now, changed := time.Now(), h.changed
		wait := time.Duration(1<<63 - 1)
		switch {
		case h.closed:
			h.mu.Unlock()
			return 0, net.ErrClosed
		case !h.deadline.IsZero() && !h.deadline.After(now):
			h.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case h.dead || len(h.packets) == 0:
		case h.packets[0].end:
			if h.packets[0].arrives.After(now) {
				wait = h.packets[0].arrives.Sub(now)
				break
			}
			h.mu.Unlock()
			return 0, io.EOF
		case h.packets[0].arrives.After(now):
			wait = h.packets[0].arrives.Sub(now)
		default:
			n := copy(b, h.packets[0].data)
			if h.packets[0].data = h.packets[0].data[n:]; len(h.packets[0].data) == 0 {
				h.packets = h.packets[1:]
			}
			h.mu.Unlock()
			return n, nil
		}
		if !h.deadline.IsZero() {
			wait = min(wait, h.deadline.Sub(now))
		}
		h.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		}
		timer.Stop()
	}
}

// Close closes this end. The other reads the end of the stream when it arrives, unless the connection is dead.
func (c *Conn) Close() error {
	arrives := time.Now().Add(c.network.oneWay())
	c.in.change(func() { c.in.closed = true })
	c.out.change(func() {
		if !c.out.mute {
			c.out.send(packet{arrives: arrives, end: true})
		}
	})
	return nil
}

// Closed reports whether this end was closed.
func (c *Conn) Closed() bool {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.in.closed
}

func (c *Conn) LocalAddr() net.Addr  { return addr{} }
func (c *Conn) RemoteAddr() net.Addr { return addr{} }

func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.change(func() { c.in.deadline = t })
	return nil
}

// SetWriteDeadline does nothing: no write blocks.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
