package leasehold

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// A claim is one write of ours to acquire the lease. It takes effect, if at all, on the state that it names.
type claim struct {
	term    term
	on      record    // what the Lease was when it was sent; does not exist for a claim that creates it
	sent    time.Time // by the monotonic clock
	decided bool      // it has taken effect, or never will
	inDoubt bool      // it may have acquired the lease, and no session has come of it
}

// forgetClaimAfter is how long a request may take effect after it was sent: by then TCP has given up.
const forgetClaimAfter = 15 * time.Minute

// claims are those of a campaign that the Lease may show, now or later.
type claims struct {
	stamps timestamps

	mu  sync.Mutex
	all []claim // the newest last; protected by mu
}

// begin returns the claim of identity to the lease as it is in on, which is about to be sent.
func (c *claims) begin(on record, identity string, now time.Time) claim {
	n := claim{term: term{on.uid, identity, c.stamps.forClaim()}, on: on, sent: now}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, n)
	return n
}

// recordOutcome records that n ended with err, and whether that decided what becomes of it. A claim that was refused is
// not ours, with a conflict neither: another process with our identity may have drawn the same acquireTime, and leads.
func (c *claims) recordOutcome(n claim, err error, decided bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.all, func(other claim) bool { return other.term == n.term })
	switch {
	case i < 0:
	case err == nil:
		for j := range c.all {
			c.all[j].inDoubt = false // what is known now is newer
		}
		c.all[i].decided = true
	case outcomeUnknown(err):
		c.all[i].inDoubt, c.all[i].decided = true, decided
	default:
		c.all = slices.Delete(c.all, i, i+1)
	}
}

// forget removes the claims that cannot take effect any more, given what is known of the Lease: because it has
// changed since, because nothing that was sent so long ago arrives or, after a read that was sent when they were
// decided, because it does not show them.
func (c *claims) forget(o observation, now time.Time, afterRead bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = slices.DeleteFunc(c.all, func(n claim) bool {
		if o.term().is(n.term) {
			return false
		}
		changed := n.on.exists() && o.exists() && o.version > n.on.version
		return changed || n.decided && afterRead || now.Sub(n.sent) > forgetClaimAfter
	})
}

// include reports whether t is one of the claims, which includes the terms of our own sessions.
func (c *claims) include(t term) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.all, func(n claim) bool { return t.is(n.term) })
}

// inDoubt returns the terms that may have begun without a session.
func (c *claims) inDoubt() (terms []term) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.all {
		if n.inDoubt {
			terms = append(terms, n.term)
		}
	}
	return terms
}

// clearDoubt ends all doubt.
func (c *claims) clearDoubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.all {
		c.all[i].inDoubt = false
	}
}

// timestamps are the times that a campaign writes to the Lease, each later than the one before. The goroutine at
// work uses them: the candidate or, while there is a session, its renewer.
type timestamps struct {
	newest time.Time
	chance func(n time.Duration) time.Duration
}

// forRenewal returns the present, but a new time: candidates see by it that we are alive, and we which of our
// writes took effect.
func (s *timestamps) forRenewal(r record) time.Time {
	t := time.Now().UTC().Truncate(time.Microsecond)
	if t == r.renewed {
		t = t.Add(time.Microsecond)
	}
	return s.next(t)
}

// forClaim returns the present with random microseconds: if a second process with our identity claims the
// lease in the same moment, a claim of ours that was lost must not look like its.
func (s *timestamps) forClaim() time.Time {
	t := time.Now().UTC().Truncate(time.Millisecond)
	return s.next(t.Add(s.chance(time.Millisecond).Truncate(time.Microsecond)))
}

func (s *timestamps) next(t time.Time) time.Time {
	if !t.After(s.newest) {
		t = s.newest.Add(time.Microsecond)
	}
	s.newest = t
	return t
}

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
	c.rivals.window = c.rivals.window.won()
	c.campaign.stalledSince.Store(nil)
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

// watchLag bounds how long a watch is waited for that has news, before it is doubted.
const watchLag = 100 * time.Millisecond

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
	s.yielded.Store(true)
	return s, nil
}
