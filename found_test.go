package leasehold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A Lease with a finalizer is deleted at the release and stays until the finalizer is gone: candidates acquire it all
// the same, and nobody is stuck.
func TestDeleteOnReleaseWithFinalizer_G8(t *testing.T) {
	inWorld(t, func(w *world) {
		w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name,
			Finalizers: []string{"example.com/keep"}}})
		var m Monitor
		sessions := 0
		for range w.sequence(w.Context(), "a", WithDeleteOnRelease(), WithMonitor(&m)) {
			w.sleep(time.Second)
			if err := m.Check(nil); err != nil {
				t.Error(err)
			}
			if sessions++; sessions == 3 {
				w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Finalizers = nil })
			}
			if sessions == 5 {
				break
			}
		}
		if n := w.srv.Client("a").Requests(); n > 40 {
			t.Errorf("%d requests", n)
		}
		if l := w.srv.Lease(ns, name); l != nil {
			t.Errorf("the Lease is left: %+v", l)
		}
	})
}

// A proxy answers 404 for half a second. What it says is not about the Lease, or is: either way the only candidate
// leads on or soon again, also with UseExisting.
func TestNotFoundForAMoment_G8(t *testing.T) {
	ofProxy := apierrors.NewGenericServerResponse(http.StatusNotFound, "patch", leasesGroupResource, name,
		"404 page not found", 0, true)
	ofServer := apierrors.NewNotFound(leasesGroupResource, name)
	ofNothing := &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure,
		Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound}}
	for _, tt := range []struct {
		name   string
		answer error
		mode   CreateMode
		lost   bool
		within time.Duration // until it leads again
	}{
		{"a proxy's", ofProxy, AutoCreate, false, 0},
		{"without details", ofNothing, AutoCreate, false, 0},
		{"the server's", ofServer, AutoCreate, true, I + time.Second},
		{"the server's, UseExisting", ofServer, UseExisting, true, I + time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.acquire(w.Context(), "before").Release()
				a := w.run("a", nil, WithCreateMode(tt.mode))
				w.sleep(I / 2)
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					return leasetest.Fault{Err: tt.answer}
				})
				for w.leads() == "a" && !tt.lost && time.Since(w.lease().Spec.RenewTime.Time) < I+500*time.Millisecond {
					w.sleep(50 * time.Millisecond)
				}
				if tt.lost {
					for end := time.Now().Add(I); w.leads() == "a" && time.Now().Before(end); {
						w.sleep(50 * time.Millisecond)
					}
				}
				w.sleep(500 * time.Millisecond)
				w.srv.Client("a").OnRequest(nil)
				if lost := w.leads() != "a"; lost != tt.lost {
					t.Errorf("lost: %v, want %v", lost, tt.lost)
				}
				w.sleep(tt.within)
				w.wantLeader("a")
				a.quit()
			})
		})
	}
}

// What a campaign believes of the Lease is wrong for a reason nobody thought of: it reads afresh after D, and says so.
func TestStalledCampaignReadsAfresh_G14(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		standby := w.run("b", nil)
		w.sleep(time.Second)
		o, err := newOptions(w.Context(), w.options("a", WithMonitor(&m)))
		if err != nil {
			t.Fatal(err)
		}
		c, err := newCampaign(w.Context(), o, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer campaigns{c}.close()
		c.start()
		w.sleep(time.Second)
		// It believes in a version that there never was, of a Lease that is free.
		c.store.mu.Lock()
		c.store.seen.record = record{uid: c.store.seen.uid, version: 1 << 60}
		c.store.heard = 1 << 60
		c.store.mu.Unlock()
		c.store.changed.signal()
		ctx, cancel := context.WithTimeout(w.Context(), 10*D)
		defer cancel()
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "get" && r.Count < 20 { // the reads after the first claims are of no use
				return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
			}
			return leasetest.Fault{}
		})
		time.AfterFunc(4*D, standby.stop)
		s, err := newCandidates(campaigns{c}).await(ctx)
		if err != nil {
			t.Fatalf("it never led: %v", err)
		}
		s.finish()
		<-standby.done
	})
}

