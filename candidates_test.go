package leasehold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/internal/annotation"
	"github.com/leasehold-go/leasehold/leasetest"
)

// What becomes of a claim whose outcome is unknown when the campaign ends. It takes a third of the renew deadline at
// most, by the campaign's clock.
func TestResolveDoubt(t *testing.T) {
	const rate = 2
	const most = R / 3 / rate
	const warning = `msg="lease perhaps not released; if it was acquired, it will expire"`
	fate := func(verb string, f leasetest.Fault) func(leasetest.Request) leasetest.Fault {
		return func(r leasetest.Request) leasetest.Fault {
			if r.Verb != verb {
				return leasetest.Fault{}
			}
			return f
		}
	}
	for _, tt := range []struct {
		name     string
		holder   string // who has acquired the lease
		fate     func(leasetest.Request) leasetest.Fault
		noPermit bool
		sent     string
		took     time.Duration
		left     string // who holds the lease at the end
		warned   bool
	}{
		{name: "it acquired the lease", holder: "a", sent: "get patch"},
		{name: "another did", holder: "b", sent: "get", left: "b"},
		{name: "it has not arrived yet", sent: "get", warned: true},
		{name: "the read fails", holder: "a", fate: fate("get", leasetest.Fault{Err: leasetest.Unauthorized()}),
			sent: "get", left: "a", warned: true},
		{name: "the read is slow, and the release is lost", holder: "a",
			fate: func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "get" {
					return leasetest.Fault{After: most / 2}
				}
				return leasetest.Fault{Drop: leasetest.TheRequest}
			}, sent: "get get get get patch", took: most, left: "a", warned: true},
		{name: "there is no permit", holder: "a", noPermit: true, took: most, left: "a", warned: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := idleCampaign(w, withClock(rateClock{time.Now(), rate}))
				n := c.claims.begin(record{}, "a", c.clock.now().mono)
				c.claims.recordOutcome(n, context.DeadlineExceeded, false)
				held := *c.lease
				held.identity = tt.holder
				if tt.holder != "" {
					if _, err := held.create(w.Context(), n.term.acquired); err != nil {
						t.Fatal(err)
					}
				}
				var mu sync.Mutex
				var sent []string
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					mu.Lock()
					defer mu.Unlock()
					sent = append(sent, r.Verb)
					if tt.fate == nil {
						return leasetest.Fault{}
					}
					return tt.fate(r)
				})
				if tt.noPermit {
					c.client.permits.Acquire(w.Context(), maxInFlight)
				}
				began := time.Now()
				c.resolveDoubt()
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if tt.noPermit {
					c.client.permits.Release(maxInFlight)
				}
				if got := strings.Join(sent, " "); got != tt.sent {
					t.Errorf("sent %q, want %q", got, tt.sent)
				}
				if w.holder() != tt.left || c.claims.inDoubt() != nil {
					t.Errorf("held by %q, want %q; in doubt: %v", w.holder(), tt.left, c.claims.inDoubt())
				}
				w.sleep(0)
				if warned := w.logged(warning) == 1; warned != tt.warned {
					t.Errorf("warned: %v", warned)
				}
			})
		})
	}
}

// halfChance is chance that always gives the middle.
func halfChance(n time.Duration) time.Duration { return n / 2 }

