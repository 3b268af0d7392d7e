package leasehold

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
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
	"k8s.io/apimachinery/pkg/types"

	"github.com/leasehold-go/leasehold/leasetest"
)

// When the renewals of a lease come, at both ends of chance.
func TestWhenToRenew(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name        string
		chance      func(time.Duration) time.Duration
		first, next time.Duration
	}{
		{"at the earliest", func(time.Duration) time.Duration { return 0 }, I / 4, I * 9 / 10},
		{"at the latest", func(n time.Duration) time.Duration { return n }, I, I},
	} {
		o := &options{renewInterval: I, hooks: hooks{chance: tt.chance}}
		if first, next := firstRenewal(o), nextRenewal(o); first != tt.first || next != tt.next {
			t.Errorf("%s: first after %v, next after %v, want %v and %v", tt.name, first, next, tt.first, tt.next)
		}
	}
	for interval, want := range map[time.Duration]time.Duration{
		time.Hour: 100 * ms, I: 100 * ms, 1500 * ms: 50 * ms, 10 * ms: ms,
	} {
		if got := gathering(&options{renewInterval: interval}); got != want {
			t.Errorf("with an interval of %v gathers for %v, want %v", interval, got, want)
		}
	}
	for _, tt := range []struct {
		name                 string
		wanted               bool
		failed               bool // the last one has
		due, sinceLast, want time.Duration
	}{
		{"when it is due", false, false, 2 * time.Second, time.Second, 2 * time.Second},
		{"wanted", true, false, 2 * time.Second, 20 * ms, 80 * ms},
		{"wanted long after the last one", true, false, 2 * time.Second, time.Second, -900 * ms},
		{"due before what is wanted is gathered", true, false, 30 * ms, 20 * ms, 30 * ms},
		{"wanted after one that failed", true, true, 2 * time.Second, time.Second, 2 * time.Second},
	} {
		now := systemClock{}.now()
		r := &renewer{session: &session{campaign: &campaign{options: &options{renewInterval: I}}},
			due: now.add(tt.due), last: now.add(-tt.sinceLast)}
		r.wanted.Store(tt.wanted)
		if tt.failed {
			r.pending = make([]renewal, 1)
		}
		if got := r.untilRenewalLocked(now); got != tt.want {
			t.Errorf("%s: in %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Renewals that are asked for are some time apart, from the write on that acquired the lease.
func TestRenewSoon(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		defer s.Release()
		acquired := time.Now()
		var renewed []time.Duration
		w.srv.OnCommit(func(leasetest.Change) { renewed = append(renewed, time.Since(acquired)) })
		const ms = time.Millisecond
		for _, pause := range []time.Duration{0, 150 * ms, 10 * ms} {
			w.sleep(pause)
			s.state.(*session).renewSoon()
		}
		w.sleep(I / 5)
		if want := []time.Duration{100 * ms, 200 * ms}; !slices.Equal(renewed, want) {
			t.Errorf("renewed after %v, want %v", renewed, want)
		}
	})
}

// How a renewal ended says when the next one begins, and until when the lease is trusted.
func TestRepliesOfRenewals(t *testing.T) {
	const ms = time.Millisecond
	unavailable, forbidden := leasetest.ServiceUnavailable(), leasetest.Forbidden(leasetest.Request{Verb: "patch"})
	for _, tt := range []struct {
		name   string
		trust  time.Duration // how much is left when the reply comes
		answer string        // which renewal the reply shows
		err    error
		known  string        // which renewal the newest record shows
		pause  time.Duration // that the BackOff names
		due    time.Duration // from now
		left   []string      // renewals that may yet take effect
		until  string        // the renewal from whose sending trust counts; "" for the old one
	}{
		{"took effect", R, "second", nil, "second", 100 * ms, 0, nil, "second"},
		{"took effect, and was edited since", R, "second", nil, "another", 100 * ms, 0, nil, "second"},
		{"the one before did", R, "", unavailable, "first", 100 * ms, 0, []string{"second"}, "first"},
		{"its reply was lost", R, "", unavailable, "second", 100 * ms, 0, nil, "second"},
		{"failed", R, "", unavailable, "", 100 * ms, 100 * ms, []string{"first", "second"}, ""},
		{"refused", R, "", forbidden, "", 100 * ms, 900 * ms, []string{"first", "second"}, ""},
		{"time for one more try", 10*time.Second + 700*ms, "", unavailable, "", time.Hour, 700 * ms,
			[]string{"first", "second"}, ""},
		{"no time for one more", 5 * time.Second, "", unavailable, "", time.Hour, (R - I) / 4 / 4,
			[]string{"first", "second"}, ""},
		{"stored otherwise", R, "another", nil, "another", 100 * ms, 100 * ms, []string{"first", "second"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				own := heldByB.but(func(r *record) { r.duration = D })
				r, _ := idleRenewer(w, own, nil, WithChance(func(time.Duration) time.Duration { return 0 }),
					WithBackOff(func() backoff.BackOff { return &fixedBackOff{pause: tt.pause} }))
				s := r.session
				time.Sleep(I)
				now := r.clock.now()
				sent := map[string]instant{
					"first": now.add(-2 * time.Second), "second": now.add(-time.Second), "another": {},
				}
				shows := func(which string) record {
					return own.but(func(r *record) {
						r.version++
						r.renewed = r.renewed.Add(sent[which].mono.Sub(time.Unix(0, 0)))
					})
				}
				for _, which := range []string{"first", "second"} {
					r.pending = append(r.pending, renewal{shows(which).renewed, sent[which]})
				}
				until := now.add(tt.trust)
				s.until.Store(&until)
				s.altered.Store(tt.until != "") // by the renewal before
				if tt.known != "" {
					r.store.addAnswer(shows(tt.known), r.store.latest())
				}
				answer := reply{err: tt.err, sent: sent["second"]}
				if tt.answer != "" {
					answer.record = shows(tt.answer)
				}
				r.handleReplyLocked(&answer)
				r.requests.Wait()
				if err := s.loss(); err != nil {
					t.Fatal(err)
				}
				if tt.until != "" {
					until = sent[tt.until].add(R)
				}
				if got := *s.until.Load(); got != until {
					t.Errorf("trusted for %v, want %v", got.left(now), until.left(now))
				}
				var left []string
				for _, p := range r.pending {
					for which := range sent {
						if p.stamp == shows(which).renewed {
							left = append(left, which)
						}
					}
				}
				if !slices.Equal(left, tt.left) {
					t.Errorf("may yet take effect: %v, want %v", left, tt.left)
				}
				if told := len(s.renewed) == 1; told != (tt.until != "") {
					t.Errorf("told that it was renewed: %v", told)
				}
				due := now.add(tt.due)
				if tt.until != "" {
					due = sent[tt.until].add(I * 9 / 10)
				}
				if r.due != due {
					t.Errorf("the next one is due in %v, want %v", r.due.left(now), due.left(now))
				}
				if first := tt.until != "" && tt.left == nil; r.restart != first {
					t.Errorf("the next failure is the first in a row: %v, want %v", !first, first)
				}
				if altered := tt.answer == "another"; s.altered.Load() != altered {
					t.Errorf("altered: %v, want %v", s.altered.Load(), altered)
				}
				if n := s.campaign.stats.status().Renewals; (n == 1) != (tt.answer == "second") {
					t.Errorf("%d renewals counted", n)
				}
				r.handleReplyLocked(&answer) // of the next renewal
				w.sleep(time.Second)
				logged := w.logged("the API server stored another renewTime")
				if altered := tt.answer == "another"; logged != map[bool]int{true: 1}[altered] {
					t.Errorf("logged %d times", logged)
				}
			})
		})
	}
}