// Events of long ago, which a shared watch brings before the first read has answered, decide nothing: no terminal
// error, and no first holder.
func TestLateEventsOfSharedWatch(t *testing.T) {
	old := func(rec record, kind watch.EventType) watch.Event {
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "x", UID: rec.uid,
			ResourceVersion: rec.resourceVersion()}}
		if rec.identity != "" {
			l.Spec.HolderIdentity = &rec.identity
		}
		return watch.Event{Type: kind, Object: l}
	}
	held, free := record{uid: "u", version: 7, identity: "b"}, record{uid: "u", version: 9}
	for _, tt := range []struct {
		name  string
		event watch.Event
		read  record // what the read answers after that
		want  record
		reads bool // it is read once more
	}{
		{"deleted, but it exists", old(record{uid: "t", version: 5}, watch.Deleted), held, held, false},
		{"an older state", old(record{uid: "u", version: 3, identity: "a"}, watch.Modified), held, held, false},
		{"a newer state", old(free, watch.Modified), held, free, false},
		{"a newer deletion", old(free, watch.Deleted), held, record{version: 9}, false},
		{"exists, but it does not", old(held, watch.Added), record{}, record{}, true},
		{"deleted, and it does not", old(held, watch.Deleted), record{}, record{version: 7}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			contradicted := false
			r := &leaseStore{
				name: "x", clock: systemClock{}, fallback: D, ours: func(term) bool { return false },
				changed: newWakeup(), contradicted: func() { contradicted = true },
			}
			if err := r.addEvent(tt.event, true); err != nil || r.latest().known {
				t.Errorf("known before the first read: %v", err)
			}
			r.addAnswer(tt.read, observation{})
			if got := r.latest(); !got.known || got.record != tt.want {
				t.Errorf("known: %+v, want %+v", got.record, tt.want)
			}
			if contradicted != tt.reads {
				t.Errorf("read once more: %v", contradicted)
			}
		})
	}
}

// A terminal error comes of a read alone: an event that contradicts it is looked into first.
func TestCreateModeNeedsARead(t *testing.T) {
	inWorld(t, func(w *world) {
		gone := &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: "old", ResourceVersion: "5"},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: new("b")},
		}
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" { // the watch brings a Lease of long ago
				w.srv.Client("a").SendEvent(watch.Event{Type: watch.Added, Object: gone})
				return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
			}
			return leasetest.Fault{}
		})
		time.AfterFunc(time.Second, func() { w.srv.Client("a").OnRequest(nil) })
		s, err := Acquire(w.Context(), w.options("a", WithCreateMode(CreateNew))...)
		if err != nil {
			t.Fatal(err)
		}
		s.Release()
	})
}

// A Monitor keeps nothing of campaigns that ended but their status, and of at most 1,000 leases.
func TestMonitorForgets(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		for i := range maxEnded + 10 {
			s, err := Acquire(w.Context(), w.options("a", WithMonitor(&m), WithLease(fmt.Sprint("job-", i)))...)
			if err != nil {
				t.Fatal(err)
			}
			s.Release()
		}
		statuses := m.Leases()
		if len(statuses) != maxEnded {
			t.Errorf("%d leases are remembered, want %d", len(statuses), maxEnded)
		}
		for _, s := range statuses {
			if s.Name == "reconciler" || s.Name == "job-0" || s.Campaigning {
				t.Errorf("remembered: %+v", s)
			}
		}
		again, err := Acquire(w.Context(), w.options("a", WithMonitor(&m), WithLease("job-100"))...)
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(m.Leases(), func(s LeaseStatus) bool { return s.Name == "job-100" }); i < 0 ||
			m.Leases()[i].Sessions != 2 {
			t.Error("the counts do not go on")
		}
		again.Release()
	})
}

// A Monitor does not keep the context of a campaign that ended, whose logger returned later. Garbage collection takes
// real time.
func TestMonitorKeepsNoContext(t *testing.T) {
	var m Monitor
	freed := make(chan struct{})
	func() {
		value := new([1 << 20]byte)
		runtime.AddCleanup(value, func(freed chan struct{}) { close(freed) }, freed)
		ctx := context.WithValue(t.Context(), sessionKey{}, value)
		returned := make(chan struct{})
		logger := slog.New(hostileHandler{slog.DiscardHandler, "lease released", func() { <-returned }})
		s, err := Acquire(ctx, WithLease(name), WithNamespace(ns), WithClient(leasetest.NewServer().Client("a")),
			WithMonitor(&m), WithLogger(logger))
		if err != nil {
			t.Fatal(err)
		}
		s.Release()
		close(returned)
	}()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		runtime.GC()
		select {
		case <-freed:
			if n := len(m.Leases()); n != 1 {
				t.Errorf("%d leases are remembered", n)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Error("the context of a campaign that ended is kept")
}

// Claims that may still take effect are not forgotten, however many follow them.
func TestClaimsInDoubtAreKept(t *testing.T) {
	inWorld(t, func(w *world) {
		first := true
		n := 0
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb != "create" {
				return leasetest.Fault{}
			}
			n++
			if first { // it hangs for a minute, and then takes effect
				first = false
				return leasetest.Fault{Before: time.Minute, Late: true}
			}
			return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
		})
		a := w.run("a", nil)
		w.sleep(time.Minute + 2*time.Second)
		if n < 20 {
			t.Errorf("%d claims", n)
		}
		w.wantLeader("a") // at once, not after D
		a.quit()
	})
}

