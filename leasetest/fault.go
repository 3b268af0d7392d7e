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
	Name      string                // of list and watch the one that a field selector names, if it does, as for RBAC; of deletecollection ""
	Count     int                   // the client's how-manieth request, from 1
	Lease     *coordinationv1.Lease // what create and update send; it must not be changed
	Body      []byte                // what patch and apply send; it must not be changed
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

// Fault is the fate of one request. The zero Fault is an immediate, true answer.
//
// A caller whose ctx ends is answered at once with a *url.Error that wraps ctx.Err(), as an HTTP client does.
type Fault struct {
	// Before passes until the request takes effect. If the caller's ctx ends meanwhile it takes none, unless Late.
	Before time.Duration
	// Late puts the request past recall: it takes effect when Before is over even if its caller has given up by then,
	// or its client is cut off. A write that was on the wire when its caller timed out does so.
	Late bool
	// After passes between the effect and the reply.
	After time.Duration
	// Err is returned instead of the reply. If nothing is dropped the request takes no effect: the server has refused
	// it, or could not be reached.
	Err error
	// Drop is what gets lost. The caller waits until its ctx ends, or gets Err if that is set.
	Drop Drop
}
