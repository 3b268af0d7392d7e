package leasehold

import (
	"context"
	"time"
)

// A setback is that a request about something failed. That is left alone for a while, so that it does not keep the
// others from what is done for them.
type setback struct {
	until    time.Time
	failures int // in a row, of those that no outage explains
}

// setbacks are those of what is known by a name.
type setbacks map[string]setback

// putOff leaves alone what a request failed for with err, longer each time if it was refused.
func (all setbacks) putOff(what string, err error, c *campaign) {
	s := all[what]
	pause := max(refusedDelay, retryAfter(err))
	if refused(err) || conflicts(err) {
		pause <<= min(s.failures, 10)
		s.failures++
	}
	s.until = c.clock.now().mono.Add(min(pause, c.options.duration))
	all[what] = s
}

// fences ends the terms of members that have crashed.
type fences struct {
	group  *group
	roster *roster
	fresh  *freshReads

	setbacks setbacks // by the name of a Lease, of fences that failed
}

// untilFence returns how long to wait before the term of m, which the Lease with a name shows, may be fenced: until it
// was not seen to be renewed for its duration, and a fence that failed has been left alone.
func (f *fences) untilFence(v view, name string, m memberView) time.Duration {
	return later(m.seen.expiresAt(), f.setbacks[name].until).Sub(v.now)
}

// fence ends the term of a member whose Lease was not seen to be renewed for its duration: no renewal that is under way
// takes effect any more. If the write fails, the Lease is left alone for a while. If it failed because the Lease has
// changed unseen, everything is read afresh.
func (f *fences) fence(ctx context.Context, v view, name string, m memberView) {
	lease, err := f.group.client.patch(ctx, "fence", name, m.seen.record, nil, freed(m.seen.record))
	if err != nil {
		f.setbacks.putOff(name, err, f.group.campaign)
		if conflicts(err) { // something happened that was not seen
			f.roster.forgetUnlabelled(name) // reading afresh would not show it
			f.fresh.readAfresh(v, v.now)
		}
		return
	}
	f.group.campaign.log.info("member of the group did not renew its lease; its keys are given to others",
		"group", f.group.client.group, "member", m.seen.identity)
	delete(f.setbacks, name)
	f.roster.record(lease)
}
