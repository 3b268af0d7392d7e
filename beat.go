package leasehold

import "time"

// WithBeat loses the session if its work does not call Beat for d: a process that still renews its lease while its
// work is stuck keeps every other candidate from doing it. The loss has the reason "stalled", and the lease is not
// renewed any more, nor released, because the work may go on: others acquire it when it expires. The session is
// lost between d and 1.25 d after the last call. The first d begins when the session does. There is no default.
func WithBeat(d time.Duration) Option {
	return func(o *options) {
		o.beat = d
		if d < shortestDelay {
			o.fault("WithBeat: want a duration of at least %v, not %v", shortestDelay, d)
		}
	}
}

// Beat reports progress of the session's work, for WithBeat. It costs a few nanoseconds, so that a loop may call it
// every time. For a session without WithBeat, or one that has ended, it does nothing.
func (s Session) Beat() {
	if s.state != nil {
		s.state.beat()
	}
}

func (s *session) beat() {
	// A load is cheaper than a store, which other cores have to hear of.
	if !s.beaten.Load() {
		s.beaten.Store(true)
	}
}

// A beatCheck finds out, four times in each limit, whether the work called Beat. The renewer owns it.
type beatCheck struct {
	limit time.Duration // 0 where the work need not call Beat
	heard time.Time     // when a check last found a call; the call was earlier
	next  time.Time     // when to check next
}

// check returns how long to wait until the next check, and whether the work is stuck.
func (b *beatCheck) check(s *session, now time.Time) (wait time.Duration, stuck bool) {
	if b.limit == 0 {
		return maxDuration, false
	}
	if wait := b.next.Sub(now); wait > 0 {
		return wait, false
	}
	if s.beaten.Swap(false) || !s.delivered.Load() {
		b.heard = now
	}
	b.next = now.Add(b.limit / 4)
	if stuck = now.Sub(b.heard) >= b.limit; !stuck {
		b.next = earlier(b.next, b.heard.Add(b.limit)) // four quarters may be some nanoseconds less
	}
	return b.next.Sub(now), stuck
}
