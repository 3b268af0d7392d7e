package sim

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/leasehold-go/leasehold"
)

// An rng is the chance of one question, which parts identify: it does not matter in which order goroutines ask in one
// instant.
type rng struct{ *rand.Rand }

func newRNG(parts ...uint64) rng {
	h := uint64(0x9e3779b97f4a7c15)
	for _, p := range parts {
		h = (h ^ p) * 0xff51afd7ed558ccd
		h ^= h >> 32
	}
	return rng{rand.New(rand.NewPCG(h, h*0xc4ceb9fe1a85ec53))}
}

// chance is true with probability p.
func (r rng) chance(p float64) bool { return r.Float64() < p }

// logUniform returns a duration whose magnitude is uniform between those of low and high.
func (r rng) logUniform(low, high time.Duration) time.Duration {
	return time.Duration(float64(low) * math.Pow(float64(high)/float64(low), r.Float64()))
}

func (r rng) uniform(low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)+1))
}

func (r rng) seconds(of ...int) time.Duration {
	return time.Duration(of[r.IntN(len(of))]) * time.Second
}

// chance draws the chance of a candidate from parts and the time.
func (w *World) chance(parts ...uint64) leasehold.Option {
	return w.hooks.Chance(func(n time.Duration) time.Duration {
		return time.Duration(newRNG(append(slices.Clone(parts), uint64(w.now()))...).Int64N(int64(n)))
	})
}

// namesakeChance is chance for one of two processes with the same identity. What makes their claims differ, the part
// of a millisecond in acquireTime, is drawn from two values: it often does not.
func (w *World) namesakeChance(parts ...uint64) leasehold.Option {
	return w.hooks.Chance(func(n time.Duration) time.Duration {
		r := newRNG(append(slices.Clone(parts), uint64(w.now()))...)
		if n == time.Millisecond {
			return time.Duration(r.Int64N(2)) * n / 2
		}
		return time.Duration(r.Int64N(int64(n)))
	})
}

// backOff draws the delays of a candidate from parts.
func backOff(parts ...uint64) leasehold.Option {
	policies := uint64(0)
	return leasehold.WithBackOff(func() backoff.BackOff {
		policies++
		return &jitteredBackOff{rng: newRNG(append(slices.Clone(parts), policies)...)}
	})
}

// A jitteredBackOff has the delays of leasehold's default policy, by an rng of its own.
type jitteredBackOff struct {
	rng
	last time.Duration
}

func (b *jitteredBackOff) Reset() { b.last = 0 }
func (b *jitteredBackOff) NextBackOff() time.Duration {
	b.last = min(650*time.Millisecond, max(50*time.Millisecond, 2*b.last))
	return b.uniform(b.last/2, b.last*3/2)
}
