package leasehold

import (
	"context"
	"errors"
	"fmt"
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

// For how long a watch that was refused is not tried again.
func TestRefusedWatchPause(t *testing.T) {
	for interval, want := range map[time.Duration]time.Duration{
		time.Second: 100 * time.Second, I: 5 * time.Minute, time.Minute: time.Hour, maxDuration: time.Hour,
	} {
		if got := refusedWatchPause(interval); got != want {
			t.Errorf("interval %v: %v, want %v", interval, got, want)
		}
	}
}

// A watch is checked if it has not brought what was written, and replaced if it has missed something.
func TestReflectorCheck(t *testing.T) {
	edit := func(w *world) {
		w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
			l.Labels = map[string]string{"edited": l.Labels["edited"] + "x"}
		})
	}
	remove := func(w *world) { w.srv.Delete(ns, name) }
	for _, tt := range []struct {
		name    string
		request bool         // another watch is asked for
		brought func(*world) // what the watch brings while the Lease is read; nil for nothing
		missed  func(*world) // what it does not bring
		reopen  bool
	}{
		{"nothing happens", false, nil, func(*world) {}, false},
		{"an edit is missed", false, nil, edit, true},
		{"a deletion is missed", false, nil, remove, true},
		{"an edit is brought", false, edit, func(*world) {}, false},
		{"a deletion is brought", false, remove, func(*world) {}, false},
		{"the second edit is missed", false, edit, edit, true},
		{"nothing is missed, but another one is asked for", true, nil, func(*world) {}, true},
		{"the read fails", false, nil, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.acquire(w.Context(), "before").Release()
				c := idleCampaign(w)
				r := c.reflector
				rec, err := r.read(w.Context())
				if err != nil {
					t.Fatal(err)
				}
				if r.requestCheckUnlessHeard(rec.version); r.takeCheck() || len(r.alarm) > 0 {
					t.Error("a check for what was heard")
				}
				if r.requestCheckUnlessHeard(rec.version + 1); len(r.alarm) != 1 || !r.takeCheck() || r.takeCheck() {
					t.Error("no check for what was not heard, or two")
				}
				<-r.alarm
				if tt.request {
					r.requestReopen()
					if !r.reopenRequested() || len(r.alarm) != 1 || !r.takeCheck() {
						t.Error("no check for another watch")
					}
				}
				watching, err := r.lease.watch(w.Context(), rec)
				if err != nil {
					t.Fatal(err)
				}
				defer watching.Stop()
				w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
					if tt.missed == nil {
						return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
					}
					if tt.brought != nil {
						tt.brought(w)
						if err := r.store.addEvent(<-watching.ResultChan(), false); err != nil {
							t.Error(err)
						}
					}
					tt.missed(w)
					return leasetest.Fault{}
				})
				reopen, err := r.check(w.Context())
				if reopen != tt.reopen || (err != nil) != (tt.missed == nil) || r.reopenRequested() {
					t.Errorf("another watch: %v, want %v; %v", reopen, tt.reopen, err)
				}
				if !c.client.permits.TryAcquire(maxInFlight) {
					t.Error("a permit was not given back")
				}
				c.client.permits.Release(maxInFlight)
			})
		})
	}
}

