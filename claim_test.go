package leasehold

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

// What is recorded of a claim that ends, between two others.
func TestClaimsEnd(t *testing.T) {
	lost := errors.New("EOF")
	for _, tt := range []struct {
		name    string
		err     error
		decided bool
		kept    string // which claims may be ours
		inDoubt string // which of them may have acquired the lease
		over    string // which of them are decided
	}{
		{"acquired", nil, true, "abc", "", "b"},
		{"unanswered", lost, false, "abc", "abc", ""},
		{"unanswered, and decided", lost, true, "abc", "abc", "b"},
		{"refused", leasetest.TooManyRequests(0), true, "ac", "ac", ""},
	} {
		c := claims{stamps: timestamps{chance: func(time.Duration) time.Duration { return 0 }}}
		on := record{uid: "u", version: 5}
		all := map[string]claim{}
		for _, which := range []string{"a", "b", "c"} {
			all[which] = c.begin(on, which, time.Now())
		}
		c.recordOutcome(all["a"], lost, false)
		c.recordOutcome(all["c"], lost, false)
		c.recordOutcome(all["b"], tt.err, tt.decided)
		c.recordOutcome(claim{term: term{"u", "b", time.Now()}}, nil, true) // one that was forgotten
		var kept, inDoubt, over string
		for _, which := range []string{"a", "b", "c"} {
			if c.include(all[which].term) {
				kept += which
			}
			if slices.Contains(c.inDoubt(), all[which].term) {
				inDoubt += which
			}
		}
		for _, n := range c.all {
			if n.decided {
				over += n.term.identity
			}
		}
		if kept != tt.kept || inDoubt != tt.inDoubt || over != tt.over {
			t.Errorf("%s: kept %q, in doubt %q, decided %q; want %q, %q, %q", tt.name, kept, inDoubt, over,
				tt.kept, tt.inDoubt, tt.over)
		}
		if c.clearDoubt(); len(c.inDoubt()) > 0 || len(c.all) != len(tt.kept) {
			t.Errorf("%s: after it was decided: %+v", tt.name, c.all)
		}
	}
}

// The times that are written are the present, each later than the one before.
func TestTimestamps(t *testing.T) {
	const us = time.Microsecond
	inWorld(t, func(w *world) {
		second := time.Now()
		time.Sleep(1700*us + 700)
		claims := timestamps{chance: func(n time.Duration) time.Duration { return n - 1 }}
		for i, want := range []time.Duration{1999 * us, 2000 * us} {
			if got := claims.forClaim().Sub(second); got != want {
				t.Errorf("claim %d at %v, want %v", i, got, want)
			}
		}
		time.Sleep(us * 3 / 2) // at 1702.2
		var renewals timestamps
		for i, tt := range []struct{ found, want time.Duration }{
			{0, 1702 * us}, {0, 1703 * us}, {1702 * us, 1704 * us}, {time.Second, 1705 * us},
		} {
			if got := renewals.forRenewal(record{renewed: second.UTC().Add(tt.found)}).Sub(second); got != tt.want {
				t.Errorf("renewal %d at %v, want %v", i, got, tt.want)
			}
		}
		time.Sleep(time.Second)
		renewed := time.Now().UTC().Truncate(us)
		if got := renewals.forRenewal(record{renewed: renewed}); got != renewed.Add(us) {
			t.Errorf("the renewal that was found came at %v, ours at %v", renewed, got)
		}
	})
}

