package leasehold

import "time"

// A keyRest is how long a key is not given out after it was given back.
type keyRest struct {
	until    time.Time
	failures int
}

// rest keeps keys from being given out for a while, longer each time that their work fails.
func (a *assigner) rest(freed map[string]bool, now time.Time) {
	o := a.group.campaign.options
	for key, failed := range freed {
		r := a.rests[key]
		wait := o.between(o.renewInterval/4, o.renewInterval*3/4)
		r.failures++
		if !failed {
			r.failures = 0
		}
		wait = min(wait<<min(r.failures, 20), longestRest)
		r.until = now.Add(wait)
		a.rests[key] = r
	}
	for key, r := range a.rests {
		if now.Sub(r.until) > 2*longestRest {
			delete(a.rests, key)
		}
	}
}

// longestRest is for how long a key whose work fails again and again is not given out.
const longestRest = 5 * time.Minute

// resting returns the keys that rest.
func (a *assigner) resting(now time.Time) map[string]bool {
	keys := map[string]bool{}
	for key, r := range a.rests {
		if now.Before(r.until) {
			keys[key] = true
		}
	}
	return keys
}

// nextRest returns when the next key has rested.
func (a *assigner) nextRest(now time.Time) time.Time {
	next := now.Add(maxDuration)
	for _, r := range a.rests {
		if r.until.After(now) {
			next = earlier(next, r.until)
		}
	}
	return next
}