// What a candidate plans to do about the Lease, in each state.
func TestPlan(t *testing.T) {
	const (
		ms     = time.Millisecond
		window = contentionWindow(100 * ms)
		never  = time.Duration(-1)
	)
	spread := window.delay(0.5)
	seen := func(r record, ago time.Duration) func(*leaseStore) {
		return func(s *leaseStore) {
			s.addRead(r, observation{})
			s.seen.since = s.seen.since.Add(-ago)
		}
	}
	free := record{uid: "u", version: 9}
	freeFor := func(next string) record {
		return free.but(func(r *record) { r.annotated = &annotation.Notes{Successor: next} })
	}
	byUs := heldByB.but(func(r *record) { r.identity = "a" })
	for _, tt := range []struct {
		name     string
		opts     []Option
		known    func(*leaseStore)
		before   func(*candidate)
		at       time.Duration // from now; -1 for a time long ago
		check    time.Duration // 0 for none
		register time.Duration // 0 for none
		logs     string
	}{
		{name: "held", known: seen(heldByB, 0), at: 10*time.Second + spread, check: 6500 * ms},
		{name: "held, and not renewed for a while", known: seen(heldByB, 4*time.Second), at: 6*time.Second + spread,
			check: 2500 * ms},
		{name: "free", known: seen(free, 0), at: spread},
		{name: "released to us", known: seen(freeFor("a"), 0), at: 0},
		{name: "released to another", known: seen(freeFor("c"), 0), at: 875 * ms},
		{name: "released to another, and the window is wide", known: seen(freeFor("c"), 0),
			opts:   []Option{WithDuration(time.Second)},
			before: func(c *candidate) { c.contention.window = longestWindow },
			at:     longestWindow.delay(0.5)},
		{name: "released to another, but it is hasty", known: seen(freeFor("c"), 0),
			before: func(c *candidate) { c.hasty = true }, at: spread},
		{name: "no Lease", known: seen(record{}, 0), at: spread},
		{name: "no Lease any more", known: func(s *leaseStore) {
			s.addRead(heldByB, observation{})
			s.addRead(record{}, s.latest())
		}, at: D + spread, check: I},
		{name: "free, after a Lease that was not found any more", known: func(s *leaseStore) {
			s.addRead(heldByB, observation{})
			s.addRead(record{}, s.latest())
			s.addRead(record{uid: "v", version: 9}, s.latest())
		}, at: D + spread},
		{name: "free, after a session of another slot", known: seen(free, 0), opts: []Option{WithSlots(2)},
			before: func(c *candidate) { c.contention.led = time.Now().Add(-D / 2) }, at: spread + longestTurn/2},
		{name: "released to another, after a session of another slot, and the window is wide",
			known: seen(freeFor("c"), 0), opts: []Option{WithSlots(2), WithDuration(time.Second)},
			before: func(c *candidate) {
				c.contention.window, c.contention.led = longestWindow, time.Now().Add(-time.Second/2)
			}, at: longestWindow.delay(0.5) + longestTurn/2},
		{name: "by strategy", known: seen(heldByB.but(func(r *record) { r.strategy = true }), 0), at: maxDuration,
			check: 6500 * ms, logs: `msg="waiting until the Lease has no strategy"`},
		{name: "in our name", known: seen(byUs, 0), at: 10*time.Second + spread, check: 6500 * ms,
			logs: `msg="lease held under our own identity`},
		{name: "in our name, reclaimed", known: seen(byUs, 0), opts: []Option{WithReclaim()}, at: never,
			check: 6500 * ms},
		{name: "in our name, reclaimed after a holder that may not have heard", known: func(s *leaseStore) {
			s.addRead(heldByB, observation{})
			s.addRead(byUs.but(func(r *record) { r.uid, r.version = "v", 9 }), s.latest())
		}, opts: []Option{WithReclaim()}, at: D, check: 6500 * ms},
		{name: "by another, not reclaimed", known: seen(heldByB, 0), opts: []Option{WithReclaim()},
			at: 10*time.Second + spread, check: 6500 * ms},
		{name: "by a term of ours", known: seen(byUs, 0), before: func(c *candidate) {
			c.campaign.claims.all = append(c.campaign.claims.all, claim{term: byUs.term(), sent: time.Now()})
		}, at: never, check: 6500 * ms},
		{name: "to be registered for", known: seen(heldByB, 0), opts: []Option{WithPriority(3)},
			at: 10*time.Second + spread, check: 6500 * ms, register: 450 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := idleCampaign(w, append(tt.opts, WithChance(halfChance))...)
				k := newCandidate(c, &contention{window: window})
				if tt.before != nil {
					tt.before(k)
				}
				tt.known(c.store)
				now := time.Now()
				c.claimsFailingSince.Store(&now)
				old := c.claims.begin(record{uid: "u", version: 3}, "a", now)
				ancient := c.claims.begin(record{}, "a", now.Add(-forgetClaimAfter-1))
				o := c.store.latest()
				for range 2 { // it warns once
					k.plan(o)
				}
				until := func(t time.Time) time.Duration {
					if t.Before(now) {
						return never
					}
					return t.Sub(now)
				}
				if at := until(k.attempt.at); at != tt.at || k.attempt.on != o.state() {
					t.Errorf("claims after %v, want %v; %+v", at, tt.at, k.attempt.on)
				}
				for _, of := range []struct {
					what string
					at   time.Time
					want time.Duration
				}{{"checks", k.attempt.checkAt, tt.check}, {"registers", k.attempt.register, tt.register}} {
					if of.at.IsZero() != (of.want == 0) || of.want != 0 && until(of.at) != of.want {
						t.Errorf("%s after %v, want %v", of.what, until(of.at), of.want)
					}
				}
				if k.attempt.free == o.held() || c.claimsFailingSince.Load() != nil {
					t.Errorf("free: %v, claims fail since %v", k.attempt.free, c.claimsFailingSince.Load())
				}
				if exists := o.exists(); c.claims.include(old.term) == exists || c.claims.include(ancient.term) {
					t.Errorf("a claim that cannot take effect any more is kept: %v", exists)
				}
				w.sleep(0)
				for _, line := range []string{`msg="waiting until`, `msg="lease held under our own identity`} {
					if want := strings.HasPrefix(tt.logs, line); (w.logged(line) == 1) != want || w.logged(line) > 1 {
						t.Errorf("logged %s %d times", line, w.logged(line))
					}
				}
			})
		})
	}
}

// A candidate before whose try another acquired the lease narrows its window, and one that found it held does not.
func TestPreempted(t *testing.T) {
	const window = contentionWindow(160 * time.Millisecond)
	for _, free := range []bool{false, true} {
		inWorld(t, func(w *world) {
			c := idleCampaign(w)
			k := newCandidate(c, &contention{window: window})
			c.store.addRead(heldByB, observation{})
			k.attempt.free = free
			k.plan(c.store.latest())
			want := window
			if free {
				want -= window / 16
			}
			if k.contention.window != want {
				t.Errorf("was free: %v; the window is %v", free, time.Duration(k.contention.window))
			}
			k.attempt.free = true
			c.store.addRead(record{uid: "u", version: 99}, c.store.latest())
			before := k.contention.window
			if k.plan(c.store.latest()); k.contention.window != before {
				t.Errorf("narrowed by a release: %v", time.Duration(k.contention.window))
			}
		})
	}
}

