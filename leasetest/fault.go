package leasetest

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
)

// Request is one call of a client.
type Request struct {
	Client    string
	Verb      string // get, list, watch, create, update, patch, apply, delete, deletecollection
	Namespace string
	Name      string                // for list and watch the name in the field selector; "" without one
	Count     int                   // the ordinal of the request among the client's, from 1
	Lease     *coordinationv1.Lease // the body of create and update; it must not be changed
	Body      []byte                // the body of patch and apply; it must not be changed
}

// Drop says which part of an exchange is lost.
type Drop int

const (
	// Nothing is lost.
	Nothing Drop = iota
	// TheRequest is lost: it never takes effect.
	TheRequest
	// TheReply is lost: the request takes effect, the caller does not learn of it.
	TheReply
)

// Fault is the fate of one request. The zero Fault is an immediate, correct answer.
//
// A caller whose ctx ends is answered at once with a *url.Error that wraps ctx.Err(), as an HTTP client does.
type Fault struct {
	// Before is the delay until the request takes effect. If the caller's ctx ends meanwhile, it takes none unless
	// Late.
	Before time.Duration
	// Late makes the request take effect when Before is over even if its caller has given up by then or its client is
	// cut off, as a write does that was on the wire when its caller timed out.
	Late bool
	// After is the delay between the effect and the reply.
	After time.Duration
	// Err is returned instead of the reply. If nothing is dropped, the request takes no effect: the server has refused
	// it, or could not be reached.
	Err error
	// Drop is the part that is lost. The caller waits until its ctx ends, or gets Err if that is set.
	Drop Drop
}
