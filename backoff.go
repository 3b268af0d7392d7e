package leasehold

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// shortestDelay bounds how fast a failing request is repeated, whatever WithBackOff says.
	shortestDelay = 10 * time.Millisecond
	// longestDelay keeps recovery within G8: with the jitter of defaultBackOff, which adds half of
	// it at most, a candidate is back within a second of the last fault.
	longestDelay = 650 * time.Millisecond
	// refusedDelay is for what does not mend itself, such as a missing right.
	refusedDelay = 900 * time.Millisecond
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

// delays are the pauses after failures in a row. Each goroutine that makes requests has its own.
type delays struct{ policy backoff.BackOff }

// next returns how long to wait after one more failure: what the policy says or, if that is longer,
// what the server asked for, at most limit. A policy that gives up starts over, because only the
// context ends a campaign.
func (d delays) next(err error, limit time.Duration) time.Duration {
	pause := d.policy.NextBackOff()
	if pause == backoff.Stop {
		d.policy.Reset()
		pause = longestDelay
	}
	if refused(err) {
		pause = refusedDelay
	}
	return max(shortestDelay, min(limit, max(pause, retryAfter(err))))
}

// refused tells whether the server will say no again until somebody changes something.
func refused(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsMethodNotSupported(err)
}

func (d delays) reset() { d.policy.Reset() }

// sleep waits for d of clock c, or until ctx ends.
func sleep(ctx context.Context, c clock, d time.Duration) {
	timer := time.NewTimer(c.wait(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// between returns a random duration in [low, high).
func (o *options) between(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + o.chance(high-low)
}

// luck returns a random number in [0, 1).
func (o *options) luck() float64 { return float64(o.chance(time.Hour)) / float64(time.Hour) }