// How long a candidate waits, and when it asks for a check of its watch.
func TestUntilAttempt(t *testing.T) {
	soon, later := 5*time.Second, 20*time.Second
	for _, tt := range []struct {
		name      string
		mode      CreateMode
		rec       record // known
		unknown   bool
		at        time.Duration // as it was planned
		check     time.Duration // as it was planned; 0 for none
		missed    time.Duration // until when a missed holder may lead; 0 for none
		want      time.Duration
		checked   bool // a check of the watch is asked for
		reopen    bool // and another watch
		checkNext time.Duration
	}{
		{name: "not known", unknown: true, want: maxDuration},
		{name: "may be claimed", rec: heldByB, at: -1, check: soon, want: -1, checkNext: soon},
		{name: "may be claimed now", rec: heldByB, at: 0, check: -1, want: 0, checkNext: -1},
		{name: "later", rec: heldByB, at: later, want: later},
		{name: "checked before", rec: heldByB, at: later, check: soon, want: soon, checkNext: soon},
		{name: "checked after", rec: heldByB, at: soon, check: later, want: soon, checkNext: later},
		{name: "to be checked", rec: heldByB, at: later, check: -1, want: later, checked: true},
		{name: "to be checked just now", rec: heldByB, at: later, check: 1, want: 1, checkNext: 1},
		{name: "no Lease", at: -1, want: -1},
		{name: "no Lease, and it is not created", mode: UseExisting, at: -1, want: maxDuration},
		{name: "no Lease, to be checked", at: later, check: -1, want: later, checked: true},
		{name: "no Lease, and it is not created, to be checked", mode: UseExisting, at: -1, check: -1, missed: later,
			want: later, checked: true, checkNext: later},
		{name: "no Lease for long, and it is not created", mode: UseExisting, at: -1, check: -1, missed: -1,
			want: maxDuration, checked: true, reopen: true},
		{name: "held, and it is not created, to be checked", mode: UseExisting, rec: heldByB, at: later, check: -1,
			want: later, checked: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := idleCampaign(w, WithCreateMode(tt.mode), WithChance(halfChance))
				k := newCandidate(c, &contention{})
				now := time.Now()
				if !tt.unknown {
					c.store.addRead(tt.rec, observation{})
				}
				k.attempt = attempt{on: tt.rec.state(), at: now.Add(tt.at)}
				if tt.check != 0 {
					k.attempt.checkAt = now.Add(tt.check)
				}
				o := c.store.latest()
				if tt.missed != 0 {
					o.missedHolderUntil = now.Add(tt.missed)
				}
				if got := k.untilAttempt(o); got != tt.want {
					t.Errorf("waits for %v, want %v", got, tt.want)
				}
				if c.reflector.reopenRequested() != tt.reopen || c.reflector.takeCheck() != tt.checked {
					t.Errorf("check asked for: %v, another watch: %v", !tt.checked, c.reflector.reopenRequested())
				}
				if next := k.attempt.checkAt; next.IsZero() != (tt.checkNext == 0) ||
					tt.checkNext != 0 && next.Sub(now) != tt.checkNext {
					t.Errorf("the next check is in %v, want %v", next.Sub(now), tt.checkNext)
				}
			})
		})
	}
	t.Run("planned when the Lease changes", func(t *testing.T) {
		inWorld(t, func(w *world) {
			c := idleCampaign(w, WithChance(halfChance))
			k := newCandidate(c, &contention{})
			for _, r := range []record{{}, heldByB, {uid: "u", version: 8}, {uid: "v", version: 8}} {
				c.store.seen = observation{record: r, known: true, since: time.Now()}
				k.untilAttempt(c.store.latest())
				if k.attempt.on != r.state() || k.attempt.at.IsZero() {
					t.Errorf("%+v: planned for %+v", r, k.attempt)
				}
			}
		})
	})
}

// What a candidate does after a claim that failed: what it sends, how long it pauses, and what it has learned.
func TestRecoverFrom(t *testing.T) {
	const pause = 130 * time.Millisecond
	unavailable, conflict := leasetest.ServiceUnavailable(), apierrors.NewConflict(leasesGroupResource, name, nil)
	free := record{uid: "u", version: 9}
	for _, tt := range []struct {
		name     string
		err      error
		on       record // what was claimed; a free Lease for the zero one
		now      record // what is known of the Lease when the claim has failed; it has not changed for the zero one
		fails    int    // reads
		with     error
		ends     time.Duration // when ctx does; 0 for never
		again    bool          // it had lost the race before
		tookIt   bool          // the read shows the claim
		took     time.Duration
		sent     int
		failures int // 3 before
		lost     bool
		wider    bool
		failing  bool
		reset    bool // the next failure is the first in a row
	}{
		{name: "changed", err: errChanged, failures: 3},
		{name: "lost", err: lostBecause(taken, "at once"), took: pause, failures: 4},
		{name: "yielded", err: fmt.Errorf("%w: at once", ErrYielded), took: pause, failures: 4},
		{name: "too many requests", err: leasetest.TooManyRequests(time.Second), took: time.Second, failures: 4},
		{name: "forbidden", err: leasetest.Forbidden(leasetest.Request{Verb: "patch"}), took: refusedDelay,
			failures: 4},
		{name: "asked for a long pause", err: leasetest.TooManyRequests(time.Hour), took: I, failures: 4},
		{name: "unknown", err: unavailable, took: pause, sent: 1, failures: 4},
		{name: "unknown, and reads fail", err: unavailable, fails: 2, took: 3 * pause, sent: 3, failures: 4},
		{name: "unknown, and reads are forbidden", err: unavailable, fails: 1,
			with: leasetest.Forbidden(leasetest.Request{Verb: "get"}), took: refusedDelay + pause, sent: 2,
			failures: 4},
		{name: "unknown, and it took effect", err: unavailable, tookIt: true, took: pause, sent: 1},
		{name: "unknown, and ctx ends", err: unavailable, fails: 99, ends: 3 * pause / 2, took: 3 * pause / 2, sent: 2,
			failures: 4},
		{name: "unknown, and ctx has ended", err: unavailable, ends: -1, failures: 4},
		{name: "conflict", err: conflict, lost: true, wider: true, failing: true},
		{name: "conflict again", err: conflict, again: true, took: pause, lost: true, wider: true, failing: true},
		{name: "conflict, and the Lease has changed", err: conflict, again: true,
			now: free.but(func(r *record) { r.version++ }), took: pause, lost: true, wider: true},
		{name: "conflict with a new holder", err: conflict, again: true, now: heldByB, wider: true, reset: true},
		{name: "conflict over a holder that did nothing", err: conflict, on: heldByB, lost: true, wider: true,
			failing: true},
		{name: "conflict over a holder that did nothing, again", err: conflict, on: heldByB, again: true, took: pause,
			lost: true, wider: true, failing: true},
		{name: "conflict over a holder that renewed", err: conflict, on: heldByB, again: true, wider: true, reset: true,
			now: heldByB.but(func(r *record) { r.version++ })},
		{name: "conflict with a claim of ours", err: conflict, again: true, took: pause, lost: true, wider: true,
			now: heldByB.but(func(r *record) { r.identity = "a" })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := idleCampaign(w, WithBackOff(func() backoff.BackOff { return &fixedBackOff{pause: pause} }))
				k := newCandidate(c, &contention{})
				k.failures, k.lostRace = 3, tt.again
				c.store.addRead(cmp.Or(tt.on, free), observation{})
				o := c.store.latest()
				ancient := c.claims.begin(record{}, "a", time.Now().Add(-forgetClaimAfter-time.Minute))
				n := c.claims.begin(record{}, "a", time.Now())
				c.claims.recordOutcome(n, unavailable, true)
				if tt.now.exists() {
					if tt.now.identity == "a" {
						tt.now.acquired = n.term.acquired
					}
					c.store.seen = observation{record: tt.now, known: true}
				}
				if tt.tookIt {
					c.store.seen = observation{}
					c.lease.create(w.Context(), n.term.acquired)
				}
				reads := 0
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if reads++; reads <= tt.fails {
						return leasetest.Fault{Err: cmp.Or(tt.with, leasetest.Unauthorized())}
					}
					return leasetest.Fault{}
				})
				ctx, cancel := context.WithCancel(w.Context())
				defer cancel()
				switch {
				case tt.ends < 0:
					cancel()
				case tt.ends > 0:
					time.AfterFunc(tt.ends, cancel)
				}
				began := time.Now()
				if tt.sent > 0 {
					c.claimsFailingSince.Store(&began) // an outage ends that
				}
				k.recoverFrom(ctx, o, tt.err)
				if took := time.Since(began); took != tt.took || reads != tt.sent {
					t.Errorf("took %v, want %v; %d reads, want %d", took, tt.took, reads, tt.sent)
				}
				if k.failures != tt.failures || k.lostRace != tt.lost {
					t.Errorf("%d failures, want %d; lost the race: %v", k.failures, tt.failures, k.lostRace)
				}
				if wider := k.contention.window == contentionWindow(0).lost(I); wider != tt.wider {
					t.Errorf("the window is %v", time.Duration(k.contention.window))
				}
				failing := c.claimsFailingSince.Load() != nil
				if failing != tt.failing || k.delays.restart != tt.reset {
					t.Errorf("claims fail: %v, the next failure is the first in a row: %v", failing, k.delays.restart)
				}
				if kept := c.claims.include(ancient.term); kept != (tt.sent == 0) {
					t.Errorf("an ancient claim is kept: %v", kept)
				}
				forgotten := tt.sent > 0 && !tt.tookIt
				if kept := c.claims.include(n.term); kept == forgotten {
					t.Errorf("the claim is kept: %v", kept)
				}
			})
		})
	}
}

