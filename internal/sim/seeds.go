package sim

import (
	"runtime"
	"slices"
	"testing"

	"github.com/leasehold-go/leasehold/internal/seeds"
)

var worlds = seeds.New("sim", "sessions", "handovers", "sessions lost", "overlaps excused", "virtual hours")

// CheckSeeds simulates the seeds that the flags name.
func CheckSeeds(t *testing.T, hooks Hooks) {
	worlds.Check(t, 0, func(seed uint64) []float64 {
		w := Simulate(t, hooks, seed)
		switch alone := worlds.Seed() != 0; {
		case w.Failed():
			t.Error(w.History(alone))
		case alone:
			t.Log(w.History(true))
		}
		c := w.checker
		return []float64{float64(c.sessions), float64(c.handovers), float64(c.lost), float64(c.excused),
			w.lasted.Hours()}
	})
}

// CheckRepeats shows that a seed has one history, which is what makes a failing seed worth printing: a replay gives the
// same, if not at once then soon. What no seed decides is which of two things that happen in the same nanosecond comes
// first: the runtime picks a ready case of a select, and one of several timers, at random, and a busy machine preempts
// a goroutine at any point. Delays that are odd numbers of nanoseconds make that rare.
func CheckRepeats(t *testing.T, hooks Hooks) {
	repeated := uint64(20)
	if testing.Short() {
		repeated = 3
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as a replay does
	for seed := worlds.From(); seed < worlds.From()+repeated; seed++ {
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
