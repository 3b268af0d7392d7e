package leasehold

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// candidates wait for any of the leases of campaigns. They are on one goroutine, the caller's, and claim one lease at a
// time, the next one only when it is known what became of the claim before, or when that could not be had.
type candidates struct {
	campaigns         campaigns
	all               []*candidate
	contention        contention // that for one slot are those for another
	waitForReadsUntil time.Time  // until then no lease is claimed while another has not been read yet
}

func newCandidates(cs campaigns) *candidates {
	k := &candidates{campaigns: cs, waitForReadsUntil: cs[0].clock.now().mono.Add(cs[0].options.renewInterval / 4)}
	for _, c := range cs {
		k.all = append(k.all, newCandidate(c, &k.contention))
	}
	return k
}

// A chance is a lease that may be claimed now.
type chance struct {
	candidate *candidate
	on        observation
}

// await returns once this process holds one of the leases, to be trusted for half of the renew deadline at least. The
// error is what ends the campaigns.
func (k *candidates) await(ctx context.Context) (*session, error) {
	timer := time.NewTimer(0)
	defer func() { timer.Stop() }()
	for ctx.Err() == nil {
		chances, wake, err := k.findChances(ctx)
		if err != nil {
			return nil, err
		}
		if len(chances) > 0 {
			best := k.choose(chances)
			s, err := best.candidate.claim(ctx, best.on)
			if err == nil {
				k.releaseStrays(s)
				return s, nil
			}
			best.candidate.recoverFrom(ctx, best.on, err)
			continue
		}
		c := k.campaigns[0]
		timer = freshTimer(timer)
		timer.Reset(c.clock.wait(wake))
		rested := c.clock.now().add(c.options.renewInterval / 2)
		select {
		case <-timer.C:
		case <-k.campaigns.news():
		case <-ctx.Done():
		}
		if rested.left(c.clock.now()) <= 0 {
			for _, one := range k.all {
				one.delays.reset() // what failed before is long ago
			}
		}
	}
	return nil, context.Cause(ctx)
}

// findChances returns the leases that may be claimed now, the one with the lowest number first, and how long to wait if
// there is none. The error is what ends the campaigns.
func (k *candidates) findChances(ctx context.Context) (chances []chance, wake time.Duration, err error) {
	wake = maxDuration
	allKnown := true
	for _, one := range k.all {
		o, wait, err := one.nextAttempt(ctx)
		if err != nil {
			return nil, 0, err
		}
		if wait <= 0 {
			chances = append(chances, chance{one, o})
		}
		wake, allKnown = min(wake, wait), allKnown && o.known
	}
	if left := k.waitForReadsUntil.Sub(k.campaigns[0].clock.now().mono); left > 0 && !allKnown && len(chances) > 0 {
		return nil, left, nil // a lease with a lower number may turn out to be free
	}
	return chances, wake, nil
}

// choose returns the chance to take: one whose claims have failed the least, because something may be wrong with one of
// the Leases alone. Of those it is the one that a claim of ours acquired already, else the first or, where others are
// known to compete, any: if all took the first, one would win, and all the others would meet again at the next.
func (k *candidates) choose(chances []chance) chance {
	var best []chance
	for _, c := range chances {
		switch {
		case len(best) == 0 || c.candidate.failures < best[0].candidate.failures:
			best = []chance{c}
		case c.candidate.failures == best[0].candidate.failures:
			best = append(best, c)
		}
	}
	for _, c := range best {
		if c.candidate.campaign.claims.include(c.on.term()) {
			return c
		}
	}
	if k.contention.window == 0 {
		return best[0]
	}
	return best[int(k.campaigns[0].options.fraction()*float64(len(best)))]
}

// releaseStrays frees, as long as the session s lasts, the leases of other slots that claims of unknown outcome turn
// out to have acquired. campaigns.close frees those that are found later.
func (k *candidates) releaseStrays(s *session) {
	var others []*campaign
	for _, c := range k.campaigns {
		if c != s.campaign && c.claims.inDoubt() != nil {
			others = append(others, c)
		}
	}
	if others == nil {
		return
	}
	s.campaign.strays.Go(func() {
		for s.ctx.Err() == nil {
			for _, c := range others {
				if err := c.freeInDoubt(s.ctx, c.claims.inDoubt()); err != nil && err != errNotOurs &&
					s.ctx.Err() == nil {
					c.log.warn("lease of an earlier claim not released; it will expire", "error", err)
				}
			}
			select {
			case <-k.campaigns.news():
			case <-s.ctx.Done():
			}
		}
	})
}