// Claims that fail without a reason make the candidate read afresh after D, and again if that fails.
func TestCheckStalled(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		c := idleCampaign(w, WithMonitor(&m))
		k := newCandidate(c, &contention{})
		c.store.addRead(record{uid: "u", version: 99}, observation{})
		w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
		r, err := readRecord(w.lease())
		if err != nil {
			t.Fatal(err)
		}
		exists := r.state()
		cause := errors.New("for no reason")
		refuses := true
		w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
			if refuses {
				return leasetest.Fault{Err: leasetest.Unauthorized()}
			}
			return leasetest.Fault{}
		})
		for _, step := range []struct {
			after   time.Duration
			refuses bool
			reads   int // so far
			failing bool
		}{{0, true, 0, true}, {D - 1, true, 0, true}, {1, true, 1, true}, {time.Second, false, 2, false}} {
			w.sleep(step.after)
			refuses = step.refuses
			k.checkStalled(w.Context(), cause)
			failing := c.claimsFailingSince.Load()
			if n := w.srv.Client("a").Requests(); n != step.reads || (failing != nil) != step.failing {
				t.Errorf("%+v: %d reads, claims fail since %v", step, n, failing)
			}
		}
		w.sleep(0)
		if n := w.logged(`msg="campaign stuck: claims fail although`); n != 2 ||
			w.logged("after=15s") != 1 || w.logged("after=16s") != 1 {
			t.Errorf("logged %d times", n)
		}
		if got := w.status(&m).LastError; got != cause.Error() {
			t.Errorf("shown: %q", got)
		}
		if o := c.store.latest(); o.state() != exists || !o.known || !c.reflector.reopenRequested() {
			t.Errorf("known: %+v, the watch is replaced: %v", o, c.reflector.reopenRequested())
		}
	})
}

// A candidate that is stuck shows why, and ends with ctx even if there is no permit to read afresh.
func TestStuckWithoutPermit(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		c := idleCampaign(w, WithMonitor(&m))
		k := newCandidate(c, &contention{})
		c.store.addRead(record{uid: "u", version: 99}, observation{})
		long := time.Now().Add(-D)
		c.claimsFailingSince.Store(&long)
		c.client.permits.Acquire(w.Context(), maxInFlight)
		defer c.client.permits.Release(maxInFlight)
		ctx, cancel := context.WithCancel(w.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		conflict := apierrors.NewConflict(leasesGroupResource, name, nil)
		k.recoverFrom(ctx, c.store.latest(), conflict)
		if took := time.Since(began); took != time.Second || w.status(&m).LastError != conflict.Error() {
			t.Errorf("took %v, shown: %q", took, w.status(&m).LastError)
		}
	})
}

// How long a candidate leaves the lease to others after a session, by its clock, and what the next failure is.
func TestPauseAfterSession(t *testing.T) {
	const pause, rate = 130 * time.Millisecond, 2
	for _, tt := range []struct {
		name  string
		lost  bool
		after time.Duration // from when the session began
		want  time.Duration
		reset bool
	}{
		{"released", false, time.Hour, I / 2, true},
		{"released at once", false, 0, I / 2, true},
		{"lost", true, I, 0, true},
		{"lost at once", true, I - rate, pause, false},
	} {
		inWorld(t, func(w *world) {
			c := idleCampaign(w, WithChance(halfChance), withClock(rateClock{time.Now(), rate}),
				WithBackOff(func() backoff.BackOff { return &fixedBackOff{pause: pause} }))
			k := newCandidate(c, &contention{})
			s := &session{campaign: c, lost: make(chan struct{}), cancel: func(error) {}, began: c.clock.now(),
				renewer: &renewer{stage: over}}
			if tt.lost {
				s.lose(lostBecause(taken, "by a test"))
			}
			time.Sleep(tt.after / rate)
			began := time.Now()
			k.pause(w.Context(), s)
			if took := time.Since(began) * rate; took != tt.want || k.delays.restart != tt.reset {
				t.Errorf("%s: paused for %v, want %v; the next failure is the first: %v", tt.name, took, tt.want,
					k.delays.restart)
			}
		})
	}
}

