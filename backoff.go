package leasehold

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v4"
)

const (
	// shortestDelay bounds how fast a failing request is repeated, whatever WithBackOff says.
	shortestDelay = 10 * time.Millisecond
	// longestDelay keeps recovery within G8 (safety.md): with the jitter of defaultBackOff, which adds half of
	// it at most, a candidate is back within a second of the last fault.
	longestDelay = 650 * time.Millisecond
	// refusedDelay follows a refusal that only a change of configuration ends, such as a missing right.
	refusedDelay = 900 * time.Millisecond
	// policyLimit is how long a BackOff of the user's may take to name a delay.
	policyLimit = 100 * time.Millisecond
)

// defaultBackOff starts at 50 ms and doubles up to 650 ms, each delay up to half longer or shorter
// by chance; it never gives up.
func defaultBackOff() backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(50*time.Millisecond),
		backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(0.5),
		backoff.WithMaxInterval(longestDelay),
		backoff.WithMaxElapsedTime(0),
	)
}

// delays are the pauses after failures in a row. Each goroutine that makes requests has its own. A policy
// of the user's that does not name a delay at once is not asked again before it has answered.
type delays struct {
	policy  backoff.BackOff // the default one is made when it is used
	restart bool            // at the next failure they begin with the first of the policy, the shortest by default
	user    *userPolicy     // how it is asked; nil for the default one
}

// A userPolicy is how a policy of the user's is asked.
type userPolicy struct {
	code     *userCode // runs it
	fallback backoff.BackOff
	asked    chan time.Duration // has room for the answer of a policy that was late; nil while none is
}

// newDelays returns delays by a policy of newPolicy's, which may be the user's.
func newDelays(newPolicy func() backoff.BackOff, user *userCode) *delays {
	if newPolicy == nil {
		return &delays{}
	}
	return &delays{policy: newPolicy(), user: &userPolicy{code: user, fallback: defaultBackOff()}}
}

// next returns how long to wait after one more failure: what the policy says or, if that is longer,
// what the server asked for, at most limit. A policy that gives up starts over, because only the
// context ends a campaign.
func (d *delays) next(err error, limit time.Duration) time.Duration {
	pause := d.ask()
	if refused(err) {
		pause = refusedDelay
	}
	return max(shortestDelay, min(limit, max(pause, retryAfter(err))))
}

// reset makes the delays begin with the first of the policy, the shortest by default, at the next failure.
func (d *delays) reset() { d.restart = true }

// mayWait reports whether next may wait, at most for policyLimit.
func (d *delays) mayWait() bool { return d.user != nil }

// ask returns the delay that the policy names, or the default one if it does not name one soon.
func (d *delays) ask() time.Duration {
	u := d.user
	if u == nil {
		if d.policy == nil {
			d.policy = defaultBackOff()
		}
		pause := step(d.policy, d.restart)
		d.restart = false
		return pause
	}
	if u.asked == nil {
		u.asked = make(chan time.Duration, 1)
		asked, pause, restart := u.asked, longestDelay, d.restart
		d.restart = false
		u.code.start("BackOff", policyLimit, func() { pause = step(d.policy, restart) }, func() { asked <- pause })
	}
	timer := time.NewTimer(u.code.clock.wait(policyLimit))
	defer timer.Stop()
	select {
	case pause := <-u.asked:
		u.asked = nil
		return pause
	case <-timer.C:
		return u.fallback.NextBackOff()
	}
}

// step returns the next delay of policy, which starts over before that, or when it gives up.
func step(policy backoff.BackOff, restart bool) time.Duration {
	if restart {
		policy.Reset()
	}
	pause := policy.NextBackOff()
	if pause == backoff.Stop {
		policy.Reset()
		pause = longestDelay
	}
	return pause
}

// sleep waits for d of clock c, or until ctx ends.
func sleep(ctx context.Context, c clock, d time.Duration) {
	timer := time.NewTimer(c.wait(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