// pause gives others their turn after the session s.
func (k *candidates) pause(ctx context.Context, s *session) {
	s.campaign.strays.Wait()
	k.contention.led = s.campaign.clock.now().mono
	for _, c := range k.all {
		if c.campaign == s.campaign {
			c.pause(ctx, s)
		} else {
			c.delays.reset()
		}
	}
}

// A candidate waits for one lease, on the caller's goroutine, and owns what it learned from its tries.
type candidate struct {
	campaign        *campaign
	delays          *delays
	attempt         attempt
	contention      *contention // shared with the candidates for other slots
	failures        int         // of claims in a row that did not meet with another's write
	lostRace        bool        // the last claim met with another candidate's write
	warnedUndone    bool        // claims succeed, but are undone at once, which was logged
	hasty           bool        // it does not leave a released lease to the one that the release names
	createModeMet   bool        // the create mode does not matter any more
	warnedStrategy  bool        // another program decides who holds the lease, which was logged
	warnedDuplicate term        // the last one that another process had in our name, which was logged
	warnedDeleted   time.Time   // until when the holder of a deleted Lease is waited out, which was logged
}

func newCandidate(c *campaign, contention *contention) *candidate {
	return &candidate{campaign: c, delays: newDelays(c.options.newBackOff, c.user), contention: contention}
}

// An attempt is what a candidate plans to do about the Lease in one state.
type attempt struct {
	on      state     // what it is about
	at      time.Time // when to claim the lease
	checkAt time.Time // when to check whether the watch missed something; zero when that was done
	free    bool      // nobody holds the lease, and we have not claimed it

	register time.Time // when to say on the Lease that we stand by; zero when that is not to be said
}

// nextAttempt returns what is known of the lease, and how long to wait before claiming it: at most 0 when it may be
// claimed now. The error is what ends the campaign.
func (c *candidate) nextAttempt(ctx context.Context) (observation, time.Duration, error) {
	o, err := c.rule(ctx)
	if err != nil {
		return o, 0, err
	}
	wake := c.untilAttempt(o)
	if due := c.attempt.register; wake > 0 && !due.IsZero() {
		if left := due.Sub(c.campaign.clock.now().mono); left > 0 {
			return o, min(wake, left), nil
		}
		c.register(ctx, o)
		return c.nextAttempt(ctx)
	}
	return o, wake, nil
}

// rule returns what is known of the lease, once that does not contradict the create mode. The error is what ends the
// campaign.
func (c *candidate) rule(ctx context.Context) (observation, error) {
	o := c.campaign.store.latest()
	for ; c.ruledOut(o.record, o.known) != nil && ctx.Err() == nil; o = c.campaign.store.latest() {
		// An event may be of long ago: only a read decides.
		r, err := c.campaign.reflector.read(ctx)
		if err != nil {
			sleep(ctx, c.campaign.clock, c.delays.next(err, c.campaign.options.renewInterval))
		} else if err := c.ruledOut(r, true); err != nil {
			return o, err
		}
	}
	return o, nil
}

// ruledOut returns why the create mode rules out the Lease that the campaign found, if it is known.
func (c *candidate) ruledOut(r record, known bool) error {
	switch mode := c.campaign.options.createMode; {
	case c.createModeMet || !known:
		return nil
	case mode == CreateNew && r.exists() && !c.campaign.claims.include(r.term()):
		return fmt.Errorf("leasehold: %w: %s/%s, and CreateNew wants to create it", ErrExists,
			c.campaign.lease.namespace, c.campaign.lease.name)
	case mode == UseExisting && !r.exists():
		return c.notFound()
	default:
		c.createModeMet = mode != CreateNew
		return nil
	}
}

func (c *candidate) notFound() error {
	return fmt.Errorf("leasehold: %w: %s/%s, and UseExisting does not create it", ErrNotFound,
		c.campaign.lease.namespace, c.campaign.lease.name)
}

