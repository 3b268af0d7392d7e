// Package sim plays random schedules of faults against many candidates for one Lease, in virtual time, and checks
// leasehold's guarantees at every step.
//
// A seed makes a [World]: candidates with settings and clocks of their own, an API server in memory, a network with
// faults, machines that are suspended, and an operator. All chance is a function of the seed, of the one that asks and
// of the time, so that a seed that fails can be replayed. plan.go decides what will happen, faults.go what becomes of a
// request, candidate.go, elector.go and others.go are the processes, and checker.go checks them, with package oracle
// for who may lead.
package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasetest"
)

// Where the Lease is.
const (
	namespace = "default"
	name      = "reconciler"
)

// Hooks are what the simulation needs from leasehold that users do not get.
type Hooks struct {
	Clock  func(Clock) leasehold.Option                               // how a candidate measures time
	Chance func(func(n time.Duration) time.Duration) leasehold.Option // a random duration in [0, n)
	// from how many campaigns on they share a watch
	SharedFrom func(campaigns int) leasehold.Option
	// makes all requests but those of a shared watch
	OwnRequests func(leasehold.Leases) leasehold.Option
	// why the lease was lost, even if its context ended before; or nil
	Loss         func(leasehold.Session) error
	TrustedUntil func(leasehold.Session) Instant
}

// An Instant is one reading of a candidate's clocks.
type Instant struct {
	Mono time.Time     // stops while the machine is suspended
	Boot time.Duration // goes on then
}

// Add returns the instant d after i on both clocks.
func (i Instant) Add(d time.Duration) Instant { return Instant{i.Mono.Add(d), i.Boot + d} }

// A Clock is how a candidate measures time.
type Clock interface {
	Now() Instant
	// Wait returns how long the runtime's timers take to measure d of this clock.
	Wait(d time.Duration) time.Duration
}

// A World is what a seed makes.
type World struct {
	hooks      Hooks
	seed       uint64
	srv        *leasetest.Server
	start      time.Time
	candidates []*candidate
	electors   []*elector
	links      []*link
	observer   *observer // nil where there is none
	checker    *checker

	holderLink atomic.Pointer[link] // of the process that holds the lease
	lastBegan  atomic.Int64         // when a campaign last began

	slots       int  // that a candidate knows, at most; 0 where the lease has none
	prioritized bool // some candidates have priorities
	forges      bool // an operator writes what holders say of themselves

	latency   time.Duration // the longest way of a message in one direction where nothing is wrong
	faultsEnd time.Duration // when the faults begin to end
	lasted    time.Duration // the age of the world when it ended
	windows   []faultWindow
	actions   []action

	ctx     context.Context // ends with the world
	stop    context.CancelFunc
	running sync.WaitGroup

	mu         sync.Mutex
	faultsLast time.Duration // until when the faults so far have an effect; protected by mu
}

// An action is something that happens to the world at a time: by an operator, or to a network link or a machine.
type action struct {
	at   time.Duration
	who  string
	what string
	do   func()
}

// Simulate plays the world of a seed.
func Simulate(t *testing.T, hooks Hooks, seed uint64) *World { return newWorld(hooks, seed).play(t) }

func (w *World) play(t *testing.T) *World {
	func() {
		defer func() {
			// testing/synctest finds what is left, or stuck, in a world that has ended.
			if r := recover(); r != nil {
				w.checker.violation("the world did not end: %v", r)
			}
		}()
		synctest.Test(t, func(*testing.T) { w.run() })
	}()
	return w
}

// Failed reports whether a guarantee was violated.
func (w *World) Failed() bool { return len(w.checker.violations) > 0 }

// now returns the age of the world.
func (w *World) now() time.Duration { return time.Since(w.start) }

// sleepUntil reports whether the world still goes on then.
func (w *World) sleepUntil(at time.Duration) bool {
	timer := time.NewTimer(at - w.now())
	defer timer.Stop()
	select {
	case <-timer.C:
		return w.ctx.Err() == nil
	case <-w.ctx.Done():
		return false
	}
}

// run plays the world, in a bubble of testing/synctest.
func (w *World) run() {
	w.start = time.Now()
	w.ctx, w.stop = context.WithCancel(context.Background())
	w.srv = leasetest.NewServer()
	w.srv.OnCommit(w.checker.committed)
	for _, l := range w.links {
		l.connect()
	}
	for _, c := range w.candidates {
		w.running.Go(c.live)
		time.Sleep(time.Microsecond) // so that they have an order
	}
	for _, e := range w.electors {
		w.running.Go(e.live)
	}
	if w.observer != nil {
		w.running.Go(w.observer.live)
	}
	for _, a := range w.actions {
		if !w.sleepUntil(a.at) {
			break
		}
		w.checker.note(a.who, "%s", a.what)
		a.do()
		w.checker.look()
	}
	if w.sleepUntil(w.faultsEnd) && len(w.candidates) > 0 {
		w.endFaults()
	}
	w.end()
}