// A read that is not answered is sent again, and the first answer counts. It ends in time, with ctx, and without a
// permit if there is none.
func TestReads(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fates  []leasetest.Fault // of the first reads; the others are like the last
		ends   time.Duration     // when ctx ends
		permit bool
		took   time.Duration
		sent   int
		want   string // the error
	}{
		{"at once", []leasetest.Fault{{}}, time.Hour, true, 0, 1, ""},
		{"slowly", []leasetest.Fault{{After: longestDelay - 1}}, time.Hour, true, longestDelay - 1, 1, ""},
		{"the first is lost", []leasetest.Fault{{Drop: leasetest.TheRequest}, {}}, time.Hour, true, longestDelay, 2,
			""},
		{"the second is slower", []leasetest.Fault{{After: time.Second}, {After: time.Hour}}, time.Hour, true,
			time.Second, 2, ""},
		{"fails", []leasetest.Fault{{Err: leasetest.Unauthorized()}}, time.Hour, true, 0, 1, "Unauthorized"},
		{"no answer", []leasetest.Fault{{Drop: leasetest.TheRequest}}, time.Hour, true, R / 3, 7, "no answer in 4s"},
		{"ctx ends", []leasetest.Fault{{Drop: leasetest.TheRequest}}, time.Second, true, time.Second, 2, "canceled"},
		{"no permit", []leasetest.Fault{{}}, time.Second, false, time.Second, 0, "canceled"},
	} {
		for _, afresh := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				inWorld(t, func(w *world) {
					w.acquire(w.Context(), "before").Release()
					c := idleCampaign(w)
					if _, err := c.lease.get(w.Context()); err != nil { // so that the timeout is the usual one
						t.Fatal(err)
					}
					done := make(chan int, 9)
					w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
						done <- 1
						return tt.fates[min(len(done)-1, len(tt.fates)-1)]
					})
					ctx, cancel := context.WithCancel(w.Context())
					defer cancel()
					time.AfterFunc(tt.ends, cancel)
					if !tt.permit {
						c.client.permits.Acquire(ctx, maxInFlight)
					}
					began := time.Now()
					var err error
					if afresh {
						err = c.reflector.readAfresh(ctx)
					} else {
						_, err = c.reflector.read(ctx)
					}
					if took := time.Since(began); took != tt.took || len(done) != tt.sent {
						t.Errorf("took %v, want %v; sent %d, want %d", took, tt.took, len(done), tt.sent)
					}
					if (err != nil) != (tt.want != "") || !strings.Contains(errorText(err), tt.want) {
						t.Errorf("%v, want %q", err, tt.want)
					}
					w.sleep(0)
					if logged := w.logged(`msg="API requests are failing`); logged > 0 != (tt.name == "fails" ||
						tt.name == "no answer") {
						t.Errorf("logged %d times", logged)
					}
					known := c.store.latest().known
					if known != (tt.want == "") || c.reflector.reopenRequested() != (afresh && known) {
						t.Errorf("known: %v, another watch is asked for: %v", known, c.reflector.reopenRequested())
					}
					if !tt.permit {
						c.client.permits.Release(maxInFlight)
					}
					if !c.client.permits.TryAcquire(maxInFlight) {
						t.Error("a permit was not given back")
					}
					c.client.permits.Release(maxInFlight)
				})
			})
		}
	}
}

// What is known, and how it came, while the own watch is opened, ends, is refused, and brings nothing.
func TestOwnWatch(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fates map[string][]error // of the requests of a kind, one after the other; answered afterwards
		sent  string             // in the first ten seconds
		by    string             // how the Lease is followed then
	}{
		{"watched", nil, "get watch", "watch"},
		{"the read fails", map[string][]error{"get": {leasetest.ServiceUnavailable()}}, "get get watch", "watch"},
		{"the watch fails", map[string][]error{"watch": {leasetest.ServiceUnavailable()}}, "get watch get watch",
			"watch"},
		{"the watch is refused", map[string][]error{"watch": {leasetest.Forbidden(leasetest.Request{Verb: "watch"})}},
			"get watch get get get get", "poll"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.acquire(w.Context(), "before").Release()
				c := idleCampaign(w)
				seen := make(chan string, 99)
				counts := make(chan map[string]int, 1)
				counts <- map[string]int{}
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					n := <-counts
					defer func() { counts <- n }()
					seen <- r.Verb
					n[r.Verb]++
					if fates := tt.fates[r.Verb]; n[r.Verb] <= len(fates) {
						return leasetest.Fault{Err: fates[n[r.Verb]-1]}
					}
					return leasetest.Fault{}
				})
				c.start()
				w.sleep(10 * time.Second)
				var status LeaseStatus
				c.reflector.describe(&status)
				if status.Following != tt.by || c.reflector.watching() != (tt.by == "watch") {
					t.Errorf("followed by %q, want %q", status.Following, tt.by)
				}
				c.reflector.close()
				if c.reflector.describe(&status); status.Following != "" || c.reflector.watching() {
					t.Errorf("followed by %q after it was closed", status.Following)
				}
				close(seen)
				var sent []string
				for verb := range seen {
					sent = append(sent, verb)
				}
				if got := strings.Join(sent, " "); got != tt.sent {
					t.Errorf("sent %s, want %s", got, tt.sent)
				}
			})
		})
	}
}