// Which claims without an answer may acquire the lease after a read.
func TestClaimsUnanswered(t *testing.T) {
	now := time.Now()
	exists := record{uid: "u", version: 5}
	for _, tt := range []struct {
		name    string
		on      record
		err     error
		decided bool
		found   record
		later   time.Duration
		want    bool
	}{
		{"the Lease is as it was", exists, context.DeadlineExceeded, false, exists, 0, true},
		{"it has changed", exists, context.DeadlineExceeded, false, record{uid: "u", version: 6}, 0, false},
		{"long ago", exists, context.DeadlineExceeded, false, exists, forgetClaimAfter + 1, false},
		{"refused", exists, leasetest.Unauthorized(), true, exists, 0, false},
		{"accepted, and undone", exists, errDeletedHolder, true, exists, 0, false},
		{"a creation, and there is none", record{}, context.DeadlineExceeded, false, record{}, 0, true},
		{"a creation, and there is one", record{}, context.DeadlineExceeded, false, exists, 0, false},
	} {
		c := claims{stamps: timestamps{chance: halfChance}}
		n := c.begin(tt.on, "a", now)
		c.recordOutcome(n, tt.err, tt.decided)
		o := observation{record: tt.found}
		c.forget(o, now.Add(tt.later), true)
		if got := c.unanswered(o); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	c := claims{stamps: timestamps{chance: halfChance}}
	n := c.begin(exists, "a", now)
	c.recordOutcome(n, context.DeadlineExceeded, false)
	if c.unanswered(observation{record: record{uid: "u", version: 6, identity: "a", acquired: n.term.acquired}}) {
		t.Error("the Lease shows it")
	}
}

// What claims still can do, by what is known.
func TestClaimsForget(t *testing.T) {
	now := time.Now()
	exists := record{uid: "u", version: 5}
	for _, tt := range []struct {
		name      string
		on        record
		decided   bool
		o         observation
		later     time.Duration
		afterRead bool
		kept      bool
	}{
		{"the Lease is as it was", exists, false, observation{record: exists}, 0, false, true},
		{"it has changed", exists, false, observation{record: record{uid: "u", version: 6}}, 0, false, false},
		{"it has changed before", exists, false, observation{record: record{uid: "u", version: 4}}, 0, false, true},
		{"a creation, and there is none", record{}, false, observation{}, 0, false, true},
		{"a creation, and there is another", record{}, false, observation{record: exists}, 0, false, true},
		{"a creation that was decided, before a read", record{}, true, observation{}, 0, false, true},
		{"a creation that was decided, after a read", record{}, true, observation{}, 0, true, false},
		{"a creation that was not decided, after a read", record{}, false, observation{}, 0, true, true},
		{"it is gone, as it seems", exists, false, observation{record: record{version: 6}}, 0, false, true},
		{"not so long ago", record{}, false, observation{}, forgetClaimAfter, false, true},
		{"long ago", record{}, false, observation{}, forgetClaimAfter + 1, false, false},
		{"decided long ago", record{}, true, observation{}, forgetClaimAfter + 1, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := claims{stamps: timestamps{chance: func(time.Duration) time.Duration { return 0 }}}
			n := c.begin(tt.on, "a", now)
			c.recordOutcome(n, errors.New("EOF"), tt.decided)
			c.forget(tt.o, now.Add(tt.later), tt.afterRead)
			if kept := c.include(term{tt.on.uid, "a", n.term.acquired}); kept != tt.kept {
				t.Errorf("kept: %v", kept)
			}
		})
	}
}

// A gateway gives up on claims for a second, and the first takes effect all the same, but later. The candidate
// recognises it and leads, not after D.
func TestClaimAfterGatewayTimeout_G8(t *testing.T) {
	inWorld(t, func(w *world) {
		w.acquire(w.Context(), "before").Release()
		a := w.run("a", nil, behindGateway)
		w.sleep(time.Second - eps)
		if w.holder() != "a" || w.leads() != "" {
			t.Fatalf("before the gateway mends, %q leads and %q holds the lease", w.leads(), w.holder())
		}
		w.sleep(eps + time.Second)
		w.wantLeader("a")
		a.quit()
	})
}

