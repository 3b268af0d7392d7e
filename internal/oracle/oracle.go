// Package oracle judges who may lead, and who may work on the keys of a group.
//
// An Oracle sees each change of one Lease as a leasetest server commits it, and each session as it begins, and reports
// two leaders, a lease taken too early, and a token that does not increase. It knows only what the server has stored,
// not what a candidate believes. Keys sees the work on the keys of a group as it begins and ends.
//
// The package does not import leasehold, so that leasehold's own tests can use it.
package oracle

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A Key tells one term of leadership from another.
type Key struct {
	UID      types.UID
	Identity string
	Acquired int64 // microseconds
}

// KeyOf returns the term that a Lease shows, and whether the Lease is held.
func KeyOf(l *coordinationv1.Lease) (k Key, held bool) {
	if l == nil || l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" {
		return Key{}, false
	}
	return Key{l.UID, *l.Spec.HolderIdentity, Micros(l.Spec.AcquireTime)}, true
}

// Micros returns the microseconds of t since 1970, 0 for nil.
func Micros(t *metav1.MicroTime) int64 {
	if t == nil {
		return 0
	}
	return t.UnixMicro()
}

// A Term is one term of leadership on the server.
type Term struct {
	Key
	Version  uint64 // of the write that began it: the fencing token of its session
	Client   string // that made this write; "" if an operator did
	Claimant any    // as Rules.Claimant says
	Ended    bool   // a later write ended it
	Session  bool   // a session began under it
}

// A Session is what the oracle asks of a leasehold.Session. A client-go elector that leads is one too.
type Session interface {
	Context() context.Context
	Err() error
	ValidFor() time.Duration
	FencingToken() uint64
}

// Rules says what an oracle is to know of the candidates. The zero value knows nothing of them.
type Rules struct {
	// Fail reports a violation. It is called with the oracle locked.
	Fail func(format string, args ...any)

	// Over are the errors of sessions that may not use the lease any more, not even to wind down.
	Over []error

	// Candidate reports whether a client is a candidate whose writes are judged, and the rate of its clock. If it is
	// nil no write is judged.
	Candidate func(client string) (rate float64, ok bool)

	// Claimant returns who began the term: a value to compare. One claimant may take the lease from itself. If it is
	// nil the claimant is the client. An error is a violation.
	Claimant func(client string, k Key) (any, error)

	// MayTake reports whether next may take the lease from old at once. Nil means never.
	MayTake func(old, next *Term) bool

	// Excuse returns why next may lead beside old, which began before and whose session is live; "" if it may not. If
	// it is nil, no overlap is excused.
	Excuse func(old, next *Term) string

	// Late reports whether the session of a term may begin after that of a later term. Nil means never.
	Late func(*Term) bool

	// Trust returns how long the holder may trust the lease: its renew deadline after it sent the last write that took
	// effect, by its own clock. If it is nil, ValidFor is believed.
	Trust func(*Term) time.Duration

	// Excused is told each overlap that Excuse allowed. It may be nil.
	Excused func(old, next *Term, why string)
}

// An Oracle judges one Lease. Its methods may be called with the server locked, never the other way round.
type Oracle struct {
	rules           Rules
	namespace, name string

	mu       sync.Mutex // protects what follows
	terms    map[Key]*Term
	versions map[uint64]*Term // what the Lease showed after each of its changes, nil for nobody
	latest   *Term            // the last of them
	active   time.Time        // when its holder last did anything
	wait     time.Duration    // for how long others have to leave it alone since
	turned   time.Time        // when its holder last changed
	live     []*session       // those not seen to have ended
	newest   *session         // with the greatest token
	looks    int
}

type session struct {
	Session
	label   string
	term    *Term        // in which it began
	elector func() *Term // the present term of a client-go elector; nil for others
}

// present returns the term in which x leads now.
func (x *session) present() *Term {
	if x.elector != nil {
		return x.elector()
	}
	return x.term
}

// A Change is what a commit did to the terms of the Lease.
type Change struct {
	leasetest.Change
	Old, New *Term // that the Lease showed before and after; nil for nobody's
	Began    bool  // New began with this change
}

