package leasehold

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Errors to compare with errors.Is.
var (
	// ErrLost is how a session ends that did not end itself. The text says why: the renew deadline
	// passed, another holder took the lease (it is named), the Lease was deleted, its content was
	// changed by hand, or the machine slept.
	ErrLost = errors.New("lease lost")

	// ErrReleased is how a session ends whose work is done: the loop body returned, or Release was
	// called.
	ErrReleased = errors.New("lease released")

	// ErrHeld is why TryAcquire failed. The text names the holder.
	ErrHeld = errors.New("lease held")

	// ErrExists is how a campaign with CreateNew ends when there is such a Lease.
	ErrExists = errors.New("lease exists")

	// ErrNotFound is how a campaign with UseExisting ends when there is no such Lease.
	ErrNotFound = errors.New("lease not found")
)

// A Session is one term of leadership. It is a small value; copies are the same session. The zero
// Session is one that has ended.
type Session struct{ hold *hold }

// Context returns a context that is cancelled when leadership ends; context.Cause tells why, as Err
// does. It is a child of the campaign's context and is to be given to all that the leader does.
//
// Its Err method is judged by the clock when it is called, so that it tells the truth even if the
// process was stopped and no timer has fired yet. Contexts derived from it learn of the end when
// Done is closed.
func (s Session) Context() context.Context {
	if s.hold == nil {
		return ended
	}
	return s.hold.ctx
}

// ended is the context of the zero Session.
var ended = func() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(ErrReleased)
	return ctx
}()

// Done returns a channel that is closed when leadership ends.
func (s Session) Done() <-chan struct{} { return s.Context().Done() }

// Err returns nil while the lease is held, else why the session ended: ErrLost, ErrReleased, or the
// cause of the campaign's context. It is judged by the clock when it is called.
func (s Session) Err() error {
	if s.hold == nil {
		return ErrReleased
	}
	return s.hold.Err()
}

// ValidFor returns for how long leadership is certain even if the lease cannot be renewed again; 0
// when the session has ended. That is so as well once the campaign's context has ended, although the
// lease is still renewed until the body has returned.
func (s Session) ValidFor() time.Duration {
	if s.hold == nil {
		return 0
	}
	left := s.hold.left()
	if s.Err() != nil {
		return 0
	}
	return left
}

// FencingToken returns a number that is greater than that of every earlier session of this lease,
// even if the Lease was deleted in between: the resourceVersion of the write that acquired it. A
// store that remembers the greatest token it has seen, and refuses writes with a smaller one, is
// safe from a leader that was stopped between looking at Err and writing.
//
// Kubernetes promises since version 1.35 that the resourceVersions of an object can be compared
// (KEP-5504). Restoring etcd from a backup can set them back.
func (s Session) FencingToken() uint64 {
	if s.hold == nil {
		return 0
	}
	return s.hold.token
}

// Holder returns what the Lease said when this session acquired it.
func (s Session) Holder() Holder {
	if s.hold == nil {
		return Holder{}
	}
	return s.hold.holder
}

// Release ends the session: it cancels the context, stops renewing, and gives the lease back.
// Nothing that needs the lease may be running any more. It returns nil once the lease is free, ErrLost
// if it had been lost before, or what kept the API server from being told; then it may be called
// again. Within a loop over Sessions there is no need to call it.
func (s Session) Release() error {
	if s.hold == nil {
		return nil
	}
	h := s.hold
	h.end()
	if h.leave != nil {
		defer h.leave()
	}
	if err := h.loss(); err != nil {
		// What finish waits for may be what asks: the keeper, by the function of WithOverrun.
		h.awaitRenewal()
		return err
	}
	return h.finish(h.leave == nil)
}

// Guard returns a RoundTripper that passes requests to next while the lease is held, and afterwards
// refuses them with the session's Err. A nil next is http.DefaultTransport. A request that was
// passed on goes on when the session ends, unless it has the session's context.
func (s Session) Guard(next http.RoundTripper) http.RoundTripper {
	if next == nil {
		next = http.DefaultTransport
	}
	return guard{s, next}
}

type guard struct {
	session Session
	next    http.RoundTripper
}

func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := g.session.Err(); err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("not sent: %w", err)
	}
	return g.next.RoundTrip(req)
}

// A Holder is who holds a lease, as the holder wrote it. The zero Holder is nobody.
type Holder struct {
	Namespace, Name, Identity string

	// AcquireTime and RenewTime are by the holder's clock. They are for people and are never
	// compared with a local clock.
	AcquireTime, RenewTime time.Time

	// Duration is for how long after a renewal others leave the lease to its holder; 0 when the
	// holder did not say.
	Duration time.Duration

	// Transitions counts how often the lease was acquired since it was created.
	Transitions int32
}

// FromContext returns the session that ctx is the context of, or that it was derived from.
func FromContext(ctx context.Context) (Session, bool) {
	s, ok := ctx.Value(sessionKey{}).(Session)
	return s, ok
}

type sessionKey struct{}

// A sessionContext is the context of a session: one that looks at the clock before it says that
// nothing happened. Its Done channel is that of the context it embeds, so that derived contexts
// need no goroutine to follow it.
type sessionContext struct {
	context.Context
	hold *hold
}

func (c *sessionContext) Err() error {
	if c.Context.Err() == nil {
		c.hold.check()
	}
	return c.Context.Err()
}

func (c *sessionContext) Value(key any) any {
	if key == (sessionKey{}) {
		return Session{c.hold}
	}
	return c.Context.Value(key)
}