// The campaign of such a claim ends after it took effect: the lease is released.
func TestReleaseAfterGatewayTimeout(t *testing.T) {
	inWorld(t, func(w *world) {
		w.acquire(w.Context(), "before").Release()
		a := w.run("a", nil, behindGateway)
		w.sleep(time.Second / 2)
		if w.holder() != "a" || w.leads() != "" {
			t.Fatalf("before ctx ends, %q leads and %q holds the lease", w.leads(), w.holder())
		}
		a.quit()
		if w.holder() != "" {
			t.Errorf("%q holds the lease after the loop", w.holder())
		}
	})
}

// behindGateway puts the campaign behind a gateway that answers each claim with a 504 for a second, and passes on the
// first of these after 300 ms.
func behindGateway(o *options) {
	o.hooks.wrap = func(l Leases) Leases { return &gatewayLeases{Leases: l, mends: time.Now().Add(time.Second)} }
}

type gatewayLeases struct {
	Leases
	mends time.Time
	first sync.Once
}

func (l *gatewayLeases) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string,
) (*coordinationv1.Lease, error) {
	if pt != types.ApplyPatchType || !time.Now().Before(l.mends) {
		return l.Leases.Patch(ctx, name, pt, data, opts, sub...)
	}
	l.first.Do(func() {
		time.AfterFunc(300*time.Millisecond, func() {
			l.Leases.Patch(context.WithoutCancel(ctx), name, pt, data, opts, sub...)
		})
	})
	return nil, apierrors.NewGenericServerResponse(http.StatusGatewayTimeout, "patch", leasesGroupResource, name,
		"", 0, true)
}

// What a campaign remembers of its claims does not grow with its sessions, also where each creates the Lease.
func TestClaimsBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		sessions := 0
		for s := range w.sequence(w.Context(), "a", WithDeleteOnRelease()) {
			w.sleep(time.Minute)
			if n := len(s.state.(*session).campaign.claims.all); n > 20 {
				t.Fatalf("%d claims are kept after %d sessions", n, sessions)
			}
			if sessions++; sessions == 100 {
				break
			}
		}
	})
}

// A claim that a server refused is not ours, with a conflict neither: a process with the same identity may have claimed
// the lease with the same acquireTime.
func TestRefusedClaimIsNotOurs_G1(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		ours bool
	}{
		{"accepted", nil, true},
		{"EOF", leasetest.EOF(), true},
		{"500", leasetest.InternalError(), true},
		{"conflict", apierrors.NewConflict(leasesGroupResource, name,
			errors.New("the object has been modified")), false},
		{"exists", apierrors.NewAlreadyExists(leasesGroupResource, name), false},
		{"not found", apierrors.NewNotFound(leasesGroupResource, name), false},
		{"forbidden", leasetest.Forbidden(leasetest.Request{Verb: "patch", Namespace: ns, Name: name}), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := claims{stamps: timestamps{chance: func(time.Duration) time.Duration { return 0 }}}
			n := c.begin(record{uid: "u", version: 5}, "a", time.Now())
			c.recordOutcome(n, tt.err, tt.err == nil || !outcomeUnknown(tt.err))
			if ours := c.include(n.term); ours != tt.ours {
				t.Errorf("ours: %v", ours)
			}
		})
	}
}

// Vacate frees the term that it found, not one that the identity began later.
func TestVacatePinsTheTerm(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.acquire(w.Context(), "a")
		w.srv.Client("v").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb != "patch" {
				return leasetest.Fault{}
			}
			w.srv.Client("v").OnRequest(nil)
			time.AfterFunc(100*time.Millisecond, func() { // the identity acquires it again
				now := metav1.NowMicro()
				w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
					l.Spec.HolderIdentity, l.Spec.AcquireTime, l.Spec.RenewTime = new("a"), &now, &now
				})
			})
			return leasetest.Fault{Drop: leasetest.TheReply, Err: leasetest.EOF(), After: 200 * time.Millisecond}
		})
		freed, err := Vacate(w.Context(), w.options("a", WithClient(w.srv.Client("v")))...)
		if !freed || err != nil {
			t.Errorf("Vacate() = %v, %v, want the first term freed", freed, err)
		}
		if w.holder() != "a" {
			t.Error("the second term was freed")
		}
		a.Release()
	})
}

