package leasehold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A crowd is the campaigns of one process, "a", for many leases.
type crowd struct {
	*world
	client  *leasetest.Client
	monitor Monitor

	mu       sync.Mutex
	requests map[string]int // by verb, "watch all" for a watch of the namespace
	refuse   func(leasetest.Request) leasetest.Fault
	lost     map[string]error   // how the last session of a lease ended
	live     map[string]Session // the last session of a lease
	stop     []func()
}

func inCrowd(t *testing.T, test func(c *crowd)) {
	t.Helper()
	inWorld(t, func(w *world) {
		c := &crowd{world: w, client: w.srv.Client("a"), requests: map[string]int{}, lost: map[string]error{},
			live: map[string]Session{}}
		c.client.OnRequest(func(r leasetest.Request) leasetest.Fault {
			c.mu.Lock()
			defer c.mu.Unlock()
			verb := r.Verb
			if verb == "watch" && r.Name == "" {
				verb = "watch all"
			}
			c.requests[verb]++
			if c.refuse != nil {
				return c.refuse(r)
			}
			return leasetest.Fault{}
		})
		test(c)
		c.quit()
		if n := c.client.WatchCount(); n != 0 {
			t.Errorf("%d watches are left", n)
		}
		clients.Lock()
		defer clients.Unlock()
		for _, l := range clients.inUse {
			if l.client != nil && l.client.value == any(c.client) {
				t.Errorf("its shared client is left, with %d users and %d shared watches", l.users, len(l.watches))
			}
		}
	})
}

func leaseOf(i int) string { return fmt.Sprint("lease-", i) }

// campaign begins to campaign for the leases from lease-from up to before lease-to.
func (c *crowd) campaign(from, to int, opts ...Option) {
	for i := from; i < to; i++ {
		ctx, cancel := context.WithCancel(c.Context())
		done := make(chan struct{})
		c.stop = append(c.stop, func() { cancel(); <-done })
		opts := append([]Option{
			WithLease(leaseOf(i)), WithNamespace(ns), WithIdentity("a"), WithClient(c.client), WithMonitor(&c.monitor),
			WithLogger(slog.New(slog.NewTextHandler(c.world, nil))), inVirtualTime,
		}, opts...)
		go func() {
			defer close(done)
			for s := range Sessions(ctx, opts...) {
				c.mu.Lock()
				c.live[leaseOf(i)] = s
				c.mu.Unlock()
				<-s.Done()
				c.mu.Lock()
				c.lost[leaseOf(i)] = s.Err()
				c.mu.Unlock()
			}
		}()
	}
	synctest.Wait()
}

func (c *crowd) quit() {
	for _, stop := range c.stop {
		stop()
	}
	c.stop = nil
	synctest.Wait()
}

// asked returns how many requests of each kind there were since it was called last.
func (c *crowd) asked() map[string]int {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := maps.Clone(c.requests)
	clear(c.requests)
	return asked
}

// leading returns how many of the leases are led.
func (c *crowd) leading() (n int) {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.live {
		if s.Err() == nil {
			n++
		}
	}
	return n
}

func (c *crowd) wantLeading(want int) {
	c.Helper()
	if got := c.leading(); got != want {
		c.Errorf("%v: %d leases are led, want %d", time.Now(), got, want)
	}
}

// loss returns how the last session of a lease was lost.
func (c *crowd) loss(i int) string {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return errorText(c.lost[leaseOf(i)])
}

// following returns how many leases are followed in which way.
func (c *crowd) following() string {
	synctest.Wait()
	by := map[string]int{}
	for _, s := range c.monitor.Leases() {
		if s.Campaigning {
			by[s.Following]++
		}
	}
	return fmt.Sprint(by)
}

func (c *crowd) wantFollowing(want string) {
	c.Helper()
	if got := c.following(); got != want {
		c.Errorf("%v: followed by %s, want %s", time.Now(), got, want)
	}
}

// fail has the requests refused that match.
func (c *crowd) fail(refuse func(leasetest.Request) leasetest.Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = refuse
}

// edit changes a Lease behind everybody's back.
func (c *crowd) edit(i int, f func(*coordinationv1.Lease)) { c.srv.Edit(ns, leaseOf(i), f) }

func thief(l *coordinationv1.Lease) {
	now := metav1.NowMicro()
	l.Spec.HolderIdentity, l.Spec.AcquireTime, l.Spec.RenewTime = new("thief"), &now, &now
}

func TestSharedWatchThreshold(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, fewLeases)
		c.wantLeading(fewLeases)
		c.wantFollowing("map[watch:16]")
		c.asked()
		c.campaign(fewLeases, fewLeases+1)
		c.wantLeading(fewLeases + 1)
		c.sleep(time.Second)
		c.wantFollowing("map[shared watch:17]")
		if asked := c.asked(); asked["watch all"] != 1 || asked["watch"] != 0 || asked["get"] != 17 {
			t.Errorf("to share a watch took %v, want one watch, and a read of each", asked)
		}
		if n := c.client.WatchCount(); n != 1 {
			t.Errorf("%d watches are open", n)
		}
		c.campaign(fewLeases+1, 200)
		c.wantLeading(200)
		c.wantFollowing("map[shared watch:200]")
		if asked := c.asked(); asked["watch all"]+asked["watch"] != 0 || asked["get"] != 200-17 {
			t.Errorf("to follow more took %v", asked)
		}
		c.sleep(time.Minute)
		c.wantLeading(200)
		if asked := c.asked(); len(asked) != 1 {
			t.Errorf("in a quiet minute: %v, want renewals alone", asked)
		}
		for _, stop := range c.stop[:199] {
			stop()
		}
		c.stop = c.stop[199:]
		c.wantFollowing("map[shared watch:1]")
		if n := c.client.WatchCount(); n != 1 {
			t.Errorf("%d watches are open", n)
		}
	})
}

// Other namespaces and other clients have their own.
func TestSharedWatchScope(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 10)
		c.campaign(10, 20, WithNamespace("elsewhere"))
		c.campaign(20, 30, WithClient(c.srv.Client("b")))
		c.wantFollowing("map[watch:30]")
	})
}

// All that a standby and a leader need comes through the shared watch, at once.
func TestSharedWatchPrompt(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 20)
		other := c.run("b", nil, WithLease(leaseOf(20)))
		c.campaign(20, 21)
		c.sleep(time.Second)
		c.wantFollowing("map[shared watch:21]")
		began := time.Now()
		other.quit()
		c.wantLeading(21)
		c.edit(3, thief)
		c.srv.Delete(ns, leaseOf(4))
		again := c.srv.Lease(ns, leaseOf(5))
		c.srv.Delete(ns, leaseOf(5))
		again.UID = ""
		c.srv.Put(again) // as it was, to the letter
		synctest.Wait()
		for i, want := range map[int]string{
			3: `lease lost: now held by "thief"`, 4: "lease lost: the Lease was deleted",
			5: "lease lost: the Lease was deleted",
		} {
			if got := c.loss(i); got != want {
				t.Errorf("lease %d: %q, want %q", i, got, want)
			}
		}
		if took := time.Since(began); took > eps {
			t.Errorf("it took %v", took)
		}
	})
}

// Two candidates of one process for one lease both hear of it.
func TestSharedWatchTwoForOne(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 20)
		c.campaign(19, 20, WithIdentity("second"))
		c.sleep(time.Second)
		first := c.srv.Lease(ns, leaseOf(19))
		c.stop[19]()
		c.stop = append(c.stop[:19], c.stop[20])
		c.sleep(time.Second)
		if l := c.srv.Lease(ns, leaseOf(19)); *l.Spec.HolderIdentity != "second" {
			t.Errorf("%q leads after %q", *l.Spec.HolderIdentity, *first.Spec.HolderIdentity)
		}
		c.wantFollowing("map[shared watch:20]")
		c.wantLeading(20)
	})
}

// A namespace that may not be watched: each lease has its own watch, which is said once, and tried again
// rarely.
func TestSharedWatchForbidden(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.fail(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "watch" && r.Name == "" {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			}
			return leasetest.Fault{}
		})
		c.campaign(0, 20)
		c.sleep(time.Second)
		c.wantLeading(20)
		c.wantFollowing("map[watch:20]")
		if n := c.asked()["watch all"]; n != 1 {
			t.Errorf("%d tries", n)
		}
		c.sleep(100*I - 2*time.Second)
		if n := c.asked()["watch all"]; n != 0 {
			t.Errorf("%d more tries in %v", n, 100*I)
		}
		c.sleep(2 * time.Second)
		if n := c.asked()["watch all"]; n != 1 {
			t.Errorf("%d more tries after that", n)
		}
		rule := `a Role in namespace \"default\" needs the rule {apiGroups: [\"coordination.k8s.io\"], resources: ` +
			`[\"leases\"], verbs: [\"watch\"]}`
		if n := c.logged(rule); n != 1 {
			t.Errorf("the rule is named %d times", n)
		}
		c.fail(nil)
		c.sleep(100*I + time.Second)
		c.wantFollowing("map[shared watch:20]")
		c.wantLeading(20)
		if n := c.client.WatchCount(); n != 1 {
			t.Errorf("%d watches are open", n)
		}
		if n := c.logged("accepts the request again"); n != 1 {
			t.Errorf("the end is told %d times", n)
		}
	})
}

