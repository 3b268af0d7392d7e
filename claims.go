package leasehold

import (
	"slices"
	"sync"
	"time"
)

// A claim is one write of ours to acquire the lease. It takes effect, if at all, on the state that it names.
type claim struct {
	term    term
	version uint64    // of the Lease when it was sent, whose uid is that of the term; none for a claim that creates it
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
	n := claim{term: term{on.uid, identity, c.stamps.forClaim()}, version: on.version, sent: now}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, n)
	return n
}

// recordOutcome records that n ended with err, and whether that decided what becomes of it. A claim that was refused is
// removed, also after a conflict: a Lease that shows it then was written by another process, which has our identity and
// drew the same acquireTime.
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

// forget removes each claim that o, the newest observation of the Lease, does not show and that cannot take effect any
// more: because the Lease has changed since, because nothing that was sent so long ago arrives or, if o comes from a
// read that began after the claim was decided, because that read would show it.
func (c *claims) forget(o observation, now time.Time, afterRead bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = slices.DeleteFunc(c.all, func(n claim) bool {
		if o.term().is(n.term) {
			return false
		}
		changed := n.term.uid != "" && o.exists() && o.version > n.version
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

// unanswered reports whether a claim in doubt may yet acquire the lease as it is in o, which comes from a read, and for
// which what cannot take effect was forgotten. One that creates the Lease does not where there is one.
func (c *claims) unanswered(o observation) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.all, func(n claim) bool {
		return n.inDoubt && !n.decided && !o.term().is(n.term) && (n.term.uid != "" || !o.exists())
	})
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