// A Lease is deleted after a release whose reply was lost too.
func TestDeleteOnReleaseLostReply(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.acquire(w.Context(), "a", WithDeleteOnRelease())
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "patch" {
				return leasetest.Fault{Drop: leasetest.TheReply, Err: leasetest.EOF()}
			}
			return leasetest.Fault{}
		})
		if err := a.Release(); err != nil {
			t.Error(err)
		}
		if l := w.srv.Lease(ns, name); l != nil {
			t.Errorf("the Lease is left, held by %v", *l.Spec.HolderIdentity)
		}
	})
}

// TryAcquire by polling takes over from a holder that crashed, when it has not renewed for its duration.
func TestTryAcquirePolls(t *testing.T) {
	inWorld(t, func(w *world) {
		now := metav1.NowMicro()
		w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity: new("dead"), AcquireTime: &now, RenewTime: &now, LeaseDurationSeconds: new(int32(15)),
				LeaseTransitions: new(int32(0)),
			}})
		began := time.Now()
		for i := range 30 {
			s, err := TryAcquire(w.Context(), w.options("a")...)
			since := time.Since(began)
			if err == nil {
				if since < D || since > D+2*time.Second {
					t.Errorf("acquired after %v", since)
				}
				s.Release()
				return
			}
			want := fmt.Sprintf(`leasehold: lease held by "dead", not seen to renew for %v; free in %v unless renewed`,
				since, D-since)
			if i == 0 {
				want = `leasehold: lease held by "dead"; free in 15s unless renewed`
			}
			if !errors.Is(err, ErrHeld) || err.Error() != want {
				t.Errorf("%v, want %s", err, want)
			}
			if i == 2 { // it lives after all
				renewed := metav1.NowMicro()
				w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.RenewTime = &renewed })
				if _, err := TryAcquire(w.Context(), w.options("a")...); err == nil ||
					strings.Contains(err.Error(), "not seen") {
					t.Errorf("after a renewal: %v", err)
				}
				began = time.Now()
			}
			time.Sleep(time.Second)
		}
		t.Error("never acquired")
	})
}

// A program that polls with TryAcquire waits out a holder whose Lease was deleted behind its back, and which may have
// renewed since it was seen.
func TestTryAcquireDeletedHolder_G1(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after func(w *world) // the deletion
	}{
		{"deleted", func(*world) {}},
		{"created again", func(w *world) {
			w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				a := w.run("a", nil)
				w.sleep(time.Second)
				if _, err := TryAcquire(w.Context(), w.options("b")...); !errors.Is(err, ErrHeld) {
					t.Fatal(err)
				}
				w.sleep(3*I + eps) // renewals
				w.srv.Client("a").Partition(true)
				w.srv.Delete(ns, name)
				tt.after(w)
				deleted := time.Now()
				for time.Since(deleted) < 2*D {
					s, err := TryAcquire(w.Context(), w.options("b")...)
					if err == nil {
						w.enter(s)
						if took := time.Since(deleted); took < D || took > D+time.Second {
							t.Errorf("acquired %v after the deletion", took)
						}
						s.Release()
						break
					}
					if !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), "was deleted while a holder led") {
						t.Fatal(err)
					}
					w.sleep(time.Second)
				}
				if w.count() != 2 {
					t.Error("never acquired")
				}
				w.srv.Client("a").Partition(false)
				a.quit()
			})
		})
	}
}

// The memory of TryAcquire is bounded.
func TestMemoryIsBounded(t *testing.T) {
	var m leaseMemory
	for i := range 2 * maxMemorized {
		s := &leaseStore{clock: systemClock{}}
		s.seen = observation{record: record{uid: types.UID(fmt.Sprint(i)), version: 1, identity: "b"}, known: true,
			since: time.Now(), wait: D}
		m.resume(s, leaseKey{name: fmt.Sprint(i)}, observation{})
	}
	if len(m.seen) != maxMemorized {
		t.Errorf("%d leases are remembered, want %d", len(m.seen), maxMemorized)
	}
}

