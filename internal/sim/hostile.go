package sim

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/annotation"
)

// planHostile plans annotations by hand, in some worlds: about candidates that exist and that do not, about this term
// and others, and rubbish; and once in a while a strategy, for some time.
func (w *World) planHostile(r rng) {
	if !r.chance(0.35) {
		return
	}
	operator := func(at time.Duration, what string, do func(*coordinationv1.Lease)) {
		lease := w.aLease(r)
		w.plan(at, "operator", what, func() { w.srv.Edit(namespace, lease, do) })
	}
	for range 1 + r.IntN(6) {
		at, attack := r.uniform(0, w.faultsEnd-1), r.IntN(len(attacks))
		who := []string{"", "nobody", strings.Repeat("x", 2*annotation.MaxLength),
			w.candidates[r.IntN(len(w.candidates))].identity}[r.IntN(4)]
		w.forges = w.forges || attacks[attack].forges
		for range 1 + r.IntN(40) { // some do it again and again
			operator(at, fmt.Sprintf("%s, about %.10q", attacks[attack].what, who), func(l *coordinationv1.Lease) {
				if l.Annotations == nil {
					l.Annotations = map[string]string{}
				}
				attacks[attack].do(l, who)
			})
			at = min(w.faultsEnd-1, at+r.logUniform(10*time.Millisecond, 3*time.Second))
		}
	}
	for range r.IntN(3) {
		at := r.uniform(0, w.faultsEnd-1)
		until := min(w.faultsEnd-1, at+r.logUniform(100*time.Millisecond, 3*w.longestDuration()))
		who := []string{"", "nobody", w.candidates[r.IntN(len(w.candidates))].identity}[r.IntN(3)]
		lease := w.aLease(r)
		w.plan(at, "operator", fmt.Sprintf("sets a strategy, which prefers %q", who), func() {
			w.srv.Edit(namespace, lease, func(l *coordinationv1.Lease) {
				l.Spec.Strategy, l.Spec.PreferredHolder = new(coordinationv1.OldestEmulationVersion), &who
			})
		})
		w.plan(until, "operator", "removes the strategy", func() {
			w.srv.Edit(namespace, lease, func(l *coordinationv1.Lease) {
				l.Spec.Strategy, l.Spec.PreferredHolder = nil, nil
			})
		})
	}
}

// An attack writes annotations that candidates read.
type attack struct {
	what   string
	forges bool // what the holder says of itself
	do     func(l *coordinationv1.Lease, who string)
}

var attacks = []attack{
	{what: "asks to hand over", do: func(l *coordinationv1.Lease, who string) {
		l.Annotations[annotation.HandOver] = annotation.FormatHandOver(began(l), who)
	}},
	{what: "registers a standby of the highest priority", do: func(l *coordinationv1.Lease, who string) {
		best := annotation.Candidate{Identity: who, Priority: math.MaxInt}
		l.Annotations[annotation.Standby] = annotation.FormatStandby(began(l), best)
	}},
	{what: "registers a standby of the lowest priority", do: func(l *coordinationv1.Lease, who string) {
		worst := annotation.Candidate{Identity: who, Priority: math.MinInt}
		l.Annotations[annotation.Standby] = annotation.FormatStandby(began(l), worst)
	}},
	{what: "names a successor", do: func(l *coordinationv1.Lease, who string) {
		l.Annotations[annotation.Successor] = annotation.FormatSuccessor(transitions(l), who)
	}},
	{what: "writes what was true in other terms", do: func(l *coordinationv1.Lease, who string) {
		other := began(l).Add(time.Duration(1-2*(transitions(l)%2)) * time.Microsecond)
		l.Annotations[annotation.HandOver] = annotation.FormatHandOver(other, who)
		l.Annotations[annotation.Standby] = annotation.FormatStandby(other,
			annotation.Candidate{Identity: who, Priority: math.MaxInt})
		l.Annotations[annotation.Successor] = annotation.FormatSuccessor(transitions(l)-1, who)
	}},
	{what: "writes rubbish", do: func(l *coordinationv1.Lease, who string) {
		term := annotation.FormatTerm(began(l))
		for _, key := range []string{annotation.Standby, annotation.HandOver, annotation.Successor} {
			l.Annotations[key] = []string{
				"", " ", "\x00", term + "x " + who, term + " 1e9 " + who, term + "  1 " + who, who, "-0 " + who,
			}[(int(transitions(l))+len(key))%8]
		}
	}},
	{what: "removes all annotations", do: func(l *coordinationv1.Lease, _ string) { l.Annotations = nil },
		forges: true},
	{what: "speaks for the holder", do: func(l *coordinationv1.Lease, who string) {
		l.Annotations[annotation.Term] = annotation.FormatTerm(began(l))
		l.Annotations[annotation.Address] = who
		l.Annotations[annotation.Priority] = strconv.Itoa(math.MaxInt)
	}, forges: true},
}

// began returns when the holder of l says that its term began, the zero time if it does not.
func began(l *coordinationv1.Lease) time.Time {
	if l.Spec.AcquireTime == nil {
		return time.Time{}
	}
	return l.Spec.AcquireTime.Time
}

func transitions(l *coordinationv1.Lease) int32 {
	if l.Spec.LeaseTransitions == nil {
		return 0
	}
	return *l.Spec.LeaseTransitions
}

// asks reports whether l, held by a campaign of k's candidate, asks that to make way: somebody by name of this term, a
// preferred holder or, of one that yields, a standby of higher priority.
func (k *campaign) asks(l *coordinationv1.Lease) bool {
	term := began(l).UTC().Format("2006-01-02T15:04:05.000000Z")
	if p := l.Spec.PreferredHolder; p != nil && *p != "" && *p != k.identity {
		return true
	}
	if asked, ok := strings.CutPrefix(l.Annotations[annotation.HandOver], term); ok && asked != " "+k.identity {
		return true
	}
	of, standby, _ := strings.Cut(l.Annotations[annotation.Standby], " ")
	number, identity, _ := strings.Cut(standby, " ")
	priority, err := strconv.Atoi(number)
	own := 0
	if k.priority != nil {
		own = *k.priority
	}
	return of == term && err == nil && identity != k.identity && k.yields && priority > own
}

// checkYield checks that a session that ended to make way was asked to.
func (c *checker) checkYield(x *session) {
	if errors.Is(x.Err(), leasehold.ErrYielded) && !x.term.asked {
		c.violationLocked("%s: %v, which nobody asked for", x.campaign.label, x.Err())
	}
}
