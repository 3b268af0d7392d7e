package leasehold

import (
	"sync/atomic"
	"time"
)

// answerTimes records how long the API server takes to answer the requests of a shared client: the network's round trip
// and the server's work, and now and then a connection to be opened.
type answerTimes struct{ recent atomic.Int64 } // nanoseconds; 0 until something was answered

// answered records that a request was answered after d. The estimate rises at once, and falls by a quarter.
func (a *answerTimes) answered(d time.Duration) {
	a.recent.Store(int64(max(d, time.Duration(a.recent.Load())/4*3, 1)))
}

// A patience is how long the answer to one kind of request is waited for: usually least, but twice as long as answers
// took recently, and at most most. It is most until something was answered.
type patience struct {
	answers     *answerTimes
	least, most time.Duration
}

// now returns how long to wait for the answer to a request that is made now.
func (p patience) now() time.Duration {
	recent := time.Duration(p.answers.recent.Load())
	if recent == 0 {
		return p.most
	}
	return min(max(p.least, 2*recent), p.most)
}