// Work that winds down after ctx has ended may write as long as the lease is ours, and hears when it is not: from
// ValidFor, from Guard, from the loop's error and from the log.
func TestWindingDown(t *testing.T) {
	inWorld(t, func(w *world) {
		cause := errors.New("SIGTERM")
		ctx, cancel := context.WithCancelCause(w.Context())
		defer cancel(nil)
		requests := 0
		server := roundTripper(func(*http.Request) (*http.Response, error) {
			requests++
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(""))}, nil
		})
		var err error
		for s := range w.sequence(ctx, "a", WithError(&err)) {
			guarded := s.Guard(server)
			write := func() error {
				_, err := guarded.RoundTrip(httptest.NewRequest(http.MethodPut, "/", strings.NewReader("x")))
				return err
			}
			cancel(cause)
			w.sleep(2 * D)
			if s.Err() != cause || s.ValidFor() < R-I-eps || write() != nil {
				t.Errorf("winding down: %v, valid for %v, write: %v", s.Err(), s.ValidFor(), write())
			}
			w.steal("thief")
			w.sleep(eps)
			if lost := write(); s.Err() != cause || s.ValidFor() != 0 || !errors.Is(lost, ErrLost) {
				t.Errorf("robbed: %v, valid for %v, write: %v", s.Err(), s.ValidFor(), lost)
			}
		}
		if !errors.Is(err, cause) || !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), `now held by "thief"`) {
			t.Errorf("err = %v, want the cause of ctx and the loss", err)
		}
		if requests != 1 || w.logged(`msg="lease lost"`) != 1 {
			t.Errorf("%d requests; the log: %s", requests, w.log.String())
		}
	})
}

// A release that finds the lease lost does not end the loop, whose context has not ended.
func TestLossFoundByRelease_G8(t *testing.T) {
	inWorld(t, func(w *world) {
		var err error
		sessions := 0
		for s := range w.sequence(w.Context(), "a", WithError(&err)) {
			if sessions++; sessions == 2 {
				break
			}
			w.sleep(I)
			w.srv.Client("a").OnEvent(func(watch.Event) time.Duration { return time.Minute })
			w.steal("thief")
			if s.Err() != nil {
				t.Fatalf("the watch has brought the loss: %v", s.Err())
			}
		}
		if sessions != 2 || err != nil {
			t.Errorf("%d sessions, then %v", sessions, err)
		}
		if n := w.logged(`msg="lease lost"`); n != 1 {
			t.Errorf("the loss was logged %d times", n)
		}
	})
}

// A loss of the outer session ends the campaign for the inner lease. When the inner lease is lost too while its body
// winds down, the loop's error says both.
func TestNestedLossWhileWindingDown(t *testing.T) {
	inWorld(t, func(w *world) {
		outer := w.acquire(w.Context(), "outer", WithLease("outer"))
		var err error
		for s := range w.sequence(outer.Context(), "a", WithError(&err)) {
			w.srv.Delete(ns, "outer")
			<-s.Done()
			w.srv.Delete(ns, name)
			w.sleep(eps)
		}
		both, ok := err.(interface{ Unwrap() []error })
		if !ok || len(both.Unwrap()) != 2 || both.Unwrap()[0] != outer.Err() || !errors.Is(both.Unwrap()[1], ErrLost) {
			t.Errorf("err = %v, want the losses of both leases", err)
		}
		outer.Release()
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// Holders says when the holder's lease expires, yields nobody when it does, and the holder when it renews after all.
func TestHoldersExpiry(t *testing.T) {
	inWorld(t, func(w *world) {
		now := metav1.NowMicro()
		w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity: new("b"), AcquireTime: &now, RenewTime: &now, LeaseDurationSeconds: new(int32(15)),
			}})
		began := time.Now()
		time.AfterFunc(2*D, func() {
			renewed := metav1.NowMicro()
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.RenewTime = &renewed })
		})
		var got []string
		for h := range Holders(w.Context(), w.options("watcher")...) {
			got = append(got, fmt.Sprintf("%v %q", time.Since(began), h.Identity))
			if (h.Identity != "") != (time.Until(h.ExpiryTime) == D) || h.Identity == "" && h != (Holder{}) {
				t.Errorf("%q expires at %v, now is %v", h.Identity, h.ExpiryTime, time.Now())
			}
			if len(got) == 4 {
				break
			}
		}
		if want := []string{`0s "b"`, `15s ""`, `30s "b"`, `45s ""`}; !slices.Equal(got, want) {
			t.Errorf("yielded %q, want %q", got, want)
		}
	})
}

// A watch that has fallen silent does not make Holders yield nobody: the Lease is read before it expires.
func TestHoldersSilentWatch(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.run("a", nil)
		ctx, cancel := context.WithCancel(w.Context())
		time.AfterFunc(D, w.srv.Client("watcher").SilenceWatches)
		time.AfterFunc(10*D, cancel)
		var got []string
		for h := range Holders(ctx, w.options("watcher")...) {
			got = append(got, h.Identity)
		}
		if !slices.Equal(got, []string{"a"}) {
			t.Errorf("yielded %q, want only a", got)
		}
		a.quit()
	})
}

