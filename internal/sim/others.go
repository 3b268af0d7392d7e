package sim

import (
	"context"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/oracle"
)

// vacater is the client of those who call Vacate.
const vacater = "vacater"

// vacate calls Vacate for the identity that holds the lease when it begins.
func (w *World) vacate(l *link) {
	identity := w.checker.vacating()
	if identity == "" {
		return
	}
	began := uint64(w.now())
	done := l.send()
	w.running.Go(func() {
		defer done()
		freed, err := leasehold.Vacate(w.ctx, leasehold.WithLease(name), leasehold.WithNamespace(namespace),
			leasehold.WithClient(l.client), leasehold.WithIdentity(identity), unlogged(),
			w.hooks.Clock(rateClock{w.start, 1}), w.chance(w.seed, 13, began), backOff(w.seed, 13, began))
		w.checker.note(vacater, "has vacated the lease of %s: %v, %v", identity, freed, err)
	})
}

// vacating returns the identity that holds the lease, which is going to be vacated; "" for none of the candidates'.
func (c *checker) vacating() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.termOf(c.oracle.Latest())
	if t == nil || t.campaign == nil {
		return ""
	}
	c.vacated[t.Identity] = true
	return t.Identity
}

// An observer watches by Holders, through its own link.
type observer struct {
	coordinationv1client.LeaseInterface
	world *World
	link  *link

	// What follows is protected by the checker's mu.
	last             oracle.Key // without the uid, which Holders does not tell
	seen             int
	second, requests int
}

// live watches until the world ends.
func (o *observer) live() {
	w := o.world
	o.LeaseInterface = o.link.leases
	var err error
	for h := range leasehold.Holders(w.ctx, leasehold.WithLease(name), leasehold.WithNamespace(namespace),
		leasehold.WithClient(o), leasehold.WithError(&err), unlogged(),
		leasehold.WithDuration(w.shortestDuration()), // one that polls has to see the renewals in time
		w.hooks.Clock(rateClock{w.start, 1}), w.chance(w.seed, 14), backOff(w.seed, 14)) {
		w.checker.observed(o, h)
	}
	if err != context.Canceled {
		w.checker.violation("Holders ended with %v", err)
	}
}

// observed checks that Holders yields h: a holder who did hold the lease, and a change.
func (c *checker) observed(o *observer, h leasehold.Holder) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var now oracle.Key
	if h.Identity != "" {
		now = oracle.Key{Identity: h.Identity, Acquired: h.AcquireTime.UnixMicro()}
		if !c.oracle.Held(h.Identity, h.AcquireTime) {
			c.violationLocked("Holders yields %v, who never held the lease", h)
		}
		if want := c.address(now); h.Address != want && !c.world.forges {
			c.violationLocked("Holders yields %s with the address %q, want %q", h.Identity, h.Address, want)
		}
	} else if o.seen > 0 && o.last == now {
		c.violationLocked("Holders yields nobody twice")
	}
	o.last = now
	o.seen++
}

// address returns what the holder of a term publishes.
func (c *checker) address(of oracle.Key) string {
	for _, t := range c.terms {
		if t.Identity == of.Identity && t.Acquired == of.Acquired && t.campaign != nil {
			return t.campaign.address
		}
	}
	return ""
}

// observedAll checks that the observer knows the holder, who has been the same for a while.
func (c *checker) observedAll(o *observer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o == nil || time.Since(c.oracle.Turned()) < 2*time.Second {
		return
	}
	var want oracle.Key
	if t := c.oracle.Latest(); t != nil {
		want = oracle.Key{Identity: t.Identity, Acquired: t.Acquired}
	}
	if o.last != want || o.seen == 0 {
		c.violationLocked("Holders yielded %v last, want %v", o.last, want)
	}
}

// send records that the observer sends a request, and checks how many it sends.
func (o *observer) send() (done func()) {
	c := o.world.checker
	c.mu.Lock()
	if second := int(o.world.now() / time.Second); second != o.second {
		o.second, o.requests = second, 0
	}
	o.requests++
	if o.requests == 25 {
		c.violationLocked("the observer sends %d requests within a second", o.requests)
	}
	tooMany := o.requests >= 25
	c.mu.Unlock()
	if tooMany {
		time.Sleep(time.Second) // else the world would never end
	}
	return o.link.send()
}

func (o *observer) Leases(string) coordinationv1client.LeaseInterface { return o }

func (o *observer) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	defer o.send()()
	return o.LeaseInterface.Get(ctx, name, opts)
}

func (o *observer) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	defer o.send()()
	return o.LeaseInterface.Watch(ctx, opts)
}