// What a renewal brings of another's term, or of an edit that cuts the duration, ends the session, and nothing else is
// concluded from it. After a loss nothing is concluded at all.
func TestAbsorbedLosses_G6(t *testing.T) {
	own := heldByB.but(func(r *record) { r.duration = D })
	for _, tt := range []struct {
		name string
		seen record
	}{
		{"another's", own.but(func(r *record) { r.identity = "thief" })},
		{"cut", own.but(func(r *record) { r.duration-- })},
		{"our own, but lost before", own},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				r, _ := idleRenewer(w, own, nil)
				until, sent := r.session.until.Load(), r.clock.now().add(time.Second)
				if tt.seen == own {
					r.session.lose(lostBecause(taken, "before"))
				}
				tt.seen.version++
				r.pending = []renewal{{own.renewed, sent}}
				r.store.addAnswer(tt.seen, r.store.latest())
				r.handleReplyLocked(&reply{tt.seen, nil, sent})
				if loss := r.session.loss(); !errors.Is(loss, ErrLost) {
					t.Errorf("lost: %v", loss)
				}
				if r.session.until.Load() != until || len(r.pending) != 1 {
					t.Errorf("trusted until %v, want %v; %d renewals pending", r.session.until.Load(), until,
						len(r.pending))
				}
				w.sleep(time.Second)
				if w.logged("the API server stored another renewTime") != 0 {
					t.Error("a loss was logged as an altered renewal")
				}
			})
		})
	}
}