// A pause ends when there is something to look at, or with ctx.
func TestReflectorPause(t *testing.T) {
	for _, tt := range []struct {
		name       string
		wake, ends time.Duration
		took       time.Duration
		whole      bool
	}{
		{"whole", time.Hour, time.Hour, time.Minute, true},
		{"woken", time.Second, time.Hour, time.Second, false},
		{"ctx ends", time.Hour, time.Second, time.Second, false},
	} {
		inWorld(t, func(w *world) {
			r := idleCampaign(w).reflector
			ctx, cancel := context.WithCancel(w.Context())
			defer cancel()
			time.AfterFunc(tt.ends, cancel)
			wakes := time.AfterFunc(tt.wake, r.wake)
			defer wakes.Stop()
			began := time.Now()
			if whole := r.pause(ctx, time.Minute); whole != tt.whole || time.Since(began) != tt.took {
				t.Errorf("%s: %v after %v", tt.name, whole, time.Since(began))
			}
		})
	}
}

// Whatever a reflector waits for, it ends at once when it is closed.
func TestReflectorCloses(t *testing.T) {
	lost := leasetest.Fault{Drop: leasetest.TheRequest}
	of := func(verb string, f leasetest.Fault) func(leasetest.Request) leasetest.Fault {
		return func(r leasetest.Request) leasetest.Fault {
			if r.Verb != verb {
				return leasetest.Fault{}
			}
			return f
		}
	}
	for _, tt := range []struct {
		name     string
		known    bool // the Lease was just read
		fate     func(leasetest.Request) leasetest.Fault
		noPermit bool
		then     func(*reflector, *leasetest.Client) // a second after it began
		by       string                              // how the Lease is followed just before
	}{
		{name: "it follows", by: "watch"},
		{name: "a read", fate: of("get", lost)},
		{name: "a permit to read", noPermit: true},
		{name: "a pause after a read that failed", fate: of("get", leasetest.Fault{Err: leasetest.Unauthorized()})},
		{name: "a permit to watch", known: true, noPermit: true},
		{name: "a watch to open", known: true, fate: of("watch", lost)},
		{name: "a pause after a watch that failed", known: true,
			fate: of("watch", leasetest.Fault{Err: leasetest.Unauthorized()})},
		{name: "the next read where watching is forbidden", by: "poll",
			fate: of("watch", leasetest.Fault{Err: leasetest.Forbidden(leasetest.Request{Verb: "watch"})})},
		{name: "the read of a check", by: "watch", then: func(r *reflector, c *leasetest.Client) {
			c.OnRequest(of("get", lost))
			r.requestCheck()
		}},
		{name: "a permit for the read of a check", by: "watch", then: func(r *reflector, c *leasetest.Client) {
			r.client.permits.TryAcquire(maxInFlight)
			r.requestCheck()
		}},
		{name: "a pause after a read that failed when the watch had ended",
			then: func(r *reflector, c *leasetest.Client) {
				c.OnRequest(of("get", leasetest.Fault{Err: leasetest.Unauthorized()}))
				c.CloseWatches(nil)
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.acquire(w.Context(), "before").Release()
				c := idleCampaign(w,
					WithBackOff(func() backoff.BackOff { return &fixedBackOff{pause: time.Second / 2} }))
				r, client := c.reflector, w.srv.Client("a")
				if tt.known {
					if _, err := r.read(w.Context()); err != nil {
						t.Fatal(err)
					}
				}
				client.OnRequest(tt.fate)
				if tt.noPermit {
					c.client.permits.TryAcquire(maxInFlight)
				}
				c.start()
				w.sleep(time.Second)
				if tt.then != nil {
					tt.then(r, client)
				}
				w.sleep(refusedDelay)
				var status LeaseStatus
				if r.describe(&status); status.Following != tt.by {
					t.Errorf("followed by %q, want %q", status.Following, tt.by)
				}
				began := time.Now()
				r.close()
				if took := time.Since(began); took != 0 {
					t.Errorf("it took %v", took)
				}
				if n := client.WatchCount(); n != 0 {
					t.Errorf("%d watches are left", n)
				}
			})
		})
	}
}

