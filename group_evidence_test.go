package leasehold

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/internal/shards"
	"github.com/leasehold-go/leasehold/leasetest"
)

// A term is over only by what was seen later than it, or after its Lease was missing for its duration.
func TestGroupEnded(t *testing.T) {
	now := time.Now()
	row := shards.Row{Term: shards.Term{Lease: "g-m-b", UID: "u", Acquired: 5}, Seen: 100, Seconds: 15}
	held := record{uid: "u", version: 120, identity: "b", acquired: time.UnixMicro(5)}
	with := func(change func(r *record)) *record {
		r := held
		change(&r)
		return &r
	}
	for _, c := range []struct {
		name    string
		lease   *record // nil if the Lease is missing
		listed  uint64
		missing time.Duration // for how long it is known to be; 0 if it is not known yet
		want    bool
		unsure  bool
	}{
		{"it is shown", &held, 200, 0, false, false},
		{"it is shown, by a version before the table's", with(func(r *record) { r.version = 90 }), 200, 0,
			false, false},
		{"another term, seen later", with(func(r *record) { r.acquired = time.UnixMicro(9) }), 200, 0, true, false},
		{"nobody, seen later", with(func(r *record) { r.identity = "" }), 200, 0, true, false},
		{"nobody, seen before", with(func(r *record) { r.identity, r.version = "", 90 }), 200, 0, false, false},
		{"an earlier term", with(func(r *record) { r.acquired, r.version = time.UnixMicro(3), 100 }), 200, 0,
			false, false},
		{"missing of a list before it", nil, 90, 0, false, false},
		{"missing, while not all are followed", nil, 0, 0, false, false},
		{"missing, but not read yet", nil, 200, 0, false, true},
		{"missing for less than its duration", nil, 200, D - 1, false, false},
		{"missing for its duration", nil, 200, D, true, false},
		{"another Lease of its name", with(func(r *record) { r.uid = "w" }), 200, 0, false, true},
	} {
		m := &missingTerms{
			group: &group{campaign: &campaign{options: &options{duration: D}}},
			since: map[shards.Term]time.Time{},
		}
		v := view{now: now, listed: c.listed, members: map[string]memberView{}}
		if c.lease != nil {
			v.members[row.Lease] = memberView{seen: observation{record: *c.lease, known: true}}
		}
		if c.missing > 0 {
			m.since[row.Term] = now.Add(-c.missing)
		}
		got, _ := m.ended(v, row)
		if got != c.want || (len(m.unsure) > 0) != c.unsure {
			t.Errorf("%s: ended %v, unsure %v; want %v, %v", c.name, got, m.unsure, c.want, c.unsure)
		}
	}
}

// A table that comes while a step begins is seen by that step, or wakes the next.
func TestGroupTableWhileAStepBegins(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.join("a", 2)
		f.sleep(I / 2)
		m := a.group.present
		r := m.roster
		a.group.mu.Lock()
		table := m.table
		m.table = tableView{}
		a.group.mu.Unlock()
		r.mu.Lock()
		views := make(chan view)
		go func() { views <- m.assigner.view() }()
		for range 1000 {
			runtime.Gosched() // until the step waits for the roster
		}
		a.group.mu.Lock()
		m.table = table
		a.group.mu.Unlock()
		r.dirty = true
		r.mu.Unlock()
		if v := <-views; !v.table.known && !r.isDirty() {
			f.Error("the step goes by no table, and no other step follows")
		}
		a.quit()
	})
}

// What a roster forgets when it is told of all Leases that it follows: the others, but for how long a held one
// without the label was silent.
func TestGroupRosterForgets(t *testing.T) {
	free, held := record{uid: "u", version: 5}, record{uid: "u", version: 5, identity: "x", duration: D}
	for _, c := range []struct {
		name       string
		selected   string // the Lease that is followed; "" for all
		record     record
		unlabelled bool
		listed     uint64
		kept       bool
	}{
		{"labelled", "", held, false, 9, false},
		{"labelled, seen since", "", held, false, 4, true},
		{"without the label, held", "", held, true, 9, true},
		{"without the label, free", "", free, true, 9, false},
		{"followed alone, and gone", "g-m-x", held, false, 0, false},
		{"not followed", "g-m-y", held, false, 0, true},
	} {
		r := &roster{
			group:    &group{campaign: &campaign{options: &options{duration: D}}},
			clock:    virtualClock{},
			selected: c.selected,
			members: map[string]*memberView{
				"g-m-x": {seen: observation{record: c.record, known: true}, unlabelled: c.unlabelled},
			},
			news: newWakeup(),
		}
		r.setAll(nil, c.listed)
		if kept := r.members["g-m-x"] != nil; kept != c.kept {
			t.Errorf("%s: kept: %v, want %v", c.name, kept, c.kept)
		}
		if lives := !r.deletedHolderUntil.IsZero(); lives != (!c.kept && c.record.held()) {
			t.Errorf("%s: its holder may live: %v", c.name, lives)
		}
	}
}

