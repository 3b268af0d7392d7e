package leasehold

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

// What freeing a lease sends, how it ends, and when. It leaves no permit behind.
func TestFree(t *testing.T) {
	const pause = 130 * time.Millisecond
	lost := errors.New("not the test's")
	always := func(f leasetest.Fault) func(w *world, r leasetest.Request) leasetest.Fault {
		return func(*world, leasetest.Request) leasetest.Fault { return f }
	}
	// first is the fate of the first request of a kind alone.
	first := func(verb string, f leasetest.Fault) func(w *world, r leasetest.Request) leasetest.Fault {
		n := 0
		return func(_ *world, r leasetest.Request) leasetest.Fault {
			if r.Verb != verb || n > 0 {
				return leasetest.Fault{}
			}
			n++
			return f
		}
	}
	// meanwhile is first, and does something when the Lease is read.
	meanwhile := func(f leasetest.Fault, do func(*world)) func(w *world, r leasetest.Request) leasetest.Fault {
		fate := first("patch", f)
		return func(w *world, r leasetest.Request) leasetest.Fault {
			if r.Verb == "get" {
				do(w)
			}
			return fate(w, r)
		}
	}
	// readsAfter reads, as if a watch brought the news then.
	readsAfter := func(d time.Duration) func(*world, *campaign) {
		return func(w *world, c *campaign) {
			time.AfterFunc(time.Second+d, func() { c.reflector.read(w.Context()) })
		}
	}
	steal := func(w *world) { w.steal("thief") }
	lostReply := leasetest.Fault{Drop: leasetest.TheReply, Err: leasetest.EOF()}
	deletes := []Option{WithDeleteOnRelease()}
	for _, tt := range []struct {
		name   string
		opts   []Option
		fate   func(w *world, r leasetest.Request) leasetest.Fault
		before func(*world, *campaign)
		ends   time.Duration // when ctx ends; 0 for never
		want   error
		sent   string // the requests
		took   time.Duration
		left   string // the holder at the end; "none" for no Lease
		logs   string
	}{
		{name: "at once", sent: "patch"},
		{name: "unavailable for a moment", fate: first("patch", leasetest.Fault{Err: leasetest.ServiceUnavailable()}),
			sent: "patch get patch", took: pause},
		{name: "too many requests for a moment",
			fate: first("patch", leasetest.Fault{Err: leasetest.TooManyRequests(time.Second)}), sent: "patch patch",
			took: time.Second},
		{name: "the reply is lost", fate: first("patch", lostReply), sent: "patch get", took: pause},
		{name: "the reply is lost, and another acquires the lease", opts: deletes, fate: meanwhile(lostReply, steal),
			sent: "patch get", took: pause, left: "thief"},
		{name: "the reply is lost, and the Lease is deleted", opts: deletes,
			fate: meanwhile(lostReply, func(w *world) { w.srv.Delete(ns, name) }), sent: "patch get", took: pause,
			left: "none"},
		{name: "not ours", before: func(w *world, c *campaign) {
			w.steal("thief")
			c.reflector.read(w.Context())
		}, want: lost, left: "thief"},
		{name: "not ours, as a conflict shows", before: func(w *world, c *campaign) { w.steal("thief") }, want: lost,
			sent: "patch get", took: pause, left: "thief"},
		{name: "the reply is lost, and a watch brings it",
			fate:   first("patch", leasetest.Fault{Drop: leasetest.TheReply, After: time.Second, Err: leasetest.EOF()}),
			before: readsAfter(time.Second / 2), sent: "patch get", took: time.Second + pause},
		{name: "no answer until ctx ends", fate: always(leasetest.Fault{Drop: leasetest.TheRequest}),
			ends: time.Second, want: context.Canceled, sent: "patch", took: time.Second, left: "a"},
		{name: "no answer until ctx ends, but a watch brings it", opts: deletes,
			fate: first("patch", leasetest.Fault{Drop: leasetest.TheReply}), before: readsAfter(time.Second / 2),
			ends: time.Second, sent: "patch get delete", took: time.Second, left: "none"},
		{name: "no answer", fate: always(leasetest.Fault{Drop: leasetest.TheRequest}), want: context.DeadlineExceeded,
			sent: "patch get get", took: R / 4, left: "a"},
		{name: "unavailable", fate: always(leasetest.Fault{Err: leasetest.ServiceUnavailable()}),
			want: leasetest.ServiceUnavailable(), took: R / 4, left: "a",
			sent: strings.TrimSpace(strings.Repeat("patch get ", int(R/4/pause)+1))},
		{name: "deleted on release", opts: deletes, sent: "patch delete", left: "none"},
		{name: "deleted on release, the reply is lost", opts: deletes, fate: first("patch", lostReply),
			sent: "patch get delete", took: pause, left: "none"},
		{name: "deleted on release, which fails", opts: deletes,
			fate: first("delete", leasetest.Fault{Err: leasetest.ServiceUnavailable()}), sent: "patch delete",
			logs: "the Lease was not deleted"},
		{name: "deleted on release, once its finalizers are removed", opts: deletes,
			before: func(w *world, c *campaign) {
				w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Finalizers = []string{"example.com/keep"} })
				c.reflector.read(w.Context())
			}, sent: "patch delete", logs: "the Lease is deleted once its finalizers are removed"},
		{name: "deleted on release, which does not answer", opts: deletes,
			fate: first("delete", leasetest.Fault{Drop: leasetest.TheRequest}), sent: "patch delete",
			took: (R - I) / 4, logs: "the Lease was not deleted"},
		{name: "being deleted", opts: deletes, before: func(w *world, c *campaign) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Finalizers = []string{"example.com/keep"} })
			w.srv.Client("b").Leases(ns).Delete(w.Context(), name, metav1.DeleteOptions{})
			c.reflector.read(w.Context())
		}, sent: "patch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := idleCampaign(w, append(tt.opts,
					WithBackOff(func() backoff.BackOff { return &fixedBackOff{pause: pause} }))...)
				own, err := c.lease.create(w.Context(), time.Now())
				if err != nil {
					t.Fatal(err)
				}
				c.store.addAnswer(own, observation{})
				if tt.before != nil {
					tt.before(w, c)
				}
				w.sleep(time.Second)
				var mu sync.Mutex // protects sent, and what fate counts
				var sent []string
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					mu.Lock()
					defer mu.Unlock()
					sent = append(sent, r.Verb)
					if tt.fate == nil {
						return leasetest.Fault{}
					}
					return tt.fate(w, r)
				})
				ctx, cancel := context.WithCancel(w.Context())
				defer cancel()
				if tt.ends > 0 {
					time.AfterFunc(tt.ends, cancel)
				}
				began := time.Now()
				err = c.free(ctx, "next", func(r record) error {
					if r.term() == own.term() {
						return nil
					}
					return lost
				})
				if !errors.Is(err, tt.want) && errorText(err) != errorText(tt.want) &&
					!strings.Contains(errorText(err), errorText(tt.want)) || (err == nil) != (tt.want == nil) {
					t.Errorf("free = %v, want %v", err, tt.want)
				}
				if got := strings.Join(sent, " "); got != tt.sent {
					t.Errorf("sent %s, want %s", got, tt.sent)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if !c.client.permits.TryAcquire(maxInFlight) {
					t.Error("a permit was not given back")
				}
				c.client.permits.Release(maxInFlight)
				exists := w.srv.Lease(ns, name) != nil
				if left := w.holder(); exists != (tt.left != "none") || exists && left != tt.left {
					t.Errorf("held by %q, exists: %v, want %s", left, exists, tt.left)
				}
				now := c.store.latest()
				if tt.want == nil && exists && tt.left == "" && now.notes().Successor != "next" {
					t.Errorf("freed for %q", now.notes().Successor)
				}
				if slices.Contains(sent, "delete") && now.exists() != exists {
					t.Errorf("exists: %v, known: %+v", exists, now.record)
				}
				synctest.Wait()
				for _, line := range []string{"the Lease was not deleted", "the Lease is deleted once"} {
					if want := strings.HasPrefix(tt.logs, line); (w.logged(line) == 1) != want {
						t.Errorf("logged %q: %v", line, !want)
					}
				}
			})
		})
	}
}