// How a claim ends, what it sends, and what the candidate knows then.
func TestClaim(t *testing.T) {
	unavailable := leasetest.Fault{Err: leasetest.ServiceUnavailable()}
	for _, tt := range []struct {
		name    string
		fate    leasetest.Fault // of the write
		before  func(w *world, c *campaign)
		during  func(w *world) // after the write took effect, before its reply
		ended   bool           // ctx has
		want    error
		sent    string
		inDoubt bool
		decided bool // nothing is left of the claim that may yet take effect
		ours    bool // the newest record is that of a claim of ours
		warned  bool // that it was undone
	}{
		{name: "acquired", sent: "apply", decided: true, ours: true},
		{name: "unavailable", fate: unavailable, want: unavailable.Err, sent: "apply", inDoubt: true},
		{name: "the reply is lost", fate: leasetest.Fault{Drop: leasetest.TheReply, Err: leasetest.EOF()},
			want: leasetest.EOF(), sent: "apply", inDoubt: true},
		{name: "refused", fate: leasetest.Fault{Err: leasetest.TooManyRequests(0)},
			want: leasetest.TooManyRequests(0), sent: "apply", decided: true},
		{name: "changed before", before: func(w *world, c *campaign) {
			c.store.addAnswer(c.store.latest().record.but(func(r *record) { r.version++ }), observation{})
		}, want: errChanged, decided: true},
		{name: "another was first", before: func(w *world, c *campaign) { w.steal("b") },
			want: errors.New("the object has been modified"), sent: "apply get", decided: true},
		{name: "ctx has ended", ended: true, want: context.Canceled, decided: true},
		{name: "undone at once", during: func(w *world) { w.steal("b") }, fate: leasetest.Fault{After: time.Second},
			want: ErrLost, sent: "apply get", inDoubt: true, decided: true, warned: true},
		{name: "its duration is cut at once", during: func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(14)) })
		}, fate: leasetest.Fault{After: time.Second}, want: ErrLost, sent: "apply get", inDoubt: true, decided: true,
			ours: true, warned: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.acquire(w.Context(), "before").Release()
				c := idleCampaign(w)
				if _, err := c.reflector.read(w.Context()); err != nil {
					t.Fatal(err)
				}
				candidate := newCandidate(c, &contention{window: contentionWindow(100 * time.Millisecond)})
				candidate.attempt.free, candidate.lostRace, candidate.failures = true, true, 7
				now := time.Now()
				c.claimsFailingSince.Store(&now)
				o := c.store.latest()
				if tt.before != nil {
					tt.before(w, c)
				}
				var mu sync.Mutex
				var sent []string
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					mu.Lock()
					defer mu.Unlock()
					sent = append(sent, r.Verb)
					if r.Verb != "apply" {
						return leasetest.Fault{}
					}
					return tt.fate
				})
				if tt.during != nil {
					time.AfterFunc(tt.fate.After/2, func() {
						tt.during(w)
						c.reflector.read(w.Context()) // as a watch would bring it
					})
				}
				ctx, cancel := context.WithCancel(w.Context())
				defer cancel()
				if tt.ended {
					c.client.permits.Acquire(ctx, maxInFlight)
					cancel()
				}
				s, err := candidate.claim(ctx, o)
				if tt.ended {
					c.client.permits.Release(maxInFlight)
				}
				if (s != nil) != (tt.want == nil) || (err != nil) != (tt.want != nil) ||
					err != nil && !errors.Is(err, tt.want) && !strings.Contains(err.Error(), tt.want.Error()) {
					t.Errorf("claim = %v, want %v", err, tt.want)
				}
				if got := strings.Join(sent, " "); got != tt.sent {
					t.Errorf("sent %q, want %q", got, tt.sent)
				}
				if !c.client.permits.TryAcquire(maxInFlight) {
					t.Error("a permit was not given back")
				}
				c.client.permits.Release(maxInFlight)
				if candidate.attempt.free != (tt.sent == "") {
					t.Error("another's acquisition would count as one before our try")
				}
				if got := len(c.claims.inDoubt()) > 0; got != tt.inDoubt {
					t.Errorf("in doubt: %v", got)
				}
				for _, n := range c.claims.all {
					if n.decided != tt.decided {
						t.Errorf("decided: %v", n.decided)
					}
				}
				if got := c.claims.include(c.store.latest().term()); got != tt.ours {
					t.Errorf("the lease is ours: %v", got)
				}
				w.sleep(0)
				if got := w.logged("lease acquired, but lost at once") == 1; got != tt.warned ||
					got != candidate.warnedUndone {
					t.Errorf("logged that it was undone: %v, noted: %v", got, candidate.warnedUndone)
				}
				if tt.want != nil {
					if candidate.failures != 7 || !candidate.lostRace || c.claimsFailingSince.Load() == nil {
						t.Errorf("after a failure: %+v", candidate)
					}
					return
				}
				if candidate.failures != 0 || candidate.lostRace || !candidate.createModeMet ||
					candidate.contention.window != contentionWindow(50*time.Millisecond) ||
					c.claimsFailingSince.Load() != nil ||
					c.current.Load() != s || !s.delivered.Load() {
					t.Errorf("after it was acquired: %+v, %+v", candidate, candidate.contention)
				}
				if n := w.logged(`msg="lease acquired" lease=default/reconciler identity=a`); n != 1 {
					t.Errorf("logged %d times", n)
				}
				if err := s.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