// A watch that ends is opened again where it ended: nobody reads, and nothing is missed.
func TestSharedWatchReopens(t *testing.T) {
	for _, end := range []error{nil, leasetest.InternalError()} {
		t.Run(fmt.Sprint(end), func(t *testing.T) {
			inCrowd(t, func(c *crowd) {
				c.campaign(0, 40)
				c.sleep(time.Minute)
				c.asked()
				c.fail(func(r leasetest.Request) leasetest.Fault {
					if r.Verb == "watch" {
						return leasetest.Fault{Err: leasetest.ConnectionRefused()}
					}
					return leasetest.Fault{}
				})
				c.client.CloseWatches(end)
				c.sleep(time.Second)
				c.edit(7, thief)
				c.srv.Delete(ns, leaseOf(8))
				c.sleep(100 * time.Millisecond)
				c.fail(nil)
				c.sleep(time.Second)
				if got := c.loss(7); got != `lease lost: now held by "thief"` {
					t.Errorf("lease 7: %q", got)
				}
				if got := c.loss(8); got != "lease lost: the Lease was deleted" {
					t.Errorf("lease 8: %q", got)
				}
				if n := c.asked()["get"]; n > 2 { // by what met with the thief's write
					t.Errorf("%d reads", n)
				}
			})
		})
	}
}

// Nor does it miss what comes first after the end of the watch.
func TestSharedWatchReopensAtOnce(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 40)
		for i := range 5 { // of which few are just renewed, and hear of their loss by that
			c.sleep(2 * I)
			c.fail(func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "watch" {
					return leasetest.Fault{Err: leasetest.ConnectionRefused()}
				}
				return leasetest.Fault{}
			})
			c.client.CloseWatches(nil)
			c.edit(i, thief)
			c.fail(nil)
			c.sleep(I / 10)
			if got := c.loss(i); got != `lease lost: now held by "thief"` {
				t.Errorf("lease %d: %q", i, got)
			}
		}
	})
}

// While the watch cannot be opened for long, the leases are read.
func TestSharedWatchPolls(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 40)
		c.sleep(time.Minute)
		c.edit(7, thief)
		c.sleep(time.Second)
		c.fail(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "watch" {
				return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
			}
			return leasetest.Fault{}
		})
		c.client.CloseWatches(nil)
		c.sleep(3 * I)
		c.wantFollowing("map[poll:40]")
		c.asked()
		c.sleep(10 * I)
		if n := c.asked()["get"]; n < 350 || n > 850 {
			t.Errorf("%d reads of 40 leases in 10 intervals", n)
		}
		c.edit(7, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil })
		c.sleep(I + eps)
		c.wantLeading(40)
		c.fail(nil)
		c.sleep(I + 2*time.Second)
		c.wantFollowing("map[shared watch:40]")
	})
}

// A client whose watches of a namespace end before they bring anything, after an error unless that is nil.
type shortWatches struct {
	*leasetest.Client
	end error
	on  atomic.Bool
}

func (s *shortWatches) Leases(namespace string) Leases {
	return shortLeases{s.Client.Leases(namespace), s}
}

type shortLeases struct {
	Leases
	short *shortWatches
}

func (l shortLeases) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	w, err := l.Leases.Watch(ctx, opts)
	if err != nil || !l.short.on.Load() || opts.FieldSelector != "" {
		return w, err
	}
	w.Stop()
	events := make(chan watch.Event, 1)
	if l.short.end != nil {
		events <- leasetest.ErrorEvent(l.short.end)
	}
	close(events)
	return watch.NewProxyWatcher(events), nil
}

// While the watch ends each time before it brings anything, the leases are read as often as while it cannot be opened.
func TestSharedWatchEndsAtOnce(t *testing.T) {
	for _, end := range []error{nil, leasetest.InternalError()} {
		t.Run(fmt.Sprint(end), func(t *testing.T) {
			inCrowd(t, func(c *crowd) {
				short := &shortWatches{Client: c.client, end: end}
				c.thieves(time.Hour, time.Hour, WithClient(short))
				short.on.Store(true)
				c.client.CloseWatches(nil)
				c.sleep(3 * I)
				c.wantFollowing("map[poll:40]")
				c.asked()
				c.sleep(10 * I)
				if n := c.asked()["get"]; n < 350 || n > 450 {
					t.Errorf("%d reads of 40 leases in 10 intervals", n)
				}
				c.edit(7, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil })
				c.sleep(I + time.Second)
				c.wantLeading(1)
				short.on.Store(false)
				c.sleep(I + 2*time.Second)
				c.wantFollowing("map[shared watch:40]")
			})
		})
	}
}

// A deletion came before the watch was opened afresh, and that one ended soon: each lease is read once the next one has
// lasted.
func TestSharedWatchEndsAtOnceAfresh(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.thieves(time.Hour, time.Hour)
		short, failing := true, false
		c.fail(func(r leasetest.Request) leasetest.Fault {
			switch {
			case r.Verb == "watch" && short:
				time.AfterFunc(time.Millisecond, func() { c.client.CloseWatches(nil) })
			case r.Verb == "get" && failing:
				return leasetest.Fault{Err: leasetest.InternalError()}
			}
			return leasetest.Fault{}
		})
		set := func(b *bool, to bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			*b = to
		}
		c.client.CloseWatches(nil)
		c.sleep(3 * I)
		c.wantFollowing("map[poll:40]")
		set(&failing, true)
		c.srv.Delete(ns, leaseOf(7))
		c.srv.Compact()
		c.sleep(2 * time.Second) // now a watch has listed the others
		set(&short, false)
		c.sleep(I + 2*time.Second)
		set(&failing, false)
		c.sleep(I)
		c.wantFollowing("map[shared watch:40]")
		for _, s := range c.monitor.Leases() {
			if exists := s.Name != leaseOf(7); (s.Holder != nil) != exists {
				t.Errorf("%s: held by %v, exists: %v", s.Name, s.Holder, exists)
			}
		}
	})
}

// A Lease is said not to exist for longer than its duration, to a campaign that does not create it: the watch, which
// brought no deletion, is opened at any state, and brings the Lease.
func TestSharedWatchNotFoundForLong(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		for i := range 40 {
			c.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: leaseOf(i)}})
		}
		c.campaign(0, 40, WithCreateMode(UseExisting))
		c.sleep(time.Minute)
		c.asked()
		found := false
		c.fail(func(r leasetest.Request) leasetest.Fault {
			switch {
			case r.Verb == "watch":
				found = true
			case r.Name == leaseOf(0) && !found:
				return leasetest.Fault{Err: apierrors.NewNotFound(leasesGroupResource, r.Name)}
			}
			return leasetest.Fault{}
		})
		c.sleep(I)
		c.wantLeading(39)
		c.sleep(2 * D)
		c.wantLeading(40)
		if n := c.asked()["watch all"]; n != 1 {
			t.Errorf("the watch was opened %d times", n)
		}
	})
}

// A version that the server has forgotten is no outage: the watch, an own one or the shared one, is opened again at
// once, and nothing is logged.
func TestSharedWatchForgottenVersion(t *testing.T) {
	for verb, leases := range map[string]int{"watch": 1, "watch all": 40} {
		t.Run(verb, func(t *testing.T) {
			inCrowd(t, func(c *crowd) {
				c.campaign(0, leases)
				c.sleep(time.Minute)
				c.asked()
				forgotten := true
				c.fail(func(r leasetest.Request) leasetest.Fault {
					if r.Verb == "watch" && forgotten {
						forgotten = false
						return leasetest.Fault{Err: apierrors.NewResourceExpired("too old resource version")}
					}
					return leasetest.Fault{}
				})
				c.client.CloseWatches(nil)
				if n := c.asked()[verb]; n != 2 {
					t.Errorf("the watch was opened %d times", n)
				}
				if n := c.logged("API requests are failing"); n != 0 {
					t.Errorf("%d lines about failing requests", n)
				}
				c.edit(0, thief)
				if got := c.loss(0); got != `lease lost: now held by "thief"` {
					t.Error(got)
				}
			})
		})
	}
}

