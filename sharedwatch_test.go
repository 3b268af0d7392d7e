package leasehold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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