// What a write that keeps or frees the lease makes known.
func TestWrite(t *testing.T) {
	at := func(version uint64) record { return heldByB.but(func(r *record) { r.version = version }) }
	conflict := apierrors.NewConflict(leasesGroupResource, name, nil)
	for _, tt := range []struct {
		name   string
		answer record
		err    error
		ends   bool // ctx does, during the request
		sent   int  // reads
		known  record
	}{
		{"accepted", at(8), nil, false, 0, at(8)},
		{"accepted by a server that was set back", at(5), nil, false, 0, at(5)},
		{"refused by a conflict", record{}, conflict, false, 1, record{version: heldByB.version}},
		{"refused by a conflict, and ctx ends", record{}, conflict, true, 2, heldByB},
		{"failed", record{}, leasetest.ServiceUnavailable(), false, 0, heldByB},
	} {
		inWorld(t, func(w *world) {
			c := idleCampaign(w)
			c.store.addRead(heldByB, observation{})
			c.client.permits.Acquire(w.Context(), maxInFlight)
			defer c.client.permits.Release(maxInFlight)
			w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
				if tt.ends {
					return leasetest.Fault{Drop: leasetest.TheRequest}
				}
				return leasetest.Fault{}
			})
			ctx, cancel := context.WithCancel(w.Context())
			defer cancel()
			began := time.Now()
			r, err := c.write(ctx, "renew", func(ctx context.Context) (record, error) {
				if end, ok := ctx.Deadline(); !ok || end.Sub(began) != c.renewTimeout.current() {
					t.Errorf("%s: to end in %v", tt.name, end.Sub(began))
				}
				if tt.ends {
					time.AfterFunc(time.Second, cancel)
				}
				return tt.answer, tt.err
			})
			if took := time.Since(began); !errors.Is(err, tt.err) || r != tt.answer || tt.ends && took != time.Second {
				t.Errorf("%s: %+v, %v, after %v", tt.name, r, err, took)
			}
			w.sleep(0)
			if failed := w.logged("request=renew") > 0; failed != (tt.name == "failed") {
				t.Errorf("%s: logged as failing: %v", tt.name, failed)
			}
			if n := w.srv.Client("a").Requests(); n != tt.sent || c.store.latest().record != tt.known {
				t.Errorf("%s: %d reads, known: %+v", tt.name, n, c.store.latest().record)
			}
		})
	}
}

// The create mode ends a campaign by what a read answers, and by nothing else.
func TestRule(t *testing.T) {
	const pause, rate = 130 * time.Millisecond, 2
	get := leasetest.Request{Verb: "get"}
	exists, gone := record{uid: "u", version: 7, identity: "b"}, record{version: 7}
	for _, tt := range []struct {
		name     string
		mode     CreateMode
		known    record
		unknown  bool
		server   bool // has the Lease
		fails    int  // reads
		with     error
		noPermit bool
		ends     time.Duration
		met      bool // the mode does not matter any more, before
		want     error
		took     time.Duration
		sent     int
		after    bool // it does not matter any more
	}{
		{name: "nothing is known", mode: CreateNew, unknown: true},
		{name: "nothing is known, UseExisting", mode: UseExisting, unknown: true},
		{name: "AutoCreate", known: exists, after: true},
		{name: "AutoCreate, and there is none", known: gone, after: true},
		{name: "CreateNew", mode: CreateNew, known: gone},
		{name: "CreateNew, and it exists", mode: CreateNew, known: exists, server: true, want: ErrExists, sent: 1},
		{name: "CreateNew, and it seemed to exist", mode: CreateNew, known: exists, sent: 1},
		{name: "CreateNew, but it was ours before", mode: CreateNew, known: exists, met: true, after: true},
		{name: "UseExisting", mode: UseExisting, known: exists, after: true},
		{name: "UseExisting, and there is none", mode: UseExisting, known: gone, want: ErrNotFound, sent: 1},
		{name: "UseExisting, but there was one", mode: UseExisting, known: gone, met: true, after: true},
		{name: "UseExisting, and there seemed to be none", mode: UseExisting, server: true, sent: 1, after: true},
		{name: "reads fail", mode: UseExisting, known: gone, fails: 2, want: ErrNotFound, took: 2 * pause / rate,
			sent: 3},
		{name: "reads are forbidden", mode: UseExisting, known: gone, fails: 1, with: leasetest.Forbidden(get),
			want: ErrNotFound, took: refusedDelay / rate, sent: 2},
		{name: "ctx ends, and there is no permit", mode: UseExisting, known: gone, noPermit: true, ends: time.Second,
			took: time.Second},
		{name: "ctx ends", mode: UseExisting, known: gone, fails: 99, ends: 3 * pause / 2 / rate,
			took: 3 * pause / 2 / rate, sent: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := idleCampaign(w, WithCreateMode(tt.mode), withClock(rateClock{time.Now(), rate}),
					WithBackOff(func() backoff.BackOff { return &fixedBackOff{pause: pause} }))
				k := newCandidate(c, &contention{})
				k.createModeMet = tt.met
				if !tt.unknown {
					c.store.addRead(tt.known, observation{})
				}
				if tt.server {
					w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
				}
				reads := 0
				w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
					if reads++; reads <= tt.fails {
						return leasetest.Fault{Err: cmp.Or(tt.with, leasetest.Unauthorized())}
					}
					return leasetest.Fault{}
				})
				ctx, cancel := context.WithCancel(w.Context())
				defer cancel()
				if tt.ends > 0 {
					time.AfterFunc(tt.ends, cancel)
				}
				if tt.noPermit {
					c.client.permits.Acquire(w.Context(), maxInFlight)
					defer c.client.permits.Release(maxInFlight)
				}
				began := time.Now()
				o, err := k.rule(ctx)
				if !errors.Is(err, tt.want) || tt.want != nil && !strings.Contains(err.Error(), ns+"/"+name) {
					t.Errorf("%v, want %v", err, tt.want)
				}
				if took := time.Since(began); took != tt.took || reads != tt.sent {
					t.Errorf("took %v, want %v; %d reads, want %d", took, tt.took, reads, tt.sent)
				}
				if o.known == tt.unknown || k.createModeMet != tt.after || err == nil && o != c.store.latest() {
					t.Errorf("known: %+v, met: %v", o, k.createModeMet)
				}
			})
		})
	}
}