// endFaults ends the faults and checks that a candidate leads in time (G8, safety.md).
func (w *World) endFaults() {
	for _, l := range w.links {
		l.client.Partition(false)
		l.cuts.Store(0)
		l.client.ResumeWatches(false) // a watch that was silent can now be told that it ends
		l.client.CloseWatches(nil)    // one that was silent, or has lost events, is a fault too
	}
	w.checker.note("all", "the faults stop")
	for !w.quiet() {
		if w.now() > w.faultsEnd+5*time.Minute {
			w.checker.violation("requests or bodies from before the faults stopped are still in progress")
		}
		if !w.sleepUntil(w.now() + 100*time.Millisecond) {
			return
		}
	}
	quietSince := w.now()
	w.checker.note("all", "the faults have stopped")
	slowest := 1.0
	for _, c := range w.candidates {
		slowest = min(slowest, c.rate)
	}
	limit := time.Duration(float64(w.longestDuration()+time.Second) / slowest)
	if !w.wantLeader(quietSince+limit, limit) {
		return
	}
	w.checker.note("all", "%s leads", w.checker.leader())
	if w.sleepUntil(quietSince + 2*limit) {
		w.wantLeader(quietSince+3*limit, limit) // still, or again
	}
}

// wantLeader returns once there is a leader or, with slots, as many as there can be at least. It is a violation if that
// is not before the deadline. A candidate that begins meanwhile has to see a slot whose holder is gone for the limit.
func (w *World) wantLeader(deadline, limit time.Duration) bool {
	began := w.now()
	for !w.led() {
		if w.slots > 0 {
			deadline = max(deadline, time.Duration(w.lastBegan.Load())+limit)
		}
		if w.now() > deadline {
			w.checker.violation("no leader, or too few, %v after the last fault", w.now()-began)
		}
		if !w.sleepUntil(w.now() + 20*time.Millisecond) {
			return false
		}
	}
	return true
}

// led reports whether somebody leads or, with slots, whether none that all candidates know is free while one that
// waits goes without.
func (w *World) led() bool {
	if w.slots == 0 {
		return w.checker.leader() != ""
	}
	slots, waiting := w.slots, 0
	for _, c := range w.candidates {
		slots = min(slots, c.slots)
		if c.call == sessions && c.mode == leasehold.AutoCreate {
			waiting++
		}
	}
	return w.checker.leaders() >= min(slots, waiting)
}

// leases returns the names of the Leases.
func (w *World) leases() []string {
	if w.slots == 0 {
		return []string{name}
	}
	var names []string
	for slot := range w.slots {
		names = append(names, fmt.Sprintf("%s-%d", name, slot))
	}
	return names
}

// quiet reports whether the last fault is over: all messages that were sent, delayed or asked for before have
// arrived, requests without an answer have timed out, and no body holds a lease whose context has ended.
func (w *World) quiet() bool {
	if !w.faultsOver(w.now() + 1) {
		return false
	}
	for _, l := range w.links {
		if l.sentDuringFaults.Load() > 0 {
			return false
		}
	}
	return w.checker.windingDown() == ""
}

// faultsOver reports whether no fault so far has an effect at that time.
func (w *World) faultsOver(at time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faultsLast < at
}

// faultLasts records that a fault has an effect until then.
func (w *World) faultLasts(until time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faultsLast = max(w.faultsLast, until)
}

// end ends all campaigns while nothing is wrong, and checks that nothing is left of them.
func (w *World) end() {
	w.checker.note("all", "the end")
	w.lasted = w.now()
	faultless := w.ctx.Err() == nil
	if faultless {
		w.checker.observedAll(w.observer)
	}
	for _, l := range w.links {
		l.client.Partition(false) // after a violation there may still be faults
	}
	w.stop()
	ended := make(chan struct{})
	go func() {
		w.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Hour):
		w.checker.violation("a loop goes on an hour after its context ended")
		return
	}
	synctest.Wait()
	for _, l := range w.links {
		if n := l.client.WatchCount(); n > 0 {
			w.checker.violation("%s left %d watches", l.name, n)
		}
	}
	if faultless {
		w.checker.wantFree()
	}
	time.Sleep(time.Hour) // a request or a timer left behind would show
}

// A rateClock runs faster or slower than the world's.
type rateClock struct {
	start time.Time
	rate  float64
}

func (c rateClock) Now() Instant {
	passed := time.Duration(float64(time.Since(c.start)) * c.rate)
	return Instant{c.start.Add(passed), passed}
}

func (c rateClock) Wait(d time.Duration) time.Duration {
	return time.Duration(math.Ceil(float64(d) / c.rate))
}

// A machineClock is the clock of a machine that can be suspended. While it is, nothing else happens, so that the
// process finds the time gone without any timer having fired.
type machineClock struct {
	rateClock
	suspended *atomic.Int64
}

func (c machineClock) Now() Instant {
	now := c.rateClock.Now()
	now.Boot += time.Duration(c.suspended.Load())
	return now
}

// unlogged discards the log of a candidate.
func unlogged() leasehold.Option { return leasehold.WithLogger(slog.New(slog.DiscardHandler)) }
