package leasehold

import (
	"context"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

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
