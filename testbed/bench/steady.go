package main

import (
	"slices"
	"time"
)

// steady measures a fleet in which nothing happens: requests per second, what the API server's process, etcd included,
// uses of a CPU above what it uses idle, and what leader and standbys send and receive. The API server is measured idle
// before, between and after.
func (b *bench) steady() error {
	idle := make([]float64, 0, 3)
	measureIdle := func() error {
		cpu, err := b.serverCPU(b.idle)
		idle = append(idle, cpu)
		return err
	}
	if err := measureIdle(); err != nil {
		return err
	}
	var traffic [len(sides)]traffic
	for _, which := range []int{ours, elector} {
		f, err := b.newFleet(which)
		if err != nil {
			return err
		}
		if err := b.sleep(b.duration / 3); err != nil {
			return err
		}
		if traffic[which], err = f.traffic(b.window); err != nil {
			return err
		}
		if err := f.disband(); err != nil {
			return err
		}
		if err := measureIdle(); err != nil {
			return err
		}
	}
	floor := summarize(idle...).P50
	for i := range traffic {
		traffic[i].cpu -= floor
	}
	theirs, our := traffic[elector], traffic[ours]
	r := row{What: "steady fleet: requests/s", ClientGo: summarize(theirs.requests),
		Leasehold: summarize(our.requests), Goal: "<= 0.5"}
	b.report.add(r, func() bool { return our.requests <= 0.5 })
	r = row{What: "steady fleet: server CPU above idle, of a core", Unit: "%", ClientGo: summarize(theirs.cpu),
		Leasehold: summarize(our.cpu), Goal: "<= client-go / 12"}
	b.report.add(r, func() bool { return our.cpu <= theirs.cpu/12 })
	leader := row{What: "bytes on the wire per leader-hour", Unit: "B", ClientGo: summarize(theirs.leader),
		Leasehold: summarize(our.leader), Goal: "<= 1.36 MB"}
	b.report.add(leader, func() bool { return our.leader <= 1.36e6 })
	standby := row{What: standbyBytes, Unit: "B", ClientGo: summarize(theirs.standbys...),
		Leasehold: summarize(our.standbys...), Goal: "<= 535 kB"}
	b.report.add(standby, func() bool { return standby.Leasehold.P50 <= 535e3 })
	b.report.note("steady: measured over %v on each side, bytes extrapolated from that to an hour; "+
		"the idle server used %s to %s of a core in %d times %v.",
		b.window, format(slices.Min(idle), "%"), format(slices.Max(idle), "%"), len(idle), b.idle)
	return nil
}

const standbyBytes = "bytes on the wire per standby-hour"

// serverCPU returns how much of a core the API server uses in the next d, in percent.
func (b *bench) serverCPU(d time.Duration) (float64, error) {
	before, err := cpuTime(b.server.Pid())
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := b.sleep(d); err != nil {
		return 0, err
	}
	after, err := cpuTime(b.server.Pid())
	return 100 * (after - before).Seconds() / time.Since(begun).Seconds(), err
}

// A traffic is what a steady fleet causes.
type traffic struct {
	requests float64   // per second
	cpu      float64   // of the server's, in percent of a core
	leader   float64   // bytes per hour
	standbys []float64 // bytes per hour of each
}

func (f *fleet) traffic(d time.Duration) (t traffic, err error) {
	requests, bytes := make([]int64, len(f.candidates)), make([]int64, len(f.candidates))
	for i, c := range f.candidates {
		requests[i], bytes[i] = c.requests(), c.bytes()
	}
	begun := time.Now()
	if t.cpu, err = f.serverCPU(d); err != nil {
		return t, err
	}
	took := time.Since(begun)
	for i, c := range f.candidates {
		t.requests += float64(c.requests()-requests[i]) / took.Seconds()
		perHour := float64(c.bytes()-bytes[i]) / took.Hours()
		if c == f.leader {
			t.leader = perHour
		} else {
			t.standbys = append(t.standbys, perHour)
		}
	}
	return t, nil
}