// Members that share out other keys, and of which nothing is known while lists fail, are not asked about all the time.
func TestGroupAwaitsOtherKeys(t *testing.T) {
	inFleet(t, func(f *fleet) {
		f.join("a", 2)
		f.sleep(time.Second)
		b := f.join("b", 4)
		f.sleep(2 * I)
		v := b.group.present.assigner.view()
		v.listed, v.members = 0, nil
		wait, err := b.group.present.assigner.epochs.awaitOtherKeys(f.Context(), v)
		if want := gathering(b.group.campaign.options); wait < want || err != nil {
			f.Errorf("another look in %v, %v; want at least %v", wait, err, want)
		}
	})
}

// A table opens only by a list of all Leases that is not older than it.
func TestGroupOpensByANewList(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.join("a", 2)
		f.sleep(I)
		assigner := a.group.present.assigner
		e, v := assigner.epochs, assigner.view()
		e.counted = false
		if wait, err := e.untilOpen(f.Context(), v, true); err != nil || !e.counted {
			f.Errorf("a new list: %v, %v, counted %v", wait, err, e.counted)
		}
		e.counted, v.table.record.version = false, v.table.record.version+1000
		if wait, err := e.untilOpen(f.Context(), v, true); err != errOldList || e.counted {
			f.Errorf("an old list: %v, %v, counted %v", wait, err, e.counted)
		}
		a.quit()
	})
}

// A list that is older than a deletion does not bring the Lease back.
func TestGroupOldList(t *testing.T) {
	lease := func(name string, version int) *coordinationv1.Lease {
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: "u", ResourceVersion: strconv.Itoa(version), Labels: map[string]string{groupLabel: "g"},
		}}
	}
	for _, c := range []struct {
		name  string
		gone  func(r *roster)
		list  []*coordinationv1.Lease
		as    uint64
		known string
		err   error
	}{
		{"deleted since", func(r *roster) { r.update(lease("g-m-x", 105), true) },
			[]*coordinationv1.Lease{lease("g-m-x", 90), lease("g-m-y", 90)}, 100, "g-m-y", errOldList},
		{"missing in a newer list", func(r *roster) { r.setAll([]*coordinationv1.Lease{lease("g-m-y", 90)}, 105) },
			[]*coordinationv1.Lease{lease("g-m-x", 90), lease("g-m-y", 90)}, 100, "g-m-y", errOldList},
		{"deleted before", func(r *roster) { r.update(lease("g-m-x", 105), true) },
			[]*coordinationv1.Lease{lease("g-m-y", 90), lease("g-m-z", 104)}, 105, "g-m-y g-m-z", nil},
		{"old, and nothing unknown", func(r *roster) { r.update(lease("g-m-x", 105), true) },
			[]*coordinationv1.Lease{lease("g-m-y", 90)}, 100, "g-m-y", nil},
		{"old, with the table", func(r *roster) { r.update(lease("g-m-x", 105), true) },
			[]*coordinationv1.Lease{lease("g", 99), lease("g-m-y", 90)}, 100, "g-m-y", nil},
		{"old, and nothing deleted", func(r *roster) { r.update(lease("g-m-x", 105), false) },
			[]*coordinationv1.Lease{lease("g-m-x", 90), lease("g-m-y", 90), lease("g-m-z", 95)}, 100,
			"g-m-x g-m-y g-m-z", nil},
	} {
		g := &group{campaign: &campaign{options: &options{duration: D}}}
		g.client = &groupClient{g.campaign, "g"}
		r := &roster{group: g, clock: virtualClock{}, members: map[string]*memberView{}, news: newWakeup()}
		r.setAll([]*coordinationv1.Lease{lease("g-m-x", 90), lease("g-m-y", 90)}, 100)
		c.gone(r)
		err := r.recordList(c.list, c.as, nil)
		known := strings.Join(slices.Sorted(maps.Keys(r.members)), " ")
		if err != c.err || known != c.known {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, known, err, c.known, c.err)
		}
	}
}

