package leasehold

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "simulate this seed alone, and print what happened")
	simSeeds = flag.Uint64("sim.seeds", 0, "simulate so many seeds, rather than as many as fit in a minute (5 s with -short)")
	simFrom  = flag.Uint64("sim.from", 1, "the first seed")
)

// TestSimulation makes a world of each seed and lets ten to thirty minutes of virtual time pass there:
// candidates with settings and clocks of their own, an API server and a network with faults, an
// operator (sim_world_test.go). A judge watches every step (sim_judge_test.go). A seed that fails is
// replayed by
//
//	go test -run TestSimulation -sim.seed=N .
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		s := simulate(t, *simSeed)
		t.Log(s.story(true))
		if s.failed() {
			t.Fail()
		}
		return
	}
	budget := time.Minute
	if testing.Short() {
		budget = 5 * time.Second
	}
	began := time.Now()
	var next, done atomic.Uint64
	var stop atomic.Bool
	t.Cleanup(func() {
		took := time.Since(began)
		t.Logf("%d seeds from %d in %v: %.1f/s", done.Load(), *simFrom, took.Round(time.Second), float64(done.Load())/took.Seconds())
	})
	for worker := range runtime.GOMAXPROCS(0) {
		t.Run(fmt.Sprint("worker ", worker), func(t *testing.T) {
			t.Parallel()
			for !stop.Load() {
				n := next.Add(1) - 1
				if *simSeeds > 0 && n >= *simSeeds || *simSeeds == 0 && time.Since(began) > budget {
					return
				}
				s := simulate(t, *simFrom+n)
				done.Add(1)
				if s.failed() {
					stop.Store(true)
					t.Errorf("%s\nreplay: go test -run TestSimulation -sim.seed=%d .", s.story(false), s.seed)
				}
			}
		})
	}
}

// simulate runs the world of a seed.
func simulate(t *testing.T, seed uint64) *sim {
	s := newSim(seed)
	func() {
		defer func() {
			// testing/synctest finds what is left, or stuck, in a world that has ended.
			if r := recover(); r != nil {
				s.judge.fault("the world did not end: %v", r)
			}
		}()
		synctest.Test(t, func(*testing.T) { s.run() })
	}()
	return s
}

// TestSimulationRepeats shows that a seed's history is the same each time, which is what makes a
// failing seed worth printing.
func TestSimulationRepeats(t *testing.T) {
	seeds, times := uint64(20), 3
	if testing.Short() {
		seeds, times = 3, 2
	}
	differ := 0
	for seed := *simFrom; seed < *simFrom+seeds; seed++ {
		first := simulate(t, seed).story(true)
		for range times - 1 {
			if again := simulate(t, seed).story(true); again != first {
				differ++
				t.Logf("seed %d: %s", seed, firstDifference(first, again))
				break
			}
		}
	}
	if differ > int(seeds)/10 {
		t.Errorf("%d of %d seeds had more than one history", differ, seeds)
	}
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d\n%s\n%s", i+1, x[i], y[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(x), len(y))
}