// A history that the server has forgotten: each lease is read once, not all at once, and a deletion that
// came meanwhile is found.
func TestSharedWatchExpired(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 200)
		c.sleep(I)
		c.asked()
		c.client.SilenceWatches()
		c.srv.Delete(ns, leaseOf(7))
		c.edit(8, thief)
		c.srv.Compact()
		c.client.CloseWatches(nil)
		c.client.ResumeWatches(false)
		c.sleep(200 * time.Millisecond)
		if n := c.asked()["get"]; n < 20 || n > 180 {
			t.Errorf("%d of 200 reads in the first half of the time they have", n)
		}
		c.sleep(time.Second)
		if n := c.asked()["get"]; n > 190 {
			t.Errorf("%d reads thereafter", n)
		}
		for i, want := range map[int]string{7: "lease lost: the Lease was deleted",
			8: `lease lost: now held by "thief"`} {
			if got := c.loss(i); got != want {
				t.Errorf("lease %d: %q, want %q", i, got, want)
			}
		}
		c.sleep(time.Minute)
		c.wantLeading(200)
		if asked := c.asked(); asked["get"] > 2 || asked["watch all"] > 0 {
			t.Errorf("in a quiet minute: %v", asked)
		}
	})
}

// A watch that has fallen silent: leaders that do not hear of their own renewals have it opened again,
// without a read.
func TestSharedWatchSilent(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 40)
		c.sleep(time.Minute)
		c.asked()
		c.client.SilenceWatches()
		// its own renewal will meet with this
		c.edit(7, func(l *coordinationv1.Lease) { l.Labels = map[string]string{"a": "b"} })
		c.sleep(2 * I)
		asked := c.asked()
		if asked["watch all"] != 1 || asked["get"] > 1 {
			t.Errorf("%v, want the watch opened again, once", asked)
		}
		c.edit(8, thief)
		if got := c.loss(8); got != `lease lost: now held by "thief"` {
			t.Errorf("lease 8: %q", got)
		}
	})
}

// A watch that is silent to standbys, and one that has left something out: looking finds it.
func TestSharedWatchMisses(t *testing.T) {
	for _, backlog := range []bool{true, false} {
		t.Run(fmt.Sprint(backlog), func(t *testing.T) {
			inCrowd(t, func(c *crowd) {
				for i := range 40 {
					c.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: leaseOf(i)}})
					c.edit(i, thief)
					c.edit(i, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(60)) })
				}
				c.campaign(0, 40)
				c.sleep(time.Second)
				c.wantFollowing("map[shared watch:40]")
				c.asked()
				c.sleep(10 * time.Second)
				c.client.SilenceWatches()
				for i := range 20 {
					c.edit(i, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil })
				}
				if !backlog {
					c.client.ResumeWatches(false)
					c.edit(39, thief) // all seems well
				}
				c.wantLeading(0)
				c.sleep(60*time.Second/10*7 + I)
				c.wantLeading(20)
				asked := c.asked()
				if asked["watch all"] != 1 {
					t.Errorf("%v, want the watch opened once more", asked)
				}
			})
		})
	}
}

// Old events, and odd ones, do no harm; what cannot be read makes the Lease be read.
func TestSharedWatchOddEvents(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 40)
		c.sleep(time.Minute)
		c.asked()
		c.client.ReplayWatches(100)
		c.client.SendEvent(watch.Event{Type: watch.Modified})
		c.client.SendEvent(watch.Event{Type: watch.Modified, Object: &metav1.PartialObjectMetadata{}})
		c.client.SendEvent(watch.Event{Type: watch.Bookmark, Object: &coordinationv1.Lease{}})
		c.client.SendEvent(watch.Event{Type: "NONSENSE", Object: c.srv.Lease(ns, leaseOf(3))})
		c.sleep(time.Second)
		if asked := c.asked(); asked["get"]+asked["watch all"] != 0 {
			t.Errorf("%v", asked)
		}
		odd := c.srv.Lease(ns, leaseOf(3))
		odd.ResourceVersion = "odd"
		c.client.SendEvent(watch.Event{Type: watch.Modified, Object: odd})
		c.sleep(time.Second)
		if asked := c.asked(); asked["get"] != 1 || asked["watch all"] != 0 {
			t.Errorf("%v, want the Lease read", asked)
		}
		c.client.SendEvent(leasetest.Undecodable())
		c.sleep(time.Second)
		if asked := c.asked(); asked["get"] != 0 || asked["watch all"] != 1 {
			t.Errorf("%v, want the watch opened again", asked)
		}
		c.edit(8, thief)
		if got := c.loss(8); got != `lease lost: now held by "thief"` {
			t.Errorf("lease 8: %q", got)
		}
		c.wantLeading(39)
	})
}

// An event that makes the watch fail each time it is opened does not keep the others from being heard.
func TestSharedWatchGetsPast(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 40)
		c.sleep(time.Minute)
		for range 3 {
			c.client.CloseWatches(nil)
			c.sleep(10 * time.Millisecond)
			c.client.SendEvent(leasetest.Undecodable()) // the first that it brings
			c.sleep(200 * time.Millisecond)
		}
		c.asked()
		c.sleep(5 * time.Second)
		if asked := c.asked(); asked["get"] > 50 || asked["watch all"] > 1 {
			t.Errorf("%v", asked)
		}
		c.edit(8, thief)
		if got := c.loss(8); got != `lease lost: now held by "thief"` {
			t.Errorf("lease 8: %q", got)
		}
	})
}

// What came before the watch was opened is in the answer to the read that comes after; the watch itself
// takes its time.
func TestSharedWatchNoGap(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		for i := range 40 {
			c.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: leaseOf(i)}})
			c.edit(i, thief)
			c.edit(i, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(3600)) })
		}
		opened := make(chan struct{})
		c.fail(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "watch" && r.Name == "" {
				close(opened)
				return leasetest.Fault{Before: 400 * time.Millisecond, After: 100 * time.Millisecond}
			}
			return leasetest.Fault{}
		})
		c.campaign(0, 16)
		c.client.OnEvent(func(watch.Event) time.Duration { return 50 * time.Millisecond })
		c.client.SilenceWatches() // those of their own
		c.campaign(16, 40)
		<-opened
		for i := range 40 {
			time.Sleep(20 * time.Millisecond) // before and after the watch is opened, and its end is told
			c.edit(i, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil })
		}
		c.sleep(time.Second)
		c.wantLeading(40)
		c.wantFollowing("map[shared watch:40]")
	})
}

// An outage of many leases is logged by a few.
func TestOutageOfMany(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 200)
		c.sleep(time.Second)
		for round := 1; round <= 2; round++ {
			c.client.Partition(true)
			c.sleep(8 * time.Second)
			c.client.Partition(false)
			c.sleep(5 * time.Second)
			if n := c.logged("API requests are failing"); n != round*fewLeases {
				t.Errorf("round %d: the beginning is told %d times", round, n)
			}
			if n := c.logged("API requests succeed again"); n != round*fewLeases {
				t.Errorf("round %d: the end is told %d times", round, n)
			}
		}
		c.wantLeading(200)
	})
}

// Leases that are taken in one moment are not renewed in one.
func TestRenewalsSpread(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 1000)
		most := 0
		for range 40 {
			c.asked()
			c.sleep(100 * time.Millisecond)
			most = max(most, c.asked()["patch"])
		}
		// On average 44 of the first renewals come in 100 ms, and 33 of the later ones.
		if most > 130 {
			t.Errorf("%d renewals in 100 ms", most)
		}
	})
}

// A shared watch whose first campaign ends goes on for the others, and its last one ends it even in a bad moment.
func TestSharedWatchLastOut(t *testing.T) {
	for name, weather := range map[string]func(c *crowd){
		"fair":    func(c *crowd) {},
		"cut off": func(c *crowd) { c.client.Partition(true); c.client.CloseWatches(nil) },
		"refused": func(c *crowd) {
			c.fail(func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "watch" {
					return leasetest.Fault{Err: leasetest.Forbidden(r)}
				}
				return leasetest.Fault{}
			})
			c.client.CloseWatches(nil)
		},
		"hanging": func(c *crowd) {
			c.fail(func(r leasetest.Request) leasetest.Fault { return leasetest.Fault{Drop: leasetest.TheRequest} })
			c.client.CloseWatches(nil)
		},
	} {
		for _, after := range []time.Duration{0, time.Second, time.Minute} {
			t.Run(fmt.Sprint(name, " for ", after), func(t *testing.T) {
				inCrowd(t, func(c *crowd) {
					c.campaign(0, 40)
					c.sleep(2 * I)
					for _, stop := range c.stop[:17] {
						stop()
					}
					c.stop = c.stop[17:]
					c.sleep(2 * I)
					c.wantLeading(23)
					weather(c)
					c.sleep(after)
					began := time.Now()
					c.quit()
					if took := time.Since(began); took > time.Duration(23)*D {
						t.Errorf("it took %v", took)
					}
				})
			})
		}
	}
}

