package leasehold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Acquire waits until this process holds the lease and returns the session. It is for code that is not
// shaped like a loop: the caller must call the session's Release when the work is done, also after the
// session was lost, and has nothing running that needs the lease then. When ctx ends, the session's
// context is cancelled, and the lease is still renewed until Release.
//
// The error is context.Cause(ctx), or the reason why the campaign could not run: invalid options, no usable
// client configuration, ErrExists or ErrNotFound.
func Acquire(ctx context.Context, opts ...Option) (Session, error) {
	return acquire(ctx, opts, func(cs campaigns) (*session, error) {
		cs.start()
		return newCandidates(cs).await(cs.ctx())
	})
}

// TryAcquire acquires the lease only if that is possible at once. Otherwise it returns ErrHeld, whose text names the
// holder, and says whether a session of this process holds the lease, or the error of the failed request.
//
// It also acquires a lease whose holder has not been seen to renew it for its duration. Within a process TryAcquire
// remembers what it saw of the last 1,000 leases, so that a program that calls it from time to time takes over from a
// holder that crashed, and waits out one whose Lease was deleted. A program that calls it once needs Acquire for that.
func TryAcquire(ctx context.Context, opts ...Option) (Session, error) {
	return acquire(ctx, opts, func(cs campaigns) (*session, error) { return newCandidates(cs).try(cs.ctx()) })
}

// acquire returns a session that is a campaign of its own.
func acquire(ctx context.Context, opts []Option, await func(campaigns) (*session, error)) (_ Session, err error) {
	o, err := newOptions(ctx, opts)
	if o.err != nil {
		defer func() { *o.err = err }()
	}
	if err != nil {
		return Session{}, err
	}
	cs, err := newCampaigns(ctx, o)
	if err != nil {
		return Session{}, err
	}
	var s *session
	defer func() {
		if s == nil { // however that came about
			cs.close()
			cs.repanic()
		}
	}()
	if s, err = await(cs); err != nil {
		return Session{}, err
	}
	s.closeCampaign = func() {
		s.campaign.current.CompareAndSwap(s, nil)
		cs.close()
		cs.repanic()
	}
	return Session{s}, nil
}

// try acquires one of the leases, if any is free now.
func (k *candidates) try(ctx context.Context) (*session, error) {
	var holders []string
	for _, one := range k.all {
		s, err := one.try(ctx)
		if !errors.Is(err, ErrHeld) {
			return s, err
		}
		if len(holders) == 0 && one.campaign.options.slots <= 1 {
			return nil, err
		}
		o := one.campaign.store.latest()
		holder := strconv.Quote(o.identity)
		if one.campaign.heldHere(o.term()) {
			holder += " (another session of this process)"
		}
		holders = append(holders, holder)
	}
	return nil, fmt.Errorf("leasehold: %w: all %d slots, by %s", ErrHeld, len(holders), strings.Join(holders, ", "))
}

// maxTries is how often TryAcquire claims a lease that others claim too.
const maxTries = 3

// try acquires the lease if it is free now.
func (k *candidate) try(ctx context.Context) (*session, error) {
	c := k.campaign
	k.hasty = true
	memory, key := c.options.hooks.memory, leaseKey{c.client.server(), c.lease.namespace, c.lease.name}
	c.remembered = key
	before := memory.recall(key)
	if _, err := c.reflector.read(ctx); err != nil {
		return nil, orCause(ctx, err)
	}
	memory.resume(c.store, key, before)
	if err := k.unavailable(c.store.latest()); err != nil {
		return nil, err
	}
	c.start()
	for try := 1; ; try++ {
		o := c.store.latest()
		s, err := k.claim(ctx, o)
		if err == nil {
			return s, nil
		}
		if try == maxTries || err != errChanged && outcomeUnknown(err) {
			c.reflector.read(ctx) // decides what the error is
		}
		if ctx.Err() != nil || c.store.unchangedSince(o) {
			return nil, orCause(ctx, err)
		}
		if held := k.unavailable(c.store.latest()); held != nil {
			return nil, held
		}
		if try == maxTries {
			return nil, err
		}
	}
}