// A watchLog is a client that records the versions after which watches are opened.
type watchLog struct {
	Leases
	versions chan string
	fails    chan error // how the next ones end
}

func (l *watchLog) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	l.versions <- opts.ResourceVersion
	select {
	case err := <-l.fails:
		return nil, err
	default:
		return l.Leases.Watch(ctx, opts)
	}
}

// An own watch is opened after what is known, and afresh only where the server has forgotten what happened since. One
// that has lasted is opened again at once.
func TestOwnWatchGoesOn(t *testing.T) {
	const pause = 130 * time.Millisecond
	expired := apierrors.NewResourceExpired("too old resource version")
	for _, tt := range []struct {
		name   string
		lasts  time.Duration
		ends   error   // of the watch
		fails  []error // of the next ones
		afresh []bool
		after  time.Duration // until the last of them
	}{
		{"soon", I - 1, nil, nil, []bool{false}, pause},
		{"later", I, nil, nil, []bool{false}, 0},
		{"later, with an error", I, leasetest.InternalError(), nil, []bool{false}, pause},
		{"forgotten", I, expired, nil, []bool{true}, pause},
		{"forgotten when it is opened again", I, nil, []error{expired}, []bool{false, true}, 0},
		{"fails to open again", I, nil, []error{leasetest.Unauthorized()}, []bool{false, false}, pause},
		{"fails to open again for a while", I, nil, []error{leasetest.TooManyRequests(2 * time.Second)},
			[]bool{false, false}, 2 * time.Second},
		{"fails to open afresh", I, nil, []error{expired, leasetest.Unauthorized()}, []bool{false, true, false},
			pause},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.acquire(w.Context(), "before").Release()
				log := &watchLog{versions: make(chan string, 9), fails: make(chan error, 2)}
				c := idleCampaign(w, WithBackOff(func() backoff.BackOff { return &fixedBackOff{pause: pause} }),
					func(o *options) {
						o.hooks.wrap = func(l Leases) Leases {
							log.Leases = l
							return log
						}
					})
				c.start()
				version := w.lease().ResourceVersion
				if from := <-log.versions; from != version {
					t.Errorf("watches after %q, want %q", from, version)
				}
				w.sleep(tt.lasts)
				for _, err := range tt.fails {
					log.fails <- err
				}
				ended := time.Now()
				w.srv.Client("a").CloseWatches(tt.ends)
				for _, afresh := range tt.afresh {
					want := version
					if afresh {
						want = ""
					}
					if from := <-log.versions; from != want {
						t.Errorf("watches after %q, want %q", from, want)
					}
				}
				if took := time.Since(ended); took != tt.after {
					t.Errorf("after %v, want %v", took, tt.after)
				}
				c.reflector.close()
			})
		})
	}
}

// A check whose read fails ends the watch, and the next one is opened after a read, as late as the failure says.
func TestCheckFails(t *testing.T) {
	inWorld(t, func(w *world) {
		w.acquire(w.Context(), "before").Release()
		c := idleCampaign(w)
		c.start()
		w.sleep(time.Second)
		began := time.Now()
		var mu sync.Mutex
		sent := map[string]time.Duration{} // when the last of a kind was
		n := 0
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			sent[r.Verb] = time.Since(began)
			if n++; n == 1 {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			}
			return leasetest.Fault{}
		})
		c.reflector.requestCheck()
		w.sleep(I)
		c.reflector.close()
		want := map[string]time.Duration{"get": refusedDelay, "watch": refusedDelay}
		if n != 3 || !maps.Equal(sent, want) {
			t.Errorf("%d requests, the last ones after %v", n, sent)
		}
	})
}

