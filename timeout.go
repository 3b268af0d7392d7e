package leasehold

import (
	"sync/atomic"
	"time"
)

// answerTimes records how long the API server takes to answer the requests of a shared client: the network's round
// trip and the server's work, and now and then a connection to be opened.
type answerTimes struct{ recent atomic.Int64 } // nanoseconds; 0 until something was answered

// record records that a request was answered after d. The estimate rises at once, and falls by a quarter.
func (a *answerTimes) record(d time.Duration) {
	a.recent.Store(int64(max(d, time.Duration(a.recent.Load())/4*3, 1)))
}

// A requestTimeout is how long a request of one kind may take: usually least, but twice as long as answers took
// recently, and at most most. It is most until something was answered.
type requestTimeout struct {
	answers     *answerTimes
	least, most time.Duration
}

// freshTimer returns a timer in place of t, which is stopped. A stopped or postponed timer, as that of a request or
// net/http's for pings, stays in the runtime's heap and wakes the process at its old time. Adding a timer cleans the
// heap; Reset does not. So this makes a new one.
func freshTimer(t *time.Timer) *time.Timer {
	t.Stop()
	return time.NewTimer(0)
}

// longestTimeout bounds every request: after it, a new one is more likely to be answered.
const longestTimeout = 10 * time.Second

// timeout returns the timeout of requests that usually take at most least. One that is lost costs at most the renew
// deadline.
func (s *sharedClient) timeout(o *options, least time.Duration) requestTimeout {
	return requestTimeout{&s.answers, min(least, longestTimeout), min(o.renewDeadline, longestTimeout)}
}

// current returns the timeout of a request that is made now.
func (t requestTimeout) current() time.Duration {
	recent := time.Duration(t.answers.recent.Load())
	if recent == 0 {
		return t.most
	}
	return min(max(t.least, 2*recent), t.most)
}
