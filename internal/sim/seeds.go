package sim

import (
	"bytes"
	"cmp"
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
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	seedFlag  = flag.Uint64("sim.seed", 0, "simulate this seed alone, and print what happened")
	seedsFlag = flag.Uint64("sim.seeds", 0, "simulate so many seeds, not as many as fit into -sim.for")
	forFlag   = flag.Duration("sim.for", 0, "simulate for so long (default 20s, 3s with -short)")
	fromFlag  = flag.Uint64("sim.from", 1, "the first seed")
	stepFlag  = flag.Uint64("sim.step", 0, "simulate every so many-th seed, in this process alone")
)

// CheckSeeds simulates the seeds that the flags name.
func CheckSeeds(t *testing.T, hooks Hooks) {
	switch {
	case *seedFlag != 0:
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		w := Simulate(t, hooks, *seedFlag)
		t.Log(w.History(true))
		if w.Failed() {
			t.Fail()
		}
	case *stepFlag != 0:
		quiet, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		os.Stderr = quiet // where client-go logs
		simulateSome(t, hooks)
	default:
		simulateOnAllCores(t)
	}
}

// simulateOnAllCores runs a process for each core: one world keeps no more than one busy, and two worlds in one process
// slow each other down.
func simulateOnAllCores(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := time.Now()
	logged := began // protected by mu, as all
	var group errgroup.Group
	var mu sync.Mutex
	var all counts
	var timeout time.Duration // none; else the processes end when this one does
	if deadline, ok := t.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	step := uint64(runtime.GOMAXPROCS(0))
	for i := range step {
		cmd := exec.CommandContext(ctx, exe, "-test.run=^"+t.Name()+"$", "-test.v",
			fmt.Sprint("-test.timeout=", timeout),
			fmt.Sprint("-test.short=", testing.Short()), fmt.Sprint("-sim.step=", step),
			fmt.Sprint("-sim.for=", *forFlag),
			fmt.Sprint("-sim.from=", *fromFlag+i), fmt.Sprint("-sim.seeds=", *seedsFlag))
		group.Go(func() error {
			out := &lineWriter{each: func(line string) bool {
				var more counts
				if _, rest, ok := strings.Cut(line, simulated); ok {
					if _, err := fmt.Sscanf(rest, countsFormat, more.fields()...); err != nil {
						t.Errorf("%q: %v", line, err)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				all.add(more)
				if time.Since(logged) > time.Minute {
					logged = time.Now()
					t.Logf("%v, after %v", all, time.Since(began).Round(time.Second))
				}
				return more.seeds > 0
			}}
			cmd.Stdout, cmd.Stderr = out, out
			err := cmd.Run()
			if err != nil && ctx.Err() == nil {
				cancel() // one violation is enough
				t.Errorf("%v\n%s", err, out.rest.Bytes())
			}
			return nil
		})
	}
	group.Wait()
	took := time.Since(began)
	t.Logf("%v, from seed %d, in %v: %.1f seeds/s", all, *fromFlag, took.Round(time.Second),
		float64(all.seeds)/took.Seconds())
}

// counts are what happened in all worlds.
type counts struct {
	seeds, sessions, handovers, lost, excused int
	hours                                     float64 // virtual
}

const (
	simulated    = "simulated: "
	countsFormat = "%d seeds, %d sessions, %d handovers, %d sessions lost, %d overlaps excused, %g virtual hours"
)

func (c counts) String() string {
	c.hours = math.Round(c.hours*100) / 100
	return fmt.Sprintf(countsFormat, c.seeds, c.sessions, c.handovers, c.lost, c.excused, c.hours)
}

func (c *counts) fields() []any {
	return []any{&c.seeds, &c.sessions, &c.handovers, &c.lost, &c.excused, &c.hours}
}

func (c *counts) add(d counts) {
	c.seeds, c.sessions, c.handovers = c.seeds+d.seeds, c.sessions+d.sessions, c.handovers+d.handovers
	c.lost, c.excused, c.hours = c.lost+d.lost, c.excused+d.excused, c.hours+d.hours
}

// A lineWriter collects the lines for which each returns false.
type lineWriter struct {
	each       func(line string) bool
	line, rest bytes.Buffer
}

func (l *lineWriter) Write(p []byte) (int, error) {
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

// simulateSome simulates this process's share of the seeds, until one fails.
func simulateSome(t *testing.T, hooks Hooks) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // worlds are small and many
	budget := 20 * time.Second
	if testing.Short() {
		budget = 3 * time.Second
	}
	budget = cmp.Or(*forFlag, budget)
	began := time.Now()
	var some counts // not logged yet
	defer func() { t.Logf("%s%v", simulated, some) }()
	for i := uint64(0); *seedsFlag == 0 && time.Since(began) < budget || i < *seedsFlag; i += *stepFlag {
		w := Simulate(t, hooks, *fromFlag+i)
		c := w.checker
		some.add(counts{1, c.sessions, c.handovers, c.lost, c.excused, w.lasted.Hours()})
		if w.Failed() {
			t.Errorf("%s\nreplay: go test -run %s -sim.seed=%d .", w.History(false), t.Name(), w.seed)
			break
		}
		if some.seeds == 100 {
			t.Logf("%s%v", simulated, some)
			some = counts{}
		}
	}
}

// CheckRepeats shows that a seed has one history, which is what makes a failing seed worth printing: a replay gives the
// same, if not at once then soon. What no seed decides is which of two things that happen in the same nanosecond comes
// first: the runtime picks a ready case of a select, and one of several timers, at random, and a busy machine preempts
// a goroutine at any point. Delays that are odd numbers of nanoseconds make that rare.
func CheckRepeats(t *testing.T, hooks Hooks) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 3
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as a replay does
	for seed := *fromFlag; seed < *fromFlag+seeds; seed++ {
		history := func() string { return Simulate(t, hooks, seed).sortedHistory() }
		first := history()
		histories := []string{first}
		for again := history(); !slices.Contains(histories, again); again = history() {
			t.Logf("seed %d: %s", seed, firstDifference(first, again))
			if histories = append(histories, again); len(histories) == 5 {
				t.Errorf("seed %d had another history each of %d times", seed, len(histories))
				break
			}
		}
	}
}

// CheckClientGo shows that the checker sees the known faults of client-go, in worlds with nothing but its electors.
func CheckClientGo(t *testing.T, hooks Hooks) {
	missing := map[string]bool{twoLead: true, ledOn: true, freedAnothers: true, releasedTooSoon: true}
	for seed := uint64(1); len(missing) > 0; seed++ {
		if seed > 500 {
			t.Fatalf("not seen in 500 seeds: %v", missing)
		}
		w := newClientGoWorld(hooks, seed).play(t)
		if w.Failed() {
			t.Fatal(w.History(false))
		}
		for _, fault := range w.checker.clientGoFaults {
			if missing[fault] {
				delete(missing, fault)
				config := w.electors[0].config
				t.Logf("seed %d: %s; renew deadline %v, retry period %v", seed, fault, config.RenewDeadline,
					config.RetryPeriod)
			}
		}
	}
}