// An answer just before a renewal asks for no check of the watch; at the renewal after that one it does.
func TestRenewalRightAfterAnswer(t *testing.T) {
	inWorld(t, func(w *world) {
		r, _ := idleRenewer(w, heldByB, nil)
		known, now := r.store.latest(), r.clock.now()
		first, second := r.versionDueLocked(&known, now), r.versionDueLocked(&known, now)
		if first != 0 || second != heldByB.version {
			t.Errorf("due: %d, then %d", first, second)
		}
	})
}

// A renewal is told from the write before it even if both were made in the same microsecond, it is noted before it is
// sent, and it asks for a check of a watch that has not brought what it builds upon.
func TestRenewalIsToldApart(t *testing.T) {
	inWorld(t, func(w *world) {
		own := heldByB.but(func(r *record) { r.duration, r.renewed = D, time.Now().UTC().Truncate(time.Microsecond) })
		r, _ := idleRenewer(w, own, nil)
		r.store.seen.since = r.store.seen.since.Add(-watchLag)
		now := r.clock.now()
		r.wanted.Store(true)
		r.renewLocked(now)
		if want := []renewal{{own.renewed.Add(time.Microsecond), now}}; !slices.Equal(r.pending, want) {
			t.Errorf("pending: %v, want %v", r.pending, want)
		}
		if r.flight == nil || r.wanted.Load() || r.last != now || !r.reflector.takeCheck() {
			t.Errorf("under way: %v, wanted: %v, last: %v", r.flight != nil, r.wanted.Load(), r.last)
		}
		r.requests.Wait()
		if reply := r.flight.reply; reply.sent != now || reply.err == nil {
			t.Errorf("replied: %+v", reply) // there is no such Lease
		}
	})
}

// A renewal under way keeps nobody from hearing of a loss, and is cut short by it.
func TestLossDuringRenewal_G6(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		patches := make(chan struct{}, 9)
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb != "patch" {
				return leasetest.Fault{}
			}
			patches <- struct{}{}
			return leasetest.Fault{Before: time.Hour}
		})
		<-patches
		w.sleep(eps)
		w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Labels = map[string]string{"edited": ""} })
		w.sleep(eps)
		w.steal("thief")
		w.sleep(0)
		select {
		case <-s.Done():
		default:
			t.Error("not lost")
		}
		if losses := w.logged(`msg="lease lost"`); losses != 1 || len(patches) != 0 {
			t.Errorf("%d losses logged, %d more renewals sent", losses, len(patches))
		}
		began := time.Now()
		if err := s.Release(); !errors.Is(err, ErrLost) || time.Since(began) > eps {
			t.Errorf("Release() = %v, after %v", err, time.Since(began))
		}
	})
}

// Work that has returned is not stuck, however long the renewal under way takes.
func TestBeatEndsWithTheWork(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a", WithBeat(time.Second))
		patches := make(chan struct{}, 9)
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb != "patch" || len(patches) > 0 {
				return leasetest.Fault{}
			}
			patches <- struct{}{}
			return leasetest.Fault{Before: 2 * time.Second}
		})
		for len(patches) == 0 {
			w.sleep(eps)
			s.Beat()
		}
		if err := s.Release(); err != nil || w.holder() != "" {
			t.Errorf("Release() = %v, held by %q", err, w.holder())
		}
	})
}

