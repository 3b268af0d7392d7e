package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
)

// A rolling is a kind of candidates that a rolling update replaces, by the revision of the program.
type rolling struct {
	what string
	run  func(revision int) side
}

var rollings = []rolling{
	{"client-go", func(int) side { return runElector }},
	{"leasehold", func(int) side { return runLeasehold }},
	{"with the revision as WithPriority", func(revision int) side {
		return leaseholdSide(leasehold.WithPriority(revision))
	}},
	{"and WithYield", func(revision int) side {
		return leaseholdSide(leasehold.WithPriority(revision), leasehold.WithYield())
	}},
}

const (
	startsAfter = time.Second // from the end of an old replica to the start of the program of the next new one
	readyAfter  = time.Second // how long a new one runs before an old one is stopped for it
)

// A rolled is what became of the lease in a rolling update.
type rolled struct {
	handovers int
	without   time.Duration // how long nobody led
}

// rollout plays rolling updates as a Deployment with maxSurge 1 and maxUnavailable 0 does them: a new replica starts
// and becomes ready, an old one is told to stop, the next new one starts when it has ended. Which old one that is does
// not depend on who leads.
func (b *bench) rollout() error {
	for _, replicas := range b.rollouts {
		results := make([][]rolled, len(rollings))
		for round := range b.rolls {
			r := rand.New(rand.NewPCG(uint64(replicas), uint64(round))) // the same for all
			stops := r.Perm(replicas)
			for i, kind := range rollings {
				result, err := b.rollOut(kind.run, stops)
				if err != nil {
					return fmt.Errorf("%s: %w", kind.what, err)
				}
				results[i] = append(results[i], result)
			}
		}
		for i, kind := range rollings {
			var each []int
			for _, r := range results[i] {
				each = append(each, r.handovers)
			}
			b.report.note("rollout of %d replicas, %s: handovers in each round %v.", replicas, kind.what, each)
		}
		for i, kind := range rollings[1:] {
			what := fmt.Sprintf("rollout of %d replicas", replicas)
			if i > 0 {
				what += " " + kind.what
			}
			handovers := func(all []rolled) *summary {
				return summarizeBy(all, func(r rolled) float64 { return float64(r.handovers) })
			}
			without := func(all []rolled) *summary {
				return summarizeBy(all, func(r rolled) float64 { return r.without.Seconds() })
			}
			theirs, ours := results[0], results[1+i]
			b.report.add(row{What: what + ": handovers", ClientGo: handovers(theirs), Leasehold: handovers(ours)}, nil)
			b.report.add(row{What: what + ": nobody leads", Unit: "s", ClientGo: without(theirs),
				Leasehold: without(ours)}, nil)
		}
	}
	return nil
}

// A stint is one term of one candidate.
type stint struct{ begin, end time.Time }

// rollOut replaces as many candidates as stops has, in its order.
func (b *bench) rollOut(run func(revision int) side, stops []int) (result rolled, err error) {
	lease := b.lease("rollout")
	start := func(revision, i int) *candidate {
		name := fmt.Sprintf("r%d-%d", revision, i)
		return b.startSide(run(revision), b.server.Config(), lease, name, b.timing, nil)
	}
	var old, all []*candidate
	for i := range stops {
		old = append(old, start(1, i))
	}
	all = append(all, old...)
	if err := b.awaitStint(all); err != nil {
		return result, err
	}
	for i, stopped := range stops {
		if err := b.sleep(startsAfter); err != nil {
			return result, err
		}
		all = append(all, start(2, i))
		if err := b.sleep(readyAfter); err != nil {
			return result, err
		}
		if err := b.halt(old[stopped]); err != nil {
			return result, err
		}
	}
	if err := b.awaitStint(all[len(stops):]); err != nil {
		return result, err
	}
	over := time.Now()
	if err := b.halt(all[len(stops):]...); err != nil {
		return result, err
	}
	var stints []stint
	for _, c := range all {
		for len(c.led) > 0 {
			s := stint{begin: <-c.led, end: over}
			if len(c.lost) > 0 {
				s.end = <-c.lost
			}
			if s.begin.Before(over) {
				stints = append(stints, s)
			}
		}
	}
	slices.SortFunc(stints, func(a, b stint) int { return cmp.Compare(a.begin.UnixNano(), b.begin.UnixNano()) })
	for i, s := range stints[1:] {
		result.handovers++
		result.without += max(0, s.begin.Sub(stints[i].end))
	}
	return result, nil
}

// awaitStint waits until one of the candidates leads.
func (b *bench) awaitStint(candidates []*candidate) error {
	for began := time.Now(); time.Since(began) < time.Minute; {
		for _, c := range candidates {
			if len(c.led) > len(c.lost) {
				return nil
			}
		}
		if err := b.sleep(time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("nobody leads within a minute")
}

// leaseholdSide runs candidates of leasehold with some more options.
func leaseholdSide(extra ...leasehold.Option) side {
	return func(ctx context.Context, c *candidate, cfg *rest.Config, t timing) error {
		return runLeaseholdWith(ctx, c, cfg, t, extra...)
	}
}
