package leasehold

import "time"

// restingKeys are not given out for a while after they were given back.
type restingKeys struct {
	options *options
	byKey   map[string]keyRest
}

// A keyRest is how long a key is not given out after it was given back.
type keyRest struct {
	until    time.Time
	failures int
}

// longestRest is for how long a key whose work fails again and again is not given out.
const longestRest = 5 * time.Minute

// add keeps keys that were freed from being given out for a while, longer each time that their work fails.
func (k *restingKeys) add(freed map[string]bool, now time.Time) {
	o := k.options
	for key, failed := range freed {
		r := k.byKey[key]
		wait := o.between(o.renewInterval/4, o.renewInterval*3/4)
		r.failures++
		if !failed {
			r.failures = 0
		}
		wait = min(wait<<min(r.failures, 20), longestRest)
		r.until = now.Add(wait)
		k.byKey[key] = r
	}
	for key, r := range k.byKey {
		if now.Sub(r.until) > 2*longestRest {
			delete(k.byKey, key)
		}
	}
}

// at returns the keys that rest at now.
func (k *restingKeys) at(now time.Time) map[string]bool {
	keys := map[string]bool{}
	for key, r := range k.byKey {
		if now.Before(r.until) {
			keys[key] = true
		}
	}
	return keys
}

// until returns until when a key rests.
func (k *restingKeys) until(key string) time.Time { return k.byKey[key].until }

// next returns when the next key has rested.
func (k *restingKeys) next(now time.Time) time.Time {
	next := now.Add(maxDuration)
	for _, r := range k.byKey {
		if r.until.After(now) {
			next = earlier(next, r.until)
		}
	}
	return next
}
