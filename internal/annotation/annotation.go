// Package annotation reads and writes the annotations by which this library says on a Lease what its spec has no field
// for. None of them has a part in the decision whether the lease may be acquired.
//
// What an annotation says counts only for the term that it was written in: other programs, which acquire the lease
// without looking at annotations, leave them behind.
package annotation

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const prefix = "leasehold-go.github.io/"

// The annotations.
const (
	Term    = prefix + "term"    // the acquireTime of the term that the holder's annotations belong to
	Address = prefix + "address" // what the holder advertises
)

// all are those that a release removes.
var all = [...]string{Term, Address}

// MaxLength is that of an address, in bytes. A longer one is not read.
const MaxLength = 1024

// Notes are what the annotations of a Lease say.
type Notes struct {
	present uint8  // those of all that the Lease has, also of earlier terms, as bits
	Address string // what the holder advertises
}

// Read returns what the annotations of lease say.
func Read(lease *coordinationv1.Lease) (n Notes) {
	for i, key := range all {
		if _, ok := lease.Annotations[key]; ok {
			n.present |= 1 << i
		}
	}
	acquired := lease.Spec.AcquireTime
	if n.present == 0 || acquired == nil || lease.Annotations[Term] != FormatTerm(acquired.Time) {
		return n
	}
	if holder := lease.Spec.HolderIdentity; holder == nil || *holder == "" {
		return n
	}
	if address := lease.Annotations[Address]; len(address) <= MaxLength {
		n.Address = address
	}
	return n
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
