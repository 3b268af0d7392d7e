package leasehold

import (
	"math"
	"time"
)

// A spread is the time over which a candidate spreads its tries to take a lease that others may take
// too. Candidates that all saw the lease become free must not all write, and a lone standby must not
// wait.
//
// Nothing in a Lease tells how many follow it, and asking would cost a request. So a candidate starts
// with no spread, and learns from races: each that it loses widens the spread, each that it wins
// narrows it. The first release that a hundred new candidates meet costs a hundred writes, and the
// third about as many; the fourth costs a few. To spare the first ones, each candidate would have to
// wait without cause, a lone standby too.
//
// Being beaten before the own turn came narrows the spread a little. Otherwise whoever lost races
// would give way forever to those who did not: two who take turns would keep a third out, and of a
// hundred candidates some two would lead in turn. That costs a few lost races per release in a large
// fleet, and in a fleet that has become small it takes the wait away.
type spread time.Duration

// longestSpread is enough for hundreds of candidates: the first of a hundred writes after some 27 ms.
const longestSpread = spread(100 * time.Millisecond)

// lost returns the spread after a race was lost.
func (s spread) lost(interval time.Duration) spread {
	return min(4*s+spread(5*time.Millisecond), longestSpread, spread(interval/2))
}

// won returns the spread after the lease was taken.
func (s spread) won() spread { return (s / 2).orNone() }

// beaten returns the spread after another took the lease while this candidate let its time pass.
func (s spread) beaten() spread { return (s - s/16).orNone() }

// orNone returns s, or 0 if it is too little to keep apart two requests.
func (s spread) orNone() spread {
	if s < spread(time.Millisecond) {
		return 0
	}
	return s
}

// delay returns how long to wait before a try. It is drawn by luck, which is uniform in [0, 1). In a
// wide spread, which means many rivals, few draw a short delay and most a long one, so that however
// many they are the first one is a while ahead of the second: the sooner the more they are. In a narrow
// one all delays are about as likely.
func (s spread) delay(luck float64) time.Duration {
	if s == 0 {
		return 0
	}
	width := float64(s) / float64(longestSpread)
	k := 6 * width * width
	return time.Duration(float64(s) * math.Log1p(luck*math.Expm1(k)) / k)
}
