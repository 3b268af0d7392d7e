package leasehold

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A lyingClock calls waiting whenever somebody is about to wait for a request.
type lyingClock struct {
	virtualClock
	waiting func()
}

func (c lyingClock) wait(d time.Duration) time.Duration {
	if c.waiting != nil {
		c.waiting()
	}
	return d
}

// A stallingClock calls stall whenever somebody is about to read it.
type stallingClock struct {
	virtualClock
	stall func()
}

func (c stallingClock) now() instant {
	c.stall()
	return c.virtualClock.now()
}

// idleCampaign returns a campaign of which nothing runs by itself.
func idleCampaign(w *world, opts ...Option) *campaign {
	w.Helper()
	o, err := newOptions(w.Context(), w.options("a", opts...))
	if err != nil {
		w.Fatal(err)
	}
	c, err := newCampaign(w.Context(), o, nil)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(campaigns{c}.close)
	return c
}

// idleRenewer returns a renewer that was not started, of a session for the term in own, and the client that its
// requests go to. It is over, so that it does only what the test calls.
func idleRenewer(w *world, own record, waiting func(*session), opts ...Option) (*renewer, *leasetest.Client) {
	w.Helper()
	var s *session
	clock := lyingClock{waiting: func() {
		if waiting != nil && s != nil {
			waiting(s)
		}
	}}
	client := w.srv.Client("a")
	c := idleCampaign(w, append([]Option{WithClient(client), withClock(clock)}, opts...)...)
	c.store.addAnswer(own, observation{})
	inner, cancel := context.WithCancelCause(w.Context())
	s = &session{
		campaign: c, term: own.term(), cancel: cancel,
		renewed: newWakeup(), lost: make(chan struct{}), done: make(chan struct{}),
		finishing: make(chan struct{}, 1),
	}
	s.ctx = &sessionContext{inner, s}
	now := c.clock.now()
	until := now.add(R)
	s.until.Store(&until)
	s.renewer = newRenewer(w.Context(), s, now)
	s.renewer.stage, s.renewer.due, s.renewer.restart = over, instant{}, false
	return s.renewer, client
}

// A renewal is not sent if what was seen last shows another's term: it would renew that one.
func TestRenewalOfAnothersTerm_G6(t *testing.T) {
	inWorld(t, func(w *world) {
		own := heldByB.but(func(r *record) { r.duration = D })
		r, client := idleRenewer(w, own, nil)
		r.store.addAnswer(own.but(func(r *record) { r.identity, r.version = "thief", 9 }), r.store.latest())
		r.renewLocked(r.clock.now())
		r.requests.Wait()
		if loss := r.session.loss(); !errors.Is(loss, ErrLost) || client.Requests() != 0 || r.flight != nil {
			t.Errorf("lost: %v, after %d requests, one under way: %v", loss, client.Requests(), r.flight != nil)
		}
	})
}

// A process that is stopped while it looks at its lease, which is renewed before it goes on, has not lost it: the clock
// is read before the end of trust.
func TestRenewedWhileTrustIsJudged_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		r, _ := idleRenewer(w, heldByB, nil)
		s, clock := r.session, r.session.campaign.clock
		s.campaign.clock = stallingClock{stall: func() {
			time.Sleep(R)
			until := clock.now().add(R)
			s.until.Store(&until)
		}}
		if left := s.trustLeft(); left != R {
			t.Errorf("trusted for %v", left)
		}
		if s.checkTrust(); s.loss() != nil {
			t.Error(s.loss())
		}
		s.campaign.clock = clock
	})
}

// Nor is it sent if the lease is lost after the renewal began.
func TestRenewalAfterLoss_G6(t *testing.T) {
	inWorld(t, func(w *world) {
		own := heldByB.but(func(r *record) { r.duration = D })
		r, client := idleRenewer(w, own, func(s *session) { s.lose(lostBecause(taken, "now held by %q", "thief")) })
		r.renewLocked(r.clock.now())
		r.requests.Wait()
		if reply := r.flight.reply; !errors.Is(reply.err, ErrLost) || client.Requests() != 0 {
			t.Errorf("replied %v, after %d requests", reply.err, client.Requests())
		}
	})
}

