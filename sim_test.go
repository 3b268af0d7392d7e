package leasehold_test

import (
	"testing"
	"time"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/sim"
)

// hooks give the simulation what it needs of the core.
var hooks = sim.Hooks{
	Clock: func(c sim.Clock) leasehold.Option {
		return leasehold.WithTestClock(leasehold.TestClock{
			Now: func() (time.Time, time.Duration) {
				now := c.Now()
				return now.Mono, now.Boot
			},
			Wait: c.Wait,
		})
	},
	Chance:      leasehold.WithChance,
	SharedFrom:  leasehold.WithSharedFrom,
	OwnRequests: leasehold.WithOwnRequests,
	Loss:        leasehold.LossOf,
	TrustedUntil: func(s leasehold.Session) sim.Instant {
		mono, boot := leasehold.TrustedUntil(s)
		return sim.Instant{Mono: mono, Boot: boot}
	},
}

// TestSimulation makes a world of each seed and plays ten to thirty minutes of virtual time in it: candidates with
// settings and clocks of their own, an API server and a network with faults, an operator. Every step is checked. A seed
// that fails is replayed by
//
//	go test -run TestSimulation -sim.seed=N .
//
// and more are simulated by
//
//	go test -run TestSimulation -sim.seeds=100000 -sim.from=1 -timeout 0 -v .
func TestSimulation(t *testing.T) {
	t.Parallel()
	sim.CheckSeeds(t, hooks)
}

// TestSimulationRepeats shows that a seed has one history.
func TestSimulationRepeats(t *testing.T) { sim.CheckRepeats(t, hooks) }

// TestCheckerSeesClientGo shows that the simulation sees the known faults of client-go.
func TestCheckerSeesClientGo(t *testing.T) { sim.CheckClientGo(t, hooks) }
