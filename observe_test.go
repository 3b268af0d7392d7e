package leasehold

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestReadRecord(t *testing.T) {
	var (
		acquired = time.Date(2026, 5, 1, 12, 0, 0, 123456000, time.UTC)
		renewed  = acquired.Add(time.Minute)
		past     = time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC)
		future   = time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
		tokyo    = time.FixedZone("", 9*60*60)
	)
	micro := func(t time.Time) *metav1.MicroTime { return &metav1.MicroTime{Time: t} }
	for _, tt := range []struct {
		name string
		spec coordinationv1.LeaseSpec
		want record
	}{
		{"empty spec", coordinationv1.LeaseSpec{}, record{}},
		{"all that a holder writes", coordinationv1.LeaseSpec{
			HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(15)), LeaseTransitions: new(int32(3)),
			AcquireTime: micro(acquired), RenewTime: micro(renewed),
		}, record{identity: "b", duration: 15 * time.Second, transitions: 3, acquired: acquired, renewed: renewed}},
		{"holder only", coordinationv1.LeaseSpec{HolderIdentity: new("b")}, record{identity: "b"}},
		{"holder of blanks is a holder", coordinationv1.LeaseSpec{HolderIdentity: new(" ")}, record{identity: " "}},
		{`holder ""`, coordinationv1.LeaseSpec{HolderIdentity: new("")}, record{}},
		{"times only", coordinationv1.LeaseSpec{AcquireTime: micro(acquired), RenewTime: micro(renewed)},
			record{acquired: acquired, renewed: renewed}},
		{"times that are zero", coordinationv1.LeaseSpec{AcquireTime: micro(time.Time{}),
			RenewTime: micro(time.Time{})}, record{}},
		{"times in another zone", coordinationv1.LeaseSpec{AcquireTime: micro(acquired.In(tokyo)),
			RenewTime: micro(renewed.Local())},
			record{acquired: acquired, renewed: renewed}},
		{"far in the past", coordinationv1.LeaseSpec{RenewTime: micro(past)}, record{renewed: past}},
		{"far in the future", coordinationv1.LeaseSpec{RenewTime: micro(future)}, record{renewed: future}},
		{"duration 0", coordinationv1.LeaseSpec{LeaseDurationSeconds: new(int32(0))}, record{}},
		{"duration negative", coordinationv1.LeaseSpec{LeaseDurationSeconds: new(int32(-1))}, record{}},
		{"duration at the lower limit", coordinationv1.LeaseSpec{LeaseDurationSeconds: new(int32(math.MinInt32))},
			record{}},
		{"duration at the upper limit", coordinationv1.LeaseSpec{LeaseDurationSeconds: new(int32(math.MaxInt32))},
			record{duration: 2147483647 * time.Second}},
		{"transitions negative", coordinationv1.LeaseSpec{LeaseTransitions: new(int32(-1))}, record{}},
		{"transitions at the limit", coordinationv1.LeaseSpec{LeaseTransitions: new(int32(math.MaxInt32))},
			record{transitions: math.MaxInt32}},
		{"coordinated leader election", coordinationv1.LeaseSpec{Strategy: new(coordinationv1.OldestEmulationVersion),
			PreferredHolder: new("c")}, record{strategy: true, preferred: "c"}},
		{`strategy ""`, coordinationv1.LeaseSpec{Strategy: new(coordinationv1.CoordinatedLeaseStrategy(""))},
			record{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lease := &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{UID: "u", ResourceVersion: "18446744073709551615"},
				Spec:       tt.spec,
			}
			tt.want.uid, tt.want.version = "u", math.MaxUint64
			got, err := readRecord(lease)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			if !got.exists() || got.held() != (tt.want.identity != "") {
				t.Errorf("exists %v, held %v", got.exists(), got.held())
			}
			if got.resourceVersion() != lease.ResourceVersion {
				t.Errorf("resourceVersion %s", got.resourceVersion())
			}
		})
	}
}

