package main

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// renewal measures what a lease costs its leader and its standby while nothing happens: the CPU time of processes
// that have one candidate each and run with the default settings. Everything that a process does between two renewals
// counts: the watch and its events, pings, timers and the garbage collector. Each Lease has changed hands once,
// because that is how large one is: managedFields then has entries for acquiring and renewing. The floor's leader
// sends the renewals alone, by net/http and at leasehold's rate, and its standby reads a watch. All processes run at
// the same time.
func (b *bench) renewal() error {
	var trios []*trio
	defer func() {
		for _, t := range trios {
			_ = t.end()
		}
	}()
	for i := range 3 * b.solos {
		t, err := b.newTrio([]string{workElector, workLeasehold, workRawWrite}[i%3])
		trios = append(trios, t)
		if err != nil {
			return err
		}
	}
	if err := b.sleep(b.duration / 3); err != nil {
		return err
	}
	before, after := make([][2]census, len(trios)), make([][2]census, len(trios))
	for _, at := range []struct {
		censuses [][2]census
		then     time.Duration
	}{{before, b.renewing}, {after, 0}} {
		for i, t := range trios {
			var err error
			if at.censuses[i], err = t.census(); err != nil {
				return err
			}
		}
		if err := b.sleep(at.then); err != nil {
			return err
		}
	}
	cost := map[string]map[string][]float64{}
	for i, t := range trios {
		leader, standby := t.cost(before[i], after[i], b.renewing)
		for what, value := range leader {
			if cost[what] == nil {
				cost[what] = map[string][]float64{}
			}
			cost[what][t.work] = append(cost[what][t.work], value)
		}
		if cost[standbyCPU] == nil {
			cost[standbyCPU] = map[string][]float64{}
		}
		cost[standbyCPU][t.work] = append(cost[standbyCPU][t.work], standby)
	}
	for _, r := range []struct {
		what, unit, goal string
		reached          func(row) bool
	}{
		{renewalCPU, "s", "<= client-go", func(r row) bool { return r.Leasehold.P50 <= r.ClientGo.P50 }},
		{renewalSwitches, "", "", nil},
		{renewalAllocs, "", "<= 120", func(r row) bool { return r.Leasehold.P50 <= 120 }},
		{renewalBytes, "B", "", nil},
		{standbyCPU, "s", "<= 140 µs", func(r row) bool { return r.Leasehold.P50 <= 140e-6 }},
	} {
		of := cost[r.what]
		measured := row{
			What: r.what, Unit: r.unit, Goal: r.goal, ClientGo: summarize(of[workElector]...),
			Leasehold: summarize(of[workLeasehold]...), Floor: summarize(of[workRawWrite]...),
		}
		if r.reached == nil {
			b.report.add(measured, nil)
		} else {
			b.report.add(measured, func() bool { return r.reached(measured) })
		}
	}
	sizes, err := b.sizes(trios[:3])
	if err != nil {
		return err
	}
	b.report.note("renewal: %d leaders and %d standbys of each kind, a process each, over %v; "+
		"the floor's p99 of CPU time for a renewal is %s; Leases of %s.",
		b.solos, b.solos, b.renewing, format(summarize(cost[renewalCPU][workRawWrite]...).P99, "s"), sizes)
	for _, t := range trios {
		if err := t.end(); err != nil {
			return err
		}
	}
	return nil
}

// What is measured of a renewal.
const (
	renewalCPU      = "a renewal: client CPU time"
	renewalSwitches = "a renewal: context switches"
	renewalAllocs   = "a renewal: allocations"
	renewalBytes    = "a renewal: memory allocated"
	standbyCPU      = "a standby: client CPU time per second"
)

// A trio is a lease with the process that leads and the one that stands by.
type trio struct {
	*bench
	work, lease     string
	leader, standby *process
}

func (b *bench) newTrio(work string) (*trio, error) {
	t := &trio{bench: b, work: work, lease: b.lease("solo")}
	if err := t.changeHands(); err != nil {
		return t, err
	}
	tasks := [2]task{{Work: work, Identity: t.lease + "-leader"}, {Work: work, Identity: t.lease + "-standby"}}
	if work == workRawWrite {
		tasks[1].Work = workRawWatch
	}
	for i, p := range []**process{&t.leader, &t.standby} {
		tasks[i].Kubeconfig, tasks[i].Leases = b.server.Kubeconfig(), t.lease
		tasks[i].Duration, tasks[i].Deadline, tasks[i].Period = b.duration, b.deadline, b.period
		var err error
		if *p, err = b.newProcess(tasks[i]); err != nil {
			return t, err
		}
		if i == 0 {
			if _, err := t.leader.await("led", func(c census) bool { return c.Leading == 1 }); err != nil {
				return t, err
			}
		}
	}
	if work == workElector { // it polls
		return t, nil
	}
	_, err := t.standby.await("followed", func(c census) bool { return c.Following == 1 })
	return t, err
}

// changeHands makes the Lease one that two have held. What a raw leader renews is held by one that crashed.
func (t *trio) changeHands() error {
	which, terms := ours, 2
	if t.work != workRawWrite {
		terms = 1 // the process makes the second
	}
	if t.work == workElector {
		which = elector
	}
	for i := range terms {
		c := t.start(which, t.lease, fmt.Sprintf("%s-%d", t.lease, i), t.timing, nil)
		if _, err := receive(t.bench, "leader", c.led); err != nil {
			return err
		}
		if t.work == workRawWrite && i == terms-1 {
			c.crash()
		}
		if err := t.halt(c); err != nil {
			return err
		}
	}
	return nil
}

func (t *trio) census() (both [2]census, err error) {
	for i, p := range []*process{t.leader, t.standby} {
		if both[i], err = p.ask("census"); err != nil {
			return both, fmt.Errorf("%s: %w", t.work, err)
		}
	}
	return both, nil
}

// cost returns what one renewal takes, and the standby's CPU time per second.
func (t *trio) cost(before, after [2]census, d time.Duration) (leader map[string]float64, standby float64) {
	a, b := before[0], after[0]
	n := float64(max(1, b.Renewals-a.Renewals))
	return map[string]float64{
		renewalCPU:      (b.CPU - a.CPU).Seconds() / n,
		renewalSwitches: float64(b.Switches-a.Switches) / n,
		renewalAllocs:   float64(b.Allocs-a.Allocs) / n,
		renewalBytes:    float64(b.AllocBytes-a.AllocBytes) / n,
	}, (after[1].CPU - before[1].CPU).Seconds() / d.Seconds()
}

func (t *trio) end() error {
	if t.standby != nil {
		if err := t.standby.end(); err != nil {
			return err
		}
	}
	return t.leader.end()
}

// sizes says how large the Leases are, as the API server sends them.
func (b *bench) sizes(trios []*trio) (sizes string, err error) {
	client, err := coordinationv1client.NewForConfig(b.server.Config())
	if err != nil {
		return "", err
	}
	for _, t := range trios {
		lease, err := client.Leases(metav1.NamespaceDefault).Get(b.ctx, t.lease, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		if sizes != "" {
			sizes += ", "
		}
		sizes += fmt.Sprintf("%d bytes (%s)", lease.Size(), t.work)
	}
	return sizes, nil
}
