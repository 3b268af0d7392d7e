package main

import (
	"fmt"
	"sync"
	"time"
)

// herd measures fleets whose lease becomes free for all at once: how long until one of the standbys leads, and how
// many writes the standbys have tried by then. The first handover of a fleet is apart from later ones, in which its
// candidates may have learned that they are many. Then leaders crash, and their leases expire for all at once.
func (b *bench) herd() error {
	o, err := b.observe() // before anybody leads: of what was before, a watch does not say when it was written
	if err != nil {
		return err
	}
	defer o.close()
	var fleets [len(sides)]*fleet
	var releases [len(sides)][]succession
	for i, which := range []int{ours, elector} {
		f, err := b.newFleet(which)
		if err != nil {
			return err
		}
		fleets[which] = f
		for range []int{b.herds, b.polledHerds}[i] {
			s, err := f.release()
			if err != nil {
				return err
			}
			releases[which] = append(releases[which], s)
		}
	}
	var expiries [len(sides)][]succession
	for range b.expiries {
		var both sync.WaitGroup
		var errs [len(sides)]error
		for which, f := range fleets {
			both.Go(func() {
				var s succession
				s, errs[which] = f.expire(o)
				expiries[which] = append(expiries[which], s)
			})
			if err := b.sleep(b.period / 2); err != nil { // so that they expire one after the other
				return err
			}
		}
		both.Wait()
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
	}
	for _, f := range fleets {
		if err := f.disband(); err != nil {
			return err
		}
	}
	theirs, our := releases[elector], releases[ours]
	known := min(5, len(our)-1)
	b.herdRows("released, first time", theirs[:1], our[:1], "", nil)
	b.herdRows("released, later", theirs[1:], our[known:], "p50 <= 4 writes, 50 ms",
		func(writes, took *summary) bool { return writes.P50 <= 4 && took.P50 <= 0.050 })
	b.herdRows("expired", expiries[elector], expiries[ours], "", nil)
	var all []int
	for _, s := range our {
		all = append(all, s.writes)
	}
	b.report.note("herd: \"later\" begins with leasehold's handover %d, once its candidates know each other; "+
		"its write attempts from one handover to the next: %v.", known+1, all)
	return nil
}

func (b *bench) herdRows(what string, theirs, our []succession, goal string, reached func(writes, took *summary) bool) {
	writes := func(all []succession) *summary {
		return summarizeBy(all, func(s succession) float64 { return float64(s.writes) })
	}
	late := func(all []succession) *summary {
		return summarizeBy(all, func(s succession) float64 { return float64(s.late) })
	}
	took := func(all []succession) *summary {
		return summarizeBy(all, func(s succession) float64 { return s.took.Seconds() })
	}
	ourWrites, ourTook := writes(our), took(our)
	if reached == nil {
		b.report.add(row{What: "herd " + what + ": writes until one leads", ClientGo: writes(theirs),
			Leasehold: ourWrites}, nil)
	} else {
		b.report.add(row{What: "herd " + what + ": writes until one leads", ClientGo: writes(theirs),
			Leasehold: ourWrites, Goal: goal},
			func() bool { return reached(ourWrites, ourTook) })
	}
	b.report.add(row{What: "herd " + what + ": writes after that", ClientGo: late(theirs), Leasehold: late(our)}, nil)
	b.report.add(row{What: "herd " + what + ": time to the new leader", Unit: "s", ClientGo: took(theirs),
		Leasehold: ourTook}, nil)
}

func summarizeBy[T any](all []T, value func(T) float64) *summary {
	values := make([]float64, 0, len(all))
	for _, v := range all {
		values = append(values, value(v))
	}
	return summarize(values...)
}

// A fleet is one leader and many standbys.
type fleet struct {
	*bench
	which      int
	lease      string
	leader     *candidate
	candidates []*candidate
	successors chan successor

	mu sync.Mutex // protects leader where others than the experiment look at it
}

// A successor is somebody who began to lead, at a time when the others had tried so many writes.
type successor struct {
	*candidate
	at     time.Time
	writes int64
}

// A succession is how the lease went from one leader to the next.
type succession struct {
	took         time.Duration
	writes, late int // tries of the standbys until one led, and within a second after that
}

func (b *bench) newFleet(which int) (*fleet, error) { return b.newFleetOf(which, b.standbys) }

// newFleetOf starts a leader, then its standbys one by one, and returns when they follow the lease.
func (b *bench) newFleetOf(which, standbys int) (*fleet, error) {
	f := &fleet{bench: b, which: which, lease: b.lease("fleet"), successors: make(chan successor, 100)}
	s, err := f.succeed(func() { f.add() })
	if err != nil {
		return nil, err
	}
	f.leader = s.candidate
	for range standbys {
		f.add()
		if err := b.sleep(20 * time.Millisecond); err != nil {
			return nil, err
		}
	}
	for _, c := range f.candidates {
		if which == ours {
			if _, err := receive(b, "watch", c.watching); err != nil {
				return nil, err
			}
		}
	}
	return f, b.sleep(b.period)
}

func (f *fleet) add() {
	var c *candidate
	ready := make(chan struct{})
	c = f.start(f.which, f.lease, fmt.Sprintf("%s-%d", f.lease, len(f.candidates)), f.timing, func() {
		<-ready
		f.successors <- successor{c, time.Now(), f.standbyWrites()}
	})
	f.mu.Lock()
	f.candidates = append(f.candidates, c)
	f.mu.Unlock()
	close(ready)
}

// standbyWrites returns how many writes all but the leader have tried.
func (f *fleet) standbyWrites() (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.candidates {
		if c != f.leader {
			n += c.writes.Load()
		}
	}
	return n
}

// succeed makes the lease free, and waits for who leads next.
func (f *fleet) succeed(free func()) (successor, error) {
	free()
	return receive(f.bench, "new leader", f.successors)
}

// release has the leader release the lease and campaign again.
func (f *fleet) release() (succession, error) {
	before, begun := f.standbyWrites(), time.Now()
	s, err := f.succeed(func() { f.leader.yield <- struct{}{} })
	if err != nil {
		return succession{}, err
	}
	return f.succeeded(s, before, begun)
}

// expire crashes the leader, and replaces it by a new standby once its lease has gone to another.
func (f *fleet) expire(o *observer) (succession, error) {
	before := f.standbyWrites()
	s, err := f.succeed(f.leader.crash)
	if err != nil {
		return succession{}, err
	}
	last, ok := o.last(f.lease, f.leader.name)
	if !ok {
		return succession{}, fmt.Errorf("%s was not seen to lead", f.leader.name)
	}
	result, err := f.succeeded(s, before, last.at.Add(last.duration))
	f.add()
	return result, err
}

// succeeded returns what led to s, and lets things settle.
func (f *fleet) succeeded(s successor, before int64, begun time.Time) (succession, error) {
	result := succession{took: s.at.Sub(begun), writes: int(s.writes - before)}
	err := f.sleep(time.Second)
	result.late = int(f.standbyWrites() - s.writes) // the new leader has not renewed yet
	f.mu.Lock()
	f.leader = s.candidate
	f.mu.Unlock()
	return result, err
}

func (f *fleet) disband() error { return f.halt(f.candidates...) }