// When a candidate registers, and how long it waits beside that.
func TestLook(t *testing.T) {
	for _, tt := range []struct {
		name     string
		at       time.Duration // when to claim
		register time.Duration // when to register; 0 for never
		wake     time.Duration
		sent     int
	}{
		{"neither", time.Minute, 0, time.Minute, 0},
		{"later", time.Minute, time.Second, time.Second, 0},
		{"after the claim", time.Second, time.Minute, time.Second, 0},
		{"now", time.Minute, -1, time.Minute, 1},
		{"but the lease may be claimed", -1, -1, -1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				b := w.run("b", nil)
				defer b.quit()
				c := idleCampaign(w, WithPriority(1), WithChance(halfChance))
				if _, err := c.reflector.read(w.Context()); err != nil {
					t.Fatal(err)
				}
				k := newCandidate(c, &contention{})
				o, now := c.store.latest(), time.Now()
				k.attempt = attempt{on: o.state(), at: now.Add(tt.at)}
				if tt.register != 0 {
					k.attempt.register = now.Add(tt.register)
				}
				before := w.srv.Client("a").Requests()
				o, wake, err := k.nextAttempt(w.Context())
				if err != nil || !o.held() {
					t.Fatalf("%+v, %v", o.record, err)
				}
				if tt.sent > 0 { // what it wrote has been planned for
					tt.wake = D * 13 / 20
					if o.notes().Standby.Identity != "a" {
						t.Errorf("stands by: %+v", o.notes())
					}
				}
				if n := w.srv.Client("a").Requests() - before; wake != tt.wake || n != tt.sent {
					t.Errorf("waits for %v, want %v; %d requests, want %d", wake, tt.wake, n, tt.sent)
				}
			})
		})
	}
}

// A candidate that has waited for half of the renew interval, by its clock, has forgotten its failures. It checks its
// watch in time, and ends with ctx at once.
func TestAwait(t *testing.T) {
	const rate = 2
	for _, tt := range []struct {
		name   string
		opts   []Option
		known  record
		ends   time.Duration // when ctx does
		rested bool
		check  bool
	}{
		{"ctx ends soon", nil, heldByB, I/2/rate - 1, false, false},
		{"ctx ends later", nil, heldByB, I / 2 / rate, true, false},
		{"before the watch is to be checked", nil, heldByB, 6*time.Second/rate - 1, true, false},
		{"after it is to be checked", nil, heldByB, 6*time.Second/rate + 1, true, true},
		{"while the Lease cannot be read", []Option{WithCreateMode(UseExisting)}, record{}, I, false, false},
		{"while it cannot register", []Option{WithPriority(1)}, heldByB, I / 2, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := idleCampaign(w, append(tt.opts, withClock(rateClock{time.Now(), rate}),
					WithChance(func(time.Duration) time.Duration { return 0 }))...)
				k := newCandidates(campaigns{c})
				c.store.addRead(tt.known, observation{})
				w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
					return leasetest.Fault{Err: leasetest.Unauthorized()}
				})
				if c.options.prioritized {
					c.client.permits.Acquire(w.Context(), maxInFlight)
					defer c.client.permits.Release(maxInFlight)
				}
				ctx, cancel := context.WithCancelCause(w.Context())
				cause := errors.New("enough")
				time.AfterFunc(tt.ends, func() { cancel(cause) })
				began := time.Now()
				if s, err := k.await(ctx); s != nil || err != cause || time.Since(began) != tt.ends {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				rested, check := k.all[0].delays.restart, c.reflector.takeCheck()
				if rested != tt.rested || check != tt.check {
					t.Errorf("the next failure is the first: %v, the watch is checked: %v", rested, check)
				}
			})
		})
	}
}

// idleSlots returns the candidates for three slots, of which nothing runs by itself.
func idleSlots(w *world, opts ...Option) *candidates {
	w.Helper()
	o, err := newOptions(w.Context(), w.options("a", append([]Option{WithSlots(3)}, opts...)...))
	if err != nil {
		w.Fatal(err)
	}
	cs, err := newCampaigns(w.Context(), o)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(cs.close)
	return newCandidates(cs)
}

// Which of several slots that are free is claimed.
func TestChoose(t *testing.T) {
	for _, tt := range []struct {
		name     string
		failures []int // of each candidate
		ours     int   // which one a claim of ours acquired; -1 for none
		window   time.Duration
		fraction float64
		want     int
	}{
		{"the first", []int{0, 0, 0}, -1, 0, 0.99, 0},
		{"those whose claims do not fail", []int{1, 0, 0}, -1, 0, 0, 1},
		{"those whose claims fail less", []int{3, 2, 1}, -1, 0, 0, 2},
		{"the first of those", []int{2, 1, 1}, -1, 0, 0, 1},
		{"ours", []int{0, 0, 0}, 2, time.Second, 0, 2},
		{"ours, but its claims fail", []int{0, 0, 1}, 2, 0, 0, 0},
		{"any, with contention", []int{0, 0, 0}, -1, time.Second, 0.5, 1},
		{"the last, with contention", []int{0, 0, 0}, -1, time.Second, 0.99, 2},
		{"any of those whose claims do not fail", []int{0, 1, 0}, -1, time.Second, 0.5, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := idleSlots(w, WithChance(func(n time.Duration) time.Duration {
					return time.Duration(tt.fraction * float64(n))
				}))
				k.contention.window = contentionWindow(tt.window)
				var chances []chance
				for i, one := range k.all {
					one.failures = tt.failures[i]
					o := observation{record: record{uid: "u", version: 7}, known: true}
					if i == tt.ours {
						n := one.campaign.claims.begin(o.record, "a", time.Now())
						o.record.identity, o.record.acquired = "a", n.term.acquired
					}
					chances = append(chances, chance{one, o})
				}
				if got := k.choose(chances); got.candidate != k.all[tt.want] || got.on != chances[tt.want].on {
					t.Errorf("slot %d, want %d", got.candidate.campaign.options.slot, tt.want)
				}
			})
		})
	}
}