// untilAttempt returns how long to wait before claiming the lease as it is in o; at most 0 when it may be
// claimed now.
func (c *candidate) untilAttempt(o observation) time.Duration {
	if !o.known {
		return maxDuration // for news
	}
	if c.attempt.at.IsZero() || c.attempt.on != o.state() {
		c.plan(o)
	}
	now := c.campaign.clock.now().mono
	wake := c.attempt.at.Sub(now)
	if !o.exists() && c.campaign.options.createMode == UseExisting {
		wake = maxDuration // for news
	}
	if wake <= 0 || c.attempt.checkAt.IsZero() {
		return wake
	}
	if check := c.attempt.checkAt.Sub(now); check > 0 {
		return min(wake, check)
	}
	c.requestCheck(o, now)
	return c.untilAttempt(o)
}

// requestCheck asks the reflector to check its watch, which has not brought what it should have by now: a renewal or,
// of a Lease that a read did not find, its deletion. A candidate that creates the Lease finds out by that whether it
// exists. Another one asks for a new watch once no holder can be left, which brings the Lease if it exists after all.
func (c *candidate) requestCheck(o observation, now time.Time) {
	c.attempt.checkAt = time.Time{}
	switch waits := c.campaign.options.createMode == UseExisting; {
	case o.held(), !waits:
		c.campaign.reflector.requestCheck()
	case now.Before(o.missedHolderUntil):
		c.campaign.reflector.requestCheck()
		c.attempt.checkAt = o.missedHolderUntil
	default:
		c.campaign.reflector.requestReopen()
	}
}

// plan makes the attempt for the Lease as it is in o.
func (c *candidate) plan(o observation) {
	c.campaign.claimsFailingSince.Store(nil)
	c.campaign.claims.forget(o, c.campaign.clock.now().mono, false)
	if c.attempt.free && o.held() {
		c.contention.window = c.contention.window.preempted()
	}
	c.attempt = attempt{
		on:   o.state(),
		at:   o.acquirableAt(c.campaign.claims.include),
		free: !o.held(),
	}
	switch {
	case o.held():
		c.attempt.checkAt = c.campaign.renewalOverdueAt(o)
	case !o.exists() && o.missedHolderUID != "": // a watch brings a deletion sooner
		c.attempt.checkAt = c.campaign.clock.now().mono.Add(c.campaign.options.renewInterval)
	}
	switch {
	case o.strategy:
		c.attempt.at = c.campaign.clock.now().mono.Add(maxDuration) // for news
		c.warnStrategy()
	case c.campaign.options.reclaim && o.identity == c.campaign.lease.identity && !c.campaign.claimedHere(o.term()):
		c.attempt.at = o.clearAt()
	case !c.campaign.claims.include(o.term()):
		c.attempt.at = c.attempt.at.Add(c.pauseBefore(o))
		c.warnDuplicate(o.term())
	}
	c.warnDeleted(o)
	if c.outranks(o) {
		interval := c.campaign.options.renewInterval // many standbys find out at once that there is a new holder
		c.attempt.register = c.campaign.clock.now().mono.Add(c.campaign.options.between(interval/20, interval/4))
	}
}

// pauseBefore returns how long the lease, as it is in o, is left to others once it may be acquired.
func (c *candidate) pauseBefore(o observation) time.Duration {
	options, now := c.campaign.options, c.campaign.clock.now().mono
	switch next := o.notes().Successor; {
	case next == "" || c.hasty:
	case next == c.campaign.lease.identity:
		return 0
	default:
		grace := successorGrace(options)
		return max(c.contention.delay(options, now), options.between(grace*3/4, grace))
	}
	return c.contention.delay(options, now)
}

// coordinated is why a lease is not competed for.
const coordinated = "coordinated leader election decides who holds it: spec.strategy is set"

// warnStrategy tells operators, once, that another program decides who holds the lease.
func (c *candidate) warnStrategy() {
	if !c.warnedStrategy {
		c.campaign.log.warn("waiting until the Lease has no strategy", "cause", coordinated)
	}
	c.warnedStrategy = true
}