// A set of keys that becomes known just when a term begins is reported in that term.
func TestGroupKeysKnownWhileATermBegins(t *testing.T) {
	inWorld(t, func(w *world) {
		r, _ := idleRenewer(w, heldByB, nil)
		g := newGroup(r.session.campaign, name, 0)
		m := newMembership(g, r.session)
		g.know(w.Context(), w.Context(), []string{"k1"})
		if own := m.owner.Report(nil).Own; own != shards.Digest([]string{"k1"}) {
			t.Errorf("reports the keys %q", own)
		}
	})
}

// A report counts in the term that wrote it only.
func TestGroupReportOfAnEarlierTerm(t *testing.T) {
	v := view{}
	m := memberView{report: shards.Report{Acquired: 5, Epoch: 7, Gen: 3}}
	if r := v.reportOf(shards.Term{Lease: "g-m-b", UID: "u", Acquired: 5}, m); r.Epoch != 7 {
		t.Errorf("in its term: %+v", r)
	}
	if r := v.reportOf(shards.Term{Lease: "g-m-b", UID: "u", Acquired: 9}, m); r.Epoch != 0 {
		t.Errorf("in a later term: %+v", r)
	}
}

// While a member renews but does not see a new table, its keys go to nobody.
func TestGroupLagging_G1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a, b := f.spreadTwo()
		f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "patch" && r.Name == name {
				fault.Before = eps // so that others see a table that gives too much before it is replaced
			}
			return fault
		})
		deafen(f.srv.Client("b"))
		f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Annotations[tableAnnotation] = "rubbish" })
		f.sleep(3 * D)
		f.wantShape("b[2]")
		f.srv.Client("b").OnRequest(nil)
		f.sleep(3 * D)
		f.wantShape("a b[2 2]")
		a.quit()
		b.quit()
	})
}

// A member that was cut off, and whose Lease was deleted with the table, is waited out by a new one that finds a trace
// of the group.
func TestGroupTrace_G1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a, b := f.spreadTwo()
		f.srv.Client("b").Partition(true)
		a.quit()
		for _, l := range f.memberLeases() {
			if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity == "b" {
				f.srv.Delete(ns, l.Name)
			}
		}
		f.srv.Delete(ns, name)
		c := f.spread("c", Keys(numbered(4)...))
		f.sleep(5 * time.Second)
		f.wantShape("b[2]")
		f.sleep(2 * D)
		f.wantShape("c[4]")
		f.srv.Client("b").Partition(false)
		b.quit()
		c.quit()
	})
}

// A member that a watch left out is found when a new table is begun, so that it is waited for when its Lease is
// deleted.
func TestGroupLeftOut_G1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(6)...))
		f.sleep(time.Second)
		b := f.spread("b", Keys(numbered(6)...), func(o *options) {
			o.hooks.wrap = func(l Leases) Leases { return watchWithout{l.(coordinationv1client.LeaseInterface), "c"} }
		})
		f.srv.Client("b").OnRequest(func(r leasetest.Request) leasetest.Fault {
			switch {
			case r.Verb == "get" && r.Name != name:
				return leasetest.Fault{Err: apierrors.NewServiceUnavailable("no reads of members")}
			case r.Verb == "create":
				return leasetest.Fault{After: 50 * time.Millisecond} // so that it sees its table before the answer
			}
			return leasetest.Fault{}
		})
		f.sleep(3 * I)
		c := f.spread("c", Keys(numbered(6)...))
		f.sleep(3 * I)
		f.wantShape("a b c[2 2 2]")
		deafen(f.srv.Client("c"))
		f.srv.Client("a").SilenceWatches() // b begins the new table
		f.srv.Delete(ns, name)
		f.sleep(D - I)
		f.srv.Client("c").Partition(true)
		for _, l := range f.memberLeases() {
			if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity == "c" {
				f.srv.Delete(ns, l.Name)
			}
		}
		f.sleep(I + time.Second)
		f.wantShape("c[2]")
		f.srv.Client("b").OnRequest(nil)
		f.sleep(2 * D)
		f.wantShape("a b[3 3]")
		a.quit()
		b.quit()
		c.quit()
	})
}

