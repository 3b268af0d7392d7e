package leasehold

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// WithSlots allows n sessions at once over the fleet: a semaphore in place of a mutex. The slots are the Leases NAME-0
// to NAME-<n-1>, where NAME is that of WithLease, and each is a lease as any other: a campaign follows all of them and
// holds at most one. Of several that are free it takes the one with the lowest number, or any of them where many
// candidates compete. Session.Slot is the number.
//
// Candidates that disagree about n, as during a rollout, share the slots that all of them know; there can be as many
// sessions as the largest n. WithSlots excludes CreateNew and WithReclaim.
func WithSlots(n int) Option {
	return func(o *options) {
		o.slots = n
		if n < 1 || n > maxSlots {
			o.fault("WithSlots: want 1 to %d slots, not %d", maxSlots, n)
		}
	}
}

// maxSlots bounds what a candidate follows.
const maxSlots = 1000

// Slot returns the number of the slot that the session holds, from 0 to n-1 for WithSlots(n). No two live sessions have
// the same, so that it serves as the number of a worker. It is 0 without WithSlots.
func (s Session) Slot() int {
	if s, ok := s.state.(*session); ok {
		return s.campaign.options.slot
	}
	return 0
}

// slotName returns the name of the Lease of a slot.
func slotName(name string, slot int) string { return name + "-" + strconv.Itoa(slot) }

// forSlot returns the options of the campaign for one slot.
func (o *options) forSlot(slot int) *options {
	of := *o
	of.slot, of.name = slot, slotName(o.name, slot)
	return &of
}

// campaigns are those of one loop, or of one call of Acquire: one or, with WithSlots, one for each slot. Those of
// several slots have a context, an identity, and what runs the program's code in common.
type campaigns []*campaign

// newCampaigns prepares to campaign. It makes no request yet; start does.
func newCampaigns(ctx context.Context, o *options) (campaigns, error) {
	if o.slots == 0 {
		c, err := newCampaign(ctx, o, nil)
		if err != nil {
			return nil, err
		}
		return campaigns{c}, nil
	}
	var cs campaigns
	made := false
	defer func() {
		if !made {
			cs.close()
		}
	}()
	var first *campaign
	for slot := range o.slots {
		c, err := newCampaign(ctx, o.forSlot(slot), first)
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = c
		}
		cs = append(cs, c)
	}
	made = true
	return cs, nil
}

// start begins to follow the Leases.
func (cs campaigns) start() {
	for _, c := range cs {
		c.start()
	}
}

// close ends the campaigns: nothing that they started is left. A claim that acquired a lease unheard of is released.
// It may be called again after another request was made.
func (cs campaigns) close() {
	for _, c := range cs {
		c.strays.Wait()
		c.unregister()
		c.resolveDoubt()
		c.reflector.close()
		c.lease.failures.close()
	}
	if len(cs) > 0 {
		cs[0].user.wait()
	}
	for _, c := range cs {
		c.client.close(!c.closed.Swap(true))
		c.stats.close(c)
		c.cancel(nil)
	}
}

// ctx returns the context of the campaigns, which ends with the caller's, or when the program's code panics.
func (cs campaigns) ctx() context.Context { return cs[0].ctx }

// repanic goes on with a panic of the program's code that ended the campaigns.
func (cs campaigns) repanic() { cs[0].user.repanic() }

// news returns the channel that is ready to receive from when there is news of any of the Leases.
func (cs campaigns) news() <-chan struct{} {
	if len(cs) == 1 {
		return cs[0].store.changed
	}
	return cs[0].store.changedAny
}

// candidates wait for any of the leases of campaigns. They are on one goroutine, the caller's, and claim one lease at a
// time, the next one only when it is known what became of the claim before, or when that could not be had.
type candidates struct {
	campaigns campaigns
	all       []*candidate
	rivals    rivals    // those for one slot are those for another
	settled   time.Time // until then no lease is claimed while another has not been read yet
}

func newCandidates(cs campaigns) *candidates {
	k := &candidates{campaigns: cs, settled: cs[0].clock.now().mono.Add(cs[0].options.renewInterval / 4)}
	for _, c := range cs {
		k.all = append(k.all, newCandidate(c, &k.rivals))
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
		chances, wake, err := k.look(ctx)
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
		timer = renewTimer(timer)
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

// look returns the leases that may be claimed now, the one with the lowest number first, and how long to wait if there
// is none. The error is what ends the campaigns.
func (k *candidates) look(ctx context.Context) (chances []chance, wake time.Duration, err error) {
	wake = maxDuration
	allKnown := true
	for _, one := range k.all {
		o, wait, err := one.look(ctx)
		if err != nil {
			return nil, 0, err
		}
		if wait <= 0 {
			chances = append(chances, chance{one, o})
		}
		wake, allKnown = min(wake, wait), allKnown && o.known
	}
	if left := k.settled.Sub(k.campaigns[0].clock.now().mono); left > 0 && !allKnown && len(chances) > 0 {
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
	if k.rivals.window == 0 {
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
	s.campaign.strays.Go(func() error {
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
		return nil
	})
}

// pause gives others their turn after the session s.
func (k *candidates) pause(ctx context.Context, s *session) {
	s.campaign.strays.Wait()
	k.rivals.led = s.campaign.clock.now().mono
	for _, c := range k.all {
		if c.campaign == s.campaign {
			c.pause(ctx, s)
		} else {
			c.delays.reset()
		}
	}
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
		holders = append(holders, strconv.Quote(one.campaign.store.latest().identity))
	}
	return nil, fmt.Errorf("leasehold: %w: all %d slots, by %s", ErrHeld, len(holders), strings.Join(holders, ", "))
}