// A Session that is released again after its campaign has ended uses its client again, and leaves nothing.
func TestReleaseAgain(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		s, err := Acquire(c.Context(), c.options("a", WithLease("single"))...)
		if err != nil {
			t.Fatal(err)
		}
		c.campaign(0, 20)
		c.client.Partition(true)
		if err := s.Release(); err == nil || errors.Is(err, ErrLost) {
			t.Errorf("released: %v", err)
		}
		c.client.Partition(false)
		if err := s.Release(); err != nil {
			t.Errorf("released again: %v", err)
		}
	})
}

// Reads that were lost just before the last fault ended, of more leases than may be read at once: each is
// sent again beside the first, so that all lead in time (G8).
func TestLostReads(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		for i := range 2 * maxInFlight {
			c.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: leaseOf(i)},
				Spec: coordinationv1.LeaseSpec{HolderIdentity: new("gone"), LeaseDurationSeconds: new(int32(15))}})
		}
		c.client.Partition(true)
		c.campaign(0, 2*maxInFlight)
		c.sleep(2 * time.Second)
		c.client.Partition(false)
		c.sleep(D + time.Second)
		c.wantLeading(2 * maxInFlight)
	})
}

// Where the claims of many leases hang, a holder is not kept from reading what overtook its renewal.
func TestHoldersReadAtOnce(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 1)
		c.fail(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" && r.Namespace == "stuck" {
				return leasetest.Fault{Drop: leasetest.TheRequest}
			}
			return leasetest.Fault{}
		})
		c.campaign(1, 4*maxInFlight, WithNamespace("stuck"))
		c.sleep(D)
		c.client.SilenceWatches()
		c.edit(0, func(l *coordinationv1.Lease) { l.Labels = map[string]string{"a": "b"} })
		c.sleep(2 * D)
		c.wantLeading(1)
		if got := c.loss(0); got != "<nil>" {
			t.Error(got)
		}
	})
}

// Leases that are released all at once wait for their turn as long as they may be trusted, and nothing is
// written thereafter.
func TestReleasesTakeTurns(t *testing.T) {
	for took, want := range map[time.Duration]string{time.Second: "all", 2 * time.Second: "some"} {
		t.Run(want, func(t *testing.T) {
			inCrowd(t, func(c *crowd) {
				const leases = 8 * maxInFlight
				c.campaign(0, leases)
				c.sleep(I)
				began, late := time.Now(), 0
				c.fail(func(r leasetest.Request) leasetest.Fault {
					if time.Since(began) > R {
						late++
					}
					return leasetest.Fault{Before: took}
				})
				var group sync.WaitGroup
				for _, stop := range c.stop {
					group.Go(stop)
				}
				c.stop = nil
				group.Wait()
				if late > 0 {
					t.Errorf("%d requests after %v", late, R)
				}
				free := 0
				for i := range leases {
					if c.srv.Lease(ns, leaseOf(i)).Spec.HolderIdentity == nil {
						free++
					}
				}
				t.Logf("%d of %d are free after %v", free, leases, time.Since(began))
				if (free == leases) != (want == "all") || free < leases/2 {
					t.Errorf("%d of %d are free, want %s", free, leases, want)
				}
			})
		})
	}
}

// Many leases of a short duration, far from their API server, are renewed in time.
func TestRenewalsFarAway(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: thousands of leases")
	}
	inCrowd(t, func(c *crowd) {
		const leases = 3000
		c.campaign(0, leases, WithDuration(5*time.Second))
		c.fail(func(leasetest.Request) leasetest.Fault { return leasetest.Fault{Before: 250 * time.Millisecond} })
		c.sleep(20 * time.Second)
		lost := 0
		for i := range leases {
			if c.loss(i) != "<nil>" {
				lost++
			}
		}
		if lost > 0 {
			t.Errorf("%d of %d leases were lost", lost, leases)
		}
		c.fail(nil)
		c.sleep(time.Second)
	})
}

// thieves has leases held by others, for so long, and standbys for them that look as soon as they may
// whether the watch misses something.
func (c *crowd) thieves(first, others time.Duration, opts ...Option) {
	for i := range 40 {
		c.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: leaseOf(i)}})
		c.edit(i, thief)
		c.edit(i, func(l *coordinationv1.Lease) {
			l.Spec.LeaseDurationSeconds = new(int32(others / time.Second))
			if i == 0 {
				l.Spec.LeaseDurationSeconds = new(int32(first / time.Second))
			}
		})
	}
	c.campaign(0, 40, append(opts,
		func(o *options) { o.hooks.chance = func(time.Duration) time.Duration { return 0 } })...)
	c.sleep(time.Second)
	c.wantFollowing("map[shared watch:40]")
}

// A look that fails, because the API server does not answer just then, is made up for.
func TestSharedWatchLooksAgain(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.thieves(time.Minute, time.Minute)
		c.client.SilenceWatches()
		c.edit(0, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil })
		c.sleep(30 * time.Second)
		c.fail(func(leasetest.Request) leasetest.Fault { return leasetest.Fault{Err: leasetest.InternalError()} })
		c.sleep(10 * time.Second) // they look after 36 s
		c.fail(nil)
		c.sleep(time.Second + I)
		c.wantLeading(1)
	})
}

// What a watch that was opened a moment ago did not bring is not forgotten while it is too early to tell
// whether it will.
func TestSharedWatchTooEarlyToTell(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.thieves(time.Minute, time.Hour, WithCreateMode(UseExisting))
		c.sleep(34 * time.Second)
		c.client.CloseWatches(nil)
		c.sleep(100 * time.Millisecond)
		c.client.SilenceWatches()
		c.srv.Delete(ns, leaseOf(0))
		c.sleep(25 * time.Second)
		c.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: leaseOf(0)}})
		c.sleep(time.Minute) // a holder that has not heard has one since it was found gone
		c.wantLeading(1)
	})
}

// That a watch has left something out may turn out while it is opened again.
func TestSharedWatchMissesWhileItOpens(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: leaseOf(30)}})
		c.edit(30, thief)
		c.edit(30, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(3600)) })
		c.campaign(0, 40)
		c.sleep(time.Minute)
		c.wantLeading(39)
		c.client.SilenceWatches()
		c.edit(30, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil })
		c.sleep(I * 8 / 10) // some renew, and have not renewed again
		c.client.ResumeWatches(false)
		c.edit(39, func(l *coordinationv1.Lease) { l.Labels = map[string]string{"a": "b"} })
		synctest.Wait()
		c.fail(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "watch" {
				return leasetest.Fault{Before: I}
			}
			return leasetest.Fault{}
		})
		c.client.CloseWatches(nil)
		c.sleep(I + time.Second)
		c.fail(nil)
		c.sleep(3 * I)
		c.wantLeading(40)
	})
}

// What cannot be read comes while the Lease is read for the first time: it is read again.
func TestSharedWatchOddEventDuringRead(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 40)
		c.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: leaseOf(40)}})
		c.edit(40, thief)
		c.sleep(time.Second)
		c.fail(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "get" {
				return leasetest.Fault{After: 100 * time.Millisecond}
			}
			return leasetest.Fault{}
		})
		c.asked()
		c.campaign(40, 41)
		odd := c.srv.Lease(ns, leaseOf(40))
		odd.ResourceVersion = "odd"
		c.client.SendEvent(watch.Event{Type: watch.Modified, Object: odd})
		c.sleep(time.Second)
		if n := c.asked()["get"]; n != 2 {
			t.Errorf("%d reads, want another one", n)
		}
		c.wantFollowing("map[shared watch:41]")
	})
}

// A reflector that goes to sleep while its campaign closes is not shown to follow any more.
func TestSleepWhileClosing(t *testing.T) {
	r := &reflector{lease: &leaseClient{}, clock: systemClock{}, alarm: newWakeup()}
	w := &sharedWatch{client: &sharedClient{}, byName: map[string][]*subscription{}}
	r.subscription = &subscription{watch: w, reflector: r}
	r.stop = func() { r.sleepUntilWoken() }
	r.close()
	if r.sleeping || r.following != "" {
		t.Errorf("sleeping %v, following %q", r.sleeping, r.following)
	}
}

// A shared watch that ends in an outage is not counted as failing any more.
func TestSharedWatchEndsInOutage(t *testing.T) {
	inCrowd(t, func(c *crowd) {
		c.campaign(0, 1, WithNamespace("elsewhere"))
		others := c.stop
		c.stop = nil
		c.fail(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "watch" && r.Name == "" {
				return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
			}
			return leasetest.Fault{}
		})
		c.campaign(1, 41)
		c.sleep(time.Minute)
		c.quit()
		c.stop = others
		clients.Lock()
		defer clients.Unlock()
		for _, l := range clients.inUse {
			if n := l.failing.Load(); l.client != nil && l.client.value == any(c.client) && n != 0 {
				t.Errorf("%d still count as failing", n)
			}
		}
	})
}