func TestReadRecordOfNoServer(t *testing.T) {
	for _, tt := range []struct {
		name, uid, version, want string
	}{
		{"no resourceVersion", "u", "", `the server sent a Lease with resourceVersion "", want a positive number; ` +
			"client-go's fake clientset keeps none, package leasetest does"},
		{"resourceVersion 0", "u", "0", `the server sent a Lease with resourceVersion "0", want a positive number`},
		{"resourceVersion negative", "u", "-1",
			`the server sent a Lease with resourceVersion "-1", want a positive number`},
		{"resourceVersion no number", "u", "1a",
			`the server sent a Lease with resourceVersion "1a", want a positive number`},
		{"resourceVersion beyond 64 bits", "u", "18446744073709551616",
			`the server sent a Lease with resourceVersion "18446744073709551616", want a positive number`},
		{"no uid", "", "7", "the server sent a Lease without uid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{UID: types.UID(tt.uid),
				ResourceVersion: tt.version}}
			r, err := readRecord(lease)
			if err == nil || err.Error() != tt.want {
				t.Errorf("err %v\nwant %s", err, tt.want)
			}
			if r != (record{}) {
				t.Errorf("record %+v, want none", r)
			}
		})
	}
}

// heldByB is a Lease as its holder b wrote it. The tables below change one thing about it at a time.
var heldByB = record{
	uid:         "u",
	version:     7,
	identity:    "b",
	duration:    10 * time.Second,
	acquired:    time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC),
	renewed:     time.Date(2026, 5, 1, 12, 1, 0, 0, time.UTC),
	transitions: 3,
}

func (r record) but(change func(*record)) record {
	change(&r)
	return r
}

func TestTermOver(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    record
		want string // "" while the term goes on
	}{
		{"as it was", heldByB, ""},
		{"renewed", heldByB.but(func(r *record) { r.version++; r.renewed = r.renewed.Add(time.Second) }), ""},
		{"renewal time removed", heldByB.but(func(r *record) { r.renewed = time.Time{} }), ""},
		{"label edited", heldByB.but(func(r *record) { r.version++ }), ""},
		{"transitions edited", heldByB.but(func(r *record) { r.transitions = 0 }), ""},
		{"duration lengthened", heldByB.but(func(r *record) { r.duration += time.Second }), ""},
		{"deleted", record{}, "lease lost: the Lease was deleted"},
		{"deleted, and re-created as it was", heldByB.but(func(r *record) {
			r.uid = "u2"
		}), "lease lost: the Lease was deleted"},
		{"holder removed", heldByB.but(func(r *record) { r.identity = "" }), "lease lost: its holder was removed"},
		{"all removed", record{uid: "u", version: 8}, "lease lost: its holder was removed"},
		{"another holder", heldByB.but(func(r *record) { r.identity = `c "x"` }), `lease lost: now held by "c \"x\""`},
		{"another holder in everything", record{uid: "u", identity: "c"}, `lease lost: now held by "c"`},
		{"same identity, acquired later", heldByB.but(func(r *record) {
			r.acquired = r.acquired.Add(time.Microsecond)
		}),
			`lease lost: now held by another process with the same identity "b"`},
		{"acquisition time removed", heldByB.but(func(r *record) { r.acquired = time.Time{} }),
			`lease lost: now held by another process with the same identity "b"`},
		{"duration cut", heldByB.but(func(r *record) { r.duration = 9 * time.Second }),
			"lease lost: its duration was cut from 10s to 9s"},
		{"duration removed", heldByB.but(func(r *record) { r.duration = 0 }),
			"lease lost: its duration was cut from 10s to 0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := heldByB.term().over(&tt.r, heldByB.duration)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("lost: %v", err)
			case tt.want != "" && (err == nil || err.Error() != tt.want):
				t.Errorf("got  %v\nwant %s", err, tt.want)
			case tt.want != "" && !errors.Is(err, ErrLost):
				t.Errorf("%v is no ErrLost", err)
			}
		})
	}
}

