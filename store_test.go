package leasehold

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/internal/annotation"
)

// writtenLease returns a Lease that is read as r.
func writtenLease(r record) *coordinationv1.Lease {
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "x", UID: r.uid,
		ResourceVersion: r.resourceVersion()}}
	if r.held() {
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds = &r.identity, new(int32(r.duration/time.Second))
		l.Spec.AcquireTime, l.Spec.RenewTime = &metav1.MicroTime{Time: r.acquired}, &metav1.MicroTime{Time: r.renewed}
		l.Spec.LeaseTransitions = &r.transitions
	}
	return l
}

// newStore returns a store in which the terms of "me" are ours, and a function that reports whether an event
// contradicted what it knew.
func newStore() (*leaseStore, func() bool) {
	contradicted := false
	return &leaseStore{
		namespace: "ns", name: "x", clock: virtualClock{}, fallback: 15 * time.Second,
		ours:    func(t term) bool { return t.identity == "me" },
		changed: newWakeup(), changedAny: newWakeup(),
		contradicted: func() { contradicted = true },
	}, func() bool { return contradicted }
}

// What is known of a Lease after answers and events, in seconds after the first. The Lease is held by b for 10 s at
// version 7; a holder that recorded no duration has 15 s.
func TestLeaseStore(t *testing.T) {
	type step func(*leaseStore)
	var (
		read = func(r record) step { return func(s *leaseStore) { s.addRead(r, s.latest()) } }
		late = func(r record) step { return func(s *leaseStore) { s.addRead(r, observation{}) } }
		sent = func(before, r record) step {
			return func(s *leaseStore) { s.addRead(r, observation{record: before, known: true}) }
		}
		wrote = func(r record) step { return func(s *leaseStore) { s.addAnswer(r, s.latest()) } }
		after = func(seconds int) step {
			return func(*leaseStore) { time.Sleep(time.Duration(seconds) * time.Second) }
		}
		event = func(kind watch.EventType, r record, shared bool) step {
			return func(s *leaseStore) {
				if err := s.addEvent(watch.Event{Type: kind, Object: writtenLease(r)}, shared); err != nil {
					panic(err)
				}
			}
		}
		deleted = func(r record) step { return func(s *leaseStore) { s.addDeletion(r) } }
		resetTo = func(r record) step { return func(s *leaseStore) { s.resetTo(r) } }
		at      = func(version uint64) record { return heldByB.but(func(r *record) { r.version = version }) }
		renewed = at(9).but(func(r *record) { r.renewed = r.renewed.Add(time.Second) })
		mine    = at(5).but(func(r *record) { r.identity = "me" })
		free    = func(version uint64, uid types.UID) record { return record{uid: uid, version: version} }
		gone    = func(version uint64) record { return record{version: version} }
		last    = func(r record, version uint64) record { return r.but(func(r *record) { r.version = version }) }
		none    = record{}
		endless = at(7).but(func(r *record) { r.duration = 0 })
	)
	const added, modified, removed = watch.Added, watch.Modified, watch.Deleted
	for _, tt := range []struct {
		name           string
		steps          []step
		want           record
		acquirable     int // when
		heard, watched uint64
		updates        uint64
		contradicted   bool
	}{
		{"read", []step{read(at(7))}, at(7), 10, 7, 0, 1, false},
		{"none", []step{read(none)}, none, 0, 0, 0, 1, false},
		{"read again", []step{read(at(7)), after(4), read(at(7))}, at(7), 10, 7, 0, 1, false},
		{"none again", []step{read(none), after(4), read(none)}, none, 0, 0, 0, 1, false},
		{"no duration", []step{read(endless)}, endless, 15, 7, 0, 1, false},
		{"renewed", []step{read(at(7)), after(4), read(renewed)}, renewed, 14, 9, 0, 2, false},
		{"written by us", []step{read(at(7)), after(4), wrote(renewed)}, renewed, 14, 7, 0, 2, false},
		{"read before newer news", []step{read(at(7)), after(4), late(at(5))}, at(7), 10, 7, 0, 1, false},
		{"none, read before newer news", []step{read(at(7)), after(4), late(none)}, at(7), 10, 7, 0, 1, false},
		{"read when it was older", []step{read(at(7)), after(4), sent(at(5), at(6))}, at(7), 10, 7, 0, 1, false},
		{"read when it existed", []step{read(at(7)), after(4), read(none), sent(at(7), at(7))}, gone(7), 19, 7, 0, 2,
			false},

		{"set back", []step{event(added, at(7), false), read(at(7)), after(4), read(free(5, "u"))}, free(5, "u"), 19,
			5, 0, 2, false},
		{"set back, and deleted", []step{read(at(7)), after(4), read(free(5, "u")),
			event(removed, free(6, "u"), false)}, gone(6), 19, 6, 6, 4, false},
		{"set back before newer news", []step{read(none), read(at(7)), late(free(5, "u"))}, at(7), 10, 7, 0, 2, false},

		{"not found", []step{read(at(7)), after(4), read(none)}, gone(7), 19, 7, 0, 2, false},
		{"not found, twice", []step{read(at(7)), after(4), read(none), after(4), read(none)}, gone(7), 19, 7, 0, 2,
			false},
		{"not found, and set back", []step{read(at(7)), after(4), read(none), read(free(5, "u"))}, free(5, "u"), 19, 5,
			0, 3, false},
		{"not found, and the deletion", []step{read(at(7)), after(4), read(none), event(removed, at(9), false)},
			gone(9), 14, 9, 9, 4, false},
		{"not found, and another's deletion", []step{read(at(7)), after(4), read(none),
			event(removed, free(9, "other"), false)}, gone(9), 19, 9, 9, 4, false},
		{"not found, but found as it was", []step{read(at(7)), after(1), read(none), after(1), read(at(7))}, at(7),
			12, 7, 0, 3, false},
		{"not found, but found, another's", []step{read(at(7)), after(1), read(none), after(1), read(free(7, "other"))},
			free(7, "other"), 16, 7, 0, 3, false},
		{"not found, and an old event", []step{read(at(7)), after(4), read(none), event(modified, at(7), false)},
			gone(7), 19, 7, 7, 2, true},
		{"not found, and an older event", []step{read(at(7)), after(4), read(none), event(modified, at(6), false)},
			gone(7), 19, 7, 6, 2, false},
		{"not found, and a new one", []step{read(at(7)), after(4), read(none), event(added, free(9, "other"), false)},
			free(9, "other"), 19, 9, 9, 3, false},

		{"none, and a shared event", []step{read(none), event(added, at(7), true)}, none, 0, 7, 7, 1, true},
		{"none, and a shared event of ours", []step{read(none), event(added, mine, true)}, mine, 0, 5, 5, 2, false},
		{"none, and a shared deletion", []step{read(none), event(removed, at(7), true)}, gone(7), 10, 7, 7, 3, false},
		{"none, and an own event", []step{read(none), event(added, at(7), false)}, at(7), 10, 7, 7, 2, false},
		{"deleted, and a shared event", []step{read(at(7)), event(removed, at(8), true),
			event(added, free(9, "v"), true)}, free(9, "v"), 10, 9, 9, 4, false},

		{"event", []step{read(at(7)), after(4), event(modified, renewed, false)}, renewed, 14, 9, 9, 2, false},
		{"old event", []step{read(at(7)), after(4), event(modified, at(7), false)}, at(7), 10, 7, 7, 1, false},
		{"older event", []step{read(at(7)), after(4), event(modified, at(5), false)}, at(7), 10, 7, 5, 1, false},
		{"older event after a newer one", []step{read(at(7)), event(modified, at(9), false),
			event(modified, at(8), false)}, at(9), 10, 9, 9, 2, false},
		{"bookmark", []step{read(at(7)), event(watch.Bookmark, at(9), false)}, at(7), 10, 9, 9, 1, false},
		{"deletion", []step{read(at(7)), after(4), event(removed, at(9), false)}, gone(9), 10, 9, 9, 3, false},
		{"deletion of a holder that was not seen",
			[]step{read(at(7)), after(4), event(removed, last(renewed, 10), false)}, gone(10), 14, 10, 10, 3, false},
		{"another Lease, deletion not seen", []step{read(at(7)), after(4), event(added, free(9, "v"), false)},
			free(9, "v"), 19, 9, 9, 2, false},
		{"event before the read", []step{event(modified, renewed, false), after(4), read(at(7))}, renewed, 14, 9, 9, 2,
			false},
		{"early event before the read of none", []step{event(added, at(7), false), after(4), read(none)}, none, 4, 7, 7,
			1, true},

		{"deleted by us", []step{read(free(7, "u")), deleted(free(7, "u"))}, gone(7), 0, 7, 0, 3, false},
		{"deleted by us, but changed", []step{read(at(7)), deleted(free(6, "u"))}, at(7), 10, 7, 0, 1, false},

		{"read afresh", []step{event(modified, at(7), false), read(at(7)), after(4), resetTo(free(5, "u"))},
			free(5, "u"), 19, 5, 0, 2, false},
		{"read afresh, held", []step{read(at(7)), after(4), resetTo(at(7))}, at(7), 19, 7, 0, 2, false},
		{"read afresh, and deleted", []step{read(at(7)), after(4), resetTo(free(5, "u")),
			event(removed, free(6, "u"), false)}, gone(6), 19, 6, 6, 4, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, contradicted := newStore()
				began := time.Now()
				for i, step := range tt.steps {
					updates := s.updates
					for _, c := range []wakeup{s.changed, s.changedAny} {
						select {
						case <-c:
						default:
						}
					}
					if step(s); len(s.changed) != len(s.changedAny) || (len(s.changed) == 1) != (s.updates > updates) {
						t.Errorf("step %d: told %d and %d times", i, len(s.changed), len(s.changedAny))
					}
					if s.updates > updates && s.updated != time.Now() {
						t.Errorf("step %d: updated at %v", i, s.updated)
					}
				}
				o := s.latest()
				if o.record != tt.want || !o.known {
					t.Errorf("knows %+v\nwant  %+v", o.record, tt.want)
				}
				acquirable := later(began, o.acquirableAt(s.ours)).Sub(began)
				if want := time.Duration(tt.acquirable) * time.Second; acquirable != want {
					t.Errorf("acquirable after %v, want %v", acquirable, want)
				}
				if heard, uid := s.heardVersion(); heard != tt.heard || uid != tt.want.uid {
					t.Errorf("heard version %d of %q, want %d of %q", heard, uid, tt.heard, tt.want.uid)
				}
				if !s.watchBrought(tt.watched) || s.watchBrought(tt.watched+1) {
					t.Errorf("the watch brought version %d, want %d", s.watched, tt.watched)
				}
				if s.updates != tt.updates {
					t.Errorf("%d updates, want %d", s.updates, tt.updates)
				}
				if contradicted() != tt.contradicted || s.contradiction {
					t.Errorf("contradicted: %v, want %v", contradicted(), tt.contradicted)
				}
			})
		})
	}
}