// A reflector that the shared watch serves sleeps, unless there is something to look at, and is woken only until it is
// closed.
func TestReflectorSleeps(t *testing.T) {
	r := &reflector{alarm: newWakeup()}
	r.alarm.signal()
	if r.sleepUntilWoken() || r.sleeping || r.watching() {
		t.Error("it sleeps though there is something to look at")
	}
	if !r.sleepUntilWoken() || !r.sleeping || !r.watching() || r.following != "shared watch" {
		t.Errorf("sleeping: %v, watching: %v, by %q", r.sleeping, r.watching(), r.following)
	}
	r.closed = true
	if r.wake(); !r.sleeping || len(r.alarm) != 1 {
		t.Errorf("woken after it was closed: %v", !r.sleeping)
	}
}

// A reflector that is woken while it is closed goes on sleeping.
func TestReflectorWokenWhileItCloses(t *testing.T) {
	inWorld(t, func(w *world) {
		c := idleCampaign(w, WithSharedFrom(1))
		c.start()
		w.sleep(time.Second)
		r := c.reflector
		if !r.watching() || r.stop != nil {
			t.Fatalf("watching: %v, running: %v", r.watching(), r.stop != nil)
		}
		woken := false
		r.stop = func() {
			r.wake()
			r.mu.Lock()
			defer r.mu.Unlock()
			woken = !r.sleeping
		}
		if r.close(); woken {
			t.Error("it was woken")
		}
	})
}

// Any goroutine may call any method of a reflector, also while it is started, and while it sleeps. Only the race
// detector can fail this test.
func TestReflectorConcurrently(t *testing.T) {
	inWorld(t, func(w *world) {
		_, subs := idleSharedWatch(w, []string{name, name})
		started, asleep := subs[0].reflector, subs[1].reflector
		asleep.subscription, asleep.closed = subs[1], true // nothing starts it
		var all sync.WaitGroup
		repeat := func(calls ...func()) {
			for _, call := range calls {
				all.Go(func() {
					for range 50 {
						call()
					}
				})
			}
		}
		for _, r := range []*reflector{started, asleep} {
			repeat(
				func() { r.requestCheckUnlessHeard(7) },
				func() { r.requestCheck() },
				func() { r.requestReopen() },
				func() { r.reopenRequested() },
				func() { r.takeCheck() },
				func() { r.checkStuck(name, D) },
				func() { r.watching() },
				func() { r.describe(&LeaseStatus{}) },
				func() { r.wake() },
				func() { r.setFollowing("poll") },
			)
		}
		repeat(func() { asleep.sleepUntilWoken() })
		all.Go(func() { started.start(w.Context(), subs[0]) })
		all.Wait()
	})
}

// A check may be asked for while the reflector goes to sleep.
func TestReflectorSleepsWhileACheckIsRequested(t *testing.T) {
	inWorld(t, func(w *world) {
		_, subs := idleSharedWatch(w, []string{name})
		r := subs[0].reflector
		r.subscription, r.closed = subs[0], true // nothing starts it
		var both sync.WaitGroup
		for _, call := range []func(){
			func() { r.requestCheckUnlessHeard(7) },
			func() { r.sleepUntilWoken() },
		} {
			both.Go(func() {
				for range 50 {
					call()
				}
			})
		}
		both.Wait()
	})
}

// However often another watch is asked for, one is open.
func TestReflectorClosesEachWatch(t *testing.T) {
	inWorld(t, func(w *world) {
		c := idleCampaign(w)
		c.start()
		for range 3 {
			w.sleep(I)
			c.reflector.requestReopen()
		}
		w.sleep(I)
		if n := w.srv.Client("a").WatchCount(); n != 1 {
			t.Errorf("%d watches", n)
		}
	})
}

// Where the shared watch follows a Lease that cannot be read, it is read again as late as the failure says.
func TestReadBesideSharedWatchFails(t *testing.T) {
	inWorld(t, func(w *world) {
		const wait = 2 * time.Second
		c := idleCampaign(w, WithSharedFrom(1))
		reads := make(chan time.Time, 99)
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb != "get" {
				return leasetest.Fault{}
			}
			reads <- time.Now()
			if len(reads) == 1 {
				return leasetest.Fault{Err: leasetest.TooManyRequests(wait)}
			}
			return leasetest.Fault{}
		})
		c.start()
		w.sleep(2 * wait)
		if len(reads) != 2 {
			t.Fatalf("%d reads", len(reads))
		}
		if first, second := <-reads, <-reads; second.Sub(first) != wait {
			t.Errorf("read again after %v, want %v", second.Sub(first), wait)
		}
	})
}