// A term is the one that was claimed only if all of it is. The uid of a Lease that a claim created may be any.
func TestTermIs(t *testing.T) {
	claimed := heldByB.term()
	for _, tt := range []struct {
		name string
		t    term
		of   term
		want bool
	}{
		{"the same", claimed, claimed, true},
		{"of a Lease that was created", claimed, term{"", claimed.identity, claimed.acquired}, true},
		{"of another Lease", term{"u2", claimed.identity, claimed.acquired}, claimed, false},
		{"of another identity", term{claimed.uid, "c", claimed.acquired}, claimed, false},
		{"acquired at another time", term{claimed.uid, claimed.identity, claimed.acquired.Add(1)}, claimed, false},
		{"of another identity, of a Lease that was created", claimed, term{"", "c", claimed.acquired}, false},
	} {
		if got := tt.t.is(tt.of); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// Of the strings that each answer brings again, those of the first record of a term are kept, and no others.
func TestEqualStringsAreKeptOnce(t *testing.T) {
	same := func(a, b string) bool { return unsafe.StringData(a) == unsafe.StringData(b) }
	copied := heldByB
	copied.uid, copied.identity = types.UID(strings.Clone("u")), strings.Clone("b")
	previous := observe(&observation{}, &heldByB, time.Now(), D, func(term) bool { return false })
	for _, tt := range []struct {
		name string
		seen record
		kept bool
	}{
		{"the same term", copied, true},
		{"another holder", copied.but(func(r *record) { r.identity = "c" }), false},
		{"another Lease", copied.but(func(r *record) { r.uid = "v" }), false},
	} {
		o := observe(&previous, &tt.seen, time.Now(), D, func(term) bool { return false })
		if o.term() != tt.seen.term() {
			t.Errorf("%s: observed %v", tt.name, o.term())
		}
		uid, identity := same(string(o.uid), string(heldByB.uid)), same(o.identity, heldByB.identity)
		if uid != tt.kept || identity != tt.kept {
			t.Errorf("%s: the uid is kept: %v, the identity: %v; want %v", tt.name, uid, identity, tt.kept)
		}
	}
}

// Each row is what a candidate saw, in seconds after it began, and the second in which it may take
// the lease.
func TestAcquirableAt(t *testing.T) {
	type seen struct {
		at int
		r  record
	}
	const fallback = 15 * time.Second
	var (
		own = record{uid: "u", version: 5, identity: "me", duration: 10 * time.Second,
			acquired: heldByB.acquired.Add(time.Hour)}
		renewed = heldByB.but(func(r *record) { r.version++; r.renewed = r.renewed.Add(time.Second) })
		free    = record{uid: "u", version: 9, transitions: 3}
		gone    = record{version: 10}
	)
	lasting := func(r record, seconds int) record {
		return r.but(func(r *record) { r.version++; r.duration = time.Duration(seconds) * time.Second })
	}
	recreated := func(r record, uid types.UID) record {
		return r.but(func(r *record) { r.version += 10; r.uid = uid })
	}
	for _, tt := range []struct {
		name string
		seen []seen
		want int
	}{
		{"no Lease", []seen{{3, record{}}}, 3},
		{"still no Lease", []seen{{3, record{}}, {9, record{}}}, 9},
		{"free", []seen{{3, free}}, 3},
		{"free, with times and a duration", []seen{{3, heldByB.but(func(r *record) { r.identity = "" })}}, 3},

		{"held", []seen{{3, heldByB}}, 13},
		{"nothing happens", []seen{{3, heldByB}, {9, heldByB}}, 13},
		{"nothing happens for longer than the duration", []seen{{3, heldByB}, {30, heldByB}}, 30},
		{"label edited", []seen{{3, heldByB}, {9, heldByB.but(func(r *record) { r.version++ })}}, 13},
		{"renewed", []seen{{3, heldByB}, {9, renewed}}, 19},
		{"renewed by a clock set back", []seen{{3, renewed}, {9, heldByB.but(func(r *record) { r.version = 9 })}}, 19},
		{"renewed, then seen again", []seen{{3, heldByB}, {9, renewed}, {12, renewed}}, 19},
		{"renewal time removed", []seen{{3, heldByB}, {9, heldByB.but(func(r *record) {
			r.renewed = time.Time{}
		})}}, 19},
		{"acquired again by the same identity", []seen{{3, heldByB}, {9, heldByB.but(func(r *record) {
			r.acquired = r.renewed
		})}}, 19},
		{"only the transitions changed", []seen{{3, heldByB}, {9, heldByB.but(func(r *record) {
			r.transitions++
		})}}, 19},
		{"only the holder changed", []seen{{3, heldByB}, {9, heldByB.but(func(r *record) { r.identity = "c" })}}, 19},
		{"released", []seen{{3, heldByB}, {9, free}}, 9},
		{"released and taken", []seen{{3, heldByB}, {4, free}, {9, renewed}}, 19},

		{"duration cut", []seen{{3, heldByB}, {9, lasting(heldByB, 1)}}, 13},
		{"duration cut and restored", []seen{{3, heldByB}, {8, lasting(heldByB, 1)}, {9, heldByB}}, 13},
		{"duration lengthened", []seen{{3, heldByB}, {9, lasting(heldByB, 20)}}, 23},
		{"duration lengthened and restored", []seen{{3, heldByB}, {8, lasting(heldByB, 20)}, {9, heldByB}}, 23},
		{"duration lengthened after it had run out", []seen{{3, heldByB}, {14, lasting(heldByB, 20)}}, 23},
		{"renewed with a shorter duration", []seen{{3, heldByB}, {9, lasting(renewed, 1)}}, 10},
		{"renewed with a longer duration", []seen{{3, heldByB}, {9, lasting(renewed, 20)}}, 29},
		{"no duration: ours counts", []seen{{3, lasting(heldByB, 0)}}, 18},
		{"no duration, nothing happens", []seen{{3, lasting(heldByB, 0)}, {9, lasting(heldByB, 0)}}, 18},
		{"duration removed: ours counts", []seen{{3, heldByB}, {9, lasting(heldByB, 0)}}, 18},
		{"no duration, then a shorter one", []seen{{3, lasting(heldByB, 0)}, {9, lasting(heldByB, 1)}}, 18},

		{"deleted while held", []seen{{3, heldByB}, {9, gone}}, 13},
		{"deleted when it had run out", []seen{{3, heldByB}, {20, gone}}, 20},
		{"deleted after a renewal", []seen{{3, heldByB}, {9, renewed}, {10, gone}}, 19},
		{"deleted with a duration that was cut", []seen{{3, heldByB}, {8, lasting(heldByB, 1)}, {9, gone}}, 13},
		{"deleted with no duration", []seen{{3, lasting(heldByB, 0)}, {9, gone}}, 18},
		{"deleted after release", []seen{{3, heldByB}, {8, free}, {9, gone}}, 9},
		{"deleted, seen to be gone twice", []seen{{3, heldByB}, {9, gone}, {10, gone}}, 13},
		{"re-created free", []seen{{3, heldByB}, {8, gone}, {9, recreated(free, "u2")}}, 13},
		{"re-created free, deletion not seen", []seen{{3, heldByB}, {9, recreated(free, "u2")}}, 13},
		{"re-created free, then a label edited", []seen{{3, heldByB}, {8, gone}, {9, recreated(free, "u2")},
			{10, recreated(free, "u2").but(func(r *record) { r.version++ })}}, 13},
		{"re-created and held", []seen{{3, heldByB}, {8, gone}, {9, recreated(heldByB, "u2")}}, 19},
		{"re-created and held, deletion not seen", []seen{{3, heldByB}, {9, recreated(heldByB, "u2")}}, 19},
		{"re-created and held for less time than the old holder has",
			[]seen{{3, heldByB}, {9, recreated(lasting(heldByB, 1), "u2")}}, 13},
		{"re-created, held and released",
			[]seen{{3, heldByB}, {8, recreated(heldByB, "u2")}, {9, recreated(free, "u2")}}, 13},
		{"deleted twice: the longer wait counts", []seen{{3, lasting(heldByB, 30)}, {4, gone},
			{5, recreated(lasting(heldByB, 1), "u2")}, {6, gone}}, 33},
		{"deleted twice: the later wait counts", []seen{{3, lasting(heldByB, 1)}, {3, gone},
			{5, recreated(heldByB, "u2")}, {6, gone}}, 15},

		{"our own term", []seen{{3, own}}, 3},
		{"our own term, seen again", []seen{{3, own}, {9, own}}, 9},
		{"our own term deleted", []seen{{3, own}, {9, gone}}, 9},
		{"our own term deleted and re-created free", []seen{{3, own}, {9, recreated(free, "u2")}}, 9},
		{"our own term deleted, while a holder before it may still lead", []seen{{3, heldByB}, {4, gone},
			{5, recreated(own, "u")}, {6, gone}}, 13},
		{"our own term, while a holder before it may still lead",
			[]seen{{3, heldByB}, {4, gone}, {5, recreated(own, "u")}}, 13},
		{"our own term taken over", []seen{{3, own}, {9, heldByB}}, 19},
		{"our identity, but not our term", []seen{{3, own.but(func(r *record) { r.acquired = heldByB.acquired })}}, 13},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			ours := func(t term) bool { return t == own.term() }
			var o observation
			var now time.Time
			for _, look := range tt.seen {
				now = began.Add(time.Duration(look.at) * time.Second)
				o = observe(&o, &look.r, now, fallback, ours)
				if o.record != look.r || !o.known {
					t.Fatalf("knows %+v after seeing %+v", o, look.r)
				}
			}
			got := later(now, o.acquirableAt(ours)).Sub(began)
			if want := time.Duration(tt.want) * time.Second; got != want {
				t.Errorf("acquirable after %v, want %v", got, want)
			}
		})
	}
}

