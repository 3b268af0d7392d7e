package leasehold

import (
	"context"
	"errors"
	"fmt"
)

// Acquire waits until this process holds the lease and returns the session. It is for code that is not
// shaped like a loop: the caller must call the session's Release when the work is done, also after the
// session was lost, and has nothing running that needs the lease then. When ctx ends, the session's
// context is cancelled, and the lease is still renewed until Release.
//
// The error is context.Cause(ctx), or what made it impossible: invalid options, no usable client
// configuration, ErrExists or ErrNotFound.
func Acquire(ctx context.Context, opts ...Option) (Session, error) {
	return acquire(ctx, opts, func(c *campaign) (*hold, error) {
		c.follow()
		return c.await(ctx)
	})
}

// TryAcquire is Acquire without waiting: if the lease cannot be had at once, the error is ErrHeld, whose
// text names the holder, or what kept the API server from answering. A holder that does not renew any
// more holds the lease nevertheless: it takes Acquire to see that.
func TryAcquire(ctx context.Context, opts ...Option) (Session, error) {
	return acquire(ctx, opts, func(c *campaign) (*hold, error) { return c.try(ctx) })
}

// acquire returns a session that is a campaign of its own.
func acquire(ctx context.Context, opts []Option, enter func(*campaign) (*hold, error)) (_ Session, err error) {
	o, err := newOptions(ctx, opts)
	if o.err != nil {
		defer func() { *o.err = err }()
	}
	if err != nil {
		return Session{}, err
	}
	c, err := newCampaign(ctx, o)
	if err != nil {
		return Session{}, err
	}
	h, err := enter(c)
	if err != nil {
		c.leave()
		return Session{}, err
	}
	h.leave = func() {
		c.held.Store(nil)
		c.leave()
	}
	return Session{h}, nil
}

// try takes the lease if it is free now.
func (c *campaign) try(ctx context.Context) (*hold, error) {
	if err := c.feed.read(ctx); err != nil {
		return nil, err
	}
	var failed error
	for tries := 0; ; tries++ {
		s := c.feed.latest()
		if err := c.unfit(s); err != nil {
			return nil, err
		}
		switch {
		case c.prepare(s) <= 0:
		case s.held():
			return nil, fmt.Errorf("leasehold: %w by %q", ErrHeld, s.identity)
		case !s.exists() && c.createMode == UseExisting:
			return nil, c.notFound()
		default:
			return nil, fmt.Errorf("leasehold: %w: the Lease was deleted under a holder that may not have heard", ErrHeld)
		}
		switch tries {
		case 0:
			c.follow()
		case 3:
			return nil, failed
		}
		h, err := c.take(ctx, s)
		if err == nil {
			return h, nil
		}
		if err != errOvertaken && unknownOutcome(err) || tries == 2 {
			c.feed.read(ctx) // what it brings decides
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if now := c.feed.latest(); now.uid == s.uid && now.version == s.version {
			return nil, err
		}
		failed = err
	}
}

// Do waits for the lease, calls fn once with the session's context, gives the lease back, and returns
// what fn returned. If the lease was lost while fn ran, the error matches ErrLost as well as fn's own.
// Other errors are those of Acquire; fn has not been called then.
func Do[T any](ctx context.Context, fn func(context.Context) (T, error), opts ...Option) (T, error) {
	s, err := Acquire(ctx, opts...)
	if err != nil {
		var none T
		return none, err
	}
	defer s.Release() // if fn panics
	v, err := fn(s.Context())
	if lost := s.Release(); errors.Is(lost, ErrLost) && !errors.Is(err, ErrLost) {
		err = errors.Join(err, lost)
	}
	return v, err
}

// Vacate gives the lease back if the identity given by WithIdentity holds it, without a session: from a
// preStop hook, or for an operator. It reports whether it freed anything; it never frees what somebody
// else holds. If it fails it may be called again. It tries until ctx ends, at most for half of the renew
// deadline.
func Vacate(ctx context.Context, opts ...Option) (_ bool, err error) {
	o, err := newOptions(ctx, opts)
	if err == nil && o.identity == "" {
		err = errors.New("leasehold: Vacate: want WithIdentity, which says whose lease to free")
	}
	if o.err != nil {
		defer func() { *o.err = err }()
	}
	if err != nil {
		return false, err
	}
	c, err := newCampaign(ctx, o)
	if err != nil {
		return false, err
	}
	defer c.leave()
	ctx, cancel := context.WithTimeout(ctx, c.clock.wait(c.renewDeadline/2))
	defer cancel()
	for err = c.feed.read(ctx); err != nil; err = c.feed.read(ctx) {
		sleep(ctx, c.clock, c.delays.next(err, c.renewInterval))
		if ctx.Err() != nil {
			return false, err
		}
	}
	err = c.free(ctx, func(r record) error {
		if r.identity != o.identity {
			return errNotOurs
		}
		return nil
	})
	if err == errNotOurs {
		return false, nil
	}
	return err == nil, err
}