// Work that is stuck is found in time even if that is long before the next renewal.
func TestBeatBetweenRenewals(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a", WithBeat(200*time.Millisecond), WithDuration(time.Minute))
		defer s.Release()
		began := time.Now()
		<-s.Done()
		if took := time.Since(began); took < 200*time.Millisecond || took > 250*time.Millisecond {
			t.Errorf("%v after %v", s.Err(), took)
		}
	})
}

// Trust that ended while the process was stopped is not revived by what comes after it: neither by the reply to a
// renewal nor by the watch. Who looks first finds the loss, and the renewer hears of it at once.
func TestTrustIsNotRevived_G3(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault leasetest.Fault
	}{
		{"reply", leasetest.Fault{Before: time.Second}},
		{"watch", leasetest.Fault{Before: time.Second, Drop: leasetest.TheReply}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var slept atomic.Int64
				sent := make(chan struct{}, 9)
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					switch {
					case r.Verb == "watch" && tt.name == "reply":
						return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
					case r.Verb != "patch":
						return leasetest.Fault{}
					}
					sent <- struct{}{}
					return tt.fault
				})
				s := w.acquire(w.Context(), "a", withClock(sleepyClock{&slept}))
				acquired := time.Now()
				<-sent
				time.Sleep(tt.fault.Before / 2)
				slept.Store(int64(R - time.Since(acquired) + eps)) // what the renewal would have trusted is not over
				w.sleep(tt.fault.Before)
				if s.Context().Err() == nil || w.logged("the clock jumped") != 1 {
					t.Errorf("not lost: %v", s.Err())
				}
				s.Release()
			})
		})
	}
	t.Run("a look", func(t *testing.T) {
		inWorld(t, func(w *world) {
			var slept atomic.Int64
			s := w.acquire(w.Context(), "a", withClock(sleepyClock{&slept}))
			w.sleep(eps)
			slept.Store(int64(time.Hour))
			if err := s.Err(); !errors.Is(err, ErrLost) || context.Cause(s.Context()) != err {
				t.Errorf("not lost: %v", err)
			}
			w.sleep(0)
			if w.logged(`msg="lease lost"`) != 1 {
				t.Error("the renewer did not hear of the loss")
			}
			s.Release()
		})
	})
}

// The failures of one session make those of the next no slower.
func TestRenewalsStartOver(t *testing.T) {
	inWorld(t, func(w *world) {
		c := idleCampaign(w)
		s := c.newSession(w.Context(), heldByB, c.clock.now())
		s.lose(lostBecause(taken, "at once"))
		s.finish()
		if !s.renewer.restart {
			t.Error("the first failure of a session is not the first in a row")
		}
	})
}

// The function of WithOverrun is called when the lease expires, and not if the body has returned by then, even if that
// is found out only afterwards.
func TestOverrunAtExpiry(t *testing.T) {
	for _, tt := range []struct {
		name    string
		stalls  bool          // until the lease has expired
		returns time.Duration // when the body returns, from when the lease expires
		calls   int
	}{
		{"before", false, -time.Nanosecond, 0},
		{"before, but the process stalls", true, -time.Nanosecond, 0},
		{"after", false, time.Nanosecond, 1},
	} {
		for range 20 { // chance decides what comes first
			inWorld(t, func(w *world) {
				var called []time.Time
				own := heldByB.but(func(r *record) { r.duration = D })
				r, _ := idleRenewer(w, own, nil, WithOverrun(func(Session) { called = append(called, time.Now()) }))
				s := r.session
				s.delivered.Store(true)
				s.lose(lostBecause(taken, "now held by %q", "thief"))
				expires := s.until.Load().mono.Add(D - R)
				time.AfterFunc(time.Until(expires)+tt.returns, s.endWork)
				if synctest.Wait(); tt.stalls {
					w.sleep(time.Until(expires))
				}
				r.stage = renewing
				r.step()
				r.wait()
				if len(called) != tt.calls || tt.calls > 0 && called[0] != expires ||
					s.overran.Load() != (tt.calls > 0) {
					t.Errorf("%s: called at %v, want %d calls, at %v", tt.name, called, tt.calls, expires)
				}
			})
		}
	}
}