// A member that has seen a table of another number of buckets knows that the group is not new: if the table and the
// Lease of its owner are deleted, it waits for that owner.
func TestGroupSeenByOtherBuckets_G1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.join("a", 16)
		f.sleep(2 * I)
		f.wantShape("a[16]")
		f.srv.Client("a").Partition(true)
		f.srv.Delete(ns, f.leaseOf("a"))
		b := f.join("b", 8)
		f.sleep(time.Second)
		f.srv.Delete(ns, name)
		f.sleep(4 * time.Second)
		f.wantShape("a[16]")
		f.sleep(2 * D)
		f.wantShape("b[8]")
		a.quit()
		b.quit()
	})
}

// A live member whose renewals another's watch leaves out is not fenced: the fence is refused, and the read after it
// shows the renewals. A member that has crashed is fenced.
func TestGroupFenceRefused_G1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(4)...), func(o *options) {
			o.hooks.wrap = func(l Leases) Leases { return watchWithout{l.(coordinationv1client.LeaseInterface), "b"} }
		})
		f.sleep(time.Second)
		b := f.spread("b", Keys(numbered(4)...))
		f.sleep(4 * D)
		f.wantShape("a b[2 2]")
		lease := f.leaseOf("b")
		var fences atomic.Int64
		f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "patch" && r.Name == lease {
				fences.Add(1)
			}
			return fault
		})
		f.sleep(8 * D)
		f.wantShape("a b[2 2]")
		if n := f.logged("lease lost"); n != 0 || fences.Load() == 0 || fences.Load() > 10 {
			f.Errorf("%d losses, %d fences, want none and one in each duration", n, fences.Load())
		}
		f.srv.Client("b").Partition(true)
		f.sleep(2*D + I)
		f.wantShape("a[4]")
		a.quit()
		b.quit()
	})
}

// A member whose Lease has lost the group's label, and whose renewal, which brings that back, comes when its trust has
// nearly ended and is not seen by the assigner's watch, is waited for before a new epoch gives its keys.
func TestGroupUnlabelledBeforeAnEpoch_G1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a, b := f.spreadTwo()
		lease := f.sessionsOf("b")[0].Holder().Name
		for time.Since(f.srv.Lease(ns, lease).Spec.RenewTime.Time) > eps {
			f.sleep(eps / 2)
		}
		var mute atomic.Bool
		mute.Store(true)
		f.srv.Client("b").OnEvent(func(e watch.Event) time.Duration {
			if e.Object.(*coordinationv1.Lease).Name == lease {
				return 0
			}
			return time.Hour
		})
		f.srv.Client("b").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			switch {
			case r.Name != lease:
				fault.Drop = leasetest.TheRequest
			case r.Verb == "patch" && mute.Load():
				fault.Err = leasetest.ServiceUnavailable()
			}
			return fault
		})
		f.srv.Edit(ns, lease, func(l *coordinationv1.Lease) { delete(l.Labels, groupLabel) })
		f.srv.Delete(ns, name)
		f.sleep(R - time.Second)
		// The watch stalls, and a does not notice, because it has no renewal to hear of.
		f.srv.Client("a").OnEvent(func(watch.Event) time.Duration { return D })
		f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "patch" && r.Name != name {
				fault.Err = leasetest.ServiceUnavailable()
			}
			return fault
		})
		mute.Store(false)
		f.sleep(D - R + time.Second/2)
		f.srv.Client("a").OnRequest(nil)
		f.sleep(2 * time.Second)
		if l := f.srv.Lease(ns, lease); l.Labels[groupLabel] != name {
			f.Fatalf("b has not renewed: %v", l)
		}
		f.wantShape("b[2]")
		f.srv.Client("a").OnEvent(nil)
		f.srv.Client("b").OnRequest(nil)
		f.srv.Client("b").OnEvent(nil)
		f.srv.Client("b").CloseWatches(nil)
		f.sleep(3 * D)
		f.wantShape("a b[2 2]")
		a.quit()
		b.quit()
	})
}