// Which slots may be claimed, and how long to wait if none may: a moment if that may still turn out.
func TestLookAtSlots(t *testing.T) {
	free, unknown := record{uid: "u", version: 7}, record{}
	held := func(seconds int) record {
		return heldByB.but(func(r *record) { r.duration = time.Duration(seconds) * time.Second })
	}
	for _, tt := range []struct {
		name    string
		after   time.Duration
		slots   []record
		chances []int
		wake    time.Duration // if there are none
	}{
		{"nothing is known", time.Hour, []record{unknown, unknown, unknown}, nil, maxDuration},
		{"one is free, at once", 0, []record{unknown, free, unknown}, nil, I / 4},
		{"the last one is free, at once", 0, []record{unknown, unknown, free}, nil, I / 4},
		{"one is free, soon after", I / 8, []record{unknown, free, unknown}, nil, I / 8},
		{"one is free, later", I / 4, []record{unknown, free, unknown}, []int{1}, 0},
		{"one is free, and all are known", 0, []record{held(9), held(8), free}, []int{2}, 0},
		{"all are free", 0, []record{free, free, free}, []int{0, 1, 2}, 0},
		{"all are held", 0, []record{held(29), held(27), held(28)}, nil, 27 * time.Second / 10 * 6},
		{"held as far as is known", 0, []record{unknown, held(10), unknown}, nil, 6 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := idleSlots(w, WithChance(func(time.Duration) time.Duration { return 0 }))
				w.sleep(tt.after)
				for i, r := range tt.slots {
					if r != unknown {
						k.campaigns[i].store.addRead(r, observation{})
					}
				}
				chances, wake, err := k.findChances(w.Context())
				var got []int
				for _, c := range chances {
					got = append(got, c.candidate.campaign.options.slot)
				}
				if err != nil || !slices.Equal(got, tt.chances) || len(got) == 0 && wake != tt.wake {
					t.Errorf("%v after %v, want %v after %v; %v", got, wake, tt.chances, tt.wake, err)
				}
			})
		})
	}
}

// After a session in one slot the candidates know when that was, and failures in other slots are long ago.
func TestPauseOfSlots(t *testing.T) {
	inWorld(t, func(w *world) {
		k := idleSlots(w, WithChance(halfChance))
		s := &session{campaign: k.campaigns[1], lost: make(chan struct{}), began: k.campaigns[1].clock.now()}
		began := time.Now()
		strayEnded := make(chan struct{})
		s.campaign.strays.Go(func() {
			time.Sleep(time.Second)
			close(strayEnded)
		})
		k.pause(w.Context(), s)
		if took := time.Since(began); took != time.Second+I/2 || !k.contention.led.Equal(began.Add(time.Second)) {
			t.Errorf("paused for %v, the session ended %v after it began", took, k.contention.led.Sub(began))
		}
		<-strayEnded
		for i, one := range k.all {
			if !one.delays.restart {
				t.Errorf("slot %d: the next failure is not the first", i)
			}
		}
	})
}

// What claims of unknown outcome acquired in other slots is freed while a session lasts, and what cannot be freed is
// logged.
func TestReleaseStrays(t *testing.T) {
	const warning = `msg="lease of an earlier claim not released; it will expire"`
	for _, tt := range []struct {
		name   string
		holder string
		fails  bool
		ends   time.Duration // the session
		left   string
		warned int
	}{
		{"freed", "a", false, I, "", 0},
		{"held by another", "b", false, I, "b", 0},
		{"cannot be freed", "a", true, R/4 + time.Second, "a", 1},
		{"cannot be freed before the session ends", "a", true, R/4 - 1, "a", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := idleSlots(w)
				stray := k.campaigns[0]
				n := stray.claims.begin(record{}, "a", time.Now())
				stray.claims.recordOutcome(n, context.DeadlineExceeded, false)
				held := *stray.lease
				held.identity = tt.holder
				if _, err := held.create(w.Context(), n.term.acquired); err != nil {
					t.Fatal(err)
				}
				if _, err := stray.reflector.read(w.Context()); err != nil {
					t.Fatal(err)
				}
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if tt.fails && r.Verb == "patch" {
						return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
					}
					return leasetest.Fault{}
				})
				c := k.campaigns[1]
				inner, cancel := context.WithCancelCause(w.Context())
				s := &session{campaign: c, lost: make(chan struct{}), cancel: cancel}
				s.ctx = &sessionContext{inner, s}
				until := c.clock.now().add(R)
				s.until.Store(&until)
				k.releaseStrays(s)
				w.sleep(tt.ends)
				if got := w.srv.Lease(ns, slotName(name, 0)).Spec.HolderIdentity; got == nil != (tt.left == "") ||
					got != nil && *got != tt.left {
					t.Errorf("held by %v, want %q", got, tt.left)
				}
				cancel(ErrReleased)
				began := time.Now()
				c.strays.Wait()
				if took := time.Since(began); took != 0 {
					t.Errorf("ended %v after the session", took)
				}
				w.sleep(0)
				if n := w.logged(warning); n != tt.warned {
					t.Errorf("logged %d times", n)
				}
			})
		})
	}
}