// How long a reflector waits is measured by the clock of the candidate.
func TestReflectorWaitsByClock(t *testing.T) {
	for _, rate := range []float64{0.5, 2} {
		for _, tt := range []struct {
			name string
			wait func(*world, *reflector)
			want time.Duration
		}{
			{"an answer", func(w *world, r *reflector) { r.read(w.Context()) }, R / 3},
			{"a pause", func(w *world, r *reflector) { r.pause(w.Context(), time.Second) }, time.Second},
		} {
			inWorld(t, func(w *world) {
				c := idleCampaign(w, withClock(rateClock{time.Now(), rate}))
				c.reflector.timeout.answers.record(1)
				w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
					return leasetest.Fault{Drop: leasetest.TheRequest}
				})
				began := time.Now()
				tt.wait(w, c.reflector)
				if took, want := time.Since(began), time.Duration(float64(tt.want)/rate); took != want {
					t.Errorf("%s, clock of rate %v: %v, want %v", tt.name, rate, took, want)
				}
			})
		}
	}
}

// errNeither makes a client return neither a result nor an error.
var errNeither = errors.New("neither")

// A silentWatch never closes its channel, even when it is stopped.
type silentWatch struct{ stopped bool }

func (*silentWatch) ResultChan() <-chan watch.Event { return make(chan watch.Event) }
func (w *silentWatch) Stop()                        { w.stopped = true }

// A hostileWatch misbehaves when it is stopped. It has no events, and does not end.
type hostileWatch struct{ ask, stop func() }

func (w hostileWatch) ResultChan() <-chan watch.Event { w.ask(); return make(chan watch.Event) }
func (w hostileWatch) Stop()                          { w.stop() }

// A hostileChannel is a watch that misbehaves when it is asked for its channel, of which it has none.
type hostileChannel struct {
	ask   func()
	stops *atomic.Int64
}

func (w hostileChannel) ResultChan() <-chan watch.Event { w.ask(); return nil }
func (w hostileChannel) Stop()                          { w.stops.Add(1) }

// The channel of a watch is the program's code too: a panic ends the campaign, and one that is missing, or that takes
// too long, is an error.
func TestChannelOfWatch_G13(t *testing.T) {
	const timeout = time.Second
	for _, what := range append(misdeeds, misdeed{"returns", func(<-chan struct{}) {}}) {
		t.Run(what.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var aborted atomic.Bool
				var stops atomic.Int64
				until := make(chan struct{})
				user := &userCode{clock: systemClock{}, abort: func(*userPanic) { aborted.Store(true) }}
				began := time.Now()
				_, err := openWatch(t.Context(), user, user.clock, timeout,
					func(context.Context) (watch.Interface, error) {
						return hostileChannel{func() { what.do(until) }, &stops}, nil
					})
				if err == nil || time.Since(began) > timeout+answerGrace {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				const none = "the client returned a watch without a channel"
				if (err.Error() == none) != (what.name == "returns") {
					t.Error(err)
				}
				close(until)
				synctest.Wait()
				stopped := what.name == "returns" || what.name == "blocks"
				if aborted.Load() != (what.name == "panics") || (stops.Load() == 1) != stopped {
					t.Errorf("aborted: %v; stopped %d times", aborted.Load(), stops.Load())
				}
				if left := user.underWay(); len(left) > 0 {
					t.Errorf("%q goes on", left[0].what)
				}
			})
		})
	}
}