// A release that waits for a permit ends with ctx, and with the term that it is about.
func TestFreeWithoutPermit(t *testing.T) {
	cause, lost := errors.New("enough"), errors.New("not ours any more")
	for _, tt := range []struct {
		name   string
		stolen time.Duration // when another acquires the lease; never if 0
		ends   bool          // ctx ends; else there is a permit
		want   error
	}{
		{"ctx ends", 0, true, cause},
		{"ctx ends, and the term has", time.Second, true, lost},
		{"the term has ended when there is a permit", time.Second, false, lost},
		{"the term had ended before", -1, false, lost},
		{"there is a permit", 0, false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := idleCampaign(w)
				own, err := c.lease.create(w.Context(), time.Now())
				if err != nil {
					t.Fatal(err)
				}
				c.store.addAnswer(own, observation{})
				c.client.permits.Acquire(w.Context(), maxInFlight)
				ctx, cancel := context.WithCancelCause(w.Context())
				defer cancel(nil)
				steal := func() {
					c.store.addAnswer(own.but(func(r *record) { r.version, r.identity = r.version+9, "thief" }),
						observation{})
				}
				switch {
				case tt.stolen < 0:
					steal()
				case tt.stolen > 0:
					time.AfterFunc(tt.stolen, steal)
				}
				freed := make(chan error, 1)
				go func() {
					freed <- c.free(ctx, "", func(r record) error {
						if r.term() == own.term() {
							return nil
						}
						return lost
					})
				}()
				w.sleep(R) // the budget begins with the permit
				if (len(freed) > 0) != (tt.stolen < 0) {
					t.Fatalf("it has ended before there was a permit: %v", tt.stolen >= 0)
				}
				n := w.srv.Client("a").Requests()
				if tt.ends {
					cancel(cause)
				} else {
					c.client.permits.Release(maxInFlight)
				}
				if err := <-freed; err != tt.want {
					t.Errorf("free = %v, want %v", err, tt.want)
				}
				if sent := w.srv.Client("a").Requests() - n; (sent > 0) != (tt.want == nil) {
					t.Errorf("%d requests", sent)
				}
				if tt.ends {
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

// The failures of one release make those of the next no slower.
func TestReleaseStartsOver(t *testing.T) {
	inWorld(t, func(w *world) {
		policy := &fixedBackOff{pause: time.Millisecond}
		s := w.acquire(w.Context(), "a", WithBackOff(func() backoff.BackOff { return policy }))
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
		})
		for n := 1; n <= 2; n++ {
			before := policy.resets
			if s.Release() == nil {
				t.Fatal("released")
			}
			if policy.resets != before+1 {
				t.Errorf("release %d: the policy started over %d times", n, policy.resets-before)
			}
		}
		w.srv.Client("a").OnRequest(nil)
		s.Release()
	})
}

// A release that gets no permit ends with the trust in the lease.
func TestReleaseWithoutPermit(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		permits := s.state.(*session).campaign.client.permits
		permits.Acquire(w.Context(), maxInFlight)
		defer permits.Release(maxInFlight)
		w.sleep(time.Second)
		left, began := s.ValidFor(), time.Now()
		if err := s.Release(); !errors.Is(err, ErrLost) || time.Since(began) != left {
			t.Errorf("Release() = %v, after %v, want %v", err, time.Since(began), left)
		}
		w.sleep(0)
		if n := w.logged(`msg="lease lost"`); n != 1 {
			t.Errorf("the loss was logged %d times", n)
		}
	})
}

