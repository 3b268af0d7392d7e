package leasetest

import (
	"context"
	"net/url"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// Client is one process and its link to the server. It implements coordinationv1client.LeasesGetter and is safe for
// concurrent use. Its name is the field manager of writes that name none.
type Client struct {
	server *Server
	name   string

	mu        sync.Mutex // never held together with server.mu, except this one first
	requests  int
	onRequest func(Request) Fault
	cut       bool

	onEvent func(watch.Event) time.Duration // guarded by server.mu
}

var _ coordinationv1client.LeasesGetter = (*Client)(nil)

// Leases returns the client's view of the namespace, of all namespaces for list and watch when it is empty.
func (c *Client) Leases(namespace string) coordinationv1client.LeaseInterface {
	return &leases{client: c, namespace: namespace}
}

// Name returns the name given to [Server.Client].
func (c *Client) Name() string { return c.name }

// Requests returns how many requests the client has made.
func (c *Client) Requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests
}

// OnRequest sets the function that decides the fate of each request from now on; with nil all requests pass. f is
// called on the caller's goroutine, concurrently if the calls are, before the request takes effect. It may use the
// server, for instance to make another holder's write come just before.
func (c *Client) OnRequest(f func(Request) Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onRequest = f
}

// Partition cuts the client off from the server, or reconnects it. While it is cut off, its requests are lost and hang
// until their ctx ends, replies under way are lost too, and its watches stay open but silent. Once it is reconnected,
// the watches deliver the events that they missed, as TCP does.
func (c *Client) Partition(cut bool) {
	c.mu.Lock()
	c.cut = cut
	c.mu.Unlock()
	c.eachWatch(func(w *watcher) { w.setCut(cut) })
}

// exchange carries one request to the server and its answer back, through the fault chosen for it. effect is called
// at most once.
func exchange[T any](ctx context.Context, c *Client, r Request, effect func() (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, gaveUp(r, err)
	}
	f := c.fault(&r)
	if f.Drop == TheRequest || f.Err != nil && f.Drop == Nothing {
		if err := c.wait(ctx, r, f.Before+f.After); err != nil {
			return none, err
		}
		return none, c.lost(ctx, r, f.Err)
	}

	var answer T
	var err error
	if f.Late && f.Before > 0 {
		landed := make(chan struct{})
		time.AfterFunc(f.Before, func() {
			answer, err = effect()
			close(landed)
		})
		select {
		case <-landed:
		case <-ctx.Done():
			return none, gaveUp(r, ctx.Err())
		}
	} else {
		if err := c.wait(ctx, r, f.Before); err != nil {
			return none, err
		}
		if c.isCut() {
			return none, c.lost(ctx, r, nil)
		}
		answer, err = effect()
	}

	if err := c.wait(ctx, r, f.After); err != nil {
		return none, err
	}
	if f.Drop == TheReply || c.isCut() {
		return none, c.lost(ctx, r, f.Err)
	}
	return answer, err
}

// fault counts the request and returns the fault that the test chooses for it.
func (c *Client) fault(r *Request) Fault {
	c.mu.Lock()
	c.requests++
	r.Client, r.Count = c.name, c.requests
	onRequest := c.onRequest
	c.mu.Unlock()
	if onRequest == nil {
		return Fault{}
	}
	return onRequest(*r)
}

func (c *Client) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}

// wait returns after d, or with an error as soon as ctx ends.
func (c *Client) wait(ctx context.Context, r Request, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return gaveUp(r, ctx.Err())
	}
}

// lost ends an exchange without an answer: it returns err, or waits until ctx ends if err is nil or the client is cut
// off.
func (c *Client) lost(ctx context.Context, r Request, err error) error {
	if err != nil && !c.isCut() {
		return err
	}
	<-ctx.Done()
	return gaveUp(r, ctx.Err())
}

// gaveUp returns the error of an HTTP client whose ctx ended.
func gaveUp(r Request, err error) error {
	op := map[string]string{"create": "Post", "update": "Put", "patch": "Patch", "apply": "Patch", "delete": "Delete",
		"deletecollection": "Delete"}[r.Verb]
	if op == "" {
		op = "Get"
	}
	return &url.Error{Op: op, URL: serverURL, Err: err}
}
