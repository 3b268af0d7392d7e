package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// while is for how long a test watches that something does not arrive.
const while = 50 * time.Millisecond

// echo is a server that answers each line with the same line, and notes it.
type echo struct {
	*testing.T
	*Proxy
	lines chan string
}

func newEcho(t *testing.T) *echo {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{t, p, make(chan string, 10)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					e.lines <- line
					fmt.Fprint(c, line)
				}
			}()
		}
	}()
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		l.Close()
	})
	return e
}

// A client collects what it receives.
type client struct {
	*echo
	net.Conn
	lines chan string
	err   chan error
}

func (e *echo) dial() *client {
	e.Helper()
	conn, err := net.Dial("tcp", e.Addr)
	if err != nil {
		e.Fatal(err)
	}
	c := &client{e, conn, make(chan string, 10), make(chan error, 1)}
	e.T.Cleanup(func() { conn.Close() })
	go func() {
		for r := bufio.NewReader(conn); ; {
			line, err := r.ReadString('\n')
			if err != nil {
				c.err <- err
				return
			}
			c.lines <- line
		}
	}()
	return c
}

func (c *client) say(line string) { fmt.Fprintln(c.Conn, line) }

func want[T any](c *client, what string, from <-chan T) (v T) {
	c.Helper()
	select {
	case v = <-from:
	case <-time.After(time.Minute):
		c.Fatalf("no %s", what)
	}
	return v
}

func wantNone(c *client, what string, from <-chan string) {
	c.Helper()
	select {
	case line := <-from:
		c.Errorf("%s: %q", what, line)
	case <-time.After(while):
	}
}

func (c *client) wantWorks() {
	c.Helper()
	c.say("works")
	want(c, "request", c.echo.lines)
	if got := want(c, "reply", c.lines); got != "works\n" {
		c.Errorf("reply %q", got)
	}
}

func TestHold(t *testing.T) {
	e := newEcho(t)
	c := e.dial()
	c.wantWorks()
	e.Set(Rule{}, Rule{Hold: true})
	c.say("one")
	want(c, "request", e.lines)
	wantNone(c, "a reply that is held", c.lines)
	e.Set(Rule{Hold: true}, Rule{})
	want(c, "reply that was held", c.lines)
	c.say("two")
	wantNone(c, "a request that is held", e.lines)
	e.Set(Rule{}, Rule{})
	want(c, "request that was held", e.lines)
	want(c, "reply", c.lines)
	c.wantWorks()
}

func TestDrop(t *testing.T) {
	e := newEcho(t)
	c := e.dial()
	c.wantWorks()
	e.Set(Rule{}, Rule{Drop: true})
	c.say("one")
	want(c, "request", e.lines)
	wantNone(c, "a reply that is lost", c.lines)
	fresh := e.dial()
	fresh.say("two")
	want(fresh, "request", e.lines)
	wantNone(fresh, "a reply that is lost", fresh.lines)
	e.Set(Rule{}, Rule{})
	wantNone(c, "a reply that was lost", c.lines)
	c.say("three")
	wantNone(c, "a reply on a connection that leads nowhere", c.lines)
	e.dial().wantWorks()
}

func TestSwallow(t *testing.T) {
	e := newEcho(t)
	c := e.dial()
	c.wantWorks()
	e.Swallow()
	c.say("one")
	wantNone(c, "a request on a connection that leads nowhere", e.lines)
	e.dial().wantWorks()
}

func TestDelay(t *testing.T) {
	e := newEcho(t)
	c := e.dial()
	c.wantWorks()
	e.Set(Rule{Delay: while, Jitter: while}, Rule{Delay: while})
	begun := time.Now()
	c.say("one")
	c.say("two")
	for _, line := range []string{"one\n", "two\n"} {
		if got := want(c, "reply", c.lines); got != line {
			t.Errorf("reply %q, want %q", got, line)
		}
	}
	if took := time.Since(begun); took < 2*while {
		t.Errorf("it took %v, want at least %v", took, 2*while)
	}
}

func TestReset(t *testing.T) {
	e := newEcho(t)
	c := e.dial()
	c.wantWorks()
	e.Reset()
	if err := want(c, "end", c.err); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it ended with %v", err)
	}
	e.dial().wantWorks()
}

func TestRefuse(t *testing.T) {
	e := newEcho(t)
	c := e.dial()
	c.wantWorks()
	for range 2 {
		if err := e.Refuse(true); err != nil {
			t.Fatal(err)
		}
		if _, err := net.Dial("tcp", e.Addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a new connection: %v", err)
		}
		c.wantWorks()
		if err := e.Refuse(false); err != nil {
			t.Fatal(err)
		}
		e.dial().wantWorks()
	}
}

func TestClose(t *testing.T) {
	e := newEcho(t)
	c := e.dial()
	c.wantWorks()
	c.Conn.(*net.TCPConn).CloseWrite()
	if err := want(c, "end", c.err); err != io.EOF {
		t.Errorf("it ended with %v", err)
	}
	for _, rule := range []Rule{{Hold: true}, {Drop: true}, {Delay: time.Hour}} {
		e.Set(Rule{}, Rule{})
		c := e.dial()
		c.wantWorks()
		e.Set(rule, rule)
		c.say("one")
	}
}