// idleSharedWatch returns a shared watch that does not run, with a subscription for each of the leases.
func idleSharedWatch(w *world, leases []string, opts ...Option) (*sharedWatch, []*subscription) {
	w.Helper()
	var watched *sharedWatch
	var subs []*subscription
	for _, lease := range leases {
		c := idleCampaign(w, append([]Option{WithLease(lease)}, opts...)...)
		if watched == nil {
			watched = c.client.newSharedWatch(c.reflector, c.options)
		}
		sub := &subscription{watch: watched, reflector: c.reflector}
		watched.byName[lease] = append(watched.byName[lease], sub)
		watched.count++
		subs = append(subs, sub)
	}
	return watched, subs
}

// An event goes to all subscribers of its Lease and to no others. One that cannot be read makes them read the Lease.
// The watch goes on from the newest version.
func TestSharedWatchHandsOut(t *testing.T) {
	inWorld(t, func(w *world) {
		watched, subs := idleSharedWatch(w, []string{"x", "x", "y"})
		hand := func(version string) {
			t.Helper()
			if err := watched.handOut(watch.Event{Type: watch.Modified, Object: &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Name: "x", UID: "u", ResourceVersion: version}}}); err != nil {
				t.Error(err)
			}
		}
		newest := uint64(1 << 40)
		for _, version := range []uint64{7, newest, 9} {
			hand(fmt.Sprint(version))
		}
		for i, want := range []uint64{newest, newest, 0} {
			if heard, _ := subs[i].reflector.store.heardVersion(); heard != want {
				t.Errorf("subscriber %d heard of version %d, want %d", i, heard, want)
			}
		}
		for _, version := range []string{"odd", "99999999999999999999"} {
			for _, s := range subs {
				s.round = 3
			}
			hand(version)
			for i, rereads := range []bool{true, true, false} {
				if s := subs[i]; (s.round == unread) != rereads || (len(s.reflector.alarm) == 1) != rereads {
					t.Errorf("%s: subscriber %d: round %d, woken: %v", version, i, s.round, len(s.reflector.alarm))
				}
			}
		}
		if watched.version != newest {
			t.Errorf("goes on from version %d, want %d", watched.version, newest)
		}

		// An event that may be older than the read that found no Lease only causes another read.
		late := subs[2].reflector
		late.store.addRead(record{}, observation{})
		if err := watched.handOut(watch.Event{Type: watch.Added, Object: &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: "y", UID: "v", ResourceVersion: "8"}}}); err != nil {
			t.Error(err)
		}
		if known := late.store.latest(); known.exists() || !late.takeCheck() {
			t.Errorf("%+v is known without a check", known)
		}

		err := watched.handOut(watch.Event{Type: watch.Error, Object: &metav1.Status{Message: "gone"}})
		if got := errorText(err); got != "watch leases in namespace default: gone" {
			t.Error(got)
		}
	})
}

// If the watch did not bring a version that was read, it is opened again: after its newest version, or afresh if it
// left that one out. A watch that was just opened gets time.
func TestSharedWatchMissed(t *testing.T) {
	const opened, serial = I, 4 // ago; of the watch that is open
	for _, tt := range []struct {
		name    string
		read    uint64 // the version of the Lease
		deleted bool
		brought uint64 // to this subscriber
		newest  uint64 // that the watch brought to any
		opened  time.Duration
		serial  int // of the watch that is reported
		afresh  bool
		before  bool // it was to be opened afresh anyway
		reopen  bool
		retry   bool
	}{
		{name: "brought", read: 7, brought: 7, newest: 9, opened: opened, serial: serial},
		{name: "brought since", read: 7, brought: 8, newest: 9, opened: opened, serial: serial},
		{name: "another watch is open", read: 7, newest: 9, opened: opened, serial: serial - 1},
		{name: "silent", read: 7, newest: 6, opened: opened, serial: serial, reopen: true},
		{name: "silent, and to be opened afresh", read: 7, newest: 6, opened: opened, serial: serial, afresh: true,
			before: true, reopen: true},
		{name: "left out", read: 7, brought: 6, newest: 8, opened: opened, serial: serial, afresh: true,
			reopen: true},
		{name: "left out, the newest", read: 7, brought: 6, newest: 7, opened: opened, serial: serial, afresh: true,
			reopen: true},
		{name: "a deletion", read: 7, deleted: true, brought: 7, newest: 7, opened: opened, serial: serial,
			reopen: true},
		{name: "too early to tell", read: 7, newest: 9, opened: opened - 1, serial: serial, retry: true},
		{name: "a deletion, too early to tell", read: 7, deleted: true, brought: 7, newest: 7, opened: opened - 1,
			serial: serial, retry: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				watched, subs := idleSharedWatch(w, []string{name})
				store := subs[0].reflector.store
				watched.state.serial, watched.version, watched.openAfresh = serial, tt.newest, tt.before
				watched.openedAt = watched.clock.now().mono.Add(-tt.opened)
				store.addAnswer(heldByB.but(func(r *record) { r.version = tt.read }), observation{})
				if tt.deleted {
					store.addAnswer(record{}, store.latest())
				}
				store.watched = tt.brought
				retry := watched.reportMissed(subs[0].reflector, tt.serial)
				if reopen := len(watched.reopenNow) == 1; retry != tt.retry || reopen != tt.reopen ||
					watched.openAfresh != tt.afresh {
					t.Errorf("opened again: %v, want %v; afresh: %v, want %v; to be reported again: %v, want %v",
						reopen, tt.reopen, watched.openAfresh, tt.afresh, retry, tt.retry)
				}
				if tt.deleted || tt.serial != serial {
					return
				}
				select {
				case <-watched.reopenNow:
				default:
				}
				watched.openAfresh = tt.before
				subs[0].notBrought(tt.read)
				if reopen := len(watched.reopenNow) == 1; reopen != tt.reopen || watched.openAfresh != tt.afresh {
					t.Errorf("not brought: opened again: %v, want %v; afresh: %v, want %v", reopen, tt.reopen,
						watched.openAfresh, tt.afresh)
				}
			})
		})
	}
}

// A watchingClient opens watches by a function, and records the options.
type watchingClient struct {
	Leases
	asked []metav1.ListOptions
	open  func(ctx context.Context, nth int) (watch.Interface, error)
}

func (c *watchingClient) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	c.asked = append(c.asked, opts)
	return c.open(ctx, len(c.asked))
}