// A lease that is lost while its release waits for a permit is not freed.
func TestReleaseLooksAgainAfterThePermit_G6(t *testing.T) {
	for _, tt := range []struct {
		name   string
		lose   func(w *world)
		holder string
	}{
		{"stolen", func(w *world) { w.steal("thief") }, "thief"},
		{"its duration is cut", func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(10)) })
		}, "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				s := w.acquire(w.Context(), "a")
				permits := s.state.(*session).campaign.client.permits
				if err := permits.Acquire(w.Context(), maxInFlight); err != nil {
					t.Fatal(err)
				}
				released := make(chan error, 1)
				go func() { released <- s.Release() }()
				synctest.Wait()
				tt.lose(w)
				synctest.Wait()
				permits.Release(maxInFlight)
				if err := <-released; !errors.Is(err, ErrLost) || w.holder() != tt.holder {
					t.Errorf("Release() = %v, held by %q", err, w.holder())
				}
			})
		})
	}
}

// Trust ends at its time even if nobody looks at the session, and while a renewal is under way.
func TestTrustEndsUnseen_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		s, err := Acquire(w.Context(), w.options("a")...) // w.acquire would look
		if err != nil {
			t.Fatal(err)
		}
		w.srv.Client("a").Partition(true)
		until := s.state.(*session).until.Load().mono
		<-s.Done()
		if now := time.Now(); !now.Equal(until) {
			t.Errorf("lost at %v, want %v", now, until)
		}
		s.Release()
	})
}

// Where the lease that was acquired is to be renewed before its session begins, and ctx ends meanwhile, it is released
// without another renewal.
func TestCtxEndsBeforeTheSessionBegins(t *testing.T) {
	inWorld(t, func(w *world) {
		var slept atomic.Int64
		writes := 0
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			switch r.Verb {
			case "create":
				slept.Add(int64(R/2 + time.Second)) // while the request is under way
			case "patch":
				if writes++; writes == 1 {
					return leasetest.Fault{Drop: leasetest.TheRequest}
				}
			}
			return leasetest.Fault{}
		})
		ctx, cancel := context.WithCancel(w.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := Acquire(ctx, w.options("a", withClock(sleepyClock{&slept}))...)
		if err != context.Canceled || writes != 2 || w.holder() != "" {
			t.Errorf("Acquire: %v, after %d writes, held by %q", err, writes, w.holder())
		}
	})
}

// Of two holders that went unseen the later one is waited out.
func TestLaterOfTwoMissedHolders_G1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &leaseStore{
			name: "x", clock: virtualClock{}, fallback: D, ours: func(term) bool {
				return false
			}, changed: newWakeup(),
		}
		began := time.Now()
		s.addAnswer(record{uid: "u", version: 5, identity: "b", duration: 2 * D}, s.latest())
		time.Sleep(D)
		s.addAnswer(record{}, s.latest()) // may have been renewed until now
		s.addAnswer(record{uid: "v", version: 9, identity: "c", duration: time.Second}, s.latest())
		s.addAnswer(record{}, s.latest())
		if got := s.latest().clearAt().Sub(began); got != 3*D {
			t.Errorf("clear after %v, want %v", got, 3*D)
		}
	})
}

func TestOutcomeUnknown(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"500", leasetest.InternalError(), true},
		{"503", leasetest.ServiceUnavailable(), true},
		{"504", leasetest.ServerTimeout(), true},
		{"no answer", context.DeadlineExceeded, true},
		{"connection lost", leasetest.EOF(), true},
		{"401", leasetest.Unauthorized(), false},
		{"403", apierrors.NewForbidden(leasesGroupResource, "x", nil), false},
		{"404", apierrors.NewNotFound(leasesGroupResource, "x"), false},
		{"409", apierrors.NewConflict(leasesGroupResource, "x", nil), false},
		{"429", leasetest.TooManyRequests(time.Second), false},
		{"404 of a proxy", apierrors.NewGenericServerResponse(404, "patch", leasesGroupResource, "x", "no", 0,
			true), true},
	} {
		if got := outcomeUnknown(tt.err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// The end of ctx does not cut a claim short, which would leave it in doubt: its outcome is awaited, and released.
func TestClaimOutlivesCtx(t *testing.T) {
	inWorld(t, func(w *world) {
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" {
				return leasetest.Fault{Before: time.Second}
			}
			return leasetest.Fault{}
		})
		a := w.run("a", nil)
		w.sleep(time.Second / 2)
		a.quit()
		if l := w.srv.Lease(ns, name); l == nil || w.holder() != "" {
			t.Errorf("the Lease at the end: %+v", l)
		}
	})
}