// New returns an oracle for the Lease of that name; Committed has to be told of all changes on the server.
func New(namespace, name string, rules Rules) *Oracle {
	return &Oracle{rules: rules, namespace: namespace, name: name, terms: map[Key]*Term{}, versions: map[uint64]*Term{}}
}

// Committed judges a change of the Lease, as leasetest.Server.OnCommit reports it.
func (o *Oracle) Committed(c leasetest.Change) Change {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.New.Namespace != o.namespace || c.New.Name != o.name {
		return Change{Change: c}
	}
	version, _ := strconv.ParseUint(c.New.ResourceVersion, 10, 64)
	before, wasHeld := KeyOf(c.Old)
	after, held := KeyOf(c.New)
	if c.Type == watch.Deleted {
		after, held = Key{}, false
	}
	change := Change{Change: c}
	if wasHeld {
		change.Old = o.terms[before]
	}
	if held {
		change.New, change.Began = o.begun(c, after, version)
	}
	o.judge(change)
	if before != after {
		o.turned = time.Now()
		if change.Old != nil {
			change.Old.Ended = true
		}
	}
	o.versions[version], o.latest = change.New, change.New
	o.observe(c, held)
	return change
}

// begun returns the term that a change shows, and whether it began with this change.
func (o *Oracle) begun(c leasetest.Change, k Key, version uint64) (t *Term, began bool) {
	if t := o.terms[k]; t != nil {
		return t, false
	}
	t = &Term{Key: k, Version: version, Client: c.Client, Claimant: c.Client}
	if o.rules.Claimant != nil {
		var err error
		if t.Claimant, err = o.rules.Claimant(c.Client, k); err != nil {
			o.rules.Fail("%v", err)
		}
	}
	o.terms[k] = t
	return t, true
}

// judge judges the change by a candidate: it may free, and write into the spec of, its own term only, and take
// another's lease when its holder has done nothing for as long as was recorded, by the clock of the taker.
func (o *Oracle) judge(c Change) {
	if o.rules.Candidate == nil {
		return
	}
	rate, ok := o.rules.Candidate(c.Client)
	if !ok {
		return
	}
	old, next := c.Old, c.New
	switch {
	case next != nil && !c.Began:
		if next.Client != c.Client && !reflect.DeepEqual(c.Change.Old.Spec, c.Change.New.Spec) {
			o.rules.Fail("%s wrote into the term of %q", c.Client, next.Identity)
		}
	case old == nil:
	case next == nil:
		if old.Client != c.Client {
			o.rules.Fail("%s freed the lease of %q", c.Client, old.Identity)
		}
	case old.Claimant == next.Claimant:
	case o.rules.MayTake != nil && o.rules.MayTake(old, next):
	default:
		waited := time.Duration(float64(time.Since(o.active)) * rate)
		if waited < o.wait-time.Microsecond {
			o.rules.Fail("%s took the lease of %q %v after it was renewed for %v", c.Client, old.Identity,
				waited, o.wait)
		}
	}
}

// observe records since when, and for how long, others have to leave the lease alone.
func (o *Oracle) observe(c leasetest.Change, held bool) {
	if c.Old != nil && c.Type != watch.Deleted && c.Old.Spec.RenewTime.Equal(c.New.Spec.RenewTime) &&
		c.Old.Spec.AcquireTime.Equal(c.New.Spec.AcquireTime) &&
		same(c.Old.Spec.HolderIdentity, c.New.Spec.HolderIdentity) {
		return
	}
	o.active, o.wait = time.Now(), 0
	if held && c.New.Spec.LeaseDurationSeconds != nil {
		o.wait = time.Duration(*c.New.Spec.LeaseDurationSeconds) * time.Second
	}
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// Begin judges a session that begins, and returns its term. The label names it in reports.
func (o *Oracle) Begin(label string, s Session) *Term {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := o.versions[s.FencingToken()]
	switch {
	case t == nil || t.Version != s.FencingToken():
		o.rules.Fail("%s leads with token %d, which is not the version of a write that acquired the lease",
			label, s.FencingToken())
		t = &Term{Version: s.FencingToken()}
	case t.Session:
		o.rules.Fail("%s leads with token %d, as another session did", label, s.FencingToken())
	case s.Err() != nil:
		o.rules.Fail("%s: a session begins that has ended: %v", label, s.Err())
	}
	o.begin(&session{s, label, t, nil})
	return t
}

// BeginElector judges a client-go elector that begins to lead. It has no token, and it may write on into a Lease that
// was deleted and created, so that its term is the one that its last write showed. It leads on after ValidFor has run
// out, which is client-go's fault and not judged.
func (o *Oracle) BeginElector(label string, s Session, term func() *Term) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.begin(&session{s, label, term(), term})
}