// Where the outcome of a write is unknown, and another acquires the lease while the next one waits for its permit,
// there is none: the lease was freed, or is not ours to free.
func TestFreeInDoubtWithoutPermit_G6(t *testing.T) {
	const pause = 130 * time.Millisecond
	inWorld(t, func(w *world) {
		c := idleCampaign(w, WithBackOff(func() backoff.BackOff { return &fixedBackOff{pause: pause} }))
		own, err := c.lease.create(w.Context(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c.store.addAnswer(own, observation{})
		writes := make(chan struct{}, 9)
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb != "patch" {
				return leasetest.Fault{}
			}
			writes <- struct{}{}
			return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
		})
		freed := make(chan error, 1)
		go func() {
			freed <- c.free(w.Context(), "", func(r record) error { return own.term().over(&r, D) })
		}()
		w.sleep(pause / 2)
		c.client.permits.Acquire(w.Context(), maxInFlight)
		w.sleep(pause) // the next write waits
		w.steal("thief")
		c.store.addAnswer(own.but(func(r *record) { r.version, r.identity = r.version+9, "thief" }), observation{})
		c.client.permits.Release(maxInFlight)
		if err := <-freed; err != nil || len(writes) != 1 || w.holder() != "thief" {
			t.Errorf("free = %v, after %d writes, held by %q", err, len(writes), w.holder())
		}
		if !c.client.permits.TryAcquire(maxInFlight) {
			t.Error("a permit was not given back")
		}
		c.client.permits.Release(maxInFlight)
	})
}

// How long a release takes is measured by the clock of the candidate.
func TestReleaseByClock(t *testing.T) {
	for _, rate := range []float64{0.5, 2} {
		for _, tt := range []struct {
			name   string
			permit bool
			wait   time.Duration
			want   error
		}{
			{"there is no permit", false, R, ErrLost},
			{"no answer", true, R / 4, context.DeadlineExceeded},
		} {
			inWorld(t, func(w *world) {
				r, client := idleRenewer(w, heldByB.but(func(r *record) { r.duration = D }), nil,
					withClock(rateClock{time.Now(), rate}))
				s := r.session
				close(r.ended)
				client.OnRequest(func(leasetest.Request) leasetest.Fault {
					return leasetest.Fault{Drop: leasetest.TheRequest}
				})
				if !tt.permit {
					s.campaign.client.permits.Acquire(w.Context(), maxInFlight)
					defer s.campaign.client.permits.Release(maxInFlight)
				}
				began := time.Now()
				err := s.free()
				took, want := time.Since(began), time.Duration(float64(tt.wait)/rate)
				if !errors.Is(err, tt.want) || took != want {
					t.Errorf("%s, clock of rate %v: %v after %v, want %v after %v", tt.name, rate, err, took, tt.want,
						want)
				}
			})
		}
	}
}
