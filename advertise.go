package leasehold

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/leasehold-go/leasehold/internal/annotation"
)

// WithAdvertise publishes address, where clients reach this process, for as long as it holds the lease: Holder.Address
// shows it. It is any text of 1 to 1,024 bytes, as 10.0.0.7:8080 or a URL. The write that acquires the lease publishes
// it, and the release removes it.
//
// It is a hint. A holder that was stopped or cut off stays advertised until its lease expires, and anybody who may
// write to the Lease can change the address.
//
// Spread and Join refuse it: a group shows identities, not addresses.
func WithAdvertise(address string) Option {
	return func(o *options) {
		o.advertise = address
		if n := len(address); n == 0 || n > annotation.MaxLength || !utf8.ValidString(address) {
			o.fault("WithAdvertise: want 1 to %d bytes of UTF-8, not %q", annotation.MaxLength, address)
		}
	}
}

// annotations returns those of the Lease as we hold it since stamp; nil for none. An annotation that we do not use is
// written empty: beside our term, the value of an earlier holder would count as ours.
func (l *leaseClient) annotations(stamp time.Time) map[string]string {
	if l.advertise == "" && l.priority == nil {
		return nil
	}
	priority := ""
	if l.priority != nil {
		priority = strconv.Itoa(*l.priority)
	}
	return map[string]string{
		annotation.Term:     annotation.FormatTerm(stamp),
		annotation.Address:  l.advertise,
		annotation.Priority: priority,
	}
}