func (o *Oracle) begin(x *session) {
	o.look()
	for _, other := range o.live {
		o.overlap(other, x)
	}
	x.term.Session = true
	if n := o.newest; n == nil || n.term.Version < x.term.Version {
		o.newest = x
	} else if x.elector == nil && (o.rules.Late == nil || !o.rules.Late(x.term)) {
		o.rules.Fail("%s: token %d after %d", x.label, x.term.Version, n.term.Version)
	}
	o.live = append(o.live, x)
}

// overlap judges that x began while other is live.
func (o *Oracle) overlap(other, x *session) {
	old, next := other.present(), x.present()
	if next.Version < old.Version {
		old, next = next, old // the reply to its claim came after others took the lease
	}
	if o.rules.Excuse != nil {
		if why := o.rules.Excuse(old, next); why != "" {
			if o.rules.Excused != nil {
				o.rules.Excused(old, next, why)
			}
			return
		}
	}
	o.rules.Fail("two sessions live: %s, for %v more, and %s", other.label, other.ValidFor(), x.label)
}

// Look judges what the sessions report about themselves.
func (o *Oracle) Look() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.look()
}

func (o *Oracle) look() {
	o.looks++
	o.live = slices.DeleteFunc(o.live, func(x *session) bool { return !o.leads(x) })
}

// leads reports whether x is live: its context is, or it may still use the lease to wind down. Each of the methods has
// to be right on its own, so that another one is asked first each time.
func (o *Oracle) leads(x *session) bool {
	if x.elector != nil {
		return x.Err() == nil && x.ValidFor() > 0
	}
	var ctxErr, err error
	var valid time.Duration
	ask := []func(){func() { ctxErr = x.Context().Err() }, func() { err = x.Err() }, func() { valid = x.ValidFor() }}
	for i := range ask {
		ask[(o.looks+i)%len(ask)]()
	}
	over := slices.ContainsFunc(o.rules.Over, func(target error) bool { return errors.Is(err, target) })
	if (err != nil) != (ctxErr != nil) || err == nil && valid <= 0 || over && valid > 0 {
		o.rules.Fail("%s: question %d first: Err() = %v, ValidFor() = %v, Context().Err() = %v",
			x.label, o.looks%len(ask), err, valid, ctxErr)
	}
	if o.rules.Trust != nil && valid > 0 {
		if trust := o.rules.Trust(x.term); valid > trust {
			o.rules.Fail("%s: valid for %v, but its last write that took effect supports %v", x.label, valid, trust)
		}
	}
	return err == nil || valid > 0
}

// Leader returns the label of the session that is live, "" if there is none.
func (o *Oracle) Leader() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.look()
	for _, x := range o.live {
		if x.Err() == nil {
			return x.label
		}
	}
	return ""
}

// Newest returns the term of the session with the greatest token, nil before there is one.
func (o *Oracle) Newest() *Term {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.newest == nil {
		return nil
	}
	return o.newest.term
}

// Latest returns the term that the Lease shows now, nil for nobody's.
func (o *Oracle) Latest() *Term {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.latest
}

// At returns the term that the Lease showed at a version, nil for nobody's.
func (o *Oracle) At(version uint64) *Term {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.versions[version]
}

// Known reports whether the Lease showed version, held or not.
func (o *Oracle) Known(version uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.versions[version]
	return ok
}

// Term returns the term with a key, nil if there was none.
func (o *Oracle) Term(k Key) *Term {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.terms[k]
}

// Held reports whether a term with this identity and acquireTime was ever on the server, whatever its Lease's uid.
func (o *Oracle) Held(identity string, acquired time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for k := range o.terms {
		if k.Identity == identity && k.Acquired == acquired.UnixMicro() {
			return true
		}
	}
	return false
}

// Turned returns when the holder last changed.
func (o *Oracle) Turned() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.turned
}