// The renewal under way of a lost lease is waited for, but not for long: it is cut short, and given up if that does not
// help.
func TestReleaseAwaitsRenewal(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lasts time.Duration // after its context has ended
		waits time.Duration
	}{
		{"ends", 0, 0},
		{"ends soon", answerGrace / 2, answerGrace / 2},
		{"does not end", time.Minute, answerGrace + userCodeGrace},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				sent := make(chan struct{}, 9)
				s := w.acquire(w.Context(), "a", func(o *options) {
					o.hooks.wrap = func(l Leases) Leases {
						return hangingLeases{l, func(ctx context.Context) {
							sent <- struct{}{}
							<-ctx.Done()
							time.Sleep(tt.lasts)
						}}
					}
				})
				<-sent
				s.state.(*session).lose(lostBecause(taken, "now held by %q", "thief"))
				began := time.Now()
				if err := s.Release(); !errors.Is(err, ErrLost) {
					t.Errorf("Release() = %v", err)
				}
				if took := time.Since(began); took != tt.waits || len(sent) != 0 {
					t.Errorf("waited for %v, want %v; %d more renewals", took, tt.waits, len(sent))
				}
				time.Sleep(tt.lasts)
			})
		})
	}
}

// A renewal that is answered after it was given up has failed, once, whatever the answer is. The watch shows that it
// took effect.
func TestAnswerAfterGivingUp(t *testing.T) {
	inWorld(t, func(w *world) {
		const ms = time.Millisecond
		var wait atomic.Int64
		sent := make(chan struct{}, 99)
		s := w.acquire(w.Context(), "a", func(o *options) {
			o.hooks.wrap = func(l Leases) Leases {
				return lateLeases{l, func() {
					sent <- struct{}{}
					time.Sleep(time.Duration(wait.Load()))
				}}
			}
		})
		limit := s.state.(*session).campaign.renewTimeout.current() + answerGrace
		wait.Store(int64(limit + 5*ms))
		<-sent
		wait.Store(0)
		for _, tt := range []struct {
			after  time.Duration
			failed int
		}{{limit - ms, 0}, {2 * ms, 1}, {10 * ms, 1}} {
			w.sleep(tt.after)
			failed, ended := w.logged("API requests are failing"), w.logged("API requests succeed again")
			if failed != tt.failed || ended != 0 {
				t.Errorf("%v later: %d requests failed, %d succeeded", tt.after, failed, ended)
			}
		}
		if w.logged("renew: no answer: context deadline exceeded") != 1 {
			t.Error("the cause was not logged")
		}
		w.sleep(10 * I)
		if err := s.Release(); err != nil || w.logged("API requests succeed again") != 1 {
			t.Errorf("Release() = %v", err)
		}
	})
}

// lateLeases pass each patch on, whatever becomes of its context, and call wait before they return the answer.
type lateLeases struct {
	Leases
	wait func()
}

func (l lateLeases) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string,
) (*coordinationv1.Lease, error) {
	lease, err := l.Leases.Patch(context.WithoutCancel(ctx), name, pt, data, opts, sub...)
	l.wait()
	return lease, err
}

// hangingLeases call hang before each patch.
type hangingLeases struct {
	Leases
	hang func(context.Context)
}

func (l hangingLeases) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string,
) (*coordinationv1.Lease, error) {
	l.hang(ctx)
	return l.Leases.Patch(ctx, name, pt, data, opts, sub...)
}

