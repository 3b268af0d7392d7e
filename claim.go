package leasehold

import (
	"cmp"
	"context"
	"errors"
	"time"
)

var (
	// errChanged is why a lease is not claimed that changed while other requests had their permits.
	errChanged = errors.New("leasehold: the Lease has changed")
	// errDeletedHolder is why a Lease that was created gives no session yet: it is acquired once that is over.
	errDeletedHolder = errors.New("the Lease was deleted while a holder led that may not have heard")
)

// claim tries to acquire the lease as it is in o. The error may also be why the session ended before it began.
func (c *candidate) claim(ctx context.Context, o observation) (*session, error) {
	done, err := c.campaign.client.permit(ctx)
	if err != nil {
		return nil, err
	}
	if !c.campaign.store.unchangedSince(o) {
		done()
		return nil, errChanged
	}
	c.attempt.free = false
	sent := c.campaign.clock.now()
	n := c.campaign.claims.begin(o.record, c.campaign.lease.identity, sent.mono)
	r, err := c.sendClaim(ctx, &o, &n)
	done()
	decided := err == nil || !outcomeUnknown(err)
	if err == nil {
		err = c.verifyClaim(n, r)
	}
	c.campaign.claims.recordOutcome(n, err, decided)
	if conflicts(err) {
		c.learnWinner(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	c.createModeMet, c.lostRace, c.warnedUndone, c.failures = true, false, false, 0
	c.contention.window = c.contention.window.won()
	c.campaign.claimsFailingSince.Store(nil)
	return c.begin(ctx, r, sent)
}

// sendClaim sends the write. One that is cut short has an unknown outcome: ctx does not end it, its timeout does.
func (c *candidate) sendClaim(ctx context.Context, o *observation, n *claim) (record, error) {
	r, err := c.campaign.lease.request(context.WithoutCancel(ctx), "acquire", c.campaign.acquireTimeout.current(),
		func(ctx context.Context) (record, error) {
			if !o.exists() {
				return c.campaign.lease.create(ctx, n.term.acquired)
			}
			return c.campaign.lease.acquire(ctx, o.record, n.term.acquired)
		})
	if err == nil {
		c.campaign.store.addAnswer(r, *o)
	}
	return r, err
}

// verifyClaim returns why the claim gives no session although the server accepted it as r.
func (c *candidate) verifyClaim(n claim, r record) error {
	now := c.campaign.store.latest()
	t := n.term
	t.uid = r.uid
	// The watch may have brought meanwhile that another holds the lease again.
	duration := c.campaign.lease.duration
	if err := cmp.Or(t.over(&r, duration), t.over(&now.record, duration)); err != nil {
		c.warnUndone(err)
		return err
	}
	if now.clearAt().After(c.campaign.clock.now().mono) {
		// While our creation was under way another created the Lease, and lost it.
		return errDeletedHolder
	}
	return nil
}

// warnUndone tells operators, once until a session begins, that the lease was acquired, and lost before
// that was known: an admission webhook or a program that watches changes what we write.
func (c *candidate) warnUndone(cause error) {
	c.campaign.stats.setError(cause)
	if !c.warnedUndone {
		c.campaign.log.warn("lease acquired, but lost at once; retrying", "cause", cause)
	}
	c.warnedUndone = true
}

// learnWinner waits until it is known which write a claim to the lease as it was in o met with. A live watch brings
// it in a moment, which spares the API server a read from each of many that lost the race.
func (c *candidate) learnWinner(ctx context.Context, o observation) {
	if c.campaign.reflector.watching() && len(c.campaign.claims.inDoubt()) == 0 {
		timer := time.NewTimer(c.campaign.clock.wait(watchLag))
		defer timer.Stop()
		for waiting := true; waiting; {
			if !c.campaign.store.unchangedSince(o) {
				return
			}
			select {
			case <-c.campaign.store.changed:
			case <-timer.C:
				waiting = false
			case <-ctx.Done():
				return
			}
		}
	}
	c.campaign.reflector.read(ctx) // logs its own failure
}

// begin returns the session of the term that r shows, which was acquired by a write sent at sent. At least half of
// the renew deadline of trust is left of it: else it is renewed first.
func (c *candidate) begin(ctx context.Context, r record, sent instant) (*session, error) {
	s := c.campaign.newSession(ctx, r, sent)
	c.campaign.current.Store(s)
	c.campaign.stats.acquired()
	c.campaign.log.info("lease acquired", "fencingToken", s.token, "transitions", r.transitions)
	s.event("became leader")
	for s.trustLeft() < c.campaign.options.renewDeadline/2 && s.loss() == nil && ctx.Err() == nil {
		select {
		case <-s.renewed:
		case <-s.lost:
		case <-ctx.Done():
		}
	}
	if err := s.Err(); err != nil {
		s.finish()
		return nil, err
	}
	s.beaten.Store(true) // the first d of WithBeat begins now
	s.delivered.Store(true)
	return s, nil
}