// Events that no API server sends.
func TestLeaseStoreOddEvents(t *testing.T) {
	for _, tt := range []struct {
		name  string
		event watch.Event
		want  string // the error that ends the watch
	}{
		{"another name", watch.Event{Type: watch.Added, Object: &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
			Name: "y", UID: "u", ResourceVersion: "9"}}}, ""},
		{"no Lease", watch.Event{Type: watch.Added, Object: &metav1.Status{}}, ""},
		{"nil", watch.Event{Type: watch.Added, Object: (*coordinationv1.Lease)(nil)}, ""},
		{"no version", watch.Event{Type: watch.Added, Object: &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
			Name: "x", UID: "u"}}}, "resourceVersion"},
		{"an error", watch.Event{Type: watch.Error, Object: &metav1.Status{Message: "gone"}}, "watch lease ns/x: gone"},
	} {
		s, _ := newStore()
		s.addRead(heldByB, observation{})
		err := s.addEvent(tt.event, false)
		if (err != nil) != (tt.want != "") || !strings.Contains(errorText(err), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if o := s.latest(); o.record != heldByB || s.watched != 0 {
			t.Errorf("%s: knows %+v", tt.name, o)
		}
	}
}

// What was seen of a Lease before counts, as if the store had seen it itself, unless newer news came meanwhile.
func TestResume(t *testing.T) {
	const second = time.Second
	var now time.Time
	seen := func(r record, at int, wait time.Duration) observation {
		return observation{record: r, known: true, since: now.Add(time.Duration(at) * second), wait: wait}
	}
	older := heldByB.but(func(r *record) { r.version-- })
	active := older.but(func(r *record) { r.renewed = r.renewed.Add(-1) })
	another := heldByB.but(func(r *record) { r.uid, r.version = "v", 9 })
	synctest.Test(t, func(t *testing.T) {
		now = time.Now()
		newer := seen(heldByB.but(func(r *record) { r.version++ }), -1, second)
		for _, tt := range []struct {
			name                string
			known, before, read observation
			want                record
			acquirable          time.Duration
		}{
			{"nothing known", observation{}, observation{}, seen(heldByB, 0, 10*second), heldByB, 10 * second},
			{"as it was", seen(heldByB, -5, second), seen(heldByB, -5, second), seen(heldByB, 0, 10*second), heldByB,
				5 * second},
			{"another version", seen(older, -5, time.Minute), seen(older, -5, time.Minute), seen(heldByB, 0, 10*second),
				heldByB, 55 * second},
			{"renewed", seen(active, -5, time.Minute), seen(active, -5, time.Minute), seen(heldByB, 0, 10*second),
				heldByB, 10 * second},
			{"released", seen(older, -5, time.Minute), seen(older, -5, time.Minute),
				seen(record{uid: "u", version: 7}, 0, 0), record{uid: "u", version: 7}, 0},
			{"read before", newer, observation{}, seen(heldByB, 0, 10*second), newer.record, 0},
			{"not found", seen(heldByB, -5, 20*second), seen(heldByB, -5, 20*second), seen(record{}, 0, 0),
				record{version: 7}, 20 * second},
			{"another Lease", seen(heldByB, -5, second), seen(heldByB, -5, second), seen(another, 0, 10*second),
				another, 15 * second},
		} {
			s, _ := newStore()
			s.seen = tt.read
			got := s.resume(tt.known, tt.before)
			if wait := later(now, got.acquirableAt(s.ours)).Sub(now); got.record != tt.want || wait != tt.acquirable {
				t.Errorf("%s: %+v, acquirable after %v, want %+v after %v", tt.name, got.record, wait, tt.want,
					tt.acquirable)
			}
			if s.latest() != got {
				t.Errorf("%s: knows %+v", tt.name, s.latest())
			}
		}
	})
}

