package leasehold

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "simulate this seed alone, and print what happened")
	simSeeds = flag.Uint64("sim.seeds", 0, "simulate so many seeds, rather than as many as fit in a minute (3 s with -short)")
	simFrom  = flag.Uint64("sim.from", 1, "the first seed")
	simStep  = flag.Uint64("sim.step", 0, "simulate every so many-th seed, in this process alone")
)

// TestSimulation makes a world of each seed and lets ten to thirty minutes of virtual time pass there:
// candidates with settings and clocks of their own, an API server and a network with faults, an
// operator (sim_world_test.go). A judge watches every step (sim_judge_test.go). A seed that fails is
// replayed by
//
//	go test -run TestSimulation -sim.seed=N .
//
// and more are run by
//
//	go test -run TestSimulation -sim.seeds=100000 -sim.from=1 -timeout 0 -v .
func TestSimulation(t *testing.T) {
	switch {
	case *simSeed != 0:
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		s := simulate(t, *simSeed)
		t.Log(s.story(true))
		if s.failed() {
			t.Fail()
		}
	case *simStep != 0:
		quiet, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		os.Stderr = quiet // where client-go logs
		simulateAll(t)
	default:
		simulateOnAllCores(t)
	}
}

// simulateOnAllCores runs a process for each core: one world keeps no more than one busy, and two
// worlds in one process get in each other's way.
func simulateOnAllCores(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := time.Now()
	told := began // protected by mu, as all
	var group errgroup.Group
	var mu sync.Mutex
	var all tally
	var timeout time.Duration // none; else the processes end when this one does
	if deadline, ok := t.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	step := uint64(runtime.GOMAXPROCS(0))
	for i := range step {
		cmd := exec.CommandContext(ctx, exe, "-test.run=^TestSimulation$", "-test.v", fmt.Sprint("-test.timeout=", timeout),
			fmt.Sprint("-test.short=", testing.Short()), fmt.Sprint("-sim.step=", step),
			fmt.Sprint("-sim.from=", *simFrom+i), fmt.Sprint("-sim.seeds=", *simSeeds))
		group.Go(func() error {
			out := &lines{each: func(line string) bool {
				var more tally
				if _, rest, ok := strings.Cut(line, simulated); ok {
					if _, err := fmt.Sscanf(rest, tallyFormat, more.fields()...); err != nil {
						t.Errorf("%q: %v", line, err)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				all.add(more)
				if time.Since(told) > time.Minute {
					told = time.Now()
					t.Logf("%v, after %v", all, time.Since(began).Round(time.Second))
				}
				return more.seeds > 0
			}}
			cmd.Stdout, cmd.Stderr = out, out
			err := cmd.Run()
			if err != nil && ctx.Err() == nil {
				cancel() // one fault is enough
				t.Errorf("%v\n%s", err, out.rest.Bytes())
			}
			return nil
		})
	}
	group.Wait()
	took := time.Since(began)
	t.Logf("%v, from seed %d, in %v: %.1f seeds/s", all, *simFrom, took.Round(time.Second), float64(all.seeds)/took.Seconds())
}

// A tally is what happened in all worlds.
type tally struct {
	seeds, sessions, handovers, lost, excused int
	hours                                     float64 // virtual
}

const (
	simulated   = "simulated: "
	tallyFormat = "%d seeds, %d sessions, %d handovers, %d sessions lost, %d overlaps excused, %g virtual hours"
)

func (t tally) String() string {
	t.hours = math.Round(t.hours*100) / 100
	return fmt.Sprintf(tallyFormat, t.seeds, t.sessions, t.handovers, t.lost, t.excused, t.hours)
}

func (t *tally) fields() []any {
	return []any{&t.seeds, &t.sessions, &t.handovers, &t.lost, &t.excused, &t.hours}
}

func (t *tally) add(u tally) {
	t.seeds, t.sessions, t.handovers = t.seeds+u.seeds, t.sessions+u.sessions, t.handovers+u.handovers
	t.lost, t.excused, t.hours = t.lost+u.lost, t.excused+u.excused, t.hours+u.hours
}

// lines collects the lines that each does not take.
type lines struct {
	each       func(line string) bool
	line, rest bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	for _, b := range p {
		l.line.WriteByte(b)
		if b == '\n' {
			if !l.each(l.line.String()) {
				l.rest.Write(l.line.Bytes())
			}
			l.line.Reset()
		}
	}
	return len(p), nil
}

// simulateAll runs this process's share of the seeds, until one fails.
func simulateAll(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // worlds are small and many
	budget := time.Minute
	if testing.Short() {
		budget = 3 * time.Second
	}
	began := time.Now()
	var some tally // not yet told
	defer func() { t.Logf("%s%v", simulated, some) }()
	for i := uint64(0); *simSeeds == 0 && time.Since(began) < budget || i < *simSeeds; i += *simStep {
		s := simulate(t, *simFrom+i)
		some.add(tally{1, s.judge.all, s.judge.handovers, s.judge.lost, s.judge.excused, s.lasted.Hours()})
		if s.failed() {
			t.Errorf("%s\nreplay: go test -run TestSimulation -sim.seed=%d .", s.story(false), s.seed)
			break
		}
		if some.seeds == 100 {
			t.Logf("%s%v", simulated, some)
			some = tally{}
		}
	}
}

// simulate runs the world of a seed.
func simulate(t *testing.T, seed uint64) *sim { return newSim(seed).simulate(t) }

func (s *sim) simulate(t *testing.T) *sim {
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

// TestSimulationRepeats shows that a seed has one history, which is what makes a failing seed worth
// printing: playing it again gives the same, if not at once then soon. What no seed decides is which of
// two things that happen in the same nanosecond comes first: the runtime picks a ready case of a select,
// and a timer among several, by chance of its own, and a busy machine takes a goroutine's core away at any
// point. Delays that are odd numbers of nanoseconds make that rare.
func TestSimulationRepeats(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 3
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as a replay does
	for seed := *simFrom; seed < *simFrom+seeds; seed++ {
		first := inOrder(simulate(t, seed))
		histories := []string{first}
		for again := inOrder(simulate(t, seed)); !slices.Contains(histories, again); again = inOrder(simulate(t, seed)) {
			t.Logf("seed %d: %s", seed, firstDifference(first, again))
			if histories = append(histories, again); len(histories) == 5 {
				t.Errorf("seed %d had another history each of %d times", seed, len(histories))
				break
			}
		}
	}
}

// inOrder is the story with the lines of one instant sorted: within one, no order is right.
func inOrder(s *sim) string {
	lines := strings.Split(s.story(true), "\n")
	slices.SortStableFunc(lines[len(lines)-len(s.judge.lines):], strings.Compare)
	return strings.Join(lines, "\n")
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
