package leasehold

import (
	"cmp"
	"fmt"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A record is what a Lease said at one resourceVersion. Its times are in UTC and without a
// monotonic reading, so that records and terms can be compared with ==.
type record struct {
	uid         types.UID // "" when there was no such Lease
	version     uint64    // the resourceVersion, comparable since Kubernetes 1.35 (KEP-5504)
	identity    string    // "" when nobody held it
	duration    time.Duration
	acquired    time.Time
	renewed     time.Time
	transitions int32
}

// readRecord returns what lease says. Content that makes no sense is read as missing, except a
// holder: whoever is named holds the lease. The error is about metadata that no API server sends.
func readRecord(lease *coordinationv1.Lease) (record, error) {
	version, err := strconv.ParseUint(lease.ResourceVersion, 10, 64)
	if err != nil || version == 0 {
		return record{}, fmt.Errorf("the server sent a Lease with resourceVersion %q, want a positive number", lease.ResourceVersion)
	}
	if lease.UID == "" {
		return record{}, fmt.Errorf("the server sent a Lease without uid")
	}
	r := record{uid: lease.UID, version: version}
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
	r.acquired = readTime(spec.AcquireTime)
	r.renewed = readTime(spec.RenewTime)
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

// term returns whose turn at holding the lease r shows.
func (r record) term() term { return term{r.uid, r.identity, r.acquired} }

// state returns the part of r by which a candidate tells that its holder is alive.
func (r record) state() record {
	r.version, r.duration = 0, 0
	return r
}

// A term is one turn of one holder. An identity alone does not tell: a process that restarts, or a
// second one by mistake, may have the same.
type term struct {
	uid      types.UID
	identity string
	acquired time.Time
}

// is tells whether t is the term that was claimed, whose uid is not known yet if it was to create
// the Lease.
func (t term) is(claimed term) bool {
	if claimed.uid == "" {
		claimed.uid = t.uid
	}
	return t == claimed
}

// judge returns nil if r still shows term t, whose holder wrote duration, else why t is over.
func (t term) judge(r record, duration time.Duration) error {
	switch {
	case !r.exists() || r.uid != t.uid:
		return lostBy(deleted, "the Lease was deleted")
	case !r.held():
		return lostBy(emptied, "its holder was removed")
	case r.identity != t.identity:
		return lostBy(taken, "now held by %q", r.identity)
	case r.acquired != t.acquired:
		return lostBy(taken, "now held by another process that calls itself %q too", r.identity)
	case r.duration < duration:
		return lostBy(edited, "its duration was cut from %v to %v", duration, r.duration)
	}
	return nil
}

// A loss is why a lease was lost. It matches ErrLost.
type loss struct {
	reason string // one of the following, for those who count
	text   string
}

const (
	expired = "expired" // not renewed in time
	slept   = "slept"   // not renewed in time because the machine slept
	taken   = "taken"   // somebody else holds the lease
	deleted = "deleted" // the Lease is gone
	emptied = "emptied" // somebody removed the holder
	edited  = "edited"  // somebody changed what the holder relies on
)

func lostBy(reason, format string, args ...any) error {
	return &loss{reason, fmt.Sprintf(format, args...)}
}

func (l *loss) Error() string { return ErrLost.Error() + ": " + l.text }
func (l *loss) Unwrap() error { return ErrLost }

// A sighting is what a candidate knows of a lease: the newest record, and for how long, on its own
// monotonic clock, it has seen the holder do nothing.
type sighting struct {
	record
	known bool          // false until the first read
	since time.Time     // when the holder's state was first seen; never before it was written
	wait  time.Duration // how long from since the holder may count on it; 0 when there is none

	// ghost is until when a holder whose Lease vanished may still lead, because it may not have
	// heard: its duration is waited out as if its Lease were still there.
	ghost time.Time
	// unseen is the same for a holder that nobody saw: of a Lease that was found gone by a read, whose
	// end the watch has not told yet.
	unseen    time.Time
	unseenUID types.UID
}

// vacant returns from when on nobody leads any more whose Lease vanished.
func (s sighting) vacant() time.Time { return later(s.ghost, s.unseen) }

// A viewer is the one who looks: the duration it grants a holder that recorded none, and the terms
// it wrote itself, in which nobody works any more when it looks for a lease to take.
type viewer struct {
	fallback time.Duration
	mine     func(term) bool
}

// see returns the sighting after r was read at now.
func (v viewer) see(s sighting, r record, now time.Time) sighting {
	n := sighting{record: r, known: true, since: now, ghost: s.ghost, unseen: s.unseen, unseenUID: s.unseenUID}
	if r.held() {
		n.wait = cmp.Or(r.duration, v.fallback)
	}
	switch {
	case !s.known:
	case s.uid == r.uid && s.state() == r.state():
		// The holder did nothing. Somebody else's edit that shortens the duration does not shorten
		// the wait: the holder relies on what it wrote.
		n.since, n.wait = s.since, max(s.wait, n.wait)
	case s.uid != r.uid && s.held() && !v.mine(s.term()):
		n.ghost = later(s.ghost, s.since.Add(s.wait))
	}
	return n
}

// takeable returns from when on, on the monotonic clock, the lease in s may be taken. It is a
// candidate's question: nothing that the viewer wrote needs to be waited for.
func (v viewer) takeable(s sighting) time.Time {
	if v.mine(s.term()) {
		return s.vacant()
	}
	return later(s.vacant(), s.since.Add(s.wait))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
