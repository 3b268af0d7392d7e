package leasehold

import (
	"context"
	"time"
)

// A setback is that a request about a Lease failed. It is left alone for a while, so that it does not keep the others
// from what is done for them.
type setback struct {
	until    time.Time
	failures int // in a row, of those that no outage explains
}

// putOff leaves alone what a request failed for with err, longer each time if it was refused.
func (a *assigner) putOff(what string, err error) {
	s := a.setbacks[what]
	pause := max(refusedDelay, retryAfter(err))
	if refused(err) || conflicts(err) {
		pause <<= min(s.failures, 10)
		s.failures++
	}
	s.until = a.clock.now().mono.Add(min(pause, a.group.campaign.options.duration))
	a.setbacks[what] = s
}

// untilFence returns how long to wait before the term of m, which the Lease with a name shows, may be fenced: until it
// was not seen to be renewed for its duration, and a fence that failed has been left alone.
func (a *assigner) untilFence(v view, name string, m memberView) time.Duration {
	return later(m.seen.expiresAt(), a.setbacks[name].until).Sub(v.now)
}

// fence ends the term of a member whose Lease was not seen to be renewed for its duration: no renewal that is under way
// takes effect any more. If the write fails, the Lease is left alone for a while. If it failed because the Lease has
// changed unseen, everything is read afresh.
func (a *assigner) fence(ctx context.Context, v view, name string, m memberView) {
	lease, err := a.group.client.patch(ctx, "fence", name, m.seen.record, nil, freeSpec{})
	if err != nil {
		a.putOff(name, err)
		if conflicts(err) { // something happened that was not seen
			a.forgetUnlabelled(name) // reading afresh would not show it
			a.readAfresh(v, v.now)
		}
		return
	}
	a.group.campaign.log.info("member of the group did not renew its lease; its keys are given to others",
		"group", a.group.client.group, "member", m.seen.identity)
	delete(a.setbacks, name)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setLocked(lease)
}