// Without the label only what a member of the group has written is taken for the group's.
func TestGroupListUnlabelled(t *testing.T) {
	inFleet(t, func(f *fleet) {
		var monitor Monitor
		a := f.spread("a", Keys("x"), WithMonitor(&monitor))
		f.sleep(time.Second)
		const member = "-m-0123456789ab"
		for _, l := range []struct {
			name, label string
			report      string
		}{
			{name + member, "", "x"},
			{name + "-m-labelled", name, ""},
			{name + "-k-digest-0", name, ""},
			{name + "-m-0123456789ac", "", ""}, // somebody's lease
			{name + "-m-leader", "", "x"},
			{name + "-m-x" + member, "", "x"},        // of a group whose name begins like this one's
			{name + "-m-0123456789ad", "other", "x"}, // somebody changed its label
			{"other" + member, "", "x"},
		} {
			f.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: l.name,
				Labels:      map[string]string{groupLabel: l.label},
				Annotations: map[string]string{memberAnnotation: l.report},
			}})
		}
		leases, version, err := monitor.allGroups()[0].client.listUnlabelled(f.Context())
		var got []string
		for _, l := range leases {
			if l.CreationTimestamp.Time.Equal(time.Now().Truncate(time.Second)) {
				got = append(got, l.Name)
			}
		}
		slices.Sort(got)
		want := []string{name + "-k-digest-0", name + member, name + "-m-0123456789ad", name + "-m-labelled"}
		if err != nil || version == 0 || !slices.Equal(got, want) {
			f.Errorf("%v as of %d, %v; want %v", got, version, err, want)
		}
		a.quit()
	})
}

// A process that knows nothing of a group, whose table was deleted, finds a member whose Lease has lost the label too,
// before it gives a key.
func TestGroupUnlabelledBeforeTheFirstTable_G1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(4)...))
		f.sleep(2 * I)
		f.wantShape("a[4]")
		f.srv.Client("a").Partition(true)
		f.srv.Edit(ns, f.leaseOf("a"), func(l *coordinationv1.Lease) { delete(l.Labels, groupLabel) })
		f.srv.Delete(ns, name)
		b := f.spread("b", Keys(numbered(4)...))
		f.sleep(4 * time.Second)
		f.wantShape("a[4]")
		f.sleep(3 * D)
		f.wantShape("b[4]")
		a.quit()
		b.quit()
	})
}

// A watchWithout is a client whose watches leave out the Leases of a holder.
type watchWithout struct {
	coordinationv1client.LeaseInterface
	holder string
}

func (l watchWithout) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	w, err := l.LeaseInterface.Watch(ctx, opts)
	if err != nil {
		return nil, err
	}
	events := make(chan watch.Event)
	filtered := watch.NewProxyWatcher(events)
	go func() {
		defer close(events)
		defer w.Stop()
		for event := range w.ResultChan() {
			lease, ok := event.Object.(*coordinationv1.Lease)
			if ok && lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity == l.holder {
				continue
			}
			select {
			case events <- event:
			case <-filtered.StopChan():
				return
			}
		}
	}()
	context.AfterFunc(ctx, w.Stop)
	return filtered, nil
}

// The context of a key tells the truth by the clock, as that of a lease (G3).
func TestGroupTruthfulContext_G3(t *testing.T) {
	inFleet(t, func(f *fleet) {
		var slept atomic.Int64
		sessions := make(chan Session, 1)
		a := f.spreadWork("a", Keys("x"), func(s Session, key string) error {
			select {
			case sessions <- s:
			default:
			}
			<-s.Done()
			return nil
		}, withClock(sleepyClock{&slept}))
		f.sleep(time.Minute)
		s := <-sessions
		if s.Err() != nil || s.ValidFor() <= 0 {
			f.Fatalf("before: %v, valid for %v", s.Err(), s.ValidFor())
		}
		slept.Add(int64(R + eps))
		if s.ValidFor() != 0 || s.Context().Err() == nil || !errors.Is(s.Err(), ErrLost) ||
			!strings.Contains(s.Err().Error(), "the machine slept") {
			f.Errorf("after the machine slept: %v, valid for %v", s.Err(), s.ValidFor())
		}
		a.quit()
	})
}