// unavailable returns why the lease as it is in o cannot be had now.
func (k *candidate) unavailable(o observation) error {
	c := k.campaign
	if err := k.ruledOut(o.record, o.known); err != nil {
		return err
	}
	wait := k.untilAttempt(o)
	now := c.clock.now().mono
	left := rounded(max(o.acquirableAt(c.claims.include).Sub(now), 0))
	switch {
	case wait <= 0:
		return nil
	case !o.exists() && c.options.createMode == UseExisting:
		return k.notFound()
	case o.strategy:
		return fmt.Errorf("leasehold: %w: %s", ErrHeld, coordinated)
	case !o.held():
		return fmt.Errorf("leasehold: %w: the Lease was deleted while a holder led that may not have heard; free in %v",
			ErrHeld, left)
	case c.heldHere(o.term()):
		return fmt.Errorf("leasehold: %w by %q, by another session of this process", ErrHeld, o.identity)
	default:
		idle := ""
		if d := rounded(now.Sub(o.since)); d > 0 {
			idle = fmt.Sprintf(", not seen to renew for %v", d)
		}
		return fmt.Errorf("leasehold: %w by %q%s; free in %v unless renewed", ErrHeld, o.identity, idle, left)
	}
}

// heldHere reports whether a session of this process keeps t, a term of the campaign's Lease.
func (c *campaign) heldHere(t term) bool {
	return c.anyHere(func(s *leaseStore) bool { return s.keeps(t) })
}

// claimedHere reports whether a campaign of this process wrote t, a term of the campaign's Lease: also before its
// session has begun, and while the work of one that is lost goes on.
func (c *campaign) claimedHere(t term) bool {
	return c.anyHere(func(s *leaseStore) bool { return s.ours(t) })
}

// anyHere reports whether match is true of the store of any campaign of this process for the campaign's Lease. It is
// called only for a lease that is held, so that sessions need not register anywhere: each has a subscription to the
// shared watch of its client, whether or not that watches.
func (c *campaign) anyHere(match func(*leaseStore) bool) bool {
	clients.Lock()
	defer clients.Unlock()
	return slices.ContainsFunc(clients.inUse, func(s *sharedClient) bool {
		w := s.watches[c.lease.namespace]
		return w != nil && w.anyStore(c.lease.name, match)
	})
}

// orCause returns why ctx ended, if it did, else err.
func orCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Do waits for the lease, calls fn once with the session's context, releases the lease, and returns
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

// Vacate frees the lease if the identity given by WithIdentity holds it, without a session: after a process that
// ended without releasing it, or by an operator's hand. A process that runs needs no Vacate, in a preStop hook for
// example: its loop releases the lease when its context ends, and would acquire it again.
//
// With WithSlots it frees all slots that the identity holds. Vacate reports whether it freed anything. It never frees
// what somebody else holds, nor a term that the identity began after Vacate was called. If it fails it may be called
// again. It tries until ctx ends, at most for half of the renew deadline.
func Vacate(ctx context.Context, opts ...Option) (_ bool, err error) {
	o, err := newOptions(ctx, opts)
	if err == nil && o.identity == "" {
		err = errors.New("leasehold: Vacate: WithIdentity is required: it names the holder whose lease is freed")
	}
	if o.err != nil {
		defer func() { *o.err = err }()
	}
	if err != nil {
		return false, err
	}
	cs, err := newCampaigns(ctx, o)
	if err != nil {
		return false, err
	}
	defer cs.repanic()
	defer cs.close()
	freed := false
	for _, c := range cs {
		is, err := c.vacate(ctx)
		if freed = freed || is; err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// vacate frees the term of our identity that it finds.
func (c *campaign) vacate(parent context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.clock.wait(c.options.renewDeadline/2))
	defer cancel()
	found, err := c.reflector.read(ctx)
	for ; err != nil; found, err = c.reflector.read(ctx) {
		sleep(ctx, c.clock, c.releaseDelays.next(err, c.options.renewInterval))
		if ctx.Err() != nil {
			return false, orCause(parent, err)
		}
	}
	err = c.free(ctx, "", func(r record) error {
		if r.identity != c.lease.identity || r.term() != found.term() {
			return errNotOurs
		}
		return nil
	})
	if err == errNotOurs {
		return false, nil
	}
	if err != nil {
		return false, orCause(parent, err)
	}
	return true, nil
}