// A 403 that no Role mends does not advise one.
func TestForbiddenWithoutRemedy(t *testing.T) {
	for text, advice := range map[string]bool{
		`User "u" cannot patch resource "leases" in API group "coordination.k8s.io" in the namespace "default"`: true,
		`unable to create new content in namespace default because it is being terminated`:                      false,
		`admission webhook "no.example.com" denied the request: no`:                                             false,
	} {
		err := apierrors.NewForbidden(leasesGroupResource, "x", errors.New(text))
		l := &leaseClient{namespace: ns, name: "x"}
		if got := strings.Contains(l.describe("patch", err).Error(), "a Role in namespace"); got != advice {
			t.Errorf("%s: a Role is advised: %v", text, got)
		}
	}
}

// An admission policy that changes each renewal: the log and the loss say so.
func TestRenewalsAltered(t *testing.T) {
	inWorld(t, func(w *world) {
		fixed := metav1.NewMicroTime(time.Now().Add(-time.Hour))
		var lost error
		for s := range w.sequence(w.Context(), "a", func(o *options) {
			o.hooks.wrap = func(l Leases) Leases { return alteringLeases{l, fixed} }
		}) {
			<-s.Done()
			lost = s.Err()
			break
		}
		const want = "lease lost: not renewed within 12s: renewals succeeded, but the API server stored another " +
			"renewTime than was sent"
		if errorText(lost) != want {
			t.Errorf("%v, want %s", lost, want)
		}
		if n := w.logged("stored another renewTime than was sent: an admission webhook"); n != 1 {
			t.Errorf("logged %d times", n)
		}
	})
}

// TryAcquire and Vacate return why ctx ended.
func TestCauseOfCtx(t *testing.T) {
	inWorld(t, func(w *world) {
		cause := errors.New("no time left")
		w.srv.Client("a").Partition(true)
		for what, call := range map[string]func(context.Context) error{
			"TryAcquire": func(ctx context.Context) error { _, err := TryAcquire(ctx, w.options("a")...); return err },
			"Vacate":     func(ctx context.Context) error { _, err := Vacate(ctx, w.options("a")...); return err },
		} {
			ctx, cancel := context.WithCancelCause(w.Context())
			time.AfterFunc(time.Second, func() { cancel(cause) })
			began := time.Now()
			if err := call(ctx); err != cause || time.Since(began) > time.Second+eps {
				t.Errorf("%s: %v after %v", what, err, time.Since(began))
			}
		}
	})
}

// A black hole at the end: break waits for a quarter of the renew deadline, and not longer.
func TestBreakInBlackHole(t *testing.T) {
	inWorld(t, func(w *world) {
		var began time.Time
		for range w.sequence(w.Context(), "a") {
			w.sleep(I)
			w.srv.Client("a").Partition(true)
			began = time.Now()
			break
		}
		if took := time.Since(began); took > R/4+userCodeGrace {
			t.Errorf("break took %v", took)
		}
	})
	for later := time.Duration(0); later < 2*I; later += I / 10 { // a renewal is in flight, or is not
		inWorld(t, func(w *world) {
			var began time.Time
			for range w.sequence(w.Context(), "a") {
				w.sleep(I)
				w.srv.Client("a").Partition(true)
				w.sleep(later)
				began = time.Now()
				break
			}
			if took := time.Since(began); took > (R-I)/4+R/4+2*answerGrace {
				t.Errorf("%v later: break took %v", later, took)
			}
		})
	}
}

// A claim that hung cannot take effect any more once another has written to the Lease: the end of the campaign warns of
// nothing.
func TestEndOfOvertakenClaim(t *testing.T) {
	for _, overtaken := range []bool{false, true} {
		inWorld(t, func(w *world) {
			if _, err := w.srv.Client("b").Leases(ns).Create(w.Context(),
				&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			c := idleCampaign(w)
			r, err := c.reflector.read(w.Context())
			if err != nil {
				t.Fatal(err)
			}
			c.claims.recordOutcome(c.claims.begin(r, "a", c.clock.now().mono), context.DeadlineExceeded, false)
			if overtaken {
				w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Labels = map[string]string{"x": "y"} })
			}
			c.resolveDoubt()
			w.sleep(0)
			if warned := w.logged(`msg="lease perhaps not released`) == 1; warned == overtaken {
				t.Errorf("overtaken: %v, warned: %v", overtaken, warned)
			}
		})
	}
}

