package leasehold

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// userCode runs all code of a campaign that is the user's, or that a user may have wrapped: requests, whose
// transport and dialler may be theirs, the logger, the event recorder, a BackOff, the function of
// WithOverrun. Each call runs on a goroutine of its own, so that code that blocks holds up nothing but
// itself, and code that panics or exits its goroutine takes nothing with it: the campaign ends as if its
// context had, gives the lease back, and the panic goes on where the user ranges over the loop.
//
// Nothing but these calls can keep a campaign from going on. Monitor.Check looks at them.
type userCode struct {
	clock clock
	abort func(*userPanic) // ends the campaign

	mu       sync.Mutex // protects following
	calls    []*call
	idle     chan struct{} // closed when there are no calls; nil while nobody waits for that
	queue    []func()      // what is to be run one after the other
	draining bool          // a call runs the queue
	dropped  int           // calls that found the queue full
	panicked *userPanic
}

// A call is code of the user's that runs now.
type call struct {
	what  string
	since time.Time     // by the monotonic clock
	limit time.Duration // how long it may take
	ended atomic.Bool
}

const (
	// maxQueue bounds how many log lines and events wait while an earlier one blocks.
	maxQueue = 128
	// maxOverdue bounds how many requests of a kind may be under way that did not end with their contexts.
	maxOverdue = 4
	// userCodeGrace is how long the end of a loop, or Release, waits for the user's code to return.
	userCodeGrace = time.Second
	// answerGrace is how long a request may take to end after its context did.
	answerGrace = 50 * time.Millisecond
	// noLimit is the limit of a call that may take as long as it likes.
	noLimit = time.Duration(1<<63 - 1)
)

// A userPanic is a panic of the user's code, and where it was.
type userPanic struct {
	value any
	stack []byte
}

func (p *userPanic) Error() string {
	return fmt.Sprintf("leasehold: panic in the program's code: %v", p.value)
}

// start runs f on a goroutine of its own. ended is called there when f has ended, in whatever way.
func (u *userCode) start(what string, limit time.Duration, f, ended func()) {
	go u.begin(what, limit, f, ended)()
}

// run runs f on a goroutine of its own, and returns when f has ended, at the latest after the grace.
func (u *userCode) run(what string, f func()) {
	ended := make(chan struct{})
	u.start(what, userCodeGrace, f, func() { close(ended) })
	timer := time.NewTimer(u.clock.wait(userCodeGrace))
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
}

// begin records that f is running. The caller runs what it returns on a goroutine of its own: f, and then ended, in
// whatever way f has ended.
func (u *userCode) begin(what string, limit time.Duration, f, ended func()) (run func()) {
	c := &call{what: what, since: u.clock.now().mono, limit: limit}
	u.mu.Lock()
	u.calls = append(u.calls, c)
	u.mu.Unlock()
	return func() {
		defer ended()
		defer u.end(c)
		defer func() {
			if r := recover(); r != nil {
				u.fail(&userPanic{r, debug.Stack()})
			}
		}()
		f()
	}
}

func (u *userCode) end(c *call) {
	c.ended.Store(true)
	u.mu.Lock()
	defer u.mu.Unlock()
	i := slices.Index(u.calls, c)
	u.calls = slices.Delete(u.calls, i, i+1)
	if len(u.calls) == 0 && u.idle != nil {
		close(u.idle)
		u.idle = nil
	}
}

// fail ends the campaign because of p or, for the code of a shared watch, all campaigns that follow by it now.
func (u *userCode) fail(p *userPanic) {
	u.mu.Lock()
	if u.panicked == nil {
		u.panicked = p
	}
	u.mu.Unlock()
	u.abort(p)
}

// failWith ends the campaign because the program's code panicked with value, on a goroutine that recovered it.
func (u *userCode) failWith(value any) { u.fail(&userPanic{value, debug.Stack()}) }

// repanic goes on with the panic that ended the campaign, if one did. It is called on the goroutine that ranges
// over the loop, or that called Acquire or Release.
func (u *userCode) repanic() {
	u.mu.Lock()
	p := u.panicked
	u.panicked = nil
	u.mu.Unlock()
	if p != nil {
		panic(p.value)
	}
}

// post runs f after all that was posted before. It does not wait for it.
func (u *userCode) post(f func()) {
	u.mu.Lock()
	if len(u.queue) == maxQueue {
		u.dropped++
		u.mu.Unlock()
		return
	}
	u.queue = append(u.queue, f)
	begin := !u.draining
	u.draining = true
	u.mu.Unlock()
	if begin {
		u.drain()
	}
}

