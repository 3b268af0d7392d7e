// Package annotation reads and writes the annotations by which this library says on a Lease what its spec has no field
// for. None of them has a part in the decision whether the lease may be acquired: at most they make a candidate wait a
// little longer, or ask a holder to release it.
//
// What an annotation says counts only for the term that it was written in: other programs, which acquire the lease
// without looking at annotations, leave them behind.
package annotation

import (
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const prefix = "leasehold-go.github.io/"

// The annotations.
const (
	Term      = prefix + "term"      // the acquireTime of the term that the holder's annotations belong to
	Address   = prefix + "address"   // the holder's: what it advertises
	Priority  = prefix + "priority"  // the holder's
	Standby   = prefix + "standby"   // "TERM PRIORITY IDENTITY" of the best standby with a priority
	HandOver  = prefix + "handover"  // "TERM IDENTITY" or "TERM": the holder is asked to release the lease
	Successor = prefix + "successor" // "TRANSITIONS IDENTITY": who is next, by the one that released the lease
)

// all are those that a release removes.
var all = [...]string{Term, Address, Priority, Standby, HandOver, Successor}

// MaxLength is that of an address or an identity, in bytes. A longer one is not read.
const MaxLength = 1024

// Notes are what the annotations of a Lease say.
type Notes struct {
	present uint8 // those of all that the Lease has, also of earlier terms, as bits

	// Of a lease that is held, and of that term:
	Address     string // what the holder advertises
	Priority    int    // the holder's
	Prioritized bool   // it has one
	Standby     Candidate
	Asked       bool   // somebody asks the holder to release the lease
	AskedTo     string // to this candidate; "" for any

	// Of a lease that is free: who is next; "" for anybody.
	Successor string
}

// A Candidate stands by with a priority. The zero Candidate is nobody.
type Candidate struct {
	Identity string
	Priority int
}

// Read returns what the annotations of lease say.
func Read(lease *coordinationv1.Lease) (n Notes) {
	for i, key := range all {
		if _, ok := lease.Annotations[key]; ok {
			n.present |= 1 << i
		}
	}
	if n.present == 0 {
		return n
	}
	acquired, holder := lease.Spec.AcquireTime, lease.Spec.HolderIdentity
	switch {
	case holder == nil || *holder == "":
		n.readFree(lease)
	case acquired != nil:
		n.readHeld(lease.Annotations, FormatTerm(acquired.Time))
	}
	return n
}

// readHeld reads those of a lease that is held since term.
func (n *Notes) readHeld(annotations map[string]string, term string) {
	if annotations[Term] == term {
		if address := annotations[Address]; len(address) <= MaxLength {
			n.Address = address
		}
		var err error
		n.Priority, err = strconv.Atoi(annotations[Priority])
		n.Prioritized = err == nil
	}
	if of, standby, _ := strings.Cut(annotations[Standby], " "); of == term {
		text, identity, _ := strings.Cut(standby, " ")
		if p, err := strconv.Atoi(text); err == nil && identity != "" && len(identity) <= MaxLength {
			n.Standby = Candidate{identity, p}
		}
	}
	if of, to, _ := strings.Cut(annotations[HandOver], " "); of == term && len(to) <= MaxLength {
		n.Asked, n.AskedTo = true, to
	}
}

// readFree reads those of a lease that is free.
func (n *Notes) readFree(lease *coordinationv1.Lease) {
	after, identity, _ := strings.Cut(lease.Annotations[Successor], " ")
	if t := lease.Spec.LeaseTransitions; t != nil && after == strconv.Itoa(int(*t)) && len(identity) <= MaxLength {
		n.Successor = identity
	}
}

// Removal returns the change that removes the annotations from the Lease; nil if it has none.
func (n Notes) Removal() map[string]*string {
	var change map[string]*string
	for i, key := range all {
		if n.present&(1<<i) != 0 {
			if change == nil {
				change = map[string]*string{}
			}
			change[key] = nil
		}
	}
	return change
}

// FormatTerm returns the time at which a term began as the annotations have it.
func FormatTerm(acquired time.Time) string { return acquired.UTC().Format(metav1.RFC3339Micro) }

// FormatStandby returns the value by which c stands by in the term that began at acquired.
func FormatStandby(acquired time.Time, c Candidate) string {
	return FormatTerm(acquired) + " " + strconv.Itoa(c.Priority) + " " + c.Identity
}

// FormatHandOver returns the value by which the holder of the term that began at acquired is asked to release the
// lease, to the candidate identity; "" for any.
func FormatHandOver(acquired time.Time, identity string) string {
	return strings.TrimSuffix(FormatTerm(acquired)+" "+identity, " ")
}

// FormatSuccessor returns the value that names the next holder of a lease that was released with that many transitions.
func FormatSuccessor(transitions int32, identity string) string {
	return strconv.Itoa(int(transitions)) + " " + identity
}
