package leasehold

import (
	"cmp"
	"fmt"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/leasehold-go/leasehold/internal/annotation"
)

// A record is what a Lease said at one resourceVersion. Its times are in UTC and without a
// monotonic reading, so that records and terms can be compared with ==.
type record struct {
	uid         types.UID // "" when the Lease did not exist
	version     uint64    // the resourceVersion, comparable since Kubernetes 1.35 (KEP-5504)
	identity    string    // "" when nobody held it
	duration    time.Duration
	acquired    time.Time
	renewed     time.Time
	transitions int32
	finalizers  bool              // a deletion does not remove the Lease at once
	deleting    bool              // it was deleted, and finalizers keep it
	annotated   *annotation.Notes // what the annotations say; nil where they say nothing
	strategy    bool              // coordinated leader election decides who holds it
	preferred   string            // by that, who is to hold it next
}

// readRecord returns what lease says. Content that makes no sense is read as missing, except the
// holder: any name there holds the lease. The error is about metadata that no API server sends.
func readRecord(lease *coordinationv1.Lease) (record, error) {
	version, err := strconv.ParseUint(lease.ResourceVersion, 10, 64)
	if err != nil || version == 0 {
		hint := ""
		if lease.ResourceVersion == "" {
			hint = "; client-go's fake clientset keeps none, package leasetest does"
		}
		return record{}, fmt.Errorf("the server sent a Lease with resourceVersion %q, want a positive number%s",
			lease.ResourceVersion, hint)
	}
	if lease.UID == "" {
		return record{}, fmt.Errorf("the server sent a Lease without uid")
	}
	r := record{
		uid:        lease.UID,
		version:    version,
		acquired:   readTime(lease.Spec.AcquireTime),
		renewed:    readTime(lease.Spec.RenewTime),
		finalizers: len(lease.Finalizers) > 0,
		deleting:   lease.DeletionTimestamp != nil,
	}
	spec := lease.Spec
	if spec.HolderIdentity != nil {
		r.identity = *spec.HolderIdentity
	}
	if spec.LeaseDurationSeconds != nil {
		r.duration = max(0, time.Duration(*spec.LeaseDurationSeconds)*time.Second)
	}
	if spec.LeaseTransitions != nil {
		r.transitions = max(0, *spec.LeaseTransitions)
	}
	if notes := annotation.Read(lease); notes != (annotation.Notes{}) {
		r.annotated = new(notes) // &notes would allocate for Leases without annotations too
	}
	r.strategy = spec.Strategy != nil && *spec.Strategy != ""
	if spec.PreferredHolder != nil {
		r.preferred = *spec.PreferredHolder
	}
	return r, nil
}

func readTime(t *metav1.MicroTime) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC().Round(0)
}

func (r record) exists() bool { return r.uid != "" }
func (r record) held() bool   { return r.identity != "" }

// resourceVersion returns the version as the API server writes it.
func (r record) resourceVersion() string { return strconv.FormatUint(r.version, 10) }

// A state is one version of one Lease.
type state struct {
	uid     types.UID
	version uint64
}

// state returns the state that r shows.
func (r record) state() state { return state{r.uid, r.version} }

// term returns the term that r shows.
func (r record) term() term { return term{r.uid, r.identity, r.acquired} }

// notes returns what the annotations say.
func (r *record) notes() annotation.Notes {
	if r.annotated == nil {
		return annotation.Notes{}
	}
	return *r.annotated
}

// activity returns the part of r that changes whenever its holder writes.
func (r record) activity() record {
	r.version, r.duration, r.finalizers, r.deleting = 0, 0, false, false
	r.annotated, r.strategy, r.preferred = nil, false, ""
	return r
}

// A term is the time during which one holder has a lease without a break. The identity alone does not name it: a
// process that restarts, or a second one by mistake, may have the same.
type term struct {
	uid      types.UID
	identity string
	acquired time.Time
}

// is reports whether t is the term that was claimed. The uid of a claim that creates the Lease is not known yet.
func (t term) is(claimed term) bool {
	if claimed.uid == "" {
		claimed.uid = t.uid
	}
	return t == claimed
}

// over returns nil if r still shows term t, whose holder wrote duration, else why t is over.
func (t term) over(r *record, duration time.Duration) error {
	switch {
	case !r.exists() || r.uid != t.uid:
		return lostBecause(deleted, "the Lease was deleted")
	case !r.held():
		return lostBecause(emptied, "its holder was removed")
	case r.identity != t.identity:
		return lostBecause(taken, "now held by %q", r.identity)
	case r.acquired != t.acquired:
		return lostBecause(taken, "now held by another process with the same identity %q", r.identity)
	case r.duration < duration:
		return lostBecause(edited, "its duration was cut from %v to %v", duration, r.duration)
	}
	return nil
}

// An observation is what a candidate knows of a lease: the newest record, and for how long, on its own
// monotonic clock, it has seen the holder do nothing.
type observation struct {
	record
	known bool          // false until the first read
	since time.Time     // when the holder's last activity was first seen; never before it was written
	wait  time.Duration // how long from since the holder may count on the lease; 0 when there is none

	// deletedHolderUntil is until when a holder whose Lease was deleted may still lead, because it may not have
	// heard: its duration is waited out as if its Lease still existed.
	deletedHolderUntil time.Time
	// missedHolderUntil is until when a holder that was never seen may still lead: a read did not find the Lease
	// any more, and the watch has not brought its deletion yet, which shows who held it at the end.
	missedHolderUntil time.Time
	missedHolderUID   types.UID // of the Lease that it held
}

// observe returns what is known after r was read at now, when previous was known before. A holder that recorded
// no duration has fallback. Our own earlier term need not be waited out: its work ended before we campaign again.
func observe(
	previous *observation, r *record, now time.Time, fallback time.Duration, ours func(term) bool,
) observation {
	o := *previous
	o.record, o.known, o.since, o.wait = *r, true, now, 0
	if r.uid == previous.uid && r.identity == previous.identity {
		// Equal strings are kept once: the session has those that its first record brought.
		o.uid, o.identity = previous.uid, previous.identity
	}
	if r.held() {
		o.wait = cmp.Or(r.duration, fallback)
	}
	switch {
	case !previous.known:
	case previous.uid == r.uid && previous.activity() == r.activity():
		// The holder did nothing. Another's edit that shortens the duration does not shorten the wait: the
		// holder relies on what it wrote.
		o.since, o.wait = previous.since, max(previous.wait, o.wait)
	case previous.uid != r.uid && previous.held() && !ours(previous.term()):
		o.deletedHolderUntil = later(previous.deletedHolderUntil, previous.since.Add(previous.wait))
	}
	return o
}

// expiresAt returns when the holder of the record may not count on the lease any more unless it renews.
func (o observation) expiresAt() time.Time { return o.since.Add(o.wait) }

// clearAt returns from when on nobody leads any more whose Lease was deleted.
func (o observation) clearAt() time.Time { return later(o.deletedHolderUntil, o.missedHolderUntil) }

// acquirableAt returns from when on, on the monotonic clock, the lease may be acquired. A term of our own need
// not be waited out.
func (o observation) acquirableAt(ours func(term) bool) time.Time {
	if ours(o.term()) {
		return o.clearAt()
	}
	return later(o.clearAt(), o.expiresAt())
}