// drain runs the queue until it is empty, also after code that exited its goroutine.
func (u *userCode) drain() {
	u.start("log line or event", 0, func() {
		for f := u.next(); f != nil; f = u.next() {
			f()
		}
	}, func() {
		u.mu.Lock()
		again := len(u.queue) > 0
		u.draining = again
		u.mu.Unlock()
		if again {
			u.drain()
		}
	})
}

// next takes the first of the queue, or returns nil.
func (u *userCode) next() func() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.queue) == 0 {
		return nil
	}
	f := u.queue[0]
	u.queue[0] = nil // what it refers to can be collected
	u.queue = u.queue[1:]
	return f
}

// takeDropped returns how many calls were dropped since it was called last.
func (u *userCode) takeDropped() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer func() { u.dropped = 0 }()
	return u.dropped
}

// wait returns when no call is under way, at the latest after the grace.
func (u *userCode) wait() {
	u.mu.Lock()
	if len(u.calls) == 0 {
		u.mu.Unlock()
		return
	}
	if u.idle == nil {
		u.idle = make(chan struct{})
	}
	idle := u.idle
	u.mu.Unlock()
	timer := time.NewTimer(u.clock.wait(userCodeGrace))
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	}
}

// underWay returns the calls under way.
func (u *userCode) underWay() []*call {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.calls)
}

// stuck returns the call that is the longest over its limit, and for how long. It is nil if there is none.
func (u *userCode) stuck() (*call, time.Duration) { return mostOverdue(u.underWay(), u.clock) }

func mostOverdue(calls []*call, by clock) (worst *call, over time.Duration) {
	now := by.now().mono
	for _, c := range calls {
		if late := now.Sub(c.since) - c.limit; c.limit != noLimit && late > over {
			worst, over = c, late
		}
	}
	return worst, over
}

// busy reports whether so many calls of a kind are over their limit that none may be added.
func (u *userCode) busy(what string) bool {
	now := u.clock.now().mono
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for _, c := range u.calls {
		if c.what == what && now.Sub(c.since) > c.limit {
			n++
		}
	}
	return n >= maxOverdue
}

// newRequest prepares a request. The caller runs what it returns on a goroutine of its own: f, and then answer with
// what f has returned, an examined error in any case. The error says why the request may not be made. The limit says
// when f is late.
func newRequest[T any](
	u *userCode, what string, limit time.Duration, f func() (T, error), answer func(T, error),
) (run func(), err error) {
	if u.busy(what) {
		return nil, fmt.Errorf("%s: not sent, because %d earlier ones have not ended with their contexts",
			what, maxOverdue)
	}
	var result struct {
		value    T
		err      error
		returned bool
	}
	return u.begin(what, limit, func() {
		result.value, result.err = f()
		result.err = examined(result.err)
		result.returned = true
	}, func() {
		if !result.returned {
			result.err = fmt.Errorf("%s: the program's code exited its goroutine", what)
		}
		answer(result.value, result.err)
	}), nil
}

// noAnswer is the error of a request that did not end with its context.
func noAnswer(what string, cause error) error { return fmt.Errorf("%s: no answer: %w", what, cause) }

// ask returns what f returns. It gives up when ctx has ended and f does not return soon; discard, unless it is
// nil, then gets what f returns later, as a part of the call. The limit says when f is late.
func ask[T any](
	ctx context.Context, u *userCode, what string, limit time.Duration, f func(context.Context) (T, error),
	discard func(T),
) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers, abandoned := make(chan answer), make(chan struct{})
	defer close(abandoned)
	var decided atomic.Bool // set first by f's goroutine: the caller gets the value; by the caller: it is discarded
	run, err := newRequest(u, what, limit, func() (T, error) {
		value, err := f(ctx)
		if err == nil && discard != nil && decided.Swap(true) {
			discard(value)
		}
		return value, err
	}, func(value T, err error) {
		select {
		case answers <- answer{value, err}:
		case <-abandoned:
		}
	})
	if err != nil {
		return *new(T), err
	}
	go run()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
	}
	timer := time.NewTimer(u.clock.wait(answerGrace))
	defer timer.Stop()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-timer.C:
	}
	if decided.Swap(true) {
		a := <-answers
		return a.value, a.err
	}
	return *new(T), noAnswer(what, ctx.Err())
}