// A candidate whose claim hangs when ctx ends: the claim has its time, and the read that looks for it as much.
func TestEndOfHangingClaim(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		defer cancel()
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" {
				w.srv.Client("a").Partition(true)
				time.AfterFunc(time.Millisecond, cancel)
				return leasetest.Fault{Drop: leasetest.TheRequest}
			}
			return leasetest.Fault{}
		})
		ended := make(chan time.Time, 1)
		context.AfterFunc(ctx, func() { ended <- time.Now() })
		for range w.sequence(ctx, "a") {
			t.Error("a session began")
		}
		if took := time.Since(<-ended); took < R/3 || took > 2*R/3+2*answerGrace {
			t.Errorf("the loop ended after %v", took)
		}
		w.sleep(0)
		if n := w.logged(`msg="lease perhaps not released; if it was acquired, it will expire"`); n != 1 {
			t.Errorf("warned %d times", n)
		}
	})
}

// Claims that the server refuses are logged and shown, once, and the campaign is not stuck: no restart would mend that.
func TestRefusedClaims_G14(t *testing.T) {
	inWorld(t, func(w *world) {
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			}
			return leasetest.Fault{}
		})
		var m Monitor
		a := w.run("a", nil, WithMonitor(&m))
		w.sleep(3 * D)
		if n := w.logged(`msg="the API server refuses the request; retrying"`); n != 1 {
			t.Errorf("logged %d times", n)
		}
		if got := w.status(&m).LastError; !strings.Contains(got, "forbidden") {
			t.Errorf("last error %q", got)
		}
		if err := m.Check(nil); err != nil {
			t.Error(err)
		}
		a.quit()
	})
}

// A logger that blocks keeps no other campaign, and no request, waiting; what it missed is counted.
func TestLogLinesAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines atomic.Int64
		var dropped atomic.Bool
		until := make(chan struct{})
		first := sync.Once{}
		handler := countingHandler{func(msg string) {
			first.Do(func() { <-until })
			lines.Add(1)
			if strings.HasPrefix(msg, "log lines were dropped") {
				dropped.Store(true)
			}
		}}
		log := &campaignLog{user: &userCode{clock: virtualClock{}}, logger: slog.New(handler)}
		for i := range 3 * maxQueue {
			if i == 1 {
				synctest.Wait() // the first line blocks
			}
			log.info(fmt.Sprint("line ", i))
		}
		close(until)
		log.user.wait()
		if n := lines.Load(); n != maxQueue+2 || !dropped.Load() {
			t.Errorf("%d lines, dropped said: %v", n, dropped.Load())
		}
	})
}

// leasesGroupResource is what errors of the API server are about.
var leasesGroupResource = schema.GroupResource{Group: coordinationv1.GroupName, Resource: leasesResource}

// alteringLeases are behind an admission policy that sets the time of each renewal.
type alteringLeases struct {
	Leases
	fixed metav1.MicroTime
}

func (l alteringLeases) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string,
) (*coordinationv1.Lease, error) {
	if pt == types.MergePatchType && bytes.Contains(data, []byte("renewTime\":\"")) {
		data = renewTime.ReplaceAll(data, []byte(`"renewTime":"`+l.fixed.UTC().Format(metav1.RFC3339Micro)+`"`))
	}
	return l.Leases.Patch(ctx, name, pt, data, opts, sub...)
}

var renewTime = regexp.MustCompile(`"renewTime":"[^"]*"`)

// A countingHandler is called with each message.
type countingHandler struct{ handle func(msg string) }

func (h countingHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h countingHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h countingHandler) WithGroup(string) slog.Handler            { return h }
func (h countingHandler) Handle(_ context.Context, r slog.Record) error {
	h.handle(r.Message)
	return nil
}

// A Lease that has not changed for longer than the server remembers is followed without a request (G12).
func TestQuietAfterCompaction_G12(t *testing.T) {
	inWorld(t, func(w *world) {
		w.run("a", func(s Session) { <-s.Done() }).quit() // the Lease is free
		ctx, cancel := context.WithCancel(w.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range Holders(ctx, w.options("watcher")...) {
			}
		}()
		w.sleep(time.Minute)
		other := w.srv.Client("other")
		for _, holder := range []string{"x", "y"} { // what others do moves the server's window
			if s, err := Acquire(w.Context(), w.options(holder, WithLease("other"), WithClient(other))...); err == nil {
				s.Release()
			}
		}
		w.srv.Compact()
		watcher := w.srv.Client("watcher")
		watcher.CloseWatches(nil)
		w.sleep(time.Minute)
		before := watcher.Requests()
		w.sleep(time.Minute)
		if n := watcher.Requests() - before; n > 0 {
			w.Errorf("%d requests in a minute in which nothing changed", n)
		}
		cancel()
		<-done
	})
}