// The watch is opened with bookmarks, after the newest version that it brought, or afresh.
func TestSharedWatchOpens(t *testing.T) {
	for _, tt := range []struct {
		name            string
		brought         uint64
		afresh          bool
		reported        bool // while it is opened, that the watch before has left something out
		version         string
		round, reopened bool // wanted: a round is due; the watch is to be opened again
	}{
		{name: "for the first time", round: true},
		{name: "again", brought: 1, version: "1"},
		{name: "afresh", brought: 9, afresh: true, round: true},
		{name: "again, but to be opened afresh", brought: 9, reported: true, version: "9", reopened: true},
	} {
		inWorld(t, func(w *world) {
			watched, _ := idleSharedWatch(w, []string{name})
			client := &watchingClient{open: func(context.Context, int) (watch.Interface, error) {
				if tt.reported {
					watched.reopenAfresh()
				}
				time.Sleep(time.Millisecond)
				return watch.NewFake(), nil
			}}
			watched.leases, watched.version, watched.openAfresh, watched.state.serial = client, tt.brought, tt.afresh, 4
			watched.reopenNow.signal()
			events, err := watched.open(w.Context())
			if err != nil {
				t.Fatal(err)
			}
			events.Stop()
			want := metav1.ListOptions{AllowWatchBookmarks: true, ResourceVersion: tt.version}
			if len(client.asked) != 1 || client.asked[0] != want {
				t.Errorf("%s: asked for %+v, want %+v", tt.name, client.asked, want)
			}
			if watched.state.serial != 5 || !watched.openedAt.Equal(time.Now()) {
				t.Errorf("%s: serial %d, opened %v ago", tt.name, watched.state.serial, time.Since(watched.openedAt))
			}
			if reopened := len(watched.reopenNow) == 1; watched.roundDue != tt.round || reopened != tt.reopened ||
				watched.openAfresh != tt.reported {
				t.Errorf("%s: round due: %v, to be opened again: %v, afresh: %v", tt.name, watched.roundDue, reopened,
					watched.openAfresh)
			}
		})
	}
	t.Run("ctx ends", func(t *testing.T) {
		inWorld(t, func(w *world) {
			watched, _ := idleSharedWatch(w, []string{name})
			watched.leases = &watchingClient{open: func(ctx context.Context, _ int) (watch.Interface, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}}
			ctx, cancel := context.WithTimeout(w.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := watched.open(ctx)
			if took := time.Since(began); took != time.Second || !errors.Is(err, context.DeadlineExceeded) ||
				strings.Contains(errorText(err), "no answer") {
				t.Errorf("%v, after %v", err, took)
			}
		})
	})
}

// The error of a watch that cannot be opened names the namespace and, if a right is missing, the rule and what happens
// instead.
func TestSharedWatchErrors(t *testing.T) {
	w := &sharedWatch{namespace: ns}
	if err := w.describe(nil); err != nil {
		t.Error(err)
	}
	const prefix = "watch leases in namespace default: "
	forbidden := leasetest.Forbidden(leasetest.Request{Verb: "watch", Namespace: ns})
	for err, want := range map[error]bool{leasetest.InternalError(): false, forbidden: true} {
		got := w.describe(err)
		instead := strings.Contains(got.Error(), "each Lease is followed by a watch of its own instead")
		if !errors.Is(got, err) || !strings.HasPrefix(got.Error(), prefix) || instead != want ||
			strings.Contains(got.Error(), "needs the rule") != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// A subscription that is closed is not handed events any more. The last one ends the watch, waits for it, and makes
// room for another, which it leaves alone when it is closed once more.
func TestSubscriptionsClose(t *testing.T) {
	for _, lasts := range []time.Duration{0, 500 * time.Millisecond} { // to open the watch, after its context has ended
		inWorld(t, func(w *world) {
			join := func(lease string) *subscription {
				c := idleCampaign(w, WithLease(lease), WithSharedFrom(3))
				return c.client.subscribe(c.reflector, c.options)
			}
			c := idleCampaign(w, WithLease("x"), WithSharedFrom(3))
			watched := c.client.newSharedWatch(c.reflector, c.options)
			opened := 0
			watched.leases = &watchingClient{open: func(ctx context.Context, _ int) (watch.Interface, error) {
				if opened++; lasts == 0 {
					return watch.NewFake(), nil
				}
				<-ctx.Done()
				time.Sleep(lasts)
				return nil, ctx.Err()
			}}
			first := c.client.joinWatch(c.reflector, watched)
			second, third := join("x"), join("y")
			if second.watch != watched || third.watch != watched || watched.done == nil {
				t.Fatal("they do not share a watch")
			}
			if synctest.Wait(); opened != 1 {
				t.Errorf("the watch was opened %d times", opened)
			}
			second.close()
			if subs := watched.byName["x"]; len(subs) != 1 || subs[0] != first || watched.size() != 2 {
				t.Errorf("%d subscriptions of %d are left of x", len(subs), watched.size())
			}
			second.close()
			first.close()
			if _, ok := watched.byName["x"]; ok || watched.size() != 1 || c.client.watches[ns] != watched {
				t.Errorf("%d subscriptions are left, of x: %v", watched.size(), ok)
			}
			ended := func() bool {
				select {
				case <-watched.done:
					return true
				default:
					return false
				}
			}
			if ended() {
				t.Error("it ended before its last subscription")
			}
			began := time.Now()
			if third.close(); !ended() {
				t.Error("its end was not waited for")
			}
			if took := time.Since(began); took != lasts || c.client.watches[ns] != nil {
				t.Errorf("closed after %v, want %v; it is still known: %v", took, lasts, c.client.watches[ns] != nil)
			}
			another := join("z")
			third.close()
			if another.watch == watched || c.client.watches[ns] != another.watch {
				t.Error("the next watch is not known")
			}
			another.close()
		})
	}
}

// The endings of an open watch: the error, whether the watch lasted, and whether the next one is opened afresh.
func TestSharedWatchEndings(t *testing.T) {
	lease := watch.Event{Type: watch.Modified, Object: &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u", ResourceVersion: "9"}}}
	failure := watch.Event{Type: watch.Error, Object: &metav1.Status{Message: "broken"}}
	for _, tt := range []struct {
		name   string
		end    func(w *sharedWatch, events *watch.FakeWatcher, stop func())
		err    string
		afresh bool // the next one
	}{
		{"closed", func(_ *sharedWatch, events *watch.FakeWatcher, _ func()) { events.Stop() }, "<nil>", false},
		{"an error", func(_ *sharedWatch, events *watch.FakeWatcher, _ func()) {
			events.Action(failure.Type, failure.Object)
		}, "watch leases in namespace default: broken", true},
		{"an error after an event", func(_ *sharedWatch, events *watch.FakeWatcher, _ func()) {
			events.Action(lease.Type, lease.Object)
			events.Action(failure.Type, failure.Object)
		}, "watch leases in namespace default: broken", false},
		{"to be opened again", func(w *sharedWatch, _ *watch.FakeWatcher, _ func()) { w.reopenNow.signal() },
			errMissedEvents.Error(), false},
		{"ctx ends", func(_ *sharedWatch, _ *watch.FakeWatcher, stop func()) { stop() }, "<nil>", false},
	} {
		for _, after := range []time.Duration{I - 1, I + 1} {
			t.Run(fmt.Sprint(tt.name, " after ", after), func(t *testing.T) {
				inWorld(t, func(w *world) {
					watched, _ := idleSharedWatch(w, []string{name})
					watched.version = 7
					ctx, stop := context.WithCancel(w.Context())
					defer stop()
					events := watch.NewFake()
					watched.leases = &watchingClient{open: func(context.Context, int) (watch.Interface, error) {
						return events, nil
					}}
					time.AfterFunc(after, func() { tt.end(watched, events, stop) })
					began := time.Now()
					lasted, err := watched.watchOnce(ctx)
					if took := time.Since(began); took != after || lasted != (after > I) || errorText(err) != tt.err {
						t.Errorf("%v after %v, want %v after %v; lasted: %v", err, took, tt.err, after, lasted)
					}
					if watched.openAfresh != tt.afresh || !events.IsStopped() {
						t.Errorf("to be opened afresh: %v, want %v; stopped: %v", watched.openAfresh, tt.afresh,
							events.IsStopped())
					}
					w.sleep(0)
					logged := w.logged("the shared watch ended") == 1 && w.logged("namespace=default") == 1
					if want := strings.Contains(tt.err, "broken"); logged != want {
						t.Errorf("logged: %v, want %v", logged, want)
					}
				})
			})
		}
	}
}

// If the server has forgotten the version (410), the watch is opened afresh at once, and no failure is logged.
func TestSharedWatchOpensForgotten(t *testing.T) {
	expired, broken := apierrors.NewResourceExpired("too old"), leasetest.ServiceUnavailable()
	for _, tt := range []struct {
		name   string
		errs   []error // nil for one that hangs until ctx ends
		asked  string  // after which versions
		err    error
		logged bool
		round  uint64
	}{
		{"forgotten", []error{expired}, "[7 ]", nil, false, 1},
		{"broken", []error{broken}, "[7]", broken, true, 0},
		{"forgotten, then broken", []error{expired, broken}, "[7 ]", broken, true, 0},
		{"forgotten, then hanging", []error{expired, nil}, "[7 ]", context.DeadlineExceeded, true, 0},
	} {
		inWorld(t, func(w *world) {
			watched, _ := idleSharedWatch(w, []string{name})
			watched.version = 7
			ctx, stop := context.WithTimeout(w.Context(), time.Second)
			defer stop()
			client := &watchingClient{open: func(ctx context.Context, nth int) (watch.Interface, error) {
				if nth > len(tt.errs) {
					return watch.NewFake(), nil
				}
				if err := tt.errs[nth-1]; err != nil {
					return nil, err
				}
				<-ctx.Done()
				return nil, ctx.Err()
			}}
			watched.leases = client
			began := time.Now()
			_, err := watched.watchOnce(ctx)
			took := time.Since(began)
			w.sleep(0)
			var asked []string
			for _, opts := range client.asked {
				asked = append(asked, opts.ResourceVersion)
			}
			if fmt.Sprint(asked) != tt.asked || !errors.Is(err, tt.err) || took > time.Second {
				t.Errorf("%s: opened after %v, want %s; %v, after %v", tt.name, asked, tt.asked, err, took)
			}
			if logged := w.logged("API requests are failing") == 1; logged != tt.logged {
				t.Errorf("%s: logged: %v, want %v", tt.name, logged, tt.logged)
			}
			if round := watched.current().round; round != tt.round {
				t.Errorf("%s: round %d, want %d", tt.name, round, tt.round)
			}
		})
	}
}

// A watch serves its subscribers once it is open; after a long outage, once it has lasted for a renew interval.
func TestSharedWatchServes(t *testing.T) {
	for _, tt := range []struct {
		name     string
		mustLast bool
		brought  uint64
		rate     float64
		after    time.Duration
		round    uint64
	}{
		{"afresh", false, 0, 1, 0, 6},
		{"again", false, 7, 1, 0, 5},
		{"after an outage", true, 7, 1, I, 5},
		{"after an outage, afresh", true, 0, 1, I, 6},
		{"after an outage, by a fast clock", true, 7, 2, I / 2, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				watched, subs := idleSharedWatch(w, []string{name}, withClock(rateClock{time.Now(), tt.rate}))
				watched.mustLast, watched.version = tt.mustLast, tt.brought
				watched.state = sharedState{mode: polling, round: 5}
				watched.leases = &watchingClient{open: func(context.Context, int) (watch.Interface, error) {
					return watch.NewFake(), nil
				}}
				ctx, stop := context.WithCancel(w.Context())
				defer stop()
				go watched.watchOnce(ctx)
				synctest.Wait()
				if tt.after > 0 {
					time.Sleep(tt.after - 1)
					if subs[0].serves() || !subs[0].used() || len(subs[0].reflector.alarm) != 0 {
						t.Errorf("serves after %v", tt.after-1)
					}
					time.Sleep(time.Nanosecond)
					synctest.Wait()
				}
				if !subs[0].serves() || !subs[0].used() || len(subs[0].reflector.alarm) != 1 {
					t.Errorf("does not serve after %v, or does not say so", tt.after)
				}
				if round := watched.current().round; round != tt.round {
					t.Errorf("round %d, want %d", round, tt.round)
				}
			})
		})
	}
}

// When a watch is opened again, and how subscribers follow meanwhile.
func TestSharedWatchRuns(t *testing.T) {
	type end struct {
		after time.Duration // after it was opened; 0 if it is not opened
		err   error         // nil if it was closed
	}
	const pause = 500 * time.Millisecond // that the BackOff names
	broken, forbidden := leasetest.InternalError(), leasetest.Forbidden(leasetest.Request{Verb: "watch", Namespace: ns})
	for _, tt := range []struct {
		name   string
		ends   []end
		pauses []time.Duration // after each, until it is opened again
		modes  []sharedMode    // during each pause
		served bool            // at once when the last one is opened
		resets int             // of the BackOff
	}{
		{"fails at first", []end{{0, broken}}, []time.Duration{pause}, []sharedMode{polling}, true, 0},
		{"fails for an interval", []end{{0, broken}, {0, broken}, {0, broken}, {0, broken}, {0, broken}, {0, broken},
			{0, broken}}, []time.Duration{pause, pause, pause, pause, pause, pause, pause},
			[]sharedMode{polling, polling, polling, polling, polling, polling, polling}, false, 0},
		{"is closed", []end{{2 * I, nil}, {2 * I, nil}}, []time.Duration{0, 0}, nil, true, 0},
		{"is closed early", []end{{I / 2, nil}}, []time.Duration{pause}, []sharedMode{serving}, true, 0},
		{"brings an error", []end{{2 * I, broken}}, []time.Duration{pause}, []sharedMode{serving}, true, 0},
		{"fails after it was closed", []end{{0, broken}, {2 * I, nil}, {0, broken}}, []time.Duration{pause, 0, pause},
			nil, true, 1},
		{"too many requests", []end{{0, leasetest.TooManyRequests(2 * time.Second)}}, []time.Duration{2 * time.Second},
			[]sharedMode{polling}, true, 0},
		{"is forbidden", []end{{0, forbidden}}, []time.Duration{100 * I}, []sharedMode{ownWatches}, true, 0},
		{"is forbidden after an outage", []end{{0, broken}, {0, leasetest.TooManyRequests(I)}, {0, broken},
			{0, forbidden}}, []time.Duration{pause, I, pause, 100 * I}, nil, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				policy := &fixedBackOff{pause: pause}
				watched, _ := idleSharedWatch(w, []string{name},
					WithBackOff(func() backoff.BackOff { return policy }))
				ctx, stop := context.WithCancel(w.Context())
				watched.done, watched.state.mode = make(chan struct{}), polling
				var ended time.Time
				opened := make(chan int, 9)
				client := &watchingClient{open: func(_ context.Context, nth int) (watch.Interface, error) {
					if nth > 1 {
						if got := time.Since(ended); got != tt.pauses[nth-2] {
							t.Errorf("opened again after %v, want %v", got, tt.pauses[nth-2])
						}
						if tt.modes != nil && watched.current().mode != tt.modes[nth-2] {
							t.Errorf("mode %v before it is opened again, want %v", watched.current().mode,
								tt.modes[nth-2])
						}
					}
					opened <- nth
					events := watch.NewFake()
					if nth > len(tt.ends) {
						return events, nil
					}
					end := tt.ends[nth-1]
					if ended = time.Now(); end.after == 0 {
						return nil, end.err
					}
					time.AfterFunc(end.after, func() {
						if ended = time.Now(); end.err == nil {
							events.Stop()
							return
						}
						events.Error(&metav1.Status{Message: "broken"})
					})
					return events, nil
				}}
				watched.leases = client
				go watched.run(ctx)
				for <-opened <= len(tt.ends) { // until the last one is opened
				}
				synctest.Wait()
				if served := watched.current().mode == serving; served != tt.served {
					t.Errorf("served: %v, want %v", served, tt.served)
				}
				if policy.resets != tt.resets {
					t.Errorf("the BackOff started over %d times, want %d", policy.resets, tt.resets)
				}
				w.sleep(2 * I)
				stop()
				<-watched.done
				if n := len(client.asked); n != len(tt.ends)+1 {
					t.Errorf("opened %d times, want %d", n, len(tt.ends)+1)
				}
			})
		})
	}
}