// No session that is stuck delays another of the same client, or is late to hear of its own end: not one whose renewal
// hangs, whose BackOff hangs, whose function of WithOverrun hangs, or whose work ignores its context. Between renewals
// none has a goroutine.
func TestStuckSessionsDelayNoOther(t *testing.T) {
	inWorld(t, func(w *world) {
		release := make(chan struct{})
		overrun := make(chan struct{}, 1)
		hangs := func(o *options) {
			o.hooks.wrap = func(l Leases) Leases {
				return hangingLeases{l, func(context.Context) { <-release }}
			}
		}
		fails := func(o *options) {
			o.hooks.wrap = func(Leases) Leases {
				return hangingLeases{w.srv.Client("refused").Leases(ns), func(context.Context) {}}
			}
		}
		w.srv.Client("refused").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "patch" {
				return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
			}
			return leasetest.Fault{}
		})
		stuck := map[string]Session{
			"renewal": w.acquire(w.Context(), "a", WithLease("renewal"), hangs),
			"backoff": w.acquire(w.Context(), "a", WithLease("backoff"), fails,
				WithBackOff(func() backoff.BackOff { return &hangingBackOff{release} })),
			"overrun": w.acquire(w.Context(), "a", WithLease("overrun"), hangs,
				WithOverrun(func(Session) { overrun <- struct{}{}; <-release })),
		}
		acquired := time.Now()
		var healthy []Session
		late := map[string]time.Time{}
		for i := range 2 * fewLeases {
			lease := fmt.Sprint("healthy-", i)
			healthy = append(healthy, w.acquire(w.Context(), "a", WithLease(lease)))
			late[lease] = time.Now()
		}
		var mu sync.Mutex
		w.srv.OnCommit(func(c leasetest.Change) {
			mu.Lock()
			defer mu.Unlock()
			if before, ok := late[c.New.Name]; ok {
				if gap := time.Since(before); gap > I+eps {
					t.Errorf("%s: renewed after %v", c.New.Name, gap)
				}
				late[c.New.Name] = time.Now()
			}
		})
		for name, s := range stuck {
			<-s.Done()
			if took := time.Since(acquired); took > R+eps || !errors.Is(s.Err(), ErrLost) {
				t.Errorf("%s: %v after %v", name, s.Err(), took)
			}
		}
		<-overrun
		if took := time.Since(acquired); took > D+eps {
			t.Errorf("overran after %v", took)
		}
		w.sleep(10 * D)
		for _, s := range healthy {
			if s.Err() != nil {
				t.Errorf("%s: %v", s.Holder().Name, s.Err())
			}
		}
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for goroutine := range strings.SplitSeq(string(stacks), "\n\n") {
			if strings.Contains(goroutine, ".(*renewer).") && !strings.Contains(goroutine, "hangingLeases") {
				t.Errorf("a renewer has a goroutine between renewals:\n%s", goroutine)
			}
		}
		close(release)
		for _, s := range healthy {
			if err := s.Release(); err != nil {
				t.Error(err)
			}
		}
		for name, s := range stuck {
			if err := s.Release(); !errors.Is(err, ErrLost) {
				t.Errorf("%s: Release() = %v", name, err)
			}
		}
	})
}

// A hangingBackOff names no delay until it is released.
type hangingBackOff struct{ release chan struct{} }

func (b *hangingBackOff) NextBackOff() time.Duration {
	<-b.release
	return 0
}
func (b *hangingBackOff) Reset() {}

// How long a renewal may take, and when trust ends, is measured by the clock of the candidate.
func TestRenewalsByClock_G3(t *testing.T) {
	for _, rate := range []float64{0.5, 2} {
		inWorld(t, func(w *world) {
			clock := rateClock{time.Now(), rate}
			limits := make(chan time.Duration, 99)
			s, err := Acquire(w.Context(), w.options("a", withClock(clock), func(o *options) {
				o.hooks.wrap = func(l Leases) Leases {
					return hangingLeases{l, func(ctx context.Context) {
						end, _ := ctx.Deadline()
						limits <- time.Until(end)
						<-ctx.Done()
					}}
				}
			})...)
			if err != nil {
				t.Fatal(err)
			}
			until := s.state.(*session).until.Load()
			<-s.Done()
			if left := until.left(clock.now()); left > 0 || left < -time.Microsecond {
				t.Errorf("clock of rate %v: lost with %v of trust left", rate, left)
			}
			timeout := s.state.(*session).campaign.renewTimeout.current()
			if got, want := <-limits, time.Duration(float64(timeout)/rate); got != want {
				t.Errorf("clock of rate %v: a renewal may take %v, want %v", rate, got, want)
			}
			s.Release()
		})
	}
}