// warnDuplicate tells operators, once for each term, that another session holds the lease in our name.
func (c *candidate) warnDuplicate(t term) {
	if t.identity != c.campaign.lease.identity || t == c.warnedDuplicate {
		return
	}
	c.warnedDuplicate = t
	if c.campaign.claimedHere(t) {
		if !c.hasty { // else ErrHeld says so
			c.campaign.log.warn("lease held under our own identity by another session of this process; waiting for it",
				"acquireTime", t.acquired)
		}
		return
	}
	c.campaign.log.warn(
		"lease held under our own identity by another process or an earlier run of this one; waiting until it expires",
		"acquireTime", t.acquired)
}

// warnDeleted logs, once for each wait, that the deletion of a Lease does not free it soon.
func (c *candidate) warnDeleted(o observation) {
	until := o.clearAt()
	left := until.Sub(c.campaign.clock.now().mono)
	if left <= c.campaign.options.duration || until.Equal(c.warnedDeleted) {
		return
	}
	c.warnedDeleted = until
	c.campaign.log.warn(
		"the Lease was deleted while a holder with a longer duration led, which may not have heard; waiting",
		"left", rounded(left))
}

// recoverFrom finds out what became of a claim to the lease as it was in o that failed with err, and pauses where
// the next one would come too soon.
func (c *candidate) recoverFrom(ctx context.Context, o observation, err error) {
	switch {
	case err == errChanged:
		return
	case errors.Is(err, ErrLost) || errors.Is(err, ErrYielded) || ctx.Err() != nil:
		c.failures++
	case outcomeUnknown(err):
		c.failures++
		c.campaign.claimsFailingSince.Store(nil) // an outage says nothing of what is known
		// Until this one is known, another write would only add to the doubt.
		for ctx.Err() == nil {
			_, err := c.campaign.reflector.read(ctx)
			if err == nil {
				break
			}
			sleep(ctx, c.campaign.clock, c.delays.next(err, c.campaign.options.renewInterval))
		}
		now := c.campaign.store.latest()
		c.campaign.claims.forget(now, c.campaign.clock.now().mono, true)
		if c.campaign.claims.include(now.term()) {
			c.failures = 0 // it took effect
		}
	case conflicts(err):
		c.campaign.log.debug("lost the race for the lease", "error", err)
		c.contention.window = c.contention.window.lost(c.campaign.options.renewInterval)
		c.failures = 0
		again := c.lostRace
		c.lostRace = true
		now := c.campaign.store.latest()
		switch {
		case c.campaign.store.unchangedSince(o):
			c.checkStalled(ctx, err)
		case now.held() && !c.campaign.claims.include(now.term()):
			c.lostRace = false
			c.delays.reset()
			return // a standby again: the next release must not find it asleep
		}
		if !again {
			return // the lease may be free all the same
		}
	default:
		c.failures++
	}
	sleep(ctx, c.campaign.clock, c.delays.next(err, c.campaign.options.renewInterval))
}

// checkStalled reads the Lease afresh when claims have failed with conflicts for the duration although nothing is
// known to have happened to it: what is known of it is wrong then.
func (c *candidate) checkStalled(ctx context.Context, err error) {
	now := c.campaign.clock.now().mono
	since := c.campaign.claimsFailingSince.Load()
	if since == nil {
		c.campaign.claimsFailingSince.Store(&now)
		return
	}
	if now.Sub(*since) < c.campaign.options.duration {
		return
	}
	c.campaign.stats.setError(err)
	c.campaign.log.warn("campaign stuck: claims fail although nothing has happened to the Lease; reading it afresh",
		"after", rounded(now.Sub(*since)), "error", err)
	if c.campaign.reflector.readAfresh(ctx) == nil { // else it logs its own failure
		c.campaign.claimsFailingSince.Store(nil)
	}
}

// pause gives others their turn after the session s, which was of this lease.
func (c *candidate) pause(ctx context.Context, s *session) {
	clock, interval := c.campaign.clock, c.campaign.options.renewInterval
	lost := s.loss() != nil
	if lost && s.began.add(interval).left(clock.now()) > 0 {
		sleep(ctx, clock, c.delays.next(nil, interval)) // what ended it may do so again and again
		return
	}
	c.delays.reset()
	if !lost {
		sleep(ctx, clock, c.campaign.options.between(interval/4, interval*3/4))
	}
}