// The end of ctx ends the pause before a watch is opened again.
func TestSharedWatchEndsWhilePaused(t *testing.T) {
	inWorld(t, func(w *world) {
		watched, _ := idleSharedWatch(w, []string{name})
		watched.leases = &watchingClient{open: func(context.Context, int) (watch.Interface, error) {
			return nil, leasetest.Forbidden(leasetest.Request{Verb: "watch", Namespace: ns})
		}}
		watched.done = make(chan struct{})
		ctx, stop := context.WithTimeout(w.Context(), time.Second)
		defer stop()
		began := time.Now()
		watched.run(ctx)
		if took := time.Since(began); took != time.Second {
			t.Errorf("ended after %v", took)
		}
	})
}

// catchUp in each mode of the watch, and how it ends.
func TestSubscriptionFollows(t *testing.T) {
	const slow = 10 * time.Second // a request that is not answered in time
	for _, tt := range []struct {
		name   string
		mode   sharedMode
		read   bool          // in the round
		check  bool          // is asked for
		ends   time.Duration // when ctx ends; 0 for before
		answer time.Duration // how long a request takes
		fails  bool          // requests do
		served bool
		err    bool
		took   time.Duration
		reads  int
		how    string // it follows at the end
	}{
		{name: "no shared watch", mode: ownWatches, ends: slow},
		{name: "served", mode: serving, read: true, ends: slow, served: true, how: "shared watch"},
		{name: "served once it has read", mode: serving, ends: slow, served: true, reads: 1, how: "shared watch"},
		{name: "the read fails", mode: serving, ends: slow, fails: true, err: true, reads: 1},
		{name: "ctx has ended", mode: serving, read: true},
		{name: "ctx ends while it polls", mode: polling, read: true, ends: I / 10, took: I / 10},
		{name: "ctx ends while it reads", mode: serving, ends: I / 10, answer: slow, err: true, took: I / 10,
			reads: 1},
		{name: "ctx ends while it checks", mode: serving, read: true, check: true, ends: I / 10, answer: slow,
			err: true, took: I / 10, reads: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				watched, subs := idleSharedWatch(w, []string{name})
				s := subs[0]
				reads := 0
				w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
					if reads++; tt.fails {
						return leasetest.Fault{Err: leasetest.InternalError()}
					}
					return leasetest.Fault{Before: tt.answer}
				})
				watched.state = sharedState{mode: tt.mode, round: 3}
				if tt.read {
					s.round = 3
				}
				if tt.check {
					s.reflector.requestCheck()
				}
				ctx, stop := context.WithTimeout(w.Context(), tt.ends)
				defer stop()
				began := time.Now()
				served, err := s.catchUp(ctx)
				took := time.Since(began)
				if served != tt.served || (err != nil) != tt.err || took != tt.took || reads != tt.reads {
					t.Errorf("served: %v, %v, after %v, with %d reads", served, err, took, reads)
				}
				if how := s.reflector.following; how != tt.how {
					t.Errorf("followed by %q, want %q", how, tt.how)
				}
				if read := s.round == 3; read != (tt.read || tt.reads == 1 && !tt.err) {
					t.Errorf("round %d", s.round)
				}
			})
		})
	}
}