// A session does not end before its renewer's BackOff was asked for the last time: the next session asks the same.
func TestSessionEndsAfterItsPlans(t *testing.T) {
	inWorld(t, func(w *world) {
		release := make(chan struct{})
		var failed atomic.Pointer[time.Time]
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if now := time.Now(); r.Verb == "patch" && failed.CompareAndSwap(nil, &now) {
				return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
			}
			return leasetest.Fault{}
		})
		s := w.acquire(w.Context(), "a", WithBackOff(func() backoff.BackOff { return &hangingBackOff{release} }))
		for failed.Load() == nil {
			w.sleep(time.Millisecond)
		}
		w.sleep(policyLimit / 2)
		var freed time.Time
		w.srv.OnCommit(func(leasetest.Change) { freed = time.Now() })
		if err := s.Release(); err != nil {
			t.Error(err)
		}
		close(release)
		if took := freed.Sub(*failed.Load()); took != policyLimit {
			t.Errorf("released %v after the renewal failed, want %v", took, policyLimit)
		}
	})
}

// A renewer that is over keeps no timer, no context, and is not told of news.
func TestRenewerLeavesNothing(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lost  bool
		after time.Duration // when the session is released
	}{
		{"released", false, time.Second},
		{"lost", true, time.Second},
		{"overran", true, D + time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				s := w.acquire(w.Context(), "a", WithOverrun(func(Session) {}))
				r := s.state.(*session).renewer
				if tt.lost {
					w.steal("thief")
				}
				w.sleep(time.Second / 2)
				r.mu.Lock()
				timer := r.timer
				r.mu.Unlock()
				w.sleep(tt.after)
				s.Release()
				<-r.ended
				r.mu.Lock()
				defer r.mu.Unlock()
				if timer == nil || timer.Stop() || r.timer != nil {
					t.Errorf("timers: %v, then %v", timer, r.timer)
				}
				r.store.mu.Lock()
				defer r.store.mu.Unlock()
				if r.ctx.Err() == nil || r.store.renewer != nil || r.stage != over {
					t.Errorf("context: %v, told of news: %v, stage %v", r.ctx.Err(), r.store.renewer != nil, r.stage)
				}
			})
		})
	}
}

// Without WithOverrun, work that goes on without the lease is logged once, whatever becomes of the lease then.
func TestOverrunIsLoggedOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		w.steal("thief")
		w.sleep(D + eps)
		for range 2 {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
				l.Labels = map[string]string{"edited": l.Labels["edited"] + "x"}
			})
			w.sleep(time.Second)
		}
		if n := w.logged("work goes on without the lease"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		s.Release()
	})
}

// A renewal that may not be sent, because earlier ones have not ended with their contexts, has failed.
func TestRenewalNotSent(t *testing.T) {
	const pause = 130 * time.Millisecond
	inWorld(t, func(w *world) {
		own := heldByB.but(func(r *record) { r.duration = D })
		policy := &fixedBackOff{pause: pause}
		r, client := idleRenewer(w, own, nil, WithBackOff(func() backoff.BackOff { return policy }))
		r.restart = true
		for range maxOverdue {
			r.session.campaign.user.begin("renew", 0, func() {}, func() {})
		}
		time.Sleep(time.Millisecond)
		now := r.clock.now()
		r.renewLocked(now)
		r.requests.Wait()
		if r.flight != nil || len(r.pending) != 1 || client.Requests() != 0 || r.session.loss() != nil {
			t.Errorf("under way: %v, pending: %v, lost: %v, after %d requests", r.flight != nil, r.pending,
				r.session.loss(), client.Requests())
		}
		if r.due != now.add(pause) || r.planning {
			t.Errorf("the next one is due in %v, planning: %v", r.due.left(now), r.planning)
		}
		if policy.resets != 1 || r.restart {
			t.Errorf("the policy started over %d times, and does again: %v", policy.resets, r.restart)
		}
		w.sleep(0)
		if w.logged("API requests are failing") != 1 || w.logged("not sent, because 4 earlier ones") != 1 {
			t.Error("the failure was not logged")
		}
	})
}

