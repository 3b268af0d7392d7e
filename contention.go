package leasehold

import (
	"math"
	"time"
)

// A contentionWindow is the time over which a candidate spreads its tries to take a lease that others may try to
// take too, as the window of the same name in CSMA. Candidates that all saw the lease become free must not all
// write, and a lone standby must not wait.
//
// Nothing in a Lease says how many candidates follow it, and asking would cost a request. So a candidate starts
// without a window and learns from races: each race that it loses widens the window, each that it wins narrows
// it. The first two releases that a hundred new candidates see cost a hundred writes each, and the third ten or so.
// To spare the first ones, each candidate would have to wait without cause, a lone standby too.
//
// If another candidate takes the lease before the own try, the window narrows a little. Otherwise a candidate that
// lost races would always give way to those that did not: two that take turns would keep a third out, and of a
// hundred candidates about two would lead in turn. That costs a few lost races per release in a large fleet, and
// in a fleet that has become small it removes the wait.
type contentionWindow time.Duration

// A contention is what a candidate knows of the others.
type contention struct {
	window contentionWindow
	led    time.Time // when our last session ended; zero before the first
}

// delay returns how long to wait at now before a try to acquire a lease that is free, or expired. Where slots are
// released all the time, a candidate whose session has just ended would be as likely to have the next one as those that
// have waited, and one that was lucky in its races more so: it leaves them a little time, less as time goes on.
func (c *contention) delay(o *options, now time.Time) time.Duration {
	delay := c.window.delay(o.fraction())
	if left := o.duration - now.Sub(c.led); o.slots > 1 && !c.led.IsZero() && left > 0 {
		longest := min(longestTurn, o.renewInterval/2)
		delay += time.Duration(float64(longest) * left.Seconds() / o.duration.Seconds())
	}
	return delay
}

// longestWindow is enough for hundreds of candidates: of three hundred with such a window, the first writes after some
// 40 ms, and five before they can have seen that. With a third of it, three hundred all wrote again and again, because
// that is shorter than the time that the server takes to refuse so many.
const longestWindow = contentionWindow(300 * time.Millisecond)

// longestTurn is for how long a candidate leaves free slots to others at most.
const longestTurn = 100 * time.Millisecond

// lost returns the window after a race was lost.
func (w contentionWindow) lost(interval time.Duration) contentionWindow {
	return min(16*w+contentionWindow(5*time.Millisecond), longestWindow, contentionWindow(interval/2))
}

// won returns the window after the lease was acquired.
func (w contentionWindow) won() contentionWindow { return (w / 2).orNone() }

// preempted returns the window after another candidate acquired the lease before the own try.
func (w contentionWindow) preempted() contentionWindow { return (w - w/16).orNone() }

// orNone returns w, or 0 if it is too short to keep two requests apart.
func (w contentionWindow) orNone() contentionWindow {
	if w < contentionWindow(time.Millisecond) {
		return 0
	}
	return w
}

// delay returns how long to wait before a try; chance is uniform in [0, 1). In a wide window, which means many
// candidates, few of them draw a short delay and most a long one, so that the first one is well ahead of the second
// however many there are: the sooner the more there are. In a narrow window all delays are about as likely.
func (w contentionWindow) delay(chance float64) time.Duration {
	if w == 0 {
		return 0
	}
	width := float64(w) / float64(longestWindow)
	k := 6 * width * width
	return time.Duration(float64(w) * math.Log1p(chance*math.Expm1(k)) / k)
}
