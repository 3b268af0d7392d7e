package leasehold

import "time"

// An instant is one reading of the two clocks that measure how much time has passed.
type instant struct {
	mono time.Time     // Go's monotonic clock; on Linux and macOS it stops while the machine sleeps
	boot time.Duration // a clock that goes on while it sleeps, from an arbitrary origin
}

// add returns the instant d after i on either clock.
func (i instant) add(d time.Duration) instant {
	return instant{i.mono.Add(d), i.boot + d}
}

// left returns how long it is from now until i, by whichever clock has run further.
// It is negative once i has passed on either.
func (i instant) left(now instant) time.Duration {
	return min(i.mono.Sub(now.mono), i.boot-now.boot)
}

// A clock is how one candidate measures time. A holder judges its trust by both readings of an
// instant, because stopping too early is safe; a candidate waits for another's lease by the
// monotonic one alone, because waiting too long is.
type clock interface {
	now() instant
	// wait returns the duration for a timer of the runtime that is to measure d of this clock. It does not wait.
	wait(d time.Duration) time.Duration
}

// systemClock is the machine's own clock.
type systemClock struct{}

func (systemClock) now() instant                       { return instant{time.Now(), bootTime()} }
func (systemClock) wait(d time.Duration) time.Duration { return d }

func wallTime() time.Duration { return time.Duration(time.Now().UnixNano()) }

// wallTimeAt returns when, by the wall clock, the monotonic clock of c will show t.
func wallTimeAt(c clock, t time.Time) time.Time { return time.Now().Round(0).Add(t.Sub(c.now().mono)) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