// A panic of the program's code while the campaigns of slots are made leaves nothing, whether or not there is one.
func TestSlotsPanicWhileMade_G13(t *testing.T) {
	for _, calls := range []int{1, 4} { // each campaign asks for three policies
		inWorld(t, func(w *world) {
			n := -1 // the first is of the check of the options
			o, err := newOptions(w.Context(), w.options("a", WithSlots(2), WithBackOff(func() backoff.BackOff {
				if n++; n == calls {
					panic("the program's")
				}
				return &fixedBackOff{}
			})))
			if err != nil {
				t.Fatal(err)
			}
			func() {
				defer func() {
					if got := recover(); got != "the program's" {
						t.Errorf("recovered %v", got)
					}
				}()
				newCampaigns(w.Context(), o)
			}()
			clients.Lock()
			defer clients.Unlock()
			for _, l := range clients.inUse {
				if l.client != nil && l.client.value == any(w.srv.Client("a")) {
					t.Errorf("after call %d its client is left, with %d users", calls, l.users)
				}
			}
		})
	}
}

// A Holder says all that the Lease does.
func TestHolderOfRecord(t *testing.T) {
	inWorld(t, func(w *world) {
		r := heldByB.but(func(r *record) { r.annotated = &annotation.Notes{Address: "10.0.0.1"} })
		expiry := time.Now()
		want := Holder{Namespace: ns, Name: name, Identity: "b", AcquireTime: r.acquired, RenewTime: r.renewed,
			Duration: r.duration, Transitions: 3, ExpiryTime: expiry, Address: "10.0.0.1"}
		if got := idleCampaign(w).holder(r, expiry); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// The end of campaigns waits for what frees strays, and leaves nothing in what campaigns share with others; also if it
// comes twice.
func TestCloseOfSlots_G10(t *testing.T) {
	inWorld(t, func(w *world) {
		other := idleCampaign(w, WithLease("other"))
		k := idleSlots(w)
		c := k.campaigns[1]
		c.lease.failures.record("get", leasetest.ServiceUnavailable())
		if n := other.client.failing.Load(); n != 1 {
			t.Fatalf("%d campaigns have failing requests", n)
		}
		c.strays.Go(func() { time.Sleep(time.Second) })
		began := time.Now()
		for range 2 {
			k.campaigns.close()
		}
		if took := time.Since(began); took != time.Second || c.ctx.Err() == nil {
			t.Errorf("ended after %v: %v", took, c.ctx.Err())
		}
		if n := other.client.failing.Load(); n != 0 || other.client.users != 1 {
			t.Errorf("%d still count as failing; the client has %d users", n, other.client.users)
		}
	})
}

// Claims that meet with conflicts although nothing happens to the Lease are noticed after D.
func TestAwaitNoticesFailingClaims_G14(t *testing.T) {
	inWorld(t, func(w *world) {
		w.acquire(w.Context(), "before").Release()
		c := idleCampaign(w)
		if _, err := c.reflector.read(w.Context()); err != nil {
			t.Fatal(err)
		}
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb != "apply" {
				return leasetest.Fault{}
			}
			return leasetest.Fault{Err: apierrors.NewConflict(leasesGroupResource, name, nil)}
		})
		ctx, cancel := context.WithTimeout(w.Context(), D+2*time.Second)
		defer cancel()
		if s, err := newCandidates(campaigns{c}).await(ctx); s != nil || err != context.DeadlineExceeded {
			t.Fatal(err)
		}
		w.sleep(0)
		if n := w.logged(`msg="campaign stuck: claims fail although`); n != 1 {
			t.Errorf("logged %d times", n)
		}
	})
}

// Claims that meet with conflicts although the holder that has crashed did nothing are as rare as others that fail, and
// are noticed after D.
func TestConflictsOverCrashedHolder_G14(t *testing.T) {
	for _, readsFail := range []bool{false, true} {
		t.Run(fmt.Sprintf("reads fail: %v", readsFail), func(t *testing.T) {
			inWorld(t, func(w *world) {
				spec := coordinationv1.LeaseSpec{HolderIdentity: new("x"), LeaseDurationSeconds: new(int32(15))}
				w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: spec})
				var claims atomic.Int64
				var m Monitor
				a := w.run("a", nil, WithMonitor(&m))
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					switch {
					case r.Verb == "watch" || r.Verb == "list" || r.Verb == "get" && !readsFail:
						return leasetest.Fault{}
					case r.Verb == "get":
						return leasetest.Fault{Err: leasetest.TooManyRequests(time.Second)}
					}
					if claims.Add(1) > 1000 {
						return leasetest.Fault{Before: time.Second}
					}
					return leasetest.Fault{Err: apierrors.NewConflict(leasesGroupResource, name, nil)}
				})
				const warning = `msg="campaign stuck: claims fail although`
				w.sleep(2 * D)
				if w.logged(warning) != 0 || m.Check(nil) != nil {
					t.Errorf("stuck after %d claims: %v", claims.Load(), m.Check(nil))
				}
				w.sleep(2 * I)
				n := claims.Load()
				if want := int64((D + 2*I) / time.Second * 3); n < 3 || n > want {
					t.Errorf("%d claims in %v, want at most %d", n, D+2*I, want)
				}
				if w.logged(warning) == 0 || w.status(&m).LastError == "" {
					t.Errorf("not logged after %d claims, or not shown: %q", n, w.status(&m).LastError)
				}
				if readsFail {
					w.wantStuck(&m)
				}
				a.quit()
			})
		})
	}
}

// An operator who deletes a Lease because its duration is far too long learns that its holder is waited out anyway.
func TestDeletedWithLongDuration(t *testing.T) {
	for _, tt := range []struct {
		seconds int32
		want    int
	}{{15, 0}, {16, 1}, {2147483647, 1}} {
		inWorld(t, func(w *world) {
			spec := coordinationv1.LeaseSpec{HolderIdentity: new("x"), LeaseDurationSeconds: new(tt.seconds)}
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: spec}
			w.srv.Put(lease)
			a := w.run("a", nil)
			w.sleep(0)
			w.srv.Delete(ns, name)
			w.sleep(0)
			lease.Spec = coordinationv1.LeaseSpec{}
			w.srv.Put(lease)
			w.sleep(time.Second)
			if n := w.logged("holder with a longer duration led, which may not have heard"); n != tt.want {
				t.Errorf("%d s: logged %d times, want %d", tt.seconds, n, tt.want)
			}
			a.quit()
		})
	}
}