// A subscriber polls while the watch does not serve, and reads once in each round.
func TestSubscriptionReads(t *testing.T) {
	const ms = time.Millisecond
	poll := func(check bool) func(context.Context, *subscription) {
		return func(ctx context.Context, s *subscription) { s.poll(ctx, check) }
	}
	inRound := func(ctx context.Context, s *subscription) { s.readInRound(ctx, 3) }
	for _, tt := range []struct {
		name   string
		read   func(context.Context, *subscription)
		known  bool
		crowd  int           // of subscribers
		ends   time.Duration // when ctx ends
		answer time.Duration // how long a read takes
		took   time.Duration
		reads  int
		how    string        // it follows then
		round  uint64        // in which it has read
		lasts  time.Duration // the lease; 0 for D
	}{
		{name: "polls", read: poll(false), known: true, crowd: 1, ends: time.Minute, took: I, reads: 1, how: "poll"},
		{name: "polls at once", read: poll(true), known: true, crowd: 1, ends: time.Minute, reads: 1, how: "poll"},
		{name: "polls, but knows nothing", read: poll(false), crowd: 1, ends: time.Minute, took: longestDelay,
			reads: 1},
		{name: "polls often, but knows nothing", read: poll(false), crowd: 1, ends: time.Minute,
			took: time.Second / 5, reads: 1, lasts: time.Second},
		{name: "ctx ends before it polls", read: poll(false), known: true, crowd: 1, ends: I / 2, took: I / 2,
			how: "poll"},
		{name: "ctx ends while it polls", read: poll(true), known: true, crowd: 1, ends: 50 * ms,
			answer: time.Second, took: 50 * ms, reads: 1, how: "poll"},
		{name: "in a round of few", read: inRound, known: true, crowd: 10, ends: time.Minute, took: 20 * ms,
			reads: 1, how: "before", round: 3},
		{name: "in a round of many", read: inRound, known: true, crowd: 10_000, ends: time.Minute, took: I / 2,
			reads: 1, how: "before", round: 3},
		{name: "in a round, but knows nothing", read: inRound, crowd: 10_000, ends: time.Minute, reads: 1,
			how: "before", round: 3},
		{name: "ctx ends before it reads", read: inRound, known: true, crowd: 10_000, ends: 100 * ms, took: 100 * ms},
		{name: "ctx ends while it reads", read: inRound, crowd: 1, ends: 50 * ms, answer: time.Second,
			took: 50 * ms, reads: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				watched, subs := idleSharedWatch(w, []string{name}, WithDuration(cmp.Or(tt.lasts, D)),
					WithChance(func(n time.Duration) time.Duration { return n }))
				s := subs[0]
				watched.count, watched.state.round = tt.crowd, 3
				if tt.known {
					s.reflector.store.addAnswer(heldByB, observation{})
				}
				reads := 0
				w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
					reads++
					return leasetest.Fault{Before: tt.answer}
				})
				ctx, stop := context.WithTimeout(w.Context(), tt.ends)
				defer stop()
				s.reflector.following = "before"
				began := time.Now()
				tt.read(ctx, s)
				if took := time.Since(began); took != tt.took || reads != tt.reads {
					t.Errorf("%d reads, after %v, want %d, after %v", reads, took, tt.reads, tt.took)
				}
				how := s.reflector.following
				if how != tt.how {
					t.Errorf("followed by %q, want %q", how, tt.how)
				}
				if s.round != tt.round {
					t.Errorf("read in round %d, want %d", s.round, tt.round)
				}
			})
		})
	}
}

// A subscriber whose check is due reads, and reports what the watch missed.
func TestSubscriptionChecks(t *testing.T) {
	for _, tt := range []struct {
		name    string
		request bool // another watch is asked for
		exists  bool
		brought bool // the watch has brought what there is
		just    bool // the watch was opened just now
		fails   bool
		took    time.Duration
		reopen  bool
		afresh  bool
		due     bool // another check
	}{
		{name: "nothing missed", exists: true, brought: true},
		{name: "missed", exists: true, reopen: true},
		{name: "missed, but it is too early to tell", exists: true, just: true, took: I, reopen: true},
		{name: "asked for, and the Lease is gone", request: true, just: true, reopen: true, afresh: true},
		{name: "asked for", request: true, exists: true, brought: true},
		{name: "the read fails", exists: true, fails: true, due: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				if tt.exists {
					w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
				}
				watched, subs := idleSharedWatch(w, []string{name})
				s := subs[0]
				r := s.reflector
				if tt.brought {
					if _, err := r.read(w.Context()); err != nil {
						t.Fatal(err)
					}
					r.store.watched = r.store.heard
				}
				watched.state.serial = 4
				if !tt.just {
					watched.openedAt = time.Now().Add(-I)
				} else {
					watched.openedAt = time.Now()
				}
				if tt.request {
					r.requestReopen()
					r.takeCheck()
					<-r.alarm
				}
				w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
					if tt.fails {
						return leasetest.Fault{Err: leasetest.InternalError()}
					}
					return leasetest.Fault{}
				})
				began := time.Now()
				err := s.checkAndReport(w.Context(), 4)
				took := time.Since(began)
				if (err != nil) != tt.fails || took != tt.took {
					t.Errorf("%v, after %v, want %v", err, took, tt.took)
				}
				if reopen := len(watched.reopenNow) == 1; reopen != tt.reopen || watched.openAfresh != tt.afresh {
					t.Errorf("opened again: %v, want %v; afresh: %v, want %v", reopen, tt.reopen, watched.openAfresh,
						tt.afresh)
				}
				if due := r.takeCheck(); due != tt.due {
					t.Errorf("another check: %v, want %v", due, tt.due)
				}
			})
		})
	}
	t.Run("ctx ends", func(t *testing.T) {
		for _, answer := range []time.Duration{0, time.Second} {
			inWorld(t, func(w *world) {
				w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
				watched, subs := idleSharedWatch(w, []string{name})
				watched.openedAt = time.Now()
				w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
					return leasetest.Fault{Before: answer}
				})
				ctx, stop := context.WithTimeout(w.Context(), time.Second/2)
				defer stop()
				began := time.Now()
				err := subs[0].checkAndReport(ctx, 0)
				if took := time.Since(began); took != time.Second/2 || (err != nil) != (answer > 0) {
					t.Errorf("%v after %v", err, took)
				}
			})
		}
	})
}

// A shared watch is opened in, and logs, the namespace of its first subscriber.
func TestNewSharedWatch(t *testing.T) {
	inWorld(t, func(w *world) {
		watched, _ := idleSharedWatch(w, []string{name}, WithNamespace("elsewhere"))
		watched.log.warn("a line")
		w.sleep(0)
		if watched.namespace != "elsewhere" || w.logged("namespace=elsewhere") != 1 {
			t.Errorf("of %q", watched.namespace)
		}
		for _, namespace := range []string{ns, "elsewhere"} {
			w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
		}
		events, err := watched.open(w.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer events.Stop()
		if event := <-events.ResultChan(); event.Object.(*coordinationv1.Lease).Namespace != "elsewhere" {
			t.Errorf("brought %+v", event)
		}
	})
}

// A failure that is the duration old is not counted as an outage any more.
func TestSharedWatchForgetsFailures(t *testing.T) {
	inWorld(t, func(w *world) {
		watched, _ := idleSharedWatch(w, []string{name})
		watched.failures.record("watch", leasetest.ServiceUnavailable())
		watched.failures.record("get", leasetest.ServiceUnavailable())
		w.sleep(D - time.Nanosecond)
		watched.failures.record("get", nil)
		w.sleep(0)
		if w.logged("API requests succeed again") != 0 {
			t.Error("a recent failure was forgotten")
		}
		w.sleep(time.Nanosecond)
		watched.failures.record("get", nil)
		w.sleep(0)
		if w.logged("API requests succeed again") != 1 {
			t.Error("a failure of long ago was not forgotten")
		}
	})
}

// Any goroutine may call any method of the shared watch. Only the race detector can fail this test.
func TestSharedWatchConcurrently(t *testing.T) {
	inWorld(t, func(w *world) {
		watched, subs := idleSharedWatch(w, []string{"x", "y"})
		c := idleCampaign(w, WithLease("x"))
		s := subs[0]
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "x", UID: "u", ResourceVersion: "odd"}}
		var all sync.WaitGroup
		for _, call := range []func(){
			func() { watched.subscriptions() },
			func() { watched.size() },
			func() { watched.anyStore("x", func(s *leaseStore) bool { return s.keeps(heldByB.term()) }) },
			func() { watched.current() },
			func() { watched.serve() },
			func() { watched.reportMissed(s.reflector, 0) },
			func() { watched.reopenAfresh() },
			func() { watched.handOut(watch.Event{Type: watch.Modified, Object: lease}) },
			func() { s.notBrought(7) },
			func() { s.setRound(1) },
			func() { s.current() },
			func() { c.client.joinWatch(c.reflector, watched).close() },
		} {
			all.Go(func() {
				for range 50 {
					call()
				}
			})
		}
		all.Wait()
	})
}