// While the read lasts that follows a renewal with a conflict, a loss is heard of at once, and the renewal, which was
// answered, is not given up.
func TestReadAfterConflictOfRenewal_G6(t *testing.T) {
	for _, stolen := range []bool{false, true} {
		inWorld(t, func(w *world) {
			s := w.acquire(w.Context(), "a")
			var conflicts atomic.Int64
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				switch {
				case r.Verb == "get":
					return leasetest.Fault{Before: 3 * time.Second}
				case r.Verb == "patch" && conflicts.Add(1) == 1:
					return leasetest.Fault{Err: apierrors.NewConflict(leasesGroupResource, name, nil)}
				}
				return leasetest.Fault{}
			})
			for conflicts.Load() == 0 {
				w.sleep(eps)
			}
			w.sleep(time.Second)
			if stolen {
				w.steal("thief")
				w.sleep(0)
			}
			if lost := s.Context().Err() != nil; lost != stolen {
				t.Errorf("lost: %v, want %v", lost, stolen)
			}
			w.sleep(3 * time.Second)
			if w.logged("no answer") != 0 {
				t.Error("the renewal was given up")
			}
			s.Release()
		})
	}
}

// Without WithBackOff the next renewal is planned at once, as late as the failure says.
func TestRenewalRefusedWithoutBackOff(t *testing.T) {
	inWorld(t, func(w *world) {
		r, _ := idleRenewer(w, heldByB.but(func(r *record) { r.duration = D }), nil)
		now := r.clock.now()
		r.pending = make([]renewal, 1)
		r.handleReplyLocked(&reply{err: leasetest.Forbidden(leasetest.Request{Verb: "patch"}), sent: now})
		if r.due != now.add(refusedDelay) || r.planning {
			t.Errorf("due in %v, want %v; planning: %v", r.due.left(now), refusedDelay, r.planning)
		}
		r.requests.Wait()
	})
}

// A renewal that turns out to have succeeded, while a BackOff plans the retry, decides when the next one is due.
func TestRenewalTookEffectWhilePlanning(t *testing.T) {
	for _, took := range []bool{false, true} {
		inWorld(t, func(w *world) {
			own := heldByB.but(func(r *record) { r.duration = D })
			release := make(chan struct{})
			r, _ := idleRenewer(w, own, nil, WithChance(func(time.Duration) time.Duration { return 0 }),
				WithBackOff(func() backoff.BackOff { return &hangingBackOff{release} }))
			r.session.campaign.renewDelays.user.fallback = &fixedBackOff{pause: time.Second}
			now := r.clock.now()
			sent := now.add(-2 * time.Second)
			shows := own.but(func(r *record) { r.version, r.renewed = r.version+1, r.renewed.Add(time.Second) })
			r.pending = []renewal{{shows.renewed, sent}}
			r.handleReplyLocked(&reply{err: leasetest.ServiceUnavailable(), sent: sent})
			want := now.add(policyLimit + time.Second)
			if synctest.Wait(); took {
				r.store.addAnswer(shows, r.store.latest())
				r.mu.Lock()
				r.absorbLatestLocked()
				r.mu.Unlock()
				want = sent.add(I * 9 / 10)
			}
			r.requests.Wait()
			if r.due != want {
				t.Errorf("took effect: %v: due in %v, want %v", took, r.due.left(now), want.left(now))
			}
			close(release)
		})
	}
}

// The Monitor counts a renewal as stuck once it has taken longer than its timeout.
func TestRenewalIsLate(t *testing.T) {
	inWorld(t, func(w *world) {
		release := make(chan struct{})
		r, _ := idleRenewer(w, heldByB.but(func(r *record) { r.duration = D }), nil, func(o *options) {
			o.hooks.wrap = func(l Leases) Leases { return hangingLeases{l, func(context.Context) { <-release }} }
		})
		campaign := r.session.campaign
		r.renewLocked(r.clock.now())
		time.Sleep(campaign.renewTimeout.current())
		if c, over := campaign.user.stuck(); c != nil {
			t.Errorf("%s is late by %v", c.what, over)
		}
		time.Sleep(time.Millisecond)
		if c, over := campaign.user.stuck(); c == nil || c.what != "renew" || over != time.Millisecond {
			t.Errorf("late: %v, by %v", c, over)
		}
		close(release)
		r.requests.Wait()
	})
}