// A candidate claims only what it has looked at.
func TestUnchangedSince(t *testing.T) {
	known := observation{record: heldByB, known: true}
	for _, tt := range []struct {
		name string
		now  observation
		want bool
	}{
		{"nothing happened", known, true},
		{"a label was edited", observation{record: heldByB.but(func(r *record) { r.version++ }), known: true}, false},
		{"another Lease", observation{record: heldByB.but(func(r *record) { r.uid = "v" }), known: true}, false},
		{"not known", observation{record: heldByB}, false},
	} {
		if got := (&leaseStore{seen: tt.now}).unchangedSince(known); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// Any goroutine may call any method of the store. Only the race detector can fail this test.
func TestLeaseStoreConcurrently(t *testing.T) {
	inWorld(t, func(w *world) {
		r, _ := idleRenewer(w, heldByB, nil)
		s := r.store
		var version atomic.Uint64
		next := func() record { return heldByB.but(func(r *record) { r.version += version.Add(1) }) }
		var all sync.WaitGroup
		for _, call := range []func(){
			func() { s.setRenewer(r) },
			func() { s.latest() },
			func() { s.keeps(heldByB.term()) },
			func() { s.resume(observation{record: heldByB, known: true}, observation{}) },
			func() { s.watchBrought(7) },
			func() { s.heardVersion() },
			func() { s.watchMissed(7, "u") },
			func() { s.describe(&LeaseStatus{}) },
			func() { s.addAnswer(next(), s.latest()) },
			func() { s.addRead(next(), s.latest()) },
			func() { s.resetTo(next()) },
			func() { s.addDeletion(next()) },
			func() {
				lease := writtenLease(next())
				lease.Name = name
				s.addEvent(watch.Event{Type: watch.Modified, Object: lease}, true)
			},
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

// The Monitor shows the holder, with its expiry by the wall clock, not by the candidate's clock.
func TestLeaseStoreDescribes(t *testing.T) {
	inWorld(t, func(w *world) {
		s := idleCampaign(w, withClock(rateClock{time.Now().Add(-time.Hour), 2})).store
		held := heldByB.but(func(r *record) { r.annotated = &annotation.Notes{Address: "10.0.0.1:80"} })
		s.addRead(held, observation{})
		var got LeaseStatus
		s.describe(&got)
		want := HolderStatus{Identity: held.identity, AcquireTime: held.acquired, RenewTime: held.renewed,
			Transitions: held.transitions, ExpiryTime: got.Holder.ExpiryTime, Address: "10.0.0.1:80"}
		if *got.Holder != want || got.ResourceVersion != "7" || got.Updates != 1 || !got.UpdateTime.Equal(time.Now()) {
			t.Errorf("%+v, of %+v, want %+v", got, got.Holder, want)
		}
		if left := time.Until(got.Holder.ExpiryTime); left != held.duration {
			t.Errorf("expires in %v, want %v", left, held.duration)
		}
		s.addRead(record{}, s.latest())
		got = LeaseStatus{}
		if s.describe(&got); got.ResourceVersion != "" || got.Holder != nil {
			t.Errorf("a Lease that is gone: %+v", got)
		}
	})
}

// An event that is an error names the Lease.
func TestLeaseStoreErrorEvent(t *testing.T) {
	inWorld(t, func(w *world) {
		event := watch.Event{Type: watch.Error, Object: &metav1.Status{Message: "broken"}}
		err := idleCampaign(w).store.addEvent(event, false)
		if got := errorText(err); got != "watch lease default/reconciler: broken" {
			t.Error(got)
		}
	})
}

// A deletion that shows who held one Lease at the end shows nothing of a holder of an earlier Lease that was not seen.
func TestMissedHolderOutlastsAnothersDeletion_G1(t *testing.T) {
	free := func(version uint64, uid types.UID) record { return record{uid: uid, version: version} }
	for _, tt := range []struct {
		name  string
		first func(*leaseStore) // a holder may be missed then
	}{
		{"not found", func(s *leaseStore) { s.addRead(record{}, s.latest()) }},
		{"set back", func(s *leaseStore) { s.addRead(free(5, "u"), s.latest()) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := newStore()
				began := time.Now()
				event := func(kind watch.EventType, r record) {
					if err := s.addEvent(watch.Event{Type: kind, Object: writtenLease(r)}, false); err != nil {
						t.Error(err)
					}
				}
				s.addRead(heldByB, s.latest())
				time.Sleep(4 * time.Second)
				tt.first(s)
				missed := time.Now().Add(s.fallback)
				if s.latest().exists() {
					event(watch.Deleted, free(9, "u"))
				}
				event(watch.Added, free(10, "v"))
				time.Sleep(time.Second)
				s.addRead(record{}, s.latest())
				if got, want := s.latest().clearAt(), time.Now().Add(s.fallback); !got.Equal(want) {
					t.Errorf("clear after %v, want %v", got.Sub(began), want.Sub(began))
				}
				event(watch.Deleted, free(11, "v"))
				if got := s.latest().clearAt(); !got.Equal(missed) {
					t.Errorf("clear after %v, want %v", got.Sub(began), missed.Sub(began))
				}
			})
		})
	}
}