func TestInstant(t *testing.T) {
	base := instant{mono: time.Now(), boot: time.Hour}
	for _, tt := range []struct {
		name       string
		mono, boot time.Duration // how far each clock has run
		want       time.Duration // what is left of 10 s
	}{
		{"neither clock moved", 0, 0, 10 * time.Second},
		{"both agree", 4 * time.Second, 4 * time.Second, 6 * time.Second},
		{"the machine slept", 1 * time.Second, 7 * time.Second, 3 * time.Second},
		{"the machine slept too long", 0, time.Hour, 10*time.Second - time.Hour},
		{"the wall clock in place of the boot clock was set back", 4 * time.Second, -time.Hour, 6 * time.Second},
		{"both at the end", 10 * time.Second, 10 * time.Second, 0},
		{"past the end by the monotonic clock alone", 11 * time.Second, 3 * time.Second, -time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := instant{base.mono.Add(tt.mono), base.boot + tt.boot}
			if got := base.add(10 * time.Second).left(now); got != tt.want {
				t.Errorf("%v left, want %v", got, tt.want)
			}
		})
	}
}

// fixedBackOff returns pause each time, and counts how often it was told to start over.
type fixedBackOff struct {
	pause  time.Duration
	resets int
}

func (b *fixedBackOff) NextBackOff() time.Duration { return b.pause }
func (b *fixedBackOff) Reset()                     { b.resets++ }