// The stop of a watch is the program's code, also of one that opened when nobody waited for it any more: a panic ends
// the campaign, and the end of the campaign waits for what it does.
func TestStopOfWatch_G13(t *testing.T) {
	const timeout = time.Second
	for _, opens := range []time.Duration{
		0, timeout + answerGrace/2, timeout + answerGrace, timeout + 2*answerGrace,
	} {
		for _, what := range append(misdeeds, misdeed{"returns", func(<-chan struct{}) {}}) {
			t.Run(fmt.Sprintf("opens after %v, %s", opens, what.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var aborted atomic.Bool
					var asks, stops atomic.Int64
					until := make(chan struct{})
					user := &userCode{clock: systemClock{}, abort: func(*userPanic) { aborted.Store(true) }}
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					began := time.Now()
					events, err := openWatch(ctx, user, user.clock, timeout,
						func(context.Context) (watch.Interface, error) {
							time.Sleep(opens)
							return hostileWatch{func() { asks.Add(1) }, func() {
								stops.Add(1)
								what.do(until)
							}}, nil
						})
					if (err == nil) != (opens == 0) || time.Since(began) > opens+userCodeGrace {
						t.Fatalf("%v after %v", err, time.Since(began))
					}
					if err == nil {
						events.ResultChan()
						events.Stop()
					}
					user.wait()
					if took := time.Since(began); what.name == "returns" && took != opens+answerGrace {
						t.Errorf("over after %v", took)
					}
					if aborted.Load() != (what.name == "panics") || asks.Load() != 1 || stops.Load() != 1 {
						t.Errorf("aborted: %v; asked for its channel %d times; stopped %d times",
							aborted.Load(), asks.Load(), stops.Load())
					}
					close(until)
					time.Sleep(2 * answerGrace)
					synctest.Wait()
					if left := user.underWay(); len(left) > 0 {
						t.Errorf("%q goes on", left[0].what)
					}
				})
			})
		}
	}
}

// Opening a watch takes bounded time by the candidate's clock. A watch that opens too late is stopped. The request ends
// when the watch is stopped or fails to open.
func TestOpenWatch(t *testing.T) {
	const timeout, ms = time.Second, time.Millisecond // the clock is twice as fast
	for _, tt := range []struct {
		name   string
		opens  time.Duration // after
		fails  error
		silent bool
		err    string
		took   time.Duration
		stop   time.Duration // how long it takes to stop it
	}{
		{"opens", 0, nil, false, "<nil>", 0, 0},
		{"opens, and does not end", 0, nil, true, "<nil>", 0, answerGrace / 2},
		{"opens in time", timeout/2 - ms, nil, false, "<nil>", timeout/2 - ms, 0},
		{"fails", 0, errors.New("broken"), false, "broken", 0, 0},
		{"neither opens nor fails", 0, errNeither, false, "the client returned neither a result nor an error", 0, 0},
		{"opens too late", timeout/2 + 10*ms, nil, true, "opening a watch took longer than 1s",
			timeout/2 + 10*ms + answerGrace/2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clock := rateClock{time.Now(), 2}
				user := &userCode{clock: clock}
				var request context.Context
				silent, fake := &silentWatch{}, watch.NewFake()
				time.AfterFunc(timeout/2-1, func() {
					if c, _ := user.stuck(); c != nil {
						t.Errorf("%s is late", c.what)
					}
				})
				began := time.Now()
				events, err := openWatch(t.Context(), user, clock, timeout,
					func(ctx context.Context) (watch.Interface, error) {
						request = ctx
						time.Sleep(tt.opens)
						switch {
						case tt.fails == errNeither:
							return nil, nil
						case tt.fails != nil:
							return nil, tt.fails
						case tt.silent:
							return silent, nil
						}
						return fake, nil
					})
				if took := time.Since(began); errorText(err) != tt.err || took != tt.took {
					t.Errorf("%v after %v, want %s after %v", err, took, tt.err, tt.took)
				}
				if err == nil {
					time.Sleep(time.Minute)
					if request.Err() != nil {
						t.Error("the request ended while the watch was open")
					}
					began := time.Now()
					events.Stop()
					if took := time.Since(began); took != tt.stop {
						t.Errorf("stopped after %v, want %v", took, tt.stop)
					}
				}
				if request.Err() == nil {
					t.Error("the request goes on")
				}
				if stopped := silent.stopped || fake.IsStopped(); stopped != (tt.fails == nil) {
					t.Errorf("stopped: %v", stopped)
				}
			})
		})
	}
}
