package leasehold

import (
	"context"
	"errors"
	"time"
)

// errNotOurs is why a lease is not freed.
var errNotOurs = errors.New("not ours")

// free writes that nobody holds the lease, and tries again until ctx ends, at most for releaseBudget after its first
// permit. It gives up when refuse, which is asked about the newest record before each try, returns an error. Nil
// means that the lease was freed, for successor, if that is not "".
func (c *campaign) free(ctx context.Context, successor string, refuse func(record) error) error {
	r := freeAttempt{campaign: c, successor: successor, refuse: refuse}
	c.releaseDelays.reset()
	for first := true; ; first = false {
		if over, err := r.over(ctx, c.store.latest().record); over {
			return err
		}
		done, err := c.client.permit(ctx)
		// Judged again, because others may have had their permits first.
		latest := c.store.latest().record
		if over, why := r.over(ctx, latest); over {
			if err == nil {
				done()
			}
			return why
		}
		if err != nil {
			return err
		}
		if first {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.clock.wait(c.releaseBudget()))
			defer cancel()
		}
		freed, err := r.try(ctx, latest)
		done()
		if err == nil {
			r.remove(ctx, freed)
			return nil
		}
		sleep(ctx, c.clock, c.releaseDelays.next(err, c.options.renewInterval))
		if ctx.Err() != nil && refuse(c.store.latest().record) == nil {
			return err
		}
	}
}

// releaseBudget bounds how long the end of a session waits for a server that does not answer.
func (c *campaign) releaseBudget() time.Duration { return c.options.renewDeadline / 4 }

// A freeAttempt is what is known of an attempt to free the lease, of one write or more.
type freeAttempt struct {
	campaign  *campaign
	successor string
	refuse    func(record) error
	inDoubt   bool // a write whose outcome is unknown may have freed the lease
}

// over reports whether the attempt is over, because the Lease as it is in rec may not be freed, which err says, or need
// not, because an earlier write freed it. In the latter case it deletes the Lease, if the options say so.
func (r *freeAttempt) over(ctx context.Context, rec record) (over bool, err error) {
	refused := r.refuse(rec)
	switch {
	case refused == nil:
		return false, nil
	case !r.inDoubt:
		return true, refused
	case rec.exists() && !rec.held():
		r.remove(ctx, rec)
	}
	return true, nil
}

// try sends one write. After one whose outcome is unknown it reads, unless the watch has told.
func (r *freeAttempt) try(ctx context.Context, on record) (record, error) {
	c := r.campaign
	freed, err := c.write(ctx, "release", func(ctx context.Context) (record, error) {
		return c.lease.release(ctx, on, r.successor)
	})
	if err != nil && outcomeUnknown(err) {
		r.inDoubt = true
		if r.refuse(c.store.latest().record) == nil {
			c.reflector.readPermitted(ctx) // logs its own failure
		}
	}
	return freed, err
}

// remove deletes the Lease that was just freed, if the options say so. It is left where another has acquired it
// meanwhile, and where somebody has deleted it already.
func (r *freeAttempt) remove(ctx context.Context, free record) {
	c := r.campaign
	if !c.options.deleteOnRelease || free.deleting {
		return
	}
	ctx = context.WithoutCancel(ctx)
	_, err := c.lease.request(ctx, "delete", c.renewTimeout.current(), func(ctx context.Context) (record, error) {
		return record{}, c.lease.delete(ctx, free)
	})
	switch {
	case err != nil:
		c.log.debug("the Lease was not deleted", "error", err)
	case free.finalizers:
		c.log.debug("the Lease is deleted once its finalizers are removed")
	default:
		c.options.hooks.memory.forget(c.remembered, free.uid)
		c.store.addDeletion(free)
	}
}

// free frees the lease if it is still ours, in bounded time: not beyond the trust in it, because
// it expires then. Where thousands are released at once, most of that may pass until there is a permit.
func (s *session) free() error {
	c := s.campaign
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), c.clock.wait(max(s.trustLeft(), 0)))
	defer cancel()
	known := s.loss() != nil
	err := c.free(ctx, s.named(), func(r record) error {
		s.checkTrust()
		if err := s.loss(); err != nil {
			return err
		}
		return s.term.over(&r, c.lease.duration)
	})
	if errors.Is(err, ErrLost) {
		s.lose(err)
	}
	switch loss := s.loss(); {
	case known:
		return loss // as the renewer reported
	case loss != nil:
		s.logLoss()
		return loss
	case err != nil:
		c.log.warn("lease not released; it will expire", "error", err, "within", rounded(c.options.duration))
		return err
	}
	c.stats.released()
	c.log.info("lease released", "fencingToken", s.token)
	s.event("stopped leading")
	return nil
}