func TestDelays(t *testing.T) {
	var (
		leases    = schema.GroupResource{Group: coordinationv1.GroupName, Resource: "leases"}
		forbidden = apierrors.NewForbidden(leases, "x", errors.New("no role"))
		asked     = func(pause time.Duration) error {
			return apierrors.NewGenericServerResponse(http.StatusServiceUnavailable, "GET", leases, "x", "overloaded",
				int(pause.Seconds()), true)
		}
	)
	const ms = time.Millisecond
	for _, tt := range []struct {
		name   string
		policy time.Duration
		err    error
		limit  time.Duration
		want   time.Duration
	}{
		{"what the policy says", 100 * ms, errors.New("x"), time.Second, 100 * ms},
		{"no error", 100 * ms, nil, time.Second, 100 * ms},
		{"not less than the minimum", 1 * ms, nil, time.Second, 10 * ms},
		{"not less than the minimum: 0", 0, nil, time.Second, 10 * ms},
		{"not less than the minimum: negative", -time.Second, nil, time.Second, 10 * ms},
		{"not more than the limit", time.Minute, nil, time.Second, time.Second},
		{"no room left before the limit", 100 * ms, nil, -time.Second, 10 * ms},
		{"Stop", backoff.Stop, nil, time.Second, 650 * ms},
		{"Stop, limited", backoff.Stop, nil, 200 * ms, 200 * ms},
		{"Retry-After", 100 * ms, asked(2 * time.Second), 5 * time.Second, 2 * time.Second},
		{"Retry-After, wrapped", 100 * ms, fmt.Errorf("renew: %w", asked(2*time.Second)), 5 * time.Second,
			2 * time.Second},
		{"Retry-After in the status", 100 * ms, apierrors.NewTooManyRequests("slow down", 2), 5 * time.Second,
			2 * time.Second},
		{"Retry-After shorter than the policy", 3 * time.Second, asked(2 * time.Second), 5 * time.Second,
			3 * time.Second},
		{"Retry-After beyond the limit", 100 * ms, asked(time.Hour), 5 * time.Second, 5 * time.Second},
		{"forbidden", 100 * ms, forbidden, time.Minute, 900 * ms},
		{"forbidden, wrapped", 100 * ms, fmt.Errorf("get: %w", forbidden), time.Minute, 900 * ms},
		{"forbidden, limited", 100 * ms, forbidden, 500 * ms, 500 * ms},
		{
			"forbidden, with Retry-After", 100 * ms,
			apierrors.NewGenericServerResponse(http.StatusForbidden, "GET", leases, "x", "", 5, true), time.Minute,
			5 * time.Second,
		},
		{"invalid", 100 * ms, apierrors.NewInvalid(schema.GroupKind{Kind: "Lease"}, "x", field.ErrorList{}),
			time.Minute, 900 * ms},
		{"method not supported", 100 * ms, apierrors.NewMethodNotSupported(leases, "watch"), time.Minute, 900 * ms},
		{"conflict", 100 * ms, apierrors.NewConflict(leases, "x", errors.New("stale")), time.Minute, 100 * ms},
		{"server error", 100 * ms, apierrors.NewInternalError(errors.New("etcd")), time.Minute, 100 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			policy := &fixedBackOff{pause: tt.policy}
			if got := (&delays{policy: policy}).next(tt.err, tt.limit); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
			if want := tt.policy == backoff.Stop; (policy.resets == 1) != want || policy.resets > 1 {
				t.Errorf("policy started over %d times after %v", policy.resets, tt.policy)
			}
		})
	}
}

func TestDefaultBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDelays(nil, nil)
		within := func(low, high time.Duration) {
			t.Helper()
			pause := d.next(nil, time.Hour)
			if pause < low || pause > high {
				t.Errorf("delay of %v, want %v to %v", pause, low, high)
			}
			time.Sleep(pause)
		}
		const ms = time.Millisecond
		for range 3 {
			within(25*ms, 75*ms)
			within(50*ms, 150*ms)
			within(100*ms, 300*ms)
			within(200*ms, 600*ms)
			for range 10_000 { // however long the outage: back within a second of its end
				within(325*ms, 975*ms)
			}
			d.reset()
		}
	})
}
