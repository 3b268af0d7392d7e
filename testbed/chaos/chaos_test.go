package main

import (
	"bufio"
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/leasehold-go/leasehold/testbed/internal/child/childtest"
)

// mainEnv makes the test binary run as the command.
const mainEnv = "CHAOS_TEST_MAIN"

func TestMain(m *testing.M) {
	children()
	if os.Getenv(mainEnv) != "" {
		main()
		os.Exit(0)
	}
	if err := flag.Set("test.parallel", "4"); err != nil { // each waits; -test.parallel overrides this
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func needServer(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: needs a real API server")
	}
}

var long = flag.Bool("long", false, "disturb candidates for minutes instead of seconds")

// TestChaos is a short run of the command.
func TestChaos(t *testing.T) {
	needServer(t)
	t.Parallel()
	duration, looks, kinds, moves := 25*time.Second, 300, 2, 10
	if *long {
		duration, looks, kinds, moves = 3*time.Minute, 1000, 4, 100
	}
	v, err := run(t.Context(), config{
		duration: duration, seed: rand.Uint64N(1e9), fleet: "all", disturb: (*harness).disturb, out: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(v.violations) > 0 || v.overlaps[oursFault] > 0 {
		t.Errorf("%d violations, see above", len(v.violations))
	}
	if v.handovers < 4 || v.looks < looks || len(v.byKind) < kinds || v.groups.moves < moves {
		t.Errorf("too little happened: %d handovers, %d looks, candidates of %s, %d keys moved", v.handovers, v.looks,
			counts(v.byKind), v.groups.moves)
	}
}

// TestOverlapSeen shows that the checks find two leaders: a stopped elector of client-go leads on after it is
// continued, until its renew deadline.
func TestOverlapSeen(t *testing.T) {
	needServer(t)
	t.Parallel()
	v, err := run(t.Context(), config{
		duration: 20 * time.Second, fleet: "client-go", out: t.Output(),
		disturb: func(h *harness, ctx context.Context) {
			for ctx.Err() == nil {
				leader := h.target(randomFault{leader: true})
				if err := h.stop(ctx, randomFault{kind: "stop", leader: true, x: 0.9, y: 0.99}); err != nil {
					t.Error(err)
				}
				sleep(ctx, leader.Duration)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if v.overlaps[theirsFault] == 0 || v.longest[theirsFault] < 100*time.Millisecond {
		t.Errorf("overlaps of %s, want some of client-go's", counts(v.overlaps))
	}
	if v.lateElect == 0 {
		t.Error("no late write of client-go's")
	}
}

// TestGroupOverlapSeen shows that the checks find two that work on a key: work that does not look at its session goes
// on after its process was stopped and another has its keys.
func TestGroupOverlapSeen(t *testing.T) {
	needServer(t)
	const blind = "blind"
	fleets[blind] = slices.Clone(fleets[crew])
	for i := range fleets[blind] {
		fleets[blind][i].Blind = true
	}
	t.Parallel() // no other test runs before
	v, err := run(t.Context(), config{
		duration: 15 * time.Second, fleet: blind, out: t.Output(),
		disturb: func(h *harness, ctx context.Context) {
			if err := h.stop(ctx, randomFault{kind: "stop", leader: true, x: 0.9, y: 0.99}); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if v.overlaps[oursFault] == 0 || len(v.violations) == 0 || v.unfenced == 0 {
		t.Errorf("overlaps of %s, %d violations, %d late writes went through, want some", counts(v.overlaps),
			len(v.violations), v.unfenced)
	}
}

// TestStopped ends the command during a run. The seed gives a pause of the API server first and then a stopped
// candidate.
func TestStopped(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		sig  syscall.Signal
		code int
	}{
		{"interrupted", syscall.SIGINT, 130},
		{"killed", syscall.SIGKILL, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needServer(t)
			t.Parallel()
			cmd := childtest.Command(t, mainEnv, "-seed=1163")
			cmd.Stderr = t.Output()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			stop(t, cmd, bufio.NewScanner(out), tt.sig)
			if code := cmd.ProcessState.ExitCode(); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			childtest.WantNothingLeft(t, cmd)
		})
	}
}

// stop sends the signal while the API server is paused and a candidate is stopped, and waits for the command.
func stop(t *testing.T, cmd *exec.Cmd, lines *bufio.Scanner, sig syscall.Signal) {
	paused := false
	for lines.Scan() {
		t.Log(lines.Text())
		paused = paused || strings.Contains(lines.Text(), "API server and etcd")
		if paused && strings.Contains(lines.Text(), ": stopped for") {
			if err := cmd.Process.Signal(sig); err != nil {
				t.Error(err)
			}
			break
		}
	}
	for lines.Scan() {
		t.Log(lines.Text())
	}
	_ = cmd.Wait() // the caller checks the exit code
}
