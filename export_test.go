package leasehold

import (
	"time"
)

// What the simulation needs of the core; sim_test.go gives it to package sim.

// A TestClock measures time by functions.
type TestClock struct {
	Now  func() (mono time.Time, boot time.Duration)
	Wait func(time.Duration) time.Duration
}

func WithTestClock(c TestClock) Option {
	return func(o *options) { o.hooks.clock, o.hooks.memory = testClock{c}, &leaseMemory{} }
}

type testClock struct{ c TestClock }

func (t testClock) now() instant {
	mono, boot := t.c.Now()
	return instant{mono, boot}
}

func (t testClock) wait(d time.Duration) time.Duration { return t.c.Wait(d) }

// WithChance draws all chance of a campaign from chance.
func WithChance(chance func(n time.Duration) time.Duration) Option {
	return func(o *options) { o.hooks.chance = chance }
}

// WithSharedFrom says from how many campaigns on they share a watch.
func WithSharedFrom(campaigns int) Option { return func(o *options) { o.hooks.shareFrom = campaigns } }

// WithOwnRequests makes all requests but those of a shared watch through leases.
func WithOwnRequests(leases Leases) Option {
	return func(o *options) {
		o.hooks.wrap = func(Leases) Leases { return leases }
	}
}

// LossOf returns why the lease of s was lost, even if its context ended before; nil if it was not.
func LossOf(s Session) error { return s.state.(*session).loss() }

// TrustedUntil returns until when s trusts its lease.
func TrustedUntil(s Session) (mono time.Time, boot time.Duration) {
	until := s.state.(*session).until.Load()
	return until.mono, until.boot
}
